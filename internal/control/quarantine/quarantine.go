// Package quarantine keeps what proxies refused, for all replicas and over restarts. A
// refused version is sent to no proxy again, and the last version that was accepted
// serves in its place, also at proxies that start later.
//
// Locks: Room.mu, and the delivery's after it. Nothing waits while holding it: the store is
// brought up to date beside.
package quarantine

import (
	"context"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/penstock-gateway/penstock/gateway"
	"github.com/penstock-gateway/penstock/internal/control/kv"
	"github.com/penstock-gateway/penstock/internal/signal"
	"github.com/penstock-gateway/penstock/xds"
	"github.com/penstock-gateway/penstock/xds/delivery"
	"github.com/penstock-gateway/penstock/xds/ledger"
)

// State is what a Room needs of a store.Store, which documents it.
type State interface {
	kv.Watcher
	State(ctx context.Context, prefix string) (map[string][]byte, error)
	PutState(ctx context.Context, key string, value []byte) error
	DeleteState(ctx context.Context, key string) error
	Seal(key string, plain []byte) ([]byte, error)
	Unseal(key string, sealed []byte) ([]byte, error)
}

// Delivery is what a Room needs of a delivery.Server, which documents it.
type Delivery interface {
	Quarantine(view string, all map[xds.Ref]*ledger.Quarantine)
	Lift(view string, refs ...xds.Ref)
}

// Params are what a Room needs.
type Params struct {
	State    State
	Delivery Delivery
	Log      *slog.Logger
	Now      func() time.Time
	// Snapshot is the newest configuration.
	Snapshot func() *gateway.Snapshot
	// Publish has it compiled again, since what compilers have to know has changed.
	Publish func()
}

// Room knows the resources that proxies refused. An entry ends when a newer version is
// accepted, when the object goes, or when somebody wants another try.
type Room struct {
	Params
	// version changes with what compilers have to know.
	version atomic.Uint64
	// unsaved wakes run, and uncompiled compile.
	unsaved, uncompiled signal.Wake

	mu      sync.Mutex
	entries map[string]*Entry          // by key
	wanted  map[string]*xds.Generation // by view: what was published last
	dirty   map[string]bool            // keys that the store does not have as they are
}

// maxRefused is how many refused versions of one resource are remembered.
const maxRefused = 16

// New returns a Room in which nothing is: Load reads what is.
func New(p Params) *Room {
	p.Log = p.Log.With("part", "quarantine")
	return &Room{
		Params: p, unsaved: signal.NewWake(), uncompiled: signal.NewWake(),
		entries: map[string]*Entry{}, wanted: map[string]*xds.Generation{}, dirty: map[string]bool{},
	}
}

// Version changes with what Held says.
func (r *Room) Version() uint64 { return r.version.Load() }

// Refused takes in the refusal of a proxy.
func (r *Room) Refused(f delivery.Refusal) {
	if ofOneHost(f) {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.Now().UTC()
	e := &Entry{
		View: f.View, Type: f.Resource.Type, Name: f.Resource.Name, Owners: f.Resource.Owners,
		Revision: r.Snapshot().Revision(), Since: now, Good: f.Good, GoodRevision: f.GoodRevision, Gone: f.Gone,
	}
	old := r.entries[e.Key()]
	if old != nil {
		if old.Accepted && old.has(f.Resource.Version) {
			return // one proxy takes it and another does not: it is not the resource
		}
		e.Since = old.Since
		if e.Good == nil && old.Good != nil && old.Good.Version != f.Resource.Version {
			e.Good, e.GoodRevision, e.Gone = old.Good, old.GoodRevision, old.Gone
		}
		e.Refused = slices.DeleteFunc(slices.Clone(old.Refused), func(v Refusal) bool { return v.Version == f.Resource.Version })
		e.Refused = e.Refused[max(0, len(e.Refused)-maxRefused+1):]
	}
	e.Refused = append(e.Refused, Refusal{
		Version: f.Resource.Version, Detail: f.Detail, Proxy: f.Proxy.Proxy, Envoy: f.Envoy, Time: now,
	})
	r.Log.Warn("a resource is quarantined: a proxy refused it", "resource", e.ref().String(), "view", e.View,
		"object", e.object(), "proxy", f.Proxy.Proxy, "last_good_revision", e.GoodRevision, "has_last_good", e.Good != nil, "detail", f.Detail)
	r.set(e)
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

// Accepted takes in that a proxy acknowledged what is wanted: a newer version, or
// the refused one.
func (r *Room) Accepted(view string, ref xds.Ref) {
	r.mu.Lock()
	defer r.mu.Unlock()
	e := r.entries[stateKey(view, ref)]
	if e == nil || e.Accepted {
		return
	}
	if res := r.wanted[view].Get(ref.Type, ref.Name); res != nil && e.has(res.Version) {
		r.Log.Warn("a proxy accepts a resource that another one refused: it is sent to all that did not refuse it", "resource", ref.String(), "view", view)
		mixed := *e
		mixed.Accepted = true
		r.set(&mixed)
		return
	}
	r.Log.Info("the quarantine of a resource ends: a newer version of it was accepted", "resource", ref.String(), "view", view)
	r.end(e)
}

// Published takes in what a view is to have now: what is gone, or is as it was
// before it was refused, is in no quarantine. It returns that with what last good
// versions need of what is gone.
func (r *Room) Published(view string, g *xds.Generation) *xds.Generation {
	r.mu.Lock()
	defer r.mu.Unlock()
	before := r.wanted[view]
	r.wanted[view] = g
	r.review(view, g)
	var kept []*xds.Resource
	for _, e := range r.entries {
		if e.View != view || e.Good == nil || e.Accepted {
			continue
		}
		// What a change takes away is known from the generation before.
		if gone := missing(g, before, e.Good, e.Gone); len(gone) != len(e.Gone) && g.Revision >= e.Revision {
			more := *e
			more.Gone = gone
			r.set(&more)
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
func (r *Room) review(view string, g *xds.Generation) {
	for _, e := range r.entries {
		if e.View != view || g.Revision < e.Revision {
			continue // this replica may be behind
		}
		switch res := g.Get(e.Type, e.Name); {
		case res == nil:
			r.Log.Info("the quarantine of a resource ends: it is not wanted any more", "resource", e.ref().String(), "view", view)
		case e.Good != nil && e.Good.Version == res.Version:
			r.Log.Info("the quarantine of a resource ends: its last good version is wanted again", "resource", e.ref().String(), "view", view)
		default:
			continue
		}
		r.end(e)
	}
}

// set makes an entry known here, and to the others. The caller holds mu, as for
// end and apply.
func (r *Room) set(e *Entry) {
	r.entries[e.Key()] = e
	r.dirty[e.Key()] = true
	r.apply(e.View)
	r.unsaved.Set()
}

func (r *Room) end(e *Entry) {
	delete(r.entries, e.Key())
	r.dirty[e.Key()] = true
	r.apply(e.View)
	r.unsaved.Set()
}

// apply tells the delivery and the compiler of what is known for a view.
func (r *Room) apply(view string) {
	all := map[xds.Ref]*ledger.Quarantine{}
	for _, e := range r.entries {
		if e.View == view {
			all[e.ref()] = e.ledger()
		}
	}
	r.Delivery.Quarantine(view, all)
	r.version.Add(1)
	r.uncompiled.Set()
}

// Ledger is what is known for a view, but for what skip names.
func (r *Room) Ledger(view string, skip Match) map[xds.Ref]*ledger.Quarantine {
	r.mu.Lock()
	defer r.mu.Unlock()
	all := map[xds.Ref]*ledger.Quarantine{}
	for _, e := range r.entries {
		if e.View == view && (skip == nil || !skip(e)) {
			all[e.ref()] = e.ledger()
		}
	}
	return all
}

// Held are the versions of clusters and endpoints that are refused and have no
// version from before, for the compiler; nil for none.
func (r *Room) Held(view string) map[xds.Ref][]string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out map[xds.Ref][]string
	for _, e := range r.entries {
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
func (r *Room) compile(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-r.uncompiled:
		}
		r.Publish()
	}
}

// Run saves what changes, has it compiled, and takes over what other replicas find, until
// ctx ends.
func (r *Room) Run(ctx context.Context) {
	var loops sync.WaitGroup
	loops.Go(func() { r.compile(ctx) })
	loops.Go(func() { kv.Follow(ctx, r.State, Prefix, r.Log, "what proxies of other replicas refuse", r.Load) })
	defer loops.Wait()
	kv.Run(ctx, r.unsaved, r.Log, "save what proxies refused", r.save)
}

// save brings the store up to date.
func (r *Room) save(ctx context.Context) error {
	for {
		key, e := r.nextDirty()
		if key == "" {
			return nil
		}
		if err := r.saveOne(ctx, key, e); err != nil {
			r.mu.Lock()
			r.dirty[key] = true
			r.mu.Unlock()
			return err
		}
	}
}

// nextDirty takes a key that is to be saved, and its entry; nil to delete it.
func (r *Room) nextDirty() (string, *Entry) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for key := range r.dirty {
		delete(r.dirty, key)
		return key, r.entries[key]
	}
	return "", nil
}

// Load takes over what the store has. What another replica ended is lifted here.
func (r *Room) Load(ctx context.Context) error {
	stored, err := r.stored(ctx)
	if err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	changed := map[string]bool{}
	lifted := map[string][]xds.Ref{}
	for key, e := range r.entries {
		if stored[key] == nil && !r.dirty[key] {
			delete(r.entries, key)
			changed[e.View] = true
			lifted[e.View] = append(lifted[e.View], e.ref())
		}
	}
	for key, e := range stored {
		old := r.entries[key]
		if r.dirty[key] || old.equal(e) {
			continue
		}
		if e.Good == nil && old != nil && old.Good != nil && !e.has(old.Good.Version) {
			// The replica that wrote it does not know the version that ours accepted.
			e.Good, e.GoodRevision, e.Gone = old.Good, old.GoodRevision, old.Gone
			r.dirty[key] = true
			r.unsaved.Set()
		}
		r.entries[key] = e
		changed[e.View] = true
	}
	for view := range changed {
		r.apply(view)
		r.Delivery.Lift(view, lifted[view]...)
	}
	return nil
}

// Retry ends the quarantine of what match names, so that it is sent again to all
// proxies. It returns what that is.
func (r *Room) Retry(match Match) []*Entry {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []*Entry
	for _, e := range r.entries {
		if match(e) {
			out = append(out, e)
		}
	}
	for _, e := range out {
		r.Log.Info("the quarantine of a resource ends: somebody wants another try", "resource", e.ref().String(), "view", e.View)
		r.end(e)
		r.Delivery.Lift(e.View, e.ref())
	}
	return out
}

// active reports whether the wanted version of an entry's resource is refused. The
// caller holds mu.
func (r *Room) active(e *Entry) bool {
	res := r.wanted[e.View].Get(e.Type, e.Name)
	return res != nil && !e.Accepted && e.has(res.Version)
}
