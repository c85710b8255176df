package compile_test

import (
	"strings"
	"testing"

	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/prototext"

	"github.com/penstock-gateway/penstock/xds"
	"github.com/penstock-gateway/penstock/xds/compile"
)

// grpcRules is a route of svc.example with these rules.
func grpcRules(rules string) string {
	return "\n---\nkind: Route\nname: svc\ngateways: [edge]\nhostnames: [svc.example]\nrules:" + rules
}

const issuerYAML = `
---
kind: Secret
name: keys
jwks: '{"keys":[{"kty":"EC","crv":"P-256","kid":"one","x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU","y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"}]}'`

// TestGRPCPolicies: a gRPC client gets no rule that asks for what it does not do,
// and no way around one. The calls are real ones of grpc-go's client.
func TestGRPCPolicies(t *testing.T) {
	p := newGRPCPlane(t)
	up, other := newGRPCBackend(t), newGRPCBackend(t)
	backends := grpcGateway + backendYAML("up", up) + backendYAML("other", other) + issuerYAML +
		"\n---\nkind: Backend\nname: plain\nstatic: " + endpointsYAML(up)
	const open = "\n- forward: {backends: [{backend: other}]}"
	for name, c := range map[string]struct {
		rules   string
		md      []string
		code    codes.Code
		at      *grpcBackend // who answers, when somebody does
		problem string
	}{
		"open": {open, nil, codes.OK, other, ""},
		"authentication": {`
- matches: [{path: {prefix: /grpc.health.v1.Health}}]
  policies: {authentication: {jwt: {issuer: https://issuer.test, audiences: [a], jwks_secret: keys}}}
  forward: {backends: [{backend: up}]}` + open, nil, codes.Unavailable, nil, "check tokens"},
		"limit": {`
- policies: {rate_limit: {limits: [{name: l, requests: 5, window: 60s, key: ADDRESS}]}}
  forward: {backends: [{backend: up}]}`, nil, codes.Unavailable, nil, "count calls"},
		"header change": {`
- policies: {headers: {request: {remove: [x-user]}}}
  forward: {backends: [{backend: up}]}`, nil, codes.Unavailable, nil, "change headers"},
		"rewrite": {`
- matches: [{path: {prefix: /grpc.health.v1.Health}}]
  forward: {prefix_rewrite: /other, backends: [{backend: up}]}`, nil, codes.Unavailable, nil, "rewrite paths"},
		"host rewrite": {`
- forward: {host_rewrite: a.example, backends: [{backend: up}]}`, nil, codes.Unavailable, nil, "rewrite hosts"},
		"HTTP/1.1 beside": {`
- forward: {backends: [{backend: up, weight: 1}, {backend: plain, weight: 1}]}`, nil, codes.Unavailable, nil, "HTTP/1.1"},
		"HTTP/1.1 in front": {`
- matches: [{path: {prefix: /grpc.health.v1.Health}}]
  forward: {backends: [{backend: plain}]}` + open, nil, codes.Unavailable, nil, ""},
		"direct response in front": {`
- matches: [{path: {exact: /grpc.health.v1.Health/Check}}]
  direct_response: {status: 403}` + open, nil, codes.Unavailable, nil, ""},
		"header that gRPC hides": {`
- matches: [{headers: [{name: user-agent, value: {prefix: bad}}]}]
  direct_response: {status: 403}` + open, nil, codes.Unavailable, nil, "match these headers"},
		"header": {`
- matches: [{headers: [{name: x-v, value: {exact: "2"}}]}]
  forward: {backends: [{backend: up}]}` + open, []string{"x-v", "2"}, codes.OK, up, ""},
		"other header": {`
- matches: [{headers: [{name: x-v, value: {exact: "2"}}]}]
  forward: {backends: [{backend: up}]}` + open, []string{"x-v", "3"}, codes.OK, other, ""},
		"inverted header that is there": {`
- matches: [{headers: [{name: x-v, invert: true, value: {exact: "2"}}]}]
  forward: {backends: [{backend: up}]}` + open, []string{"x-v", "2"}, codes.OK, other, ""},
		"inverted header that is not there": {`
- matches: [{headers: [{name: x-v, invert: true, value: {exact: "2"}}]}]
  forward: {backends: [{backend: up}]}` + open, nil, codes.OK, up, ""},
		"prefix between segments": {`
- matches: [{path: {prefix: /grpc.health}}]
  forward: {backends: [{backend: up}]}` + open, nil, codes.OK, other, ""},
		"text prefix": {`
- matches: [{path: {text_prefix: /grpc.health}}]
  forward: {backends: [{backend: up}]}` + open, nil, codes.OK, up, ""},
		"regular expression": {`
- matches: [{path: {regex: "/grpc[.]health[.].*"}}]
  forward: {backends: [{backend: up}]}` + open, nil, codes.OK, up, ""},
		"other method": {`
- matches: [{methods: [GET]}]
  forward: {backends: [{backend: up}]}` + open, nil, codes.OK, other, ""},
		"query": {`
- matches: [{query: [{name: q, value: {exact: "1"}}]}]
  forward: {backends: [{backend: up}]}` + open, nil, codes.OK, other, ""},
	} {
		t.Run(name, func(t *testing.T) {
			p.apply(backends + grpcRules(c.rules))
			var got string
			for _, q := range p.problems {
				got += q.Object + ": " + q.Message + "\n"
			}
			if (c.problem == "") != (got == "") || !strings.Contains(got, c.problem) {
				t.Errorf("problems %q, want %q", got, c.problem)
			}
			conn := p.dial("xds:///svc.example")
			if p.generation.Get(xds.Listener, "svc.example") == nil {
				t.Fatal("the host is not offered")
			}
			a, b := up.calls.Load(), other.calls.Load()
			err := check(t, conn, c.md...)
			if status.Code(err) != c.code {
				t.Fatalf("got %v, want %v", err, c.code)
			}
			if n := up.calls.Load() - a; (n == 1) != (c.at == up) {
				t.Errorf("%d calls at the first backend", n)
			}
			if n := other.calls.Load() - b; (n == 1) != (c.at == other) {
				t.Errorf("%d calls at the second backend", n)
			}
			conn.Close()
		})
	}
}

// TestGRPCOffers: which names of a view lead to which listener.
func TestGRPCOffers(t *testing.T) {
	p := newGRPCPlane(t)
	up := newGRPCBackend(t)
	p.apply(`
kind: Gateway
name: edge
listeners:
- {name: http, port: 8080, hostnames: [a.example, "*.wild.example", only-http.example]}
- {name: grpc, port: 9090, hostnames: [a.example]}` + backendYAML("up", up) + `
---
kind: Backend
name: plain
static: ` + endpointsYAML(up) + `
---
kind: Backend
name: named
protocol: H2C
load_balancing: LEAST_REQUEST
dns: {hostname: backend.example, port: 50051}
---
kind: Backend
name: weighted
protocol: H2C
load_balancing: LEAST_REQUEST
static: {endpoints: [{address: 192.0.2.1, port: 1, weight: 3}, {address: 192.0.2.2, port: 1}]}
---
kind: Route
name: a
gateways: [edge]
hostnames: [a.example, x.wild.example]
rules: [{forward: {backends: [{backend: up, weight: 1}, {backend: named, weight: 1}, {backend: weighted, weight: 1}]}}]
---
kind: Route
name: b
gateways: [edge]
hostnames: [only-http.example]
rules: [{forward: {backends: [{backend: plain}]}}]`)
	if len(p.problems) > 0 {
		t.Errorf("problems %+v", p.problems)
	}
	got := map[string]string{}
	for r := range p.generation.All(xds.Listener) {
		l, m := &listenerv3.Listener{}, &hcmv3.HttpConnectionManager{}
		if err := r.Body.UnmarshalTo(l); err != nil {
			t.Fatal(err)
		}
		if err := l.GetApiListener().GetApiListener().UnmarshalTo(m); err != nil {
			t.Fatal(err)
		}
		got[r.Name] = m.GetRds().GetRouteConfigName()
	}
	want := map[string]string{
		"a.example": "default/edge/http/a.example", "a.example:8080": "default/edge/http/a.example", "a.example:9090": "default/edge/grpc/a.example",
		"x.wild.example": "default/edge/http/x.wild.example", "x.wild.example:8080": "default/edge/http/x.wild.example",
	}
	if len(got) != len(want) {
		t.Errorf("offers %v", got)
	}
	for name, routes := range want {
		if got[name] != routes {
			t.Errorf("%s leads to %q, want %q", name, got[name], routes)
		}
	}
	for cluster, policy := range map[string]string{"up": "weight-1", "named": "LOGICAL_DNS", "weighted": "weight-3"} {
		name := "projects/default/backends/" + cluster
		text := p.generation.Get(xds.Cluster, name)
		if text == nil {
			t.Errorf("no cluster %s", name)
			continue
		}
		m, err := text.Body.UnmarshalNew()
		if err != nil {
			t.Fatal(err)
		}
		all := prototext.Format(m)
		if e := p.generation.Get(xds.Endpoint, name); e != nil {
			m, err := e.Body.UnmarshalNew()
			if err != nil {
				t.Fatal(err)
			}
			all += prototext.Format(m)
		}
		if !strings.Contains(all, policy) {
			t.Errorf("cluster %s has no %s: %s", cluster, policy, all)
		}
	}
	// What does not change is not made again.
	before := p.generation
	p.revision++
	p.update()
	if changed := p.generation.Since(before); len(changed) > 0 {
		t.Errorf("changed %v", changed)
	}
	// And nothing stays of what is gone.
	p.apply(grpcGateway)
	for _, kind := range p.generation.Types() {
		t.Errorf("%s is left: %v", kind.Short(), p.generation.Names(kind))
	}
	if before.Get(xds.Listener, "a.example") == nil {
		t.Error("an earlier generation was changed")
	}
	for _, text := range []string{"default/-/grpc", "default/edge/grpc"} {
		if v, err := compile.ParseView(text); err != nil || !v.GRPC || v.String() != text {
			t.Errorf("ParseView(%q): %+v, %v", text, v, err)
		}
	}
}
