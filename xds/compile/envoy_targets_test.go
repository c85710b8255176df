package compile_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/penstock-gateway/penstock/gateway/explain"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
	"github.com/penstock-gateway/penstock/internal/envoytest"
)

// testTargets: where redirects lead that keep the rest of a path, and which endpoints a rule
// reaches that names a port.
func testTargets(t *testing.T, r *rig) {
	const rules = `
---
kind: Route
name: all
HOSTS
rules:
- {name: prefix, matches: [{path: {prefix: /old}}], redirect: {prefix_rewrite: /new}}
- {name: root, matches: [{path: {prefix: /strip}}], redirect: {prefix_rewrite: /, status: 308}}
- {name: slash, matches: [{path: {prefix: /sl}}], redirect: {prefix_rewrite: /to/}}
- {name: text, matches: [{path: {text_prefix: /te}}], redirect: {prefix_rewrite: /xx}}
- {name: exact, matches: [{path: {exact: /ex}}], redirect: {prefix_rewrite: /other}}
- {name: nocase, matches: [{path: {prefix: /Case, ignore_case: true}}], redirect: {prefix_rewrite: /lower}}
- {name: away, matches: [{path: {prefix: /away}}], redirect: {prefix_rewrite: /, scheme: https, host: other.test}}
- {name: home, matches: [{path: {prefix: /}}], redirect: {prefix_rewrite: /site, host: www.other.test}}
`
	for layout, names := range map[string][]string{"table": nil, "scopes": {"a.x.test"}, "wildcard": {"*.x.test"}} {
		port := r.serve(t, gatewayOn+hosts(rules, names...))
		for path, want := range map[string]string{
			"/old": "http://a.x.test/new", "/old/": "http://a.x.test/new/", "/old/x/y?a=b%20c&d": "http://a.x.test/new/x/y?a=b%20c&d", "/oldx": "http://www.other.test/site/oldx",
			"/strip": "http://a.x.test/", "/strip/": "http://a.x.test/", "/strip/x?q": "http://a.x.test/x?q", "/sl": "http://a.x.test/to/", "/sl/": "http://a.x.test/to/", "/sl/x": "http://a.x.test/to/x",
			"/text": "http://a.x.test/xxxt", "/te?q=1": "http://a.x.test/xx?q=1", "/ex?q=1": "http://a.x.test/other?q=1", "/cASE/Ab%C3%A9": "http://a.x.test/lower/Ab%C3%A9",
			"/away/x": "https://other.test/x", "/away": "https://other.test/", "/": "http://www.other.test/site/", "/x": "http://www.other.test/site/x", "/old//evil.test": "http://a.x.test/new/evil.test", "/strip//evil.test": "http://a.x.test/evil.test",
		} {
			a := r.do(t, port, "GET", "a.x.test"+path)
			if a.header.Get("location") != want {
				t.Errorf("%s: %s: %d %s, want %s", layout, path, a.status, a.header.Get("location"), want)
			}
			x := explain.Explain(r.snapshot, &pb.ExplainRequest{Method: "GET", Url: fmt.Sprintf("http://a.x.test:%d%s", port, path)}, nil)
			foreseen := x.GetOutcome().GetLocation()
			if strings.Replace(foreseen, fmt.Sprintf("a.x.test:%d", port), "a.x.test", 1) != want {
				t.Errorf("%s: %s: explain says %q, want %s", layout, path, x.GetOutcome(), want)
			}
		}
	}
	t.Run("Istio", func(t *testing.T) { istioTargets(t, r) })
}

// istioTargets: redirects to HTTPS name no port, and a service with two ports is two.
func istioTargets(t *testing.T, r *rig) {
	plain, second := envoytest.FreePort(t), newUpstream(t)
	moved := envoytest.FreePort(t)
	in := fmt.Sprintf(`
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: gw}
spec:
  servers:
  - {port: {number: %d, name: http, protocol: HTTP}, hosts: ["*"]}
  - {port: {number: %d, name: moved, protocol: HTTP}, hosts: ["*"], tls: {httpsRedirect: true}}
---
kind: Backend
name: c
static: {endpoints: [{address: 127.0.0.1, port: %[3]d}, {address: 127.0.0.1, port: %[4]d}]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: v}
spec:
  hosts: ["*.x.test"]
  gateways: [gw]
  http:
  - match: [{uri: {prefix: /secure}}]
    redirect: {scheme: https}
  - match: [{uri: {prefix: /admin}}]
    route: [{destination: {host: c, port: {number: %[4]d}}}]
  - match: [{uri: {prefix: /codes}}]
    retries: {attempts: 2, retryOn: "5xx,retriable-status-codes"}
    route: [{destination: {host: c, port: {number: %[3]d}}}]
  - route: [{destination: {host: c, port: {number: %[3]d}}}]
`, plain, moved, r.upstream.endpoint.Port, second.endpoint.Port)
	r.apply(t, decode(t, in))
	if problems := r.snapshot.Check(); len(problems) > 0 {
		t.Fatal(problems)
	}
	r.open(t, plain)
	r.open(t, moved)
	for range 4 {
		for path, admin := range map[string]bool{"/admin/x": true, "/x": false, "/codes": false} {
			before := second.count()
			a := r.do(t, plain, "GET", "a.x.test"+path)
			if a.status != 200 || (a.got == nil) != admin || (second.count() == before+1) != admin {
				t.Errorf("%s: %d, first %v, second %d", path, a.status, a.got, second.count()-before)
			}
		}
	}
	for port, status := range map[int]int{plain: 301, moved: 301} {
		for _, host := range []string{"a.x.test", fmt.Sprintf("a.x.test:%d", port)} {
			if a := r.do(t, port, "GET", host+"/secure?q"); a.status != status || a.header.Get("location") != "https://a.x.test/secure?q" {
				t.Errorf("Host %s: %d %s", host, a.status, a.header.Get("location"))
			}
		}
	}
}
