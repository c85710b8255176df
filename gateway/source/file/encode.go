package file

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
	"google.golang.org/genproto/googleapis/api/annotations"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/penstock-gateway/penstock/gateway"
	"github.com/penstock-gateway/penstock/gateway/source/file/strict"
)

// EncodeOption changes what Encode writes.
type EncodeOption func(*encoder)

// WithStatus keeps what only the server writes: status, uid, etag, times and
// origin.
func WithStatus() EncodeOption { return func(e *encoder) { e.status = true } }

type encoder struct {
	status bool
	// fullEnums writes enum values as the API does, not in their short forms.
	fullEnums bool
}

// Encode writes an object as one YAML document that Decode reads: fields in the
// order of the proto, short names, and without what only the server writes. An
// object without a valid full name is an error.
func Encode(o gateway.Object, options ...EncodeOption) ([]byte, error) {
	root, err := encode(o, options...)
	if err != nil {
		return nil, err
	}
	return render(root)
}

// encode is Encode up to the text.
func encode(o gateway.Object, options ...EncodeOption) (*yaml.Node, error) {
	e := &encoder{}
	for _, option := range options {
		option(e)
	}
	md := o.ProtoReflect().Descriptor()
	if gateway.KindOfMessage(md) == nil {
		return nil, fmt.Errorf("%s is not a resource", md.FullName())
	}
	project, kind, id, err := gateway.KindOf(o.GetName())
	if err != nil {
		return nil, err
	}
	if kind != collection(md) {
		return nil, fmt.Errorf("%q is not a valid name of a %s", o.GetName(), md.Name())
	}
	root := &yaml.Node{Kind: yaml.MappingNode}
	put := func(name string, value *yaml.Node) { root.Content = append(root.Content, key(name), value) }
	put("kind", text(string(md.Name())))
	put("name", text(id))
	if project != DefaultProject {
		put("project", text(project))
	}
	body, err := e.message(o.ProtoReflect(), md.Fields().ByName("name"))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", o.GetName(), err)
	}
	root.Content = append(root.Content, body.Content...)
	return root, nil
}

// render writes a node as YAML.
func render(root *yaml.Node) ([]byte, error) {
	var b bytes.Buffer
	enc := yaml.NewEncoder(&b)
	enc.SetIndent(2)
	enc.CompactSeqIndent()
	if err := enc.Encode(root); err != nil {
		return nil, err
	}
	return b.Bytes(), enc.Close()
}

// message writes a message's set fields, but for one.
func (e *encoder) message(m protoreflect.Message, without protoreflect.FieldDescriptor) (*yaml.Node, error) {
	n := &yaml.Node{Kind: yaml.MappingNode}
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		fd := fields.Get(i)
		if !m.Has(fd) || fd == without || (!e.status && serverWrites(fd)) {
			continue
		}
		v, err := e.field(fd, m.Get(fd))
		if err != nil {
			return nil, fmt.Errorf("%s: %w", fd.Name(), err)
		}
		if !e.status && fd.Name() == "metadata" && len(v.Content) == 0 {
			continue
		}
		n.Content = append(n.Content, key(string(fd.Name())), v)
	}
	return n, nil
}

// serverWrites reports whether a field comes from the server or from the loader.
func serverWrites(fd protoreflect.FieldDescriptor) bool {
	if strict.Behaves(fd, annotations.FieldBehavior_OUTPUT_ONLY) {
		return true
	}
	return fd.ContainingMessage().FullName() == "penstock.v1.Metadata" && (fd.Name() == "etag" || fd.Name() == "origin")
}

func (e *encoder) field(fd protoreflect.FieldDescriptor, v protoreflect.Value) (*yaml.Node, error) {
	switch {
	case fd.IsMap():
		n := &yaml.Node{Kind: yaml.MappingNode}
		entries := map[string]protoreflect.Value{}
		v.Map().Range(func(k protoreflect.MapKey, v protoreflect.Value) bool {
			entries[k.String()] = v
			return true
		})
		for _, k := range slices.Sorted(maps.Keys(entries)) {
			value, err := e.single(fd.MapValue(), entries[k])
			if err != nil {
				return nil, fmt.Errorf("%q: %w", k, err)
			}
			n.Content = append(n.Content, text(k), value)
		}
		return n, nil
	case fd.IsList():
		n := &yaml.Node{Kind: yaml.SequenceNode}
		for i := range v.List().Len() {
			value, err := e.single(fd, v.List().Get(i))
			if err != nil {
				return nil, fmt.Errorf("[%d]: %w", i, err)
			}
			n.Content = append(n.Content, value)
		}
		return n, nil
	}
	return e.single(fd, v)
}

func (e *encoder) single(fd protoreflect.FieldDescriptor, v protoreflect.Value) (*yaml.Node, error) {
	switch fd.Kind() {
	case protoreflect.StringKind:
		return text(v.String()), nil
	case protoreflect.BytesKind:
		return text(base64.StdEncoding.EncodeToString(v.Bytes())), nil
	case protoreflect.EnumKind:
		return e.enum(fd.Enum(), v.Enum())
	case protoreflect.MessageKind:
		switch m := v.Message().Interface().(type) {
		case *durationpb.Duration:
			return duration(m)
		case *timestamppb.Timestamp:
			if err := m.CheckValid(); err != nil {
				return nil, err
			}
			return text(m.AsTime().Format(time.RFC3339Nano)), nil
		}
		return e.message(v.Message(), nil)
	}
	return &yaml.Node{Kind: yaml.ScalarNode, Value: v.String()}, nil
}

func (e *encoder) enum(ed protoreflect.EnumDescriptor, number protoreflect.EnumNumber) (*yaml.Node, error) {
	vd := ed.Values().ByNumber(number)
	if vd == nil {
		return nil, fmt.Errorf("%d is not a value of %s", number, ed.Name())
	}
	if e.fullEnums {
		return text(string(vd.Name())), nil
	}
	return text(strict.EnumShort(vd)), nil
}

// duration writes 90s as 1m30s and 1h as 1h; Decode reads both forms.
func duration(d *durationpb.Duration) (*yaml.Node, error) {
	v := d.AsDuration()
	if err := d.CheckValid(); err != nil {
		return nil, err
	}
	if round := durationpb.New(v); round.GetSeconds() != d.GetSeconds() || round.GetNanos() != d.GetNanos() {
		return nil, fmt.Errorf("duration of %d s is too long", d.GetSeconds())
	}
	s := v.String()
	for _, unit := range []string{"m0s", "h0m"} {
		if strings.HasSuffix(s, unit) {
			s = s[:len(s)-2]
		}
	}
	return text(s), nil
}

// key is a field's name; none of them needs quotes.
func key(name string) *yaml.Node { return &yaml.Node{Kind: yaml.ScalarNode, Value: name} }

// yaml11 are words that older YAML readers take for true and false.
var yaml11 = []string{"y", "n", "yes", "no", "on", "off"}

// text is a YAML scalar that reads back as the same text.
func text(s string) *yaml.Node {
	n := &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: s}
	if needsQuotes(s) {
		n.Style = yaml.DoubleQuotedStyle
	}
	return n
}

// needsQuotes is on the safe side: text that could be read as anything else, or
// whose characters block styles would change.
func needsQuotes(s string) bool {
	if s == "" || s == "<<" || slices.Contains(yaml11, strings.ToLower(s)) || strings.TrimSpace(s) != s && !strings.HasSuffix(s, "\n") {
		return true
	}
	for _, r := range s {
		if (r < 0x20 && r != '\n') || r == 0x7f || (r > 0x7e && !strconv.IsPrint(r)) {
			return true
		}
	}
	if strings.Contains(s, "\n") {
		// Literal style keeps text whose lines begin and end with a letter.
		for l := range strings.SplitSeq(strings.TrimSuffix(s, "\n"), "\n") {
			if l == "" || strings.TrimSpace(l) != l {
				return true
			}
		}
		return strings.HasPrefix(s, "\n")
	}
	var n yaml.Node
	if err := yaml.Unmarshal([]byte(s), &n); err != nil || len(n.Content) != 1 {
		return true
	}
	got := n.Content[0]
	return got.Kind != yaml.ScalarNode || got.ShortTag() != "!!str" || got.Value != s || got.Style != 0 || got.Anchor != ""
}
