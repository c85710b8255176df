package file

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
	"google.golang.org/genproto/googleapis/api/annotations"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/penstock-gateway/penstock/gateway"
	"github.com/penstock-gateway/penstock/gateway/source/file/strict"
	"github.com/penstock-gateway/penstock/gateway/source/kubernetes/istio"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// DefaultProject is the project of documents that name none.
const DefaultProject = "default"

// Decode reads a multi-document YAML or JSON stream. Name is what errors and
// origins call the file. All problems are returned at once, together with the
// objects that have none.
func Decode(name string, data []byte) ([]gateway.Object, Errors) {
	set, errs := Options{}.Decode(name, data)
	return set.Objects(), errs
}

// Decode reads a stream as the package's Decode does and keeps the places of all
// fields.
func (o Options) Decode(name string, data []byte) (*Set, Errors) {
	l := o.loader()
	l.add(name, data)
	return l.finish()
}

// loader gathers the documents of one load.
type loader struct {
	project string
	stored  func(names []string) []*pb.Backend
	own     []Document
	foreign []*strict.Doc
	errs    Errors
	// order is the rank of each file, for errors.
	order map[string]int
}

func (o Options) loader() *loader {
	return &loader{project: cmp.Or(o.Project, DefaultProject), stored: o.stored(), order: map[string]int{}}
}

// stored is Options.Stored without what only the server writes.
func (o Options) stored() func(names []string) []*pb.Backend {
	if o.Stored == nil {
		return nil
	}
	return func(names []string) []*pb.Backend {
		out := o.Stored(names)
		for i, b := range out {
			out[i] = proto.CloneOf(b)
			clearOutput(out[i].ProtoReflect())
		}
		return out
	}
}

// add reads one file.
func (l *loader) add(name string, data []byte) {
	if _, ok := l.order[name]; !ok {
		l.order[name] = len(l.order)
	}
	before := len(l.errs)
	docs, errs := strict.Parse(name, data)
	l.errs = append(l.errs, errs...)
	for _, d := range docs {
		if l.document(d); len(l.errs)-before > strict.MaxErrors {
			l.errs = append(l.errs, strict.TooMany(name))
			return
		}
	}
}

// finish translates what is foreign, refuses names that are there twice, and
// sorts the errors by place.
func (l *loader) finish() (*Set, Errors) {
	set := &Set{}
	var backends []*pb.Backend
	for _, d := range l.own {
		if b, ok := d.object.(*pb.Backend); ok {
			backends = append(backends, b)
		}
	}
	translated, errs := istio.Translate(l.foreign, istio.Options{Project: l.project, Backends: backends, Stored: l.stored, Incomplete: len(l.errs) > 0})
	l.errs = append(l.errs, errs...)
	merged := map[string]istio.Object{}
	for _, t := range translated {
		if _, ok := t.Object.(*pb.Backend); ok {
			merged[t.GetName()] = t
		}
	}
	for _, d := range l.own {
		if t, ok := merged[d.object.GetName()]; ok {
			delete(merged, d.object.GetName())
			// The document with what DestinationRules add to it.
			d = newDocument(t.Object, overlay(d.places, t.Places))
		}
		set.Documents = append(set.Documents, d)
	}
	for _, t := range translated {
		_, left := merged[t.GetName()] // a stored one
		if _, ok := t.Object.(*pb.Backend); !ok || left {
			set.Documents = append(set.Documents, newDocument(t.Object, t.Places))
		}
	}
	slices.SortStableFunc(set.Documents, func(a, b Document) int {
		return cmp.Or(cmp.Compare(l.order[a.File], l.order[b.File]), cmp.Compare(a.Line, b.Line))
	})
	l.duplicates(set)
	slices.SortStableFunc(l.errs, func(a, b Error) int {
		return cmp.Or(cmp.Compare(l.order[a.File], l.order[b.File]), cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column))
	})
	return set, l.errs
}

func overlay(base, top strict.Places) strict.Places {
	for path, at := range top {
		if _, ok := base[path]; !ok {
			base[path] = at
		}
	}
	return base
}

// duplicates refuses all but the first document of each name.
func (l *loader) duplicates(set *Set) {
	seen := map[string]Document{}
	set.Documents = slices.DeleteFunc(set.Documents, func(d Document) bool {
		name := d.object.GetName()
		first, twice := seen[name]
		if !twice {
			seen[name] = d
			return false
		}
		at, _ := d.places.Find("name")
		l.errs = append(l.errs, at.Errorf("name", "", "%s is there already, at %s:%d", name, first.File, first.Line))
		return true
	})
}

// document sorts a document by who understands it.
func (l *loader) document(d *strict.Doc) {
	fields, errs := d.Fields(d.Root, "")
	byName := map[string]strict.Field{}
	for _, f := range fields {
		byName[f.Name] = f
	}
	if version, ok := byName["apiVersion"]; ok {
		l.kubernetes(d, version, byName["kind"])
		return
	}
	l.errs = append(l.errs, errs...)
	kind, ok := byName["kind"]
	if !ok {
		l.errs = append(l.errs, d.Place(d.Root).Errorf("kind", "one of "+strings.Join(kinds, ", "), "the document says no kind"))
		return
	}
	name, bad := d.Text(kind.Value, "kind")
	if len(bad) > 0 {
		l.errs = append(l.errs, bad...)
		return
	}
	i := slices.Index(kinds, name)
	if i < 0 {
		hint := strict.Suggest(name, kinds)
		if slices.Contains(istio.Kinds, name) {
			hint = "an Istio resource begins with apiVersion: networking.istio.io/v1"
		}
		l.errs = append(l.errs, d.Place(kind.Value).Errorf("kind", hint, "unknown kind %q", name))
		return
	}
	o, places, bad := l.resource(d, resourceKinds[i], fields)
	l.errs = append(l.errs, bad...)
	if len(bad)+len(errs) == 0 {
		l.own = append(l.own, newDocument(o, places))
	}
}

func (l *loader) kubernetes(d *strict.Doc, version, kind strict.Field) {
	v, bad := d.Text(version.Value, "apiVersion")
	if len(bad) > 0 {
		l.errs = append(l.errs, bad...)
		return
	}
	if istio.Owns(v) {
		l.foreign = append(l.foreign, d)
		return
	}
	what := v
	if kind.Value != nil && kind.Value.Kind == yaml.ScalarNode {
		what += " " + kind.Value.Value
	}
	hint := "Penstock's own resources have no apiVersion"
	if kind.Value != nil && kind.Value.Value == "List" {
		hint = "write the items as documents of their own"
	}
	l.errs = append(l.errs, d.Place(version.Value).Errorf("apiVersion", hint, "%s is not supported", what))
}

// resource decodes a document of one of our own kinds.
func (l *loader) resource(d *strict.Doc, fd protoreflect.FieldDescriptor, fields []strict.Field) (gateway.Object, strict.Places, Errors) {
	o := newObject(fd)
	// kind and project are not fields of the message, and the name is given in short.
	head := map[string]strict.Field{}
	rest := *d.Root
	rest.Content = nil
	for _, f := range fields {
		switch f.Name {
		case "kind", "name", "project":
			head[f.Name] = f
		default:
			rest.Content = append(rest.Content, f.Key, f.Value)
		}
	}
	places, errs := d.Decode(&rest, o, strict.Options{Names: strict.ProtoNames, Also: []string{"kind", "name", "project"}})
	errs = append(errs, l.name(d, o, head, places)...)
	clearOutput(o.ProtoReflect())
	md := o.ProtoReflect().Mutable(o.ProtoReflect().Descriptor().Fields().ByName("metadata")).Message()
	md.Interface().(*pb.Metadata).Origin = &pb.Origin{Source: "file", File: d.Source.Name, Line: int32(d.Root.Line)}
	return o, places, errs
}

func newObject(fd protoreflect.FieldDescriptor) gateway.Object {
	return (&pb.Resource{}).ProtoReflect().NewField(fd).Message().Interface().(gateway.Object)
}

// clearOutput takes away what only the server writes: a file that was printed by
// "get" can be applied again.
func clearOutput(m protoreflect.Message) {
	m.Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case strict.Behaves(fd, annotations.FieldBehavior_OUTPUT_ONLY):
			m.Clear(fd)
		case fd.Message() != nil && fd.Cardinality() != protoreflect.Repeated:
			clearOutput(v.Message())
		}
		return true
	})
}

// name sets the full name from the document's name and project.
func (l *loader) name(d *strict.Doc, o gateway.Object, fields map[string]strict.Field, places strict.Places) (errs Errors) {
	md := o.ProtoReflect().Descriptor()
	project, given := l.project, ""
	if f, ok := fields["project"]; ok {
		p, bad := d.Text(f.Value, "project")
		if len(bad) > 0 {
			return bad
		}
		if _, _, _, err := gateway.KindOf(gateway.Resolve(p, collection(md), "x")); err != nil {
			return Errors{d.Place(f.Value).Errorf("project", "", "%v", err)}
		}
		project, given = p, p
	}
	f, ok := fields["name"]
	if !ok {
		return Errors{d.Place(d.Root).Errorf("name", "", "the %s has no name", md.Name())}
	}
	places["name"] = d.Place(f.Value)
	name, bad := d.Text(f.Value, "name")
	if len(bad) > 0 {
		return bad
	}
	full := gateway.Resolve(project, collection(md), name)
	in, kind, _, err := gateway.KindOf(full)
	switch {
	case err != nil:
		return Errors{d.Place(f.Value).Errorf("name", "", "name: %v", err)}
	case kind != collection(md):
		return Errors{d.Place(f.Value).Errorf("name", fmt.Sprintf("write a short name, or projects/{project}/%s/{name}", collection(md)), "%q is not a valid name of a %s", name, md.Name())}
	case given != "" && in != given:
		return Errors{d.Place(f.Value).Errorf("name", "keep one of them", "name %q and project %q disagree", name, given)}
	}
	o.ProtoReflect().Set(md.Fields().ByName("name"), protoreflect.ValueOfString(full))
	return nil
}
