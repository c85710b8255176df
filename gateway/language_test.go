package gateway

import (
	"math/rand/v2"
	"regexp"
	"strings"
	"testing"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

func TestRegexThatNoPathMatches(t *testing.T) {
	for pattern, want := range map[string]bool{
		`/item\?id=.*`: false, `/item[?]id=1`: false, `/a//b`: false, `/a/{2}b`: false, `/a b`: false, `/a[ ]b`: false, `/a\x20b`: false, `/a#b`: false, `/[#?]`: false,
		`/a/[.]/b`: false, `/a/\.\./b`: false, `/%2[fF]`: false, `/%41`: false, `/%7e`: false, `/%`: false, `/%zz`: false, `/a;b`: false, `/a\\b`: false, `/"`: false, `/\x00`: false,
		`a/b`: false, `[^/].*`: false, ``: false, `/a\n`: false, `/\xc3\xa9`: false, `//.+`: false, `/..`: true, `/a^b`: false, `/a$b`: false, `/%3b`: false, `/%0a`: false,
		`/a.b`: true, `/.*`: true, `.*`: true, `/a/?`: true, `/a(/b)?`: true, `/[^?]*`: true, `/a/.{3}`: true, `/%C3%A9`: true, `/%c3%a9`: true, `/%20`: true, `/a//?b`: true,
		`/(a|b#)`: true, `/item(\?.*)?`: true, `(?i)/ABC`: true, `^/a$`: true, `/[0-9]+`: true, `/...`: true, `/\.well-known/x`: true, `/a\b`: true, `/\*`: true, `/(x|//)`: true, `/+`: true,
	} {
		if got := (Edge{}).paths().possible(pattern); got != want {
			t.Errorf("%s: %t, want %t", pattern, got, want)
		}
	}
}

// profiles are all edge profiles, as far as paths depend on them.
func profiles() (out []Edge) {
	for i := range 16 {
		if e := (Edge{KeepSlashes: i&1 != 0, KeepSemicolons: i&2 != 0, KeepRepeated: i&4 != 0, DecodeSlashes: i&8 != 0}); !e.KeepSlashes || !e.DecodeSlashes {
			out = append(out, e)
		}
	}
	return out
}

// TestPossibleAgainstGo: under every profile an expression that some normalized path
// matches is never refused, and of those made of plain characters each that is not refused
// matches one.
func TestPossibleAgainstGo(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	pieces := []string{"/", "a", ".", "\\.", "%", "2", "f", "c", "?", "\\?", "//", "[/.]", "[a#]", " ", "(a|/)", ".*", "%41", "%20", ";", "é", "x", "%2F", "%5c", "%3b", "/{2}", "[;]"}
	for _, e := range profiles() {
		l := e.paths()
		served := func(path string) (string, bool) {
			p, err := e.NormalizePath(path)
			if err != nil || strings.Contains(p, "?") {
				return "", false
			}
			_, ok := e.Reading(p)
			return p, ok
		}
		texts := []string{"/", "/a", "/a/", "/a.b", "/%20", "/%C3%A9", "/x/y", "/...", "/a%2Cb", "/c2/f"}
		for range 1000 {
			var path strings.Builder
			for range random.IntN(8) {
				path.WriteString(pieces[random.IntN(len(pieces))])
			}
			if p, ok := served("/" + path.String()); ok {
				texts = append(texts, p)
				if !l.possibleString("exact", p) {
					t.Errorf("%+v: %q is a path that was normalized", e, p)
				}
				if !loosest.paths().possibleString("exact", p) {
					t.Errorf("%+v: %q is not a path of the loosest profile", e, p)
				}
			}
		}
		for range 500 {
			var b strings.Builder
			for range 1 + random.IntN(6) {
				b.WriteString(pieces[random.IntN(len(pieces))])
			}
			pattern := b.String()
			re, err := regexp.Compile(`\A(?:` + latin1(pattern) + `)\z`)
			if err != nil {
				continue
			}
			possible := l.possible(pattern)
			if possible && !loosest.paths().possible(pattern) || !possible && (Edge{}).paths().possible(pattern) {
				t.Errorf("%+v: %q: %t", e, pattern, possible)
			}
			for _, text := range texts {
				if !possible && re.MatchString(latin1(text)) {
					t.Fatalf("%+v: %q is refused, and matches %q", e, pattern, text)
				}
			}
			if regexp.QuoteMeta(pattern) == pattern && possible {
				// The reading may have dot segments, which the automaton does not see.
				if p, err := e.NormalizePath(pattern); err != nil || p != pattern {
					t.Errorf("%+v: %q is taken, and is not a normalized path: %q %v", e, pattern, p, err)
				}
			}
		}
	}
}

// FuzzPossible: no expression makes it fail or run on, and a path that was normalized is
// possible by itself.
func FuzzPossible(f *testing.F) {
	f.Add(`/a(b|c)*\?`, "/x//y", 3)
	f.Add(`/[;/]{2}%2[Ff]`, "/x;y%3b", 6)
	f.Fuzz(func(t *testing.T, pattern, path string, profile int) {
		all := profiles()
		e := all[uint(profile)%uint(len(all))]
		if checkRegex(pattern) == nil {
			e.paths().possible(pattern)
		}
		p, err := e.NormalizePath(path)
		if err != nil || strings.Contains(p, "?") {
			return
		}
		if _, ok := e.Reading(p); ok && !e.paths().possible(regexp.QuoteMeta(p)) {
			t.Errorf("%+v: %q", e, p)
		}
	})
}

func TestTextThatNoRequestHas(t *testing.T) {
	text := func(kind, s string) *pb.StringMatch {
		switch kind {
		case "exact":
			return &pb.StringMatch{Match: &pb.StringMatch_Exact{Exact: s}}
		case "prefix":
			return &pb.StringMatch{Match: &pb.StringMatch_Prefix{Prefix: s}}
		case "suffix":
			return &pb.StringMatch{Match: &pb.StringMatch_Suffix{Suffix: s}}
		}
		return &pb.StringMatch{Match: &pb.StringMatch_Regex{Regex: s}}
	}
	for _, c := range []struct {
		part, kind, text string
		ok               bool
	}{
		{"header", "exact", "a b", true}, {"header", "exact", " a", false}, {"header", "exact", "a\t", false}, {"header", "exact", "a\r\nb", false}, {"header", "exact", "", true},
		{"header", "prefix", "a ", true}, {"header", "prefix", " a", false}, {"header", "suffix", " a", true}, {"header", "suffix", "a ", false}, {"header", "suffix", "\x7f", false},
		{"header", "regex", "a\\n.*", false}, {"header", "regex", "\\s+", false}, {"header", "regex", "a\\s+b", true}, {"header", "regex", ".*\\x00.*", false}, {"header", "regex", "\\xc3\\xa9", true},
		{"query", "exact", "a b", true}, {"query", "exact", "a%20b", true}, {"query", "exact", "a+b", true}, {"query", "exact", "é", true}, {"query", "prefix", "a&", true}, {"query", "suffix", "#", true}, {"query", "exact", strings.Repeat("é ", 60), false},
		{"query", "regex", "a b", false}, {"query", "regex", "a( |[+])b", true}, {"query", "regex", "[é]", false},
	} {
		m := &pb.RouteMatch{Headers: []*pb.HeaderMatch{{Name: "x-a", Value: text(c.kind, c.text)}}}
		if c.part == "query" {
			m = &pb.RouteMatch{Query: []*pb.QueryMatch{{Name: "q", Value: text(c.kind, c.text)}}}
		}
		r := &pb.Route{Name: "projects/p/routes/r", Rules: []*pb.RouteRule{{Name: "a", Matches: []*pb.RouteMatch{m}, Action: &pb.RouteRule_DirectResponse{DirectResponse: &pb.DirectResponse{Status: 200}}}}}
		problems := model.Validate(r)
		if ok := len(problems) == 0; ok != c.ok {
			t.Errorf("%s %s %q: %v", c.part, c.kind, c.text, problems)
		}
	}
}
