package ledger

import (
	"slices"
	"time"

	"github.com/penstock-gateway/penstock/xds"
)

// types are all served types in the order in which they are sent: what is
// referred to comes first, and endpoints follow the clusters that need them.
var types = [...]xds.Type{
	xds.Cluster, xds.Endpoint, xds.Secret, xds.ExtensionConfig, xds.Listener, xds.Scope, xds.Route,
}

// kind is an index into types.
type kind int8

const (
	clusters kind = iota
	endpoints
	secrets
	extensions
	listeners
	scopes
	routes
	kinds
)

// rank orders the types by who may refer to whom: only a higher rank to a lower.
var rank = [kinds]int{secrets: 0, endpoints: 0, clusters: 1, extensions: 2, routes: 3, scopes: 4, listeners: 5}

// Types are all types that are served.
func Types() []xds.Type { return slices.Clone(types[:]) }

func kindOf(t xds.Type) (kind, bool) {
	for i, u := range types {
		if u == t {
			return kind(i), true
		}
	}
	return 0, false
}

// Wildcard reports whether proxies subscribe to all resources of the type.
func Wildcard(t xds.Type) bool {
	return t == xds.Cluster || t == xds.Listener || t == xds.Scope
}

// slot is one resource name.
type slot struct {
	name string
	used bool
	// res is the wanted resource; nil when it is gone, or was never there and
	// some proxy asked for it.
	res *xds.Resource
	// The current res (or its absence) is needed by revisions from since on and
	// came with the generation of revision at. since > at says that it came with a
	// generation that made no new revision: endpoints.
	since, at int64
	// added is since of the first res under this name.
	added int64
	// good is the newest version that some proxy acknowledged, and last the one
	// that was wanted when it became gone. goodAt is the revision that good came with.
	good, last *xds.Resource
	// before is the version before res that nobody refused, of a route, until res can
	// be sent to every proxy. bad is the newest version that some proxy refused.
	before   *xds.Resource
	beforeAt int64 // at of before
	bad      string
	goodAt   int64
	q        *Quarantine // nil for none
}

// column is all resources of one type.
type column struct {
	index   map[string]int32
	slots   []slot
	free    []int32
	present bitset // res != nil
	gone    bitset // used, and res == nil
}

// Table is what a view is to have, shared by the proxies of the view.
type Table struct {
	columns  [kinds]column
	proxies  map[*Proxy]struct{}
	revision int64
	ready    bool
	last     *xds.Generation
	// referrers counts the wanted resources that refer to a name.
	referrers map[xds.Ref]int
	// befores are the slots of routes with a version before.
	befores    []int32
	quarantine map[xds.Ref]*Quarantine
}

// NewTable makes the table of a view. It has no generation yet: Proxies are sent
// nothing before the first Update.
func NewTable() *Table {
	t := &Table{proxies: map[*Proxy]struct{}{}, referrers: map[xds.Ref]int{}}
	for k := range t.columns {
		t.columns[k].index = map[string]int32{}
	}
	return t
}

// Ready reports whether there was an Update.
func (t *Table) Ready() bool { return t.ready }

// Revision is that of the last Update.
func (t *Table) Revision() int64 { return t.revision }

// Update makes g what the proxies are to have and returns how many resources
// were added, changed or removed. Equal bytes are not changes. Its cost is that of
// the changes times the proxies, and of what g does not share with the generation
// before.
func (t *Table) Update(g *xds.Generation, now time.Time) int {
	t.sweep()
	t.forgetBefores()
	var idle []*Proxy
	for p := range t.proxies {
		if !t.ready || p.summary().pending > t.revision {
			idle = append(idle, p)
		}
	}
	// What is new here is not needed for revisions up to the one before.
	c := change{since: t.revision + 1, at: max(g.Revision, t.revision), now: now}
	if !t.ready {
		c.since = 0
	}
	n := 0
	// Sorted, so that numbers, and with them the order of sending, do not depend
	// on the order of a map.
	for _, ref := range g.Since(t.last) {
		if k, ok := kindOf(ref.Type); ok {
			n += t.updateOne(k, ref.Name, g.Get(ref.Type, ref.Name), c)
		}
	}
	t.last = g
	t.revision, t.ready = c.at, true
	for p := range t.proxies {
		p.touched()
	}
	for _, p := range idle {
		p.active = now
	}
	return n
}

// change is what all changes of one Update have in common.
type change struct {
	since, at int64
	now       time.Time
}

// updateOne sets the wanted resource of a name (nil is none) and returns 1 if
// that is a change, or 0.
func (t *Table) updateOne(k kind, name string, res *xds.Resource, c change) int {
	col := &t.columns[k]
	i, known := col.index[name]
	if !known {
		if res == nil {
			return 0
		}
		i = col.intern(name)
	}
	old := col.slots[i].res
	if old == res {
		return 0
	}
	t.refer(old, -1)
	t.refer(res, +1)
	if old != nil && res != nil && old.Version == res.Version {
		col.slots[i].res = res // same bytes; owners may differ
		return 0
	}
	t.replace(k, i, res, c)
	return 1
}

// replace sets the wanted resource of a slot and tells the proxies.
func (t *Table) replace(k kind, i int32, res *xds.Resource, c change) {
	col := &t.columns[k]
	s := &col.slots[i]
	old := s.res
	if k == routes {
		t.keepBefore(i, res)
	}
	s.res, s.since, s.at = res, c.since, c.at
	s.judge(t.quarantine[xds.Ref{Type: types[k], Name: s.name}])
	if res == nil {
		s.last = old
		col.present.clear(i)
		col.gone.set(i)
	} else {
		if old == nil {
			s.added = c.since
		}
		col.present.set(i)
		col.gone.clear(i)
	}
	for p := range t.proxies {
		p.lanes[k].changed(i, old)
	}
}

// keepBefore keeps the version that was wanted before. A proxy that asks for a
// route for the first time (on-demand scopes) gets it while what the wanted one
// needs is not acknowledged, as it would have it if it had asked earlier.
func (t *Table) keepBefore(i int32, next *xds.Resource) {
	s := &t.columns[routes].slots[i]
	switch {
	case next == nil:
		s.before = nil
	case s.res != nil && s.res.Version != s.bad:
		if s.before == nil {
			t.befores = append(t.befores, i)
		}
		s.before, s.beforeAt = s.res, s.at
	}
}

// forgetBefores gives up the versions before of routes that can be sent to every
// proxy.
func (t *Table) forgetBefores() {
	t.befores = slices.DeleteFunc(t.befores, func(i int32) bool {
		s := &t.columns[routes].slots[i]
		if s.before == nil {
			return true
		}
		for p := range t.proxies {
			l := &p.lanes[routes]
			if state, _ := l.ready(i); state != ready || l.refusedNow(i) {
				return false
			}
		}
		s.before = nil
		return true
	})
}

// refer counts the references of a wanted resource.
func (t *Table) refer(r *xds.Resource, n int) {
	if r == nil {
		return
	}
	for _, ref := range r.Refs {
		if t.referrers[ref] += n; t.referrers[ref] == 0 {
			delete(t.referrers, ref)
		}
	}
}

// sweep frees the slots of gone names that no proxy uses.
func (t *Table) sweep() {
	for k := range kinds {
		for i := range t.columns[k].each(t.columns[k].gone) {
			t.release(k, i)
		}
	}
}

// release frees the slot of a gone name if no proxy uses it.
func (t *Table) release(k kind, i int32) {
	col := &t.columns[k]
	if !col.gone.has(i) {
		return
	}
	name := col.slots[i].name
	for p := range t.proxies {
		if p.lanes[k].uses(i) || p.warmingNeeds(k, name) {
			return
		}
	}
	delete(col.index, name)
	col.slots[i] = slot{}
	col.gone.clear(i)
	col.free = append(col.free, i)
}

// intern gives a name a slot with no resource.
func (col *column) intern(name string) int32 {
	if i, ok := col.index[name]; ok {
		return i
	}
	var i int32
	if n := len(col.free); n > 0 {
		i = col.free[n-1]
		col.free = col.free[:n-1]
	} else {
		i = int32(len(col.slots))
		col.slots = append(col.slots, slot{})
	}
	col.slots[i] = slot{name: name, used: true}
	col.index[name] = i
	col.gone.set(i)
	return i
}

// words is the length of a set over all slots.
func (col *column) words() int { return (len(col.slots) + 63) >> 6 }

// each are the members of a set; the set may be changed meanwhile.
func (col *column) each(b bitset) func(func(int32) bool) {
	return ones(col.words(), b.word)
}

// has reports whether the generation has a resource.
func (c *column) has(name string) bool {
	i, known := c.index[name]
	return known && c.present.has(i)
}
