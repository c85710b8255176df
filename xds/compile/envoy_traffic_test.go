package compile_test

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/penstock-gateway/penstock/internal/envoytest"
	"github.com/penstock-gateway/penstock/internal/pki"
	"github.com/penstock-gateway/penstock/xds"
	"github.com/penstock-gateway/penstock/xds/compile"
)

const limitsYAML = `
---
kind: Secret
name: keys
jwks: JWKS
---
kind: Route
name: limited
HOSTS
rules:
- name: one
  matches: [{path: {prefix: /one}}]
  forward: {backends: [{backend: up}]}
  policies: {rate_limit: {limits: [{name: c, requests: 5, window: 60s}, {name: a, requests: 3, window: 1s, key: ADDRESS, algorithm: FIXED_WINDOW}, {name: s, requests: 9, window: 1h, burst: 2, key: SHARED, shadow: true}]}}
- name: closed
  matches: [{path: {prefix: /closed}}]
  forward: {backends: [{backend: up}]}
  policies: {rate_limit: {limits: [{name: c, requests: 1, window: 60s, on_failure: CLOSED}]}}
- {name: none, matches: [{path: {prefix: /none}}], forward: {backends: [{backend: up}]}}
policies: {authentication: {jwt: {issuer: "https://issuer.test", audiences: [app], jwks_secret: keys, optional: true}}}
---
kind: Route
name: plain
HOSTS
rules:
- name: plain
  matches: [{path: {prefix: /plain}}]
  forward: {backends: [{backend: up}]}
  policies: {rate_limit: {limits: [{name: c, requests: 5, window: 60s}]}}
`

func testLimits(t *testing.T, r *rig) {
	const id = "projects/default/routes/"
	for _, layout := range []string{"", "x.test"} {
		names := []string{layout}
		if layout == "" {
			names = nil
		}
		port := r.serve(t, gatewayOn+hosts(limitsYAML, names...))
		ok := "Authorization: Bearer " + r.token(t, nil)
		address := "masked_remote_address="
		r.limiter.take()
		check := func(what, host, path string, want []string, header ...string) {
			t.Helper()
			a := r.do(t, port, "GET", host+path, header...)
			if a.status != 200 {
				t.Errorf("%s: %d %s", what, a.status, a.body)
			}
			calls := r.limiter.take()
			if want == nil {
				if len(calls) != 0 {
					t.Errorf("%s: the limiter was asked %v", what, calls)
				}
				return
			}
			if len(calls) != 1 || len(calls[0]) != len(want)+1 || calls[0][0] != "penstock" {
				t.Fatalf("%s: calls %q", what, calls)
			}
			for i, d := range calls[0][1:] {
				if !strings.HasPrefix(d, want[i]) || (strings.HasSuffix(want[i], address) && !strings.HasSuffix(d, "/32")) {
					t.Errorf("%s: descriptor %q, want %q", what, d, want[i])
				}
			}
		}
		limit := func(spec string) string { return "limit=" + spec }
		c, ad, sh := limit("v1|5|60s|0|gcra|consumer|open|-|c|"+id+"limited/one#c"), limit("v1|3|1s|0|fixed|address|open|-|a|"+id+"limited/one#a"), limit("v1|9|3600s|2|gcra|shared|open|shadow|s|"+id+"limited/one#s")
		who := ",iss=https://issuer.test,sub=alice"
		for _, host := range []string{"x.test", "X.Test"} {
			check("a token", host, "/one", []string{c + who + "," + address, ad + "," + address, sh}, ok)
			check("no token", host, "/one", []string{c + "," + address, ad + "," + address, sh})
			check("no authentication", host, "/plain", []string{limit("v1|5|60s|0|gcra|consumer|open|-|c|"+id+"plain/plain#c") + "," + address}, ok)
			check("no limit", host, "/none", nil, ok)
			check("closed", host, "/closed", []string{limit("v1|1|60s|0|gcra|consumer|closed|-|c|"+id+"limited/closed#c") + "," + address})
			r.limiter.setOver(true)
			if a := r.do(t, port, "GET", host+"/one"); a.status != 429 || a.got != nil || a.header.Get("x-trace-id") == "" || a.header.Get("x-envoy-ratelimited") != "" {
				t.Errorf("over the limit: %d %v", a.status, a.header)
			}
			if a := r.do(t, port, "GET", host+"/one", "Authorization: Bearer bad"); a.status != 401 {
				t.Errorf("a bad token: %d", a.status)
			}
			r.limiter.setOver(false)
			if n := len(r.limiter.take()); n != 1 {
				t.Errorf("%d calls, want 1: a refused token takes nothing", n)
			}
		}
		r.limiter.setBroken(true)
		if a := r.do(t, port, "GET", "x.test/one"); a.status != 200 {
			t.Errorf("open without a limiter: %d", a.status)
		}
		if a := r.do(t, port, "GET", "x.test/closed"); a.status != 503 || a.got != nil {
			t.Errorf("closed without a limiter: %d", a.status)
		}
		r.limiter.setBroken(false)
	}
}

// testScopes: the hosts of two listeners do not mix, and every host is found.
func testScopes(t *testing.T, r *rig) {
	one, two := envoytest.FreePort(t), envoytest.FreePort(t)
	answer := func(name, host string) string {
		return fmt.Sprintf("\n---\nkind: Route\nname: %s\ngateways: [%s]\nhostnames: [%q]\nrules: [{name: all, direct_response: {status: 200, body: %s}}]\n", name, strings.Split(name, "-")[0], host, name)
	}
	r.apply(t, r.objects(t, `
kind: Gateway
name: edge
listeners: [{name: http, address: 127.0.0.1, port: ONE}]
---
kind: Gateway
name: inner
listeners: [{name: http, address: 127.0.0.1, port: TWO}]
`+answer("edge-a", "a.test")+answer("edge-wild", "*.a.test")+answer("edge-b", "b.a.test")+answer("edge-deep", "*.c.a.test")+answer("edge-default", "default")+answer("inner-a", "a.test")+answer("inner-c", "c.test"), map[string]int{"ONE": one, "TWO": two}))
	r.open(t, one)
	r.open(t, two)
	for _, c := range []struct {
		port int
		host string
		want string
	}{
		{one, "a.test", "edge-a"}, {one, "A.TEST", "edge-a"}, {one, "x.a.test", "edge-wild"}, {one, "x.y.A.test", "edge-wild"},
		{one, "b.a.test", "edge-b"}, {one, "B.a.test:81", "edge-b"}, {one, "b.a.test:81", "edge-b"}, {one, "x.a.test:81", "edge-wild"}, {one, "X.y.a.test:81", "edge-wild"}, {one, "default:81", "edge-default"}, {one, "c.test:81", "404"}, {one, "*.a.test", "400"}, {one, "x.c.a.test", "edge-deep"}, {one, "c.a.test", "edge-wild"},
		{one, "default", "edge-default"}, {one, "c.test", "404"}, {one, "-", "404"}, {one, "a.testx", "404"}, {one, "NOBODY.test", "404"}, {one, ".a.test", "400"},
		{two, "a.test", "inner-a"}, {two, "c.test", "inner-c"}, {two, "x.a.test", "404"},
	} {
		a := r.do(t, c.port, "GET", c.host+"/")
		got := a.body
		if a.status != 200 {
			got = fmt.Sprint(a.status)
		}
		if got != c.want {
			t.Errorf("port %d host %s: %s, want %s", c.port, c.host, got, c.want)
		}
		if got == "404" && !strings.Contains(a.body, `"PK-ROUTE-NONE"`) {
			t.Errorf("port %d host %s: %q %v", c.port, c.host, a.body, a.header)
		}
	}
}

// testRetries: idempotent requests survive an endpoint that resets, the others are
// never sent twice, and what an instance refused before any work is always retried.
func testRetries(t *testing.T, r *rig) {
	var resets, refusals, served atomic.Int64
	endpoint := func(h http.HandlerFunc) string {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		s := &http.Server{Handler: h}
		go func() { _ = s.Serve(l) }()
		t.Cleanup(func() { s.Close() })
		return fmt.Sprintf("{address: 127.0.0.1, port: %d, labels: {kind: KIND}}", l.Addr().(*net.TCPAddr).Port)
	}
	resetting := func(w http.ResponseWriter, req *http.Request) {
		_, _ = io.Copy(io.Discard, req.Body)
		resets.Add(1)
		c, _, err := w.(http.Hijacker).Hijack()
		if err == nil {
			_ = c.(*net.TCPConn).SetLinger(0)
			c.Close()
		}
	}
	reset, resetToo := endpoint(resetting), endpoint(resetting)
	refuse := endpoint(func(w http.ResponseWriter, req *http.Request) {
		refusals.Add(1)
		w.Header().Set("x-penstock-refused", "busy")
		w.Header().Set("x-from-upstream", "yes")
		w.WriteHeader(503)
	})
	good := endpoint(func(w http.ResponseWriter, req *http.Request) {
		served.Add(1)
		fmt.Fprint(w, "served")
	})
	kind := func(e, k string) string { return strings.Replace(e, "KIND", k, 1) }
	instance := func(e string) (out compile.Endpoint) {
		if _, err := fmt.Sscanf(e, "{address: 127.0.0.1, port: %d,", &out.Port); err != nil {
			t.Fatal(err)
		}
		out.Address = "127.0.0.1"
		return out
	}
	const refusing, idle = "projects/default/functions/refusing", "projects/default/functions/idle"
	r.instances[refusing], r.instances[idle] = []compile.Endpoint{instance(refuse), instance(good)}, []compile.Endpoint{instance(refuse)}
	defer func() { delete(r.instances, refusing); delete(r.instances, idle) }()
	port := r.serve(t, gatewayOn+`
---
kind: Function
name: refusing
server: {command: [./f]}
source: f
---
kind: Function
name: idle
server: {command: [./f]}
source: f
---
kind: Backend
name: resetting
load_balancing: ROUND_ROBIN
static: {endpoints: [`+kind(reset, "bad")+`, `+kind(good, "good")+`, `+kind(resetToo, "bad")+`]}
subsets: [{name: bad, labels: {kind: bad}}]
---
kind: Backend
name: refusing
load_balancing: ROUND_ROBIN
static: {endpoints: [`+kind(refuse, "bad")+`, `+kind(good, "good")+`]}
---
kind: Route
name: all
rules:
- {name: reset, matches: [{path: {prefix: /reset}}], forward: {backends: [{backend: resetting}]}}
- {name: refuse, matches: [{path: {prefix: /refuse}}], forward: {backends: [{backend: functions/refusing}]}}
- {name: plain, matches: [{path: {prefix: /plain}}], forward: {backends: [{backend: refusing}]}}
- {name: mixed, matches: [{path: {prefix: /mixed}}], forward: {backends: [{backend: refusing, weight: 1}, {backend: functions/idle, weight: 1}]}}
- {name: bad, matches: [{path: {prefix: /bad}}], forward: {backends: [{backend: resetting, subset: bad}]}}
- {name: off, matches: [{path: {prefix: /off}}], forward: {backends: [{backend: refusing}]}, policies: {retry: {idempotent: {attempts: 0}, other: {attempts: 0}}}}
- {name: careful, matches: [{path: {prefix: /careful}}], forward: {backends: [{backend: resetting, subset: bad}]}, policies: {retry: {idempotent: {on: [CONNECT_FAILURE]}, other: {on: [CONNECT_FAILURE]}}}}
- {name: codes-only, matches: [{path: {prefix: /codes-only}}], forward: {backends: [{backend: resetting, subset: bad}]}, policies: {retry: {idempotent: {on: [STATUS_CODES], status_codes: [503, 504]}}}}
- {name: codes, matches: [{path: {prefix: /codes}}], forward: {backends: [{backend: refusing}]}, policies: {retry: {idempotent: {on: [STATUS_CODES], status_codes: [503]}}}}
- {name: never, matches: [{path: {prefix: /never}}], forward: {backends: [{backend: resetting, subset: bad}]}, policies: {retry: {idempotent: {attempts: 0}, other: {attempts: 0}}}}
- {name: bold, matches: [{path: {prefix: /bold}}], forward: {backends: [{backend: resetting, subset: bad}]}, policies: {retry: {idempotent: {attempts: 4}, other: {attempts: 1, on: [RESET]}}}}
- {name: slow, matches: [{path: {prefix: /slow}}], forward: {backends: [{backend: hanging}]}, policies: {timeout: {request: 0.2s}}}
---
kind: Backend
name: hanging
static: {endpoints: [`+kind(endpoint(func(w http.ResponseWriter, req *http.Request) { <-req.Context().Done() }), "slow")+`]}
`)
	retryAnswers(t, r, port, &resets, &refusals)
}

func retryAnswers(t *testing.T, r *rig, port int, resets, refusals *atomic.Int64) {
	t.Helper()
	for _, method := range []string{"GET", "PUT", "DELETE"} {
		for range 6 {
			if a := r.do(t, port, method, "x.test/reset", "Content-Length: 0"); a.status != 200 {
				t.Errorf("%s with a resetting endpoint: %d %s", method, a.status, a.body)
			}
		}
	}
	if resets.Load() == 0 {
		t.Error("no request came to the resetting endpoint")
	}
	for _, method := range []string{"GET", "POST", "PATCH"} {
		for range 6 {
			a := r.do(t, port, method, "x.test/refuse", "Content-Length: 0")
			if a.status != 200 || a.header.Get("x-penstock-refused") != "" {
				t.Errorf("%s with a refusing instance: %d %v", method, a.status, a.header)
			}
		}
	}
	if refusals.Load() == 0 {
		t.Error("no request came to the refusing instance")
	}
	refusals.Store(0)
	for range 6 {
		if a := r.do(t, port, "GET", "x.test/codes"); a.status != 200 {
			t.Errorf("retries on a status code alone: %d", a.status)
		}
	}
	if refusals.Load() == 0 {
		t.Error("no request with retries on a status code came to the refusing endpoint")
	}
	// What is not a function may have done its work: nothing is sent twice.
	for _, path := range []string{"/plain", "/mixed"} {
		refusals.Store(0)
		answers := 0
		for range 8 {
			if a := r.do(t, port, "POST", "x.test"+path, "Content-Length: 0"); a.status == 503 && a.header.Get("x-penstock-refused") == "" {
				answers++
			}
		}
		if answers == 0 || answers != int(refusals.Load()) {
			t.Errorf("%s: %d refusals of a plain backend, %d answers 503", path, refusals.Load(), answers)
		}
	}
	refusals.Store(0)
	refused := 0
	for range 4 {
		a := r.do(t, port, "GET", "x.test/off")
		if a.status == 503 {
			refused++
		}
		if a.header.Get("x-penstock-refused") != "" {
			t.Error("x-penstock-refused reached the client")
		}
	}
	if refused != int(refusals.Load()) || refused == 0 {
		t.Errorf("retries off: %d refusals, %d answers 503", refusals.Load(), refused)
	}
	retryTries(t, r, port, resets)
	before := resets.Load()
	if a := r.do(t, port, "POST", "x.test/bad", "Content-Length: 0"); a.status != 503 {
		t.Errorf("POST to a resetting endpoint: %d", a.status)
	}
	if n := resets.Load() - before; n != 1 {
		t.Errorf("a POST was sent %d times", n)
	}
	if a := r.do(t, port, "GET", "x.test/slow"); a.status != 504 {
		t.Errorf("request timeout: %d", a.status)
	}
}

// testFunctions: instances come and go without a change of anything else.
func testFunctions(t *testing.T, r *rig) {
	const fn = "projects/default/functions/f"
	port := r.serve(t, gatewayOn+`
---
kind: Function
name: f
server: {command: [./f]}
source: f
---
kind: Route
name: all
rules: [{name: all, forward: {backends: [{backend: functions/f}]}}]
`)
	if a := r.do(t, port, "GET", "x.test/"); a.status != 503 {
		t.Errorf("without instances: %d", a.status)
	}
	r.instances[fn] = []compile.Endpoint{r.upstream.endpoint}
	r.update(t)
	poll(t, "the instance to serve", func() bool { return r.do(t, port, "GET", "x.test/").status == 200 })
	delete(r.instances, fn)
	r.update(t)
	poll(t, "the instance to be gone", func() bool { return r.do(t, port, "GET", "x.test/").status == 503 })
}

// testHTTPS: TLS with a certificate from a secret, HTTP/2 by ALPN, rotation.
func testHTTPS(t *testing.T, r *rig) {
	dir := t.TempDir()
	ca, err := pki.OpenCA(dir)
	if err != nil {
		t.Fatal(err)
	}
	root, err := os.ReadFile(filepath.Join(dir, "ca.crt"))
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(root)
	port := envoytest.FreePort(t)
	defer func() { takesPort(t, port) }()
	apply := func() {
		r.apply(t, r.objects(t, `
kind: Gateway
name: edge
listeners: [{name: https, address: 127.0.0.1, port: PORT, protocol: HTTPS, tls: {certificates: [web]}}]
`+backendUp+certificateSecret(t, ca, "web", "a.test")+`
---
kind: Route
name: all
hostnames: [a.test]
rules: [{name: all, forward: {backends: [{backend: up}]}}]
`, map[string]int{"PORT": port}))
		r.open(t, port)
	}
	get := func(version uint16, protocols ...string) (int, string, string, error) {
		return getTLS(t, pool, port, version, protocols...)
	}
	apply()
	status, first, proto, err := get(tls.VersionTLS13, "h2")
	if err != nil || status != 200 || proto != "HTTP/2.0" {
		t.Fatalf("h2: %d %s %v", status, proto, err)
	}
	if status, _, proto, err = get(tls.VersionTLS12, "http/1.1"); err != nil || status != 200 || proto != "HTTP/1.1" {
		t.Errorf("TLS 1.2: %d %s %v", status, proto, err)
	}
	if _, _, _, err = get(tls.VersionTLS11, "http/1.1"); err == nil {
		t.Error("TLS 1.1 was accepted")
	}
	listener := r.last.Get(xds.Listener, "default/edge/https")
	apply()
	if _, second, _, err := get(tls.VersionTLS13, "h2"); err != nil || second == first {
		t.Errorf("the new certificate is not served: %v", err)
	}
	if r.last.Get(xds.Listener, "default/edge/https").Version != listener.Version {
		t.Error("a new certificate changed the listener")
	}
}

// getTLS asks once, with at most the given version of TLS.
func getTLS(t *testing.T, pool *x509.CertPool, port int, version uint16, protocols ...string) (status int, serial, negotiated string, err error) {
	t.Helper()
	conf := &tls.Config{RootCAs: pool, ServerName: "a.test", MaxVersion: version, MinVersion: tls.VersionTLS10, NextProtos: protocols}
	tr := &http.Transport{TLSClientConfig: conf, ForceAttemptHTTP2: slices.Contains(protocols, "h2"), DialContext: nil}
	defer tr.CloseIdleConnections()
	req, err := http.NewRequestWithContext(t.Context(), "GET", fmt.Sprintf("https://127.0.0.1:%d/x", port), nil)
	if err != nil {
		return 0, "", "", err
	}
	req.Host = "a.test"
	res, err := tr.RoundTrip(req)
	if err != nil {
		return 0, "", "", err
	}
	res.Body.Close()
	return res.StatusCode, res.TLS.PeerCertificates[0].SerialNumber.String(), res.Proto, nil
}

// retryTries: whatever the policy of the host is, that of a route replaces it, for
// every method.
func retryTries(t *testing.T, r *rig, port int, resets *atomic.Int64) {
	t.Helper()
	for _, c := range []struct {
		method, path string
		tries        int64
	}{
		{"GET", "/bad", 3}, {"PUT", "/bad", 3}, {"POST", "/bad", 1}, {"PATCH", "/bad", 1},
		{"GET", "/careful", 1}, {"POST", "/careful", 1}, {"GET", "/codes-only", 1}, {"GET", "/never", 1}, {"POST", "/never", 1},
		{"GET", "/bold", 5}, {"OPTIONS", "/bold", 5}, {"POST", "/bold", 2},
	} {
		resets.Store(0)
		a := r.do(t, port, c.method, "x.test"+c.path, "Content-Length: 0", "x-envoy-retry-on: reset", "x-envoy-max-retries: 9")
		if a.status != 503 || resets.Load() != c.tries {
			t.Errorf("%s %s: status %d after %d tries, want %d", c.method, c.path, a.status, resets.Load(), c.tries)
		}
	}
}
