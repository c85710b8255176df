package ledger_test

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/penstock-gateway/penstock/xds"
	"github.com/penstock-gateway/penstock/xds/ledger"
)

// judge does what a control plane does with an outcome: it remembers what was
// refused, and what serves instead.
func (w *world) judge(out ledger.Outcome) {
	changed := false
	if c := out.Culprit; c != nil {
		ref := xds.Ref{Type: c.Resource.Type, Name: c.Resource.Name}
		q := &ledger.Quarantine{Refused: map[string]string{}, Good: c.Good, GoodRevision: c.GoodRevision}
		if old := w.quarantine[ref]; old != nil {
			maps.Copy(q.Refused, old.Refused)
			if q.Good == nil {
				q.Good, q.GoodRevision = old.Good, old.GoodRevision
			}
		}
		q.Refused[c.Resource.Version] = out.Detail
		fmt.Fprintf(w.log, "quarantine of %s %s\n", ref, c.Resource.Version[:4])
		if q.Good != nil && q.Refused[q.Good.Version] != "" {
			w.failf("%s: the version to serve in place of a refused one was refused", ref)
		}
		w.quarantine[ref], changed = q, true
	}
	for _, ref := range out.Accepted {
		fmt.Fprintf(w.log, "quarantine of %s ends\n", ref)
		delete(w.quarantine, ref)
		changed = true
	}
	if changed {
		w.table.Quarantine(w.quarantine)
	}
}

// retry is an operator who wants one resource to be tried again.
func (w *world) retry() {
	refs := slices.SortedFunc(maps.Keys(w.quarantine), func(a, b xds.Ref) int { return strings.Compare(a.String(), b.String()) })
	if len(refs) == 0 {
		return
	}
	ref := refs[w.rnd.IntN(len(refs))]
	fmt.Fprintf(w.log, "retry of %s\n", ref)
	delete(w.quarantine, ref)
	w.table.Lift(ref)
}

// newcomers are proxies that start when all has come to rest.
func (w *world) newcomers() {
	for range w.rnd.IntN(2) {
		e := newEnvoy("late", w.rnd, w.failf)
		e.log, e.bad, e.calm = w.log, func(r *xds.Resource) bool { return w.bad[r.Version] }, w.now
		e.owed = w.owed
		p := &proxy{envoy: e}
		w.proxies = append(w.proxies, p)
		w.connect(p)
		w.settle()
	}
}

// checkInstead finds a proxy that has nothing in the place of a refused version,
// though it could.
func (w *world) checkInstead(p *proxy, res, have *xds.Resource) {
	q := w.quarantine[xds.Ref{Type: res.Type, Name: res.Name}]
	if have != nil || q == nil || q.Good == nil || q.Refused[res.Version] == "" {
		return
	}
	if res.Type == xds.Cluster && w.bad[w.gen.Get(xds.Endpoint, res.Name).Version] {
		return
	}
	for _, ref := range q.Good.Refs {
		r := w.gen.Get(ref.Type, ref.Name)
		if r == nil || w.bad[r.Version] || w.mayBeHeld(p, r) {
			return
		}
	}
	w.failf("%s has nothing in place of %s %s, which has a good version", p.name, res.Type.Short(), res.Name)
}
