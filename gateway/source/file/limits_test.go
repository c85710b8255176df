package file

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/penstock-gateway/penstock/gateway/source/file/strict"
)

// TestLimits: input that was made to hurt ends in an error, and soon.
func TestLimits(t *testing.T) {
	fill := func(s string) string { return strings.Repeat(s, 1<<18/len(s)) }
	var laughs strings.Builder
	laughs.WriteString("a0: &a0 [x, x]\n")
	for i := range 30 {
		fmt.Fprintf(&laughs, "a%d: &a%d [*a%d, *a%d]\n", i+1, i+1, i, i)
	}
	head := "kind: Route\nname: a\n"
	for name, c := range map[string]struct{ text, want string }{
		"5 MB":                {strings.Repeat("x", 5<<20), "the file has 5242880 bytes, the limit is 4194304 (4 MiB)"},
		"aliases":             {laughs.String(), "anchors are not accepted"},
		"deep flow":           {head + "rules: " + fill("["), "exceeded max depth"},
		"deep flow, closed":   {head + "rules: " + strings.Repeat("[", 5000) + strings.Repeat("]", 5000), "nested more than 64 deep"},
		"deep block":          {head + "rules:\n" + strings.Repeat("- ", 70) + "x\n", "nested more than 64 deep"},
		"deep JSON":           {`{"kind": ` + fill("["), "depth"},
		"many documents":      {strings.Repeat("---\na\n", strict.MaxDocuments+1), "more than 100000 documents"},
		"many JSON documents": {strings.Repeat("{}\n", strict.MaxDocuments+1), "more than 100000 documents"},
		"many empty ones":     {fill("---\n"), ""},
		"many errors":         {head + fill("x: 1\n"), `key "x" is there already`},
		"many bad documents":  {strings.Repeat("a: 1\n---\n", 5000), "too many errors"},
		"many bad files":      {strings.Repeat("- a: b: c\n---\n", 5000), "too many errors"},
		"many comments":       {fill("# a\n"), ""},
		"many values":         {head + "hostnames: [" + strings.Repeat("a,", strict.MaxValues+1) + "]", "more than 500000 values"},
		"one long text":       {head + `hostnames: ["` + fill("a") + `"]`, ""},
		"unclosed quote":      {head + `hostnames: ["` + fill("a b\n"), "not valid YAML"},
		"bad at the end":      {head + "hostnames:\n" + fill("- a\n") + "b\n", "not valid YAML"},
		"zero byte":           {head + "hostnames: [a\x00]", "a.yaml:3:14: control character U+0000"},
		"bad UTF-8":           {head + "hostnames: [é\xff]", "a.yaml:3:14: byte 0xff is not valid UTF-8"},
		"UTF-16":              {"\xff\xfek\x00i\x00", "the file is UTF-16"},
		"byte order mark":     {"\xef\xbb\xbf" + backend("a"), ""},
		"Windows line ends":   {strings.ReplaceAll(backend("a"), "\n", "\r\n"), ""},
		"nothing":             {"", ""},
	} {
		t.Run(name, func(t *testing.T) {
			_, errs := Decode("a.yaml", []byte(c.text))
			if c.want == "" {
				if len(errs) > 0 {
					t.Errorf("got %v", errs[0])
				}
				return
			}
			if len(errs) == 0 || !slices.ContainsFunc(errs, func(e Error) bool { return strings.Contains(e.Error(), c.want) }) {
				t.Errorf("got %d errors, the first %v, want %q", len(errs), errs[:min(1, len(errs))], c.want)
			}
			if len(errs) > 2*strict.MaxErrors {
				t.Errorf("%d errors were kept", len(errs))
			}
		})
	}
}
