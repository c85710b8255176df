package azure

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
)

// maxDepth bounds how deeply a document may nest.
const maxDepth = 64

// value is a piece of a JSON document that knows where it stands.
type value struct {
	file string
	line int
	// json is nil, a bool, a json.Number, a string, []*value or *object.
	json any
}

type object struct {
	names  []string // in their order, as written
	values map[string]*value
}

// errorf is an error at this place.
func (v *value) errorf(format string, args ...any) error {
	return fmt.Errorf("%s:%d: %w", v.file, v.line, fmt.Errorf(format, args...))
}

// parse reads a JSON document.
func parse(file string, b []byte) (*value, error) {
	p := &parser{file: file, text: b, d: json.NewDecoder(bytes.NewReader(b))}
	p.d.UseNumber()
	v, err := p.value(0)
	if err != nil {
		return nil, err
	}
	if _, err := p.d.Token(); !errors.Is(err, io.EOF) {
		return nil, p.here().errorf("more follows after the end of the document")
	}
	return v, nil
}

type parser struct {
	file string
	text []byte
	d    *json.Decoder
}

// here is the place that the decoder is at.
func (p *parser) here() *value { return p.at(p.d.InputOffset()) }

func (p *parser) at(offset int64) *value {
	return &value{file: p.file, line: 1 + bytes.Count(p.text[:min(offset, int64(len(p.text)))], []byte{'\n'})}
}

func (p *parser) fault(err error) error {
	if s, ok := errors.AsType[*json.SyntaxError](err); ok {
		return p.at(s.Offset).errorf("it is not JSON: %w (comments are not allowed)", err)
	}
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return p.at(int64(len(p.text))).errorf("it is not JSON: it ends too early")
	}
	return p.here().errorf("it is not JSON: %w", err)
}

func (p *parser) value(depth int) (*value, error) {
	t, err := p.d.Token()
	if err != nil {
		return nil, p.fault(err)
	}
	v := p.here()
	if depth > maxDepth {
		return nil, v.errorf("it nests more than %d deep", maxDepth)
	}
	switch t {
	case json.Delim('{'):
		v.json, err = p.object(depth)
	case json.Delim('['):
		v.json, err = p.array(depth)
	default:
		v.json = t
	}
	return v, err
}

func (p *parser) object(depth int) (*object, error) {
	o := &object{values: map[string]*value{}}
	for p.d.More() {
		t, err := p.d.Token()
		if err != nil {
			return nil, p.fault(err)
		}
		name, _ := t.(string)
		at := p.here()
		v, err := p.value(depth + 1)
		if err != nil {
			return nil, err
		}
		// Names are told apart without regard to case, as on Azure.
		key := strings.ToLower(name)
		if o.values[key] != nil {
			return nil, at.errorf("duplicate %q", name)
		}
		o.names = append(o.names, name)
		o.values[key] = v
	}
	_, err := p.d.Token()
	if err != nil {
		return nil, p.fault(err)
	}
	return o, nil
}

func (p *parser) array(depth int) ([]*value, error) {
	list := []*value{}
	for p.d.More() {
		v, err := p.value(depth + 1)
		if err != nil {
			return nil, err
		}
		list = append(list, v)
	}
	if _, err := p.d.Token(); err != nil {
		return nil, p.fault(err)
	}
	return list, nil
}

// fields are the members of an object, each with what reads it. A nil reader means
// that the member is known and has no effect here.
type fields map[string]func(*value) error

// read gives each member of an object to its reader. ignored hears of those
// without one; a member that is not known is an error.
func (v *value) read(what string, known fields, ignored func(string, *value)) error {
	o, ok := v.json.(*object)
	if !ok {
		return v.errorf("%s must be an object", what)
	}
	lower := make(map[string]func(*value) error, len(known))
	for k, f := range known {
		lower[strings.ToLower(k)] = f
	}
	for _, name := range o.names {
		key := strings.ToLower(name)
		member := o.values[key]
		f, ok := lower[key]
		switch {
		case !ok:
			return member.errorf("%s has no field %q", what, name)
		case f == nil:
			if ignored != nil {
				ignored(name, member)
			}
		default:
			if err := f(member); err != nil {
				return err
			}
		}
	}
	return nil
}

// text reads a string.
func text(name string, to *string) func(*value) error {
	return func(v *value) error {
		s, ok := v.json.(string)
		if !ok {
			return v.errorf("%s must be a string", name)
		}
		if strings.ContainsRune(s, 0) {
			return v.errorf("%s holds a NUL", name)
		}
		*to = s
		return nil
	}
}

// flag reads a boolean.
func flag(name string, to *bool) func(*value) error {
	return func(v *value) error {
		b, ok := v.json.(bool)
		if !ok {
			return v.errorf("%s must be true or false", name)
		}
		*to = b
		return nil
	}
}

// texts reads a list of strings.
func texts(name string, to *[]string) func(*value) error {
	return func(v *value) error {
		list, ok := v.json.([]*value)
		if !ok {
			return v.errorf("%s must be a list of strings", name)
		}
		for _, e := range list {
			var s string
			if err := text("an element of "+name, &s)(e); err != nil {
				return err
			}
			*to = append(*to, s)
		}
		return nil
	}
}
