package explain

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/penstock-gateway/penstock/gateway"
	"github.com/penstock-gateway/penstock/gateway/policy/retry"
)

// rest prints what is in force and no row tells yet, by its fields: a policy, or a field of
// one, for which there are no words here is never left out.
func (x *explainer) rest(e *gateway.Entry) {
	without := x.withoutEffect(e)
	for p := range e.Policies.InForce {
		name := string(p.PolicyName())
		merged, levels := e.Policies.Messages(p)
		if merged == nil {
			if x.told(name) {
				continue
			}
			for _, l := range levels {
				x.policy(name, fieldsText(l.Value), l.Source, name)
			}
			continue
		}
		for _, path := range slices.Sorted(maps.Keys(e.Policies.Fields())) {
			below, ours := strings.CutPrefix(path, name+".")
			if !ours || x.told(path) || slices.ContainsFunc(without, func(w string) bool { return path == w || strings.HasPrefix(path, w+".") }) {
				continue
			}
			x.policy(path, fieldText(merged.ProtoReflect(), strings.Split(below, ".")), e.Policies.From(path), path)
		}
	}
}

// told reports whether a row is about a field, or about what it is a part of, or about a part
// of a policy.
func (x *explainer) told(path string) bool {
	for _, r := range x.out.GetPolicies() {
		if name := r.GetPolicy(); name == path || strings.HasPrefix(path, name+".") || strings.HasPrefix(name, path+".") {
			return true
		}
	}
	return false
}

// withoutEffect are the fields that mean nothing for the request: those of forwards where
// none is, and the retries of the other group of methods.
func (x *explainer) withoutEffect(e *gateway.Entry) []string {
	if e.Rule.GetForward() == nil {
		return []string{"timeout", "retry"}
	}
	set := retry.Policy.Of(e.Policies).Merged
	group, rule, other := "retry.other", set.GetOther(), "retry.idempotent"
	if slices.Contains(gateway.IdempotentMethods(), x.request.Method) {
		group, rule, other = "retry.idempotent", set.GetIdempotent(), "retry.other"
	}
	if retry.Attempts(rule) == 0 {
		return []string{other, group}
	}
	return []string{other}
}

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
			return short(d.AsDuration())
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
