package delivery

import (
	"cmp"
	"context"
	"fmt"
	"reflect"
	"slices"
	"sync/atomic"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"

	"github.com/penstock-gateway/penstock/xds"
	"github.com/penstock-gateway/penstock/xds/ledger"
)

// Proxies is the state of every connected proxy, by name.
func (s *Server) Proxies() []ledger.ProxyStatus {
	now := time.Now()
	var out []ledger.ProxyStatus
	for _, v := range s.all() {
		v.mu.Lock()
		for st := range v.streams {
			out = append(out, st.status(now))
		}
		v.mu.Unlock()
	}
	slices.SortFunc(out, func(a, b ledger.ProxyStatus) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Identity, b.Identity))
	})
	return out
}

// status is the proxy's state and who it is. The caller holds the view's mu.
func (st *stream) status(now time.Time) ledger.ProxyStatus {
	p := st.proxy.Status(now)
	p.Name, p.Identity, p.View = st.id.Proxy, st.key, st.v.name
	p.Node, p.Version = st.node, st.version
	for i := range p.Problems {
		p.Problems[i].Proxy = st.id.Proxy
	}
	return p
}

// Wait returns when no connected proxy is pending for a revision: each one serves
// it, refused a part of it, or is silent. progress, which may be nil, is called
// with each report that differs from the one before, the first and the last
// included. When ctx ends first, the last report comes with its error.
func (s *Server) Wait(ctx context.Context, revision int64, progress func(ledger.Report)) (ledger.Report, error) {
	s.waiters.Add(1)
	defer s.waiters.Add(-1)
	var last ledger.Report
	for first := true; ; first = false {
		changed := *s.changed.Load()
		rep, silent := s.report(revision, time.Now())
		if first || !reflect.DeepEqual(rep, last) {
			last = rep
			if progress != nil {
				progress(rep)
			}
		}
		if rep.Complete {
			return rep, nil
		}
		if s.isClosed() {
			return rep, errClosed
		}
		if err := await(ctx, changed, silent); err != nil {
			return rep, err
		}
		// Each report looks at all proxies, and each of their answers makes a new
		// one: with many, some are skipped.
		if err := await(ctx, nil, time.Now().Add(time.Duration(rep.Total)*reportCost)); err != nil {
			return rep, err
		}
	}
}

// reportCost is, generously, what one proxy costs in a report.
const reportCost = 10 * time.Microsecond

// await waits for a change or a time, which may be zero for never.
func await(ctx context.Context, changed <-chan struct{}, at time.Time) error {
	var due <-chan time.Time
	if !at.IsZero() {
		timer := time.NewTimer(time.Until(at))
		defer timer.Stop()
		due = timer.C
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-changed:
	case <-due:
	}
	return nil
}

// report is who serves a revision now, and when the next proxy will count as
// silent.
func (s *Server) report(revision int64, now time.Time) (ledger.Report, time.Time) {
	rep := ledger.Report{Revision: revision, Complete: true}
	var silent time.Time
	for _, v := range s.all() {
		v.mu.Lock()
		for st := range v.streams {
			rep.Total++
			ok, problems := st.proxy.Serves(revision, now)
			if ok {
				rep.Serving++
			}
			for _, p := range problems {
				p.Proxy = st.id.Proxy
				rep.Problems = append(rep.Problems, p)
				if p.State != ledger.Pending {
					continue
				}
				rep.Complete = false
				if at := st.proxy.SilentAt(); at.After(now) && (silent.IsZero() || at.Before(silent)) {
					silent = at
				}
			}
		}
		for _, r := range v.away(now) {
			rep.Total++
			if r.serves(revision) {
				rep.Serving++
				continue
			}
			rep.Complete = false
			rep.Problems = append(rep.Problems, r.problem())
			silent = earliest(silent, r.until)
		}
		v.mu.Unlock()
	}
	slices.SortStableFunc(rep.Problems, func(a, b ledger.Problem) int {
		return cmp.Or(cmp.Compare(a.Proxy, b.Proxy), cmp.Compare(a.State, b.State),
			cmp.Compare(a.Ref.Type, b.Ref.Type), cmp.Compare(a.Ref.Name, b.Ref.Name))
	})
	return rep, silent
}

// notify wakes the Waits. It must be called after the change, with no lock
// needed.
func (s *Server) notify() {
	if s.waiters.Load() == 0 {
		return
	}
	next := make(chan struct{})
	close(*s.changed.Swap(&next))
}

func (s *Server) isClosed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.closed
}

// Stats are counts since the Server was made, for metrics.
type Stats struct {
	// Streams are open now.
	Streams int64
	// Updates of views, and the resources that they added, changed or removed.
	Updates, Changes int64
	// By type.
	Types map[xds.Type]TypeStats
}

// TypeStats are the counts of one resource type.
type TypeStats struct {
	// Pushes are responses; Sent and Removed the resources in them.
	Pushes, Sent, Removed int64
	// Acks and Nacks are the answers to them.
	Acks, Nacks int64
	// Absent are names asked for that the view does not have.
	Absent int64
}

type counters struct {
	streams, updates, changes atomic.Int64
	types                     map[xds.Type]*typeCounters // fixed
}

type typeCounters struct {
	pushes, sent, removed, acks, nacks, absent atomic.Int64
}

func (c *counters) sent(r *ledger.Response) {
	n := c.types[r.Type]
	n.pushes.Add(1)
	n.sent.Add(int64(len(r.Resources)))
	n.removed.Add(int64(len(r.Removed)))
}

func (c *counters) answered(t xds.Type, out ledger.Outcome) {
	n := c.types[t]
	if n == nil {
		return // a type that is not served
	}
	if out.Acked {
		n.acks.Add(1)
	}
	if len(out.Refused) > 0 {
		n.nacks.Add(1)
	}
	n.absent.Add(int64(len(out.Absent)))
}

// Stats reads the counts.
func (s *Server) Stats() Stats {
	c := &s.stats
	out := Stats{
		Streams: c.streams.Load(), Updates: c.updates.Load(), Changes: c.changes.Load(),
		Types: map[xds.Type]TypeStats{},
	}
	for t, n := range c.types {
		out.Types[t] = TypeStats{
			Pushes: n.pushes.Load(), Sent: n.sent.Load(), Removed: n.removed.Load(),
			Acks: n.acks.Load(), Nacks: n.nacks.Load(), Absent: n.absent.Load(),
		}
	}
	return out
}

func semver(b *corev3.BuildVersion) string {
	v := b.GetVersion()
	return fmt.Sprintf("%d.%d.%d", v.GetMajorNumber(), v.GetMinorNumber(), v.GetPatch())
}
