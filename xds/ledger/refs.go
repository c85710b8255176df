package ledger

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"time"

	"github.com/penstock-gateway/penstock/xds"
)

// readiness says whether a resource may be sent.
type readiness int8

const (
	ready readiness = iota
	// waits: for an acknowledgement that may still come.
	waits
	// blocked: by a refusal, until something changes.
	blocked
)

// ready reports whether what res refers to is there, so that it may be sent;
// else what it waits for. at is the revision whose generation brought res.
// strict also demands references that are gone from the generation: for the last
// good version of a refused resource.
func (p *Proxy) ready(k kind, res *xds.Resource, at int64, strict bool) (readiness, xds.Ref) {
	state, why := ready, xds.Ref{}
	if k == listeners && p.lanes[listeners].held.empty() {
		// A gateway that starts opens its ports when it knows all clusters.
		if ref, wait := p.clustersPending(); wait {
			state, why = waits, ref
		}
	}
	if k == clusters {
		if r := p.endpointsReady(res.Name); r != ready {
			return r, xds.Ref{Type: xds.Endpoint, Name: res.Name}
		}
	}
	for _, ref := range res.Refs {
		rk, ok := kindOf(ref.Type)
		if !ok || rank[rk] >= rank[k] {
			continue
		}
		switch r, root := p.refReady(k, rk, ref.Name, at, strict); {
		case r == blocked:
			return blocked, root
		case r == waits && state == ready:
			state, why = waits, root
		}
	}
	if state != ready {
		return state, why
	}
	return p.follows(res, at)
}

// follows reports whether the scopes that routes follow are acknowledged, as far as they
// can be. A scope refers to routes of its own, which follow nothing, so there are no cycles.
func (p *Proxy) follows(res *xds.Resource, at int64) (readiness, xds.Ref) {
	if len(res.After) == 0 {
		return ready, xds.Ref{}
	}
	if p.resumed && !p.late && !p.lanes[scopes].asked {
		// On a new stream: which scopes it holds is not known yet.
		return waits, res.After[0]
	}
	for _, ref := range res.After {
		if r, root := p.refReady(routes, scopes, ref.Name, at, false); r == waits {
			return waits, root
		}
	}
	return ready, xds.Ref{}
}

// refReady is ready for one reference, of a resource of kind k.
func (p *Proxy) refReady(k, rk kind, name string, at int64, strict bool) (readiness, xds.Ref) {
	l := &p.lanes[rk]
	self := xds.Ref{Type: types[rk], Name: name}
	i, known := l.col().index[name]
	if !known || !l.col().present.has(i) {
		if strict && (!known || !l.held.has(i) || l.removing(i)) {
			return blocked, self
		}
		return ready, self // a dangling reference: nothing will come to wait for
	}
	s := &l.col().slots[i]
	switch {
	case !l.asked && Wildcard(types[rk]) && !p.byName() && !p.askedAll():
		return waits, self
	case !l.wants(i) && s.quarantined():
		if good := s.fallback(); good != nil {
			return p.ready(rk, good, s.at, true)
		}
		return blocked, self
	case !l.wants(i):
		// Envoy asks for it when it has got what refers to it.
		return p.ready(rk, s.res, s.at, strict)
	case l.held.has(i) && !l.removing(i):
		if k == clusters || l.clean.has(i) || l.known(i) || l.refusedNow(i) || l.other[i].since > at {
			return ready, self
		}
		if r, _ := p.ready(rk, s.res, s.at, strict); r == blocked && !l.flying.has(i) {
			return ready, self // it stays at the version before
		}
		return waits, self
	case l.refusedNow(i) && l.fallback(i) == nil:
		return blocked, self
	case k == clusters:
		return ready, self // Envoy waits for endpoints and secrets itself
	default:
		if r, root := p.ready(rk, s.res, s.at, strict); r == blocked && !l.flying.has(i) {
			return blocked, root
		}
		return waits, self
	}
}

// endpointsReady reports whether a changed cluster would be left without
// endpoints. It is when the wanted ones are refused, and those that the proxy has
// are not known well enough to be sent again, as after a restart; so it waits
// until that is known.
func (p *Proxy) endpointsReady(cluster string) readiness {
	l := &p.lanes[endpoints]
	i, known := l.col().index[cluster]
	switch {
	case !known || !l.wants(i) || l.clean.has(i) || l.version(i) != nil:
		return ready
	case l.refusedNow(i):
		return blocked
	case l.held.has(i) && l.col().present.has(i):
		return waits
	default:
		return ready
	}
}

// warmingNeeds reports whether a cluster that was sent and is not acknowledged may
// wait for a resource that is gone since. While it does, no cluster is
// acknowledged, so that the resource is sent all the same.
func (p *Proxy) warmingNeeds(k kind, name string) bool {
	f := p.lanes[clusters].flight
	if f == nil || (k != endpoints && k != secrets) {
		return false
	}
	ref := xds.Ref{Type: types[k], Name: name}
	return slices.ContainsFunc(f.items, func(it item) bool {
		return (k == endpoints && it.res.Name == name) || slices.Contains(it.res.Refs, ref)
	})
}

// version is what to send again of a resource that the proxy holds in another
// version than the wanted one; nil when there is none, or only its name is known.
func (l *lane) version(i int32) *xds.Resource {
	o := l.other[i]
	if good := l.col().slots[i].good; o.res == nil && good != nil && good.Version == o.name {
		return good
	}
	return o.res
}

// byName reports whether this is a client that asks for each listener, route and
// cluster by its name, in that order, as gRPC does, and not an Envoy.
func (p *Proxy) byName() bool {
	l := &p.lanes[listeners]
	return l.asked && !l.wildcard
}

// askedAll reports whether the client has asked for every type that it takes from
// us, so that all that it holds is known. An Envoy asks for clusters first and for
// listeners when it has them; others take a single type (an Envoy with static
// listeners, an agent, a tool). One that resumes what it had on an earlier stream may
// ask in any order.
func (p *Proxy) askedAll() bool {
	c, l := p.lanes[clusters].asked, p.lanes[listeners].asked
	switch {
	case c && l, p.late:
		return true
	case p.resumed:
		return false
	}
	// Without listeners it has nothing that waits for clusters. With listeners alone
	// it may be an Envoy that withholds its request for clusters.
	return !l
}

// referredAtAll reports whether the client takes a type that may refer to k.
func (p *Proxy) referredAtAll(k kind) bool {
	for j := range kinds {
		if rank[j] > rank[k] && p.lanes[j].asked {
			return true
		}
	}
	return false
}

// clustersPending reports a cluster that is still to be acknowledged.
func (p *Proxy) clustersPending() (xds.Ref, bool) {
	l := &p.lanes[clusters]
	if !l.asked {
		return xds.Ref{}, false // a client with no clusters of ours
	}
	if l.flight != nil {
		for _, it := range l.flight.items {
			if it.i >= 0 {
				return l.ref(it.i), true
			}
		}
	}
	for i := range ones(l.col().words(), l.dirty) {
		if !l.refusedNow(i) {
			if r, _ := p.ready(clusters, l.col().slots[i].res, 0, false); r != blocked {
				return l.ref(i), true
			}
		}
	}
	return xds.Ref{}, false
}

// removing reports whether the unanswered response removes the resource.
func (l *lane) removing(i int32) bool {
	if l.flight == nil || len(l.flight.removed) == 0 || !l.flying.has(i) {
		return false
	}
	for _, j := range l.flight.removed {
		if i == j {
			return true
		}
	}
	return false
}

// remove is the next removal of a type.
func (l *lane) remove(now time.Time) *Response {
	if !l.asked || l.flight != nil {
		return nil
	}
	col := l.col()
	var ids []int32
	for i := range ones(col.words(), func(w int) uint64 { return col.gone.word(w) & l.held.word(w) }) {
		ids = append(ids, i)
	}
	for _, i := range slices.Sorted(maps.Keys(l.maybe)) {
		if !l.held.has(i) && col.gone.has(i) {
			ids = append(ids, i)
		}
	}
	if len(ids) == 0 {
		return nil
	}
	if l.k == listeners || l.k == scopes {
		ids = l.endable(ids)
	} else {
		ids = l.expired(ids, now)
	}
	if len(ids) == 0 {
		return nil
	}
	return l.send(nil, ids, nil, now)
}

// endable are the listeners and scopes to be removed now: all else that their
// revision brought is made.
func (l *lane) endable(ids []int32) []int32 {
	made := l.p.pendingSince()
	out := ids[:0]
	for _, i := range ids {
		if l.col().slots[i].at < made {
			out = append(out, i)
		}
	}
	return out
}

// expired are those that nothing has referred to for the grace period.
func (l *lane) expired(ids []int32, now time.Time) []int32 {
	p := l.p
	if !p.byName() && !p.askedAll() {
		return nil // on a new stream: what else it holds is not known yet
	}
	named, unknown := p.referred()
	// What others of the view refer to does not matter to a client that does not take it.
	counts := p.referredAtAll(l.k)
	out := ids[:0]
	for _, i := range ids {
		_, used := named[l.ref(i)]
		if l.k == endpoints && !used {
			c := &p.lanes[clusters]
			j, ok := c.col().index[l.col().slots[i].name]
			used = ok && (c.held.has(j) || c.flying.has(j))
		}
		if used || unknown > rank[l.k] || counts && p.table.referrers[l.ref(i)] > 0 {
			delete(l.doomed, i)
			continue
		}
		since, ok := l.doomed[i]
		if !ok {
			since = now
			put(&l.doomed, i, now)
		}
		if due := since.Add(p.opt.Grace); !now.Before(due) {
			out = append(out, i)
		} else if p.wake.IsZero() || due.Before(p.wake) {
			p.wake = due
		}
	}
	return out
}

// referred is what the proxy's resources refer to that are not in their wanted
// version, and the highest rank of those whose references are not known.
func (p *Proxy) referred() (map[xds.Ref]struct{}, int) {
	named, unknown := map[xds.Ref]struct{}{}, -1
	add := func(k kind, r *xds.Resource) {
		if r == nil {
			unknown = max(unknown, rank[k])
			return
		}
		for _, ref := range r.Refs {
			named[ref] = struct{}{}
		}
	}
	for k := range kinds {
		l := &p.lanes[k]
		for _, o := range l.other {
			add(k, o.res)
		}
		for _, all := range l.maybe {
			for _, r := range all {
				add(k, r)
			}
		}
		if l.flight != nil {
			for _, it := range l.flight.items {
				add(k, it.res)
			}
		}
	}
	return named, unknown
}

// pendingSince is the first revision that something still to be made is needed
// for: not refused, not held, no removal. It is above all revisions when there
// is nothing.
func (p *Proxy) pendingSince() int64 {
	first := int64(math.MaxInt64)
	for k := range kinds {
		l := &p.lanes[k]
		if l.flight != nil {
			for _, it := range l.flight.items {
				if it.i >= 0 {
					first = min(first, l.since(it.i))
				}
			}
		}
		for i := range ones(l.col().words(), l.dirty) {
			if since := l.since(i); since < first {
				if state, _ := l.state(i); state == Pending {
					first = since
				}
			}
		}
	}
	return first
}

// since is the first revision that what the proxy holds does not do for.
func (l *lane) since(i int32) int64 {
	if o, ok := l.other[i]; ok {
		return o.since
	}
	return l.col().slots[i].added
}

// state says why a dirty resource is not acknowledged.
func (l *lane) state(i int32) (state State, detail string) {
	switch s := &l.col().slots[i]; {
	case s.quarantined():
		return Quarantined, l.reason(i) + s.instead()
	case l.refusedNow(i):
		return Refused, l.refused[i].Detail
	}
	switch r, ref := l.ready(i); r {
	case blocked:
		return Held, fmt.Sprintf("not sent, since it needs %s, which the proxy refused", ref)
	case waits:
		return Pending, fmt.Sprintf("waits until %s is acknowledged", ref)
	}
	return Pending, "to be sent"
}
