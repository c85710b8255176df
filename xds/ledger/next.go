package ledger

import (
	"slices"
	"strconv"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/penstock-gateway/penstock/xds"
)

// How much goes into one response.
const (
	// maxBytes keeps a response under the 4 MiB that gRPC clients take by default.
	maxBytes = 3_500_000
	// initialBatch is for what a proxy subscribes to by name when it starts.
	initialBatch = 256
	// laterBatch and laterShare: of n changed resources, n/laterShare go together.
	// One bad RDS, EDS or SDS resource in a response may block all others in it, so
	// few changes go alone, and many in batches that halving can search quickly.
	laterBatch = 128
	laterShare = 16
)

// Response is what to send (DeltaDiscoveryResponse).
type Response struct {
	Type  xds.Type
	Nonce string
	// Revision is that of the table when the response was made.
	Revision  int64
	Resources []*xds.Resource
	Removed   []string
}

// Next returns the next response to send and notes that it was sent. It returns
// nil when there is nothing to send before Wake or the next Handle or Update.
func (p *Proxy) Next(now time.Time) *Response {
	if !p.table.ready || (p.quiet && (p.wake.IsZero() || now.Before(p.wake))) {
		return nil
	}
	p.wake = time.Time{}
	p.lateAt(now)
	for k := range kinds {
		if r := p.lanes[k].next(now); r != nil {
			p.sent += int64(len(r.Resources))
			p.sum, p.active = nil, now
			return r
		}
	}
	// Removals last, and who refers before what is referred to.
	for _, k := range [...]kind{listeners, scopes, routes, extensions, clusters, endpoints, secrets} {
		if r := p.lanes[k].remove(now); r != nil {
			p.sum = nil
			return r
		}
	}
	p.quiet = true
	return nil
}

// lateAt notes when a client has had the time to ask for what it holds and wants.
func (p *Proxy) lateAt(now time.Time) {
	if p.late {
		return
	}
	if due := p.connected.Add(askWithin); now.Before(due) {
		p.wake = due
	} else {
		p.late, p.sum = true, nil
	}
}

// Wake is when Next is to be called again even if nothing happens; zero for
// never.
func (p *Proxy) Wake() time.Time { return p.wake }

// next is the next response of a type, removals left out.
func (l *lane) next(now time.Time) *Response {
	if !l.asked || l.flight != nil {
		return nil
	}
	if names := l.absentNames(); len(names) > 0 {
		return l.send(nil, nil, names, now)
	}
	if it, ok := l.orphan(); ok {
		return l.send([]item{it}, nil, nil, now)
	}
	waiting := false
	if items := l.nextPart(&waiting); len(items) > 0 {
		return l.send(items, nil, nil, now)
	}
	n := 0
	for range ones(l.col().words(), l.dirty) {
		n++
	}
	if n == 0 {
		l.synced = true
		l.shrink()
		if l.wildcard && !l.answered {
			// Envoy's start waits for an answer even if there is nothing.
			return l.send(nil, nil, nil, now)
		}
		return nil
	}
	items := l.pending(l.limit(n), &waiting)
	switch {
	case len(items) > 0:
		return l.send(items, nil, nil, now)
	case waiting:
		return nil
	}
	// All that there is was refused.
	l.synced = true
	if l.wildcard && !l.answered {
		return l.send(nil, nil, nil, now)
	}
	return nil
}

// orphan is a resource that is gone and that a warming cluster needs. They go one
// by one, so that a refusal needs no search.
func (l *lane) orphan() (item, bool) {
	if l.k != endpoints && l.k != secrets {
		return item{}, false
	}
	col := l.col()
	for i := range ones(col.words(), func(w int) uint64 { return col.gone.word(w) & l.subs.word(w) &^ l.flying.word(w) }) {
		last := col.slots[i].last
		if last != nil && (l.refused[i].Version == last.Version || col.slots[i].q.refused(last)) {
			last = l.version(i)
		}
		switch {
		case last == nil:
		case l.held.has(i) && !l.other[i].again:
		case l.p.warmingNeeds(l.k, last.Name):
			return item{i: i, res: last}, true
		}
	}
	return item{}, false
}

// nextPart is what can be sent of the next part of a refused response. What has
// to wait stays a part, so that it never meets again what it was parted from.
func (l *lane) nextPart(waiting *bool) []item {
	var items []item
	var kept [][]int32
	for _, part := range l.split {
		part = slices.DeleteFunc(part, func(i int32) bool { return !l.lacks(i) })
		if len(items) == 0 {
			var taken bitset
			items = l.sendable(part, waiting)
			for _, it := range items {
				taken.set(it.i)
			}
			part = slices.DeleteFunc(part, taken.has)
		}
		if len(part) > 0 {
			kept = append(kept, part)
		}
	}
	l.split = kept
	return items
}

// lacks reports whether a resource is to be sent, now or later.
func (l *lane) lacks(i int32) bool {
	return l.dirty(int(i>>6))&(1<<(i&63)) != 0 && (!l.refusedNow(i) || l.fallback(i) != nil)
}

// limit is how many of n resources go into one response.
func (l *lane) limit(n int) int {
	switch {
	case l.synced && l.k == clusters:
		// Envoy applies the good ones of a response and acknowledges none before all
		// are warm, so one by one would only be slower.
		return min(n, laterBatch)
	case l.synced:
		return min(max(n/laterShare, 1), laterBatch)
	case Wildcard(types[l.k]):
		// The first response of clusters and scopes should hold all: Envoy opens its
		// listeners when it has got one.
		return n
	default:
		return initialBatch
	}
}

// pending collects up to limit resources to send, going on where the last
// response ended, so that none that changes often keeps others waiting.
func (l *lane) pending(limit int, waiting *bool) []item {
	var parted bitset
	for _, part := range l.split {
		for _, i := range part {
			parted.set(i)
		}
	}
	var ids []int32
	for i := range ones(l.col().words(), l.dirty) {
		if !parted.has(i) {
			ids = append(ids, i)
		}
	}
	start := 0
	for start < len(ids) && ids[start] < l.cursor {
		start++
	}
	ids = append(ids[start:], ids[:start]...)
	if known := slices.DeleteFunc(slices.Clone(ids), func(i int32) bool { return !l.known(i) }); len(known) > 0 {
		// What the proxy has acknowledged before it will not refuse now.
		ids, limit = known, initialBatch
		if Wildcard(types[l.k]) {
			limit = len(known)
		}
	}
	items := make([]item, 0, min(limit, len(ids)))
	size := 0
	for _, i := range ids {
		got := l.sendable([]int32{i}, waiting)
		if len(got) == 0 {
			continue
		}
		size += bodySize(got[0].res)
		if len(items) > 0 && size > maxBytes {
			break
		}
		items = append(items, got[0])
		l.cursor = i + 1
		if len(items) == limit {
			break
		}
	}
	return items
}

// known reports whether the proxy holds this version already, and only has to be
// sent it again.
func (l *lane) known(i int32) bool {
	o, ok := l.other[i]
	return ok && o.again && o.name == l.col().slots[i].res.Version && !l.refusedNow(i)
}

// sendable are those of the resources that are to be sent and may be sent now.
// waiting is set when one of the others may become so.
func (l *lane) sendable(ids []int32, waiting *bool) []item {
	var out []item
	for _, i := range ids {
		res := l.col().slots[i].res
		since := int64(0)
		state, _ := l.ready(i)
		if state != ready && !l.refusedNow(i) {
			if first := l.standIn(i); first != nil {
				res, since, state = first, l.col().slots[i].since, ready
			}
		}
		if l.refusedNow(i) {
			if res = l.fallback(i); res == nil {
				continue
			}
			if state = ready; !l.held.has(i) {
				state, _ = l.p.ready(l.k, res, l.col().slots[i].at, true)
			}
		}
		switch state {
		case ready:
			out = append(out, item{i: i, res: res, since: since})
		case waits:
			if waiting != nil {
				*waiting = true
			}
		}
	}
	return out
}

// ready is Proxy.ready for the wanted version. What the proxy has been sent
// already, and is to be sent again, need not wait.
func (l *lane) ready(i int32) (readiness, xds.Ref) {
	s := &l.col().slots[i]
	if l.known(i) || slices.Contains(l.maybe[i], s.res) {
		return ready, xds.Ref{}
	}
	if l.k == scopes && l.held.has(i) && l.p.willAskForRoutes() {
		return waits, xds.Ref{Type: xds.Route, Name: s.name}
	}
	return l.p.ready(l.k, s.res, s.at, false)
}

// willAskForRoutes reports whether the proxy, on a new stream, has still to say which
// routes it knows and waits for, as one does that has a scope which is not lazy. A
// scope that changes before would cost it the requests that wait for the routes of
// the old one: Envoy forgets them.
func (p *Proxy) willAskForRoutes() bool {
	l := &p.lanes[scopes]
	if p.lanes[routes].asked || p.late || !p.resumed {
		return false
	}
	eager := func(i int32) bool {
		s := &l.col().slots[i]
		return l.held.has(i) && l.clean.has(i) && s.res != nil && !s.res.Lazy
	}
	if int(p.eager) < len(l.col().slots) && eager(p.eager) {
		return true
	}
	for i := range l.col().each(l.held) {
		if eager(i) {
			p.eager = i
			return true
		}
	}
	return false
}

// fallback is what to send in place of a refused version: the one that the proxy
// has, when that is to be sent again, or the last good one when it has none, or
// the one before, which no proxy refused, when none was ever asked for.
func (l *lane) fallback(i int32) *xds.Resource {
	s := &l.col().slots[i]
	if o := l.other[i]; o.again && o.name != s.res.Version {
		return l.version(i)
	}
	if l.held.has(i) || l.refused[i].fallback {
		return nil
	}
	old := s.fallback()
	if old == nil && !s.q.refused(s.before) {
		old = s.before
	}
	if old == nil || l.mayHoldOther(i, old) {
		return nil
	}
	if state, _ := l.p.ready(l.k, old, s.at, true); state == blocked {
		return nil // what it needs is gone
	}
	return old
}

// mayHoldOther reports whether the proxy may hold another version than one. It
// cannot hold what another proxy refused.
func (l *lane) mayHoldOther(i int32, res *xds.Resource) bool {
	q := l.col().slots[i].q
	return slices.ContainsFunc(l.maybe[i], func(r *xds.Resource) bool { return r != res && !q.refused(r) })
}

// standIn is what to send of a route that the proxy asks for and has in no version,
// while the wanted one has to wait: a request may be waiting for it. It is the
// version before, if the proxy has all that it needs; else nil.
func (l *lane) standIn(i int32) *xds.Resource {
	s := &l.col().slots[i]
	if s.before == nil || l.held.has(i) || l.mayHoldOther(i, s.before) || l.refused[i].fallback {
		return nil
	}
	if state, _ := l.p.ready(l.k, s.before, s.beforeAt, true); state != ready {
		return nil
	}
	return s.before
}

// send makes the response and notes it.
func (l *lane) send(items []item, removed []int32, absent []string, now time.Time) *Response {
	p := l.p
	p.nonce++
	l.answered = true
	l.flight = &flight{
		nonce: strconv.FormatUint(p.nonce, 10), items: items, removed: removed,
		revision: p.table.revision, sent: now,
	}
	r := &Response{Type: types[l.k], Nonce: l.flight.nonce, Revision: p.table.revision, Removed: absent}
	for _, it := range items {
		l.flying.set(it.i)
		r.Resources = append(r.Resources, it.res)
		p.followUp(l, it)
	}
	for _, i := range removed {
		l.flying.set(i)
		r.Removed = append(r.Removed, l.col().slots[i].name)
	}
	return r
}

// followUp has sent again what Envoy needs anew after a cluster or listener, and
// does not ask for, since it has asked for it on this stream: a changed cluster
// warms without its endpoints (envoy issue 13009), and a listener whose source of
// scopes, secrets or extension configurations is another than before gets nothing
// from its new subscription. With scopes that was 404 for all hosts, after
// initial_fetch_timeout (seen with 1.40); routes were seen not to need it.
func (p *Proxy) followUp(l *lane, it item) {
	if l.k != clusters && l.k != listeners {
		return
	}
	since := l.since(it.i)
	if l.k == clusters {
		p.again(xds.Ref{Type: xds.Endpoint, Name: it.res.Name}, since)
	}
	for _, ref := range it.res.Refs {
		if ref.Type != xds.Cluster && ref.Type != xds.Route {
			p.again(ref, since)
		}
	}
	if s := &p.lanes[scopes]; l.k == listeners {
		for i := range s.col().each(s.held) {
			s.again(i, since)
		}
	}
}

// again has a resource sent again if the proxy is subscribed to it.
func (p *Proxy) again(ref xds.Ref, since int64) {
	k, ok := kindOf(ref.Type)
	if !ok {
		return
	}
	l := &p.lanes[k]
	if i, known := l.col().index[ref.Name]; known && l.wants(i) {
		l.again(i, since)
	}
}

// absentNames takes what is to be answered "removed".
func (l *lane) absentNames() []string {
	if l.absent.empty() {
		return nil
	}
	var names []string
	for i := range l.col().each(l.absent) {
		names = append(names, l.col().slots[i].name)
	}
	l.absent = nil
	return names
}

// shrink gives back the memory of a first synchronisation or a big change.
func (l *lane) shrink() {
	if len(l.other) == 0 {
		l.other = nil
	}
	if len(l.maybe) == 0 {
		l.maybe = nil
	}
	if len(l.doomed) == 0 {
		l.doomed = nil
	}
	if len(l.refused) == 0 {
		l.refused = nil
	}
}

func bodySize(r *xds.Resource) int {
	return proto.Size(r.Body) + len(r.Name) + len(r.Version) + 16
}
