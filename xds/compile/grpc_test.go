package compile_test

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	grpcxds "google.golang.org/grpc/xds"

	"github.com/penstock-gateway/penstock/gateway"
	"github.com/penstock-gateway/penstock/gateway/policies"
	"github.com/penstock-gateway/penstock/internal/pki"
	"github.com/penstock-gateway/penstock/internal/ports/porttest"
	"github.com/penstock-gateway/penstock/xds"
	"github.com/penstock-gateway/penstock/xds/bootstrap"
	"github.com/penstock-gateway/penstock/xds/compile"
	"github.com/penstock-gateway/penstock/xds/delivery"
	"github.com/penstock-gateway/penstock/xds/ledger"
)

// grpcPlane is a control plane for grpc-go's own xDS client.
type grpcPlane struct {
	t                   *testing.T
	dir, address        string
	ca                  *pki.CA
	server              *delivery.Server
	grpc                *grpc.Server
	compiler            *compile.Compiler
	snapshot            *gateway.Snapshot
	revision            int64
	problems            []gateway.Problem
	generation          *xds.Generation
	controlCert, ctrKey string
}

var grpcTestView = compile.View{Project: "default", Gateway: "-", GRPC: true}

func newGRPCPlane(t *testing.T) *grpcPlane {
	t.Helper()
	p := &grpcPlane{t: t, dir: t.TempDir(), address: porttest.Address(t)}
	var err error
	if p.ca, err = pki.OpenCA(p.dir); err != nil {
		t.Fatal(err)
	}
	p.controlCert, p.ctrKey, err = p.ca.EnsureFiles(p.dir, "control", pki.Request{SPIFFE: bootstrap.ControlSPIFFE, IPs: []net.IP{net.IPv4(127, 0, 0, 1)}})
	if err != nil {
		t.Fatal(err)
	}
	p.start()
	t.Cleanup(func() { p.stop() })
	return p
}

// start starts another control plane, on the same address after the first time.
func (p *grpcPlane) start() {
	p.t.Helper()
	conf, err := pki.ServerTLS(p.controlCert, p.ctrKey, p.ca.CertFile())
	if err != nil {
		p.t.Fatal(err)
	}
	p.compiler = compile.New(compile.Settings{})
	p.server = delivery.New(delivery.Options{
		Authenticate: func(ctx context.Context) (delivery.Identity, error) {
			id, err := pki.PeerSPIFFE(ctx)
			return delivery.Identity{Proxy: "client", SPIFFE: id, View: "default/-", GRPCView: grpcTestView.String()}, err
		},
		Logger: slog.New(slog.DiscardHandler), Grace: 200 * time.Millisecond, WarmRoutes: compile.WarmRoutes,
	})
	p.grpc = grpc.NewServer(append(delivery.GRPCOptions(0), grpc.Creds(credentials.NewTLS(conf)))...)
	p.server.Register(p.grpc)
	l := porttest.Listen(p.t, p.address)
	s := p.grpc
	go func() { _ = s.Serve(l) }()
}

func (p *grpcPlane) stop() {
	p.server.Close()
	p.grpc.Stop()
}

// apply replaces the state. The problems are kept, not failed on.
func (p *grpcPlane) apply(yaml string) {
	p.t.Helper()
	objects := decode(p.t, yaml)
	keep := map[string]bool{}
	for _, o := range objects {
		keep[o.GetName()] = true
	}
	c := gateway.Changes{Updates: objects}
	if p.snapshot != nil {
		for o := range p.snapshot.All() {
			if !keep[o.GetName()] {
				c.Deletes = append(c.Deletes, o.GetName())
			}
		}
	}
	p.revision++
	p.snapshot = policies.Model().Build(p.snapshot, p.revision, c)
	p.update()
}

func (p *grpcPlane) update() {
	p.generation, p.problems = p.compiler.Compile(compile.Input{Snapshot: p.snapshot, View: grpcTestView})
	p.server.Update(grpcTestView.String(), p.generation)
}

// wait waits until the clients serve the present state.
func (p *grpcPlane) wait() ledger.Report {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.t.Context(), 30*time.Second)
	defer cancel()
	rep, err := p.server.Wait(ctx, p.revision, nil)
	if err != nil {
		p.t.Fatalf("wait: %v: %+v", err, rep)
	}
	return rep
}

func (p *grpcPlane) sent() (n int64) {
	for _, s := range p.server.Stats().Types {
		n += s.Sent
	}
	return n
}

// dial opens a channel of a client whose bootstrap is the real one.
func (p *grpcPlane) dial(target string) *grpc.ClientConn {
	p.t.Helper()
	cert, key, err := p.ca.EnsureFiles(p.dir, "client", pki.Request{SPIFFE: pki.ProxyID("default", "-", "client")})
	if err != nil {
		p.t.Fatal(err)
	}
	conf, err := bootstrap.GRPC(bootstrap.Config{
		NodeID: "client", XDSAddresses: []string{p.address}, CAFile: filepath.Join(p.dir, "ca.crt"), CertFile: cert, KeyFile: key,
	})
	if err != nil {
		p.t.Fatal(err)
	}
	r, err := grpcxds.NewXDSResolverWithConfigForTesting(conf)
	if err != nil {
		p.t.Fatal(err)
	}
	conn, err := grpc.NewClient(target, grpc.WithResolvers(r), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { conn.Close() })
	return conn
}

// grpcBackend counts the calls that it answers.
type grpcBackend struct {
	healthpb.UnimplementedHealthServer
	server *grpc.Server
	addr   compile.Endpoint
	calls  atomic.Int64
}

func newGRPCBackend(t *testing.T) *grpcBackend {
	t.Helper()
	b := &grpcBackend{server: grpc.NewServer()}
	healthpb.RegisterHealthServer(b.server, b)
	b.addr = endpointOf(t, serveGRPC(t, b.server))
	return b
}

func (b *grpcBackend) Check(context.Context, *healthpb.HealthCheckRequest) (*healthpb.HealthCheckResponse, error) {
	b.calls.Add(1)
	return &healthpb.HealthCheckResponse{Status: healthpb.HealthCheckResponse_SERVING}, nil
}

func endpointsYAML(backends ...*grpcBackend) string {
	var all []string
	for _, b := range backends {
		all = append(all, fmt.Sprintf("{address: %s, port: %d}", b.addr.Address, b.addr.Port))
	}
	return "{endpoints: [" + strings.Join(all, ", ") + "]}"
}

func backendYAML(name string, backends ...*grpcBackend) string {
	return "\n---\nkind: Backend\nname: " + name + "\nprotocol: H2C\nstatic: " + endpointsYAML(backends...)
}

const grpcGateway = `
kind: Gateway
name: edge
listeners: [{name: http, address: 127.0.0.1, port: 8080}]`

func splitYAML(stable, canary int) string {
	return fmt.Sprintf(`
---
kind: Route
name: shop
gateways: [edge]
hostnames: [shop.example]
rules:
- forward: {backends: [{backend: stable, weight: %d}, {backend: canary, weight: %d}]}`, stable, canary)
}

func check(t *testing.T, conn *grpc.ClientConn, md ...string) error {
	ctx, cancel := context.WithTimeout(metadata.AppendToOutgoingContext(t.Context(), md...), 20*time.Second)
	defer cancel()
	_, err := healthpb.NewHealthClient(conn).Check(ctx, &healthpb.HealthCheckRequest{}, grpc.WaitForReady(true))
	return err
}

// load calls until stopped and returns how many calls there were. Each failed one
// fails the test.
func load(t *testing.T, conn *grpc.ClientConn) (stop func() int64) {
	var n atomic.Int64
	var wg sync.WaitGroup
	end := make(chan struct{})
	for range 4 {
		wg.Go(func() {
			for {
				select {
				case <-end:
					return
				default:
				}
				if err := check(t, conn); err != nil {
					t.Errorf("a call failed: %v", err)
					return
				}
				n.Add(1)
			}
		})
	}
	stop = sync.OnceValue(func() int64 { close(end); wg.Wait(); return n.Load() })
	t.Cleanup(func() { stop() })
	return stop
}

// during waits for calls to be made while something goes on.
func during(t *testing.T, b *grpcBackend, n int64) {
	t.Helper()
	from := b.calls.Load()
	poll(t, "calls", func() bool { return b.calls.Load() >= from+n })
}

// TestGRPCClient: grpc-go's xDS client is served: weights, changes of them while
// calls go on, endpoints that go, and control planes that go.
func TestGRPCClient(t *testing.T) {
	p := newGRPCPlane(t)
	a, b, c := newGRPCBackend(t), newGRPCBackend(t), newGRPCBackend(t)
	state := func(stable, canary int) string {
		return grpcGateway + backendYAML("stable", a, b) + backendYAML("canary", c) + splitYAML(stable, canary)
	}
	p.apply(state(80, 20))
	if len(p.problems) > 0 {
		t.Fatalf("problems %+v", p.problems)
	}
	conn := p.dial("xds:///shop.example")
	for range 2000 {
		if err := check(t, conn); err != nil {
			t.Fatal(err)
		}
	}
	// 400 are expected at the canary; five standard deviations are 90.
	if n := c.calls.Load(); n < 310 || n > 490 {
		t.Errorf("%d of 2000 calls at the canary, want about 400", n)
	}
	if x, y := a.calls.Load(), b.calls.Load(); x < 600 || y < 600 {
		t.Errorf("%d and %d calls at the two endpoints, want about 800 each", x, y)
	}
	if rep := p.wait(); rep.Serving != 1 || rep.Total != 1 || len(rep.Problems) > 0 {
		t.Errorf("report %+v", rep)
	}
	all := p.server.Proxies()
	if len(all) != 1 || all[0].Resources[xds.Cluster] != 2 || all[0].Resources[xds.Listener] != 1 || !strings.HasPrefix(all[0].Version, "1.") {
		t.Errorf("proxies %+v", all)
	}

	stop := load(t, conn)
	t.Run("weights", func(t *testing.T) {
		for i := range 20 {
			p.apply(state(100-i*5, i*5))
			if rep := p.wait(); rep.Serving != 1 {
				t.Errorf("report %+v", rep)
			}
		}
		p.apply(state(0, 100))
		p.wait()
		during(t, c, 50)
	})
	t.Run("another cluster", func(t *testing.T) {
		// The route goes to a cluster that is new, and the old ones go.
		p.apply(grpcGateway + backendYAML("next", a) + "\n---\nkind: Route\nname: shop\ngateways: [edge]\nhostnames: [shop.example]\nrules: [{forward: {backends: [{backend: next}]}}]")
		p.wait()
		during(t, a, 50)
		poll(t, "the old clusters to be gone", func() bool { return p.server.Proxies()[0].Resources[xds.Cluster] == 1 })
		p.apply(state(80, 20))
		p.wait()
		during(t, c, 50)
	})
	t.Run("endpoint removed", func(t *testing.T) {
		p.apply(grpcGateway + backendYAML("stable", a) + backendYAML("canary", c) + splitYAML(80, 20))
		p.wait()
		during(t, a, 50)
		from := b.calls.Load()
		during(t, a, 50)
		if n := b.calls.Load() - from; n > 0 {
			t.Errorf("%d calls at an endpoint that is gone", n)
		}
	})
	t.Run("another control plane", func(t *testing.T) {
		p.stop()
		during(t, a, 50)
		p.start()
		p.update()
		poll(t, "the client to be back", func() bool { return len(p.server.Proxies()) == 1 && p.server.Proxies()[0].Resources[xds.Endpoint] == 2 })
		p.wait()
		if n := p.sent(); n != 0 {
			t.Errorf("%d resources were sent again", n)
		}
		p.apply(grpcGateway + backendYAML("stable", b) + backendYAML("canary", c) + splitYAML(80, 20))
		p.wait()
		during(t, b, 50)
		stop()
		// One that has another state: the clusters of the old are gone there.
		p.stop()
		p.snapshot = nil
		p.start()
		p.apply(grpcGateway + backendYAML("next", a) + "\n---\nkind: Route\nname: shop\ngateways: [edge]\nhostnames: [shop.example]\nrules: [{forward: {backends: [{backend: next}]}}]")
		// What routes the client has is not known there, so they cannot be made ready for
		// the new cluster, and a call in that moment may fail (see delivery).
		poll(t, "the new routes", func() bool {
			from := a.calls.Load()
			return check(t, conn) == nil && a.calls.Load() > from
		})
		during2(t, conn, a, 50)
		poll(t, "the old clusters to be gone", func() bool {
			all := p.server.Proxies()
			return len(all) == 1 && all[0].Resources[xds.Cluster] == 1 && all[0].State == ledger.Serving
		})
	})
	if n := stop(); n < 500 {
		t.Errorf("only %d calls", n)
	}
	t.Run("server killed", func(t *testing.T) {
		p.apply(grpcGateway + backendYAML("next", a, b) + "\n---\nkind: Route\nname: shop\ngateways: [edge]\nhostnames: [shop.example]\nrules: [{forward: {backends: [{backend: next}]}}]")
		p.wait()
		during2(t, conn, b, 20)
		a.server.Stop()
		for range 50 {
			// A call that the dead one has seen may fail; no later one.
			if err := check(t, conn); err != nil && status.Code(err) != codes.Unavailable {
				t.Error(err)
			}
		}
		for range 50 {
			if err := check(t, conn); err != nil {
				t.Errorf("a call with a dead endpoint: %v", err)
			}
		}
	})
}

// during2 makes calls until a backend has got some.
func during2(t *testing.T, conn *grpc.ClientConn, b *grpcBackend, n int64) {
	t.Helper()
	from := b.calls.Load()
	poll(t, "calls", func() bool {
		if err := check(t, conn); err != nil {
			t.Error(err)
		}
		return b.calls.Load() >= from+n
	})
}
