package main

import (
	"context"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/penstock-gateway/penstock/bench/proc"
	"github.com/penstock-gateway/penstock/bench/report"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// besides are the hosts that stand beside the exact ones in the part "wildcards".
var besides = []struct {
	name  string
	hosts []string
}{
	{"exact hosts alone", nil},
	{"beside a wildcard", []string{"*.example.com"}},
	{"beside a catch-all", []string{"*"}},
}

// beside is one control plane with an Envoy, and what changes cost there, in ms.
type beside struct {
	*ours
	route, backend, host []float64
	envoyCPU             float64 // of the main thread, for all changes
}

// wildcards measures what a change costs beside a wildcard and beside a catch-all, against
// the same without them, in alternating blocks: of a route, of a backend, and of
// the set of hosts. The targets are those of the layout of hosts.
func (b *bench) wildcards(ctx context.Context, n int) error {
	fmt.Fprintf(os.Stderr, "wildcards beside %d hosts …\n", n/perHost)
	var all []*beside
	for k, s := range besides {
		o, err := b.ours(ctx, fmt.Sprintf("wild-%d-%d", k, n))
		if err != nil {
			return err
		}
		defer o.stop()
		if err := o.apply(ctx, balanced(b.upstream, 1), user()); err != nil {
			return err
		}
		if s.hosts != nil {
			r := route(0, "wild")
			r.GetRoute().Name, r.GetRoute().Hostnames = "projects/default/routes/wild", s.hosts
			if err := o.apply(ctx, r); err != nil {
				return err
			}
		}
		if err := b.load(ctx, o, n); err != nil {
			return fmt.Errorf("%s, load of %d routes: %w", s.name, n, err)
		}
		all = append(all, &beside{ours: o})
	}
	blocks, per := 8, 5
	if b.short {
		blocks, per = 1, 3
	}
	for block := range blocks {
		for _, c := range all {
			if err := c.block(ctx, b, n, block, per); err != nil {
				return err
			}
		}
	}
	changes := float64(blocks * per * 4)
	for k, c := range all {
		for what, times := range map[string][2][]float64{
			"a route changed": {c.route, all[0].route}, "a backend changed": {c.backend, all[0].backend}, "a host added": {c.host, all[0].host},
		} {
			slices.Sort(times[0])
			slices.Sort(times[1])
			name, p50, without := fmt.Sprintf("%d hosts, %s: %s", n/perHost, besides[k].name, what), report.Quantile(times[0], 0.5), report.Quantile(times[1], 0.5)
			b.report.Figures = append(b.report.Figures, report.Figure{Name: name + ", served, p50", Unit: "ms", Value: p50, Spread: []float64{times[0][0], times[0][len(times[0])-1]}})
			if k > 0 {
				b.report.AddTarget(name+", p50 against exact hosts alone", "x", p50/without, "<= 1.5", p50 <= 1.5*without)
			}
		}
		b.report.Add(fmt.Sprintf("%d hosts, %s: CPU of Envoy's main thread for a change", n/perHost, besides[k].name), "ms", c.envoyCPU/changes)
		rss, _, err := proc.Memory(c.envoy.pid())
		if err != nil {
			return err
		}
		b.report.Add(fmt.Sprintf("%d hosts, %s: RSS of Envoy", n/perHost, besides[k].name), "MiB", rss)
	}
	return nil
}

// block makes changes of each sort and notes how long each took until it was served.
func (c *beside) block(ctx context.Context, b *bench, n, block, per int) error {
	before, err := proc.MainCPU(c.envoy.pid())
	if err != nil {
		return err
	}
	for k := block * per; k < (block+1)*per; k++ {
		hosts := n / perHost
		i := (hosts - 1 - k*max(1, hosts/16)%hosts) * perHost
		served, _, err := c.timeChange(ctx, i, fmt.Sprintf("w%d", k+1))
		if err != nil {
			return err
		}
		c.route = append(c.route, ms(served))
		for _, w := range []struct {
			times *[]float64
			write *pb.ApplyRequest
		}{
			{&c.backend, &pb.ApplyRequest{Resources: []*pb.Resource{balanced(b.upstream, k)}}},
			{&c.host, &pb.ApplyRequest{Resources: []*pb.Resource{added(k)}}},
			{nil, &pb.ApplyRequest{Deletes: []string{added(k).GetRoute().GetName()}}},
		} {
			begin := time.Now()
			if err := c.write(ctx, w.write); err != nil {
				return err
			}
			if w.times != nil {
				*w.times = append(*w.times, ms(time.Since(begin)))
			}
			time.Sleep(settle)
		}
	}
	after, err := proc.MainCPU(c.envoy.pid())
	c.envoyCPU += ms(after - before)
	return err
}

// user is a route of a host of its own that forwards to the backend that changes.
func user() *pb.Resource {
	r := route(1, "")
	r.GetRoute().Name, r.GetRoute().Hostnames = "projects/default/routes/user", []string{"user.example.com"}
	r.GetRoute().Rules[0].GetForward().Backends[0].Backend = changing
	return r
}

// changing is the name of the backend that changes.
const changing = "changing"

// balanced is that backend, another one for odd k.
func balanced(upstream string, k int) *pb.Resource {
	r := backend(changing, upstream)
	r.GetBackend().LoadBalancing = []pb.LoadBalancing{pb.LoadBalancing_LOAD_BALANCING_ROUND_ROBIN, pb.LoadBalancing_LOAD_BALANCING_RANDOM}[k%2]
	return r
}

// added is a host that comes and goes.
func added(k int) *pb.Resource {
	r := route(0, "added")
	r.GetRoute().Name, r.GetRoute().Hostnames = fmt.Sprintf("projects/default/routes/added%d", k), []string{fmt.Sprintf("added%d.example.com", k)}
	return r
}
