package gateway

import (
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"buf.build/go/protovalidate"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/durationpb"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
	"github.com/penstock-gateway/penstock/internal/unknown"
)

// now is the time that certificates are judged at.
var now = time.Now

// Validate returns all problems of one object alone, normalized before: the rules
// of the protos, and what they cannot say. Whether the objects that it refers to
// exist is for Snapshot.Check. It refuses everything that Envoy would refuse, and
// what Envoy would take and then not do as it reads: such things are the worst,
// because nobody notices. A nil object has one problem.
func (m *Model) Validate(o Object) []Problem {
	if o == nil || !o.ProtoReflect().IsValid() {
		return []Problem{{Message: "the resource is empty: set exactly one of " + strings.Join(fieldNames(), ", ")}}
	}
	c := &checker{model: m, object: o, edge: loosest}
	if err := checkName(o); err != nil {
		c.add("name", "%v", err)
	}
	for _, field := range unknown.Fields(o) {
		c.add(field, "this version of the control plane does not know it: was it written by a newer version of the client? Upgrade the control plane first")
	}
	c.protoRules()
	c.durations(o.ProtoReflect(), "")
	for _, r := range m.references(o) {
		if m := r.malformed(o); m != "" {
			c.add(r.field, "%s", m)
		}
	}
	kindOfObject(o).validate(c, o)
	return c.problems
}

// fieldNames are the fields of pb.Resource that people write.
func fieldNames() []string {
	return namesOf(Writable(), func(c string) string { return string(KindFor(c).Field.Name()) })
}

// checker collects the problems of one object.
type checker struct {
	model    *Model
	object   Object
	edge     Edge // that matches are for
	problems []Problem
}

func (c *checker) add(field, format string, args ...any) {
	p := Problem{
		Object: c.object.GetName(), Field: field, Message: fmt.Sprintf(format, args...),
		Origin: c.object.GetMetadata().GetOrigin(),
	}
	c.problems = append(c.problems, p)
}

// has reports whether a field has a problem already; a second one about the same
// would not help.
func (c *checker) has(field string) bool {
	return slices.ContainsFunc(c.problems, func(p Problem) bool { return p.Field == field })
}

// protoRules runs the rules that stand in the protos.
func (c *checker) protoRules() {
	err := protovalidate.Validate(c.object)
	if err == nil {
		return
	}
	violations, ok := errors.AsType[*protovalidate.ValidationError](err)
	if !ok {
		c.add("", "the rules of %s cannot be checked: %v", c.object.ProtoReflect().Descriptor().FullName(), err)
		return
	}
	for _, v := range violations.Violations {
		field := protovalidate.FieldPathString(v.Proto.GetField())
		if field == "name" && c.has("name") {
			continue
		}
		if fields := c.oneofFields(v); v.Proto.GetRuleId() == "required" && fields != nil {
			// The oneof's own name is nothing that anybody writes.
			c.add(parent(field), "set exactly one of %s", strings.Join(fields, ", "))
			continue
		}
		c.add(field, "%s", c.violationText(v, field))
	}
}

// violationText makes a sentence of a violation: what is wrong, with what, and
// how to mend it where the rule does not say so itself.
func (c *checker) violationText(v *protovalidate.Violation, field string) string {
	rule, text := v.Proto.GetRuleId(), v.Proto.GetMessage()
	last := field[strings.LastIndexByte(field, '.')+1:]
	if i := strings.IndexByte(last, '['); i >= 0 {
		last = last[:i]
	}
	value, _ := v.FieldValue.Interface().(string)
	got := shown(last, value)
	if _, secret := c.object.(*pb.Secret); secret && field != "name" {
		got = "" // whatever it is, it may be a value in the wrong place
	}
	switch {
	case strings.HasSuffix(rule, ".pattern") && (headerField.MatchString(field) || last == "remove"):
		if strings.Contains(value, "_") {
			return got + "header names with _ cannot be matched or set, because many servers take _ and - for the same; use -"
		}
		return got + "must be a header name: lower-case letters, digits and -"
	case strings.HasSuffix(rule, ".pattern") && hints[last] != "":
		return got + hints[last]
	case rule == "string.prefix":
		return got + "must start with " + v.RuleValue.String()
	case rule == "string.hostname" && isIP(value):
		return got + "is an IP address, which needs no DNS; use static: {endpoints: [{address: " + value + ", port: …}]}"
	case rule == "repeated.unique":
		return twice(v.FieldValue)
	case rule == "repeated.min_items":
		return "is empty; needs at least " + v.RuleValue.String()
	case strings.HasPrefix(rule, "enum.") && v.FieldDescriptor != nil && v.FieldDescriptor.Enum() != nil:
		return "must be one of " + enumNames(v.FieldDescriptor.Enum())
	}
	return got + text
}

// shown quotes a value for a message; key material is never shown.
func shown(field, value string) string {
	if value == "" || field == "private_key" || field == "chain" || field == "jwks" {
		return ""
	}
	if len(value) > 100 {
		value = value[:100] + "…"
	}
	return fmt.Sprintf("%q: ", value)
}

// twice names the first element of a list that comes before it.
func twice(list protoreflect.Value) string {
	l, ok := list.Interface().(protoreflect.List)
	if !ok {
		return "has a duplicate element; remove one"
	}
	seen := map[any]bool{}
	for i := range l.Len() {
		e := l.Get(i).Interface()
		if seen[e] {
			return fmt.Sprintf("duplicate %q; remove one", fmt.Sprint(e))
		}
		seen[e] = true
	}
	return "has a duplicate element; remove one"
}

// enumNames lists what may be chosen: all but the value that stands for unset.
func enumNames(e protoreflect.EnumDescriptor) string {
	var out []string
	for i := range e.Values().Len() {
		if v := e.Values().Get(i); v.Number() != 0 {
			out = append(out, string(v.Name()))
		}
	}
	return strings.Join(out, ", ")
}

func isIP(s string) bool {
	_, err := netip.ParseAddr(strings.Trim(s, "[]"))
	return err == nil
}

// headerField is the name of a header in a match or a change.
var headerField = regexp.MustCompile(`(headers|set|add)\[\d+\]\.name$`)

// hints say what a text must look like, by the name of its field.
var hints = map[string]string{
	"hostnames": `must be a host name such as "a.example.com", a wildcard such as "*.example.com", or "*"; no port and no scheme`,
	"methods":   "must be an HTTP method in capitals, such as GET",
	"name":      "must start and end with a-z or 0-9 and hold only a-z, 0-9 and -, at most 63 of them",
	"header":    `must start with "x-" and hold only a-z, 0-9 and -`,
	"value":     "must hold no line break and no NUL",
	"env":       "must be a name of letters, digits and _ that does not start with a digit",
	"method":    "must be an HTTP method in capitals, such as GET",
}

// parent is a field path without its last part.
func parent(field string) string { return field[:max(0, strings.LastIndexByte(field, '.'))] }

// oneofFields lists the fields of the oneof that a violation is about; none when
// it is about something else.
func (c *checker) oneofFields(v *protovalidate.Violation) []string {
	elements := v.Proto.GetField().GetElements()
	if len(elements) == 0 {
		return nil
	}
	d := c.object.ProtoReflect().Descriptor()
	for _, e := range elements[:len(elements)-1] {
		f := d.Fields().ByName(protoreflect.Name(e.GetFieldName()))
		if f == nil || f.Message() == nil {
			return nil
		}
		d = f.Message()
	}
	o := d.Oneofs().ByName(protoreflect.Name(elements[len(elements)-1].GetFieldName()))
	if o == nil {
		return nil
	}
	var out []string
	for i := range o.Fields().Len() {
		out = append(out, string(o.Fields().Get(i).Name()))
	}
	return out
}

// durations checks every duration: well formed, and whole milliseconds, because
// Envoy's timers know no less: 0.5 ms would become 0, which means no limit.
func (c *checker) durations(m protoreflect.Message, path string) {
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		at := strings.TrimPrefix(path+"."+string(f.Name()), ".")
		switch {
		case f.Message() == nil || f.IsMap() || f.Name() == "metadata" || f.Name() == "status":
		case f.IsList():
			for i := range v.List().Len() {
				c.durations(v.List().Get(i).Message(), fmt.Sprintf("%s[%d]", at, i))
			}
		default:
			d, ok := v.Message().Interface().(*durationpb.Duration)
			if !ok {
				c.durations(v.Message(), at)
				return true
			}
			if err := d.CheckValid(); err != nil && !c.has(at) {
				c.add(at, "is not a duration: %v", err)
			} else if d.GetNanos()%int32(time.Millisecond) != 0 && !c.has(at) {
				c.add(at, "%v is not a whole number of milliseconds; round it", d.AsDuration())
			}
		}
		return true
	})
}

// duplicates reports each text that stands twice in a list. field makes the field
// of a position.
func (c *checker) duplicates(what string, texts []string, field func(i int) string) {
	first := map[string]int{}
	for i, t := range texts {
		if t == "" {
			continue
		}
		if j, ok := first[t]; ok {
			if !strings.Contains(t, `"`) {
				t = strconv.Quote(t)
			}
			c.add(field(i), "duplicate %s %s, already used by %s; give each its own", what, t, field(j))
			continue
		}
		first[t] = i
	}
}

// elements makes a function for duplicates from a pattern such as "rules[%d].name".
func elements(pattern string) func(int) string {
	return func(i int) string { return fmt.Sprintf(pattern, i) }
}

// namesOf collects one text of each element.
func namesOf[T any](list []T, text func(T) string) []string {
	out := make([]string, len(list))
	for i, e := range list {
		out[i] = text(e)
	}
	return out
}
