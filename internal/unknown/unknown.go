// Package unknown finds what a message holds that this version of its proto does not have:
// a newer version wrote it. Protobuf passes over such fields without a word, and with
// them over a policy that protects something.
package unknown

import (
	"fmt"
	"slices"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// Fields returns the paths of the fields of a message, and of those in it, that are not
// known by name (rules[0].policies.#17), and of enums with a number that has no name
// (isolation.level=9). It is empty for nearly all.
func Fields(m proto.Message) []string {
	var out []string
	walk(m.ProtoReflect(), "", &out)
	slices.Sort(out)
	return slices.Compact(out)
}

func walk(m protoreflect.Message, path string, out *[]string) {
	for rest := m.GetUnknown(); len(rest) > 0; {
		number, _, n := protowire.ConsumeField(rest)
		if n < 0 {
			*out = append(*out, path+"#?")
			break
		}
		*out = append(*out, fmt.Sprintf("%s#%d", path, number))
		rest = rest[n:]
	}
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		at := path + string(f.Name())
		switch {
		case f.IsMap():
			v.Map().Range(func(key protoreflect.MapKey, value protoreflect.Value) bool {
				single(f.MapValue(), value, fmt.Sprintf("%s[%s]", at, key), out)
				return true
			})
		case f.IsList():
			for i := range v.List().Len() {
				single(f, v.List().Get(i), fmt.Sprintf("%s[%d]", at, i), out)
			}
		default:
			single(f, v, at, out)
		}
		return true
	})
}

// single looks at a value of a field that is of one value.
func single(f protoreflect.FieldDescriptor, v protoreflect.Value, at string, out *[]string) {
	switch {
	case f.Message() != nil:
		walk(v.Message(), at+".", out)
	case f.Enum() != nil && f.Enum().Values().ByNumber(v.Enum()) == nil:
		*out = append(*out, fmt.Sprintf("%s=%d", at, v.Enum()))
	}
}
