package main

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"slices"
	"time"

	"github.com/penstock-gateway/penstock/bench/report"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// answers counts what a probing saw.
type answers struct {
	byStatus map[int]int
	failed   int
	// back counts answers of the old state after the first of the new one.
	back int
}

func (a *answers) add(o *answers) {
	for s, n := range o.byStatus {
		a.byStatus[s] += n
	}
	a.failed += o.failed
	a.back += o.back
}

func (a *answers) String() string { return fmt.Sprint(a.byStatus, " failed ", a.failed) }

// after is how long probing goes on after the new answer: a window of 503 may
// also open late.
const after = 30 * time.Millisecond

// hosts adds hosts, each with a backend of its own, and deletes them, each under
// probing without a pause.
func (b *bench) hosts(ctx context.Context) error {
	base, count := 1000, 100
	if b.short {
		base, count = 100, 2
	}
	fmt.Fprintf(os.Stderr, "%d hosts added and deleted …\n", count)
	o, err := b.ours(ctx, "hosts")
	if err != nil {
		return err
	}
	defer o.stop()
	if err := b.load(ctx, o, base); err != nil {
		return err
	}
	// What a host that is not there gets is the product's to say; it must be the
	// same before and after.
	unknown, _, err := o.probe.get("nobody.example.com", "/")
	if err != nil {
		return err
	}
	b.report.Add("status of a host that is not there", "", float64(unknown))
	for _, step := range []struct {
		what     string
		old, new int
		request  func(k int) *pb.ApplyRequest
	}{
		{"added", unknown, http.StatusOK, func(k int) *pb.ApplyRequest { return o.newHost(k) }},
		{"deleted", http.StatusOK, unknown, func(k int) *pb.ApplyRequest {
			r := &pb.ApplyRequest{}
			for _, n := range o.newHost(k).Resources {
				r.Deletes = append(r.Deletes, n.GetRoute().GetName()+n.GetBackend().GetName())
			}
			return r
		}},
	} {
		sum := &answers{byStatus: map[int]int{}}
		var took []float64
		for k := range count {
			a, d, err := o.underProbing(ctx, newHostname(k), step.old, step.new, step.request(k))
			if err != nil {
				return fmt.Errorf("host %d %s: %w", k, step.what, err)
			}
			sum.add(a)
			took = append(took, ms(d))
		}
		slices.Sort(took)
		other := sum.failed + sum.back
		for s, n := range sum.byStatus {
			if s != step.old && s != step.new && s != http.StatusServiceUnavailable {
				other += n
			}
		}
		name := fmt.Sprintf("%d hosts %s (%d routes there): ", count, step.what, base)
		bad := sum.byStatus[http.StatusServiceUnavailable]
		b.report.AddTarget(name+"503 seen", "", float64(bad), "0", bad == 0)
		b.report.AddTarget(name+"other wrong answers", "", float64(other), "0", other == 0)
		b.report.Add(name+"probes", "", float64(sum.byStatus[step.old]+sum.byStatus[step.new]+bad+other))
		b.report.Add(name+"first right answer, p50", "ms", report.Quantile(took, 0.5))
		b.report.Add(name+"first right answer, p99", "ms", report.Quantile(took, 0.99))
	}
	return nil
}

func newHostname(k int) string { return fmt.Sprintf("new%d.example.com", k) }

// newHost is a host with a backend of its own: route and cluster must arrive and
// leave in the right order.
func (o *ours) newHost(k int) *pb.ApplyRequest {
	name := fmt.Sprintf("new%d", k)
	r := &pb.Route{
		Name: "projects/default/routes/" + name, Hostnames: []string{newHostname(k)},
		Rules: []*pb.RouteRule{{Action: &pb.RouteRule_Forward{Forward: &pb.Forward{Backends: []*pb.WeightedBackend{{Backend: name}}}}}},
	}
	return &pb.ApplyRequest{Resources: []*pb.Resource{backend(name, o.b.upstream), {Kind: &pb.Resource_Route{Route: r}}}}
}

// underProbing writes while the host is asked without a pause, and returns what
// was seen until some time after the new answer and the return of the call, and
// when the new answer first came.
func (o *ours) underProbing(ctx context.Context, host string, old, now int, r *pb.ApplyRequest) (*answers, time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	a := &answers{byStatus: map[int]int{}}
	begin := time.Now()
	done := make(chan error, 1)
	go func() { done <- o.write(ctx, r) }()
	var first time.Duration
	var end time.Time
	for returned := false; end.IsZero() || time.Now().Before(end); {
		status, _, err := o.probe.get(host, "/")
		switch {
		case err != nil:
			a.failed++
		case status == now && first == 0:
			first = time.Since(begin)
		case status == old && first != 0:
			a.back++
		}
		if err == nil {
			a.byStatus[status]++
		}
		select {
		case err := <-done:
			if err != nil {
				return nil, 0, err
			}
			returned = true
		default:
		}
		if returned && first != 0 && end.IsZero() {
			end = time.Now().Add(after)
		}
		if ctx.Err() != nil {
			return nil, 0, fmt.Errorf("status %d never came: %s", now, a)
		}
	}
	return a, first, nil
}
