package fleet

import (
	"context"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
	"github.com/penstock-gateway/penstock/xds/delivery"
	"github.com/penstock-gateway/penstock/xds/ledger"
)

// remote is a proxy that is connected to another replica.
type remote struct {
	delivery.Standing
	replica *replica
}

// remotes are the proxies of other replicas, without those that are connected
// here by now, each once: where it connected last.
func (f *Room) remotes() []remote {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.others) == 0 {
		return nil
	}
	newest := map[string]remote{}
	for _, r := range f.others {
		copied := *r
		for _, p := range r.Proxies {
			if old, known := newest[p.Identity]; !known || p.Connected.After(old.Connected) {
				newest[p.Identity] = remote{Standing: p, replica: &copied}
			}
		}
	}
	for _, p := range f.Delivery.Proxies() {
		delete(newest, p.Identity)
	}
	out := make([]remote, 0, len(newest))
	for _, p := range newest {
		out = append(out, p)
	}
	slices.SortFunc(out, func(a, b remote) int { return strings.Compare(a.Name+"\x00"+a.Identity, b.Name+"\x00"+b.Identity) })
	return out
}

// silence is the problem of a proxy whose replica is not heard of.
func (p remote) silence(now time.Time) (ledger.Problem, bool) {
	if now.Sub(p.replica.seen) < replicaSilent {
		return ledger.Problem{}, false
	}
	return ledger.Problem{Proxy: p.Name, State: ledger.Silent, Detail: fmt.Sprintf(
		"replica %s, which it is connected to, has not been heard of since %s: it is gone, or cut off from the store",
		p.replica.name, p.replica.seen.UTC().Format(time.RFC3339))}, true
}

// serves reports whether the proxy serves a revision and, if not, why.
func (p remote) serves(revision int64, now time.Time) (bool, []ledger.Problem) {
	if p.Revision >= revision {
		return true, nil
	}
	if problem, silent := p.silence(now); silent {
		return false, []ledger.Problem{problem}
	}
	if p.replica.ReplicaState.Revision >= revision {
		return p.Serves, p.Lacks
	}
	return false, []ledger.Problem{{Proxy: p.Name, State: ledger.Pending, Detail: fmt.Sprintf(
		"replica %s, which it is connected to, has not told of this revision yet", p.replica.name)}}
}

// add completes a report of the proxies here by those of other replicas. next is
// when it may change by time alone; zero for never.
func (f *Room) add(rep ledger.Report) (_ ledger.Report, next time.Time) {
	now := f.Now()
	rep.Problems = slices.Clone(rep.Problems)
	for _, p := range f.remotes() {
		rep.Total++
		ok, problems := p.serves(rep.Revision, now)
		if ok {
			rep.Serving++
			continue
		}
		rep.Problems = append(rep.Problems, problems...)
		if slices.ContainsFunc(problems, func(q ledger.Problem) bool { return q.State == ledger.Pending }) {
			rep.Complete = false
			next = earlier(next, p.replica.seen.Add(replicaSilent))
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, r := range f.others {
		// Only a live one can tell; after a moment it is not one.
		if due := r.first.Add(replicaTells); r.Alone && now.Before(due) {
			rep.Complete = false
			next = earlier(next, due)
		}
	}
	return rep, next
}

func earlier(a, b time.Time) time.Time {
	if a.IsZero() || b.Before(a) {
		return b
	}
	return a
}

// Proxies is the state of every proxy of every replica.
func (f *Room) Proxies() []ledger.ProxyStatus {
	out := f.Delivery.Proxies()
	now := f.Now()
	for _, p := range f.remotes() {
		st := p.ProxyStatus
		if problem, silent := p.silence(now); silent {
			st.State, st.Problems = ledger.Silent, append(slices.Clone(st.Problems), problem)
		}
		out = append(out, st)
	}
	return out
}

// Wait is Wait of a delivery.Server for the proxies of all replicas.
func (f *Room) Wait(ctx context.Context, revision int64, progress func(ledger.Report)) (ledger.Report, error) {
	var last *ledger.Report
	tell := func(r ledger.Report) {
		if progress != nil && (last == nil || !reflect.DeepEqual(*last, r)) {
			last = &r
			progress(r)
		}
	}
	for {
		changed := f.changed.Next()
		local, err := f.Delivery.Wait(ctx, revision, func(r ledger.Report) {
			if !r.Complete { // the complete one is told below
				all, _ := f.add(r)
				tell(all)
			}
		})
		all, next := f.add(local)
		tell(all)
		if err != nil || all.Complete {
			return all, err
		}
		var due <-chan time.Time
		if !next.IsZero() {
			due = time.After(next.Sub(f.Now()))
		}
		select {
		case <-ctx.Done():
			return all, ctx.Err()
		case <-changed:
		case <-due:
		}
	}
}

// Report is a report in the form of the API.
func Report(r ledger.Report) *pb.ServingReport {
	out := &pb.ServingReport{Revision: r.Revision, Serving: int32(r.Serving), Total: int32(r.Total), Complete: r.Complete}
	for _, p := range r.Problems {
		out.Problems = append(out.Problems, problemOf(p))
	}
	return out
}

func problemOf(p ledger.Problem) *pb.ProxyProblem {
	out := &pb.ProxyProblem{Proxy: p.Proxy, State: string(p.State), Detail: p.Detail}
	if p.Ref.Type != "" {
		out.Type, out.Resource = p.Ref.Type.Short(), p.Ref.Name
	}
	if len(p.Owners) > 0 {
		out.Object = p.Owners[0]
	}
	return out
}

// List is every proxy of every replica in the form of the API, by name.
func (f *Room) List() []*pb.Proxy {
	var out []*pb.Proxy
	for _, p := range f.Proxies() {
		q := &pb.Proxy{
			Name: p.Name, Identity: p.Identity, Version: p.Version, Node: p.Node,
			Revision: p.Revision, State: string(p.State), Resources: map[string]int32{}, ResourcesSent: p.Sent,
			ConnectTime: timestamppb.New(p.Connected),
		}
		if !p.LastAck.IsZero() {
			q.LastAckTime = timestamppb.New(p.LastAck)
		}
		for t, n := range p.Resources {
			q.Resources[t.Short()] = int32(n)
		}
		for _, problem := range p.Problems {
			q.Problems = append(q.Problems, problemOf(problem))
		}
		out = append(out, q)
	}
	slices.SortFunc(out, func(a, b *pb.Proxy) int { return strings.Compare(a.GetName(), b.GetName()) })
	return out
}
