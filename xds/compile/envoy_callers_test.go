package compile_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	jose "github.com/go-jose/go-jose/v4"

	"github.com/penstock-gateway/penstock/ratelimit"
	"github.com/penstock-gateway/penstock/xds/compile"
)

// sign makes a token of a payload as it is, with more members in its header.
func (r *rig) sign(t *testing.T, payload []byte, header map[jose.HeaderKey]any) string {
	t.Helper()
	o := (&jose.SignerOptions{}).WithHeader("kid", "one")
	for k, v := range header {
		o.WithHeader(k, v)
	}
	s, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: r.key}, o)
	if err != nil {
		t.Fatal(err)
	}
	signed, err := s.Sign(payload)
	if err != nil {
		t.Fatal(err)
	}
	out, err := signed.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// claimsOf is the payload of a token for the rig's issuer, whose members replace the
// usual ones. A value is JSON as it is written.
func claimsOf(members ...string) []byte {
	all := map[string]string{
		"iss": `"https://issuer.test"`, "aud": `"app"`, "sub": `"alice"`, "exp": fmt.Sprint(time.Now().Add(time.Hour).Unix()),
	}
	for pair := range slices.Chunk(members, 2) {
		if all[pair[0]] = pair[1]; pair[1] == "" {
			delete(all, pair[0])
		}
	}
	var parts []string
	for _, k := range slices.Sorted(maps.Keys(all)) {
		name, err := json.Marshal(k)
		if err != nil {
			panic(err)
		}
		parts = append(parts, string(name)+":"+all[k])
	}
	return []byte("{" + strings.Join(parts, ",") + "}")
}

const callersYAML = `
---
kind: Secret
name: keys
jwks: JWKS
---
kind: Route
name: limited
hostnames: [HOST.test]
rules:
- name: must
  matches: [{path: {prefix: /must}}]
  forward: {backends: [{backend: up}]}
  policies: {authentication: {jwt: {issuer: "https://issuer.test", audiences: [app], jwks_secret: keys}}}
- {name: open, matches: [{path: {prefix: /open}}], forward: {backends: [{backend: up}]}}
policies:
  rate_limit: {limits: [LIMITS]}
`

// callersLimits are as many limits as a route can have, one of which refuses the
// fourth request of a caller.
func callersLimits() string {
	limits := []string{"{name: per, requests: 3, window: 3600s}", "{name: all, requests: 1000, window: 3600s, key: SHARED}"}
	for i := range 6 {
		limits = append(limits, fmt.Sprintf("{name: more-%d, requests: 1000, window: 3600s}", i))
	}
	return strings.Join(limits, ", ")
}

// testCallers: whatever a caller sends, with the real limiter behind Envoy no more of
// his requests pass than the limit says.
func testCallers(t *testing.T, r *rig) {
	server, _ := ratelimit.NewServer(ratelimit.NewService(ratelimit.NewMemory(ratelimit.MemoryOptions{}), nil, nil), nil, nil)
	limiter := endpointOf(t, serveGRPC(t, server))
	r.compiler = compile.New(compile.Settings{Limiters: []compile.Endpoint{limiter}, OTLP: r.spans.endpoint})
	defer r.setEager(0)
	bearer := func(members ...string) []string {
		return []string{"Authorization: Bearer " + r.sign(t, claimsOf(members...), nil)}
	}
	long := func(n int) string { return `"` + strings.Repeat("a", n) + `"` }
	for i, c := range []struct {
		name, path string
		header     []string
	}{
		{"plain", "/must", bearer()},
		{"4096 bytes", "/must", bearer("sub", long(4096))},
		{"4097 bytes", "/must", bearer("sub", long(4097))},
		{"30 kB", "/must", bearer("sub", long(30_000))},
		{"40 kB of bytes that JSON escapes", "/must", bearer("sub", `"`+strings.Repeat(`\u00e9`, 6000)+`"`)},
		{"not UTF-8", "/must", bearer("sub", "\"a\xff\xfe\"")},
		{"half a surrogate pair", "/must", bearer("sub", `"a\ud800"`)},
		{"NUL", "/must", bearer("sub", `"a\u0000b"`)},
		{"line breaks", "/must", bearer("sub", `"a\r\nb"`)},
		{"empty", "/must", bearer("sub", `""`)},
		{"null", "/must", bearer("sub", `null`)},
		{"no subject", "/must", bearer("sub", ``)},
		{"number", "/must", bearer("sub", `42`)},
		{"list", "/must", bearer("sub", `["a"]`)},
		{"object", "/must", bearer("sub", `{"a": 1}`)},
		{"separators", "/must", bearer("sub", `"|c|s,address=x;v1|9"`)},
		{"no header", "/open", nil},
		{"a bad token on an open route", "/open", []string{"Authorization: Bearer x"}},
		{"forged addresses", "/open", []string{"X-Forwarded-For: not an address, \xff, 1.2.3.4", "X-Envoy-External-Address: 9.9.9.9", "Forwarded: for=1.2.3.4"}},
		{"long tracestate", "/open", []string{"traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "tracestate: a=" + strings.Repeat("b", 50_000)}},
		{"tracestate of odd bytes", "/open", []string{"traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "tracestate: a=\x80\xff\xc3,,=,"}},
		{"baggage", "/open", []string{"baggage: " + strings.Repeat("a=b,", 10_000)}},
		{"headers of the limiter", "/open", []string{"X-Envoy-Hits-Addend: 0", "grpc-timeout: 1n", "X-RateLimit-Limit: 9", "x-envoy-ratelimited: 0"}},
		{"request id", "/open", []string{"x-request-id: " + strings.Repeat("\xff", 5000)}},
	} {
		// A host, and so a route and counters, for each.
		yaml := strings.NewReplacer("HOST", fmt.Sprintf("h%d", i), "LIMITS", callersLimits(), "name: limited", fmt.Sprintf("name: limited-%d", i)).Replace(callersYAML)
		port := r.serve(t, gatewayOn+yaml)
		var got []int
		passed := 0
		for range 5 {
			a := r.do(t, port, "GET", fmt.Sprintf("h%d.test%s", i, c.path), c.header...)
			got = append(got, a.status)
			if a.got != nil {
				passed++
			}
		}
		refused := got[0] == 400 || got[0] == 401
		if want := map[bool]int{true: 0, false: 3}[refused]; passed != want || !refused && got[4] != 429 {
			t.Errorf("%s: %v: %d of 5 requests passed a limit of 3", c.name, got, passed)
		}
	}
}
