package delivery_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	clusterservicev3 "github.com/envoyproxy/go-control-plane/envoy/service/cluster/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/penstock-gateway/penstock/internal/pki"
	"github.com/penstock-gateway/penstock/xds"
	"github.com/penstock-gateway/penstock/xds/delivery"
	"github.com/penstock-gateway/penstock/xds/ledger"
)

// plain adds a cluster that needs nothing else.
func (g generation) plain(name string, v int) {
	g.add(xds.Cluster, name, &clusterv3.Cluster{Name: name, AltStatName: fmt.Sprint(v)})
}

func (g generation) secret(name string) {
	g.add(xds.Secret, name, &tlsv3.Secret{Name: name})
}

// TestIdentity: the certificate decides what a proxy sees, whatever it says of
// itself, and what is not for it is answered "removed" and audited.
func TestIdentity(t *testing.T) {
	var mu sync.Mutex
	var audit []string
	p := newPlane(t, delivery.Options{OnForbidden: func(id delivery.Identity, ref xds.Ref) {
		mu.Lock()
		defer mu.Unlock()
		audit = append(audit, id.Proxy+" "+ref.String())
	}})
	for _, gw := range []string{"mine", "other"} {
		g := newGeneration(t, 1)
		g.plain("cluster-of-"+gw, 1)
		g.secret("key-of-" + gw)
		p.server.Update("default/"+gw, g.Generation)
	}
	c := p.open("mine", "edge")
	c.send(&discoveryv3.DeltaDiscoveryRequest{Node: nodeOf("other"), TypeUrl: string(xds.Cluster)})
	c.expect("Cluster cluster-of-mine")
	c.ask(xds.Secret, "key-of-other", "key-of-mine")
	c.expect("Secret -key-of-other")
	c.expect("Secret key-of-mine")
	for _, t := range []xds.Type{xds.Secret, xds.Endpoint, xds.Route, xds.ExtensionConfig} {
		c.ask(t, "*", "../other", "key-of-other\x00", strings.Repeat("x", 4096))
		if r := c.recv(); len(r.GetResources()) > 0 {
			p.t.Errorf("got %s", describe(r))
		} else {
			c.answer(r, "")
		}
	}
	eventually(t, "the audit", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return slices.Contains(audit, "edge Secret/key-of-other") && slices.Contains(audit, "edge ClusterLoadAssignment/*")
	})
	s, _ := p.proxy("edge")
	if s.View != "default/mine" || s.Identity != pki.ProxyID("default", "mine", "edge") || s.Node != "id-of-other" || s.Version != "1.40.0" {
		t.Errorf("status %+v", s)
	}
}

// TestDoors: nothing but the aggregated service of a client with a certificate of
// ours is open, and of that the state-of-the-world variant only for those that have
// a view for it.
func TestDoors(t *testing.T) {
	p := newPlane(t, delivery.Options{})
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()

	conn := p.dial("-", "edge")
	sotw, err := discoveryv3.NewAggregatedDiscoveryServiceClient(conn).StreamAggregatedResources(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if _, err = sotw.Recv(); status.Code(err) != codes.Unimplemented || !strings.Contains(err.Error(), "DELTA_GRPC") {
		t.Errorf("state-of-the-world stream: %v", err)
	}
	clusters := clusterservicev3.NewClusterDiscoveryServiceClient(conn)
	if _, err := clusters.FetchClusters(ctx, &discoveryv3.DiscoveryRequest{}); status.Code(err) != codes.Unimplemented {
		t.Errorf("FetchClusters: %v", err)
	}
	per, err := clusters.DeltaClusters(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := per.Recv(); status.Code(err) != codes.Unimplemented {
		t.Errorf("DeltaClusters: %v", err)
	}
	for service := range p.grpc.GetServiceInfo() {
		if service != "envoy.service.discovery.v3.AggregatedDiscoveryService" {
			t.Errorf("service %s is registered", service)
		}
	}

	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(p.ca.CertPEM())
	foreign, err := pki.OpenCA(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		conf *tls.Config
		code codes.Code
	}{
		"no client certificate":      {&tls.Config{RootCAs: pool, ServerName: "localhost"}, codes.Unavailable},
		"certificate of another CA":  {&tls.Config{RootCAs: pool, ServerName: "localhost", Certificates: issue(t, foreign, pki.ProxyID("default", "-", "x"))}, codes.Unavailable},
		"certificate of a runner":    {&tls.Config{RootCAs: pool, ServerName: "localhost", Certificates: issue(t, p.ca, "spiffe://penstock.local/runner/r")}, codes.Unauthenticated},
		"certificate of the control": {&tls.Config{RootCAs: pool, ServerName: "localhost", Certificates: issue(t, p.ca, "spiffe://penstock.local/control")}, codes.Unauthenticated},
	} {
		t.Run(name, func(t *testing.T) {
			s, err := discoveryv3.NewAggregatedDiscoveryServiceClient(dialTLS(t, p.addr, tc.conf)).DeltaAggregatedResources(ctx)
			if err == nil {
				_, err = s.Recv()
			}
			if status.Code(err) != tc.code {
				t.Errorf("got %v, want %v", err, tc.code)
			}
		})
	}
}

func issue(t *testing.T, ca *pki.CA, spiffe string) []tls.Certificate {
	t.Helper()
	certPEM, keyPEM, err := ca.Issue(pki.Request{SPIFFE: spiffe})
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		t.Fatal(err)
	}
	return []tls.Certificate{pair}
}

// TestView: a proxy of a view that nobody updated waits, and OnView is told.
func TestView(t *testing.T) {
	asked := make(chan string, 10)
	p := newPlane(t, delivery.Options{OnView: func(v string) { asked <- v }})
	c := p.open("-", "edge")
	c.ask(xds.Cluster)
	if v := <-asked; v != view {
		t.Errorf("OnView(%q), want %q", v, view)
	}
	g := newGeneration(t, 7)
	g.plain("a", 1)
	p.server.Update(view, g.Generation)
	c.expect("Cluster a")

	old := newGeneration(t, 6)
	old.plain("b", 1)
	p.server.Update(view, old.Generation)
	g = g.next()
	g.plain("c", 1)
	p.server.Update(view, g.Generation)
	c.expect("Cluster c")
}

// TestReplaced: the second stream of an identity ends the first.
func TestReplaced(t *testing.T) {
	p := newPlane(t, delivery.Options{})
	g := newGeneration(t, 1)
	g.plain("a", 1)
	p.server.Update(view, g.Generation)
	first := p.open("-", "edge")
	first.ask(xds.Cluster)
	first.expect("Cluster a")
	second := p.open("-", "edge")
	second.ask(xds.Cluster)
	second.expect("Cluster a")
	if _, err := first.stream.Recv(); status.Code(err) != codes.Aborted || !strings.Contains(err.Error(), "certificate of its own") {
		t.Errorf("the first stream ended with %v", err)
	}
	if all := p.server.Proxies(); len(all) != 1 {
		t.Errorf("%d proxies, want 1", len(all))
	}
	g = g.next()
	g.plain("b", 1)
	p.server.Update(view, g.Generation)
	second.expect("Cluster b")
}

// TestWait: proxies that join, leave, refuse and are silent while somebody waits.
func TestWait(t *testing.T) { synctest.Test(t, testWait) }

func testWait(t *testing.T) {
	p := newPlaneInMemory(t, delivery.Options{SilentAfter: 300 * time.Millisecond})
	if rep := p.wait(1); !rep.Complete || rep.Total != 0 {
		t.Errorf("with no proxy: %+v", rep)
	}
	g := newGeneration(t, 1)
	g.plain("a", 1)
	p.server.Update(view, g.Generation)
	open := func(name string) *client {
		c := p.open("-", name)
		c.ask(xds.Cluster)
		return c
	}
	good, leaver, refuser, silent := open("good"), open("leaver"), open("refuser"), open("silent")
	for _, c := range []*client{good, leaver, refuser, silent} {
		c.expect("Cluster a")
	}
	if rep := p.wait(1); rep.Serving != 4 {
		t.Fatalf("revision 1: %+v", rep)
	}

	g = g.next()
	g.plain("a", 2)
	reports := make(chan ledger.Report, 100)
	done := make(chan ledger.Report, 1)
	go func() {
		rep, _ := p.server.Wait(context.Background(), 2, func(r ledger.Report) { reports <- r })
		done <- rep
	}()
	if rep := <-reports; rep.Serving != 0 || rep.Complete || len(rep.Problems) != 4 || rep.Problems[0].State != ledger.Pending {
		t.Errorf("before the update: %+v", rep)
	}
	p.server.Update(view, g.Generation)
	good.expect("Cluster a")
	leaver.recv()
	leaver.conn.Close()
	refuser.answer(refuser.recv(), "no such thing")
	silent.recv()
	joiner := open("joiner")
	joiner.expect("Cluster a")

	rep := <-done
	if !rep.Complete || rep.Serving != 2 || rep.Total != 4 {
		t.Errorf("report %+v, want 2 of 4", rep)
	}
	states := map[string]string{}
	for _, q := range rep.Problems {
		states[q.Proxy] = string(q.State) + " " + q.Ref.String() + " " + q.Detail
	}
	if len(states) != 2 || states["refuser"] != "refused Cluster/a no such thing" || !strings.HasPrefix(states["silent"], "silent Cluster/a no answer") {
		t.Errorf("problems %v", states)
	}

	// A wait ends with its context, and with the server.
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if rep, err := p.server.Wait(ctx, 99, nil); !errors.Is(err, context.Canceled) || rep.Complete || rep.Total != 4 {
		t.Errorf("cancelled wait: %+v, %v", rep, err)
	}
	ended := make(chan error, 1)
	go func() {
		_, err := p.server.Wait(context.Background(), 99, func(ledger.Report) { p.server.Close() })
		ended <- err
	}()
	if err := <-ended; status.Code(err) != codes.Unavailable && err != nil {
		t.Errorf("wait of a closed server: %v", err)
	}
	if _, err := good.stream.Recv(); status.Code(err) != codes.Unavailable {
		t.Errorf("stream of a closed server: %v", err)
	}
}

// TestBadRequests: what no Envoy sends does not hurt the server.
func TestBadRequests(t *testing.T) {
	p := newPlane(t, delivery.Options{})
	g := newGeneration(t, 1)
	g.plain("a", 1)
	g.add(xds.Route, "r", &routev3.RouteConfiguration{Name: "r"})
	p.server.Update(view, g.Generation)

	c := p.open("-", "edge")
	c.ask("type.googleapis.com/envoy.service.runtime.v3.Runtime", "x") // no answer, and no end
	c.ask(xds.Type(""))
	c.ask(xds.Cluster)
	r := c.recv()
	c.send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: string(xds.Cluster), ResponseNonce: "999"})
	c.send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: string(xds.Route), ResponseNonce: r.GetNonce()})
	c.send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: string(xds.Route), ResourceNamesUnsubscribe: []string{"r", "never asked"}})
	c.answer(r, "")
	c.answer(r, "a late refusal")
	c.ask(xds.Route, "r", "r")
	c.expect("RouteConfiguration r")
	eventually(t, "the status", func() bool {
		s, _ := p.proxy("edge")
		return s.Resources[xds.Route] == 1 && s.Resources[xds.Cluster] == 1
	})

	var names []string
	for i := range 10_001 {
		names = append(names, fmt.Sprint("made-up-", i))
	}
	c.ask(xds.Secret, names...)
	for {
		if _, err := c.stream.Recv(); err != nil {
			if status.Code(err) != codes.ResourceExhausted {
				t.Errorf("after 10,001 unknown names: %v", err)
			}
			break
		}
	}
	if st := p.server.Stats().Types[xds.Secret]; st.Absent != 10_001 {
		t.Errorf("stats %+v", st)
	}
}

// TestNoIdentity: an error of Authenticate that is not a gRPC status refuses, too.
func TestNoIdentity(t *testing.T) {
	p := newPlane(t, delivery.Options{Authenticate: func(context.Context) (delivery.Identity, error) {
		return delivery.Identity{}, os.ErrPermission // not a gRPC status
	}})
	c := p.open("-", "edge")
	// The stream may have ended before the request is sent; Recv tells why.
	_ = c.stream.Send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: string(xds.Cluster)})
	if _, err := c.stream.Recv(); status.Code(err) != codes.Unauthenticated {
		t.Errorf("got %v", err)
	}
}
