package control

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	luav3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/lua/v3"
	routerv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
	"github.com/penstock-gateway/penstock/internal/envoytest"
	"github.com/penstock-gateway/penstock/internal/shadow"
	"github.com/penstock-gateway/penstock/xds"
)

// shadowed starts a control plane with a shadow gate.
func shadowed(t *testing.T, dir string, o ShadowOptions) *plane {
	t.Helper()
	o.Limit = time.Second
	if o.Envoy == "" {
		o.Envoy = envoytest.Binary(t)
	}
	return serveWith(t, openStore(t, dir), dir, &o)
}

func pickyBootstrap(b *bootstrapv3.Bootstrap) { setRuntime(b, picky) }

const twoHosts = `
kind: Gateway
name: edge
listeners: [{name: http, address: 127.0.0.1, port: %d}]
---
kind: Backend
name: b
%s
---
kind: Route
name: r
gateways: [edge]
hostnames: [r.test]
rules: [{forward: {backends: [{backend: b}]}}]
`

// TestGate: what the shadow refuses, or hangs at, never reaches a proxy; the good
// part of the same change does, and serves.
func TestGate(t *testing.T) {
	dir := t.TempDir()
	p := shadowed(t, dir, ShadowOptions{Change: pickyBootstrap})
	port := envoytest.FreePort(t)
	fleet := proxyOf(t, p, dir, "one", nil) // would take what the shadow refuses
	if rep := p.apply(t, fmt.Sprintf(twoHosts, port, backend(t, "one"))); len(rep.GetProblems()) > 0 || rep.GetServing() != 1 {
		t.Fatal(rep)
	}
	answers(t, port, "r.test", "/", 200, "one")
	rep := p.apply(t, `
kind: Backend
name: b
dns: {hostname: localhost, port: 1}
---
kind: Route
name: y
gateways: [edge]
hostnames: [y.test]
rules: [{direct_response: {status: 200, body: good part}}]
`)
	if !slices.ContainsFunc(rep.GetProblems(), func(q *pb.ProxyProblem) bool {
		return q.GetObject() == "projects/default/backends/b" && q.GetState() == "quarantined" && strings.Contains(q.GetDetail(), "deprecated")
	}) {
		t.Errorf("the report does not say what the shadow refused: %v", rep)
	}
	answers(t, port, "y.test", "/", 200, "good part")
	answers(t, port, "r.test", "/", 200, "one")
	if q := problem(t, p, "projects/default/backends/b"); q == nil || !strings.Contains(q.GetMessage(), "proxy shadow refused") {
		t.Errorf("the status says of the backend: %v", q)
	}
	// Tried again, refused again: the proxies do not get it in between.
	httpPost(t, p, "/debug/quarantine/retry?name=backends/b")
	if problem(t, p, "projects/default/backends/b") == nil {
		t.Error("the backend is in no quarantine after another try, which failed")
	}

	// What hangs Envoy for good, and something good in the same change.
	next, starts := handMade(t, p), p.core.gate.views["default/-"].shadow.State().Starts
	p.core.deliver("default/-", next)
	until(t, "the good listener to be served", func() bool {
		return strings.Contains(fleet.Admin(t, "/config_dump?resource=dynamic_listeners"), `"name": "harmless"`)
	})
	if strings.Contains(fleet.Admin(t, "/config_dump?resource=dynamic_listeners"), `"name": "endless"`) {
		t.Error("the proxy got what hangs it")
	}
	// Each time that it hung it was started again.
	if n := p.core.gate.views["default/-"].shadow.State().Starts; n < starts+2 {
		t.Errorf("the shadow was started %d times, want it to have hung", n)
	}
	answers(t, port, "y.test", "/", 200, "good part")
	for _, stat := range []string{"cluster_manager.cds.update_rejected", "listener_manager.lds.update_rejected"} {
		if n := fleet.Stat(t, stat); n != 0 {
			t.Errorf("%s is %d", stat, n)
		}
	}
	checkShadowPage(t, p)
}

func checkShadowPage(t *testing.T, p *plane) {
	t.Helper()
	b := httpGet(t, p, "/debug/shadow")
	var all map[string]shadow.State
	if err := json.Unmarshal([]byte(b), &all); err != nil || !all["default/-"].Running || all["default/-"].Sandbox == "" {
		t.Errorf("%s: %v", b, err)
	}
	t.Logf("%s", b)
}

// handMade is what is published, with one listener that hangs Envoy and one that
// does not.
func handMade(t *testing.T, p *plane) *xds.Generation {
	t.Helper()
	p.core.compiling.Lock()
	g := p.core.views["default/-"].published
	p.core.compiling.Unlock()
	var more []*xds.Resource
	for name, script := range map[string]string{"endless": "while true do end", "harmless": "function envoy_on_request(h) end"} {
		pack := func(m proto.Message) *anypb.Any {
			a, err := anypb.New(m)
			if err != nil {
				t.Fatal(err)
			}
			return a
		}
		m := &hcmv3.HttpConnectionManager{
			StatPrefix: name,
			RouteSpecifier: &hcmv3.HttpConnectionManager_RouteConfig{RouteConfig: &routev3.RouteConfiguration{
				Name: name, VirtualHosts: []*routev3.VirtualHost{{Name: "a", Domains: []string{"*"}}},
			}},
			HttpFilters: []*hcmv3.HttpFilter{
				{Name: "lua", ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: pack(&luav3.Lua{DefaultSourceCode: &corev3.DataSource{
					Specifier: &corev3.DataSource_InlineString{InlineString: script},
				}})}},
				{Name: "router", ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: pack(&routerv3.Router{})}},
			},
		}
		r, err := xds.NewResource(xds.Listener, name, &listenerv3.Listener{
			Name: name, Address: &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
				Address: "127.0.0.1", PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: uint32(envoytest.FreePort(t))},
			}}},
			FilterChains: []*listenerv3.FilterChain{{Filters: []*listenerv3.Filter{{
				Name: "hcm", ConfigType: &listenerv3.Filter_TypedConfig{TypedConfig: pack(m)},
			}}}},
		}, nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		more = append(more, r)
	}
	return with(g, more)
}

// TestGateWithout: when the shadow cannot run, changes reach the proxies untried, or
// are held back, as was chosen; both are said.
func TestGateWithout(t *testing.T) {
	for _, closed := range []bool{false, true} {
		dir := t.TempDir()
		p := shadowed(t, dir, ShadowOptions{Envoy: "/nowhere/envoy", Closed: closed})
		c := pb.NewConfigServiceClient(p.conn)
		until(t, "the status to say it", func() bool {
			st, err := p.core.Status(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			return slices.ContainsFunc(st.GetProblems(), func(q *pb.ObjectProblem) bool {
				return strings.Contains(q.GetMessage(), "shadow gate") && strings.Contains(q.GetMessage(), "fail closed") == closed
			})
		})
		if _, err := c.Apply(t.Context(), &pb.ApplyRequest{Resources: []*pb.Resource{resource(direct("a", "/a", "1"))}}); err != nil {
			t.Fatal(err)
		}
		if closed {
			p.core.gate.mu.Lock()
			if p.core.gate.views["default/-"].given != nil {
				t.Error("the proxies got what was not tried")
			}
			p.core.gate.mu.Unlock()
			continue
		}
		until(t, "the change to be given to the proxies", func() bool {
			p.core.gate.mu.Lock()
			defer p.core.gate.mu.Unlock()
			given := p.core.gate.views["default/-"].given
			return given != nil && given.Revision == p.core.Snapshot().Revision()
		})
	}
}

// TestUnheld: endpoints and certificates of what proxies have are not kept waiting
// by what else changes.
func TestUnheld(t *testing.T) {
	r := func(kind xds.Type, name, version string) *xds.Resource {
		return &xds.Resource{Type: kind, Name: name, Version: version}
	}
	gen := func(revision int64, all ...*xds.Resource) *xds.Generation {
		return with(&xds.Generation{Revision: revision}, all)
	}
	given := gen(1, r(xds.Cluster, "a", "1"), r(xds.Endpoint, "a", "1"), r(xds.Cluster, "b", "1"), r(xds.Endpoint, "b", "1"), r(xds.Secret, "s", "1"))
	next := gen(2, r(xds.Cluster, "a", "1"), r(xds.Endpoint, "a", "2"), r(xds.Cluster, "b", "2"), r(xds.Endpoint, "b", "2"), r(xds.Secret, "s", "2"), r(xds.Endpoint, "new", "1"))
	got := unheld(given, next)
	if got == nil || got.Revision != 1 {
		t.Fatalf("%+v", got)
	}
	for ref, want := range map[xds.Ref]string{
		{Type: xds.Endpoint, Name: "a"}: "2", {Type: xds.Endpoint, Name: "b"}: "1", {Type: xds.Secret, Name: "s"}: "2", {Type: xds.Cluster, Name: "b"}: "1",
	} {
		if v := got.Get(ref.Type, ref.Name).Version; v != want {
			t.Errorf("%s has version %s, want %s", ref, v, want)
		}
	}
	if got.Get(xds.Endpoint, "new") != nil || unheld(nil, next) != nil || unheld(given, given) != nil {
		t.Error("more than endpoints and certificates of what is there")
	}
}

// BenchmarkApply is one change of a route, from the call to the acknowledgement of a
// proxy, with and without the gate.
func BenchmarkApply(b *testing.B) {
	for _, gated := range []bool{false, true} {
		b.Run(fmt.Sprintf("gate=%v", gated), func(b *testing.B) {
			dir := b.TempDir()
			var o *ShadowOptions
			if gated {
				o = &ShadowOptions{Envoy: envoytest.Binary(b)}
			}
			p := serveWith(b, openStore(b, dir), dir, o)
			proxyOf(b, p, dir, "one", nil)
			p.apply(b, fmt.Sprintf(twoHosts, envoytest.FreePort(b), "static: {endpoints: [{address: 127.0.0.1, port: 9}]}"))
			n := 0
			for b.Loop() {
				n++
				p.apply(b, fmt.Sprintf("kind: Route\nname: y\ngateways: [edge]\nhostnames: [y.test]\nrules: [{direct_response: {status: 200, body: '%d'}}]\n", n))
			}
		})
	}
}

// with is a generation and some more resources.
func with(g *xds.Generation, more []*xds.Resource) *xds.Generation {
	out := g.Clone()
	for _, r := range more {
		out.Set(r)
	}
	return out
}
