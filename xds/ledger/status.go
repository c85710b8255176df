package ledger

import (
	"math"
	"slices"
	"strings"
	"time"

	"github.com/penstock-gateway/penstock/xds"
)

// State is that of a proxy, or of a resource at a proxy.
type State string

// The states.
const (
	// Serving: everything is acknowledged.
	Serving State = "serving"
	// Pending: an answer is awaited, or something is still to be sent.
	Pending State = "pending"
	// Refused: the proxy refused a resource and keeps its version before.
	Refused State = "refused"
	// Quarantined: a proxy refused this version of a resource, so that it is sent to
	// nobody any more; the last version that was accepted serves in its place.
	Quarantined State = "quarantined"
	// Held: a resource is not sent since it refers to one that the proxy refused.
	Held State = "held"
	// Silent: the proxy has left a response unanswered for too long.
	Silent State = "silent"
)

// Problem is why a proxy does not serve a resource as wanted.
type Problem struct {
	Proxy string
	// State is Refused, Quarantined, Silent, Pending or Held.
	State State
	// Ref is the resource; zero when the whole proxy is meant.
	Ref xds.Ref
	// Owners are the objects that the resource was made from.
	Owners []string
	// Detail is what the proxy said (Refused), or what is waited for.
	Detail string
}

// Report says who serves a revision.
type Report struct {
	Revision int64
	// Serving is how many of the Total connected proxies serve it.
	Serving, Total int
	// Complete: nobody is pending. Proxies that refused a part of the revision or
	// that are silent are in Problems.
	Complete bool
	Problems []Problem
}

// ProxyStatus is all that is known of one connected proxy.
type ProxyStatus struct {
	Name, Identity, View string
	// Node is the proxy's node id, a label only. Version is Envoy's own.
	Node, Version string
	// Revision is the newest one that the proxy serves whole.
	Revision int64
	// State is Serving, Pending, Refused, Quarantined or Silent.
	State              State
	Connected, LastAck time.Time
	Problems           []Problem
	// Resources is how many of each type the proxy has acknowledged and holds.
	Resources map[xds.Type]int
	// Sent counts resources sent since the proxy connected.
	Sent int64
}

// summary is what a Proxy's status is made from, computed when it changed.
type summary struct {
	// pending is the first revision that something still to be made, or a listener
	// or scope still to be removed, is needed for.
	pending int64
	// whole is the first revision that anything at all is lacking for.
	whole    int64
	waiting  Problem // one that is pending
	problems []lack  // refused and held
	missing  xds.Type
}

// lack is a resource that is refused or held, and the revisions that it is
// the trouble of.
type lack struct {
	Problem
	since, at int64
}

func (p *Proxy) summary() *summary {
	if p.sum != nil {
		return p.sum
	}
	s := &summary{pending: math.MaxInt64, whole: math.MaxInt64}
	p.sum = s
	for k := range kinds {
		l := &p.lanes[k]
		col := l.col()
		if s.missing == "" && !l.asked && !col.present.empty() && !p.byName() && p.needs(k) {
			s.missing = types[k]
		}
		if l.flight != nil {
			for _, it := range l.flight.items {
				if it.i >= 0 {
					s.lacks(l, it.i, Pending, "to be acknowledged")
				}
			}
		}
		for i := range ones(col.words(), l.dirty) {
			state, detail := l.state(i)
			s.lacks(l, i, state, detail)
		}
		if k == listeners || k == scopes {
			for i := range ones(col.words(), func(w int) uint64 { return col.gone.word(w) & l.held.word(w) }) {
				s.lacks(l, i, Pending, "to be removed")
			}
		}
	}
	slices.SortFunc(s.problems, func(a, b lack) int {
		return strings.Compare(string(a.Ref.Type)+a.Ref.Name, string(b.Ref.Type)+b.Ref.Name)
	})
	switch {
	case !p.table.ready || s.missing != "":
		s.pending, s.whole = 0, 0
	case s.whole > p.table.revision:
		p.reached = max(p.reached, p.table.revision)
	default:
		p.reached = max(p.reached, s.whole-1)
	}
	return s
}

// needs reports whether the proxy will ask for a type that it has not asked for
// yet. Envoy asks for what a resource needs before it acknowledges it; a proxy that
// reconnects holds the resource from before, and asks for one type after the other.
func (p *Proxy) needs(k kind) bool {
	if p.late {
		return false // a client of some types alone
	}
	switch k {
	case clusters, listeners:
		return true
	case scopes:
		return !p.lanes[listeners].held.empty()
	}
	wanted := p.lanes[k].col()
	// What routes refer to makes Envoy ask for nothing.
	for _, h := range [...]kind{clusters, listeners, scopes} {
		l := &p.lanes[h]
		for i := range l.col().each(l.held) {
			res := l.col().slots[i].res
			if res == nil || (res.Lazy && k == routes) {
				continue
			}
			if h == clusters && k == endpoints && wanted.has(res.Name) {
				return true
			}
			for _, ref := range res.Refs {
				if ref.Type == types[k] && wanted.has(ref.Name) {
					return true
				}
			}
		}
	}
	return false
}

// lacks notes a resource that is not as wanted.
func (s *summary) lacks(l *lane, i int32, state State, detail string) {
	slot := &l.col().slots[i]
	since := l.since(i)
	s.whole = min(s.whole, since)
	if state == Pending && since >= s.pending {
		return
	}
	problem := Problem{State: state, Ref: l.ref(i), Detail: detail}
	if slot.res != nil {
		problem.Owners = slot.res.Owners
	}
	if state == Pending {
		s.pending, s.waiting = since, problem
		return
	}
	s.problems = append(s.problems, lack{Problem: problem, since: since, at: slot.at})
}

// SilentAt is when the proxy counts as silent unless it does something before;
// zero when it owes nothing.
func (p *Proxy) SilentAt() time.Time {
	at, _ := p.silentAt()
	return at
}

func (p *Proxy) silentAt() (time.Time, *lane) {
	var first time.Time
	var who *lane
	for k := range kinds {
		l := &p.lanes[k]
		if f := l.flight; f != nil && (who == nil || f.sent.Before(first)) {
			first, who = f.sent, l
		}
	}
	if who != nil {
		return first.Add(p.opt.SilentAfter), who
	}
	if p.table.ready && p.summary().pending <= p.table.revision {
		return p.active.Add(p.opt.SilentAfter), nil
	}
	return time.Time{}, nil
}

// silent is the problem of a proxy that does not answer.
func (p *Proxy) silent(now time.Time) (Problem, bool) {
	at, l := p.silentAt()
	if at.IsZero() || now.Before(at) {
		return Problem{}, false
	}
	if l == nil {
		problem := p.summary().waits()
		problem.State = Silent
		return problem, true
	}
	problem := Problem{State: Silent, Ref: xds.Ref{Type: types[l.k]},
		Detail: "no answer to what was sent at " + l.flight.sent.UTC().Format(time.RFC3339)}
	for _, it := range l.flight.items {
		if it.i >= 0 {
			problem.Ref, problem.Owners = l.ref(it.i), it.res.Owners
			break
		}
	}
	return problem, true
}

// Serves says whether the proxy serves a revision, and if not, why. What was
// refused in an earlier revision already, and is not touched by this one, does
// not stop a proxy from serving this one.
func (p *Proxy) Serves(revision int64, now time.Time) (ok bool, problems []Problem) {
	s := p.summary()
	if p.reached >= revision {
		return true, nil
	}
	for _, l := range s.problems {
		if l.since <= revision && revision <= l.at {
			problems = append(problems, l.Problem)
		}
	}
	if p.table.revision < revision || !p.table.ready {
		return false, append(problems, Problem{State: Pending, Detail: "the revision is not compiled yet"})
	}
	if s.pending > revision {
		return len(problems) == 0, problems
	}
	if problem, silent := p.silent(now); silent {
		return false, append(problems, problem)
	}
	return false, append(problems, s.waits())
}

// waits is what a pending proxy is waited for, or waits for.
func (s *summary) waits() Problem {
	if s.missing != "" {
		return Problem{State: Pending, Detail: "has not asked for " + s.missing.Short() + " resources yet"}
	}
	return s.waiting
}

// Status is the proxy's state at a time. The caller fills in who it is.
func (p *Proxy) Status(now time.Time) ProxyStatus {
	s := p.summary()
	st := ProxyStatus{
		Revision: p.reached, State: Serving, Connected: p.connected, LastAck: p.lastAck,
		Resources: map[xds.Type]int{}, Sent: p.sent,
	}
	for k := range kinds {
		if n := p.lanes[k].held.count(); n > 0 {
			st.Resources[types[k]] = n
		}
	}
	for _, l := range s.problems {
		if l.State != Quarantined {
			st.State = Refused
		} else if st.State == Serving {
			st.State = Quarantined
		}
		st.Problems = append(st.Problems, l.Problem)
	}
	if s.pending <= p.table.revision || !p.table.ready {
		st.State = Pending
	}
	if problem, silent := p.silent(now); silent {
		st.State = Silent
		st.Problems = append(st.Problems, problem)
	} else if st.State == Pending && p.table.ready {
		st.Problems = append(st.Problems, s.waits())
	}
	return st
}
