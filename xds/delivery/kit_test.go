package delivery_test

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/proto"

	"github.com/penstock-gateway/penstock/internal/pki"
	"github.com/penstock-gateway/penstock/internal/ports/porttest"
	"github.com/penstock-gateway/penstock/xds"
	"github.com/penstock-gateway/penstock/xds/bootstrap"
	"github.com/penstock-gateway/penstock/xds/delivery"
	"github.com/penstock-gateway/penstock/xds/ledger"
)

// plane is a control plane with nothing behind it: a CA, and a delivery server
// over mutual TLS on loopback whose views the test updates by hand.
type plane struct {
	t    testing.TB
	dir  string
	ca   *pki.CA
	addr string
	opt  delivery.Options

	server *delivery.Server
	grpc   *grpc.Server
	memory *bufconn.Listener // in place of loopback, within a synctest bubble
}

// newPlaneInMemory starts one whose connections are in memory, for tests in which time
// matters: the clock of their bubble stands still while there is something to do.
func newPlaneInMemory(t testing.TB, o delivery.Options) *plane {
	return newPlaneOn(t, o, bufconn.Listen(1<<16))
}

// newPlane starts one. Zero options are short enough for tests.
func newPlane(t testing.TB, o delivery.Options) *plane { return newPlaneOn(t, o, nil) }

func newPlaneOn(t testing.TB, o delivery.Options, memory *bufconn.Listener) *plane {
	t.Helper()
	p := &plane{t: t, dir: t.TempDir(), opt: o, addr: porttest.Address(t), memory: memory}
	var err error
	if p.ca, err = pki.OpenCA(filepath.Join(p.dir, "ca")); err != nil {
		t.Fatal(err)
	}
	if p.opt.Authenticate == nil {
		p.opt.Authenticate = authenticate
	}
	if p.opt.Logger == nil {
		p.opt.Logger = slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	if p.opt.Grace == 0 {
		p.opt.Grace = 50 * time.Millisecond
	}
	p.start()
	t.Cleanup(p.stop)
	return p
}

// authenticate is what the control plane does.
func authenticate(ctx context.Context) (delivery.Identity, error) {
	id, err := pki.PeerSPIFFE(ctx)
	if err != nil {
		return delivery.Identity{}, err
	}
	project, gateway, name, err := pki.ParseProxyID(id)
	if err != nil {
		return delivery.Identity{}, err
	}
	return delivery.Identity{Proxy: name, SPIFFE: id, View: project + "/" + gateway}, nil
}

// start makes a new server, on the same address after the first time.
func (p *plane) start() {
	p.t.Helper()
	var lis net.Listener = p.memory
	if p.memory == nil {
		lis = porttest.Listen(p.t, p.addr)
	}
	cert, key, err := p.ca.EnsureFiles(p.dir, "control", pki.Request{
		SPIFFE: "spiffe://" + pki.TrustDomain + "/control", DNS: []string{"localhost"}, IPs: []net.IP{net.IPv4(127, 0, 0, 1)},
	})
	if err != nil {
		p.t.Fatal(err)
	}
	tls, err := pki.ServerTLS(cert, key, p.ca.CertFile())
	if err != nil {
		p.t.Fatal(err)
	}
	p.server = delivery.New(p.opt)
	p.grpc = grpc.NewServer(append(delivery.GRPCOptions(p.opt.StreamAge), grpc.Creds(credentials.NewTLS(tls)))...)
	p.server.Register(p.grpc)
	go func() { _ = p.grpc.Serve(lis) }()
}

func (p *plane) stop() {
	p.server.Close()
	p.grpc.Stop()
}

// files are certificate and key of a proxy of project default.
func (p *plane) files(gateway, name string) (cert, key string) {
	p.t.Helper()
	cert, key, err := p.ca.EnsureFiles(p.dir, name, pki.Request{SPIFFE: pki.ProxyID("default", gateway, name)})
	if err != nil {
		p.t.Fatal(err)
	}
	return cert, key
}

// config is the bootstrap configuration of a proxy.
func (p *plane) config(gateway, name string) bootstrap.Config {
	cert, key := p.files(gateway, name)
	return bootstrap.Config{
		NodeID: name, XDSAddresses: []string{p.addr}, XDSServerName: "localhost",
		CAFile: p.ca.CertFile(), CertFile: cert, KeyFile: key,
	}
}

// sent is how many resources went out.
func (p *plane) sent() (n int64) {
	for _, t := range p.server.Stats().Types {
		n += t.Sent
	}
	return n
}

// wait waits for a revision and fails the test when that takes too long.
func (p *plane) wait(revision int64) ledger.Report {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	rep, err := p.server.Wait(ctx, revision, nil)
	if err != nil {
		p.t.Fatalf("wait for revision %d: %v: %+v", revision, err, rep)
	}
	return rep
}

// proxy is the state of a connected proxy by its name.
func (p *plane) proxy(name string) (ledger.ProxyStatus, bool) {
	for _, s := range p.server.Proxies() {
		if s.Name == name {
			return s, true
		}
	}
	return ledger.ProxyStatus{}, false
}

// eventually polls a condition.
func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for !cond() {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for %s", what)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// generation is a generation under construction.
type generation struct {
	t testing.TB
	*xds.Generation
}

func newGeneration(t testing.TB, revision int64) generation {
	return generation{t, &xds.Generation{Revision: revision}}
}

// next is the generation after g with the same resources.
func (g generation) next() generation {
	n := generation{g.t, g.Clone()}
	n.Revision++
	return n
}

// add puts in a resource; refs are "Type/name" with the short type.
func (g generation) add(t xds.Type, name string, m proto.Message, refs ...string) {
	g.t.Helper()
	r, err := xds.NewResource(t, name, m, parseRefs(refs), []string{"objects/" + name})
	if err != nil {
		g.t.Fatal(err)
	}
	g.Set(r)
}

var shortTypes = map[string]xds.Type{
	"cluster": xds.Cluster, "endpoint": xds.Endpoint, "route": xds.Route, "secret": xds.Secret, "extension": xds.ExtensionConfig,
}

func parseRefs(refs []string) (out []xds.Ref) {
	for _, s := range refs {
		t, name, ok := strings.Cut(s, "/")
		if !ok || shortTypes[t] == "" {
			panic(fmt.Sprintf("bad reference %q", s))
		}
		out = append(out, xds.Ref{Type: shortTypes[t], Name: name})
	}
	return out
}
