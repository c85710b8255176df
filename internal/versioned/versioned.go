// Package versioned says what of a function makes a version of it: all fields but those
// that are marked with not_in_version in the API. The model makes versions by it, and
// runners replace instances by it, so the two never differ.
package versioned

import (
	"sync"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// Part returns a copy of a function without what makes no new version: the name, the
// metadata, the status, how many instances there are, and which versions get requests.
func Part(f *pb.Function) *pb.Function {
	out := proto.CloneOf(f)
	m := out.ProtoReflect()
	for _, field := range beside() {
		m.Clear(field)
	}
	return out
}

// beside are the marked fields.
var beside = sync.OnceValue(func() (out []protoreflect.FieldDescriptor) {
	fields := (*pb.Function)(nil).ProtoReflect().Descriptor().Fields()
	for i := range fields.Len() {
		if marked, _ := proto.GetExtension(fields.Get(i).Options(), pb.E_NotInVersion).(bool); marked {
			out = append(out, fields.Get(i))
		}
	}
	return out
})
