package gateway

import (
	"net/url"
	"strings"
	"testing"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// TestQueryRegex: exact, prefix and suffix of a parameter, with the values in a URL that
// satisfy it and those that do not.
func TestQueryRegex(t *testing.T) {
	for _, c := range []struct{ match, yes, no string }{
		{`'exact': 'a b'`, "a+b a%20b", "ab a%2Bb a%2520b a"},
		{`'exact': 'a+b'`, "a+b a%2Bb a%2bb", "a%20b ab"},
		{`'exact': 'a&b=c#d'`, "a%26b=c%23d a%26b%3Dc%23d a%26b%3dc%23d", "a"},
		{`'exact': 'é'`, "%C3%A9 %c3%a9 %c3%A9", "e %C3 %E9"},
		{`'exact': 'a%20b'`, "a%20b a+b", "a%2520b"},
		{`'exact': 'a%2Bb'`, "a%2Bb a%2bb", "a+b a%20b"},
		{`'exact': '100%'`, "100% 100%25", "100 100%2525"},
		{`'exact': '%41'`, "A %41", "%61"},
		{`'exact': 'a.b'`, "a.b", "axb"},
		{`'exact': 'a/b?c'`, "a/b?c a%2Fb%3Fc a%2fb?c", "axb"},
		{`'prefix': 'a b'`, "a+b a%20bcd a+b%20", "ab xa+b"},
		{`'suffix': ' b'`, "+b %20b a+b", "a+bc"},
		{`'prefix': 'ab'`, "ab abc", "a%62"},
	} {
		m := matchOf(t, `{'query': [{'name': 'q', 'value': {`+c.match+`}}]}`)
		for v := range strings.FieldsSeq(c.yes) {
			if why := Mismatch(m, &Request{Query: "x=1&q=" + v}); why != "" {
				t.Errorf("%s, %s: %s", c.match, v, why)
			}
		}
		for v := range strings.FieldsSeq(c.no) {
			if Mismatch(m, &Request{Query: "q=" + v}) == "" {
				t.Errorf("%s matches %s", c.match, v)
			}
		}
	}
}

// FuzzQueryRegex: what Go's client makes of a text matches it, and no value matches that
// decodes to another text, unless the match has escapes or a + of its own.
func FuzzQueryRegex(f *testing.F) {
	f.Add("a b", "a+b")
	f.Add("é&=#+%;", "%zz")
	f.Fuzz(func(t *testing.T, text, other string) {
		m := &pb.StringMatch{Match: &pb.StringMatch_Exact{Exact: text}}
		pattern := QueryRegex(m)
		if pattern == "" || strings.ContainsAny(text, "%+") {
			return
		}
		for _, encoded := range []string{url.QueryEscape(text), strings.ReplaceAll(url.QueryEscape(text), "+", "%20"), strings.ToLower(url.QueryEscape(text))} {
			if d, err := url.QueryUnescape(encoded); err == nil && d == text && !matchRegex(pattern, encoded) {
				t.Errorf("%q does not match %q: %s", encoded, text, pattern)
			}
		}
		if d, err := url.QueryUnescape(other); err == nil && d != text && matchRegex(pattern, other) {
			t.Errorf("%q matches %q: %s", other, text, pattern)
		}
	})
}
