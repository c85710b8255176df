// Package file reads configuration from YAML and JSON files and writes it as
// YAML.
//
// The format is the API's protobuf messages as they are, with the kind and a
// short name on top:
//
//	kind: Route
//	name: support
//	rules:
//	- name: ask
//	  matches: [{path: {prefix: /support}, methods: [POST]}]
//	  forward: {backends: [{backend: functions/support}]}
//
// Field names are those of the protos (prefix_rewrite) or of their JSON form
// (prefixRewrite), enum values may be short (HTTPS), durations are "5s" or
// "1m30s". Reading is strict, see package strict. Istio's Gateway,
// VirtualService and DestinationRule may stand in the same files: documents whose
// apiVersion is networking.istio.io/… go to package istio, which this package
// calls directly.
package file

import (
	"slices"

	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/penstock-gateway/penstock/gateway"
	"github.com/penstock-gateway/penstock/gateway/source/file/strict"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// Error is one thing wrong in a file; see strict.Error for its fields.
type Error = strict.Error

// Errors is every problem of one load. It is an error, but a nil Errors in an
// error variable is not nil: use Err or len.
type Errors = strict.Errors

// Document is one resource of a file and the places of its fields.
type Document struct {
	// Resource holds the object.
	Resource *pb.Resource
	// File as the user named it, and the 1-based line where the document starts.
	File string
	Line int

	object gateway.Object
	places strict.Places
}

// Object is the resource without its envelope.
func (d Document) Object() gateway.Object { return d.object }

// newDocument wraps an object.
func newDocument(o gateway.Object, places strict.Places) Document {
	r := gateway.ToResource(o)
	if r == nil {
		r = &pb.Resource{}
	}
	origin := o.GetMetadata().GetOrigin()
	return Document{Resource: r, File: origin.GetFile(), Line: int(origin.GetLine()), object: o, places: places}
}

// Set is what one load read.
type Set struct {
	Documents []Document
}

// Objects are the objects of all documents, in order of the files.
func (s *Set) Objects() []gateway.Object {
	out := make([]gateway.Object, 0, len(s.Documents))
	for _, d := range s.Documents {
		out = append(out, d.object)
	}
	return out
}

// Positions tells where the fields of an object were written.
type Positions = strict.Places

// Positions returns the places of an object's fields by path, such as
// rules[0].forward; nil when the object is not in the set.
func (s *Set) Positions(object string) Positions {
	i := slices.IndexFunc(s.Documents, func(d Document) bool { return d.object.GetName() == object })
	if i < 0 {
		return nil
	}
	return s.Documents[i].places
}

// Locate makes errors with file, line, column and source line of problems that
// were found after decoding: by gateway.Validate, or by a server. A field that
// was not written down is shown at the nearest field around it.
func (s *Set) Locate(problems []gateway.Problem) Errors {
	byName := make(map[string]Document, len(s.Documents))
	for _, d := range s.Documents {
		byName[d.object.GetName()] = d
	}
	var out Errors
	for _, p := range problems {
		message := p.Message
		if p.Field != "" {
			message = p.Field + ": " + message
		}
		d, known := byName[p.Object]
		if at, ok := d.places.Find(p.Field); known && ok {
			out = append(out, at.Errorf(p.Field, "", "%s: %s", p.Object, message))
			continue
		}
		file := p.Origin.GetFile()
		if file == "" {
			file = p.Object
		} else {
			message = p.Object + ": " + message
		}
		out = append(out, Error{File: file, Line: int(p.Origin.GetLine()), Column: min(1, int(p.Origin.GetLine())), Path: p.Field, Message: message})
	}
	return out
}

// kinds are the names of the kinds that a file may hold: Gateway, Route, …
var kinds = func() []string {
	var out []string
	for _, fd := range resourceKinds {
		out = append(out, string(fd.Message().Name()))
	}
	return out
}()

// resourceKinds are the fields of Resource that hold what people write.
var resourceKinds = func() []protoreflect.FieldDescriptor {
	var out []protoreflect.FieldDescriptor
	for _, c := range gateway.Writable() {
		out = append(out, gateway.KindFor(c).Field)
	}
	return out
}()

// collection is the collection of a kind's names: "routes" for Route.
func collection(md protoreflect.MessageDescriptor) string {
	return gateway.KindOfMessage(md).Collection
}
