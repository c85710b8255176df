// Package bench measures a running limiter over gRPC: decisions a second, latency,
// and CPU time of the limiter's process per decision.
package bench

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	commonratelimitv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/common/ratelimit/v3"
	ratelimitv3 "github.com/envoyproxy/go-control-plane/envoy/service/ratelimit/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/penstock-gateway/penstock/ratelimit"
)

// Config says what to measure.
type Config struct {
	// Address is host:port of the limiter.
	Address string
	// Pid is the limiter's process, whose CPU time is measured; 0: none is.
	Pid int
	// Descriptors is the number of limits of a request; 0: 1.
	Descriptors int
	// InFlight is how many requests wait at once; 0: 64. They share Connections
	// (0: 4), as the workers of proxies do.
	InFlight, Connections int
	// Keys is the number of different consumers; 0: 1000.
	Keys int
	// Duration is how long to measure; 0: 1 s.
	Duration time.Duration
}

// Result is what was measured.
type Result struct {
	// Decisions is the number of answered requests, Errors of those with an error.
	Decisions, Errors int
	// PerSecond is Decisions by time.
	PerSecond float64
	// P50 and P99 are latencies, seen by the client.
	P50, P99 time.Duration
	// CPU is the limiter's CPU time per decision, user and system; 0 without a Pid.
	CPU time.Duration
}

func (c *Config) defaults() {
	set := func(n *int, to int) {
		if *n <= 0 {
			*n = to
		}
	}
	set(&c.Descriptors, 1)
	set(&c.InFlight, 64)
	set(&c.Connections, 4)
	set(&c.Keys, 1000)
	if c.Duration <= 0 {
		c.Duration = time.Second
	}
}

// Run measures. The limits are never reached. It fails when the limiter cannot be
// asked at all.
func Run(ctx context.Context, c Config) (Result, error) {
	c.defaults()
	clients := make([]ratelimitv3.RateLimitServiceClient, c.Connections)
	for i := range clients {
		conn, err := grpc.NewClient("passthrough:///"+c.Address, grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			return Result{}, err
		}
		defer conn.Close()
		clients[i] = ratelimitv3.NewRateLimitServiceClient(conn)
	}
	requests := requests(c)
	for _, client := range clients { // connect, and fail early
		if _, err := client.ShouldRateLimit(ctx, requests[0], grpc.WaitForReady(true)); err != nil {
			return Result{}, fmt.Errorf("limiter %s: %w", c.Address, err)
		}
	}
	cpuBefore, err := cpuTime(c.Pid)
	if err != nil {
		return Result{}, err
	}
	latencies := make([][]time.Duration, c.InFlight)
	errors := make([]int, c.InFlight)
	var wg sync.WaitGroup
	start := time.Now()
	for i := range c.InFlight {
		wg.Go(func() {
			// No deadline on the calls: they would all fail at the end.
			for n := i; ctx.Err() == nil && time.Since(start) < c.Duration; n += c.InFlight {
				sent := time.Now()
				_, err := clients[i%len(clients)].ShouldRateLimit(ctx, requests[n%len(requests)])
				if err != nil {
					errors[i]++
				} else {
					latencies[i] = append(latencies[i], time.Since(sent))
				}
			}
		})
	}
	wg.Wait()
	took := time.Since(start)
	cpuAfter, err := cpuTime(c.Pid)
	if err != nil {
		return Result{}, err
	}
	return summarize(latencies, errors, took, cpuAfter-cpuBefore), nil
}

func summarize(latencies [][]time.Duration, errors []int, took, cpu time.Duration) (r Result) {
	all := slices.Concat(latencies...)
	slices.Sort(all)
	for _, n := range errors {
		r.Errors += n
	}
	if r.Decisions = len(all); r.Decisions == 0 {
		return r
	}
	r.PerSecond = float64(r.Decisions) / took.Seconds()
	r.P50, r.P99 = all[len(all)/2], all[len(all)*99/100]
	r.CPU = cpu / time.Duration(r.Decisions)
	return r
}

// requests has one request for each consumer.
func requests(c Config) []*ratelimitv3.RateLimitRequest {
	out := make([]*ratelimitv3.RateLimitRequest, c.Keys)
	for k := range out {
		out[k] = &ratelimitv3.RateLimitRequest{Domain: ratelimit.Domain}
		for d := range c.Descriptors {
			s := ratelimit.Spec{
				ID: fmt.Sprintf("projects/bench/routes/route-%d#limit", d), Name: fmt.Sprintf("limit-%d", d),
				Requests: ratelimit.MaxRequests, Window: time.Minute,
			}
			entries := []*commonratelimitv3.RateLimitDescriptor_Entry{
				{Key: ratelimit.EntryLimit, Value: s.String()},
				{Key: ratelimit.EntryIssuer, Value: "https://issuer.example"},
				{Key: ratelimit.EntrySubject, Value: "consumer-" + strconv.Itoa(k)},
				{Key: ratelimit.EntryMaskedAddress, Value: "192.0.2.1/32"},
			}
			out[k].Descriptors = append(out[k].Descriptors, &commonratelimitv3.RateLimitDescriptor{Entries: entries})
		}
	}
	return out
}

// cpuTime is the CPU time of a process so far (proc(5), /proc/pid/stat: utime and
// stime, in ticks of 10 ms on Linux).
func cpuTime(pid int) (time.Duration, error) {
	if pid == 0 {
		return 0, nil
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	// The second field is the name in parentheses, and may hold anything.
	_, rest, ok := strings.Cut(string(b), ") ")
	fields := strings.Fields(rest)
	if !ok || len(fields) < 13 {
		return 0, fmt.Errorf("/proc/%d/stat is not as expected", pid)
	}
	var ticks int64
	for _, f := range fields[11:13] {
		n, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("/proc/%d/stat: %w", pid, err)
		}
		ticks += n
	}
	return time.Duration(ticks) * 10 * time.Millisecond, nil
}
