package main

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/penstock-gateway/penstock/internal/socket/sockettest"
)

// outsiderEnv makes the test binary another process of the machine, which tries the
// listeners named there, and prints what it got.
const outsiderEnv = "PENSTOCK_TEST_OUTSIDER"

// tried is what an outsider got of a listener.
type tried struct {
	// Errno is that of the connection; 0: there is one.
	Errno syscall.Errno
	// Served are the calls that were not refused.
	Served []string
}

// outsiderPaths and outsiderMethods are what an outsider asks every listener for,
// whatever it is.
var outsiderPaths = []string{
	"/", "/readyz", "/livez", "/healthz", "/ready", "/metrics", "/stats", "/config_dump", "/debug/", "/debug/pprof/", "/debug/dump?stage=model",
	"/v1/status", "/v1/devIssuer", "/openapi.json", "/api/services", "/api/traces?service=envoy", "/2018-06-01/runtime/invocation/next", "/health", "/v3/kv/range",
}

var outsiderMethods = []string{
	"/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch", "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
	"/penstock.v1.ConfigService/ListRevisions", "/penstock.v1.ConfigService/Apply", "/penstock.v1.ProxyService/GetStatus",
	"/penstock.v1.AccessService/WhoAmI", "/penstock.v1.DevTokenService/MintDevToken", "/penstock.v1.ProxyAdmissionService/CreateJoinToken",
	"/penstock.v1.ProxyJoinService/Join", "/penstock.v1.ProxyJoinService/Renew", "/penstock.v1.RunnerService/Connect",
	"/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources",
	"/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources",
	"/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit", "/opentelemetry.proto.collector.trace.v1.TraceService/Export",
	"/jaeger.api_v2.QueryService/GetServices", "/jaeger.api_v2.CollectorService/PostSpans", "/etcdserverpb.KV/Range",
}

// outsider is the process.
func outsider() {
	var targets []string
	if err := json.Unmarshal([]byte(os.Getenv(outsiderEnv)), &targets); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	out := map[string]tried{}
	for _, target := range targets {
		out[target] = try(target)
	}
	if err := json.NewEncoder(os.Stdout).Encode(out); err != nil {
		os.Exit(1)
	}
}

// patience is how long an answer may take; an open stream has none.
const patience = 2 * time.Second

func try(target string) tried {
	network, address := networkOf(target)
	c, err := net.DialTimeout(network, address, patience)
	if err != nil {
		var no syscall.Errno
		if !errors.As(err, &no) {
			no = syscall.ETIMEDOUT
		}
		return tried{Errno: no}
	}
	c.Close()
	dial := func(ctx context.Context) (net.Conn, error) { return new(net.Dialer).DialContext(ctx, network, address) }
	var out tried
	for scheme, config := range map[string]*tls.Config{"http": nil, "https": {InsecureSkipVerify: true}} {
		client := &http.Client{Timeout: patience, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }, Transport: &http.Transport{
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx) }, TLSClientConfig: config,
		}}
		for _, path := range outsiderPaths {
			resp, err := client.Get(scheme + "://localhost" + path)
			if err != nil {
				continue
			}
			resp.Body.Close()
			if resp.StatusCode < 400 {
				out.Served = append(out.Served, scheme+" "+path)
			}
		}
		creds := insecure.NewCredentials()
		if config != nil {
			creds = credentials.NewTLS(config.Clone())
		}
		conn, err := grpc.NewClient("passthrough:///localhost", grpc.WithTransportCredentials(creds), grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return dial(ctx) }))
		if err != nil {
			continue
		}
		for _, m := range outsiderMethods {
			if servedCall(conn, m) {
				out.Served = append(out.Served, map[string]string{"http": "grpc ", "https": "grpc+tls "}[scheme]+m)
			}
		}
		conn.Close()
	}
	slices.Sort(out.Served)
	return out
}

func networkOf(target string) (network, address string) {
	if filepath.IsAbs(target) || target[0] == '@' {
		return "unix", target
	}
	return "tcp", target
}

// servedCall reports whether a method does anything but refuse a caller.
func servedCall(conn *grpc.ClientConn, method string) bool {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	stream, err := conn.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, method)
	if err == nil {
		if err = stream.SendMsg(&emptypb.Empty{}); err == nil || errors.Is(err, io.EOF) {
			_ = stream.CloseSend()
			err = stream.RecvMsg(&emptypb.Empty{})
		}
	}
	switch status.Code(err) {
	case codes.Unauthenticated, codes.PermissionDenied, codes.Unimplemented, codes.Unavailable, codes.Unknown:
		return false
	case codes.ResourceExhausted: // too many tries
		return false
	case codes.Internal: // what answers is not a gRPC server
		return false
	}
	return true
}

// asOutsider tries listeners as another user of the machine, where this test may start
// a process of one (as root), and else as a process of this user.
func asOutsider(t *testing.T, targets []string) map[string]tried {
	t.Helper()
	b, err := json.Marshal(targets)
	if err != nil {
		t.Fatal(err)
	}
	program := sockettest.Program(t)
	cmd := exec.CommandContext(t.Context(), program)
	cmd.Dir = filepath.Dir(program)
	cmd.Env = append(os.Environ(), outsiderEnv+"="+string(b))
	if os.Geteuid() == 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	}
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("outsider: %v", err)
	}
	var result map[string]tried
	if err := json.Unmarshal(out, &result); err != nil {
		t.Fatalf("outsider: %v: %.500s", err, out)
	}
	return result
}
