package ledger_test

import (
	"flag"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/penstock-gateway/penstock/xds"
	"github.com/penstock-gateway/penstock/xds/ledger"
)

var (
	seeds = flag.Int("seeds", 2000, "how many seeds the simulation runs")
	seed  = flag.Uint64("seed", 0, "run only this seed of the simulation, with its trace")
)

// TestSimulation runs random generations against imitations of Envoy that refuse,
// hang and reconnect, and control planes that restart. See world for what must
// hold. A failure prints the seed; -seed replays it exactly.
func TestSimulation(t *testing.T) {
	if *seed != 0 {
		runSeed(t, *seed)
		return
	}
	for s := range uint64(*seeds) {
		if runSeed(t, s+1); t.Failed() {
			return
		}
	}
}

func runSeed(t *testing.T, s uint64) {
	w, lines := newWorld(s), 60
	if *seed != 0 {
		lines = math.MaxInt
	}
	defer func() {
		if r := recover(); r != nil {
			t.Errorf("seed %d: %v\nreplay: go test ./xds/ledger -run TestSimulation -seed %d\n%s", s, r, s, tail(w.log.String(), lines))
			if _, ours := r.(failure); !ours {
				panic(r)
			}
		}
	}()
	w.run()
	if *seed != 0 {
		t.Log(w.log.String())
	}
}

type failure string

// world is one run: a control plane and its proxies. What must hold:
//
//   - a route is never applied before its clusters are there (checked by the model);
//   - nothing is removed that a held resource refers to (checked by the model);
//   - at most one response per type is unanswered;
//   - a version in quarantine is sent to nobody, and at the end its last good version
//     serves in its place at every proxy that could be sent it;
//   - at the end every good resource is in its newest version at each proxy that
//     wants it, unless what it refers to was refused; what is gone is removed;
//     bad ones are reported as refused; and nothing more is sent.
type world struct {
	rnd     *rand.Rand
	more    *rand.Rand // for what followers are
	now     time.Time
	table   *ledger.Table
	gen     *xds.Generation
	proxies []*proxy
	bad     map[string]bool // versions
	log     *strings.Builder
	// quarantine is what outlives a restart of the control plane.
	quarantine map[xds.Ref]*ledger.Quarantine
}

type proxy struct {
	*envoy
	led *ledger.Proxy
	mem ledger.Memory
}

func newWorld(s uint64) *world {
	w := &world{
		rnd: rand.New(rand.NewPCG(s, 1)), more: rand.New(rand.NewPCG(s, 3)), now: time.Unix(1_000_000, 0),
		table: ledger.NewTable(), bad: map[string]bool{}, log: &strings.Builder{},
		quarantine: map[xds.Ref]*ledger.Quarantine{},
	}
	for i := range 1 + w.rnd.IntN(3) {
		e := newEnvoy(fmt.Sprint("p", i), w.rnd, w.failf)
		e.log, e.bad = w.log, func(r *xds.Resource) bool { return w.bad[r.Version] }
		e.owed = w.owed
		w.proxies = append(w.proxies, &proxy{envoy: e})
	}
	if rnd := rand.New(rand.NewPCG(s, 2)); rnd.IntN(3) == 0 {
		// Another program, which takes one type or two.
		e := newEnvoy("client", w.rnd, w.failf)
		e.log, e.bad = w.log, func(r *xds.Resource) bool { return w.bad[r.Version] }
		e.owed = w.owed
		types := []xds.Type{order[rnd.IntN(len(order))]}
		if other := order[rnd.IntN(len(order))]; other != types[0] && rnd.IntN(3) == 0 {
			types = append(types, other)
		}
		w.proxies = append(w.proxies, &proxy{envoy: e.client(types...)})
	}
	return w
}

func (w *world) failf(format string, args ...any) { panic(failure(fmt.Sprintf(format, args...))) }

// simNames begin the names of the resources that are subscribed to by name. Endpoints
// have the names of their clusters.
var simNames = map[xds.Type]string{xds.Secret: "s", xds.Endpoint: "c", xds.ExtensionConfig: "e", xds.Route: "r"}

const (
	simSilent = 5 * time.Second
	simGrace  = 500 * time.Millisecond
)

func (w *world) run() {
	w.generate(0)
	for _, p := range w.proxies {
		w.connect(p)
	}
	for range 40 + w.rnd.IntN(160) {
		w.step()
	}
	w.settle()
	w.newcomers()
	w.check()
}

func (w *world) connect(p *proxy) {
	if p.led != nil {
		p.mem = p.led.Detach()
	}
	p.led = w.table.Attach(ledger.Options{SilentAfter: simSilent, Grace: simGrace, Memory: p.mem}, w.now)
	p.envoy.connect()
	p.hangs = false
}

// step does one random thing.
func (w *world) step() {
	w.now = w.now.Add(time.Duration(w.rnd.IntN(50)) * time.Millisecond)
	p := w.proxies[w.rnd.IntN(len(w.proxies))]
	switch n := w.rnd.IntN(100); {
	case n < 35:
		w.serverTurn(p)
	case n < 60:
		w.envoyTurn(p)
	case n < 78:
		w.requestTurn(p)
	case n < 82:
		p.request()
	case n < 92:
		w.generate(0.1)
	case n < 94:
		w.connect(p)
	case n < 95:
		w.restart()
	case n < 97:
		p.hangs = !p.hangs
	case n < 98:
		w.retry()
	default:
		w.now = w.now.Add(time.Duration(w.rnd.IntN(6)) * time.Second)
	}
}

// restart is a new control plane with the same configuration.
func (w *world) restart() {
	fmt.Fprintf(w.log, "control plane restarts\n")
	w.table = ledger.NewTable()
	w.table.Quarantine(w.quarantine)
	w.table.Update(w.gen, w.now)
	for _, p := range w.proxies {
		p.led, p.mem = nil, nil
		w.connect(p)
	}
}

func (w *world) serverTurn(p *proxy) bool {
	r := p.led.Next(w.now)
	if r == nil {
		return false
	}
	var what []string
	for _, res := range r.Resources {
		if q := w.quarantine[xds.Ref{Type: r.Type, Name: res.Name}]; q != nil && q.Refused[res.Version] != "" {
			w.failf("%s: sent %s %s, which is in quarantine", p.name, r.Type.Short(), res.Name)
		}
		what = append(what, res.Name+"@"+res.Version[:4])
	}
	fmt.Fprintf(w.log, "%s: sent %s %s %v removed %v\n", p.name, r.Type.Short(), r.Nonce, what, r.Removed)
	if p.open[r.Type]++; p.open[r.Type] > 1 {
		w.failf("%s: two unanswered responses of %s", p.name, r.Type.Short())
	}
	p.in = append(p.in, r)
	return true
}

func (w *world) envoyTurn(p *proxy) bool {
	if p.hangs {
		return false
	}
	if len(p.in) == 0 {
		p.warm(w.now)
		return false
	}
	p.receive(w.now)
	return true
}

func (w *world) requestTurn(p *proxy) bool {
	if len(p.out) == 0 {
		return false
	}
	r := p.out[0]
	p.out = p.out[1:]
	if r.Nonce != "" {
		p.open[r.Type]--
	}
	out, err := p.led.Handle(r, w.now)
	if err != nil {
		w.failf("%s: %v", p.name, err)
	}
	for _, ref := range out.Absent {
		p.absent[ref] = true
	}
	w.judge(out)
	if w.rnd.IntN(20) == 0 { // a duplicate of the answer
		r.Subscribe, r.Unsubscribe, r.Initial = nil, nil, nil
		if _, err := p.led.Handle(r, w.now); err != nil {
			w.failf("%s: a duplicate: %v", p.name, err)
		}
	}
	return true
}

// settle ends the faults and lets everything come to rest.
func (w *world) settle() {
	fmt.Fprintf(w.log, "faults end\n")
	for _, p := range w.proxies {
		p.hangs, p.calm = false, w.now
		p.request()
	}
	for quiet, n := 0, 0; quiet < 8; n++ {
		if n > 4000 {
			w.failf("does not come to rest")
		}
		busy := false
		for _, p := range w.proxies {
			for w.serverTurn(p) {
				busy = true
			}
			busy = w.envoyTurn(p) || busy
			for w.requestTurn(p) {
				busy = true
			}
		}
		w.now = w.now.Add(10 * time.Millisecond)
		if quiet++; busy {
			quiet = 0
		} else {
			// Warming and grace times are over, too.
			w.now = w.now.Add(6 * time.Second)
		}
	}
}

// check is what must hold at rest.
func (w *world) check() {
	for _, p := range w.proxies {
		problems := map[xds.Ref]ledger.State{}
		for _, pr := range p.led.Status(w.now).Problems {
			problems[pr.Ref] = pr.State
		}
		whole := true
		for _, t := range order {
			for _, name := range w.gen.Names(t) {
				res := w.gen.Get(t, name)
				if !p.asked[t] || (!ledger.Wildcard(t) && !p.subs[t][name]) {
					continue
				}
				whole = whole && w.checkOne(p, res, problems)
			}
			w.checkGone(p, t)
		}
		ok, _ := p.led.Serves(w.gen.Revision, w.now)
		if whole && !ok {
			w.failf("%s has all and is not said to serve: %+v", p.name, p.led.Status(w.now).Problems)
		}
		if st := p.led.Status(w.now); (st.State == ledger.Serving) != whole {
			w.failf("%s: state %s, whole %v: %+v", p.name, st.State, whole, problems)
		}
	}
}

// checkOne reports whether the proxy holds a resource as wanted, and fails when
// it should and does not.
func (w *world) checkOne(p *proxy, res *xds.Resource, problems map[xds.Ref]ledger.State) bool {
	ref := xds.Ref{Type: res.Type, Name: res.Name}
	have := p.held[res.Type][res.Name]
	switch {
	case have != nil && have.Version == res.Version:
		return true
	case w.bad[res.Version]:
		if problems[ref] != ledger.Refused && problems[ref] != ledger.Quarantined && problems[ref] != ledger.Held {
			w.failf("%s: bad %s is %q", p.name, ref, problems[ref])
		}
		w.checkInstead(p, res, have)
	case !w.mayBeHeld(p, res):
		w.failf("%s lacks good %s: %q; holds %v", p.name, ref, problems[ref], have)
	case problems[ref] != ledger.Held:
		w.failf("%s: held back %s is %q: %+v", p.name, ref, problems[ref], p.led.Status(w.now).Problems)
	}
	return false
}

// mayBeHeld reports whether something that res refers to is bad or held itself.
func (w *world) mayBeHeld(p *proxy, res *xds.Resource) bool {
	refs := res.Refs
	if res.Type == xds.Cluster {
		refs = append(slices.Clone(refs), xds.Ref{Type: xds.Endpoint, Name: res.Name})
	}
	return slices.ContainsFunc(refs, func(ref xds.Ref) bool {
		r := w.gen.Get(ref.Type, ref.Name)
		return r != nil && (w.bad[r.Version] || w.mayBeHeld(p, r))
	})
}

// owed reports whether proxies can be sent what is wanted of a name.
func (w *world) owed(ref xds.Ref) bool {
	res := w.gen.Get(ref.Type, ref.Name)
	return res != nil && !w.bad[res.Version] && !w.mayBeHeld(nil, res)
}

// checkGone finds what should have been removed.
func (w *world) checkGone(p *proxy, t xds.Type) {
	for name, res := range p.held[t] {
		if w.gen.Get(t, name) != nil || (t == xds.Endpoint && p.only == nil) {
			continue
		}
		// What a refused or held resource still refers to in its old version stays;
		// when the control plane has restarted it cannot know what that is.
		stale := false
		for _, u := range order {
			for n, r := range p.held[u] {
				g := w.gen.Get(u, n)
				stale = stale || (g != nil && g.Version != r.Version) || (g == nil && u != t && n != name)
			}
		}
		if !stale {
			w.failf("%s still holds %s %s (%s): %+v", p.name, t.Short(), name, res.Version[:4], p.led.Status(w.now))
		}
	}
}

// generate makes the next generation: some resources change, come or go.
func (w *world) generate(badShare float64) {
	g := &xds.Generation{}
	if w.gen != nil {
		g.Revision = w.gen.Revision
	}
	if w.rnd.IntN(4) > 0 || w.gen == nil {
		g.Revision += 1 + w.rnd.Int64N(2)
	}
	w.some(g, badShare, xds.Secret, "s", 3)
	w.some(g, badShare, xds.Cluster, "c", 5, xds.Secret)
	for _, name := range g.Names(xds.Cluster) {
		w.one(g, badShare/4, xds.Endpoint, name)
	}
	w.some(g, badShare, xds.ExtensionConfig, "e", 2, xds.Cluster)
	w.some(g, badShare, xds.Route, "r", 5, xds.Cluster, xds.Cluster, xds.ExtensionConfig)
	for _, name := range g.Names(xds.Route) {
		w.one(g, badShare, xds.Scope, name, xds.Ref{Type: xds.Route, Name: name})
	}
	w.some(g, badShare, xds.Listener, "l", 2, xds.ExtensionConfig, xds.Secret, xds.Route)
	if w.more.IntN(10) > 1 {
		w.follower(g, badShare)
	}
	if w.gen != nil && w.rnd.IntN(2) == 0 {
		g = basedOn(w.gen, g)
	}
	w.gen = g
	n := w.table.Update(g, w.now)
	fmt.Fprintf(w.log, "generation %d: %d changes\n", g.Revision, n)
}

// basedOn makes b out of a, so that they share what is the same.
func basedOn(a, b *xds.Generation) *xds.Generation {
	out := a.Clone()
	out.Revision = b.Revision
	for _, t := range order {
		for _, n := range slices.Concat(a.Names(t), b.Names(t)) {
			if r := b.Get(t, n); r == nil {
				out.Delete(t, n)
			} else if r != a.Get(t, n) {
				out.Set(r)
			}
		}
	}
	return out
}

// follower puts in routes that follow some scopes, and their own scope.
func (w *world) follower(g *xds.Generation, bad float64) {
	const name = "follower"
	var after []xds.Ref
	for _, n := range g.Names(xds.Scope) {
		if w.more.IntN(3) > 0 {
			after = append(after, xds.Ref{Type: xds.Scope, Name: n})
		}
	}
	res, err := xds.NewResource(xds.Route, name, wrapperspb.String(fmt.Sprint(after)), nil, []string{"objects/" + name})
	if err != nil {
		panic(err)
	}
	res.After = after
	g.Set(res)
	if _, known := w.bad[res.Version]; !known {
		w.bad[res.Version] = w.more.Float64() < bad
	}
	scope, err := xds.NewResource(xds.Scope, name, wrapperspb.String(name), []xds.Ref{{Type: xds.Route, Name: name}}, nil)
	if err != nil {
		panic(err)
	}
	g.Set(scope)
}

// some puts in some of n names of a type, with references to what is there.
func (w *world) some(g *xds.Generation, bad float64, t xds.Type, prefix string, n int, to ...xds.Type) {
	for i := range n {
		if w.rnd.IntN(10) < 2 {
			continue
		}
		var refs []xds.Ref
		for _, u := range to {
			if all := g.Names(u); len(all) > 0 && w.rnd.IntN(3) > 0 {
				refs = append(refs, xds.Ref{Type: u, Name: all[w.rnd.IntN(len(all))]})
			}
		}
		w.one(g, bad, t, fmt.Sprint(prefix, i), refs...)
	}
}

// one puts in a resource: the one before if it still fits, or a new version.
func (w *world) one(g *xds.Generation, bad float64, t xds.Type, name string, refs ...xds.Ref) {
	if old := w.gen.Get(t, name); old != nil && w.rnd.IntN(10) < 6 {
		if !slices.ContainsFunc(old.Refs, func(r xds.Ref) bool { return g.Get(r.Type, r.Name) == nil }) {
			g.Set(old)
			return
		}
	}
	// Few versions, so that one comes back now and then.
	text := fmt.Sprint(name, w.rnd.IntN(4), refs)
	res, err := xds.NewResource(t, name, wrapperspb.String(text), refs, []string{"objects/" + name})
	if err != nil {
		panic(err)
	}
	// Some scopes are on demand.
	res.Lazy = t == xds.Scope && res.Version[0]%2 == 0
	g.Set(res)
	if _, known := w.bad[res.Version]; !known {
		w.bad[res.Version] = w.rnd.Float64() < bad
	}
}

func tail(s string, lines int) string {
	all := strings.Split(s, "\n")
	return strings.Join(all[max(0, len(all)-min(lines, len(all))):], "\n")
}
