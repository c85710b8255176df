package gateway

import (
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// objectOf decodes an object of a kind ("route") from JSON and gives it a name
// unless it has one. Quotes may be written as '.
func objectOf(t testing.TB, kind, id, json string) Object {
	t.Helper()
	o := map[string]func() Object{}
	for _, k := range Collections() {
		o[KindFor(k).Singular] = func() Object { return emptyObject(k) }
	}
	m := o[kind]()
	json = strings.ReplaceAll(json, "'", `"`)
	if !strings.HasPrefix(strings.TrimSpace(json), `{"name"`) {
		rest := strings.TrimPrefix(strings.TrimSpace(json), "{")
		sep := ","
		if strings.TrimSpace(rest) == "}" {
			sep = ""
		}
		json = `{"name": "projects/p/` + kind + `s/` + id + `"` + sep + rest
	}
	if err := protojson.Unmarshal([]byte(json), m); err != nil {
		t.Fatalf("%s %s: %v\n%s", kind, id, err, json)
	}
	return m
}

func emptyObject(kind string) Object {
	for _, o := range emptyObjects() {
		if kindOfObject(o).Collection == kind {
			return o
		}
	}
	panic("no kind " + kind)
}

// objects decodes lines of "kind id {json}"; a line that begins with white space
// goes on with the one before.
func objects(t testing.TB, text string) []Object {
	t.Helper()
	var out []Object
	for line := range strings.Lines(strings.ReplaceAll(text, "\n  ", "  ")) {
		line = strings.TrimSpace(line)
		if line == "" {
			continue
		}
		kind, rest, _ := strings.Cut(line, " ")
		id, json, _ := strings.Cut(rest, " ")
		o := objectOf(t, kind, id, json)
		model.Normalize(o)
		out = append(out, o)
	}
	return out
}

// model has all policies: see TestMain. This package cannot import them.
var model *Model

// valueOf is what is in force of a policy by its name.
func valueOf[P proto.Message](e *Effective, name protoreflect.Name) Value[P] {
	for _, v := range e.values {
		if v.policy.PolicyName() == name {
			return *v.value.(*Value[P])
		}
	}
	return Value[P]{}
}

// UseModel is for TestMain.
func UseModel(m *Model) { model = m }
