package gateway

import (
	"fmt"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/durationpb"
)

// fieldText is the value of the field at a path.
func fieldText(m protoreflect.Message, path []string) string {
	f := m.Descriptor().Fields().ByName(protoreflect.Name(path[0]))
	if len(path) > 1 {
		return fieldText(m.Get(f).Message(), path[1:])
	}
	return valueText(f, m.Get(f))
}

// fieldsText is all that is set in a message.
func fieldsText(m proto.Message) string {
	var out []string
	r := m.ProtoReflect()
	fields := r.Descriptor().Fields()
	for i := range fields.Len() {
		if f := fields.Get(i); r.Has(f) {
			out = append(out, fmt.Sprintf("%s: %s", f.Name(), valueText(f, r.Get(f))))
		}
	}
	return strings.Join(out, ", ")
}

func valueText(f protoreflect.FieldDescriptor, v protoreflect.Value) string {
	switch {
	case f.IsMap():
		return fmt.Sprint(v.Interface())
	case f.IsList():
		var out []string
		for i := range v.List().Len() {
			out = append(out, oneText(f, v.List().Get(i)))
		}
		return "[" + strings.Join(out, ", ") + "]"
	}
	return oneText(f, v)
}

func oneText(f protoreflect.FieldDescriptor, v protoreflect.Value) string {
	switch f.Kind() {
	case protoreflect.MessageKind:
		if d, ok := v.Message().Interface().(*durationpb.Duration); ok {
			return ShortDuration(d.AsDuration())
		}
		return "{" + fieldsText(v.Message().Interface()) + "}"
	case protoreflect.EnumKind:
		if e := f.Enum().Values().ByNumber(v.Enum()); e != nil {
			return string(e.Name())
		}
	case protoreflect.StringKind:
		return fmt.Sprintf("%q", v.String())
	}
	return fmt.Sprint(v.Interface())
}

// ShortDuration prints a duration without zero parts: 5m, not 5m0s.
func ShortDuration(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// Quoted puts each text of a list in quotation marks.
func Quoted(list []string) []string {
	out := make([]string, len(list))
	for i, s := range list {
		out[i] = fmt.Sprintf("%q", s)
	}
	return out
}
