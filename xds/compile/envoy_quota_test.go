package compile_test

import (
	"fmt"
	"strings"
	"testing"

	jose "github.com/go-jose/go-jose/v4"
)

const quotaYAML = `
---
kind: Secret
name: keys
jwks: JWKS
---
kind: Consumer
name: alice
jwt: {issuer: "https://issuer.test", subject: alice}
---
kind: Route
name: quota
HOSTS
rules:
- name: listed
  matches: [{path: {prefix: /listed}}]
  forward: {backends: [{backend: up}]}
  policies: {authentication: {jwt: {issuer: "https://issuer.test", audiences: [app], jwks_secret: keys, consumers: [alice]}}}
- name: optional
  matches: [{path: {prefix: /optional}}]
  forward: {backends: [{backend: up}]}
  policies: {authentication: {jwt: {issuer: "https://issuer.test", audiences: [app], jwks_secret: keys, optional: true}}}
policies:
  rate_limit: {limits: [{name: per, requests: 3, window: 3600s}, {name: all, requests: 3, window: 3600s, key: SHARED}]}
`

// testQuota: what authentication refuses, by whichever of its filters, takes nothing from
// anybody's limits: neither from those of the caller that a token names, nor from shared
// ones. A limit by consumer counts by what was verified, whatever a client says of itself.
func testQuota(t *testing.T, r *rig) {
	for layout, names := range map[string][]string{"table": nil, "scopes": {"a.x.test"}, "wildcard": {"*.x.test"}} {
		port := r.serve(t, gatewayOn+hosts(quotaYAML, names...))
		bearer := func(token string) string { return "Authorization: Bearer " + token }
		signed := func(header map[jose.HeaderKey]any, members ...string) string {
			return bearer(r.sign(t, claimsOf(members...), header))
		}
		good := signed(nil)
		forged := []string{"x-sub: mallory", "x-jwt-payload: eyJzdWIiOiJtYWxsb3J5In0", "x-penstock-consumer: mallory", "x-envoy-ratelimit: 0"}
		r.limiter.take()
		asks := func(what, host, path string, status int, who string, header ...string) {
			t.Helper()
			defer func() { r.way = http11 }()
			for _, r.way = range ways {
				a, calls := r.do(t, port, "GET", host+path, header...), r.limiter.take()
				if a.status != status {
					t.Errorf("%s, %s, %s: %d, want %d", layout, what, r.way, a.status, status)
				}
				switch {
				case who == "" && len(calls) > 0:
					t.Errorf("%s, %s, %s: counted %q", layout, what, r.way, calls)
				case who != "" && (len(calls) != 1 || len(calls[0]) != 3 || !strings.Contains(calls[0][1], who) || strings.Contains(fmt.Sprint(calls), "mallory")):
					t.Errorf("%s, %s, %s: counted %q, want %q", layout, what, r.way, calls, who)
				}
			}
		}
		for _, host := range []string{"a.x.test", "A.X.Test"} {
			for what, header := range map[string]string{
				"no token": "x-a: b", "not a token": bearer("x"), "a token of nobody": bearer(strings.Repeat("a", 20) + ".e30." + strings.Repeat("b", 86)),
				"past its time": signed(nil, "exp", "1"), "for another audience": signed(nil, "aud", `"other"`), "for an audience that looks alike": signed(nil, "aud", `"https://app/"`),
				"issued later": signed(nil, "iat", "4000000000"), "issued at no time": signed(nil, "iat", `"x"`), "with a time that is not one": signed(nil, "exp", "1e300"),
				"critical": signed(map[jose.HeaderKey]any{"crit": []string{"x"}, "x": 1}), "with line breaks": signed(nil, "sub", `"alice\r\n"`), "two tokens": good + " " + strings.TrimPrefix(good, "Authorization: "),
			} {
				asks(what, host, "/listed", 401, "", header)
				if what != "no token" {
					asks(what+", optional", host, "/optional", 401, "", header)
				}
			}
			asks("a caller who is not listed", host, "/listed", 403, "", signed(nil, "sub", `"bob"`))
			asks("a caller who is listed", host, "/listed", 200, "iss=https://issuer.test,sub=alice", append(forged, good)...)
			asks("a token where none is needed", host, "/optional", 200, "iss=https://issuer.test,sub=alice", append(forged, good)...)
			asks("no token where none is needed", host, "/optional", 200, "masked_remote_address=", forged...)
		}
	}
}
