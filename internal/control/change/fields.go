package change

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/genproto/googleapis/api/annotations"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/penstock-gateway/penstock/gateway"
	"github.com/penstock-gateway/penstock/gateway/source/file/strict"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// Of describes the change from old to o; either may be nil.
func Of(old, o gateway.Object) *pb.Change {
	switch {
	case isNil(o):
		return &pb.Change{Name: old.GetName(), Type: pb.ChangeType_CHANGE_TYPE_DELETE}
	case isNil(old):
		return &pb.Change{Name: o.GetName(), Type: pb.ChangeType_CHANGE_TYPE_CREATE, Etag: o.GetMetadata().GetEtag()}
	}
	ch := &pb.Change{Name: o.GetName(), Type: pb.ChangeType_CHANGE_TYPE_UPDATE, Etag: o.GetMetadata().GetEtag()}
	compare("", old.ProtoReflect(), o.ProtoReflect(), &ch.Fields)
	return ch
}

func isNil(o gateway.Object) bool { return o == nil || !o.ProtoReflect().IsValid() }

// skipped fields are written by the server and would only be noise in a diff.
var skipped = map[protoreflect.Name]bool{"uid": true, "etag": true, "create_time": true, "update_time": true, "origin": true, "status": true}

// compare appends a row for each field that differs, going into messages and
// into lists of equal length, so that a row names the smallest thing that changed.
func compare(path string, a, b protoreflect.Message, rows *[]*pb.FieldChange) {
	fields := b.Descriptor().Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		inA, inB := a.Has(f), b.Has(f)
		if skipped[f.Name()] || !inA && !inB {
			continue
		}
		at := string(f.Name())
		if path != "" {
			at = path + "." + at
		}
		va, vb := a.Get(f), b.Get(f)
		switch {
		case f.Message() != nil && !f.IsList() && !f.IsMap() && inA && inB && !wellKnown(f.Message()):
			compare(at, va.Message(), vb.Message(), rows)
		case f.Message() != nil && f.IsList() && va.List().Len() == vb.List().Len():
			la, lb := va.List(), vb.List()
			for j := range lb.Len() {
				compare(at+"["+strconv.Itoa(j)+"]", la.Get(j).Message(), lb.Get(j).Message(), rows)
			}
		case inA == inB && va.Equal(vb):
		case f.IsMap() && hidden(f):
			*rows = append(*rows, hiddenKeys(at, va.Map(), vb.Map())...)
		default:
			*rows = append(*rows, &pb.FieldChange{Path: at, Before: jsonOf(a, f), After: jsonOf(b, f)})
		}
	}
}

// hiddenKeys are the keys of a map with hidden values under which the two differ.
func hiddenKeys(at string, a, b protoreflect.Map) []*pb.FieldChange {
	keys := map[string]protoreflect.MapKey{}
	for _, m := range []protoreflect.Map{a, b} {
		m.Range(func(k protoreflect.MapKey, _ protoreflect.Value) bool { keys[k.String()] = k; return true })
	}
	shown := func(m protoreflect.Map, k protoreflect.MapKey) string {
		if !m.Has(k) {
			return ""
		}
		return strconv.Quote(gateway.HiddenValue)
	}
	var out []*pb.FieldChange
	for _, name := range slices.Sorted(maps.Keys(keys)) {
		k := keys[name]
		if a.Has(k) != b.Has(k) || !a.Get(k).Equal(b.Get(k)) {
			out = append(out, &pb.FieldChange{Path: fmt.Sprintf("%s[%q]", at, name), Before: shown(a, k), After: shown(b, k)})
		}
	}
	return out
}

func wellKnown(d protoreflect.MessageDescriptor) bool {
	return d.ParentFile().Package() == "google.protobuf"
}

// jsonOf renders one field as JSON; key material is never shown.
func jsonOf(m protoreflect.Message, f protoreflect.FieldDescriptor) string {
	if !m.Has(f) {
		return ""
	}
	if hidden(f) {
		return strconv.Quote(gateway.HiddenValue)
	}
	only := m.New()
	only.Set(f, m.Get(f))
	Redact(only)
	b, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(only.Interface())
	if err != nil {
		return fmt.Sprintf("%q", err.Error())
	}
	// {"name": value} -> value
	text := strings.TrimSpace(string(b))
	_, value, _ := strings.Cut(strings.TrimSuffix(text, "}"), ":")
	return strings.TrimSpace(value)
}

// hidden tells the fields whose values are never shown.
func hidden(f protoreflect.FieldDescriptor) bool {
	return strict.Behaves(f, annotations.FieldBehavior_INPUT_ONLY)
}

// Redact takes what is hidden out of a message of ours, which may hold a Secret or be
// one. Of a map the keys stay.
func Redact(m protoreflect.Message) {
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case hidden(f) && f.IsMap() && f.MapValue().Kind() == protoreflect.StringKind:
			v.Map().Range(func(k protoreflect.MapKey, _ protoreflect.Value) bool {
				v.Map().Set(k, protoreflect.ValueOfString(gateway.HiddenValue))
				return true
			})
		case hidden(f):
			m.Clear(f)
		case f.IsMap() && f.MapValue().Message() != nil:
			v.Map().Range(func(_ protoreflect.MapKey, v protoreflect.Value) bool {
				Redact(v.Message())
				return true
			})
		case f.IsMap() || f.Message() == nil:
		case f.IsList():
			for i := range v.List().Len() {
				Redact(v.List().Get(i).Message())
			}
		default:
			Redact(v.Message())
		}
		return true
	})
}
