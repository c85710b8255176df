package control

import (
	"context"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/penstock-gateway/penstock/internal/control/kv"
	"github.com/penstock-gateway/penstock/internal/signal"
	"github.com/penstock-gateway/penstock/xds"
	"github.com/penstock-gateway/penstock/xds/delivery"
	"github.com/penstock-gateway/penstock/xds/ledger"
)

// quarantine knows the resources that proxies refused, for all replicas and over
// restarts: a refused version is sent to no proxy again, and the last version that
// was accepted serves in its place, also at proxies that start later. An entry ends
// when a newer version is accepted, when the object goes, or when somebody wants
// another try.
type quarantine struct {
	core *Core
	log  *slog.Logger
	// version changes with what compilers have to know.
	version atomic.Uint64
	// unsaved wakes run, and uncompiled compile.
	unsaved, uncompiled signal.Wake

	mu      sync.Mutex
	entries map[string]*refusedResource // by key
	wanted  map[string]*xds.Generation  // by view: what was published last
	dirty   map[string]bool             // keys that the store does not have as they are
}

// maxRefused is how many refused versions of one resource are remembered.
const maxRefused = 16

func newQuarantine(c *Core) *quarantine {
	return &quarantine{
		core: c, log: c.log.With("part", "quarantine"),
		unsaved: signal.NewWake(), uncompiled: signal.NewWake(),
		entries: map[string]*refusedResource{}, wanted: map[string]*xds.Generation{}, dirty: map[string]bool{},
	}
}

// refused takes in the refusal of a proxy.
func (q *quarantine) refused(r delivery.Refusal) {
	if ofOneHost(r) {
		return
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	now := q.core.now().UTC()
	e := &refusedResource{
		View: r.View, Type: r.Resource.Type, Name: r.Resource.Name, Owners: r.Resource.Owners,
		Revision: q.core.Snapshot().Revision(), Since: now, Good: r.Good, GoodRevision: r.GoodRevision, Gone: r.Gone,
	}
	old := q.entries[e.key()]
	if old != nil {
		if old.Accepted && old.has(r.Resource.Version) {
			return // one proxy takes it and another does not: it is not the resource
		}
		e.Since = old.Since
		if e.Good == nil && old.Good != nil && old.Good.Version != r.Resource.Version {
			e.Good, e.GoodRevision, e.Gone = old.Good, old.GoodRevision, old.Gone
		}
		e.Refused = slices.DeleteFunc(slices.Clone(old.Refused), func(v refusedVersion) bool { return v.Version == r.Resource.Version })
		e.Refused = e.Refused[max(0, len(e.Refused)-maxRefused+1):]
	}
	e.Refused = append(e.Refused, refusedVersion{
		Version: r.Resource.Version, Detail: r.Detail, Proxy: r.Proxy.Proxy, Envoy: r.Envoy, Time: now,
	})
	q.log.Warn("a resource is quarantined: a proxy refused it", "resource", e.ref().String(), "view", e.View,
		"object", e.object(), "proxy", r.Proxy.Proxy, "last_good_revision", e.GoodRevision, "has_last_good", e.Good != nil, "detail", r.Detail)
	q.set(e)
}

// ofOneHost tells refusals that are about the host of a proxy, not about what was
// sent: the others may well take it.
func ofOneHost(r delivery.Refusal) bool {
	if r.Resource.Type != xds.Listener {
		return false
	}
	detail := strings.ToLower(r.Detail)
	return slices.ContainsFunc([]string{"cannot bind", "cannot listen", "address already in use", "cannot assign requested address", "permission denied",
		// An Envoy that has run since before listeners stopped sharing their port: it
		// serves on, and takes the new listener when it is started again.
		"reuse port cannot be changed"},
		func(words string) bool { return strings.Contains(detail, words) })
}

// accepted takes in that a proxy acknowledged what is wanted: a newer version, or
// the refused one.
func (q *quarantine) accepted(view string, ref xds.Ref) {
	q.mu.Lock()
	defer q.mu.Unlock()
	e := q.entries[stateKey(view, ref)]
	if e == nil || e.Accepted {
		return
	}
	if res := q.wanted[view].Get(ref.Type, ref.Name); res != nil && e.has(res.Version) {
		q.log.Warn("a proxy accepts a resource that another one refused: it is sent to all that did not refuse it", "resource", ref.String(), "view", view)
		mixed := *e
		mixed.Accepted = true
		q.set(&mixed)
		return
	}
	q.log.Info("the quarantine of a resource ends: a newer version of it was accepted", "resource", ref.String(), "view", view)
	q.end(e)
}

// published takes in what a view is to have now: what is gone, or is as it was
// before it was refused, is in no quarantine. It returns that with what last good
// versions need of what is gone.
func (q *quarantine) published(view string, g *xds.Generation) *xds.Generation {
	q.mu.Lock()
	defer q.mu.Unlock()
	before := q.wanted[view]
	q.wanted[view] = g
	q.review(view, g)
	var kept []*xds.Resource
	for _, e := range q.entries {
		if e.View != view || e.Good == nil || e.Accepted {
			continue
		}
		// What a change takes away is known from the generation before.
		if gone := missing(g, before, e.Good, e.Gone); len(gone) != len(e.Gone) && g.Revision >= e.Revision {
			more := *e
			more.Gone = gone
			q.set(&more)
			e = &more
		}
		for _, r := range e.Gone {
			if g.Get(r.Type, r.Name) == nil {
				kept = append(kept, r)
			}
		}
	}
	return with(g, kept)
}

// missing are the resources that r refers to, directly or not, and that are not in
// g, as they were in the generation before, or are known.
func missing(g, before *xds.Generation, r *xds.Resource, known []*xds.Resource) []*xds.Resource {
	out := slices.Clone(known)
	todo := []*xds.Resource{r}
	for len(todo) > 0 {
		refs := todo[0].Refs
		todo = todo[1:]
		for _, ref := range refs {
			if g.Get(ref.Type, ref.Name) != nil || slices.ContainsFunc(out, func(k *xds.Resource) bool { return k.Type == ref.Type && k.Name == ref.Name }) {
				continue
			}
			if res := before.Get(ref.Type, ref.Name); res != nil {
				out, todo = append(out, res), append(todo, res)
			}
		}
	}
	return out
}

// with is a generation and some more resources.
func with(g *xds.Generation, more []*xds.Resource) *xds.Generation {
	if len(more) == 0 {
		return g
	}
	out := g.Clone()
	for _, r := range more {
		out.Set(r)
	}
	return out
}

// review ends what a generation makes pointless. The caller holds mu.
func (q *quarantine) review(view string, g *xds.Generation) {
	for _, e := range q.entries {
		if e.View != view || g.Revision < e.Revision {
			continue // this replica may be behind
		}
		switch res := g.Get(e.Type, e.Name); {
		case res == nil:
			q.log.Info("the quarantine of a resource ends: it is not wanted any more", "resource", e.ref().String(), "view", view)
		case e.Good != nil && e.Good.Version == res.Version:
			q.log.Info("the quarantine of a resource ends: its last good version is wanted again", "resource", e.ref().String(), "view", view)
		default:
			continue
		}
		q.end(e)
	}
}

// set makes an entry known here, and to the others. The caller holds mu, as for
// end and apply.
func (q *quarantine) set(e *refusedResource) {
	q.entries[e.key()] = e
	q.dirty[e.key()] = true
	q.apply(e.View)
	q.unsaved.Set()
}

func (q *quarantine) end(e *refusedResource) {
	delete(q.entries, e.key())
	q.dirty[e.key()] = true
	q.apply(e.View)
	q.unsaved.Set()
}

// apply tells the delivery and the compiler of what is known for a view.
func (q *quarantine) apply(view string) {
	all := map[xds.Ref]*ledger.Quarantine{}
	for _, e := range q.entries {
		if e.View == view {
			all[e.ref()] = e.ledger()
		}
	}
	q.core.delivery.Quarantine(view, all)
	q.version.Add(1)
	q.uncompiled.Set()
}

// ledgerOf is what is known for a view, but for what skip names.
func (q *quarantine) ledgerOf(view string, skip func(*refusedResource) bool) map[xds.Ref]*ledger.Quarantine {
	q.mu.Lock()
	defer q.mu.Unlock()
	all := map[xds.Ref]*ledger.Quarantine{}
	for _, e := range q.entries {
		if e.View == view && (skip == nil || !skip(e)) {
			all[e.ref()] = e.ledger()
		}
	}
	return all
}

// held are the versions of clusters and endpoints that are refused and have no
// version from before, for the compiler; nil for none.
func (q *quarantine) held(view string) map[xds.Ref][]string {
	q.mu.Lock()
	defer q.mu.Unlock()
	var out map[xds.Ref][]string
	for _, e := range q.entries {
		if e.View != view || e.Accepted || (e.Type != xds.Cluster && e.Type != xds.Endpoint) || e.Good != nil {
			continue
		}
		if out == nil {
			out = map[xds.Ref][]string{}
		}
		for _, v := range e.Refused {
			out[e.ref()] = append(out[e.ref()], v.Version)
		}
	}
	return out
}

// compile publishes again what depends on the quarantine.
func (q *quarantine) compile(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-q.uncompiled:
		}
		q.core.publish(q.core.Snapshot())
	}
}

// run saves what changes, and has it compiled.
func (q *quarantine) run(ctx context.Context) {
	var compiler sync.WaitGroup
	compiler.Go(func() { q.compile(ctx) })
	defer compiler.Wait()
	kv.Run(ctx, q.unsaved, q.log, "save what proxies refused", q.save)
}

// save brings the store up to date.
func (q *quarantine) save(ctx context.Context) error {
	for {
		key, e := q.nextDirty()
		if key == "" {
			return nil
		}
		if err := q.saveOne(ctx, key, e); err != nil {
			q.mu.Lock()
			q.dirty[key] = true
			q.mu.Unlock()
			return err
		}
	}
}

// nextDirty takes a key that is to be saved, and its entry; nil to delete it.
func (q *quarantine) nextDirty() (string, *refusedResource) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for key := range q.dirty {
		delete(q.dirty, key)
		return key, q.entries[key]
	}
	return "", nil
}

// follow takes over what other replicas find.
func (q *quarantine) follow(ctx context.Context) {
	kv.Follow(ctx, q.core.store, quarantinePrefix, q.log, "what proxies of other replicas refuse", q.load)
}

// load takes over what the store has. What another replica ended is lifted here.
func (q *quarantine) load(ctx context.Context) error {
	stored, err := q.stored(ctx)
	if err != nil {
		return err
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	changed := map[string]bool{}
	lifted := map[string][]xds.Ref{}
	for key, e := range q.entries {
		if stored[key] == nil && !q.dirty[key] {
			delete(q.entries, key)
			changed[e.View] = true
			lifted[e.View] = append(lifted[e.View], e.ref())
		}
	}
	for key, e := range stored {
		old := q.entries[key]
		if q.dirty[key] || old.equal(e) {
			continue
		}
		if e.Good == nil && old != nil && old.Good != nil && !e.has(old.Good.Version) {
			// The replica that wrote it does not know the version that ours accepted.
			e.Good, e.GoodRevision, e.Gone = old.Good, old.GoodRevision, old.Gone
			q.dirty[key] = true
			q.unsaved.Set()
		}
		q.entries[key] = e
		changed[e.View] = true
	}
	for view := range changed {
		q.apply(view)
		q.core.delivery.Lift(view, lifted[view]...)
	}
	return nil
}

// retry ends the quarantine of what match names, so that it is sent again to all
// proxies. It returns what that is.
func (q *quarantine) retry(match func(*refusedResource) bool) []*refusedResource {
	q.mu.Lock()
	defer q.mu.Unlock()
	var out []*refusedResource
	for _, e := range q.entries {
		if match(e) {
			out = append(out, e)
		}
	}
	for _, e := range out {
		q.log.Info("the quarantine of a resource ends: somebody wants another try", "resource", e.ref().String(), "view", e.View)
		q.end(e)
		q.core.delivery.Lift(e.View, e.ref())
	}
	return out
}

// active reports whether the wanted version of an entry's resource is refused. The
// caller holds mu.
func (q *quarantine) active(e *refusedResource) bool {
	res := q.wanted[e.View].Get(e.Type, e.Name)
	return res != nil && !e.Accepted && e.has(res.Version)
}
