package strict

import (
	"strings"
	"testing"

	"google.golang.org/protobuf/reflect/protoreflect"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

func TestSnippet(t *testing.T) {
	src := &Source{Name: "a.yaml", lines: []string{"\tä: x", "", strings.Repeat("a", 300)}}
	for _, c := range []struct {
		at   Place
		want string
	}{
		{Place{Source: src, Line: 1, Column: 5, Width: 1}, "    1 | \tä: x\n      | \t   ^"},
		{Place{Source: src, Line: 1, Column: 5, Width: 99}, "    1 | \tä: x\n      | \t   ^"},
		{Place{Source: src, Line: 1, Column: 99, Width: 1}, "    1 | \tä: x\n      | \t    ^"},
		{Place{Source: src, Line: 1, Column: 5, Width: 1, Hide: true}, ""},
		{Place{Source: src, Line: 2, Column: 1, Width: 1}, ""},
		{Place{Source: src, Line: 9, Column: 1, Width: 1}, ""},
		{Place{}, ""},
		{Place{Source: src, Line: 3, Column: 290, Width: 50}, "    3 | …" + strings.Repeat("a", 44) + "\n      | " + strings.Repeat(" ", 34) + strings.Repeat("^", 11)},
	} {
		if got := c.at.snippet(); got != c.want {
			t.Errorf("%+v:\n%s\nwant\n%s", c.at, got, c.want)
		}
	}
}

func TestErrors(t *testing.T) {
	if err := (Errors{}).Err(); err != nil {
		t.Errorf("no errors: %v", err)
	}
	many := make(Errors, 60)
	for i := range many {
		many[i] = Error{File: "a", Message: "bad", Hint: "mend it"}
	}
	got := many.Err().Error()
	if !strings.HasPrefix(got, "a: bad: mend it\n") || !strings.HasSuffix(got, "\nand 10 more") {
		t.Errorf("got %q", got)
	}
}

// TestEnumNames: every enum of the model has short names, all different.
func TestEnumNames(t *testing.T) {
	enums := 0
	for _, file := range []protoreflect.FileDescriptor{pb.File_penstock_v1_gateway_proto, pb.File_penstock_v1_backend_proto, pb.File_penstock_v1_retry_proto, pb.File_penstock_v1_rate_limit_proto, pb.File_penstock_v1_route_proto, pb.File_penstock_v1_function_proto} {
		for i := range file.Enums().Len() {
			enums++
			ed := file.Enums().Get(i)
			if enumPrefix(ed) == "" {
				t.Errorf("%s: its values do not begin with its name", ed.FullName())
			}
			if got := len(EnumNames(ed)); got != ed.Values().Len()-1 {
				t.Errorf("%s: %v", ed.FullName(), EnumNames(ed))
			}
		}
	}
	if enums == 0 {
		t.Error("no enums")
	}
}
