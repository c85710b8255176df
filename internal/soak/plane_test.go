package soak

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace/noop"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/penstock-gateway/penstock/gateway"
	"github.com/penstock-gateway/penstock/gateway/source/file"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
	"github.com/penstock-gateway/penstock/internal/access/accesstest"
	"github.com/penstock-gateway/penstock/internal/access/connect"
	"github.com/penstock-gateway/penstock/internal/control"
	"github.com/penstock-gateway/penstock/internal/envoytest"
	"github.com/penstock-gateway/penstock/internal/pki"
	"github.com/penstock-gateway/penstock/ratelimit"
	"github.com/penstock-gateway/penstock/store"
	"github.com/penstock-gateway/penstock/xds/bootstrap"
	"github.com/penstock-gateway/penstock/xds/compile"
	"github.com/penstock-gateway/penstock/xds/delivery"
	"github.com/penstock-gateway/penstock/xds/keeper"
)

// restless has hosts become lazy and eager again as they come and go, and ends the
// stream of the proxy again and again.
func restless(p *plane) {
	p.settings.EagerHosts, p.streamAge = 6, 5*time.Second
}

// patience bounds every wait for something that must happen.
const patience = 60 * time.Second

// plane is a control plane on an embedded store, which can be ended and started
// again, with the Envoy that belongs to it.
type plane struct {
	store     store.Store
	settings  compile.Settings
	streamAge time.Duration
	dir       string
	ca        *pki.CA
	xds       string // keeps its port over restarts
	envoy     *envoytest.Envoy
	// kept has a keeper between the proxy and the control plane.
	kept      bool
	keeper    *keeper.Keeper
	endKeeper func()

	core   *control.Core
	conn   *grpc.ClientConn
	config pb.ConfigServiceClient
	stop   context.CancelFunc
	served chan error
}

func newPlane(t *testing.T, options ...func(*plane)) *plane {
	t.Helper()
	p := &plane{dir: t.TempDir(), xds: "127.0.0.1:0", settings: compile.Settings{Limiters: []compile.Endpoint{limiter(t)}}}
	for _, set := range options {
		set(p)
	}
	var err error
	if p.store, err = store.Open(t.Context(), store.Options{
		DataDir: filepath.Join(p.dir, "etcd"), Prefix: "/soak", SealKey: make([]byte, 32), Logger: slog.New(slog.DiscardHandler),
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.store.Close() })
	if p.ca, err = pki.OpenCA(filepath.Join(p.dir, "pki")); err != nil {
		t.Fatal(err)
	}
	p.up(t)
	t.Cleanup(func() { p.down(t) })
	if p.kept {
		p.startKeeper(t)
	}
	p.startEnvoy(t)
	waitFor(t, "the proxy to connect", func() bool { return p.proxy(t) != nil })
	return p
}

// startEnvoy starts the proxy.
func (p *plane) startEnvoy(t *testing.T) {
	t.Helper()
	c := bootstrap.Config{NodeID: "soak", XDSSocket: filepath.Join(p.dir, "keep", "xds.sock")}
	if !p.kept {
		cert, key := p.issue(t, "proxy", proxyIdentity)
		c = bootstrap.Config{
			NodeID: "soak", XDSAddresses: []string{p.xds}, XDSServerName: "localhost", CAFile: p.file("ca.crt"), CertFile: cert, KeyFile: key,
		}
	}
	p.envoy = envoytest.Start(t, envoytest.Options{Concurrency: 2, Config: c})
}

const proxyIdentity = "spiffe://" + pki.TrustDomain + "/proxy/default/-/soak"

// startKeeper starts the keeper, also again as after a reboot.
func (p *plane) startKeeper(t *testing.T) {
	t.Helper()
	cert, key := p.issue(t, "proxy", proxyIdentity)
	var err error
	if p.keeper, err = keeper.New(keeper.Options{
		Dir: filepath.Join(p.dir, "keep"), Identity: proxyIdentity, Socket: filepath.Join(p.dir, "keep", "xds.sock"),
		Control: []string{p.xds}, ServerName: "localhost", CertFile: cert, KeyFile: key, CAFile: p.file("ca.crt"), ControlSPIFFE: bootstrap.ControlSPIFFE,
		Logger: slog.New(slog.NewTextHandler(t.Output(), nil)),
	}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done, k := make(chan error, 1), p.keeper
	l, err := k.Listen(ctx)
	if err != nil {
		t.Fatal(err)
	}
	go func() { done <- k.Serve(ctx, l) }()
	p.endKeeper = sync.OnceFunc(func() {
		cancel()
		if err := errors.Join(<-done, k.Close()); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(p.endKeeper)
}

func (p *plane) file(name string) string { return filepath.Join(p.dir, "pki", name) }

func (p *plane) issue(t *testing.T, base, spiffe string) (cert, key string) {
	t.Helper()
	cert, key, err := p.ca.EnsureFiles(filepath.Join(p.dir, "pki"), base, pki.Request{
		SPIFFE: spiffe, DNS: []string{"localhost"}, IPs: []net.IP{net.IPv4(127, 0, 0, 1)},
	})
	if err != nil {
		t.Fatal(err)
	}
	return cert, key
}

// limiter serves the real limiter, with counters in memory.
func limiter(t *testing.T) compile.Endpoint {
	t.Helper()
	metrics, err := ratelimit.NewMetrics(prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	backend := ratelimit.NewMemory(ratelimit.MemoryOptions{MaxKeys: 1000})
	server, _ := ratelimit.NewServer(ratelimit.NewService(backend, metrics, slog.New(slog.DiscardHandler)), noop.NewTracerProvider(), propagation.TraceContext{})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { defer close(done); _ = server.Serve(l) }()
	t.Cleanup(func() { server.Stop(); <-done; backend.Close() })
	return compile.Endpoint{Address: "127.0.0.1", Port: uint32(l.Addr().(*net.TCPAddr).Port)}
}

// authenticate tells who a proxy is by its certificate, as the binary does.
func authenticate(ctx context.Context) (delivery.Identity, error) {
	id, err := pki.PeerSPIFFE(ctx)
	if err != nil {
		return delivery.Identity{}, err
	}
	project, gw, name, err := pki.ParseProxyID(id)
	return delivery.Identity{Proxy: name, SPIFFE: id, View: compile.View{Project: project, Gateway: gw}.String()}, err
}

// up starts a Core on the store and serves it.
func (p *plane) up(t *testing.T) {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	var err error
	if p.core, err = control.New(context.Background(), control.Options{
		Store: p.store, Settings: p.settings, Logger: log, Version: "soak", Authenticate: authenticate, StreamAge: p.streamAge,
	}); err != nil {
		t.Fatal(err)
	}
	cert, key := p.issue(t, "control", "spiffe://"+pki.TrustDomain+"/control")
	tlsConfig, err := pki.ServerTLS(cert, key, p.file("ca.crt"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	p.stop, p.served = stop, make(chan error, 1)
	ready := make(chan control.Addresses, 1)
	go func() {
		p.served <- p.core.Serve(ctx, control.ServeOptions{
			Access: accesstest.Open(t, p.dir), API: "127.0.0.1:0", HTTP: "127.0.0.1:0", XDS: p.xds, TLS: tlsConfig, Logger: log,
			TracerProvider: noop.NewTracerProvider(), Ready: func(a control.Addresses) { ready <- a },
		})
	}()
	var at control.Addresses
	select {
	case at = <-ready:
	case err := <-p.served:
		t.Fatal(err)
	}
	p.xds = at.XDS.String()
	if p.conn, err = grpc.NewClient(at.API.String(), grpc.WithTransportCredentials(insecure.NewCredentials()), connect.Owner(p.dir)); err != nil {
		t.Fatal(err)
	}
	p.config = pb.NewConfigServiceClient(p.conn)
}

// down ends the Core, if there is one, in the midst of whatever it does: calls and streams are cut.
func (p *plane) down(t *testing.T) {
	t.Helper()
	if p.stop == nil {
		return
	}
	p.stop()
	p.stop = nil
	if err := <-p.served; err != nil {
		t.Error(err)
	}
	p.core.Close()
	p.conn.Close()
}

// resources reads YAML, as files of the user are read.
func resources(t *testing.T, yaml string) []*pb.Resource {
	t.Helper()
	if strings.TrimSpace(yaml) == "" {
		return nil
	}
	objects, errs := file.Decode("soak.yaml", []byte(yaml))
	if len(errs) > 0 {
		t.Fatalf("%s\n%s", errs.Error(), yaml)
	}
	var out []*pb.Resource
	for _, o := range objects {
		out = append(out, gateway.ToResource(o))
	}
	return out
}

// apply applies YAML and returns once Envoy serves it.
func (p *plane) apply(t *testing.T, yaml string, deletes ...string) {
	t.Helper()
	if err := p.try(t.Context(), resources(t, yaml), deletes...); err != nil {
		t.Fatalf("%v\n%s\ndelete %v", err, yaml, deletes)
	}
}

// try is apply with an error when the Envoy does not serve all of it.
func (p *plane) try(ctx context.Context, resources []*pb.Resource, deletes ...string) error {
	req := &pb.ApplyRequest{Resources: resources, Options: &pb.WriteOptions{WaitTimeout: durationpb.New(patience)}}
	for _, d := range deletes {
		req.Deletes = append(req.Deletes, "projects/default/"+d)
	}
	r, err := p.config.Apply(ctx, req)
	if err != nil {
		return err
	}
	if s := r.GetResult().GetServing(); !s.GetComplete() || s.GetServing() != 1 || s.GetTotal() != 1 || len(s.GetProblems()) > 0 {
		return fmt.Errorf("revision %d is not served: %v", r.GetResult().GetRevision(), s)
	}
	return nil
}

// proxy is the state of the one proxy; nil while it is not connected.
func (p *plane) proxy(t *testing.T) *pb.Proxy {
	t.Helper()
	r, err := pb.NewProxyServiceClient(p.conn).ListProxies(t.Context(), &pb.ListProxiesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if len(r.GetProxies()) == 0 {
		return nil
	}
	return r.GetProxies()[0]
}

// waitFor polls until cond holds.
func waitFor(t *testing.T, what string, cond func() bool) {
	t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(patience); !cond(); <-tick.C {
		if time.Now().After(deadline) {
			t.Fatalf("waited %s in vain for %s", patience, what)
		}
	}
}

// transport speaks plain HTTP/1.1, or HTTP/2 with prior knowledge.
func transport(h2 bool) *http.Transport {
	tr := &http.Transport{DisableCompression: true, MaxIdleConnsPerHost: 1, MaxConnsPerHost: 1, Protocols: new(http.Protocols)}
	tr.Protocols.SetHTTP1(!h2)
	tr.Protocols.SetUnencryptedHTTP2(h2)
	return tr
}
