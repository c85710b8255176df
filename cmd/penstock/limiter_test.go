package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	commonratelimitv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/common/ratelimit/v3"
	ratelimitv3 "github.com/envoyproxy/go-control-plane/envoy/service/ratelimit/v3"
	collectortracev1 "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	tracev1 "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/penstock-gateway/penstock/internal/envoytest"
	"github.com/penstock-gateway/penstock/internal/redistest"
	"github.com/penstock-gateway/penstock/ratelimit"
)

// runInBackground runs a subcommand until the test or stop ends it; stop returns
// its error.
func runInBackground(t *testing.T, args ...string) (stop func() error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	root := newRoot()
	root.SetArgs(args)
	done := make(chan error, 1)
	go func() { done <- root.ExecuteContext(ctx) }()
	ended := false
	stop = func() error {
		if ended {
			return nil
		}
		ended = true
		cancel()
		select {
		case err := <-done:
			return err
		case <-time.After(30 * time.Second):
			return fmt.Errorf("%s does not end", args[0])
		}
	}
	t.Cleanup(func() {
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
	return stop
}

func dialTest(t *testing.T, address string) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// TestLimiterCommand: two limiters with one Redis share a count; the one with
// metrics serves them; both end when asked.
func TestLimiterCommand(t *testing.T) {
	redis := redistest.Start(t)
	metrics := fmt.Sprintf("127.0.0.1:%d", envoytest.FreePort(t))
	var clients []ratelimitv3.RateLimitServiceClient
	var stops []func() error
	for i := range 2 {
		address := fmt.Sprintf("127.0.0.1:%d", envoytest.FreePort(t))
		args := []string{"limiter", "--listen", address, "--redis-timeout", "10s", "--log-level", "error"}
		if i == 0 {
			args = append(args, "--metrics-listen", metrics, "--redis-url", redis.URL())
		} else {
			t.Setenv("PENSTOCK_REDIS_URL", redis.URL())
		}
		stops = append(stops, runInBackground(t, args...))
		clients = append(clients, ratelimitv3.NewRateLimitServiceClient(dialTest(t, address)))
	}
	spec := ratelimit.Spec{ID: "x", Name: "x", Requests: 3, Window: time.Hour, Key: ratelimit.Shared}
	req := &ratelimitv3.RateLimitRequest{Domain: ratelimit.Domain, Descriptors: []*commonratelimitv3.RateLimitDescriptor{{
		Entries: []*commonratelimitv3.RateLimitDescriptor_Entry{{Key: ratelimit.EntryLimit, Value: spec.String()}},
	}}}
	for i := range 4 {
		res, err := clients[i%2].ShouldRateLimit(t.Context(), req, grpc.WaitForReady(true))
		want := ratelimitv3.RateLimitResponse_OK
		if i == 3 {
			want = ratelimitv3.RateLimitResponse_OVER_LIMIT
		}
		if err != nil || res.GetOverallCode() != want {
			t.Errorf("request %d: %v, %v", i+1, res, err)
		}
	}
	res, err := http.Get("http://" + metrics + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil || !strings.Contains(string(b), `penstock_limiter_backend_up{backend="redis"} 1`) || !strings.Contains(string(b), `penstock_limiter_decisions_total{decision="allowed",limit="x"} 2`) {
		t.Errorf("metrics, %v:\n%.2000s", err, b)
	}
	for _, stop := range stops {
		if err := stop(); err != nil {
			t.Error(err)
		}
	}
}

func TestLimiterAndRelayErrors(t *testing.T) {
	taken := fmt.Sprintf("127.0.0.1:%d", envoytest.FreePort(t))
	runInBackground(t, "relay", "--listen", taken, "--to", "127.0.0.1:1", "--flush-timeout", "1ms", "--log-level", "error")
	conn := dialTest(t, taken)
	if _, err := collectortracev1.NewTraceServiceClient(conn).Export(t.Context(), &collectortracev1.ExportTraceServiceRequest{}, grpc.WaitForReady(true)); err != nil {
		t.Fatal(err)
	}
	open := t.TempDir()
	if err := os.Chmod(open, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"limiter", "--listen", taken}, "--listen: listen tcp " + taken},
		{[]string{"limiter", "--metrics-listen", taken}, "--metrics-listen: "},
		{[]string{"limiter", "--listen", "nonsense"}, "--listen: "},
		{[]string{"limiter", "--redis-url", "http://host"}, "--redis-url: Redis URL http://host"},
		{[]string{"limiter", "--redis-url", "redis://host", "--redis-timeout", "1us"}, "--redis-timeout 1µs"},
		{[]string{"limiter", "--redis-cluster"}, "--redis-cluster needs --redis-url"},
		{[]string{"limiter", "--max-keys", "0"}, "--max-keys 0"},
		{[]string{"limiter", "--otlp", "http://host:1"}, "--otlp: "},
		{[]string{"limiter", "--otlp", "unix:here.sock"}, "--otlp: "},
		{[]string{"limiter", "more"}, "more"},
		{[]string{"limiter", "--listen", "0.0.0.0:7402"}, "--listen: 0.0.0.0:7402 is not a loopback address"},
		{[]string{"relay", "--listen", ":4317"}, "--private-network"},
		{[]string{"limiter", "--listen", "unix:" + open + "/a.sock"}, "chmod 0700 " + open},
		{[]string{"limiter", "--listen", "unix:/" + strings.Repeat("x", 200)}, "choose a shorter folder"},
		{[]string{"control", "--limiter", "unix:a.sock", "--data-dir", t.TempDir()}, "--limiter: "},
		{[]string{"relay", "--listen", taken}, "--listen: listen tcp " + taken},
		{[]string{"relay", "--to", "nowhere"}, "--to: "},
		{[]string{"relay", "--max-bytes", "5"}, "--max-bytes 5"},
	} {
		root := newRoot()
		root.SetArgs(append(c.args, "--log-level", "error"))
		root.SetOut(io.Discard)
		root.SetErr(io.Discard)
		if err := root.ExecuteContext(t.Context()); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", strings.Join(c.args, " "), err, c.want)
		}
	}
}

// TestRelayCommand: a relay holds what one process sends until another takes it,
// here a second relay.
func TestRelayCommand(t *testing.T) {
	dir, err := os.MkdirTemp("", "relay-") // short enough for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	t.Run("ports", func(t *testing.T) {
		port := func() string { return fmt.Sprintf("127.0.0.1:%d", envoytest.FreePort(t)) }
		relays(t, port(), port(), port())
	})
	t.Run("sockets", func(t *testing.T) {
		relays(t, "unix:"+dir+"/a.sock", "unix:"+dir+"/b.sock", "unix:"+dir+"/metrics.sock")
	})
}

func relays(t *testing.T, from, to, metrics string) {
	stop := runInBackground(t, "relay", "--listen", from, "--to", to, "--log-level", "error")
	req := &collectortracev1.ExportTraceServiceRequest{ResourceSpans: []*tracev1.ResourceSpans{{
		ScopeSpans: []*tracev1.ScopeSpans{{Spans: []*tracev1.Span{{Name: "early"}}}},
	}}}
	if _, err := collectortracev1.NewTraceServiceClient(dialTest(t, from)).Export(t.Context(), req, grpc.WaitForReady(true)); err != nil {
		t.Fatal(err)
	}
	runInBackground(t, "relay", "--listen", to, "--to", "127.0.0.1:1", "--metrics-listen", metrics, "--flush-timeout", "1ms", "--log-level", "error")
	client := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		if path, ok := strings.CutPrefix(metrics, "unix:"); ok {
			return new(net.Dialer).DialContext(ctx, "unix", path)
		}
		return new(net.Dialer).DialContext(ctx, "tcp", metrics)
	}}}
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if res, err := client.Get("http://metrics/metrics"); err == nil {
			b, _ := io.ReadAll(res.Body)
			res.Body.Close()
			if strings.Contains(string(b), "penstock_relay_received_spans_total 1") {
				break
			}
		}
		if time.Now().After(deadline) {
			t.Fatal("the span does not arrive")
		}
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
}
