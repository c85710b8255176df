package delivery_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	statuspb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/penstock-gateway/penstock/xds"
	"github.com/penstock-gateway/penstock/xds/delivery"
	"github.com/penstock-gateway/penstock/xds/ledger"
)

// grpcTestView is the view of gRPC clients of project default.
const grpcTestView = view + "/grpc"

// channel is a state-of-the-world client by hand.
type channel struct {
	t      testing.TB
	stream discoveryv3.AggregatedDiscoveryService_StreamAggregatedResourcesClient
	names  map[xds.Type][]string
	last   map[xds.Type]*discoveryv3.DiscoveryResponse
}

func (p *plane) channel(gateway, name string) *channel {
	p.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	p.t.Cleanup(cancel)
	s, err := discoveryv3.NewAggregatedDiscoveryServiceClient(p.dial(gateway, name)).StreamAggregatedResources(ctx)
	if err != nil {
		p.t.Fatal(err)
	}
	return &channel{t: p.t, stream: s, names: map[xds.Type][]string{}, last: map[xds.Type]*discoveryv3.DiscoveryResponse{}}
}

// ask says all names that the client wants of a type; version is from an earlier
// stream.
func (c *channel) ask(t xds.Type, version string, names ...string) {
	c.t.Helper()
	c.names[t] = names
	if v := c.last[t].GetVersionInfo(); version == "" {
		version = v
	}
	c.send(&discoveryv3.DiscoveryRequest{
		Node: &corev3.Node{Id: "n", UserAgentName: "gRPC Go"}, TypeUrl: string(t), VersionInfo: version,
		ResponseNonce: c.last[t].GetNonce(), ResourceNames: names,
	})
}

func (c *channel) send(r *discoveryv3.DiscoveryRequest) {
	c.t.Helper()
	if err := c.stream.Send(r); err != nil {
		c.t.Fatal(err)
	}
}

func (c *channel) recv() *discoveryv3.DiscoveryResponse {
	c.t.Helper()
	r, err := c.stream.Recv()
	if err != nil {
		c.t.Fatal(err)
	}
	c.last[xds.Type(r.GetTypeUrl())] = r
	return r
}

// expect takes the next response, checks the names in it ("Cluster a b") and
// acknowledges it, or refuses it.
func (c *channel) expect(want, refuse string) *discoveryv3.DiscoveryResponse {
	c.t.Helper()
	r := c.recv()
	if got := describeState(c.t, r); got != want {
		c.t.Fatalf("got response %q, want %q", got, want)
	}
	t := xds.Type(r.GetTypeUrl())
	q := &discoveryv3.DiscoveryRequest{TypeUrl: r.GetTypeUrl(), ResponseNonce: r.GetNonce(), VersionInfo: r.GetVersionInfo(), ResourceNames: c.names[t]}
	if refuse != "" {
		q.ErrorDetail = &statuspb.Status{Code: 3, Message: refuse}
	}
	c.send(q)
	return r
}

func describeState(t testing.TB, r *discoveryv3.DiscoveryResponse) string {
	t.Helper()
	s := xds.Type(r.GetTypeUrl()).Short()
	for _, a := range r.GetResources() {
		m, err := a.UnmarshalNew()
		if err != nil {
			t.Fatal(err)
		}
		name := ""
		switch m := m.(type) {
		case interface{ GetAltStatName() string }:
			name = m.(interface{ GetName() string }).GetName() + "@" + m.GetAltStatName()
		case *endpointv3.ClusterLoadAssignment:
			name = m.GetClusterName()
		case interface{ GetName() string }:
			name = m.GetName()
		}
		s += " " + name
	}
	return s
}

func sotwPlane(t *testing.T, o delivery.Options) *plane {
	t.Helper()
	o.Authenticate = func(ctx context.Context) (delivery.Identity, error) {
		id, err := authenticate(ctx)
		id.GRPCView = id.View + "/grpc"
		return id, err
	}
	return newPlane(t, o)
}

// TestStateOfTheWorld: what a client by hand sees: all that it asked for in each
// response, names that come and go, a refusal that names one, and nothing again
// after a reconnect.
func TestStateOfTheWorld(t *testing.T) {
	p := sotwPlane(t, delivery.Options{})
	g := newGeneration(t, 1)
	for _, name := range []string{"a", "b", "c"} {
		g.plain(name, 1)
	}
	g.add(xds.Listener, "host", &listenerv3.Listener{Name: "host"}, "route/r")
	g.add(xds.Route, "r", &routev3.RouteConfiguration{Name: "r"}, "cluster/a", "cluster/b")
	p.server.Update(grpcTestView, g.Generation)
	other := newGeneration(t, 1)
	other.plain("of-the-proxies", 1)
	p.server.Update(view, other.Generation)

	c := p.channel("-", "app")
	c.ask(xds.Listener, "", "host")
	listener := c.expect("Listener host", "").GetVersionInfo()
	c.ask(xds.Route, "", "r")
	c.expect("RouteConfiguration r", "")
	c.ask(xds.Cluster, "", "a", "of-the-proxies")
	c.expect("Cluster", "") // what is not there
	c.expect("Cluster a@1", "")
	c.ask(xds.Cluster, "", "a", "b")
	c.expect("Cluster a@1 b@1", "")
	p.wait(1)

	// A change brings all; one that is not asked for brings nothing.
	g = g.next()
	g.plain("b", 2)
	g.plain("c", 2)
	p.server.Update(grpcTestView, g.Generation)
	c.expect("Cluster a@1 b@2", "")
	p.wait(2)
	c.ask(xds.Cluster, "", "a")
	eventually(t, "b to be given up", func() bool {
		s := p.server.Proxies()
		return len(s) == 1 && s[0].Resources[xds.Cluster] == 1
	})
	g = g.next()
	g.plain("b", 3)
	p.server.Update(grpcTestView, g.Generation)
	p.wait(3)
	c.ask(xds.Cluster, "", "a", "b")
	c.expect("Cluster a@1 b@3", "")

	// Both change, and the client says which is bad: the other is taken, and the bad
	// one stays as it was.
	g = g.next()
	g.plain("a", 4)
	g.plain("b", 4)
	p.server.Update(grpcTestView, g.Generation)
	for {
		r := c.recv()
		got := describeState(t, r)
		q := &discoveryv3.DiscoveryRequest{TypeUrl: r.GetTypeUrl(), ResponseNonce: r.GetNonce(), ResourceNames: []string{"a", "b"}}
		if strings.Contains(got, "b@4") {
			q.ErrorDetail = &statuspb.Status{Code: 3, Message: `error parsing "ClusterResource" response: resource "b": no such thing`}
			c.send(q)
			break
		}
		c.send(q)
	}
	rep := p.wait(4)
	if len(rep.Problems) != 1 || rep.Problems[0].State != ledger.Refused || rep.Problems[0].Ref.Name != "b" || !strings.Contains(rep.Problems[0].Detail, "no such thing") {
		t.Errorf("report %+v", rep)
	}
	g = g.next()
	g.plain("a", 5)
	p.server.Update(grpcTestView, g.Generation)
	c.expect("Cluster a@5 b@3", "")
	g = g.next()
	g.plain("b", 6)
	p.server.Update(grpcTestView, g.Generation)
	last := c.expect("Cluster a@5 b@6", "")
	p.wait(6)

	// Back with the last versions, on another server, with fewer names: nothing.
	p.stop()
	p.start()
	p.server.Update(grpcTestView, g.Generation)
	c = p.channel("-", "app")
	c.ask(xds.Listener, listener, "host")
	c.ask(xds.Cluster, last.GetVersionInfo(), "b")
	eventually(t, "the client to be back", func() bool {
		s := p.server.Proxies()
		return len(s) == 1 && s[0].Resources[xds.Cluster] == 1 && s[0].State == ledger.Serving
	})
	if n := p.sent(); n != 0 {
		t.Errorf("%d resources were sent again", n)
	}
	g = g.next()
	g.plain("b", 7)
	p.server.Update(grpcTestView, g.Generation)
	c.expect("Cluster b@7", "")
	g = g.next()
	g.Delete(xds.Cluster, "b")
	g.Delete(xds.Route, "r") // which refers to it
	p.server.Update(grpcTestView, g.Generation)
	c.expect("Cluster", "")
}

// TestStateOfTheWorldAll: a client without names gets all, and later what it names.
func TestStateOfTheWorldAll(t *testing.T) {
	p := sotwPlane(t, delivery.Options{})
	g := newGeneration(t, 1)
	for i := range 3 {
		g.plain(fmt.Sprint("c", i), 1)
	}
	p.server.Update(grpcTestView, g.Generation)
	c := p.channel("-", "app")
	c.ask(xds.Cluster, "")
	c.expect("Cluster c0@1 c1@1 c2@1", "")
	c.ask(xds.Cluster, "", "c1")
	eventually(t, "the names to be taken in", func() bool {
		s, ok := p.proxy("app")
		return ok && s.Resources[xds.Cluster] == 1
	})
	g = g.next()
	g.plain("c0", 2)
	g.plain("c1", 2)
	p.server.Update(grpcTestView, g.Generation)
	c.expect("Cluster c1@2", "")
}

// TestStateOfTheWorldReplica: a client comes to a control plane where a cluster is
// gone, and keeps it until it has the routes that do without.
func TestStateOfTheWorldReplica(t *testing.T) {
	p := sotwPlane(t, delivery.Options{})
	g := newGeneration(t, 1)
	g.plain("new", 1)
	g.add(xds.Listener, "host", &listenerv3.Listener{Name: "host"}, "route/r")
	g.add(xds.Route, "r", &routev3.RouteConfiguration{Name: "r"}, "cluster/new")
	p.server.Update(grpcTestView, g.Generation)
	c := p.channel("-", "app")
	c.ask(xds.Cluster, "of another server", "new", "old")
	c.ask(xds.Listener, "of another server", "host")
	c.expect("Listener host", "")
	c.ask(xds.Route, "of another server", "r")
	c.expect("RouteConfiguration r", "")
	c.expect("Cluster new@1", "")
}

// TestStateOfTheWorldDoors: who gets no such stream, and what it does not see.
func TestStateOfTheWorldDoors(t *testing.T) {
	p := sotwPlane(t, delivery.Options{})
	p.server.Update(grpcTestView, newGeneration(t, 1).Generation)
	p.server.Update("default/other/grpc", func() *xds.Generation {
		g := newGeneration(t, 1)
		g.plain("secret", 1)
		return g.Generation
	}())
	c := p.channel("-", "edge")
	c.send(&discoveryv3.DiscoveryRequest{Node: &corev3.Node{Id: "e", UserAgentName: "envoy"}, TypeUrl: string(xds.Cluster)})
	if _, err := c.stream.Recv(); status.Code(err) != codes.Unimplemented || !strings.Contains(err.Error(), "DELTA_GRPC") {
		t.Errorf("an Envoy: %v", err)
	}
	c = p.channel("-", "edge")
	c.ask(xds.Cluster, "", "secret")
	c.expect("Cluster", "")

	// Several channels of one process live beside each other, up to a bound.
	first := p.channel("-", "many")
	first.ask(xds.Cluster, "", "x")
	first.expect("Cluster", "")
	for range 255 {
		c := p.channel("-", "many")
		c.ask(xds.Cluster, "", "x")
		c.expect("Cluster", "")
	}
	full := p.channel("-", "many")
	if _, err := full.stream.Recv(); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("the 257th channel: %v", err)
	}
	first.ask(xds.Cluster, "", "x", "y")
	first.expect("Cluster", "")
}

// TestWarmRoutes: routes to a cluster that the client does not have come once it
// has the cluster.
func TestWarmRoutes(t *testing.T) {
	p := sotwPlane(t, delivery.Options{WarmRoutes: warmForTest})
	g := newGeneration(t, 1)
	g.plain("a", 1)
	g.add(xds.Route, "r", &routev3.RouteConfiguration{Name: "r"}, "cluster/a")
	p.server.Update(grpcTestView, g.Generation)
	c := p.channel("-", "app")
	c.ask(xds.Listener, "", "host")
	c.expect("Listener", "")
	c.ask(xds.Route, "", "r")
	c.expect("RouteConfiguration r", "")
	c.ask(xds.Cluster, "", "a")
	c.expect("Cluster a@1", "")
	g = g.next()
	g.plain("b", 1)
	g.add(xds.Route, "r", &routev3.RouteConfiguration{Name: "r", InternalOnlyHeaders: []string{"x"}}, "cluster/b")
	p.server.Update(grpcTestView, g.Generation)
	c.expect("RouteConfiguration warm", "")
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if rep, err := p.server.Wait(ctx, 2, nil); err == nil || rep.Serving != 0 {
		t.Errorf("it counts as serving before it has the routes: %+v", rep)
	}
	c.ask(xds.Cluster, "", "a", "b")
	c.expect("Cluster a@1 b@1", "")
	c.expect("RouteConfiguration r", "")
	c.ask(xds.Cluster, "", "b")
	p.wait(2)
}

func warmForTest(*xds.Resource, *xds.Resource) (*anypb.Any, error) {
	return anypb.New(&routev3.RouteConfiguration{Name: "warm"})
}
