package delivery_test

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	statuspb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/penstock-gateway/penstock/internal/pki"
	"github.com/penstock-gateway/penstock/xds"
)

// client is a delta ADS client by hand, for what no Envoy would do.
type client struct {
	t      testing.TB
	conn   *grpc.ClientConn
	stream discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesClient
}

// dial connects as a proxy of project default.
func (p *plane) dial(gateway, name string) *grpc.ClientConn {
	p.t.Helper()
	cert, key := p.files(gateway, name)
	conf, err := pki.ClientTLS(cert, key, p.ca.CertFile(), "localhost")
	if err != nil {
		p.t.Fatal(err)
	}
	if p.memory != nil {
		return dialTLS(p.t, p.addr, conf, grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return p.memory.DialContext(ctx) }))
	}
	return dialTLS(p.t, p.addr, conf)
}

func dialTLS(t testing.TB, addr string, conf *tls.Config, more ...grpc.DialOption) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient("passthrough:///"+addr, append(more, grpc.WithTransportCredentials(credentials.NewTLS(conf)))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// open opens a stream.
func (p *plane) open(gateway, name string) *client {
	p.t.Helper()
	c := &client{t: p.t, conn: p.dial(gateway, name)}
	c.stream = openStream(p.t, c.conn)
	return c
}

func openStream(t testing.TB, conn *grpc.ClientConn) discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesClient {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	s, err := discoveryv3.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func (c *client) send(r *discoveryv3.DeltaDiscoveryRequest) {
	c.t.Helper()
	if err := c.stream.Send(r); err != nil {
		c.t.Fatal(err)
	}
}

// ask subscribes; no name is all of the type.
func (c *client) ask(t xds.Type, names ...string) {
	c.t.Helper()
	c.send(&discoveryv3.DeltaDiscoveryRequest{
		Node: &corev3.Node{Id: "self-given"}, TypeUrl: string(t), ResourceNamesSubscribe: names,
	})
}

// recv takes the next response.
func (c *client) recv() *discoveryv3.DeltaDiscoveryResponse {
	c.t.Helper()
	r, err := c.stream.Recv()
	if err != nil {
		c.t.Fatal(err)
	}
	return r
}

// expect takes the next response, checks it ("Cluster a b -c") and acknowledges it.
func (c *client) expect(want string) *discoveryv3.DeltaDiscoveryResponse {
	c.t.Helper()
	r := c.recv()
	if got := describe(r); got != want {
		c.t.Fatalf("got response %q, want %q", got, want)
	}
	c.answer(r, "")
	return r
}

// answer acknowledges, or refuses with a reason.
func (c *client) answer(r *discoveryv3.DeltaDiscoveryResponse, refuse string) {
	c.t.Helper()
	q := &discoveryv3.DeltaDiscoveryRequest{TypeUrl: r.GetTypeUrl(), ResponseNonce: r.GetNonce()}
	if refuse != "" {
		q.ErrorDetail = &statuspb.Status{Code: 13, Message: refuse}
	}
	c.send(q)
}

// describe is a response as text: short type, names, "-" before removed ones.
func describe(r *discoveryv3.DeltaDiscoveryResponse) string {
	s := xds.Type(r.GetTypeUrl()).Short()
	for _, res := range r.GetResources() {
		s += " " + res.GetName()
	}
	for _, n := range r.GetRemovedResources() {
		s += fmt.Sprint(" -", n)
	}
	return s
}

// nodeOf is the node message of an Envoy that says it is of another gateway.
func nodeOf(gateway string) *corev3.Node {
	return &corev3.Node{
		Id: "id-of-" + gateway, Cluster: gateway,
		UserAgentVersionType: &corev3.Node_UserAgentBuildVersion{UserAgentBuildVersion: &corev3.BuildVersion{
			Version: &typev3.SemanticVersion{MajorNumber: 1, MinorNumber: 40},
		}},
	}
}
