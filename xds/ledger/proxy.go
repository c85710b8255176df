package ledger

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/penstock-gateway/penstock/xds"
)

// maxAbsent is how many names that its view does not have one proxy may be
// subscribed to, per type. An Envoy whose clients ask for made-up server names
// unsubscribes at once when told that there is no such secret.
const maxAbsent = 10_000

// askWithin is how long a client may take to ask again, on a new stream, for all
// types that it holds. Envoy withholds its request for clusters while one warms, for
// at most 15 s.
const askWithin = 20 * time.Second

// maxSuspects is how many versions are kept of what a proxy may hold.
const maxSuspects = 8

// ErrTooManyNames says that a proxy subscribed to more unknown names than are
// kept for it.
var ErrTooManyNames = errors.New("too many subscriptions to names that do not exist")

// ErrType says that a proxy asked for a resource type that is not served.
var ErrType = errors.New("resource type is not served")

// Options of a Proxy.
type Options struct {
	// SilentAfter is how long a response may stay unanswered before the proxy
	// counts as silent.
	SilentAfter time.Duration
	// Grace is how long what nothing refers to any more is left with the proxy.
	Grace time.Duration
	// Memory is what an earlier stream of the same proxy left. May be nil.
	Memory Memory
}

// Memory is what a proxy refused, by resource and version. It outlives a stream,
// so that a proxy that comes back with the version before is not sent again what
// it refuses. One that comes back with nothing is: the refusal ends the time that
// Envoy's start waits for the resource.
type Memory map[xds.Ref]Refusal

// Refusal is what a proxy said of one version of a resource.
type Refusal struct{ Version, Detail string }

// Request is what a proxy says (DeltaDiscoveryRequest).
type Request struct {
	Type xds.Type
	// Nonce of the response that is answered; "" for none.
	Nonce string
	// Refused says that the answer is a refusal, and Detail why.
	Refused bool
	Detail  string
	// Culprits are the names of the resources that a refusal is about, from a client
	// that takes the others of the same response, as gRPC does. Empty: any of them
	// may be the bad one, and whether the others were taken is not known.
	Culprits []string
	// Subscribe and Unsubscribe are resource names; "*" is all of a wildcard type.
	Subscribe, Unsubscribe []string
	// Initial are the versions that the proxy holds, in the first request of a
	// type on a stream.
	Initial map[string]string
}

// Outcome is what a Request meant.
type Outcome struct {
	// Acked says that a response was acknowledged.
	Acked bool
	// Refused are the resources of a response that was refused. If it was sent
	// Alone it is the culprit; else it is not known yet which is.
	Refused []xds.Ref
	Alone   bool
	Detail  string
	// Culprit is the resource that was refused alone, if it is the wanted version
	// and no proxy ever acknowledged that: reason to Quarantine it.
	Culprit *Culprit
	// Accepted are quarantined resources whose wanted version was acknowledged.
	Accepted []xds.Ref
	// Absent are the names that the view does not have.
	Absent []xds.Ref
}

// Proxy is the ledger of one proxy on one stream.
type Proxy struct {
	table     *Table
	opt       Options
	lanes     [kinds]lane
	nonce     uint64
	connected time.Time
	active    time.Time // when it last did something, or got something to do
	lastAck   time.Time
	sent      int64
	reached   int64 // newest revision served whole
	quiet     bool  // Next has nothing before wake, unless something happens
	wake      time.Time
	sum       *summary
	eager     int32 // a scope that was seen not to be lazy
	// resumed: it holds something from an earlier stream. late: what it has not asked
	// for by now, it never will.
	resumed, late bool
}

// lane is the state of one type.
type lane struct {
	p *Proxy
	k kind
	// asked: the proxy subscribed. answered: it got a response on this stream.
	// synced: there was a moment with nothing left to send.
	asked, wildcard, answered, synced bool

	subs   bitset // named subscriptions
	held   bitset // acknowledged in some version
	clean  bitset // held in the wanted version
	flying bitset // in the unanswered response

	// other is what is held but not clean.
	other map[int32]version
	// maybe are the versions that came in refused responses of several: applied or
	// not. A nil one is an unknown version.
	maybe   map[int32][]*xds.Resource
	refused map[int32]refusal
	doomed  map[int32]time.Time // gone, and unreferred to since

	absent bitset    // to be answered "removed"
	split  [][]int32 // parts of a refused response, to be sent again
	flight *flight
	cursor int32 // where the next response starts to look
}

// version is what a proxy holds of a resource when that is not what it should.
type version struct {
	res  *xds.Resource // nil when only the version is known, from a reconnect
	name string        // the version
	// since is the first revision that this does not do for.
	since int64
	// again: to be sent even if the version is the wanted one.
	again bool
}

type refusal struct {
	Refusal
	// fallback: what was sent in place of the wanted version was refused, too.
	fallback bool
}

// flight is a response that waits for its answer.
type flight struct {
	nonce    string
	items    []item
	removed  []int32
	revision int64 // of the table when it was sent
	sent     time.Time
}

type item struct {
	i     int32 // -1: unsubscribed meanwhile
	res   *xds.Resource
	stale bool // must be sent again whatever the answer
	// since is the first revision that res does not do for, if it is not the wanted
	// version; 0 if it is.
	since int64
}

// Attach opens the ledger of a proxy that connected.
func (t *Table) Attach(o Options, now time.Time) *Proxy {
	p := &Proxy{table: t, opt: o, connected: now, active: now}
	for k := range kinds {
		p.lanes[k].p, p.lanes[k].k = p, k
	}
	t.proxies[p] = struct{}{}
	return p
}

// Detach ends the ledger when the stream is closed, and returns what is worth
// remembering for the next stream.
func (p *Proxy) Detach() Memory {
	delete(p.table.proxies, p)
	m := Memory{}
	for k := range kinds {
		l := &p.lanes[k]
		for i, r := range l.refused {
			if r.Version != "" {
				m[l.ref(i)] = r.Refusal
			}
		}
	}
	p.table.sweep()
	return m
}

// ForgetRefusals drops what an earlier stream left, before the first Handle: the
// proxy is of another version than it was then.
func (p *Proxy) ForgetRefusals() {
	p.opt.Memory = nil
}

// touched makes the next calls look at everything again.
func (p *Proxy) touched() { p.quiet, p.sum = false, nil }

// Handle takes in a request. The error, ErrType or ErrTooManyNames, says that
// it cannot be served.
func (p *Proxy) Handle(r Request, now time.Time) (Outcome, error) {
	p.touched()
	p.active = now
	k, ok := kindOf(r.Type)
	if !ok {
		return Outcome{}, fmt.Errorf("%w: %q", ErrType, r.Type)
	}
	l := &p.lanes[k]
	out := l.answer(r, now)
	first := !l.asked
	l.asked = true
	for _, name := range r.Unsubscribe {
		if name != "*" {
			l.unsubscribe(name)
		}
	}
	if first && len(r.Subscribe) == 0 && Wildcard(r.Type) {
		l.wildcard = true
	}
	for _, name := range r.Subscribe {
		switch {
		case name == "*" && Wildcard(r.Type):
			l.wildcard = true
		case name == "*":
			// All secrets or endpoints at once: no proxy needs that.
			out.Absent = append(out.Absent, xds.Ref{Type: r.Type, Name: name})
		default:
			_, holds := r.Initial[name]
			l.subscribe(name, first, first && holds, &out)
		}
	}
	// Last, so that what the client goes on with by its name is not forgotten, and sent
	// again.
	if slices.Contains(r.Unsubscribe, "*") {
		l.unsubscribe("*")
	}
	if first {
		l.reconcile(r.Initial)
		l.answered = len(r.Initial) > 0
		p.resumed = p.resumed || l.answered
	}
	if len(out.Absent) > 0 && l.countAbsent() > maxAbsent {
		return out, fmt.Errorf("%w: more than %d %s names", ErrTooManyNames, maxAbsent, r.Type.Short())
	}
	return out, nil
}

// subscribe adds a name. holds says that the proxy has some version of it.
func (l *lane) subscribe(name string, first, holds bool, out *Outcome) {
	i := l.col().intern(name)
	known := l.subs.has(i)
	l.subs.set(i)
	switch {
	case !l.col().present.has(i):
		if last := l.col().slots[i].last; last != nil && l.p.warmingNeeds(l.k, name) {
			return
		}
		if !holds && !l.held.has(i) {
			out.Absent = append(out.Absent, l.ref(i))
			l.absent.set(i)
		}
	case known && !first:
		// The proxy may have forgotten it: the protocol asks to send it anew.
		l.again(i, l.p.table.revision+1)
	}
}

// reconcile compares the versions that a proxy brings from an earlier stream
// with the wanted ones.
func (l *lane) reconcile(initial map[string]string) {
	col := l.col()
	for _, name := range slices.Sorted(maps.Keys(initial)) {
		v := initial[name]
		i, known := col.index[name]
		if !known {
			if !l.wildcard {
				continue // neither ours nor subscribed to
			}
			i = col.intern(name)
		}
		if !l.wildcard && !l.subs.has(i) {
			continue
		}
		l.held.set(i)
		if s := &col.slots[i]; s.res != nil && s.res.Version == v {
			l.clean.set(i)
			s.accepted(s.res)
		} else {
			// Which revision that was is not known.
			old := version{name: v}
			if s.good != nil && s.good.Version == v {
				old.res = s.good
			}
			put(&l.other, i, old)
			if r, ok := l.p.opt.Memory[l.ref(i)]; ok && s.res != nil && r.Version == s.res.Version {
				put(&l.refused, i, refusal{Refusal: r})
			}
		}
	}
}

func (l *lane) unsubscribe(name string) {
	if name == "*" {
		l.wildcard = false
		for i := range l.col().each(l.held) {
			if !l.subs.has(i) {
				l.drop(i)
			}
		}
		return
	}
	i, known := l.col().index[name]
	if !known || !l.subs.has(i) {
		return
	}
	l.subs.clear(i)
	if !l.wildcard {
		l.drop(i)
		// At once: an Envoy whose clients make up server names asks for ever new ones.
		l.p.table.release(l.k, i)
	}
}

// drop forgets a resource that the proxy does not want any more.
func (l *lane) drop(i int32) {
	l.forget(i)
	delete(l.refused, i)
	l.absent.clear(i)
	if l.flight != nil && l.flying.has(i) {
		l.flying.clear(i)
		for n := range l.flight.items {
			if l.flight.items[n].i == i {
				l.flight.items[n].i = -1
			}
		}
	}
}

// forget says that the proxy holds nothing of a resource.
func (l *lane) forget(i int32) {
	l.held.clear(i)
	l.clean.clear(i)
	delete(l.other, i)
	delete(l.maybe, i)
	delete(l.doomed, i)
}

// changed is told by the table that the wanted resource is another (or none).
func (l *lane) changed(i int32, old *xds.Resource) {
	delete(l.refused, i)
	delete(l.doomed, i)
	s := &l.col().slots[i]
	if l.clean.has(i) {
		l.clean.clear(i)
		put(&l.other, i, version{res: old, name: old.Version, since: s.since})
		return
	}
	if s.res != nil {
		l.absent.clear(i)
	}
	l.settle(i)
}

// settle marks a resource clean when the proxy holds the wanted version and
// nothing on its way can change that.
func (l *lane) settle(i int32) {
	o, ok := l.other[i]
	s := &l.col().slots[i]
	if !ok || s.res == nil || o.again || o.name != s.res.Version || l.flying.has(i) || l.maybe[i] != nil {
		return
	}
	l.clean.set(i)
	delete(l.other, i)
}

// again makes a resource be sent even if the proxy has it. since is the first
// revision that is not served before it is acknowledged.
func (l *lane) again(i int32, since int64) {
	if l.flying.has(i) {
		for n := range l.flight.items {
			if l.flight.items[n].i == i {
				l.flight.items[n].stale = true
			}
		}
	}
	if o, ok := l.other[i]; ok {
		o.again, o.since = true, min(o.since, since)
		l.other[i] = o
		return
	}
	if l.clean.has(i) {
		l.clean.clear(i)
		res := l.col().slots[i].res
		put(&l.other, i, version{res: res, name: res.Version, since: since, again: true})
	}
}

// answer takes in an acknowledgement or a refusal.
func (l *lane) answer(r Request, now time.Time) Outcome {
	f := l.flight
	if r.Nonce == "" || f == nil || f.nonce != r.Nonce {
		return Outcome{} // of an earlier stream, or a duplicate
	}
	l.flight, l.flying = nil, nil
	for _, i := range f.removed {
		l.forget(i)
		if rank[l.k] >= rank[scopes] {
			// What stood in the way of a refused listener (its address) or scope (its
			// key) may be gone now.
			clear(l.refused)
		}
	}
	alone := len(f.items) == 1
	items := slices.DeleteFunc(f.items, func(it item) bool { return it.i < 0 })
	if !r.Refused {
		l.p.lastAck = now
		out := Outcome{Acked: true}
		for _, it := range items {
			if l.acked(it, f.revision); l.released(it) {
				out.Accepted = append(out.Accepted, l.ref(it.i))
			}
		}
		return out
	}
	out := Outcome{Detail: r.Detail, Alone: alone}
	for _, it := range items {
		out.Refused = append(out.Refused, l.ref(it.i))
	}
	if bad := l.culprits(items, r.Culprits); len(bad) > 0 {
		out.Alone, out.Refused = len(bad) == 1, bad
		for _, it := range items {
			if slices.Contains(bad, l.ref(it.i)) {
				l.refuse(it, r.Detail)
			} else {
				l.acked(it, f.revision)
			}
		}
		return out
	}
	if alone && len(items) == 1 {
		l.refuse(items[0], r.Detail)
		out.Culprit = l.culprit(items[0])
	} else {
		// Even one that is left is not the culprit for sure: that may be what was
		// unsubscribed meanwhile.
		l.halve(items)
	}
	return out
}

func (l *lane) acked(it item, revision int64) {
	i := it.i
	s := &l.col().slots[i]
	l.held.set(i)
	delete(l.maybe, i)
	if s.res != nil && s.res.Version == it.res.Version {
		s.accepted(it.res)
		delete(l.refused, i)
		if !it.stale {
			l.clean.set(i)
			delete(l.other, i)
			return
		}
	}
	l.clean.clear(i)
	since := revision + 1
	if it.since != 0 {
		since = it.since
	} else if o, ok := l.other[i]; ok && o.name == it.res.Version {
		since = o.since // it was only sent again
	} else if l.refusedNow(i) {
		since = s.added // the last good version does not do for any revision
	}
	put(&l.other, i, version{res: it.res, name: it.res.Version, since: since, again: it.stale})
}

// refuse notes the refusal of one resource.
func (l *lane) refuse(it item, detail string) {
	s := &l.col().slots[it.i]
	// What was refused alone was not applied when it came with others.
	if rest := slices.DeleteFunc(l.maybe[it.i], func(r *xds.Resource) bool { return r == it.res }); len(rest) > 0 {
		l.maybe[it.i] = rest
	} else {
		delete(l.maybe, it.i)
	}
	if s.res == nil || it.res.Version == s.res.Version {
		put(&l.refused, it.i, refusal{Refusal: Refusal{it.res.Version, detail}, fallback: l.refused[it.i].fallback})
		s.bad = it.res.Version
	} else {
		r := l.refused[it.i]
		if r.Version == "" && s.quarantined() {
			r.Refusal = Refusal{s.res.Version, l.reason(it.i)}
		}
		r.fallback = true
		put(&l.refused, it.i, r)
	}
	l.settle(it.i)
}

// halve queues both halves of a refused response.
func (l *lane) halve(items []item) {
	if len(items) == 0 {
		return
	}
	ids := make([]int32, len(items))
	for n, it := range items {
		ids[n] = it.i
		// Whether Envoy applied the good ones of it differs by type and by chance.
		l.suspect(it.i, it.res)
	}
	half := (len(ids) + 1) / 2
	l.split = append([][]int32{ids[:half], ids[half:]}, l.split...)
}

// suspect notes that the proxy may hold a version.
func (l *lane) suspect(i int32, res *xds.Resource) {
	all := l.maybe[i]
	switch {
	case slices.Contains(all, res):
		return
	case len(all) == maxSuspects:
		all = []*xds.Resource{nil}
	case len(all) != 1 || all[0] != nil:
		all = append(all, res)
	}
	put(&l.maybe, i, all)
}

func (l *lane) col() *column { return &l.p.table.columns[l.k] }

func (l *lane) ref(i int32) xds.Ref {
	return xds.Ref{Type: types[l.k], Name: l.col().slots[i].name}
}

// wants reports whether the proxy is subscribed to the resource.
func (l *lane) wants(i int32) bool { return l.wildcard || l.subs.has(i) }

// uses reports whether anything is noted of a slot.
func (l *lane) uses(i int32) bool {
	return l.subs.has(i) || l.held.has(i) || l.flying.has(i) || l.maybe[i] != nil
}

// refusedNow reports whether the wanted version was refused, by this proxy or, when
// it is quarantined, by another.
func (l *lane) refusedNow(i int32) bool {
	r, ok := l.refused[i]
	s := &l.col().slots[i]
	return ok && s.res != nil && r.Version == s.res.Version || s.quarantined()
}

// dirty are the resources that the proxy wants, lacks in the wanted version, and
// is not being sent; refused ones among them.
func (l *lane) dirty(w int) uint64 {
	d := l.col().present.word(w) &^ l.clean.word(w) &^ l.flying.word(w)
	if !l.wildcard {
		d &= l.subs.word(w)
	}
	return d
}

func (l *lane) countAbsent() int {
	n := 0
	for range ones(l.col().words(), func(w int) uint64 { return l.subs.word(w) & l.col().gone.word(w) }) {
		n++
	}
	return n
}

// put sets an entry of a map that may be nil.
func put[V any](m *map[int32]V, i int32, v V) {
	if *m == nil {
		*m = map[int32]V{}
	}
	(*m)[i] = v
}
