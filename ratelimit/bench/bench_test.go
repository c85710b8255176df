package bench

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"testing"
	"time"

	"github.com/penstock-gateway/penstock/internal/redistest"
	"github.com/penstock-gateway/penstock/ratelimit"
)

// limiter serves a backend in this process and returns its address.
func limiter(t testing.TB, b ratelimit.Backend) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server, _ := ratelimit.NewServer(ratelimit.NewService(b, nil, slog.New(slog.DiscardHandler)), nil, nil)
	go func() { _ = server.Serve(l) }()
	t.Cleanup(server.Stop)
	return l.Addr().String()
}

func backends(t testing.TB) []ratelimit.Backend {
	t.Helper()
	r, err := ratelimit.NewRedis(ratelimit.RedisOptions{
		URL: redistest.Start(t).URL(), Timeout: 10 * time.Second, Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return []ratelimit.Backend{ratelimit.NewMemory(ratelimit.MemoryOptions{}), r}
}

// TestRun runs the short form and judges no time.
func TestRun(t *testing.T) {
	for _, b := range backends(t) {
		r, err := Run(t.Context(), Config{Address: limiter(t, b), Pid: os.Getpid(), Descriptors: 4, InFlight: 8, Duration: 200 * time.Millisecond})
		if err != nil {
			t.Fatal(err)
		}
		if r.Decisions == 0 || r.Errors != 0 || r.PerSecond <= 0 || r.P50 <= 0 || r.P99 < r.P50 {
			t.Errorf("%s: %+v", b.Name(), r)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := Run(ctx, Config{Address: "127.0.0.1:1"}); err == nil {
		t.Error("no error without a limiter")
	}
	if _, err := cpuTime(1 << 30); err == nil {
		t.Error("no error for a process that is not there")
	}
}

// BenchmarkGRPC is the whole service over gRPC, client and server in one process:
// use it for comparisons, not for the server's own cost.
func BenchmarkGRPC(b *testing.B) {
	for _, backend := range backends(b) {
		for _, descriptors := range []int{1, 4} {
			b.Run(fmt.Sprintf("%s/%d", backend.Name(), descriptors), func(b *testing.B) {
				address := limiter(b, backend)
				for b.Loop() {
					r, err := Run(b.Context(), Config{Address: address, Pid: os.Getpid(), Descriptors: descriptors})
					if err != nil {
						b.Fatal(err)
					}
					b.ReportMetric(r.PerSecond, "decisions/s")
					b.ReportMetric(float64(r.CPU.Microseconds()), "cpu-µs/decision")
					b.ReportMetric(float64(r.P99.Microseconds()), "p99-µs")
				}
			})
		}
	}
}

// BenchmarkDecide is a backend alone, 64 callers at once.
func BenchmarkDecide(b *testing.B) {
	for _, backend := range backends(b) {
		for _, descriptors := range []int{1, 4} {
			b.Run(fmt.Sprintf("%s/%d", backend.Name(), descriptors), func(b *testing.B) {
				b.SetParallelism(32)
				b.ReportAllocs()
				b.RunParallel(func(p *testing.PB) {
					requests := make([]ratelimit.Request, descriptors)
					for i := range requests {
						requests[i] = ratelimit.Request{Key: fmt.Sprint("key", i), Cost: 1, Spec: ratelimit.Spec{
							ID: "x", Name: "x", Requests: ratelimit.MaxRequests, Window: time.Minute,
						}}
					}
					for p.Next() {
						if _, err := backend.Decide(context.Background(), requests); err != nil {
							b.Fatal(err)
						}
					}
				})
			})
		}
	}
}
