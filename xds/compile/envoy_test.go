package compile_test

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"

	"github.com/penstock-gateway/penstock/gateway"
	"github.com/penstock-gateway/penstock/internal/envoytest"
	"github.com/penstock-gateway/penstock/xds"
	"github.com/penstock-gateway/penstock/xds/compile"
)

// TestEnvoy runs every behaviour on one real Envoy: each part applies a state of
// its own and so also is a change of a running proxy.
func TestEnvoy(t *testing.T) {
	r := newRig(t)
	parts := []struct {
		name string
		run  func(*testing.T, *rig)
	}{
		{"Empty", testEmpty},
		{"Routing", testRouting},
		{"Profiles", testProfiles},
		{"Targets", testTargets}, {"Query", testQuery},
		{"Answers", testAnswers}, {"Slow", testSlow},
		{"Edge", testEdge},
		{"Hosts", testHosts},
		{"Ports", testPorts},
		{"Tracing", testTracing}, {"Traceparent", testTraceparent}, {"TraceparentRetried", testTraceparentRetried},
		{"Tracestate", testTracestate}, {"GeneratedTracestate", testGeneratedTracestate}, {"TraceSuite", testTraceSuite}, {"Untraced", testUntraced}, {"PortIsOurs", testPortIsOurs}, {"PortWasShared", testPortWasShared},
		{"JWT", testJWT},
		{"Attacks", testAttacks},
		{"Limits", testLimits},
		{"Callers", testCallers}, {"Quota", testQuota}, {"Ways", testWays}, {"WaysLayouts", testWaysLayouts},
		{"Claims", testClaims},
		{"Tokens", testTokens},
		{"KeySets", testKeySets},
		{"Signatures", testSignatures}, {"Times", testTimes},
		{"Reach", testReach},
		{"Scopes", testScopes},
		{"FallbackHosts", testFallbackHosts}, {"FallbackClosed", testFallbackClosed}, {"FallbackChanges", testFallbackChanges}, {"FallbackLimits", testFallbackLimits},
		{"Churn", testChurn},
		{"Retries", testRetries},
		{"Functions", testFunctions},
		{"HTTPS", testHTTPS}, {"SNI", testSNI}, {"ServerNames", testServerNames},
		{"OnDemand", testOnDemand},
		{"Trees", testTrees},
	}
	ran := 0
	for _, part := range parts {
		if !t.Run(part.name, func(t *testing.T) { ran++; part.run(t, r) }) {
			t.Fatal("stopped: the parts share one Envoy")
		}
	}
	if ran == len(parts) {
		r.allCodes(t)
	}
}

// allCodes: each code of docs/answers.md was an answer of this Envoy, but for those that
// nothing here can bring about: no filter of the chain keeps bodies, Envoy has memory enough,
// and what has no code of its own is not known.
func (r *rig) allCodes(t *testing.T) {
	for _, a := range gateway.Answers() {
		if !r.codes[a.Code] && a != gateway.BodyTooBig && a != gateway.Overloaded && a != gateway.Other {
			t.Errorf("nothing was answered with %s", a.Code)
		}
	}
}

// testTrees: hosts that are laid out as trees answer as those that are lists do.
func testTrees(t *testing.T, r *rig) {
	compile.SetTrees(t, 1)
	r.setEager(0) // a fresh compiler
	defer r.setEager(0)
	t.Run("Routing", func(t *testing.T) { testRouting(t, r) })
	if n := r.trees(t); n == 0 {
		t.Fatal("no host is a tree")
	}
	t.Run("Ports", func(t *testing.T) { testPorts(t, r) })
	t.Run("JWT", func(t *testing.T) { testJWT(t, r) })
	t.Run("Attacks", func(t *testing.T) { testAttacks(t, r) })
	t.Run("Limits", func(t *testing.T) { testLimits(t, r) })
	t.Run("Scopes", func(t *testing.T) { testScopes(t, r) })
	t.Run("Retries", func(t *testing.T) { testRetries(t, r) })
	r.setEager(-1)
	t.Run("OnDemand", func(t *testing.T) { testAttacks(t, r) })
	t.Run("Empty", func(t *testing.T) { testEmpty(t, r) })
}

// trees is the number of hosts that are laid out as trees.
func (r *rig) trees(t *testing.T) (n int) {
	t.Helper()
	for res := range r.last.All(xds.Route) {
		rc := &routev3.RouteConfiguration{}
		if err := res.Body.UnmarshalTo(rc); err != nil {
			t.Fatal(err)
		}
		for _, vh := range rc.GetVirtualHosts() {
			if vh.GetMatcher() != nil {
				n++
			}
		}
	}
	return n
}

const backendUp = `
---
kind: Backend
name: up
static: UPSTREAM
`

// gatewayOn is a gateway with one listener for any host.
const gatewayOn = `
kind: Gateway
name: edge
listeners: [{name: http, address: 127.0.0.1, port: PORT}]
` + backendUp

func (r *rig) serve(t *testing.T, yaml string) int {
	t.Helper()
	port := envoytest.FreePort(t)
	r.apply(t, r.objects(t, yaml, map[string]int{"PORT": port}))
	r.open(t, port)
	return port
}

// testEmpty: a listener without any route answers 404.
func testEmpty(t *testing.T, r *rig) {
	port := r.serve(t, gatewayOn)
	a := r.do(t, port, "GET", "x.test/")
	if a.status != 404 || a.header.Get("x-trace-id") == "" || !strings.Contains(a.body, `"PK-ROUTE-NONE"`) {
		t.Errorf("%+v", a)
	}
}

const routingYAML = `
---
kind: Backend
name: h2
protocol: H2C
static: UPSTREAM
---
kind: Backend
name: named
dns: {hostname: localhost, port: 1}
---
kind: Route
name: all
HOSTS
rules:
- {name: exact, matches: [{path: {exact: /exact}}], forward: {backends: [{backend: up}], prefix_rewrite: /new}}
- {name: prefix, matches: [{path: {prefix: /a}}], forward: {backends: [{backend: up}], prefix_rewrite: /b}}
- {name: root, matches: [{path: {prefix: /strip}}], forward: {backends: [{backend: up}], prefix_rewrite: /}}
- {name: text, matches: [{path: {text_prefix: /te}}], forward: {backends: [{backend: up}], prefix_rewrite: /xx}}
- {name: regex, matches: [{path: {regex: "/r/[0-9]+"}}], forward: {backends: [{backend: up}]}}
- {name: nocase, matches: [{path: {prefix: /case, ignore_case: true}}], forward: {backends: [{backend: up}]}}
- {name: methods, matches: [{path: {exact: /m}, methods: [POST, PUT]}], forward: {backends: [{backend: up}]}}
- name: headers
  matches:
  - path: {exact: /h}
    headers:
    - {name: x-a, value: {exact: one}}
    - {name: x-b, value: {regex: "[0-9]+"}}
    - {name: x-c, value: {present: true}}
    - {name: x-d, value: {present: false}}
    - {name: x-e, value: {exact: bad}, invert: true}
  forward: {backends: [{backend: up}]}
- name: query
  matches:
  - path: {exact: /q}
    query:
    - {name: a, value: {exact: one}}
    - {name: b, value: {prefix: x}}
    - {name: c, value: {present: true}}
    - {name: d, value: {present: false}}
  forward: {backends: [{backend: up}]}
- {name: move, matches: [{path: {exact: /move}}], redirect: {scheme: https, host: other.test, path: /there, port: 8443, status: 308}}
- {name: say, matches: [{path: {exact: /say}}], direct_response: {status: 418, body: "100% short"}}
- {name: host, matches: [{path: {exact: /host}}], forward: {backends: [{backend: up}], host_rewrite: inner.test}}
- {name: weighted, matches: [{path: {exact: /w}}], forward: {backends: [{backend: up, weight: 1}, {backend: named, weight: 0}]}}
- {name: lost, matches: [{path: {prefix: /exact/lost}}], forward: {backends: [{backend: nowhere}]}}
- {name: h2, matches: [{path: {exact: /h2}}], forward: {backends: [{backend: h2}]}}
- name: set
  matches: [{path: {exact: /set}}]
  forward: {backends: [{backend: up}]}
  policies:
    headers:
      request: {set: [{name: x-set, value: "50%"}, {name: x-empty, value: ""}], add: [{name: x-add, value: two}], remove: [x-gone]}
      response: {set: [{name: x-res, value: "%REQ(x-set)%"}], remove: [x-from-upstream]}
policies:
  headers: {request: {set: [{name: x-set, value: outer}], remove: [x-add]}}
`

var routingCases = []struct {
	request string // method url
	header  []string
	want    string // path upstream, or status
}{
	{request: "GET x.test/exact?q=1", want: "/new?q=1"},
	{request: "GET x.test/exact/", want: "404"},
	{request: "GET x.test/a", want: "/b"},
	{request: "POST x.test/a/c", want: "/b/c"},
	{request: "GET x.test/ab", want: "404"},
	{request: "GET x.test/strip", want: "/"},
	{request: "GET x.test/strip/y/z?k", want: "/y/z?k"},
	{request: "GET x.test/stripe", want: "404"},
	{request: "GET x.test/text", want: "/xxxt"},
	{request: "GET x.test/r/12", want: "/r/12"},
	{request: "GET x.test/r/12?x", want: "/r/12?x"},
	{request: "GET x.test/r/12x", want: "404"},
	{request: "GET x.test/CaSe/q", want: "/CaSe/q"},
	{request: "PUT x.test/m", want: "/m"},
	{request: "POST x.test/m", want: "/m"},
	{request: "GET x.test/m", want: "404"},
	{request: "GET x.test/h", header: []string{"x-a: one", "x-b: 12", "x-c: "}, want: "/h"},
	{request: "GET x.test/h", header: []string{"x-a: one", "x-b: 12", "x-c: c", "x-e: good"}, want: "/h"},
	{request: "GET x.test/h", header: []string{"x-a: one", "x-b: 12", "x-c: c", "x-e: bad"}, want: "404"},
	{request: "GET x.test/h", header: []string{"x-a: one", "x-b: 1x", "x-c: c"}, want: "404"},
	{request: "GET x.test/h", header: []string{"x-a: one", "x-b: 12", "x-c: c", "x-d: d"}, want: "404"},
	{request: "GET x.test/q?a=one&b=xy&c=", want: "/q?a=one&b=xy&c="},
	{request: "GET x.test/q?a=one&b=xy&c=1&d=1", want: "404"},
	{request: "GET x.test/q?a=one&b=xy", want: "404"},
	{request: "GET x.test/w", want: "/w"},
	{request: "GET x.test/h2", want: "/h2"},
	{request: "GET X.Test:80/exact", want: "/new"},
	{request: "GET x.test./exact", want: "/new"},
}

func testRouting(t *testing.T, r *rig) {
	for layout, names := range map[string][]string{"table": nil, "scopes": {"x.test"}, "wildcard": {"*.test"}} {
		t.Run(layout, func(t *testing.T) { routingIn(t, r, names) })
	}
}

func routingIn(t *testing.T, r *rig, names []string) {
	port := r.serve(t, gatewayOn+hosts(routingYAML, names...))
	for _, c := range routingCases {
		method, url, _ := strings.Cut(c.request, " ")
		a := r.do(t, port, method, url, c.header...)
		got := fmt.Sprint(a.status)
		if a.status == 200 && a.got != nil {
			got = a.got.Path
		}
		if got != c.want {
			t.Errorf("%s %v: got %s, want %s", c.request, c.header, got, c.want)
		}
		if a.header.Get("x-trace-id") == "" {
			t.Errorf("%s: no x-trace-id", c.request)
		}
	}
	routingAnswers(t, r, port)
}

// routingAnswers are those of rules that answer or change something.
func routingAnswers(t *testing.T, r *rig, port int) {
	t.Helper()
	a := r.do(t, port, "GET", "x.test/move?k=v")
	if a.status != 308 || a.header.Get("location") != "https://other.test:8443/there?k=v" {
		t.Errorf("redirect: %d %s", a.status, a.header.Get("location"))
	}
	if a = r.do(t, port, "GET", "x.test/say"); a.status != 418 || a.body != "100% short" {
		t.Errorf("direct response: %d %q", a.status, a.body)
	}
	if a = r.do(t, port, "GET", "x.test/exact/lost/x"); a.status != 503 || !strings.Contains(a.body, "projects/default/routes/all (lost)") {
		t.Errorf("a rule without a backend: %d %q", a.status, a.body)
	}
	if a = r.do(t, port, "GET", "x.test/host"); a.got.Host != "inner.test" || a.got.Header.Get("x-forwarded-host") != "x.test" {
		t.Errorf("host rewrite: %+v", a.got)
	}
	if a = r.do(t, port, "GET", "x.test/h2"); a.header.Get("x-up-proto") != "HTTP/2.0" {
		t.Errorf("h2c backend got %s", a.header.Get("x-up-proto"))
	}
	a = r.do(t, port, "GET", "x.test/set", "x-gone: 1", "x-add: client", "x-set: client")
	h := a.got.Header
	if h.Get("x-set") != "50%" || h.Get("x-gone") != "" || !slices.Equal(h.Values("x-add"), []string{"two"}) || len(h.Values("x-empty")) != 1 {
		t.Errorf("request headers: %v", h)
	}
	if a.header.Get("x-res") != "%REQ(x-set)%" || a.header.Get("x-from-upstream") != "" {
		t.Errorf("response headers: %v", a.header)
	}
}

// testEdge: the edge profile and what is refused on every listener.
func testEdge(t *testing.T, r *rig) {
	port := r.serve(t, gatewayOn+`
---
kind: Route
name: all
rules: [{name: all, forward: {backends: [{backend: up}]}}]
`)
	for _, c := range []struct {
		name, request string
		status        int
		path          string // upstream
	}{
		{"plain", "GET /x HTTP/1.1\r\nHost: a\r\n\r\n", 200, "/x"},
		{"matrix parameter", "GET /;x=1/admin HTTP/1.1\r\nHost: a\r\n\r\n", 400, ""},
		{"semicolon in the query", "GET /x?a;b HTTP/1.1\r\nHost: a\r\n\r\n", 200, "/x?a;b"},
		{"broken escape", "GET /x%zz HTTP/1.1\r\nHost: a\r\n\r\n", 400, ""},
		{"cut escape", "GET /x%2 HTTP/1.1\r\nHost: a\r\n\r\n", 400, ""},
		{"percent at the end", "GET /x% HTTP/1.1\r\nHost: a\r\n\r\n", 400, ""},
		{"good escape", "GET /x%20y%41 HTTP/1.1\r\nHost: a\r\n\r\n", 200, "/x%20yA"},
		{"escaped semicolon", "GET /x%3By HTTP/1.1\r\nHost: a\r\n\r\n", 400, ""},
		{"escaped control character", "GET /x%0ay HTTP/1.1\r\nHost: a\r\n\r\n", 400, ""},
		{"escaped unit separator", "GET /x%1F HTTP/1.1\r\nHost: a\r\n\r\n", 400, ""},
		{"escaped DEL", "GET /x%7fy HTTP/1.1\r\nHost: a\r\n\r\n", 400, ""},
		{"overlong slash", "GET /x%c0%afy HTTP/1.1\r\nHost: a\r\n\r\n", 400, ""},
		{"overlong slash in three", "GET /x%E0%80%AFy HTTP/1.1\r\nHost: a\r\n\r\n", 400, ""},
		{"good UTF-8", "GET /x%c3%a9%E2%82%AC%f0%9f%98%80 HTTP/1.1\r\nHost: a\r\n\r\n", 200, "/x%c3%a9%E2%82%AC%f0%9f%98%80"},
		{"Latin-1", "GET /%C0%E0%e9 HTTP/1.1\r\nHost: a\r\n\r\n", 200, "/%C0%E0%e9"},
		{"escaped NUL", "GET /x%00 HTTP/1.1\r\nHost: a\r\n\r\n", 400, ""},
		{"escaped slash", "GET /x%2fy HTTP/1.1\r\nHost: a\r\n\r\n", 400, ""},
		{"escaped backslash", "GET /x%5cy HTTP/1.1\r\nHost: a\r\n\r\n", 400, ""},
		{"merged slashes", "GET //x//y HTTP/1.1\r\nHost: a\r\n\r\n", 200, "/x/y"},
		{"dot segments", "GET /x/../y/./z HTTP/1.1\r\nHost: a\r\n\r\n", 200, "/y/z"},
		{"fragment", "GET /x#/../y HTTP/1.1\r\nHost: a\r\n\r\n", 400, ""},
		{"two hosts", "GET /x HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400, ""},
		{"no host", "GET /x HTTP/1.1\r\n\r\n", 400, ""},
		{"underscore header", "GET /x HTTP/1.1\r\nHost: a\r\nx_user: 1\r\n\r\n", 200, "/x"},
		{"TRACE", "TRACE /x HTTP/1.1\r\nHost: a\r\n\r\n", 405, ""},
		{"CONNECT", "CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\n\r\n", 405, ""},
		{"lower-case method", "delete /x HTTP/1.1\r\nHost: a\r\n\r\n", 400, ""},
		{"HTTP/1.0", "GET /x HTTP/1.0\r\nHost: a\r\n\r\n", 426, ""},
		{"length and chunks", "POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400, ""},
		{"two lengths", "POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nContent-Length: 1\r\n\r\n", 400, ""},
		{"many headers", "GET /x HTTP/1.1\r\nHost: a\r\n" + distinct(101) + "\r\n", 431, ""},
		{"h2c upgrade", "GET /x HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n\r\n", 200, "/x"},
	} {
		a := r.raw(t, port, c.request)
		got := ""
		if a.got != nil {
			got = a.got.Path
		}
		if a.status != c.status || got != c.path {
			t.Errorf("%s: status %d upstream %q, want %d %q", c.name, a.status, got, c.status, c.path)
		}
	}
	a := r.do(t, port, "GET", "a/x",
		"x-penstock-scope: evil", "X-Penstock-Foo: 1", "x-envoy-retry-on: 5xx", "x-envoy-original-path: /y", "x-envoy-upstream-rq-timeout-ms: 1",
		"forwarded: for=1.2.3.4", "x-forwarded-host: evil", "x-forwarded-prefix: /evil", "x-forwarded-uri: /evil", "x-real-ip: 1.2.3.4",
		"x-http-method-override: DELETE", "x-original-url: /evil", "x-rewrite-url: /evil", "x-forwarded-client-cert: evil",
		"true-client-ip: 1.2.3.4", "x-client-ip: 1.2.3.4", "cf-connecting-ip: 1.2.3.4", "x-cluster-client-ip: 1.2.3.4", "x-host: evil",
		"x-forwarded-scheme: https", "x-forwarded-ssl: on", "front-end-https: on", "x-original-forwarded-for: 1.2.3.4",
		"x-trace-id: 0af7651916cd43dd8448eb211c80319c", "x-cold-start: 1", "proxy: http://evil",
		"remote-user: root", "x-remote-user: root", "x-remote-group: system:masters", "x-forwarded-user: root", "x-forwarded-email: a@b", "x-forwarded-groups: admin",
		"x-forwarded-preferred-username: root", "x-forwarded-access-token: t", "x-ms-client-principal: e30=", "x-ms-client-principal-id: 1",
		"x-ms-client-principal-name: root", "x-ms-client-principal-idp: aad", "x-goog-authenticated-user-email: accounts.google.com:a@b",
		"x-goog-authenticated-user-id: 1", "x-amzn-oidc-identity: root", "x-amzn-oidc-accesstoken: t", "x_keep: no", "X_Forwarded_For: 1.2.3.4",
		"x-forwarded-proto: https", "x-request-id: mi.ne", "x-keep: yes", "via: 1.1 front", "b3: 0", "x-b3-flags: 1", "x-amzn-trace-id: Root=1-0-0", "grpc-timeout: 1m")
	// A client may continue a trace of its own in other forms, too, and say by which
	// proxies it comes and how long it waits: nobody here believes or obeys it.
	want := []string{"B3", "Grpc-Timeout", "Traceparent", "Via", "X-Amzn-Trace-Id", "X-B3-Flags", "X-Envoy-External-Address", "X-Forwarded-For", "X-Forwarded-Proto", "X-Keep", "X-Request-Id"}
	var names []string
	for name := range a.got.Header {
		names = append(names, name)
	}
	slices.Sort(names)
	if !slices.Equal(names, want) {
		t.Errorf("headers that reach the upstream: %v, want %v", names, want)
	}
	if h := a.got.Header; h.Get("x-forwarded-proto") != "http" || h.Get("x-request-id") == "mi.ne" || len(h.Get("x-request-id")) != 36 {
		t.Errorf("edge headers: %v", h)
	}
	for name := range a.header {
		if strings.HasPrefix(name, "X-Envoy") {
			t.Errorf("response header %s", name)
		}
	}
	if len(a.header.Values("x-from-upstream")) != 1 {
		t.Errorf("response headers: %v", a.header)
	}
	for _, method := range []string{"delete", "Delete", "get", "trace", "connect", "options", "G3T"} {
		before := r.upstream.count()
		if got := r.send2(t, port, method, "a", "/x"); got != 405 || r.upstream.count() != before {
			t.Errorf("method %s by HTTP/2: %d, upstream %v", method, got, r.upstream.count() != before)
		}
	}
	for _, method := range []string{"DELETE", "PROPFIND", "M-SEARCH", "X_Y"} {
		if got := r.send2(t, port, method, "a", "/x"); got != 200 {
			t.Errorf("method %s by HTTP/2: %d", method, got)
		}
	}
	// A WebSocket goes through.
	a = r.do(t, port, "GET", "a/x", "Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==")
	if a.got == nil || a.got.Header.Get("upgrade") != "websocket" {
		t.Errorf("WebSocket: %+v", a)
	}
}

// send2 sends a request without a body by HTTP/2 and returns the status.
func (r *rig) send2(t *testing.T, port int, method, host, path string) int {
	t.Helper()
	p := new(http.Protocols)
	p.SetUnencryptedHTTP2(true)
	tr := &http.Transport{Protocols: p}
	defer tr.CloseIdleConnections()
	req, err := http.NewRequestWithContext(t.Context(), method, fmt.Sprintf("http://127.0.0.1:%d%s", port, path), nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Host = host
	res, err := tr.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	return res.StatusCode
}

// testPorts: the port of the Host chooses nothing, and reaches backends and
// redirects.
func testPorts(t *testing.T, r *rig) {
	const rules = `
---
kind: Route
name: all
HOSTS
rules:
- {name: up, matches: [{path: {prefix: /up}}], forward: {backends: [{backend: up}]}}
- {name: move, matches: [{path: {exact: /move}}], redirect: {path: /z}}
- {name: secure, matches: [{path: {exact: /secure}}], redirect: {scheme: https}}
- {name: away, matches: [{path: {exact: /away}}], redirect: {host: other.test}}
- {name: port, matches: [{path: {exact: /port}}], redirect: {port: 81}}
- {name: plain, matches: [{path: {exact: /plain}}], redirect: {port: 80, path: /z}}
- {name: named, matches: [{path: {exact: /named}}], redirect: {scheme: https, port: 443}}
- {name: other, matches: [{path: {exact: /other}}], redirect: {scheme: https, port: 8443}}
- {name: away-named, matches: [{path: {exact: /away-named}}], redirect: {scheme: https, host: other.test, port: 443}}
- {name: exact, matches: [{path: {exact: /exact}, headers: [{name: host, value: {exact: a.x.test}}]}], direct_response: {status: 200}}
- {name: suffix, matches: [{path: {exact: /suffix}, headers: [{name: host, value: {suffix: .test}}]}], direct_response: {status: 200}}
- {name: regex, matches: [{path: {exact: /regex}, headers: [{name: host, value: {regex: "a[.]x|A[.]X[.]TEST|a[.]x[.]test"}}]}], direct_response: {status: 200}}
- {name: not, matches: [{path: {exact: /not}, headers: [{name: host, value: {exact: b.x.test}, invert: true}]}], direct_response: {status: 200}}
`
	for layout, names := range map[string][]string{"table": nil, "scopes": {"a.x.test", "127.0.0.1"}, "wildcard": {"*.x.test", "127.0.0.1"}} {
		port := r.serve(t, gatewayOn+hosts(rules, names...))
		self := fmt.Sprintf("127.0.0.1:%d", port)
		for _, host := range []string{"a.x.test", "a.x.test:8080", "a.x.test:80", "a.x.test:65535", self} {
			if a := r.do(t, port, "GET", host+"/up"); a.status != 200 || a.got.Host != host {
				t.Errorf("%s: Host %s: %d %+v", layout, host, a.status, a.got)
			}
			name, _, _ := strings.Cut(host, ":")
			for path, want := range map[string]string{
				"/move": "http://" + host + "/z", "/secure": "https://" + name + "/secure", "/away": "http://other.test/away", "/port": "http://" + name + ":81/port",
				"/plain": "http://" + name + "/z", "/named": "https://" + name + "/named", "/named?u=http://a:80/": "https://" + name + "/named?u=http://a:80/",
				"/other": "https://" + name + ":8443/other", "/away-named": "https://other.test/away-named",
			} {
				if a := r.do(t, port, "GET", host+path); a.status != 302 || a.header.Get("location") != want {
					t.Errorf("%s: Host %s %s: %d %s, want %s", layout, host, path, a.status, a.header.Get("location"), want)
				}
			}
		}
		for _, host := range []string{"A.X.TEST:8080", "a.x.test.:8080", "A.x.test."} {
			if a := r.do(t, port, "GET", host+"/up"); a.status != 200 {
				t.Errorf("%s: Host %s: %d", layout, host, a.status)
			}
			if a := r.do(t, port, "GET", host+"/secure"); !strings.EqualFold(a.header.Get("location"), "https://a.x.test/secure") {
				t.Errorf("%s: Host %s: Location %s", layout, host, a.header.Get("location"))
			}
		}
		for _, host := range []string{"a.x.test", "a.x.test:8080"} {
			for path, want := range map[string]int{"/exact": 200, "/suffix": 200, "/regex": 200, "/not": 200} {
				if a := r.do(t, port, "GET", host+path); a.status != want {
					t.Errorf("%s: Host %s %s: %d", layout, host, path, a.status)
				}
			}
		}
		for _, host := range []string{"", ":8080", "a.x.test:", "a.x.test:80a", "a.x.test:1:2", "a.x.test:123456", "a.x.test:80.y.test", "a.x.test:80.x.test:", "me@a.x.test", "::1", "[::1", "[::1]80", "[a.x.test]", "a,b", ".x.test:8080"} {
			if a := r.do(t, port, "GET", host+"/up"); a.status != 400 || a.got != nil {
				t.Errorf("%s: Host %s: %d %+v", layout, host, a.status, a.got)
			}
		}
		if layout == "table" {
			for _, host := range []string{"[::1]:8080", "[::1]"} {
				if a := r.do(t, port, "GET", host+"/up"); a.status != 200 || a.got.Host != host {
					t.Errorf("%s: Host %s: %d %+v", layout, host, a.status, a.got)
				}
			}
			continue
		}
		for _, host := range []string{"[::1]:8080", "[::1]", "y.test:8080", "x.test:8080"} {
			if a := r.do(t, port, "GET", host+"/up"); a.status != 404 || a.got != nil {
				t.Errorf("%s: Host %s: %d %+v", layout, host, a.status, a.got)
			}
		}
	}
}

// testTracing: every request has a trace, whatever its client says.
func testTracing(t *testing.T, r *rig) {
	port := r.serve(t, gatewayOn+`
---
kind: Route
name: all
rules: [{name: all, matches: [{path: {prefix: /x}}], forward: {backends: [{backend: up}]}}]
`)
	const good = "0af7651916cd43dd8448eb211c80319c"
	for _, c := range []struct {
		name   string
		header []string
		keeps  bool
	}{
		{"none", nil, false},
		{"sampled", []string{"traceparent: 00-" + good + "-b7ad6b7169203331-01"}, true},
		{"not sampled", []string{"traceparent: 00-" + good + "-b7ad6b7169203331-00"}, true},
		{"garbage", []string{"traceparent: bad"}, false},
		{"empty", []string{"traceparent: "}, false},
		{"capital letters", []string{"traceparent: 00-" + strings.ToUpper(good) + "-b7ad6b7169203331-01"}, false},
		{"short", []string{"traceparent: 00-" + good[1:] + "-b7ad6b7169203331-01"}, false},
		{"shifted", []string{"traceparent: 00-" + good[1:] + "-b7ad6b71692033310-01"}, false},
		{"zero trace", []string{"traceparent: 00-00000000000000000000000000000000-b7ad6b7169203331-01"}, false},
		{"zero span", []string{"traceparent: 00-" + good + "-0000000000000000-01"}, false},
		{"version ff", []string{"traceparent: ff-" + good + "-b7ad6b7169203331-01"}, false},
		{"twice", []string{"traceparent: 00-" + good + "-b7ad6b7169203331-01", "traceparent: 00-" + good + "-b7ad6b7169203331-01"}, false},
	} {
		a := r.do(t, port, "GET", "x.test/x", c.header...)
		id := a.header.Get("x-trace-id")
		if (id == good) != c.keeps || len(id) != 32 {
			t.Errorf("%s: trace id %q", c.name, id)
			continue
		}
		flags := "-03" // a trace id of ours is random
		if c.keeps {
			flags = "-01"
		}
		if got := a.got.Header.Get("traceparent"); !strings.HasPrefix(got, "00-"+id+"-") || !strings.HasSuffix(got, flags) {
			t.Errorf("%s: the upstream got traceparent %q", c.name, got)
		}
		if c.keeps {
			continue
		}
		spans := r.spans.trace(t, id, 2)
		if got := spans[0].GetName(); got != "projects/default/routes/all/all/0" {
			t.Errorf("%s: span %q", c.name, got)
		}
		tagged := false
		for _, kv := range spans[0].GetAttributes() {
			tagged = tagged || kv.GetKey() == "penstock.route" && kv.GetValue().GetStringValue() == "projects/default/routes/all/all/0"
		}
		if !tagged {
			t.Errorf("%s: no penstock.route in %v", c.name, spans[0].GetAttributes())
		}
	}
	a := r.do(t, port, "GET", "x.test/nope")
	r.spans.trace(t, a.header.Get("x-trace-id"), 1)
}
