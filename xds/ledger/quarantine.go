package ledger

import (
	"fmt"
	"maps"

	"github.com/penstock-gateway/penstock/xds"
)

// Quarantine is what is known of a resource that a proxy refused. Every proxy of
// the Table is spared the refused versions, also one that starts later.
type Quarantine struct {
	// Refused are the refused versions, with what the proxy said of each.
	Refused map[string]string
	// Good is the last version that was accepted, to be served in the place of
	// a refused one; nil when there never was any. GoodRevision is the revision that
	// it came with, 0 for an unknown one.
	Good         *xds.Resource
	GoodRevision int64
}

// refused reports whether a version is among the refused ones.
func (q *Quarantine) refused(r *xds.Resource) bool {
	if q == nil || r == nil {
		return false
	}
	_, is := q.Refused[r.Version]
	return is
}

// Culprit is a resource that a proxy refused, and what can serve in its place.
type Culprit struct {
	Resource *xds.Resource
	// Good is the last version that some proxy acknowledged; nil for none.
	Good         *xds.Resource
	GoodRevision int64
	// Gone are the resources that Good refers to, directly or not, and that are not
	// wanted any more. Good can serve at a proxy that starts only with them.
	Gone []*xds.Resource
}

// Quarantine replaces what is known of refused resources; it may be called before
// the first Update. What is quarantined no longer is sent again to proxies that
// did not refuse it themselves; see Lift.
func (t *Table) Quarantine(all map[xds.Ref]*Quarantine) {
	before := t.quarantine
	t.quarantine = maps.Clone(all)
	for ref := range before {
		if all[ref] == nil {
			t.judge(ref)
		}
	}
	for ref := range all {
		t.judge(ref)
	}
	for p := range t.proxies {
		p.touched()
	}
}

// Lift forgets what the proxies refused of a resource, for somebody who wants it
// to be tried again.
func (t *Table) Lift(ref xds.Ref) {
	delete(t.quarantine, ref)
	t.judge(ref)
	k, i, known := t.slot(ref)
	for p := range t.proxies {
		delete(p.opt.Memory, ref)
		if known {
			delete(p.lanes[k].refused, i)
		}
		p.touched()
	}
}

// slot finds the slot of a name.
func (t *Table) slot(ref xds.Ref) (kind, int32, bool) {
	k, ok := kindOf(ref.Type)
	if !ok {
		return 0, 0, false
	}
	i, known := t.columns[k].index[ref.Name]
	return k, i, known
}

// judge applies the quarantine to one resource.
func (t *Table) judge(ref xds.Ref) {
	k, i, known := t.slot(ref)
	if !known {
		return
	}
	t.columns[k].slots[i].judge(t.quarantine[ref])
}

func (s *slot) judge(q *Quarantine) {
	if s.q = q; q != nil && q.Good != nil && s.good == nil {
		s.good, s.goodAt = q.Good, q.GoodRevision
	}
}

// quarantined reports whether the wanted version is.
func (s *slot) quarantined() bool { return s.q.refused(s.res) }

// fallback is what can serve in the place of the wanted version; nil for nothing.
func (s *slot) fallback() *xds.Resource {
	if s.good == nil || s.good.Version == s.res.Version || s.q.refused(s.good) {
		return nil
	}
	return s.good
}

// instead says what serves in the place of a quarantined version.
func (s *slot) instead() string {
	switch {
	case s.fallback() == nil:
		return "; no version of it was accepted before, so that it is held back"
	case s.goodAt == 0:
		return "; the last version that was accepted is served in its place"
	}
	return fmt.Sprintf("; the version of revision %d is served in its place", s.goodAt)
}

// accepted notes that a proxy has acknowledged the wanted version.
func (s *slot) accepted(r *xds.Resource) {
	if s.good == nil || s.good.Version != r.Version {
		s.goodAt = s.at
	}
	s.good = r
}

// released reports whether an acknowledgement says that the quarantine of
// a resource was wrong, or is over since there is a newer version.
func (l *lane) released(it item) bool {
	s := &l.col().slots[it.i]
	return s.q != nil && s.res != nil && s.res.Version == it.res.Version
}

// culprit is the Outcome's.
func (l *lane) culprit(it item) *Culprit {
	s := &l.col().slots[it.i]
	if s.res == nil || s.res.Version != it.res.Version || s.good != nil && s.good.Version == it.res.Version {
		return nil
	}
	return &Culprit{Resource: s.res, Good: s.good, GoodRevision: s.goodAt, Gone: l.p.table.gone(s.good)}
}

// gone are the Culprit's.
func (t *Table) gone(good *xds.Resource) []*xds.Resource {
	var out []*xds.Resource
	todo, seen := []*xds.Resource{good}, map[xds.Ref]bool{}
	for len(todo) > 0 {
		res := todo[0]
		todo = todo[1:]
		if res == nil {
			continue
		}
		for _, ref := range res.Refs {
			k, i, known := t.slot(ref)
			if !known || seen[ref] {
				continue
			}
			seen[ref] = true
			if s := &t.columns[k].slots[i]; s.res == nil && s.last != nil {
				out, todo = append(out, s.last), append(todo, s.last)
			}
		}
	}
	return out
}

// reason is what was said of the wanted version, which was refused.
func (l *lane) reason(i int32) string {
	s := &l.col().slots[i]
	if r, ok := l.refused[i]; ok && r.Version == s.res.Version {
		return r.Detail
	}
	return s.q.Refused[s.res.Version]
}

// Unanswered are the resources that were sent and neither acknowledged nor refused.
func (p *Proxy) Unanswered() []xds.Ref {
	var out []xds.Ref
	for k := range kinds {
		l := &p.lanes[k]
		if l.flight == nil {
			continue
		}
		for _, it := range l.flight.items {
			if it.i >= 0 {
				out = append(out, l.ref(it.i))
			}
		}
	}
	return out
}
