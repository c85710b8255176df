package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/penstock-gateway/penstock/bench/proc"
	"github.com/penstock-gateway/penstock/bench/report"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
	"github.com/penstock-gateway/penstock/internal/access/connect"
)

// series is what one contestant showed at one size.
type series struct {
	name                       string
	routes                     int
	served, returned           []float64 // ms, sorted at the end
	controlCPU, envoyCPU       float64   // ms in all
	received                   float64   // bytes in all
	controlRSS, envoyRSS       float64   // MiB
	controlAnon, envoyAnon     float64   // MiB
	rest                       float64   // ms of CPU per second; ours only
	statsLines                 int
	blockControl, blockEnvoy   []float64 // ms per change, by block
	storedOnly                 []float64 // ms; ours only
	receivedStart, receivedEnd float64
}

func (s *series) n() float64 { return float64(len(s.served)) }

// settle is the pause after each change, so that acknowledgements and collections
// belong to the change that caused them.
const settle = 10 * time.Millisecond

// block makes changes in a row and adds them to the series.
func (s *series) block(ctx context.Context, c *contestant, first, count int) error {
	control, err := proc.CPU(c.control.pid())
	if err != nil {
		return err
	}
	main, err := proc.MainCPU(c.envoy.pid())
	if err != nil {
		return err
	}
	for k := first; k < first+count; k++ {
		// Another host each time, over the whole table.
		hosts := s.routes / perHost
		i := (hosts - 1 - k*max(1, hosts/16)%hosts) * perHost
		served, returned, err := c.timeChange(ctx, i, fmt.Sprintf("v%d", k+1))
		if err != nil {
			return fmt.Errorf("%s, %d routes: %w\n%s", s.name, s.routes, err, c.control.tail())
		}
		s.served, s.returned = append(s.served, ms(served)), append(s.returned, ms(returned))
		time.Sleep(settle)
	}
	control2, err := proc.CPU(c.control.pid())
	if err != nil {
		return err
	}
	main2, err := proc.MainCPU(c.envoy.pid())
	if err != nil {
		return err
	}
	s.controlCPU += ms(control2 - control)
	s.envoyCPU += ms(main2 - main)
	s.blockControl = append(s.blockControl, ms(control2-control)/float64(count))
	s.blockEnvoy = append(s.blockEnvoy, ms(main2-main)/float64(count))
	return nil
}

// pollPause keeps the probing from taking the processor that it waits for.
const pollPause = 200 * time.Microsecond

// timeChange is from the call to the first right answer, and to the return.
func (c *contestant) timeChange(ctx context.Context, i int, body string) (served, returned time.Duration, err error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	begin := time.Now()
	type result struct {
		after time.Duration
		err   error
	}
	done := make(chan result, 1)
	go func() {
		err := c.change(ctx, i, body)
		done <- result{time.Since(begin), err}
	}()
	for {
		status, got, err := c.probe.get(hostname(i/perHost), path(i))
		switch {
		case err != nil:
			return 0, 0, err
		case status != http.StatusOK:
			return 0, 0, fmt.Errorf("%s%s answers %d", hostname(i/perHost), path(i), status)
		case got == body:
			served = time.Since(begin)
			r := <-done
			return served, r.after, r.err
		case ctx.Err() != nil:
			return 0, 0, fmt.Errorf("%s%s still answers %q, want %q", hostname(i/perHost), path(i), got, body)
		}
		select {
		case r := <-done:
			if r.err != nil {
				return 0, 0, r.err
			}
			done <- r
		default:
		}
		time.Sleep(pollPause)
	}
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// changes measures one size with all contestants, in alternating blocks.
func (b *bench) changes(ctx context.Context, n int) error {
	fmt.Fprintf(os.Stderr, "%d routes …\n", n)
	o, err := b.ours(ctx, fmt.Sprintf("ours-%d", n))
	if err != nil {
		return err
	}
	defer o.stop()
	if err := b.load(ctx, o, n); err != nil {
		return fmt.Errorf("ours, load of %d routes: %w", n, err)
	}
	all := []*contestant{o.contestant}
	for _, name := range []string{"bare", "snapshot"} {
		c, err := b.peer(ctx, name, n)
		if err != nil {
			return fmt.Errorf("%s, %d routes: %w", name, n, err)
		}
		defer c.stop()
		all = append(all, c)
	}
	blocks, per := 8, 5
	if b.short {
		blocks, per = 1, 3
	}
	var out []*series
	for _, c := range all {
		s := &series{name: c.name, routes: n}
		// The first change of a process pays for what is made once.
		if err := s.block(ctx, c, 0, 1); err != nil {
			return err
		}
		*s = series{name: c.name, routes: n}
		if s.statsLines, s.receivedStart, err = c.envoy.stats(); err != nil {
			return err
		}
		out = append(out, s)
	}
	for block := range blocks {
		for k, c := range all {
			if n >= 100_000 && c.name == "snapshot" && block > 0 {
				continue // seconds for each change
			}
			if err := out[k].block(ctx, c, 1+block*per, per); err != nil {
				return err
			}
		}
	}
	for k, c := range all {
		if err := out[k].finish(c); err != nil {
			return err
		}
	}
	if err := b.stored(ctx, o, out[0]); err != nil {
		return err
	}
	b.series = append(b.series, out...)
	if b.profile != "" {
		if err := b.profileChanges(ctx, o, n); err != nil {
			return err
		}
	}
	return b.reconnect(ctx, o, n)
}

func (s *series) finish(c *contestant) (err error) {
	slices.Sort(s.served)
	slices.Sort(s.returned)
	if s.controlRSS, s.controlAnon, err = proc.Memory(c.control.pid()); err != nil {
		return err
	}
	if s.envoyRSS, s.envoyAnon, err = proc.Memory(c.envoy.pid()); err != nil {
		return err
	}
	s.statsLines, s.receivedEnd, err = c.envoy.stats()
	s.received = s.receivedEnd - s.receivedStart
	return err
}

// stored is how long the API call takes that does not wait for the proxy, and what
// the control plane uses at rest.
func (b *bench) stored(ctx context.Context, o *ours, s *series) error {
	for k := range 20 {
		begin := time.Now()
		_, err := o.config.Apply(ctx, &pb.ApplyRequest{
			Resources: []*pb.Resource{route(0, fmt.Sprintf("stored%d", k))},
			Options:   &pb.WriteOptions{Wait: pb.WaitMode_WAIT_MODE_NONE},
		})
		if err != nil {
			return err
		}
		s.storedOnly = append(s.storedOnly, ms(time.Since(begin)))
		time.Sleep(settle)
	}
	slices.Sort(s.storedOnly)
	before, err := proc.CPU(o.control.pid())
	if err != nil {
		return err
	}
	begin := time.Now()
	time.Sleep(time.Second)
	now, err := proc.CPU(o.control.pid())
	s.rest = ms(now-before) / time.Since(begin).Seconds()
	return err
}

// load applies all routes in one call (of at most 10,000): validated, stored,
// serving.
func (b *bench) load(ctx context.Context, o *ours, n int) error {
	const batch = 10_000
	for from := 0; from < n; from += batch {
		r := &pb.ApplyRequest{Options: &pb.WriteOptions{Wait: pb.WaitMode_WAIT_MODE_NONE}}
		for i := from; i < min(n, from+batch); i++ {
			r.Resources = append(r.Resources, route(i, firstBody))
		}
		first := from == 0 && n == batch
		if first {
			begin := time.Now()
			if _, err := o.config.Apply(ctx, &pb.ApplyRequest{Resources: r.Resources, Options: &pb.WriteOptions{ValidateOnly: true}}); err != nil {
				return err
			}
			b.report.Add("10,000 routes in one Apply: validated (a call that only validates)", "ms", ms(time.Since(begin)))
		}
		begin := time.Now()
		resp, err := o.config.Apply(ctx, r)
		if err != nil {
			return err
		}
		committed := time.Since(begin)
		if err := o.waitServing(ctx, resp.GetResult().GetRevision()); err != nil {
			return err
		}
		served := time.Since(begin)
		if err := o.serves(ctx, min(n, from+batch)); err != nil {
			return err
		}
		if first {
			b.report.Add("10,000 routes in one Apply: committed", "ms", ms(committed))
			b.report.Add("10,000 routes in one Apply: serving, as reported", "ms", ms(served))
			b.report.Add("10,000 routes in one Apply: first, middle and last host answer", "ms", ms(time.Since(begin)))
		}
	}
	return nil
}

// waitServing returns when the proxy serves a revision whole.
func (o *ours) waitServing(ctx context.Context, revision int64) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	s, err := o.config.WaitServing(ctx, &pb.WaitServingRequest{Revision: revision})
	if err != nil {
		return err
	}
	for {
		m, err := s.Recv()
		if errors.Is(err, io.EOF) {
			return fmt.Errorf("WaitServing of revision %d ended before it was served", revision)
		}
		if err != nil {
			return err
		}
		if r := m.GetReport(); r.GetComplete() && r.GetServing() == 1 {
			return nil
		}
	}
}

// reconnect restarts the control plane under a proxy that has everything.
func (b *bench) reconnect(ctx context.Context, o *ours, n int) error {
	o.control.stop()
	begin := time.Now()
	if err := o.start(ctx); err != nil {
		return err
	}
	ready := time.Since(begin)
	var sent int64
	err := o.control.until(ctx, "the proxy to be back", startTimeout, func() bool {
		l, err := o.proxies.ListProxies(ctx, &pb.ListProxiesRequest{})
		if err != nil || len(l.GetProxies()) != 1 {
			return false
		}
		p := l.GetProxies()[0]
		sent = p.GetResourcesSent()
		return p.GetState() == "serving" && p.GetRevision() > 0
	})
	if err != nil {
		return err
	}
	back := time.Since(begin)
	b.report.Add(fmt.Sprintf("control plane restarted, %d routes: ready", n), "ms", ms(ready))
	b.report.Add(fmt.Sprintf("control plane restarted, %d routes: proxy serving again", n), "ms", ms(back))
	b.report.AddTarget(fmt.Sprintf("control plane restarted, %d routes: resources sent", n), "", float64(sent), "0", sent == 0)
	return nil
}

// profileChanges writes a CPU profile of the control plane while it makes changes.
func (b *bench) profileChanges(ctx context.Context, o *ours, n int) error {
	done := make(chan error, 1)
	file := fmt.Sprintf("%s-%d.pprof", b.profile, n)
	go func() { done <- download(ctx, o.data(), "http://"+o.http+"/debug/pprof/profile?seconds=6", file) }()
	for k := 0; ; k++ {
		select {
		case err := <-done:
			if err != nil {
				return err
			}
			fmt.Fprintf(os.Stderr, "%s: %d changes\n", file, k)
			return download(ctx, o.data(), "http://"+o.http+"/debug/pprof/heap?gc=1", fmt.Sprintf("%s-%d-heap.pprof", b.profile, n))
		default:
		}
		if err := o.apply(ctx, route(0, fmt.Sprintf("p%d", k))); err != nil {
			return err
		}
		time.Sleep(settle) // at the pace of the changes that are measured
	}
}

func download(ctx context.Context, dataDir, url, file string) error {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	if err := connect.AsOwner(r, dataDir); err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, resp.Body)
	return errors.Join(err, f.Close())
}

// printSeries is the table of the changes, one row for each contestant and size.
func (b *bench) printSeries(w io.Writer) {
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "one route changed\troutes\tchanges\tserved p50 ms\tp99 ms\tx bare\tcall p50 ms\tcontrol CPU ms\tx bare\tEnvoy CPU ms\tx bare\tkB sent\tcontrol MiB\t(anon)\tEnvoy MiB\t(anon)\tstats lines\t")
	for _, s := range b.series {
		bare := b.find("bare", s.routes)
		p50 := report.Quantile(s.served, 0.5)
		fmt.Fprintf(t, "%s\t%d\t%.0f\t%.2f\t%.2f\t%.1f\t%.2f\t%.2f\t%.1f\t%.2f\t%.1f\t%.2f\t%.0f\t%.0f\t%.0f\t%.0f\t%d\t\n",
			s.name, s.routes, s.n(), p50, report.Quantile(s.served, 0.99), p50/report.Quantile(bare.served, 0.5),
			report.Quantile(s.returned, 0.5), s.controlCPU/s.n(), s.controlCPU/s.n()/(bare.controlCPU/bare.n()),
			s.envoyCPU/s.n(), s.envoyCPU/s.n()/(bare.envoyCPU/bare.n()), s.received/s.n()/1000, s.controlRSS, s.controlAnon, s.envoyRSS, s.envoyAnon, s.statsLines)
	}
	t.Flush()
}

func (b *bench) find(name string, routes int) *series {
	for _, s := range b.series {
		if s.name == name && s.routes == routes {
			return s
		}
	}
	return nil
}
