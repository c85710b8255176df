package compile_test

import (
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/penstock-gateway/penstock/xds/compile"
)

const traceYAML = `
---
kind: Route
name: all
rules: [{name: all, matches: [{path: {prefix: /x}}], forward: {backends: [{backend: up}]}}]
`

const (
	traceID = "0af7651916cd43dd8448eb211c80319c"
	spanID  = "b7ad6b7169203331"
	sampled = "00-" + traceID + "-" + spanID + "-01"
)

// testTraceparent: what is continued, and what begins a new trace (W3C Trace Context
// level 2, sections 3.2 and 4.3).
func testTraceparent(t *testing.T, r *rig) {
	port := r.serve(t, gatewayOn+traceYAML)
	for _, c := range []struct {
		name, value, flags string // flags that the backend gets; "" is a new trace
	}{
		{"sampled", sampled, "01"},
		{"not sampled", sampled[:53] + "00", "01"},
		{"random", sampled[:53] + "02", "03"},
		{"sampled and random", sampled[:53] + "03", "03"},
		{"unknown flags", sampled[:53] + "fd", "01"},
		{"unknown flags and random", sampled[:53] + "fe", "03"},
		{"later version", "cc" + sampled[2:], "01"},
		{"later version, random", "01" + sampled[2:53] + "03", "03"},
		{"later version with more", "cc" + sampled[2:] + "-what-the-future-will-be-like", "01"},
		{"later version, a dash behind", "fe" + sampled[2:] + "-", "01"},
		{"later version with more behind no dash", "cc" + sampled[2:] + ".what", ""},
		{"later version, longer flags", "cc" + sampled[2:] + "0", ""},
		{"later version, short", "cc" + sampled[2:54], ""},
		{"later version, zero trace", "cc-00000000000000000000000000000000-" + spanID + "-01", ""},
		{"later version, zero span", "cc-" + traceID + "-0000000000000000-01", ""},
		{"later version, capital letters", "cc-" + strings.ToUpper(traceID) + "-" + spanID + "-01", ""},
		{"capital version", "CC" + sampled[2:], ""},
		{"version ff", "ff" + sampled[2:], ""},
		{"version 00 with more", sampled + "-what", ""},
		{"version 00 with a dot", sampled + ".", ""},
		{"version of one digit", sampled[1:], ""},
		{"version of three digits", "0" + sampled, ""},
		{"flags of one digit", sampled[:54], ""},
		{"flags of no digits", sampled[:53] + "zz", ""},
		{"other dashes", strings.ReplaceAll(sampled, "-", "_"), ""},
		{"not ASCII", "00-" + traceID[:30] + "é-" + spanID + "-01", ""},
	} {
		a := r.do(t, port, "GET", "x.test/x", "traceparent: "+c.value, "tracestate: foo=1")
		id, parent, state := a.header.Get("x-trace-id"), a.got.Header.Values("traceparent"), a.got.Header.Values("tracestate")
		if len(parent) != 1 {
			t.Errorf("%s: the backend got %q", c.name, parent)
			continue
		}
		want, wantState := c.flags, []string{"foo=1"}
		if c.flags == "" {
			// Ours is random.
			want, wantState = "03", nil
		}
		if (id == traceID) != (c.flags != "") || parent[0][:36] != "00-"+id+"-" || parent[0][36:52] == spanID || parent[0][52:] != "-"+want {
			t.Errorf("%s: trace %s, the backend got %s, want flags %s", c.name, id, parent[0], want)
		}
		if !slices.Equal(state, wantState) {
			t.Errorf("%s: the backend got tracestate %q, want %q", c.name, state, wantState)
		}
		for name := range a.got.Header {
			if strings.HasPrefix(strings.ToLower(name), "x-penstock-") {
				t.Errorf("%s: the backend got %s", c.name, name)
			}
		}
	}
	for _, forged := range []string{"x-penstock-trace-flags: 01", "x-penstock-traceparent: " + sampled, "x-penstock-tracestate: foo=1"} {
		a := r.do(t, port, "GET", "x.test/x", forged)
		if got := a.got.Header.Get("traceparent"); !strings.HasSuffix(got, "-03") || strings.Contains(got, traceID) || a.got.Header.Get("tracestate") != "" {
			t.Errorf("%s: the backend got %q", forged, a.got.Header)
		}
	}
}

// testTraceparentRetried: each try has the flags of the request, and a span of its own.
func testTraceparentRetried(t *testing.T, r *rig) {
	var tries atomic.Int64
	seen := make(chan string, 10)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		seen <- q.Header.Get("traceparent")
		if tries.Add(1) < 3 {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	}))
	t.Cleanup(s.Close)
	host, port, err := net.SplitHostPort(s.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	at := r.serve(t, gatewayOn+`
---
kind: Backend
name: failing
static: {endpoints: [{address: `+host+`, port: `+port+`}]}
---
kind: Route
name: all
rules: [{name: all, matches: [{path: {prefix: /x}}], forward: {backends: [{backend: failing}]}, policies: {retry: {idempotent: {attempts: 3, on: [5XX]}}}}]
`)
	if a := r.do(t, at, "GET", "x.test/x", "traceparent: "+sampled[:53]+"02"); a.status != 200 || tries.Load() != 3 {
		t.Fatalf("%d after %d tries: %s", a.status, tries.Load(), a.body)
	}
	spans := map[string]bool{}
	for range 3 {
		got := <-seen
		if got[:36] != "00-"+traceID+"-" || got[52:] != "-03" {
			t.Errorf("a try had %s", got)
		}
		spans[got[36:52]] = true
	}
	if len(spans) != 3 {
		t.Errorf("%d spans for three tries", len(spans))
	}
}

// testTracestate: the rules of section 3.3, each at its edge.
func testTracestate(t *testing.T, r *rig) {
	port := r.serve(t, gatewayOn+traceYAML)
	z := func(n int) string { return strings.Repeat("z", n) }
	members := func(n int) string { return strings.TrimSuffix(strings.Repeat("a=1,", n), ",") }
	for _, c := range []struct {
		name  string
		lines []string
	}{
		{"one", []string{"foo=1"}},
		{"empty", []string{""}},
		{"empty members alone", []string{" , ,"}},
		{"empty members", []string{"foo=1,,  ,bar=2,"}},
		{"blanks", []string{"foo=1 \t , \t bar=2, \t baz=3"}},
		{"several lines", []string{"foo=1,bar=2", "rojo=1", "baz=3"}},
		{"an empty line among them", []string{"foo=1", "", "baz=3"}},
		{"a bad line among them", []string{"foo=1", "Bar=2"}},
		{"duplicate keys", []string{"foo=1,foo=2"}},
		{"all characters", []string{"abcdefghijklmnopqrstuvwxyz0123456789_-*/@a= !\"#$%&'()*+-./0123456789:;<>?@ABCDEFGHIJKLMNOPQRSTUVWXYZ[\\]^_`abcdefghijklmnopqrstuvwxyz{|}~"}},
		{"key begins with a digit", []string{"0foo=1"}},
		{"key with two at signs", []string{"foo@@bar=1,a@b@c=1,foo@=1"}},
		{"key begins with an at sign", []string{"@foo=1,bar=2"}},
		{"key begins with a dash", []string{"-foo=1"}},
		{"capital key", []string{"FOO=1"}},
		{"key with a dot", []string{"foo.bar=1"}},
		{"blank behind the key", []string{"foo =1"}},
		{"blank before the value", []string{"foo= 1"}},
		{"no key", []string{"=1"}},
		{"no value", []string{"foo=,bar=3"}},
		{"a blank value", []string{"foo= ,bar=3"}},
		{"no equals sign", []string{"foo"}},
		{"two equals signs", []string{"foo=bar=baz"}},
		{"tab in the value", []string{"foo=a\tb"}},
		{"not ASCII", []string{"foo=é"}},
		{"DEL", []string{"foo=a\x7fb"}},
		{"32 members", []string{members(32)}},
		{"33 members", []string{members(33)}},
		{"32 members and an empty one", []string{members(32) + ","}},
		{"32 members in lines", []string{members(16), members(16)}},
		{"33 members in lines", []string{members(17), members(16)}},
		{"key of 256", []string{"foo=1", z(256) + "=1"}},
		{"key of 257", []string{"foo=1", z(257) + "=1"}},
		{"first key of 257", []string{z(257) + "=1"}},
		{"key of 256 behind blanks", []string{"foo=1, \t  " + z(256) + "=1"}},
		{"key of 257 at the end", []string{"foo=" + z(200) + "," + z(257) + "=1"}},
		{"key of 256 at the end", []string{"foo=" + z(200) + "," + z(256) + "=1"}},
		{"vendor of 242", []string{z(242) + "@v=1"}},
		{"value of 256", []string{"foo=" + z(256)}},
		{"value of 257", []string{"foo=" + z(257)}},
		{"value of 256 with blanks behind", []string{"foo=" + z(256) + "    ,bar=1"}},
		{"value of 256 with blanks before", []string{"foo=" + strings.Repeat(" ", 255) + "z"}},
		{"value of 257 with blanks before", []string{"foo=" + strings.Repeat(" ", 256) + "z"}},
		{"blanks across the middle", []string{"foo=" + z(250) + strings.Repeat(" ", 20) + ",bar=" + z(200)}},
		{"a key over the middle", []string{"foo=" + z(248) + "," + z(200) + "=1"}},
		{"512 bytes", []string{"a=" + z(254) + ",b=" + z(253)}},
		{"513 bytes", []string{"a=" + z(254) + ",b=" + z(254)}},
	} {
		checkTracestate(t, r, port, c.name, c.lines)
	}
	// Alone it is nothing.
	if a := r.do(t, port, "GET", "x.test/x", "tracestate: foo=1"); len(a.got.Header.Values("tracestate")) > 0 {
		t.Errorf("without a traceparent the backend got %q", a.got.Header.Values("tracestate"))
	}
}

// testGeneratedTracestate: generated lists are forwarded where a strict parser takes them.
func testGeneratedTracestate(t *testing.T, r *rig) {
	port := r.serve(t, gatewayOn+traceYAML)
	rnd := rand.New(rand.NewPCG(1, 2))
	pick := func(s string) string { return string(s[rnd.IntN(len(s))]) }
	text := func(characters string, n int) string {
		var b strings.Builder
		for range n {
			b.WriteString(pick(characters))
		}
		return b.String()
	}
	length := func() int { return []int{0, 1, 3, 8, 100, 254, 255, 256, 257}[rnd.IntN(9)] }
	good := 0
	for n := range 400 {
		var parts []string
		for range rnd.IntN(4) + rnd.IntN(2)*rnd.IntN(33) {
			size := 3
			if rnd.IntN(8) == 0 {
				size = length()
			}
			key := text("abyz09_-*/@", max(0, size))
			if rnd.IntN(30) > 0 {
				key = "k" + key
			}
			value := text(" !+-<>~az", rnd.IntN(4)) + "v"
			if rnd.IntN(10) == 0 {
				value = text(" zv", length())
			}
			m := text(" \t", rnd.IntN(2)) + key + "=" + value + text(" \t", rnd.IntN(2))
			if rnd.IntN(60) == 0 {
				m = text("a=, \tA@\x7f", rnd.IntN(5))
			}
			parts = append(parts, m)
		}
		all := strings.Join(parts, ",")
		lines := []string{all}
		if i := strings.Index(all, ","); i > 0 && rnd.IntN(3) == 0 {
			lines = []string{all[:i], all[i+1:]}
		}
		if checkTracestate(t, r, port, "generated "+strconv.Itoa(n), lines) {
			good++
		}
	}
	if good < 80 || good > 350 {
		t.Errorf("%d of 400 were well-formed: that tests one side alone", good)
	}
}

// checkTracestate sends lines and compares with the strict parser; it reports whether
// that takes them.
func checkTracestate(t *testing.T, r *rig, port int, name string, lines []string) bool {
	t.Helper()
	header := []string{"traceparent: " + sampled}
	trimmed := make([]string, len(lines))
	for i, l := range lines {
		header = append(header, "tracestate: "+l)
		trimmed[i] = strings.Trim(l, " \t") // a field's value has no blanks around it (RFC 9110, section 5.5)
	}
	a := r.do(t, port, "GET", "x.test/x", header...)
	if strings.Contains(strings.Join(lines, ""), "\x7f") {
		if a.status == 400 {
			return false // no HTTP
		}
	}
	if a.got == nil {
		t.Errorf("%s: %d", name, a.status)
		return false
	}
	all := strings.Join(trimmed, ",")
	var want []string
	ok := wellFormed(all)
	if ok {
		want = []string{all}
	}
	if got := a.got.Header.Values("tracestate"); !slices.Equal(got, want) {
		t.Errorf("%s: of %q (%d bytes) the backend got %q, want %q", name, lines, len(all), got, want)
	}
	if got := a.got.Header.Get("traceparent"); !strings.HasPrefix(got, sampled[:36]) {
		t.Errorf("%s: of %q: the trace was not continued: %s", name, lines, got)
	}
	return ok
}

// wellFormed parses a tracestate by the letter (section 3.3.1), up to 512 bytes.
func wellFormed(s string) bool {
	members := strings.Split(s, ",")
	if len(s) > 512 || len(members) > 32 {
		return false
	}
	some := false
	for _, m := range members {
		if m = strings.TrimLeft(m, " \t"); m == "" {
			continue
		}
		key, value, ok := strings.Cut(m, "=")
		value = strings.TrimRight(value, " \t")
		if !ok || key == "" || len(key) > 256 || value == "" || len(value) > 256 {
			return false
		}
		for i, c := range []byte(key) {
			letter := 'a' <= c && c <= 'z' || '0' <= c && c <= '9'
			if !letter && (i == 0 || !strings.ContainsRune("_-*/@", rune(c))) {
				return false
			}
		}
		for _, c := range []byte(value) {
			if c < ' ' || c > '~' || c == '=' {
				return false
			}
		}
		some = true
	}
	return some
}

// testUntraced: without a collector the gateway passes the context on, but for what is
// malformed.
func testUntraced(t *testing.T, r *rig) {
	compiler := r.compiler
	t.Cleanup(func() { r.compiler, r.last = compiler, nil })
	r.compiler, r.last = compile.New(compile.Settings{Limiters: []compile.Endpoint{r.limiter.endpoint}}), nil
	port := r.serve(t, gatewayOn+traceYAML)
	later := "cc" + sampled[2:] + "-what-the-future-will-be-like"
	for _, c := range []struct{ parent, want string }{{sampled, sampled}, {later, later}, {"bad", ""}, {"", ""}} {
		a := r.do(t, port, "GET", "x.test/x", "traceparent: "+c.parent, "tracestate: foo=1")
		if got := a.got.Header.Get("traceparent"); got != c.want {
			t.Errorf("%q: the backend got %q", c.parent, got)
		}
		if got := a.got.Header.Get("tracestate"); (got == "foo=1") != (c.want != "") {
			t.Errorf("%q: the backend got tracestate %q", c.parent, got)
		}
	}
	if a := r.do(t, port, "GET", "x.test/x"); fmt.Sprint(a.got.Header.Values("traceparent")) != "[]" {
		t.Errorf("the backend got %q", a.got.Header)
	}
}
