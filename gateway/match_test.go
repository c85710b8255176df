package gateway

import (
	"errors"
	"math/rand/v2"
	"net/http"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protojson"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// TestNormalizePath: what Envoy 1.40 made of each path with normalize_path,
// merge_slashes and REJECT_REQUEST for escaped slashes, observed on the real one;
// "" where it or the edge filter answers 400.
func TestNormalizePath(t *testing.T) {
	for path, want := range map[string]string{
		"/": "/", "/a": "/a", "/a/": "/a/", "/a//b": "/a/b", "//": "//", "///a": "/a", "//../a": "/a",
		"/a/./b": "/a/b", "/a/../b": "/b", "/a/..": "/", "/a/.": "/a/", "/..": "/", "/%2e%2e/x": "/x", "/a/.%2e/b": "/b",
		"/a/b/../../../c": "/c", "/a/%2E%2E/b": "/b", "/.../a": "/.../a", "/a/..b": "/a/..b", "/a/b..": "/a/b..",
		"/a//../b": "/a/b", "/a/b//..": "/a/b/", "/x%2e": "/x.", "/a%7eb": "/a~b", "/A%5fb": "/A_b", "/%41": "/A",
		`/\x`: "/x", `/a\..\b`: "/b", "/a%252Fb": "/a%252Fb", "/a%c3%a9": "/a%c3%a9", "/a%3fb": "/a%3fb", "/a%23b": "/a%23b",
		`/a"b`: "/a%22b", "/a<b>": "/a%3Cb%3E", "/{x}": "/%7Bx%7D", "/a|b^c`": "/a%7Cb%5Ec%60", "/[a]": "/[a]",
		"/!$&'()*+,-.:=@_~": "/!$&'()*+,-.:=@_~",
		"/a%2Fb":            "", "/a%5cb": "", "/a%00": "", "/a#b": "", "/é": "", "a": "", "": "", "*": "", "/a b": "",
		"/a%3bb": "", "/a%3B": "", "/%01": "", "/a%1f": "", "/a%0D%0a": "", "/a%7Fb": "", "/%C0%AF": "", "/%c1%80": "", "/%e0%9fx": "", "/%F0%8f%8f": "",
		"/%c0%41": "/%c0A", "/%E0%a0%80": "/%E0%a0%80", "/%f0%90%80%80": "/%f0%90%80%80", "/a%20": "/a%20", "/%80": "/%80",
		"/a;b": "", "/%zz": "", "/%": "", "/a%2": "", "/%2fa%": "",
	} {
		got, err := NormalizePath(path)
		if got != want || (err != nil) != (want == "") {
			t.Errorf("%q: got %q, %v, want %q", path, got, err, want)
		}
		if pe, ok := errors.AsType[*EdgeError](err); err != nil && (!ok || pe.Answer.Status != http.StatusBadRequest) {
			t.Errorf("%q: error %v", path, err)
		}
	}
}

func matchOf(t testing.TB, json string) *pb.RouteMatch {
	t.Helper()
	m := &pb.RouteMatch{}
	if err := protojson.Unmarshal([]byte(strings.ReplaceAll(json, "'", `"`)), m); err != nil {
		t.Fatal(err)
	}
	return m
}

// TestMismatch: each row was tried on the real Envoy 1.40 as well.
func TestMismatch(t *testing.T) {
	h := func(values ...string) map[string][]string { return map[string][]string{"x-a": values} }
	header := func(rest string) string { return `{'headers': [{'name': 'x-a', ` + rest + `}]}` }
	query := func(name, value string) string {
		return `{'query': [{'name': '` + name + `', 'value': {` + value + `}}]}`
	}
	for _, row := range []struct {
		match, path, query string
		headers            map[string][]string
		want               string
	}{
		{`{}`, "/", "", nil, ""},
		{`{'path': {'exact': '/a'}}`, "/a", "x", nil, ""},
		{`{'path': {'exact': '/a'}}`, "/a/", "", nil, `path exact "/a" does not match "/a/"`},
		{`{'path': {'exact': '/a', 'ignoreCase': true}}`, "/A", "", nil, ""},
		{`{'path': {'prefix': '/a'}}`, "/a", "", nil, ""},
		{`{'path': {'prefix': '/a'}}`, "/a/b", "", nil, ""},
		{`{'path': {'prefix': '/a'}}`, "/ab", "", nil, `path prefix "/a" does not match "/ab"`},
		{`{'path': {'prefix': '/a', 'ignoreCase': true}}`, "/A/b", "", nil, ""},
		{`{'path': {'prefix': '/'}}`, "/x", "", nil, ""},
		{`{'path': {'textPrefix': '/a'}}`, "/ab", "", nil, ""},
		{`{'path': {'textPrefix': '/a'}}`, "/b", "", nil, `path text prefix "/a" does not match "/b"`},
		{`{'path': {'regex': '/a|/b'}}`, "/b", "", nil, ""},
		{`{'path': {'regex': '/a|/b'}}`, "/bc", "", nil, `path regex "/a|/b" does not match "/bc"`},
		{`{'path': {'regex': '^/a$'}}`, "/a", "", nil, ""},
		{`{'methods': ['POST', 'PUT']}`, "/", "", nil, "method GET is not POST or PUT"},
		{`{'headers': [{'name': 'host', 'value': {'exact': 'h'}}]}`, "/", "", nil, ""},
		{header(`'value': {'exact': '1'}`), "/", "", h("1", "2"), ""},
		{header(`'value': {'exact': '1'}`), "/", "", h("2", "1"), ""},
		{header(`'value': {'exact': '1,2'}`), "/", "", h("1", "2"), `header x-a is "1" and "2", want exact "1,2"`},
		{header(`'value': {'exact': '1'}`), "/", "", nil, `header x-a is absent, want exact "1"`},
		{header(`'value': {'exact': '1'}, 'invert': true`), "/", "", h("1", "2"), `header x-a is "1" and "2", want not exact "1"`},
		{header(`'value': {'exact': '1'}, 'invert': true`), "/", "", h("2"), ""},
		{header(`'value': {'exact': '1'}, 'invert': true`), "/", "", nil, ""},
		{header(`'value': {'exact': ''}, 'invert': true`), "/", "", nil, `header x-a is absent, want not exact ""`},
		{header(`'value': {'regex': '.*'}, 'invert': true`), "/", "", nil, `header x-a is absent, want not regex ".*"`},
		{header(`'value': {'present': true}`), "/", "", h(""), ""},
		{header(`'value': {'present': true}`), "/", "", nil, "header x-a is absent, want any value"},
		{header(`'value': {'present': false}`), "/", "", h(""), `header x-a is "", want none`},
		{header(`'value': {'present': false}`), "/", "", nil, ""},
		{header(`'value': {'present': false}, 'invert': true`), "/", "", nil, "header x-a is absent, want not none"},
		{header(`'value': {'prefix': 'a'}`), "/", "", h("ab"), ""},
		{header(`'value': {'suffix': 'b'}`), "/", "", h("ab"), ""},
		{header(`'value': {'suffix': 'a'}`), "/", "", h("ab"), `header x-a is "ab", want suffix "a"`},
		{header(`'value': {'regex': '.'}`), "/", "", h("é"), `header x-a is "é", want regex "."`},
		{header(`'value': {'regex': '..'}`), "/", "", h("é"), ""},
		{header(`'value': {'regex': '(?i)é'}`), "/", "", h("é"), ""},
		{header(`'value': {'regex': '(?i)é'}`), "/", "", h("É"), `header x-a is "É", want regex "(?i)é"`},
		{query("a", "'exact': 'x y'"), "/", "a=x+y", nil, ""},
		{query("a", "'exact': 'x%20y'"), "/", "a=x%20y", nil, ""},
		{query("a", "'exact': '1'"), "/", "a=1&a=2", nil, ""},
		{query("a", "'exact': '1'"), "/", "a=2&a=1", nil, `query parameter a is "2", want exact "1"`},
		{query("a", "'exact': ''"), "/", "a", nil, ""},
		{query("a", "'exact': ''"), "/", "", nil, `query parameter a is absent, want exact ""`},
		{query("a", "'present': true"), "/", "b=&a", nil, ""},
		{query("a", "'present': true"), "/", "b", nil, "query parameter a is absent, want any value"},
		{query("a", "'present': false"), "/", "b", nil, ""},
		{query("a", "'present': false"), "/", "a", nil, `query parameter a is "", want none`},
		{query("b", "'present': true"), "/", "a=1;b=2", nil, "query parameter b is absent, want any value"},
		{query("a", "'regex': '[0-9]+'"), "/", "a=12x", nil, `query parameter a is "12x", want regex "[0-9]+"`},
	} {
		r := &Request{Method: "GET", Host: "h", Path: row.path, Query: row.query, Headers: row.headers}
		if got := Mismatch(matchOf(t, row.match), r); got != row.want {
			t.Errorf("%s on %s?%s %v: got %q, want %q", row.match, row.path, row.query, row.headers, got, row.want)
		}
	}
}

func TestOrder(t *testing.T) {
	s := model.Build(nil, 1, Changes{Updates: objects(t, `
gateway g {'listeners': [{'name': 'http', 'port': 80}]}
route b {'rules': [{'name': 'short', 'matches': [{'path': {'prefix': '/a'}}], 'directResponse': {'status': 200}}, {'name': 'all', 'directResponse': {'status': 200}}]}
route a {'rules': [{'name': 'root', 'matches': [{'path': {'prefix': '/'}}], 'directResponse': {'status': 200}}, {'name': 'method', 'matches': [{'methods': ['GET']}], 'directResponse': {'status': 200}},
  {'name': 'header', 'matches': [{'path': {'prefix': '/a'}, 'headers': [{'name': 'a', 'value': {'exact': ''}}]}], 'directResponse': {'status': 200}},
  {'name': 'query', 'matches': [{'path': {'prefix': '/a'}, 'query': [{'name': 'a', 'value': {'exact': ''}}]}], 'directResponse': {'status': 200}},
  {'name': 'text', 'matches': [{'path': {'textPrefix': '/a'}}], 'directResponse': {'status': 200}},
  {'name': 'long', 'matches': [{'path': {'prefix': '/a/b/c/d'}}], 'directResponse': {'status': 200}},
  {'name': 'regex', 'matches': [{'path': {'regex': '/a'}}], 'directResponse': {'status': 200}},
  {'name': 'exact', 'matches': [{'path': {'exact': '/a'}}, {'path': {'exact': '/abc'}}], 'directResponse': {'status': 200}}]}
route z {'ruleOrder': 'RULE_ORDER_AS_LISTED', 'rules': [{'name': 'z1', 'directResponse': {'status': 200}}, {'name': 'z2', 'matches': [{'path': {'exact': '/a'}}], 'directResponse': {'status': 200}}]}
route y {'ruleOrder': 'RULE_ORDER_AS_LISTED', 'rules': [{'name': 'y1', 'directResponse': {'status': 200}}]}
`)})
	var got []string
	for _, e := range s.Hosts("projects/p/gateways/g", "http")[0].Entries {
		got = append(got, e.RuleName)
	}
	want := "y1 z1 z2 exact exact regex long header query short text method root all"
	if strings.Join(got, " ") != want {
		t.Errorf("got  %s\nwant %s", strings.Join(got, " "), want)
	}
}

// TestPathRefused: the expression for Envoy refuses what NormalizePath does.
func TestPathRefused(t *testing.T) {
	const letters = "0123456789abcdefABCDEF%%%%%%;/x"
	r := rand.New(rand.NewPCG(3, 4))
	for range 200_000 {
		text := make([]byte, r.IntN(12))
		for i := range text {
			text[i] = letters[r.IntN(len(letters))]
		}
		path := "/" + string(text)
		_, err := NormalizePath(path)
		e, _ := errors.AsType[*EdgeError](err)
		if e != nil && (e.Answer == BadSlash || strings.Contains(path, "%00")) {
			continue // Envoy's own
		}
		// The edge filter sees what Envoy made of the path.
		seen := Edge{}.normal(path)
		if (wholeRegex(PathRefused).MatchString(seen) || semicolons.MatchString(seen)) != (err != nil) {
			t.Fatalf("%q: %v", path, err)
		}
	}
}

// FuzzMismatch looks for panics, and for a prefix that is not of whole segments.
func FuzzMismatch(f *testing.F) {
	f.Add("/a/b", "/a", "[a-z]+", "a=1&b", "x")
	f.Add("/%zz//..", "/", "(", "&=&", "é")
	f.Fuzz(func(t *testing.T, path, prefix, regex, query, value string) {
		if n, err := NormalizePath(path); err == nil {
			again, err := NormalizePath(n)
			if err != nil || again != n && n != "//" {
				t.Errorf("%q becomes %q, then %q, %v", path, n, again, err)
			}
			path = n
		}
		r := &Request{Method: "GET", Path: path, Query: query, Headers: map[string][]string{"x-a": {value}}}
		Mismatch(&pb.RouteMatch{
			Path:    &pb.PathMatch{Match: &pb.PathMatch_Regex{Regex: regex}},
			Headers: []*pb.HeaderMatch{{Name: "x-a", Value: &pb.StringMatch{Match: &pb.StringMatch_Regex{Regex: regex}}}},
		}, r)
		Mismatch(&pb.RouteMatch{Query: []*pb.QueryMatch{{Name: value, Value: &pb.StringMatch{Match: &pb.StringMatch_Exact{Exact: "1"}}}}}, r)
		m := &pb.RouteMatch{Path: &pb.PathMatch{Match: &pb.PathMatch_Prefix{Prefix: prefix}}}
		if strings.HasPrefix(prefix, "/") && !strings.HasSuffix(prefix, "/") && Mismatch(m, r) == "" && path != prefix && !strings.HasPrefix(path, prefix+"/") {
			t.Errorf("prefix %q matches %q", prefix, path)
		}
	})
}

// TestHostRegex: matches of the header "host" are written without a port.
func TestHostRegex(t *testing.T) {
	for _, c := range []struct{ match, want string }{
		{`{'name': 'host', 'value': {'exact': 'a.x'}}`, `(?i:a\.x)(?::[0-9]+)?`},
		{`{'name': 'host', 'value': {'suffix': '.x'}}`, `(?i:.*\.x)(?::[0-9]+)?`},
		{`{'name': 'host', 'value': {'regex': 'a|b'}}`, `(?i:a|b)(?::[0-9]+)?`},
		{`{'name': 'host', 'value': {'prefix': 'a'}}`, ""},
		{`{'name': 'host', 'value': {'present': true}}`, ""},
		{`{'name': 'x-a', 'value': {'exact': 'a.x'}}`, ""},
		{`{'name': 'host', 'value': {'exact': '` + strings.Repeat("a", 100) + `'}}`, ""},
	} {
		h := matchOf(t, `{'headers': [`+c.match+`]}`).GetHeaders()[0]
		if got := HostRegex(h); got != c.want {
			t.Errorf("%s: %s, want %s", c.match, got, c.want)
		}
	}
}

func TestRedirectTo(t *testing.T) {
	plain := &pb.Listener{Port: 8080}
	secure := &pb.Listener{Port: 8443, Protocol: pb.ListenerProtocol_LISTENER_PROTOCOL_HTTPS}
	behind := &pb.Listener{Port: 8080, TrustedHops: 1}
	for _, c := range []struct {
		redirect *pb.Redirect
		listener *pb.Listener
		hostname string
		want     RedirectAuthority
	}{
		{&pb.Redirect{Path: "/z"}, plain, "a.test", RedirectAuthority{}},
		{&pb.Redirect{Scheme: "https"}, plain, "a.test", RedirectAuthority{Host: "a.test"}},
		{&pb.Redirect{Scheme: "https"}, plain, "*", RedirectAuthority{Port: 443, DropPort: true}},
		{&pb.Redirect{Scheme: "https"}, plain, "*.a.test", RedirectAuthority{Port: 443, DropPort: true}},
		{&pb.Redirect{Scheme: "http"}, secure, "", RedirectAuthority{Port: 80, DropPort: true}},
		{&pb.Redirect{Scheme: "http", Port: 443}, secure, "", RedirectAuthority{Port: 443}},
		{&pb.Redirect{Scheme: "https", Port: 80}, plain, "a.test", RedirectAuthority{Port: 80}},
		{&pb.Redirect{Scheme: "https", Port: 443}, plain, "a.test", RedirectAuthority{Host: "a.test"}},
		{&pb.Redirect{Scheme: "https", Host: "b.test"}, plain, "a.test", RedirectAuthority{Host: "b.test"}},
		{&pb.Redirect{Scheme: "https", Host: "b.test", Port: 443}, plain, "a.test", RedirectAuthority{Host: "b.test"}},
		{&pb.Redirect{Scheme: "https", Host: "b.test", Port: 8443}, plain, "a.test", RedirectAuthority{Host: "b.test", Port: 8443}},
		{&pb.Redirect{Host: "b.test", Port: 80}, plain, "a.test", RedirectAuthority{Host: "b.test"}},
		{&pb.Redirect{Port: 80}, plain, "a.test", RedirectAuthority{Host: "a.test"}},
		{&pb.Redirect{Port: 443}, secure, "a.test", RedirectAuthority{Host: "a.test"}},
		{&pb.Redirect{Port: 443}, plain, "a.test", RedirectAuthority{Port: 443}},
		{&pb.Redirect{Port: 80}, behind, "a.test", RedirectAuthority{Port: 80}},
	} {
		if got := RedirectTo(c.redirect, c.listener, c.hostname); got != c.want {
			t.Errorf("%v on %v for %q: %+v, want %+v", c.redirect, c.listener, c.hostname, got, c.want)
		}
	}
}
