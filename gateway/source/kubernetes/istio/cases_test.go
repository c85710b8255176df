package istio_test

import (
	"strings"
	"testing"

	"github.com/penstock-gateway/penstock/gateway/policies"
	"github.com/penstock-gateway/penstock/gateway/source/file"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

const caseBase = `
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: gw}
spec:
  servers:
  - port: {number: 9100, name: http, protocol: HTTP}
    hosts: ["*"]
---
kind: Backend
name: a
static: {endpoints: [{address: 127.0.0.1, port: 9201}]}
---
`

func virtualService(http string) string {
	return caseBase + "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: v}\nspec:\n" +
		"  hosts: [v.example.com]\n  gateways: [gw]\n  http:\n" + http
}

// TestWhatIstioTakes: small inputs that users of Istio have, with what becomes of them: "" for
// taken, or the reason why not.
func TestWhatIstioTakes(t *testing.T) {
	rule := "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: a}\nspec: {host: a, trafficPolicy: {tls: {mode: MODE}}}\n"
	for name, c := range map[string]struct{ yaml, want string }{
		"empty prefix":                      {virtualService("  - match: [{uri: {prefix: \"\"}}]\n    route: [{destination: {host: a}}]\n"), ""},
		"redirect to https":                 {virtualService("  - redirect: {scheme: https}\n"), ""},
		"a bare word of codes":              {virtualService("  - retries: {attempts: 2, retryOn: \"5xx,retriable-status-codes\"}\n    route: [{destination: {host: a}}]\n"), ""},
		"the word alone":                    {virtualService("  - retries: {attempts: 2, retryOn: retriable-status-codes}\n    route: [{destination: {host: a}}]\n"), "retries on nothing"},
		"codes alone":                       {virtualService("  - retries: {attempts: 2, retryOn: \"503,504\"}\n    route: [{destination: {host: a}}]\n"), ""},
		"words of other transports":         {virtualService("  - retries: {attempts: 2, retryOn: \"reset,retriable-headers,http3-post-connect-failure,deadline-exceeded\"}\n    route: [{destination: {host: a}}]\n"), ""},
		"a word of Envoy that is not there": {virtualService("  - retries: {attempts: 2, retryOn: envoy-ratelimited}\n    route: [{destination: {host: a}}]\n"), "\"envoy-ratelimited\" is not supported yet"},
		"weights alone":                     {strings.TrimPrefix(virtualService("  - route: [{destination: {host: stored, subset: one}, weight: 90}, {destination: {host: stored, subset: two}, weight: 10}]\n"), caseBase), ""},
		"a port alone":                      {strings.TrimPrefix(virtualService("  - route: [{destination: {host: stored, port: {number: 80}}}]\n"), caseBase), ""},
		"a port of none":                    {virtualService("  - route: [{destination: {host: a, port: {number: 80}}}]\n"), "the endpoints of backend a have [9201]"},
		"a rule alone":                      {strings.Replace(strings.Replace(rule, "MODE", "DISABLE", 1), "host: a", "host: stored", 1), "hold no \"kind: Backend\" with \"name: stored\""},
		"two ports": {caseBase + "kind: Backend\nname: c\nstatic: {endpoints: [{address: 127.0.0.1, port: 9203}, {address: 127.0.0.1, port: 9204}]}\n---\n" +
			strings.TrimPrefix(virtualService("  - match: [{uri: {prefix: /admin}}]\n    route: [{destination: {host: c, port: {number: 9204}}}]\n  - route: [{destination: {host: c, port: {number: 9203}}}]\n"), caseBase), ""},
		"no TLS to endpoints":  {caseBase + strings.Replace(rule, "MODE", "DISABLE", 1), ""},
		"mutual TLS":           {caseBase + strings.Replace(rule, "MODE", "ISTIO_MUTUAL", 1), "ISTIO_MUTUAL is not supported yet"},
		"regex with a query":   {virtualService("  - match: [{uri: {regex: '/item\\?id=.*'}}]\n    route: [{destination: {host: a}}]\n"), "can never match"},
		"header of two lines":  {virtualService("  - match: [{headers: {x-a: {exact: \"a\\nb\"}}}]\n    route: [{destination: {host: a}}]\n"), "can never match"},
		"parameter with blank": {virtualService("  - match: [{queryParams: {q: {exact: \"a b\"}}}]\n    route: [{destination: {host: a}}]\n"), ""},
	} {
		set, errs := file.Options{}.Decode("x.yaml", []byte(c.yaml))
		var got []string
		for _, e := range errs {
			got = append(got, e.Message)
		}
		if len(errs) == 0 {
			for _, o := range set.Objects() {
				policies.Model().Normalize(o)
				for _, p := range policies.Model().Validate(o) {
					got = append(got, p.Message)
				}
			}
		}
		all := strings.Join(got, "; ")
		if c.want == "" && all != "" || c.want != "" && !strings.Contains(all, c.want) {
			t.Errorf("%s: %q, want %q", name, all, c.want)
		}
		if name == "empty prefix" {
			for _, o := range set.Objects() {
				if r, ok := o.(*pb.Route); ok && r.GetRules()[0].GetMatches()[0].GetPath() != nil {
					t.Errorf("an empty prefix: %v", r)
				}
			}
		}
	}
}
