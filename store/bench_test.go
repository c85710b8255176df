package store_test

import (
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/penstock-gateway/penstock/store"
	"github.com/penstock-gateway/penstock/store/storetest"
)

// BenchmarkCommit is one changed route at different sizes of the configuration,
// with fsync, embedded.
func BenchmarkCommit(b *testing.B) {
	for _, size := range []int{10, 1_000, 10_000} {
		b.Run(fmt.Sprintf("resources=%d", size), func(b *testing.B) {
			s, err := store.Open(b.Context(), store.Options{
				DataDir: b.TempDir(), SealKey: make([]byte, store.SealKeyBytes), Logger: slog.New(slog.DiscardHandler),
			})
			if err != nil {
				b.Fatal(err)
			}
			defer s.Close()
			rev, err := s.Commit(b.Context(), 0, storetest.Routes(0, size, "first"), store.Info{})
			if err != nil {
				b.Fatal(err)
			}
			var took []time.Duration
			for i := 0; b.Loop(); i++ {
				start := time.Now()
				rev, err = s.Commit(b.Context(), rev.Number, storetest.Routes(i%size, 1, fmt.Sprint("v", i)), store.Info{RequestID: fmt.Sprint(i)})
				if err != nil {
					b.Fatal(err)
				}
				took = append(took, time.Since(start))
			}
			slices.Sort(took)
			b.ReportMetric(float64(took[len(took)/2].Microseconds())/1000, "p50-ms")
			b.ReportMetric(float64(took[len(took)*99/100].Microseconds())/1000, "p99-ms")
			b.ReportMetric(rss(b), "rss-MiB")
		})
	}
}

// rss is the resident set of this process in MiB.
func rss(tb testing.TB) float64 {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		tb.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		var kb float64
		if n, _ := fmt.Sscanf(line, "VmRSS: %f kB", &kb); n == 1 {
			return kb / 1024
		}
	}
	return 0
}
