package ledger_test

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/penstock-gateway/penstock/xds"
	"github.com/penstock-gateway/penstock/xds/ledger"
)

// envoy imitates what is known of Envoy 1.40 over delta ADS:
//
//   - it asks for clusters, then listeners, then what those refer to by name, and
//     each such question goes out before the acknowledgement of what led to it;
//   - a cluster warms until its endpoints come after it, or for 15 s, and no
//     request for clusters goes out, answers included, while any cluster warms;
//   - it does not ask again for endpoints that it is subscribed to;
//   - a bad cluster or listener does not hurt the others of its response; a bad
//     one of another type makes Envoy apply all of the others or none, at random;
//   - it asks for the routes of a lazy scope when a request needs them, and drops
//     them when that scope changes;
//   - a refused resource keeps its version before;
//   - on a new stream it brings the versions of all it holds.
type envoy struct {
	name string
	rnd  *rand.Rand
	fail func(format string, args ...any)
	bad  func(*xds.Resource) bool
	// owed reports whether the control plane could have sent what is wanted of a name.
	owed func(xds.Ref) bool

	held    map[xds.Type]map[string]*xds.Resource
	subs    map[xds.Type]map[string]bool
	asked   map[xds.Type]bool
	warming map[string]time.Time // clusters, since when
	came    map[string]bool      // warming clusters whose endpoints came
	ready   map[string]bool      // clusters that got endpoints once
	// paused are the requests for clusters, withheld while any warms: answers, and
	// the first request of a new stream.
	paused []ledger.Request

	out  []ledger.Request   // on the way to the server
	in   []*ledger.Response // on the way to the Envoy
	open map[xds.Type]int   // responses that were not answered
	// first is set for types whose first request of the stream went out.
	first map[xds.Type]bool
	hangs bool
	calm  time.Time // when the faults ended; zero before
	// mute are the warming clusters whose endpoints were refused.
	mute map[string]bool
	// loaded are the routes that a request to a lazy scope needed.
	loaded map[string]bool
	// only are the types that it asks for, when it is not an Envoy but a client of these
	// alone: it needs no order among them.
	only []xds.Type
	// absent are the names that it asked for when they were not there: being told
	// so is not a removal.
	absent map[xds.Ref]bool
	// trace of the run, for failures.
	log *strings.Builder
}

var order = []xds.Type{xds.Cluster, xds.Endpoint, xds.Secret, xds.ExtensionConfig, xds.Listener, xds.Scope, xds.Route}

func newEnvoy(name string, rnd *rand.Rand, fail func(string, ...any)) *envoy {
	e := &envoy{
		name: name, rnd: rnd, fail: fail,
		held: map[xds.Type]map[string]*xds.Resource{}, subs: map[xds.Type]map[string]bool{},
		asked: map[xds.Type]bool{}, warming: map[string]time.Time{}, came: map[string]bool{}, mute: map[string]bool{}, ready: map[string]bool{},
		log: &strings.Builder{}, loaded: map[string]bool{},
	}
	for _, t := range order {
		e.held[t], e.subs[t] = map[string]*xds.Resource{}, map[string]bool{}
	}
	return e
}

// client is one that asks for some types alone: for those that Envoy names it
// knows the names beforehand, whether they are there or not.
func (e *envoy) client(types ...xds.Type) *envoy {
	e.only = types
	for _, t := range types {
		if prefix := simNames[t]; !ledger.Wildcard(t) {
			for i := range 5 {
				e.subs[t][fmt.Sprint(prefix, i)] = true
			}
		}
	}
	return e
}

func (e *envoy) tracef(format string, args ...any) {
	fmt.Fprintf(e.log, "%s: %s\n", e.name, fmt.Sprintf(format, args...))
}

// connect opens a stream: what it holds and wants goes out again.
func (e *envoy) connect() {
	e.in, e.out, e.paused = nil, nil, nil
	e.absent = map[xds.Ref]bool{}
	e.open, e.first = map[xds.Type]int{}, map[xds.Type]bool{}
	e.tracef("connects")
	for _, t := range e.only {
		e.tracef("asks for %s alone", t.Short())
		e.ask(t)
	}
	if e.only != nil {
		return
	}
	if !e.asked[xds.Cluster] {
		e.ask(xds.Cluster)
		return
	}
	for _, t := range order {
		if e.asked[t] {
			e.ask(t)
		}
	}
}

// ask sends the first request of a type on this stream, or a later one with the
// names.
func (e *envoy) ask(t xds.Type, names ...string) {
	r := ledger.Request{Type: t, Subscribe: names}
	if !e.first[t] {
		e.first[t] = true
		r.Initial = map[string]string{}
		for n, res := range e.held[t] {
			r.Initial[n] = res.Version
		}
		if !ledger.Wildcard(t) {
			r.Subscribe = slices.Sorted(maps.Keys(e.subs[t]))
		} else if e.rnd.IntN(2) == 0 {
			r.Subscribe = []string{"*"}
		}
	}
	e.asked[t] = true
	if t == xds.Cluster && len(e.warming) > 0 {
		e.paused = append(e.paused, r)
		return
	}
	e.out = append(e.out, r)
}

// want subscribes to names that are not subscribed to.
func (e *envoy) want(t xds.Type, names ...string) {
	var fresh []string
	for _, n := range names {
		if !e.subs[t][n] {
			e.subs[t][n] = true
			fresh = append(fresh, n)
		}
	}
	if len(fresh) > 0 {
		e.tracef("asks for %s %v", t.Short(), fresh)
		e.ask(t, fresh...)
	}
}

// release unsubscribes from names that nothing uses any more.
func (e *envoy) release(t xds.Type) {
	used := map[string]bool{}
	for _, from := range order {
		for _, res := range e.held[from] {
			for _, ref := range res.Refs {
				lazy := res.Lazy && !e.loaded[ref.Name]
				used[ref.Name] = used[ref.Name] || (ref.Type == t && !lazy)
			}
		}
	}
	if t == xds.Endpoint {
		for n := range e.held[xds.Cluster] {
			used[n] = true
		}
		for n := range e.warming {
			used[n] = true
		}
	}
	for _, n := range slices.Sorted(maps.Keys(e.subs[t])) {
		if !used[n] {
			delete(e.subs[t], n)
			delete(e.held[t], n)
			e.tracef("drops %s %s", t.Short(), n)
			e.out = append(e.out, ledger.Request{Type: t, Unsubscribe: []string{n}})
		}
	}
}

// receive applies the next response.
func (e *envoy) receive(now time.Time) {
	r := e.in[0]
	e.in = e.in[1:]
	answer := &ledger.Request{Type: r.Type, Nonce: r.Nonce}
	var good []*xds.Resource
	for _, res := range r.Resources {
		if !ledger.Wildcard(r.Type) && !e.subs[r.Type][res.Name] {
			continue
		}
		if e.bad(res) {
			answer.Refused, answer.Detail = true, "bad "+res.Name
			e.mute[res.Name] = e.mute[res.Name] || res.Type == xds.Endpoint
		} else {
			good = append(good, res)
		}
	}
	atomic := r.Type != xds.Cluster && r.Type != xds.Listener
	if answer.Refused && atomic && e.rnd.IntN(2) == 0 {
		good = nil
	}
	for _, res := range good {
		e.apply(res, now)
	}
	for _, n := range r.Removed {
		e.remove(xds.Ref{Type: r.Type, Name: n})
	}
	if e.only != nil {
		e.answer(*answer)
		return
	}
	if r.Type == xds.Cluster && !e.asked[xds.Listener] {
		defer e.ask(xds.Listener)
	}
	if r.Type == xds.Cluster {
		e.paused = append(e.paused, *answer)
		e.warm(now)
		return
	}
	e.warm(now)
	e.answer(*answer)
}

func (e *envoy) answer(r ledger.Request) {
	e.tracef("answers %s %s refused=%v", r.Type.Short(), r.Nonce, r.Refused)
	e.out = append(e.out, r)
}

// apply takes a resource into use and checks that what it needs is there.
func (e *envoy) apply(res *xds.Resource, now time.Time) {
	e.tracef("applies %s %s %s", res.Type.Short(), res.Name, res.Version[:4])
	if e.only != nil {
		e.held[res.Type][res.Name] = res
		return
	}
	if res.Type == xds.Route {
		for _, ref := range res.Refs {
			if ref.Type != xds.Cluster {
				continue
			}
			if c := e.held[xds.Cluster][ref.Name]; c == nil || !e.ready[ref.Name] {
				e.fail("%s applies %s, which refers to %s: not there", e.name, res.Name, ref.Name)
			}
		}
	}
	for _, ref := range res.After {
		if e.held[ref.Type][ref.Name] == nil && e.owed(ref) {
			e.fail("%s applies %s, which follows %s: not there", e.name, res.Name, ref)
		}
	}
	old := e.held[res.Type][res.Name]
	if old != nil && old.Version != res.Version {
		e.unload(old)
	}
	e.held[res.Type][res.Name] = res
	switch res.Type {
	case xds.Cluster:
		if old == nil || old.Version != res.Version {
			e.warming[res.Name] = now
			delete(e.came, res.Name)
			delete(e.mute, res.Name)
		}
		e.want(xds.Endpoint, res.Name)
		e.want(xds.Secret, names(res, xds.Secret)...)
	case xds.Endpoint:
		e.came[res.Name] = true
	case xds.Listener:
		e.want(xds.Secret, names(res, xds.Secret)...)
		e.want(xds.ExtensionConfig, names(res, xds.ExtensionConfig)...)
		e.want(xds.Route, names(res, xds.Route)...)
		if !e.asked[xds.Scope] {
			e.ask(xds.Scope)
		}
	case xds.Scope:
		if !res.Lazy {
			e.want(xds.Route, names(res, xds.Route)...)
		}
	}
	if old != nil {
		for _, t := range order[1:] {
			if !ledger.Wildcard(t) {
				e.release(t)
			}
		}
	}
}

// request is one for a host whose routes are loaded on demand.
func (e *envoy) request() {
	if e.only != nil {
		return
	}
	var cold []string
	for _, n := range slices.Sorted(maps.Keys(e.held[xds.Scope])) {
		if s := e.held[xds.Scope][n]; s.Lazy {
			cold = append(cold, names(s, xds.Route)...)
		}
	}
	if len(cold) > 0 {
		name := cold[e.rnd.IntN(len(cold))]
		e.loaded[name] = true
		e.want(xds.Route, name)
	}
}

// unload forgets what requests to a scope have loaded: a scope that changes or goes
// drops its subscription.
func (e *envoy) unload(scope *xds.Resource) {
	if scope.Type == xds.Scope {
		for _, n := range names(scope, xds.Route) {
			delete(e.loaded, n)
		}
	}
}

// warm ends the warming of clusters that have what they need, or whose time is
// over, and sends the withheld answers when none warms.
func (e *envoy) warm(now time.Time) {
	for n, since := range e.warming {
		if e.came[n] && e.complete(n) {
			delete(e.warming, n)
			e.ready[n] = true
			continue
		}
		if now.Sub(since) >= 15*time.Second {
			if !e.calm.IsZero() && since.After(e.calm) && e.complete(n) && !e.mute[n] {
				e.fail("%s waited 15 s for the endpoints of %s, which it has", e.name, n)
			}
			delete(e.warming, n)
			e.ready[n] = true
		}
	}
	for len(e.paused) > 0 && len(e.warming) == 0 {
		e.answer(e.paused[0])
		e.paused = e.paused[1:]
	}
}

// complete reports whether it has had all that a cluster needs before.
func (e *envoy) complete(cluster string) bool {
	for _, s := range names(e.held[xds.Cluster][cluster], xds.Secret) {
		if e.held[xds.Secret][s] == nil {
			return false
		}
	}
	return e.held[xds.Endpoint][cluster] != nil
}

// remove gives up a resource; a cluster in use is an error of the server.
func (e *envoy) remove(ref xds.Ref) {
	if e.held[ref.Type][ref.Name] == nil {
		return
	}
	e.tracef("removes %s", ref)
	if e.only != nil {
		delete(e.held[ref.Type], ref.Name)
		return
	}
	if ref.Type == xds.Endpoint {
		return // Envoy ignores it
	}
	for _, t := range order {
		for _, res := range e.held[t] {
			if slices.Contains(res.Refs, ref) && !e.absent[ref] {
				e.fail("%s is told to remove %s, which %s %s refers to", e.name, ref, t.Short(), res.Name)
			}
		}
	}
	for name, res := range e.held[xds.Route] {
		if slices.Contains(res.After, ref) && !e.absent[ref] && e.owed(xds.Ref{Type: xds.Route, Name: name}) {
			e.fail("%s is told to remove %s, which %s still follows", e.name, ref, name)
		}
	}
	e.unload(e.held[ref.Type][ref.Name])
	delete(e.held[ref.Type], ref.Name)
	if ref.Type == xds.Cluster {
		delete(e.warming, ref.Name)
		delete(e.ready, ref.Name)
	}
	for _, t := range order {
		if !ledger.Wildcard(t) {
			e.release(t)
		}
	}
}

func names(res *xds.Resource, t xds.Type) []string {
	var out []string
	for _, ref := range res.Refs {
		if ref.Type == t {
			out = append(out, ref.Name)
		}
	}
	return out
}
