package strict

import (
	"fmt"
	"slices"
	"strconv"

	"go.yaml.in/yaml/v3"
	"google.golang.org/genproto/googleapis/api/annotations"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// Names says how fields are called in a file.
type Names int

const (
	// ProtoNames takes rate_limit and rateLimit; errors say rate_limit.
	ProtoNames Names = iota
	// JSONNames takes rateLimit only, as Kubernetes does.
	JSONNames
)

// Options are how a document is decoded.
type Options struct {
	Names Names
	// Path of the message, such as "spec"; "" for the document itself.
	Path string
	// Also names fields of the outermost mapping that the caller reads itself, for
	// suggestions.
	Also []string
	// Refuse returns why a field may not be used although the message has it, and
	// how to mend that; "" when it may. Optional.
	Refuse func(fd protoreflect.FieldDescriptor) (why, hint string)
}

// Decode fills a message from a mapping and returns the place of every field that
// was written down, by path. It goes on after an error; what was wrong is left
// out of the message.
func (d *Doc) Decode(n *yaml.Node, m proto.Message, o Options) (Places, Errors) {
	dec := &decoder{src: d.Source, options: o, places: Places{}}
	dec.places[o.Path] = placeOf(d.Source, n)
	dec.message(n, m.ProtoReflect(), o.Path)
	return dec.places, dec.errs
}

// Fields returns the keys and values of the document's top level and refuses
// duplicates and keys that are not text. Values keep their order of appearance.
func (d *Doc) Fields(n *yaml.Node, path string) ([]Field, Errors) {
	dec := &decoder{src: d.Source}
	return dec.fields(n, path), dec.errs
}

// Field is one entry of a mapping.
type Field struct {
	Name       string
	Key, Value *yaml.Node
}

// Place is where a node of the document stands.
func (d *Doc) Place(n *yaml.Node) Place { return placeOf(d.Source, n) }

// Text returns the value of a text node.
func (d *Doc) Text(n *yaml.Node, path string) (string, Errors) {
	dec := &decoder{src: d.Source}
	s, _ := dec.text(n, path)
	return s, dec.errs
}

type decoder struct {
	src     *Source
	options Options
	places  Places
	errs    Errors
	// hidden is set inside of fields whose values may not be shown.
	hidden bool
}

func (d *decoder) refuse(n *yaml.Node, path, hint, format string, args ...any) {
	if len(d.errs) >= MaxErrors {
		return
	}
	p := placeOf(d.src, n)
	p.Hide = d.hidden
	d.errs = append(d.errs, p.Errorf(path, hint, format, args...))
}

// wrong refuses a value of the wrong type.
func (d *decoder) wrong(n *yaml.Node, path, hint, expected string) {
	got := describe(n)
	if d.hidden {
		got = "something else"
	}
	d.refuse(n, path, hint, "%s: expected %s, got %s", path, expected, got)
}

// fields lists a mapping's entries, each name once.
func (d *decoder) fields(n *yaml.Node, path string) []Field {
	out := make([]Field, 0, len(n.Content)/2)
	seen := make(map[string]int, len(n.Content)/2)
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		if key.Kind != yaml.ScalarNode {
			d.refuse(key, path, "", "%sa key must be text, got %s", at(path), describe(key))
			continue
		}
		if key.ShortTag() != "!!str" && key.ShortTag() != "!!timestamp" {
			d.refuse(key, path, fmt.Sprintf("write %q with the quotes", key.Value), "%sa key must be text, got %s", at(path), describe(key))
			continue
		}
		if line, twice := seen[key.Value]; twice {
			d.refuse(key, join(path, key.Value), "", "%skey %q is there already, on line %d", at(path), key.Value, line)
			continue
		}
		seen[key.Value] = key.Line
		out = append(out, Field{Name: key.Value, Key: key, Value: value})
	}
	return out
}

func at(path string) string {
	if path == "" {
		return ""
	}
	return path + ": "
}

// message fills a message that is written as a mapping.
func (d *decoder) message(n *yaml.Node, m protoreflect.Message, path string) {
	if n.Kind != yaml.MappingNode {
		d.wrong(n, path, Suggest("", d.names(m.Descriptor(), path)), "a mapping")
		return
	}
	lines := map[protoreflect.FieldNumber]int{}
	chosen := map[protoreflect.Name]protoreflect.FieldDescriptor{}
	for _, f := range d.fields(n, path) {
		fd := d.find(m.Descriptor(), f.Name)
		if fd == nil {
			where := path
			if where == "" {
				where = string(m.Descriptor().Name())
			}
			// The line may hold the value of a misspelt private_key.
			hidden := d.hidden
			d.hidden = hidden || takesSecrets(m.Descriptor())
			d.refuse(f.Key, join(path, f.Name), Suggest(f.Name, d.names(m.Descriptor(), path)), "unknown field %q in %s", f.Name, where)
			d.hidden = hidden
			continue
		}
		fieldPath := join(path, d.name(fd))
		if line, twice := lines[fd.Number()]; twice {
			d.refuse(f.Key, fieldPath, "", "%s is there already, on line %d", fieldPath, line)
			continue
		}
		lines[fd.Number()] = f.Key.Line
		if o := fd.ContainingOneof(); o != nil && !o.IsSynthetic() {
			if other := chosen[o.Name()]; other != nil {
				d.refuse(f.Key, fieldPath, "keep one of them", "%s%s and %s exclude each other", at(path), d.name(fd), d.name(other))
				continue
			}
			chosen[o.Name()] = fd
		}
		if d.options.Refuse != nil {
			if why, hint := d.options.Refuse(fd); why != "" {
				d.refuse(f.Key, fieldPath, hint, "%s %s", fieldPath, why)
				continue
			}
		}
		d.field(f, fd, m, fieldPath)
	}
}

// field decodes one field and remembers its place: the value's when that is on
// one line, else the key's.
func (d *decoder) field(f Field, fd protoreflect.FieldDescriptor, m protoreflect.Message, path string) {
	if Behaves(fd, annotations.FieldBehavior_INPUT_ONLY) && !d.hidden {
		d.hidden = true
		defer func() { d.hidden = false }()
	}
	where := f.Value
	if where.Kind != yaml.ScalarNode {
		where = f.Key
	}
	p := placeOf(d.src, where)
	p.Hide = d.hidden
	d.places[path] = p
	switch {
	case isNull(f.Value):
		d.refuse(f.Key, path, "give it a value or take it away", "%s has no value", path)
	case fd.IsMap():
		d.mapping(f.Value, fd, m, path)
	case fd.IsList():
		d.list(f.Value, fd, m, path)
	default:
		if v, ok := d.single(f.Value, fd, m.NewField, path); ok {
			m.Set(fd, v)
		}
	}
}

func (d *decoder) list(n *yaml.Node, fd protoreflect.FieldDescriptor, m protoreflect.Message, path string) {
	if n.Kind != yaml.SequenceNode {
		d.wrong(n, path, "begin each item with a dash, or write [ ] around the items", "a list")
		return
	}
	list := m.Mutable(fd).List()
	element := func(protoreflect.FieldDescriptor) protoreflect.Value { return list.NewElement() }
	for i, item := range n.Content {
		itemPath := fmt.Sprintf("%s[%d]", path, i)
		p := placeOf(d.src, item)
		p.Hide = d.hidden
		d.places[itemPath] = p
		if v, ok := d.single(item, fd, element, itemPath); ok {
			list.Append(v)
		}
	}
}

func (d *decoder) mapping(n *yaml.Node, fd protoreflect.FieldDescriptor, m protoreflect.Message, path string) {
	if n.Kind != yaml.MappingNode {
		d.wrong(n, path, "", "a mapping")
		return
	}
	entries := m.Mutable(fd).Map()
	value := func(protoreflect.FieldDescriptor) protoreflect.Value { return entries.NewValue() }
	for _, f := range d.fields(n, path) {
		entryPath := fmt.Sprintf("%s[%s]", path, strconv.Quote(f.Name))
		where := f.Value
		if where.Kind != yaml.ScalarNode {
			where = f.Key
		}
		p := placeOf(d.src, where)
		p.Hide = d.hidden
		d.places[entryPath] = p
		if isNull(f.Value) {
			d.refuse(f.Key, entryPath, `give it a value; an empty text is ""`, "%s has no value", entryPath)
			continue
		}
		if v, ok := d.single(f.Value, fd.MapValue(), value, entryPath); ok {
			entries.Set(protoreflect.ValueOfString(f.Name).MapKey(), v)
		}
	}
}

// single decodes one value: of a field, of a list's item or of a map's entry.
func (d *decoder) single(n *yaml.Node, fd protoreflect.FieldDescriptor, fresh func(protoreflect.FieldDescriptor) protoreflect.Value, path string) (protoreflect.Value, bool) {
	if fd.Message() == nil {
		return d.scalar(n, fd, path)
	}
	v := fresh(fd)
	if known, ok := wellKnown[fd.Message().FullName()]; ok {
		return v, known(d, n, v.Message(), path)
	}
	before := len(d.errs)
	d.message(n, v.Message(), path)
	// What was readable is kept, so that what depends on it brings no more errors.
	return v, n.Kind == yaml.MappingNode || len(d.errs) == before
}

func (d *decoder) find(md protoreflect.MessageDescriptor, name string) protoreflect.FieldDescriptor {
	if fd := md.Fields().ByJSONName(name); fd != nil {
		return fd
	}
	if d.options.Names == JSONNames {
		return nil
	}
	return md.Fields().ByName(protoreflect.Name(name))
}

func (d *decoder) name(fd protoreflect.FieldDescriptor) string {
	if d.options.Names == JSONNames {
		return fd.JSONName()
	}
	return string(fd.Name())
}

// names lists what may be written in a message.
func (d *decoder) names(md protoreflect.MessageDescriptor, path string) []string {
	var out []string
	if path == d.options.Path {
		out = slices.Clone(d.options.Also)
	}
	for i := range md.Fields().Len() {
		fd := md.Fields().Get(i)
		if name := d.name(fd); !Behaves(fd, annotations.FieldBehavior_OUTPUT_ONLY) && !slices.Contains(out, name) {
			out = append(out, name)
		}
	}
	return out
}

// Behaves reports whether a field has an AIP-203 field behaviour.
func Behaves(fd protoreflect.FieldDescriptor, b annotations.FieldBehavior) bool {
	all, _ := proto.GetExtension(fd.Options(), annotations.E_FieldBehavior).([]annotations.FieldBehavior)
	return slices.Contains(all, b)
}

func takesSecrets(md protoreflect.MessageDescriptor) bool {
	for i := range md.Fields().Len() {
		if Behaves(md.Fields().Get(i), annotations.FieldBehavior_INPUT_ONLY) {
			return true
		}
	}
	return false
}
