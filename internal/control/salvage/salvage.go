// Package salvage saves the routes of a host whose RouteConfiguration a proxy refuses: it
// finds the routes that are refused, has those held back, and all others served as written.
//
// Locks: what Params.Still holds > Room.mu, and the delivery's after both.
package salvage

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/penstock-gateway/penstock/gateway"
	"github.com/penstock-gateway/penstock/internal/signal"
	"github.com/penstock-gateway/penstock/xds"
	"github.com/penstock-gateway/penstock/xds/compile"
	"github.com/penstock-gateway/penstock/xds/delivery"
	"github.com/penstock-gateway/penstock/xds/ledger"
)

// Delivery is what a Room needs of a delivery.Server, which documents it.
type Delivery interface {
	Proxies() []ledger.ProxyStatus
	Standings(revision int64) []delivery.Standing
	Answered(view string, refs []xds.Ref) []bool
	Follow() (signals <-chan struct{}, stop func())
	Stats() delivery.Stats
}

// Params are what a Room needs.
type Params struct {
	Delivery Delivery
	Log      *slog.Logger
	Now      func() time.Time
	// Revision is the newest that this replica has.
	Revision func() int64
	// Still calls f while nothing is published. publish publishes the newest state, with
	// what Holds says by then.
	Still func(f func(publish func()))
}

// Room searches for the parts (matches of rules) that it is refused for, by sending
// versions without some of what changed, and holds those back: the form of a part
// that was accepted before serves in its place, or 503, or nothing where that is
// refused, too. All others are served as written. Each replica searches for itself,
// and after a restart again.
type Room struct {
	Params
	wake signal.Wake
	// version changes with what Holds says.
	version atomic.Uint64

	mu    sync.Mutex
	views map[string]*salvagedView
}

// salvagedView is a view with what was published for it.
type salvagedView struct {
	view compile.View
	// history is what was published, the newest last.
	history []published
	books   map[string]*book
	holds   map[string]*compile.Holds
}

type published struct {
	snapshot   *gateway.Snapshot
	generation *xds.Generation
}

// maxHistory bounds how far back a version is looked for that was accepted.
const maxHistory = 4

// New returns a Room that holds nothing back.
func New(p Params) *Room {
	return &Room{Params: p, wake: signal.NewWake(), views: map[string]*salvagedView{}}
}

// Published takes in what a view is to have now. Nothing else is published meanwhile.
func (s *Room) Published(view compile.View, snapshot *gateway.Snapshot, g *xds.Generation) {
	s.mu.Lock()
	defer s.mu.Unlock()
	name := view.String()
	sv := s.views[name]
	if sv == nil {
		sv = &salvagedView{view: view, books: map[string]*book{}}
		s.views[name] = sv
	}
	if n := len(sv.history); n > 0 && sv.history[n-1].snapshot == snapshot {
		sv.history[n-1].generation = g
	} else {
		sv.history = append(sv.history, published{snapshot, g})
		sv.history = slices.Delete(sv.history, 0, max(0, len(sv.history)-maxHistory))
	}
	s.wake.Set()
}

// Version changes with what Holds says.
func (s *Room) Version() uint64 { return s.version.Load() }

// Holds is for compile.Input.
func (s *Room) Holds(view compile.View) map[string]*compile.Holds {
	s.mu.Lock()
	defer s.mu.Unlock()
	if sv := s.views[view.String()]; sv != nil {
		return sv.holds
	}
	return nil
}

// Problems are of the parts that are held back.
func (s *Room) Problems() (out []gateway.Problem) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, sv := range s.views {
		for _, b := range sv.books {
			for _, h := range b.held {
				if !h.gone && h.words != "" {
					out = append(out, gateway.Problem{Reason: gateway.ReasonQuarantined, Object: h.part.Object, Field: h.part.Field, Message: fmt.Sprintf(
						"quarantined: a proxy refused it: %s; since %s %s", h.words, h.since.UTC().Format(time.RFC3339), h.served())})
				}
			}
		}
	}
	return out
}

// Standing is a part of a route that is held back.
type Standing struct {
	// Object is the route, Field the rule in it, and Detail what a proxy said.
	Object, Field, Detail string
	// Closed: it is answered with 503; with a Prefix, so is every path that begins so and
	// that nothing before it takes. Out: it is left out. Before: its form of Revision serves
	// in its place, in all hosts. None of them: it differs between hosts.
	Closed, Out, Before bool
	Prefix              string
	Revision            int64
}

// Standings are the parts that are held back, but of tables that Unclear names.
func (s *Room) Standings() (out []Standing) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, sv := range s.views {
		for _, b := range sv.books {
			for _, h := range b.held {
				if h.gone || h.words == "" || b.searching() {
					continue
				}
				out = append(out, h.standing())
			}
		}
	}
	slices.SortFunc(out, func(a, b Standing) int { return cmp.Or(cmp.Compare(a.Object, b.Object), cmp.Compare(a.Field, b.Field)) })
	return out
}

func (h *heldPart) standing() Standing {
	st := Standing{Object: h.part.Object, Field: h.part.Field, Detail: h.words, Revision: h.revision}
	nothing := len(h.instead) == 0
	st.Closed, st.Out = nothing && (!h.out || !h.known), nothing && h.out && h.known
	st.Before = len(h.instead) == len(h.part.Hosts) && h.revision > 0
	if nothing && h.out && !h.known {
		for _, f := range h.part.Hosts {
			st.Prefix = f.Prefix() // the same in all hosts
		}
	}
	return st
}

// Unclear are the RouteConfigurations that proxies refuse and of which it is not known
// what they serve: the search is under way, or was given up.
func (s *Room) Unclear() (out []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, sv := range s.views {
		for name, b := range sv.books {
			if b.givenUp != "" || b.searching() {
				out = append(out, name)
			}
		}
	}
	slices.Sort(out)
	return out
}

// GivenUp are the RouteConfigurations that proxies refuse and no route was found for.
func (s *Room) GivenUp() (out []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, sv := range s.views {
		for name, b := range sv.books {
			if b.givenUp != "" {
				out = append(out, name)
			}
		}
	}
	return out
}

// salvagePause bounds how often the proxies are looked at; salvageCost adds to it by proxy.
const salvagePause, salvageCost = 10 * time.Millisecond, 20 * time.Microsecond

// Run looks at the proxies whenever something changes, until ctx ends.
func (s *Room) Run(ctx context.Context) {
	signals, stop := s.Delivery.Follow()
	defer stop()
	refusals := int64(-1)
	for {
		published := false
		select {
		case <-ctx.Done():
			return
		case <-signals:
		case <-s.wake:
			published = true
		}
		// Looking at all proxies for each of their answers would cost, where none of
		// them refused anything.
		n := s.Delivery.Stats().Types[xds.Route].Nacks
		if n == refusals && !published && !s.busy() {
			continue
		}
		refusals = n
		proxies := s.look()
		select {
		case <-ctx.Done():
			return
		case <-time.After(salvagePause + time.Duration(proxies)*salvageCost):
		}
	}
}

// look does what is to be done now. It returns how many proxies there are.
func (s *Room) look() (proxies int) {
	if n, quiet := s.quiet(); quiet {
		return n
	}
	// Nothing is published while the answers are read, so that they are about what
	// is published.
	s.Still(func(publish func()) {
		// Who has answered is asked first: what is refused is in what is read after it.
		answered := s.answered()
		standings := s.Delivery.Standings(s.Revision())
		proxies = len(standings)
		if s.judge(standings, answered) {
			publish()
			s.sent()
			s.wake.Set() // proxies may have had that version before, and say nothing
		}
	})
	return proxies
}

// judge takes in what the proxies say, and reports whether other routes are held back now.
func (s *Room) judge(standings []delivery.Standing, answered map[string]map[string]bool) (changed bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for name, sv := range s.views {
		v := verdictOf(name, standings)
		v.answered = answered[name]
		if !sv.view.GRPC && sv.look(s, v) {
			sv.hold()
			changed = true
		}
	}
	if changed {
		s.version.Add(1)
	}
	return changed
}

// answered are the RouteConfigurations that there are books of, by view, with whether all
// proxies have answered what they are now. A try is made within a revision, so whether
// proxies serve the revision says nothing of it.
func (s *Room) answered() map[string]map[string]bool {
	s.mu.Lock()
	asked := map[string][]xds.Ref{}
	for view, sv := range s.views {
		for name := range sv.books {
			asked[view] = append(asked[view], xds.Ref{Type: xds.Route, Name: name})
		}
	}
	s.mu.Unlock()
	out := map[string]map[string]bool{}
	for view, refs := range asked {
		out[view] = map[string]bool{}
		for i, yes := range s.Delivery.Answered(view, refs) {
			out[view][refs[i].Name] = yes
		}
	}
	return out
}

// quiet reports whether nothing is refused and nothing under way, without keeping
// anybody waiting.
func (s *Room) quiet() (proxies int, quiet bool) {
	all := s.Delivery.Proxies()
	for _, p := range all {
		if slices.ContainsFunc(p.Problems, refusedRoutes) {
			return len(all), false
		}
	}
	return len(all), !s.busy()
}

// busy reports whether some routes are held back or looked for.
func (s *Room) busy() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, sv := range s.views {
		if len(sv.books) > 0 {
			return true
		}
	}
	return false
}

// refusedRoutes reports whether a problem is a RouteConfiguration that is refused.
func refusedRoutes(p ledger.Problem) bool {
	return p.Ref.Type == xds.Route && (p.State == ledger.Refused || p.State == ledger.Quarantined)
}

// sent notes the versions that were made for searches.
func (s *Room) sent() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, sv := range s.views {
		for name, b := range sv.books {
			if r := sv.now().generation.Get(xds.Route, name); r != nil && b.searching() {
				b.trying = r.Version
			}
		}
	}
}

// verdict is what the proxies of a view say of what it is to have now.
type verdict struct {
	// refused are the words for the RouteConfigurations that are.
	refused map[string]string
	// held are RouteConfigurations that are not sent, for want of something else.
	held map[string]bool
	// settled: no proxy has still to answer for the revision, and some have.
	settled bool
	// answered are the RouteConfigurations of which all proxies have answered what was
	// published last.
	answered map[string]bool
}

// accepted reports whether all proxies have acknowledged a RouteConfiguration that none
// of them refuses.
func (v verdict) accepted(name string) bool {
	return v.settled && v.answered[name] && !v.held[name]
}

func verdictOf(view string, standings []delivery.Standing) verdict {
	out := verdict{refused: map[string]string{}, held: map[string]bool{}}
	pending := false
	for _, p := range standings {
		if p.View != view || p.State == ledger.Silent {
			continue
		}
		pending = pending || p.State == ledger.Pending
		out.settled = true
		for _, q := range p.Problems {
			switch {
			case refusedRoutes(q) && out.refused[q.Ref.Name] == "":
				out.refused[q.Ref.Name] = q.Detail
			case q.State == ledger.Held:
				out.held[q.Ref.Name] = true
			}
		}
	}
	out.settled = out.settled && !pending
	return out
}

func (sv *salvagedView) now() published { return sv.history[len(sv.history)-1] }

func (b *book) searching() bool { return b.search != nil && !b.search.Done() }
