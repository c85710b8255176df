package ledger

import (
	"slices"

	"github.com/penstock-gateway/penstock/xds"
)

// This file is what streams of the state-of-the-world variant need beside Next
// and Handle: there a response says all that a client is to have of its type, and
// what it does not hold is gone.

// FullState is what a response of the state-of-the-world variant has to hold when
// Next gave r: its resources, and what the client holds beside them. What it holds
// of a resource that is gone is left out if its bytes are not known.
func (p *Proxy) FullState(r *Response) []*xds.Resource {
	k, ok := kindOf(r.Type)
	if !ok {
		return nil
	}
	l := &p.lanes[k]
	all := slices.Clone(r.Resources)
	for i := range l.col().each(l.held) {
		if l.flying.has(i) || !l.wants(i) {
			continue // in r already, or removed by it
		}
		res := l.col().slots[i].res
		if !l.clean.has(i) {
			if v := l.version(i); v != nil {
				res = v
			} else if res == nil {
				res = l.col().slots[i].last
			}
		}
		if res != nil {
			all = append(all, res)
		}
	}
	return all
}

// Held is the version that the proxy holds of a resource; nil when it holds none
// that is known.
func (p *Proxy) Held(ref xds.Ref) *xds.Resource {
	k, ok := kindOf(ref.Type)
	if !ok {
		return nil
	}
	l := &p.lanes[k]
	i, known := l.col().index[ref.Name]
	switch {
	case !known || !l.held.has(i):
		return nil
	case l.clean.has(i):
		return l.col().slots[i].res
	default:
		return l.version(i)
	}
}

// Lacks reports whether a proxy does not hold a resource that is there to be had.
func (p *Proxy) Lacks(ref xds.Ref) bool {
	k, ok := kindOf(ref.Type)
	return ok && p.lanes[k].col().has(ref.Name) && p.Held(ref) == nil
}

// Wanted are the resources of a type by these names that the view has, or all of
// them if everything is asked for.
func (t *Table) Wanted(typ xds.Type, names []string, everything bool) []*xds.Resource {
	k, ok := kindOf(typ)
	if !ok {
		return nil
	}
	col := &t.columns[k]
	var out []*xds.Resource
	if everything {
		for i := range col.each(col.present) {
			out = append(out, col.slots[i].res)
		}
		return out
	}
	for _, name := range names {
		if i, known := col.index[name]; known && col.present.has(i) {
			out = append(out, col.slots[i].res)
		}
	}
	return out
}

// Settled reports whether the proxy has asked for a type and nothing of it is on
// its way or still to be sent.
func (p *Proxy) Settled(t xds.Type) bool {
	k, ok := kindOf(t)
	if !ok {
		return true
	}
	return p.lanes[k].asked && !p.Awaits(t)
}

// Awaits reports whether something of a type that the proxy has asked for is on its way or
// still to be sent.
func (p *Proxy) Awaits(t xds.Type) bool {
	k, ok := kindOf(t)
	if !ok {
		return false
	}
	l := &p.lanes[k]
	if l.flight != nil {
		return true
	}
	if !l.asked {
		return false
	}
	for i := range ones(l.col().words(), l.dirty) {
		if !l.refusedNow(i) {
			return true
		}
	}
	return false
}

// Owing reports whether an answer of the proxy is awaited.
func (p *Proxy) Owing() bool {
	for k := range kinds {
		if p.lanes[k].flight != nil {
			return true
		}
	}
	return false
}

// Backlog is how many resources the proxy has asked for and lacks in the wanted
// version, those on their way included.
func (p *Proxy) Backlog() int {
	n := 0
	for k := range kinds {
		l := &p.lanes[k]
		if !l.asked {
			continue
		}
		n += l.flying.count()
		for range ones(l.col().words(), l.dirty) {
			n++
		}
	}
	return n
}

// culprits are those of the resources of a response that a refusal names.
func (l *lane) culprits(items []item, names []string) (out []xds.Ref) {
	for _, it := range items {
		if ref := l.ref(it.i); slices.Contains(names, ref.Name) {
			out = append(out, ref)
		}
	}
	return out
}
