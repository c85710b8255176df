package compile_test

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"
)

// protected is a host with a route for each kind of authentication.
const protected = `
---
kind: Secret
name: keys
jwks: JWKS
---
kind: Consumer
name: alice
jwt: {issuer: https://issuer.test, subject: alice}
---
kind: Consumer
name: carol
jwt: {issuer: https://issuer.test, subject: carol}
---
kind: Consumer
name: foreign
jwt: {issuer: https://other.test, subject: bob}
---
kind: Route
name: public
HOSTS
rules: [{name: all, matches: [{path: {prefix: /public}}, {path: {prefix: /opt}}], forward: {backends: [{backend: up}]}}]
---
kind: Route
name: must
HOSTS
rules:
- {name: all, matches: [{path: {prefix: /must}}], forward: {backends: [{backend: up}]}}
- {name: say, matches: [{path: {exact: /must/say}}], direct_response: {status: 200, body: secret}}
- {name: move, matches: [{path: {exact: /must/move}}], redirect: {path: /public}}
policies: {authentication: {jwt: {issuer: "https://issuer.test", audiences: [app], jwks_secret: keys, claim_headers: [{claim: sub, header: x-user-id}, {claim: plan.name, header: x-plan}, {claim: none, header: LONG}]}}}
---
kind: Route
name: may
HOSTS
rules: [{name: all, matches: [{path: {prefix: /may}}], forward: {backends: [{backend: up}]}}]
policies: {authentication: {jwt: {issuer: "https://issuer.test", audiences: [app], jwks: JWKS, optional: true, claim_headers: [{claim: sub, header: x-may-user}]}}}
---
kind: Route
name: listed
HOSTS
rules: [{name: all, matches: [{path: {prefix: /listed}}], forward: {backends: [{backend: up}]}}]
policies: {authentication: {jwt: {issuer: "https://issuer.test", audiences: [app], jwks_secret: keys, consumers: [alice, carol, foreign]}}}
---
kind: Route
name: nobody
HOSTS
rules: [{name: all, matches: [{path: {prefix: /nobody}}], forward: {backends: [{backend: up}]}}]
policies: {authentication: {jwt: {issuer: "https://issuer.test", audiences: [app], jwks_secret: keys, consumers: [foreign]}}}
---
kind: Route
name: both
HOSTS
rules:
- name: all
  matches: [{path: {prefix: /both}}]
  forward: {backends: [{backend: up}]}
  policies: {authentication: {jwt: {issuer: "https://issuer.test", audiences: [admin], jwks_secret: keys}}}
policies: {authentication: {jwt: {issuer: "https://issuer.test", audiences: [app], jwks_secret: keys}}}
---
kind: Route
name: lost
HOSTS
rules: [{name: all, matches: [{path: {prefix: /lost}}], forward: {backends: [{backend: up}]}}]
policies: {authentication: {jwt: {issuer: "https://issuer.test", audiences: [app], jwks_secret: not-there}}}
`

// longHeader is too long for one of Envoy's expressions.
var longHeader = "x-" + strings.Repeat("long-", 49) + "z"

func hosts(yaml string, names ...string) string {
	line := ""
	if len(names) > 0 {
		line = "hostnames: [\"" + strings.Join(names, `", "`) + `"]`
	}
	return strings.NewReplacer("HOSTS", line, "LONG", longHeader).Replace(yaml)
}

type jwtCase struct {
	path, auth string
	status     int
}

// jwtCases are requests with a good token (ok) or one with other claims.
func jwtCases(ok string, as func(map[string]any) string) []jwtCase {
	now := time.Now()
	return []jwtCase{
		{"/public", "", 200},
		{"/public", "Authorization: Bearer bad", 200},
		{"/must", "", 401},
		{"/must", ok, 200},
		{"/must", strings.Replace(ok, "Bearer", "bearer", 1), 200},
		{"/must", ok + " \t", 200},
		{"/must", as(map[string]any{"iss": "https://other.test"}), 401},
		{"/must", as(map[string]any{"iss": nil}), 401},
		{"/must", as(map[string]any{"aud": "other"}), 401},
		{"/must", as(map[string]any{"aud": nil}), 401},
		{"/must", as(map[string]any{"aud": []string{}}), 401},
		{"/must", as(map[string]any{"exp": nil}), 401},
		{"/must", as(map[string]any{"exp": int64(1e18)}), 401},
		{"/must", as(map[string]any{"exp": "99999999999"}), 401},
		{"/must", as(map[string]any{"exp": uint64(1) << 63}), 401}, // overflows in Envoy
		{"/may", as(map[string]any{"exp": uint64(1) << 63}), 401},
		{"/listed", as(map[string]any{"exp": uint64(1) << 63}), 401},
		{"/must", as(map[string]any{"exp": now.Add(25 * time.Hour).Unix()}), 401},
		{"/must", as(map[string]any{"exp": now.Add(-5 * time.Second).Unix()}), 200}, // skew 30 s
		{"/must", as(map[string]any{"exp": now.Add(-50 * time.Second).Unix()}), 401},
		{"/must", as(map[string]any{"nbf": now.Add(50 * time.Second).Unix()}), 401},
		{"/must/say", "", 401},
		{"/must/say", ok, 200},
		{"/must/move", "", 401},
		{"/must/move", ok, 302},
		{"/may", "", 200},
		{"/may", ok, 200},
		{"/may", "Authorization: Bearer bad", 401},
		{"/may", as(map[string]any{"exp": nil}), 401},
		{"/listed", ok, 200},
		{"/listed", as(map[string]any{"sub": "carol"}), 200},
		{"/listed", as(map[string]any{"sub": "bob"}), 403},
		{"/listed", as(map[string]any{"sub": nil}), 403},
		{"/listed", "", 401},
		{"/nobody", ok, 403},
		{"/nobody", as(map[string]any{"sub": "bob"}), 403},
		{"/nobody", as(map[string]any{"sub": (*string)(nil)}), 401},
		{"/listed", as(map[string]any{"sub": []string{"alice"}}), 401},
		{"/both", ok, 401},
		{"/both", as(map[string]any{"aud": "admin"}), 401},
		{"/both", as(map[string]any{"aud": []string{"app", "admin"}}), 200},
		{"/both", "", 401},
		{"/lost", "", 401},
		{"/lost", ok, 401},
	}
}

func testJWT(t *testing.T, r *rig) {
	port := r.serve(t, gatewayOn+hosts(protected))
	ok := "Authorization: Bearer " + r.token(t, map[string]any{"plan": map[string]any{"name": "gold"}})
	as := func(claims map[string]any) string { return "Authorization: Bearer " + r.token(t, claims) }
	for _, c := range jwtCases(ok, as) {
		var header []string
		if c.auth != "" {
			header = append(header, c.auth)
		}
		a := r.do(t, port, "GET", "x.test"+c.path, header...)
		if a.status != c.status || (a.got != nil) != (c.status == 200 && !strings.HasSuffix(c.path, "/say")) {
			t.Errorf("%s %.60s: %d %q, upstream %v; want %d", c.path, c.auth, a.status, a.body, a.got != nil, c.status)
		}
		if a.header.Get("x-trace-id") == "" {
			t.Errorf("%s: no x-trace-id on %d", c.path, a.status)
		}
	}
	// Claims as headers; what a client sends under their names never gets through.
	spoof := []string{"x-user-id: root", "X-Plan: root", "x-may-user: root", "x.user.id: root", "x-user.id: root", "x!user-id: root", "x~user'id: root", "x`user|id: root", longHeader + ": root", strings.ReplaceAll(longHeader, "-", "+") + ": root", "x-aser-id: mine"}
	for path, want := range map[string][]string{"/must": {"alice", "gold", ""}, "/public": {"", "", ""}, "/may": {"", "", "alice"}, "/listed": {"", "", ""}} {
		a := r.do(t, port, "GET", "x.test"+path, append([]string{ok}, spoof...)...)
		if a.got == nil {
			t.Fatalf("%s: %d %s", path, a.status, a.body)
		}
		h := a.got.Header
		got := []string{strings.Join(h.Values("x-user-id"), ","), strings.Join(h.Values("x-plan"), ","), strings.Join(h.Values("x-may-user"), ",")}
		if !slices.Equal(got, want) || h.Get("x-aser-id") != "mine" {
			t.Errorf("%s: claim headers %q, want %q (%v)", path, got, want, h)
		}
		for name, values := range h {
			if slices.Contains(values, "root") {
				t.Errorf("%s: %s came through", path, name)
			}
		}
	}
	if a := r.do(t, port, "GET", "x.test/must", ok); a.got.Header.Get("authorization") != "" {
		t.Error("the token was passed on")
	}
	// New keys in the secret change no route.
	r.rotate(t)
	r.apply(t, r.objects(t, gatewayOn+hosts(protected), map[string]int{"PORT": port}))
	if a := r.do(t, port, "GET", "x.test/must", ok); a.status != 401 {
		t.Errorf("a token of the old key: %d", a.status)
	}
	if a := r.do(t, port, "GET", "x.test/must", as(nil)); a.status != 200 {
		t.Errorf("a token of the new key: %d %s", a.status, a.body)
	}
}

func (r *rig) rotate(t *testing.T) {
	t.Helper()
	var err error
	if r.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		t.Fatal(err)
	}
}

// forms are the ways to ask for a path in which late or re-routed requests were
// seen to pass without their checks.
func (r *rig) forms(t *testing.T, port int, host, path, auth string) map[string]int {
	t.Helper()
	return r.formsOf(t, port, func() string { return host }, path, auth)
}

// formsOf is forms, each with a host of its own.
func (r *rig) formsOf(t *testing.T, port int, next func() string, path, auth string) map[string]int {
	t.Helper()
	host := next()
	head := "Host: " + host + "\r\n" + auth
	got := map[string]int{}
	raw := func(name, request string) {
		got[name] = r.raw(t, port, request).status
		host = next()
		head = "Host: " + host + "\r\n" + auth
	}
	raw("GET", "GET "+path+" HTTP/1.1\r\n"+head+"\r\n")
	raw("POST", "POST "+path+" HTTP/1.1\r\n"+head+"Content-Length: 5\r\n\r\nhello")
	raw("POST 100 kB", "POST "+path+" HTTP/1.1\r\n"+head+"Content-Length: 100000\r\n\r\n"+strings.Repeat("x", 100000))
	raw("chunked", "POST "+path+" HTTP/1.1\r\n"+head+"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n")
	raw("expect", "POST "+path+" HTTP/1.1\r\n"+head+"Expect: 100-continue\r\nContent-Length: 5\r\n\r\nhello")
	raw("websocket", "GET "+path+" HTTP/1.1\r\n"+head+"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n")
	raw("absolute", "GET http://"+host+path+" HTTP/1.1\r\n"+head+"\r\n")
	raw("host with port", "GET "+path+" HTTP/1.1\r\n"+strings.Replace(head, "\r\n", ":8080\r\n", 1)+"\r\n")
	raw("host with dot", "GET "+path+" HTTP/1.1\r\n"+strings.Replace(head, "\r\n", ".\r\n", 1)+"\r\n")
	raw("host with dot and port", "GET "+path+" HTTP/1.1\r\n"+strings.Replace(head, "\r\n", ".:8080\r\n", 1)+"\r\n")
	raw("host in capitals with port", "GET "+path+" HTTP/1.1\r\n"+strings.Replace(head, host, strings.ToUpper(host)+":8080", 1)+"\r\n")
	raw("host in capitals", "GET "+path+" HTTP/1.1\r\n"+strings.Replace(head, host, strings.ToUpper(host), 1)+"\r\n")
	raw("double slash", "GET /"+path+" HTTP/1.1\r\n"+head+"\r\n")
	raw("dot", "GET /."+path+" HTTP/1.1\r\n"+head+"\r\n")
	raw("up", "GET /public/.."+path+" HTTP/1.1\r\n"+head+"\r\n")
	raw("escaped letter", "GET /"+fmt.Sprintf("%%%02x", path[1])+path[2:]+" HTTP/1.1\r\n"+head+"\r\n")
	raw("original path", "GET "+path+" HTTP/1.1\r\n"+head+"x-envoy-original-path: /public\r\n\r\n")
	raw("rewrite headers", "GET "+path+" HTTP/1.1\r\n"+head+"x-original-url: /public\r\nx-rewrite-url: /public\r\n\r\n")
	raw("scope header", "GET "+path+" HTTP/1.1\r\n"+head+"x-penstock-scope: default/edge/http/other.test\r\n\r\n")
	got["incomplete body"] = r.incomplete(t, port, "POST "+path+" HTTP/1.1\r\n"+head+"Content-Length: 50\r\n\r\nhello")
	for name, status := range r.http2(t, port, next, path, auth) {
		got[name] = status
	}
	return got
}

// incomplete sends a request whose body does not end before the answer.
func (r *rig) incomplete(t *testing.T, port int, request string) int {
	t.Helper()
	before := r.upstream.count()
	c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(30 * time.Second))
	if _, err := io.WriteString(c, request); err != nil {
		t.Fatal(err)
	}
	status := make(chan int, 1)
	go func() {
		res, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			status <- 0
			return
		}
		status <- res.StatusCode
	}()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case s := <-status:
			return s
		case <-tick.C:
			if r.upstream.count() > before {
				return 200 // it came through
			}
		}
	}
}

// http2 sends GET, POST and many streams at once on one connection.
func (r *rig) http2(t *testing.T, port int, next func() string, path, auth string) map[string]int {
	t.Helper()
	p := new(http.Protocols)
	p.SetUnencryptedHTTP2(true)
	tr := &http.Transport{Protocols: p, MaxConnsPerHost: 1}
	defer tr.CloseIdleConnections()
	send := func(host, method, body string) int {
		req, err := http.NewRequestWithContext(t.Context(), method, fmt.Sprintf("http://127.0.0.1:%d%s", port, path), strings.NewReader(body))
		if err != nil {
			return -1
		}
		req.Host = host
		if name, value, ok := strings.Cut(strings.TrimSpace(auth), ": "); ok {
			req.Header.Set(name, value)
		}
		res, err := tr.RoundTrip(req)
		if err != nil {
			return -1
		}
		_, _ = io.Copy(io.Discard, res.Body)
		res.Body.Close()
		return res.StatusCode
	}
	got := map[string]int{"h2 GET": send(next(), "GET", ""), "h2 POST": send(next(), "POST", "hello")}
	results, host := make(chan int), next()
	for i := range 20 {
		go func() { results <- send(host, []string{"GET", "POST"}[i%2], "") }()
	}
	for range 20 {
		if s := <-results; got["h2 parallel"] == 0 || s != got["h2 parallel"] {
			got["h2 parallel"] = s
		}
	}
	return got
}

// testAttacks: without a credential nothing reaches the upstream, in each layout
// and form, also while the configuration changes; with a good one all do.
func testAttacks(t *testing.T, r *rig) {
	other := `
---
kind: Route
name: other
hostnames: [other.test]
rules: [{name: all, forward: {backends: [{backend: up}]}}]
`
	for layout, yaml := range map[string]string{
		"table":    hosts(protected) + other,
		"scopes":   hosts(protected, "a.x.test") + other,
		"wildcard": hosts(protected, "*.x.test") + other,
		"exact under a wildcard": hosts(protected, "a.x.test") + other + `
---
kind: Route
name: wild
hostnames: ["*.x.test"]
rules: [{name: all, forward: {backends: [{backend: up}]}}]
`,
	} {
		t.Run(layout, func(t *testing.T) {
			port := r.serve(t, gatewayOn+yaml)
			ok := "Authorization: Bearer " + r.token(t, nil) + "\r\n"
			for round := range 2 { // the first and the second request of each host and form
				before := r.upstream.count()
				for _, path := range []string{"/must", "/listed", "/both", "/nobody", "/lost"} {
					for form, status := range r.forms(t, port, "a.x.test", path, "") {
						if status != 401 && status != 403 {
							t.Errorf("round %d, %s %s without a token: %d", round, path, form, status)
						}
					}
				}
				if n := r.upstream.count() - before; n != 0 {
					t.Errorf("round %d: %d requests reached the upstream without a token", round, n)
				}
				for _, path := range []string{"/must", "/listed", "/may", "/public"} {
					for form, status := range r.forms(t, port, "a.x.test", path, ok) {
						if status != 200 {
							t.Errorf("round %d, %s %s with a token: %d", round, path, form, status)
						}
					}
				}
			}
		})
	}
	t.Run("tokens", func(t *testing.T) { forgedTokens(t, r) })
}

// forged are headers that must prove nothing, by what is wrong with them.
func (r *rig) forged(t *testing.T) map[string][]string {
	t.Helper()
	good := r.token(t, nil)
	parts := strings.Split(good, ".")
	enc := func(v any) string {
		b, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return base64.RawURLEncoding.EncodeToString(b)
	}
	der, err := x509.MarshalPKIXPublicKey(r.key.Public())
	if err != nil {
		t.Fatal(err)
	}
	public := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
	hs := enc(map[string]any{"alg": "HS256", "kid": "one"}) + "." + parts[1]
	mac := hmac.New(sha256.New, public)
	mac.Write([]byte(hs))
	evil := *r
	evil.rotate(t)
	foreign := evil.token(t, nil)
	return map[string][]string{
		"alg none":        {"Authorization: Bearer " + enc(map[string]any{"alg": "none"}) + "." + parts[1] + "."},
		"alg NoNe":        {"Authorization: Bearer " + enc(map[string]any{"alg": "NoNe"}) + "." + parts[1] + "."},
		"HS256":           {"Authorization: Bearer " + hs + "." + base64.RawURLEncoding.EncodeToString(mac.Sum(nil))},
		"foreign key":     {"Authorization: Bearer " + foreign},
		"kid injection":   {"Authorization: Bearer " + enc(map[string]any{"alg": "ES256", "kid": "../../dev/null"}) + "." + parts[1] + "." + parts[2]},
		"changed payload": {"Authorization: Bearer " + parts[0] + "." + enc(map[string]any{"iss": "https://issuer.test", "aud": "app", "sub": "root", "exp": time.Now().Add(time.Hour).Unix()}) + "." + parts[2]},
		"good then bad":   {"Authorization: Bearer " + good, "Authorization: Bearer bad"},
		"bad then good":   {"Authorization: Bearer bad", "Authorization: Bearer " + good},
		"cookie":          {"Cookie: access_token=" + good},
		"other header":    {"X-Authorization: Bearer " + good},
	}
}

// forgedTokens: each is refused.
func forgedTokens(t *testing.T, r *rig) {
	port := r.serve(t, gatewayOn+hosts(protected))
	for name, header := range r.forged(t) {
		if a := r.do(t, port, "GET", "x.test/must", header...); a.status != 401 || a.got != nil {
			t.Errorf("%s: %d", name, a.status)
		}
	}
	if a := r.do(t, port, "GET", "x.test/must?access_token="+r.token(t, nil)); a.status != 401 || a.got != nil {
		t.Errorf("token in the query: %d", a.status)
	}
}
