package main

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
	grpcxds "google.golang.org/grpc/xds"
	"google.golang.org/protobuf/types/known/durationpb"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
	"github.com/penstock-gateway/penstock/internal/access/connect"
)

// applyGRPC makes svc.example a host with a gRPC server behind it.
func (p *proxyPlane) applyGRPC(server net.Addr, policies *pb.Policies) error {
	p.t.Helper()
	conn, err := grpc.NewClient(p.addr.API.String(), grpc.WithTransportCredentials(insecure.NewCredentials()), connect.Owner(p.dir))
	if err != nil {
		p.t.Fatal(err)
	}
	defer conn.Close()
	at := server.(*net.TCPAddr)
	_, err = pb.NewConfigServiceClient(conn).Apply(p.t.Context(), &pb.ApplyRequest{Resources: []*pb.Resource{
		{Kind: &pb.Resource_Backend{Backend: &pb.Backend{
			Name: "projects/default/backends/up", Protocol: pb.BackendProtocol_BACKEND_PROTOCOL_H2C,
			Target: &pb.Backend_Static{Static: &pb.StaticTarget{Endpoints: []*pb.Endpoint{{Address: at.IP.String(), Port: uint32(at.Port)}}}},
		}}},
		{Kind: &pb.Resource_Route{Route: &pb.Route{Name: "projects/default/routes/svc", Hostnames: []string{"svc.example"}, Rules: []*pb.RouteRule{{
			Policies: policies,
			Action:   &pb.RouteRule_Forward{Forward: &pb.Forward{Backends: []*pb.WeightedBackend{{Backend: "up"}}}},
		}}}}},
	}})
	return err
}

// TestProxyJoinGRPC: a folder made by join is all that a gRPC client needs to call
// without a proxy. A policy that it would not obey can be written, and shuts it out;
// a revocation closes its stream.
func TestProxyJoinGRPC(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	healthpb.RegisterHealthServer(server, health.NewServer())
	go func() { _ = server.Serve(l) }()
	t.Cleanup(server.Stop)

	p := startProxyPlane(t, 0)
	if err := p.applyGRPC(l.Addr(), nil); err != nil {
		t.Fatal(err)
	}
	dir := shortDir(t)
	out := p.must("proxy", "join", "--grpc", "--token="+p.token("app"), "--control="+p.addr.XDS.String(), "--dir="+dir)
	if want := "GRPC_XDS_BOOTSTRAP=" + filepath.Join(dir, "grpc.json"); !strings.Contains(out, want) {
		t.Errorf("join says %q, want %q in it", out, want)
	}
	if _, err := os.Stat(filepath.Join(dir, "envoy.json")); err == nil {
		t.Error("there is a bootstrap for Envoy")
	}
	conf, err := os.ReadFile(filepath.Join(dir, "grpc.json"))
	if err != nil {
		t.Fatal(err)
	}
	r, err := grpcxds.NewXDSResolverWithConfigForTesting(conf)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := grpc.NewClient("xds:///svc.example", grpc.WithResolvers(r), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	call := func() error {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		_, err := healthpb.NewHealthClient(conn).Check(ctx, &healthpb.HealthCheckRequest{})
		return err
	}
	if err := call(); err != nil {
		t.Fatalf("%v; log of the control plane:\n%s", err, p.log.String())
	}
	if s := p.connected("app"); s == nil || !strings.HasPrefix(s.GetIdentity(), "spiffe://penstock.local/proxy/default/edge/app#") {
		t.Errorf("the status has it as %v", s)
	}

	limit := &pb.Policies{RateLimit: &pb.RateLimitPolicy{Limits: []*pb.RateLimit{{Name: "l", Requests: 1, Window: durationpb.New(time.Minute)}}}}
	if err := p.applyGRPC(l.Addr(), limit); err != nil {
		t.Fatalf("a policy that a gRPC client does not obey was refused: %v", err)
	}
	p.until("the client to be shut out", func() bool { return status.Code(call()) == codes.Unavailable })
	if s, err := p.core.Status(t.Context()); err != nil || len(s.GetProblems()) != 1 || !strings.Contains(s.GetProblems()[0].GetMessage(), "count calls (rate_limit)") {
		t.Errorf("status %v, %v", s, err)
	}
	if err := p.applyGRPC(l.Addr(), nil); err != nil {
		t.Fatal(err)
	}
	p.until("the client to be let in again", func() bool { return call() == nil })

	p.must("proxy", "revoke", p.api(), "--reason=test", "app")
	p.until("the stream to be closed", func() bool { return p.connected("app") == nil })
}
