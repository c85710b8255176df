package compile_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/penstock-gateway/penstock/gateway"
	"github.com/penstock-gateway/penstock/gateway/explain"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
	"github.com/penstock-gateway/penstock/ratelimit"
	"github.com/penstock-gateway/penstock/xds/compile"
)

// hostTable reads the hosts that gateway's own tests read, too.
func hostTable(t *testing.T) (hosts []string) {
	t.Helper()
	b, err := os.ReadFile("../../gateway/testdata/hosts.txt")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if quoted, err := strconv.QuotedPrefix(line); err == nil {
			host, _ := strconv.Unquote(quoted)
			hosts = append(hosts, host)
		}
	}
	if len(hosts) < 50 {
		t.Fatalf("%d hosts", len(hosts))
	}
	return hosts
}

// testHosts: a host that is not canonical is refused in every way to ask for it, in
// each layout, and explain says the same as Envoy.
func testHosts(t *testing.T, r *rig) {
	const catchAll = `
---
kind: Route
name: any
rules: [{name: any, forward: {backends: [{backend: up}]}}]
`
	all := hostTable(t)
	all = append(all, strings.Repeat("a.", 120)+"test", strings.Repeat("a.", 127)+"aa", strings.Repeat("a.", 125)+"test:80", strings.Repeat("b", 5000)+".x.test")
	all = append(all, generatedHosts(400)...)
	for layout, yaml := range map[string]string{
		"table":    hosts(protected, "a.x.test") + catchAll,
		"scopes":   hosts(protected, "a.x.test"),
		"wildcard": hosts(protected, "*.x.test", "a.x.test"),
	} {
		t.Run(layout, func(t *testing.T) {
			port := r.serve(t, gatewayOn+yaml)
			for _, host := range all {
				want := r.explained(t, port, host, "/must")
				if got := r.do(t, port, "GET", host+"/must"); got.status != want {
					t.Errorf("Host %.80q: %d, explain says %d", host, got.status, want)
				} else if got.got != nil && !sameHost(host, got.got.Host) {
					t.Errorf("Host %.80q reaches the upstream as %q", host, got.got.Host)
				}
				if host == "" || strings.Contains(host, "@") {
					continue // Envoy takes the name behind it in absolute form
				}
				if got := r.raw(t, port, "GET http://"+host+"/must HTTP/1.1\r\nHost: a.x.test\r\nConnection: close\r\n\r\n"); got.status != want && got.status != 400 {
					t.Errorf("absolute form with %.80q: %d, explain says %d", host, got.status, want)
				}
				// What HTTP/2 does not allow in :authority resets the stream.
				if got := r.h2(t, port, ":method", "GET", ":scheme", "http", ":path", "/must", ":authority", host).status; got != want && (got != 0 || want != 400) {
					t.Errorf(":authority %.80q: %d, explain says %d", host, got, want)
				}
			}
		})
	}
}

// sameHost reports whether a host that was sent is what the upstream may get.
func sameHost(sent, got string) bool {
	host, port, err := gateway.CanonicalHost(sent)
	if port != 0 {
		host += fmt.Sprintf(":%d", port)
	}
	return err == nil && strings.EqualFold(host, got)
}

// generatedHosts are small changes of hosts that are served, always the same ones.
func generatedHosts(n int) []string {
	r := rand.New(rand.NewPCG(7, 7))
	seeds := []string{"a.x.test", "a.x.test:8080", "127.0.0.1", "[::1]:80", "b.x.test.", "other"}
	const letters = ".:-_[]%0aZ;*~/1"
	var out []string
	for range n {
		h := []byte(seeds[r.IntN(len(seeds))])
		for range 1 + r.IntN(3) {
			i := r.IntN(len(h) + 1)
			c := letters[r.IntN(len(letters))]
			if r.IntN(3) == 0 && i < len(h) {
				h[i] = c
			} else {
				h = append(h[:i], append([]byte{c}, h[i:]...)...)
			}
		}
		if !bytes.Contains(h, []byte("/")) { // the path would begin there
			out = append(out, string(h))
		}
	}
	return out
}

// explained is the status that explain foresees for a GET.
func (r *rig) explained(t *testing.T, port int, host, path string) int {
	t.Helper()
	if strings.Contains(host, "@") {
		return 400 // a client would not send what stands before it
	}
	return outcome(t, explain.Explain(r.snapshot, &pb.ExplainRequest{
		Method: "GET", Url: fmt.Sprintf("http://127.0.0.1:%d%s", port, path), HeaderLines: []string{"host: " + host},
	}, nil))
}

// outcome is the status that is foreseen.
func outcome(t *testing.T, x *pb.ExplainResponse) int {
	t.Helper()
	if x.GetOutcome().GetStatus() == 0 {
		t.Fatalf("outcome %v", x.GetOutcome().GetText())
	}
	return int(x.GetOutcome().GetStatus())
}

// h2 sends the head of a request by HTTP/2 exactly as it is given, names and values
// by turns; status 0: the stream was reset.
func (r *rig) h2(t *testing.T, port int, fields ...string) answer {
	t.Helper()
	c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(30 * time.Second))
	var block bytes.Buffer
	enc := hpack.NewEncoder(&block)
	for i := 0; i < len(fields); i += 2 {
		_ = enc.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]})
	}
	before := r.upstream.count()
	out := bufio.NewWriter(c)
	_, _ = io.WriteString(out, http2.ClientPreface)
	fr := http2.NewFramer(out, c)
	fr.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	_ = fr.WriteSettings()
	// Continuations carry what one frame cannot.
	const frame = 16 << 10
	first, rest := block.Bytes(), []byte(nil)
	if len(first) > frame {
		first, rest = first[:frame], first[frame:]
	}
	_ = fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: first, EndHeaders: len(rest) == 0, EndStream: true})
	for len(rest) > 0 {
		n := min(frame, len(rest))
		_ = fr.WriteContinuation(1, n == len(rest), rest[:n])
		rest = rest[n:]
	}
	if err := out.Flush(); err != nil {
		t.Fatal(err)
	}
	a := answer{header: http.Header{}}
	for {
		f, err := fr.ReadFrame()
		if err != nil {
			return a // closed
		}
		ended := false
		switch f := f.(type) {
		case *http2.SettingsFrame:
			if !f.IsAck() {
				_ = fr.WriteSettingsAck()
				_ = out.Flush()
			}
		case *http2.MetaHeadersFrame:
			if a.status == 0 {
				a.status, _ = strconv.Atoi(f.PseudoValue("status"))
			}
			for _, h := range f.RegularFields() {
				a.header.Add(h.Name, h.Value)
			}
			ended = f.StreamEnded()
		case *http2.DataFrame:
			a.body += string(f.Data())
			ended = f.StreamEnded()
		case *http2.RSTStreamFrame, *http2.GoAwayFrame:
			return a
		}
		if ended {
			a.got = r.upstream.after(before)
			r.coded(t, fields[1], a)
			return a
		}
	}
}

// distinct are n header lines of different names.
func distinct(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "x-a%d: b\r\n", i)
	}
	return b.String()
}

// code is the code of a problem; "" for any other body.
func (a answer) code(t *testing.T) string {
	t.Helper()
	if a.header.Get("content-type") != "application/problem+json" {
		return ""
	}
	var p struct {
		Type, Title, Code, Detail string
		Status                    int
	}
	if err := json.Unmarshal([]byte(a.body), &p); err != nil || p.Status != a.status || p.Title == "" || p.Detail == "" || p.Type == "" {
		t.Errorf("problem %s of status %d: %v", a.body, a.status, err)
	}
	return p.Code
}

// testAnswers: what the gateway answers by itself is a problem with a code.
func testAnswers(t *testing.T, r *rig) {
	if gateway.LimitExceeded.Code != ratelimit.CodeExceeded {
		t.Errorf("the limiter answers with %s, the list has %s", ratelimit.CodeExceeded, gateway.LimitExceeded.Code)
	}
	port := r.serve(t, gatewayOn+hosts(protected, "a.x.test")+`
---
kind: Backend
name: none
static: {endpoints: [{address: 127.0.0.1, port: 1}]}
---
kind: Backend
name: odd
static: {endpoints: [{address: 127.0.0.1, port: `+fmt.Sprint(oddServer(t))+`}]}
---
kind: Route
name: more
hostnames: [b.x.test]
rules:
- {name: down, matches: [{path: {prefix: /down}}], forward: {backends: [{backend: none}]}}
- {name: odd, matches: [{path: {prefix: /odd}}], forward: {backends: [{backend: odd}]}}
- {name: say, matches: [{path: {prefix: /say}}], direct_response: {status: 400, body: mine}}
- {name: limited, matches: [{path: {prefix: /limited}}], forward: {backends: [{backend: up}]}, policies: {rate_limit: {limits: [{name: l, requests: 1, window: 60s, on_failure: CLOSED}]}}}
`)
	r.limiter.setBroken(true)
	defer r.limiter.setBroken(false)
	const head = "HTTP/1.1\r\nConnection: close\r\nHost: "
	for _, c := range []struct {
		request, code string
		status        int
	}{
		{"GET /x HTTP/1.1\r\nConnection: close\r\n\r\n", "PK-EDGE-HOST", 400},
		{"GET /x " + head + "a..b\r\n\r\n", "PK-EDGE-HOST", 400},
		{"GET /x " + head + "a b\r\n\r\n", "PK-EDGE-HOST", 400},
		{"GET /x " + head + "a\r\nHost: b\r\n\r\n", "PK-EDGE-HOST", 400},
		{"GET /x " + head + strings.Repeat("a.", 200) + "b\r\n\r\n", "PK-EDGE-HOST-LENGTH", 400},
		{"GET https://a.x.test/must " + head + "a.x.test\r\n\r\n", "PK-EDGE-SCHEME", 400},
		{"GET https://a.x.test/must HTTP/1.1\r\nConnection: close\r\n\r\n", "PK-EDGE-SCHEME", 400},
		{"GET /x%2fy " + head + "a.x.test\r\n\r\n", "PK-EDGE-ENCODED-SLASH", 400},
		{"GET /x%5Cy " + head + "a.x.test\r\n\r\n", "PK-EDGE-ENCODED-SLASH", 400},
		{"GET /x%00y " + head + "a.x.test\r\n\r\n", "PK-EDGE-PATH", 400},
		{"GET /x#y " + head + "a.x.test\r\n\r\n", "PK-EDGE-PATH", 400},
		{"GET /x%zz " + head + "a.x.test\r\n\r\n", "PK-EDGE-PATH", 400},
		{"OPTIONS * " + head + "a.x.test\r\n\r\n", "PK-EDGE-PATH", 400},
		{"GET /x;y " + head + "a.x.test\r\n\r\n", "PK-EDGE-SEMICOLON", 400},
		{"GET /x y " + head + "a.x.test\r\n\r\n", "PK-EDGE-PROTOCOL", 400},
		{"get /x " + head + "a.x.test\r\n\r\n", "PK-EDGE-PROTOCOL", 400},
		{"TRACE /x " + head + "a.x.test\r\n\r\n", "PK-EDGE-METHOD", 405},
		{"GET /x HTTP/1.0\r\nHost: a.x.test\r\n\r\n", "PK-EDGE-HTTP-VERSION", 426},
		{"GET /x " + head + "a.x.test\r\nx y: 1\r\n\r\n", "PK-EDGE-PROTOCOL", 400},
		{"POST /x " + head + "a.x.test\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "PK-EDGE-PROTOCOL", 400},
		{"POST /x " + head + "a.x.test\r\nTransfer-Encoding: gzip\r\n\r\n", "PK-EDGE-TRANSFER-ENCODING", 501},
		{"GET /x " + head + "a.x.test\r\n" + distinct(101) + "\r\n", "PK-EDGE-HEADERS-COUNT", 431},
		{"GET /x " + head + "a.x.test\r\n" + strings.Repeat("x-a: b\r\n", 700) + "\r\n", "PK-EDGE-HEADERS-COUNT", 431},
		{"GET /x " + head + "a.x.test\r\nx-a:" + strings.Repeat("b", 70_000) + "\r\n\r\n", "PK-EDGE-HEADERS-SIZE", 431},
		{"GET /x " + head + "a.x.test\r\nx-a:" + strings.Repeat("b", 150_000) + "\r\n\r\n", "PK-EDGE-HEADERS-SIZE", 431},
		{"GET /must HTTP/1.1\r\nHost: a.x.test\r\nConnection: close, Upgrade\r\nUpgrade: other\r\n\r\n", "PK-EDGE-UPGRADE", 400},
		{"GET /odd " + head + "b.x.test\r\n\r\n", "PK-BACKEND-PROTOCOL", 502},
		{"GET /nope " + head + "a.x.test\r\n\r\n", "PK-ROUTE-NONE", 404},
		{"GET /nope " + head + "unknown\r\n\r\n", "PK-ROUTE-NONE", 404},
		{"GET /must " + head + "a.x.test\r\n\r\n", "PK-AUTH-TOKEN", 401},
		{"GET /must " + head + "a.x.test\r\nAuthorization: Bearer " + r.token(t, map[string]any{"aud": "other"}) + "\r\n\r\n", "PK-AUTH-TOKEN-REFUSED", 401},
		{"GET /down " + head + "b.x.test\r\n\r\n", "PK-BACKEND-CONNECTION", 503},
		{"GET /limited " + head + "b.x.test\r\n\r\n", "PK-LIMIT-UNAVAILABLE", 503},
		{"GET /say " + head + "b.x.test\r\n\r\n", "", 400},
	} {
		a := r.raw(t, port, c.request)
		if code := a.code(t); a.status != c.status || code != c.code || a.got != nil {
			t.Errorf("%.80q: %d %s, want %d %s (%s)", c.request, a.status, code, c.status, c.code, a.body)
		}
	}
	for _, upgrade := range []string{"other", "websocket", "WebSocket", "h2c", "HTTP/3", "websocket, other"} {
		a := r.raw(t, port, "GET /say HTTP/1.1\r\nHost: b.x.test\r\nConnection: close, Upgrade\r\nUpgrade: "+upgrade+"\r\n\r\n")
		o := explain.Explain(r.snapshot, &pb.ExplainRequest{
			Url: fmt.Sprintf("http://b.x.test:%d/say", port), HeaderLines: []string{"connection: close, Upgrade", "upgrade: " + upgrade},
		}, nil).GetOutcome()
		if a.status != int(o.GetStatus()) || a.code(t) != o.GetCode() {
			t.Errorf("upgrade to %s: %d %s, explain says %s", upgrade, a.status, a.body, o.GetText())
		}
	}
	r.limiter.setBroken(false)
	if a := r.do(t, port, "GET", "b.x.test/limited"); a.status != 200 || a.header.Get("ratelimit") != "" || a.header.Get("ratelimit-policy") != "" {
		t.Errorf("a backend's ratelimit on a limited route: %d %v", a.status, a.header)
	}
	if a := r.do(t, port, "GET", "a.x.test/public"); a.status != 200 || a.header.Get("ratelimit") == "" {
		t.Errorf("a backend's ratelimit on a route without limits: %d %v", a.status, a.header)
	}
	if a := r.do(t, port, "GET", "b.x.test/say"); a.body != "mine" {
		t.Errorf("the answer of a route: %q", a.body)
	}
	if a := r.do(t, port, "GET", "a.x.test/must"); !strings.Contains(a.body, "Jwt is missing") || a.header.Get("www-authenticate") == "" {
		t.Errorf("401: %s %v", a.body, a.header)
	}
	// No part of a request is in a challenge, where a quotation mark would begin another one.
	const wants, bad = `Bearer realm="penstock"`, `Bearer realm="penstock", error="invalid_token"`
	for _, c := range []struct{ request, want string }{
		{"GET /must?a=\",Basic%20realm=\"x " + head + "a.x.test\r\n\r\n", wants},
		{"GET /must?a=\",Basic%20realm=\"x " + head + "a.x.test\r\nAuthorization: Bearer x\r\n\r\n", bad},
		{"POST /must?a=\",Basic%20realm=\"x " + head + "a.x.test\r\nContent-Type: application/grpc\r\n\r\n", wants},
		{"POST /must?a=\",Basic%20realm=\"x " + head + "a.x.test\r\nContent-Type: application/grpc\r\nAuthorization: Bearer x\r\n\r\n", bad},
		{"GET /nope?a=\",Basic%20realm=\"x " + head + "unknown\r\n\r\n", ""},
	} {
		a := r.raw(t, port, c.request)
		if got := a.header.Values("www-authenticate"); strings.Join(got, " and ") != c.want {
			t.Errorf("%.60q: %d, challenge %q, want %q", c.request, a.status, got, c.want)
		}
	}
	for url, want := range map[string]string{"a.x.test/must": "Jwt is missing", "a..b/must": "PK-EDGE-HOST: " + gateway.BadHost.Detail} {
		if a := r.do(t, port, "POST", url, "content-type: application/grpc"); a.header.Get("grpc-message") != want {
			t.Errorf("gRPC to %s: %v", url, a.header)
		}
	}
	h2 := func(fields ...string) answer {
		return r.h2(t, port, append([]string{":method", "GET", ":scheme", "http", ":authority", "b.x.test"}, fields...)...)
	}
	if a := h2(":path", "/x%2fy"); a.status != 400 || a.code(t) != "PK-EDGE-ENCODED-SLASH" {
		t.Errorf("HTTP/2, encoded slash: %d %s", a.status, a.body)
	}
	if a := h2(":path", "/x", "a_b", "c"); a.status != 404 {
		t.Errorf("HTTP/2, underscore: %d %s", a.status, a.body)
	}
	if a := h2(":path", "/x", "x-a", strings.Repeat("x", 70_000)); a.status != 431 || a.code(t) != "PK-EDGE-HEADERS-SIZE" {
		t.Errorf("HTTP/2, large header: %d %s", a.status, a.body)
	}
	fields := []string{":path", "/say"}
	for i := range 150 {
		fields = append(fields, "cookie", fmt.Sprintf("c%d=v", i))
	}
	if a := h2(fields...); a.body != "mine" {
		t.Errorf("HTTP/2, 150 cookies: %d %s", a.status, a.body)
	}
	for i := range 101 {
		fields = append(fields, fmt.Sprintf("x-%d", i), "v")
	}
	if a := h2(fields...); a.status != 431 || a.code(t) != "PK-EDGE-HEADERS-COUNT" {
		t.Errorf("HTTP/2, 101 headers: %d %s", a.status, a.body)
	}
}

// oddServer answers with what is not HTTP.
func oddServer(t *testing.T) (port int) {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = bufio.NewReader(c).ReadString('\n')
			_, _ = io.WriteString(c, "220 mail.test ESMTP\r\n")
			c.Close()
		}
	}()
	return l.Addr().(*net.TCPAddr).Port
}

// testSlow: what does not arrive in time is answered with the part that was late.
func testSlow(t *testing.T, r *rig) {
	port := r.serve(t, strings.Replace(gatewayOn, "port: PORT}", "port: PORT, upload_timeout: 0.3s}", 1)+hosts(protected, "a.x.test"))
	if a := r.raw(t, port, "POST /public HTTP/1.1\r\nHost: a.x.test\r\nContent-Length: 5\r\n\r\nhe"); a.status != 408 || a.code(t) != "PK-EDGE-REQUEST-TIMEOUT" {
		t.Errorf("a body that does not end: %d %s", a.status, a.body)
	}
	port = r.serve(t, gatewayOn+hosts(protected, "a.x.test"))
	if a := r.raw(t, port, "GET /public HTTP/1.1\r\nHost: a.x"); a.status != 408 || a.code(t) != "PK-EDGE-HEADERS-TIMEOUT" {
		t.Errorf("a head that does not end: %d %s", a.status, a.body)
	}
}

// testProfiles: what each setting of the edge profile refuses, changes and keeps,
// and that no route's authentication is passed by another spelling of its path.
func testProfiles(t *testing.T, r *rig) {
	const walkAround = `
---
kind: Route
name: any
HOSTS
rules:
- {name: any, forward: {backends: [{backend: up}]}}
- {name: word, matches: [{path: {regex: "/word/[^/]+"}}], forward: {backends: [{backend: up}]}}
`
	for _, c := range []struct {
		profile string
		paths   map[string]string // what the upstream gets, or the code of the refusal
	}{
		{"{}", map[string]string{
			"/a%2Fb": "PK-EDGE-ENCODED-SLASH", "/a;b/c": "PK-EDGE-SEMICOLON", "/a//b": "/a/b",
		}},
		{"{encoded_slashes: KEEP}", map[string]string{
			"/projects/group%2Fname": "/projects/group%2Fname", "/a%5Cb": "/a%5Cb", "/a%2fb?c%2Fd": "/a%2fb?c%2Fd", "/a;b": "PK-EDGE-SEMICOLON",
			"/must%2Fx": "PK-EDGE-AMBIGUOUS-PATH", "/must%5cx": "PK-EDGE-AMBIGUOUS-PATH", "/%2Fmust": "PK-EDGE-AMBIGUOUS-PATH",
			"/a%2F..%2Fmust": "PK-EDGE-AMBIGUOUS-PATH", "/a/..%2Fmust": "PK-EDGE-AMBIGUOUS-PATH", "/a%5C..%5Cmust": "PK-EDGE-AMBIGUOUS-PATH", "/a%2F.": "PK-EDGE-AMBIGUOUS-PATH",
			"/a%2f%2e%2e/must": "PK-EDGE-AMBIGUOUS-PATH", "/word/a%2Fb": "PK-EDGE-AMBIGUOUS-PATH", "/a%252Fb": "/a%252Fb", "/a%00": "PK-EDGE-PATH", "//a": "/a",
		}},
		{"{encoded_slashes: DECODE}", map[string]string{
			"/a%2Fb": "/a/b", "/a%5Cb": "/a/b", "/a%2f%2Fb": "/a/b", "/a%2F..%2Fb": "/b", "/a;b": "PK-EDGE-SEMICOLON", "/a%00": "PK-EDGE-PATH", "/a%252Fb": "/a%252Fb",
			"/must%2Fx": "401", "/a%2F..%2Fmust": "401", "/a/..%5cmust": "401", "/%2Fmust": "401", "/word/a%2Fb": "/word/a/b",
		}},
		{"{semicolons: KEEP}", map[string]string{
			"/a;v=1/b": "/a;v=1/b", "/a%3Bv=1": "/a%3Bv=1", "/a%2Fb": "PK-EDGE-ENCODED-SLASH", "/word/a;b": "/word/a;b",
			"/must;x": "PK-EDGE-AMBIGUOUS-PATH", "/must;x/y": "PK-EDGE-AMBIGUOUS-PATH", "/;x/must": "PK-EDGE-AMBIGUOUS-PATH", "/must%3Bx": "PK-EDGE-AMBIGUOUS-PATH",
			"/a/..;/must": "401", "/a/..%3b/must": "PK-EDGE-AMBIGUOUS-PATH", "/a/.;x/b": "/a/b", "/must/a;x": "401",
		}},
		{"{repeated_slashes: KEEP}", map[string]string{
			"/ocsp/MFMw//abc%3D": "/ocsp/MFMw//abc%3D", "/a///": "/a///", "//a": "//a", "///": "///", "//": "//", "//must": "PK-EDGE-AMBIGUOUS-PATH", "/a/..//must": "PK-EDGE-AMBIGUOUS-PATH", "/must//x": "401", "/word//a": "PK-EDGE-AMBIGUOUS-PATH",
		}},
		{"{encoded_slashes: KEEP, semicolons: KEEP, repeated_slashes: KEEP}", map[string]string{
			"/a%2Fb": "/a%2Fb", "/a;b": "/a;b", "/a//b": "/a//b", "/a%2Fb%5Cc": "PK-EDGE-AMBIGUOUS-PATH", "/a%2Fb;c": "PK-EDGE-AMBIGUOUS-PATH", "/a;b//c": "PK-EDGE-AMBIGUOUS-PATH", "/;x%2Fmust": "PK-EDGE-AMBIGUOUS-PATH", "/%2F;x/must": "PK-EDGE-AMBIGUOUS-PATH", "/%3B%2Fmust": "PK-EDGE-AMBIGUOUS-PATH",
			"/a/b%2F..;x/must": "PK-EDGE-AMBIGUOUS-PATH", "/a%2F;/..;/must": "401",
		}},
		{"{encoded_slashes: DECODE, repeated_slashes: KEEP}", map[string]string{"/a%2F%2Fb": "/a//b", "/%2Fmust": "PK-EDGE-AMBIGUOUS-PATH"}},
	} {
		for layout, names := range map[string][]string{"table": nil, "scopes": {"a.x.test"}, "wildcard": {"*.x.test"}} {
			yaml := strings.Replace(gatewayOn, "port: PORT}", "port: PORT, edge: "+c.profile+"}", 1)
			port := r.serve(t, yaml+hosts(protected, names...)+hosts(walkAround, names...))
			for path, want := range c.paths {
				a := r.do(t, port, "GET", "a.x.test"+path)
				got := a.code(t)
				if a.got != nil {
					got = a.got.Path
				} else if a.status == 401 {
					got = "401"
				}
				if got != want {
					t.Errorf("%s, %s, %s: %s, want %s", c.profile, layout, path, got, want)
				}
				x := explain.Explain(r.snapshot, &pb.ExplainRequest{Method: "GET", Url: fmt.Sprintf("http://a.x.test:%d%s", port, path)}, nil)
				if n := outcome(t, x); n != a.status || a.got == nil && a.status != 401 && x.GetOutcome().GetCode() != want {
					t.Errorf("%s, %s, %s: Envoy says %d %s, explain %q", c.profile, layout, path, a.status, got, x.GetOutcome().GetText())
				}
			}
		}
	}
	t.Run("Headers", func(t *testing.T) { headerProfiles(t, r) })
	t.Run("Matches", func(t *testing.T) { profileMatches(t, r) })
}

// profileMatches: rules that ask for what a listener keeps serve it, in lists and trees, and
// the model says the same.
func profileMatches(t *testing.T, r *rig) {
	const rules = `
---
kind: Route
name: kept
HOSTS
rules:
- {name: exact, matches: [{path: {exact: /a//b}}, {path: {exact: /a/b}}], forward: {backends: [{backend: up}]}}
- {name: prefix, matches: [{path: {prefix: /p//q}}, {path: {prefix: /p/q}}], forward: {backends: [{backend: up}]}}
- {name: alone, matches: [{path: {exact: /alone//b}}], forward: {backends: [{backend: up}]}}
- {name: regex, matches: [{path: {regex: "/r(/|%2[fF]|;v=1)?x?"}}, {path: {prefix: /r}}], forward: {backends: [{backend: up}]}}
- {name: slash, matches: [{path: {exact: /s%2Ft}}, {path: {exact: /s/t}}], forward: {backends: [{backend: up}]}}
- {name: parameter, matches: [{path: {prefix: "/v;v=1"}}, {path: {exact: /v}}, {path: {prefix: /v/w}}], forward: {backends: [{backend: up}]}}
- {name: header, matches: [{path: {prefix: /h}, headers: [{name: my_id, value: {exact: "1"}}]}], forward: {backends: [{backend: up}]}}
- {name: reserved, matches: [{path: {prefix: /i}, headers: [{name: x-real-ip, value: {exact: "1"}, invert: true}]}], forward: {backends: [{backend: up}]}}
`
	const profile = "edge: {encoded_slashes: KEEP, semicolons: KEEP, repeated_slashes: KEEP, header_underscores: ALLOW}"
	for _, layout := range []string{"table", "scopes", "tree"} {
		var names []string
		if layout == "scopes" {
			names = []string{"a.x.test"}
		}
		if layout == "tree" {
			compile.SetTrees(t, 1)
			r.setEager(0)
			defer r.setEager(0)
		}
		port := r.serve(t, strings.Replace(gatewayOn, "port: PORT}", "port: PORT, "+profile+"}", 1)+hosts(rules, names...))
		for path, want := range map[string]string{
			"/a//b": "exact", "/a/b": "exact", "/a///b": "400", "/p//q": "prefix", "/p//q/r": "prefix", "/p/q/r": "prefix", "/alone//b": "400", "/alone/b": "404",
			"/r%2fx": "regex", "/r;v=1": "regex", "/r//x": "regex", "/s%2Ft": "slash", "/s/t": "slash", "/s%5Ct": "400", "/v;v=1": "parameter", "/v;v=1/w": "parameter", "/v": "parameter", "/v;v=2": "400",
			"/h": "header", "/i": "reserved", "//": "404",
		} {
			a := r.do(t, port, "GET", "a.x.test"+path, "my_id: 1", "x-real-ip: 1")
			x := explain.Explain(r.snapshot, &pb.ExplainRequest{Method: "GET", Url: fmt.Sprintf("http://a.x.test:%d%s", port, path), Headers: map[string]string{"my_id": "1", "x-real-ip": "1"}}, nil)
			if n := outcome(t, x); n != a.status || (a.status == 200) != (x.GetRule() != nil && n == 200) {
				t.Errorf("%s, %s: %d, explain says %q", layout, path, a.status, x.GetOutcome().GetText())
			}
			if got := x.GetRule().GetRule(); a.status == 200 && got != want || a.status != 200 && strconv.Itoa(a.status) != want {
				t.Errorf("%s, %s: %d by rule %q, want %s", layout, path, a.status, got, want)
			}
		}
	}
	if problems := r.snapshot.Check(); len(problems) > 0 {
		t.Error(problems)
	}
}

func headerProfiles(t *testing.T, r *rig) {
	const route = `
---
kind: Route
name: any
rules: [{name: any, forward: {backends: [{backend: up}]}}]
`
	serve := func(profile string) int {
		return r.serve(t, strings.Replace(gatewayOn, "port: PORT}", "port: PORT, edge: "+profile+"}", 1)+route)
	}
	const uuid = "3f1b1c1e-0000-4000-8000-000000000001"
	long := strings.Repeat("a", 128)
	for profile, kept := range map[string][]string{
		"{}": {"order-4711", uuid, "A_1", long}, "{request_ids: KEEP_UUID}": {uuid, strings.ToUpper(uuid)}, "{request_ids: REPLACE}": nil,
	} {
		port := serve(profile)
		for _, id := range []string{"order-4711", uuid, strings.ToUpper(uuid), "A_1", long, long + "a", "a b", "a.b", "a/../b", "é", "", "-" + uuid[1:]} {
			a := r.do(t, port, "GET", "a/x", "x-request-id: "+id)
			got := a.got.Header.Values("x-request-id")
			keeps := slices.Contains(kept, id) || profile == "{}" && (id == strings.ToUpper(uuid) || id == "-"+uuid[1:])
			if len(got) != 1 || (got[0] == id) != keeps || !keeps && len(got[0]) != 36 {
				t.Errorf("%s: x-request-id %q becomes %q", profile, id, got)
			}
			if a.header.Get("x-trace-id") == "" {
				t.Errorf("%s: x-request-id %q: no trace", profile, id)
			}
		}
		if a := r.do(t, port, "GET", "a/x", "x-request-id: one", "x-request-id: two"); len(a.got.Header.Values("x-request-id")) != 1 || len(a.got.Header.Get("x-request-id")) != 36 {
			t.Errorf("%s: two ids become %q", profile, a.got.Header.Values("x-request-id"))
		}
	}
	port := serve("{header_underscores: REFUSE}")
	if a := r.do(t, port, "GET", "a/x", "my_id: 1"); a.status != 400 || a.code(t) != "PK-EDGE-HEADER-NAME" || a.got != nil {
		t.Errorf("REFUSE: %d %s", a.status, a.body)
	}
	if a := r.h2(t, port, ":method", "GET", ":scheme", "http", ":path", "/x", ":authority", "a", "my_id", "1"); a.status != 400 || a.code(t) != "PK-EDGE-HEADER-NAME" {
		t.Errorf("REFUSE by HTTP/2: %d %s", a.status, a.body)
	}
	port = serve("{header_underscores: ALLOW}")
	a := r.do(t, port, "GET", "a/x", "my_id: 1", "ot-baggage-acme-trace_id: 1", "x_forwarded_for: evil", "x-forwarded_for: evil", "X_Forwarded-Proto: evil", "x_request_id: evil", "x_envoy_retry_on: evil",
		"x-penstock_scope: evil", "x_real_ip: evil", "x-original-forwarded_for: evil", "x_http-method-override: evil", "front-end_https: evil", "x-forwarded-client_cert: evil", "x_trace-id: evil")
	for name, values := range a.got.Header {
		if slices.Contains(values, "evil") {
			t.Errorf("ALLOW: %s came through", name)
		}
	}
	if h := a.got.Header; h.Get("my_id") != "1" || h.Get("ot-baggage-acme-trace_id") != "1" {
		t.Errorf("ALLOW: %v", h)
	}
	port = serve("{max_headers: 20, max_headers_kib: 2}")
	if a := r.do(t, port, "GET", "a/x", strings.Split(strings.TrimSpace(distinct(21)), "\r\n")...); a.code(t) != "PK-EDGE-HEADERS-COUNT" {
		t.Errorf("21 headers of 20: %d %s", a.status, a.body)
	}
	if a := r.do(t, port, "GET", "a/x", strings.Split(strings.TrimSpace(distinct(12)), "\r\n")...); a.got == nil {
		t.Errorf("12 headers of 20: %d %s", a.status, a.body)
	}
	if a := r.do(t, port, "GET", "a/x", "x-a: "+strings.Repeat("a", 2048)); a.code(t) != "PK-EDGE-HEADERS-SIZE" {
		t.Errorf("2 KiB: %d %s", a.status, a.body)
	}
}
