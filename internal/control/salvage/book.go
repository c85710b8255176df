package salvage

import (
	"maps"
	"regexp"
	"slices"
	"time"

	"github.com/penstock-gateway/penstock/gateway"
	"github.com/penstock-gateway/penstock/xds"
	"github.com/penstock-gateway/penstock/xds/compile"
	search "github.com/penstock-gateway/penstock/xds/compile/salvage"
)

// book is what is known of a RouteConfiguration that was refused.
type book struct {
	name string
	// search is under way, or the last one; it began with a version, and waits for
	// what proxies say of trying.
	search *search.Search
	began  string
	trying string
	// parts are those that the search is about, by name.
	parts map[string]compile.Part
	// base is what the search compares with: it stays until one succeeds. back is how
	// many versions before it turned out to be no better.
	base *published
	back int
	// held are the parts that are held back, by name.
	held map[string]*heldPart
	// givenUp is a version that no part could be found for.
	givenUp string
	// checked is what held was last compared with.
	checked *gateway.Snapshot
}

// heldPart is a part with what is known of it.
type heldPart struct {
	part  compile.Part
	words string
	// instead are the forms by host that were accepted before; known tells that there
	// would be some if it had been there before.
	instead map[string]*compile.Form
	known   bool
	// revision is that of the state that instead is of.
	revision int64
	out      bool // not even its match is accepted
	since    time.Time
	// gone: the part is another one now, and not held any more. What was accepted
	// before is kept until this one is.
	gone bool
}

// look takes in a verdict and reports whether other parts are to be held now.
func (sv *salvagedView) look(s *Room, v verdict) (changed bool) {
	for name, words := range v.refused {
		r := sv.now().generation.Get(xds.Route, name)
		b := sv.books[name]
		if r == nil || b != nil && (b.givenUp == r.Version || b.searching()) {
			continue
		}
		if b == nil {
			b = &book{name: name, held: map[string]*heldPart{}}
			sv.books[name] = b
		}
		s.Log.Warn("a proxy refuses the routes of a host: looking for those that it means", "routes", name, "words", words)
		changed = sv.begin(s, b, r, words) || changed
	}
	for name, b := range sv.books {
		r := sv.now().generation.Get(xds.Route, name)
		words, refused := v.refused[name]
		switch {
		case r == nil:
			delete(sv.books, name) // nothing is held that is not there
			changed = true
		case b.searching() && b.trying == "":
			// It began just now.
		case b.searching() && b.trying != r.Version:
			b.search = nil // a change came between; its own answer counts
			changed = b.forget() || changed
		case b.searching() && (refused || v.accepted(name)):
			b.search.Answer(refused, words)
			b.next(s)
			changed = true
		case !b.searching() && !refused && v.accepted(name) && b.checked != sv.now().snapshot:
			changed = sv.check(s, b, r) || changed
		}
	}
	return changed
}

// forget lets parts go that were only held for a try.
func (b *book) forget() bool {
	n := len(b.held)
	maps.DeleteFunc(b.held, func(_ string, h *heldPart) bool { return h.words == "" })
	return len(b.held) != n
}

// begin starts a search in a refused version.
func (sv *salvagedView) begin(s *Room, b *book, r *xds.Resource, words string) bool {
	parts, err := compile.Parts(sv.now().snapshot, sv.view, r)
	var before map[string]map[string]*compile.Form
	known := false
	if err == nil {
		before, known, err = sv.before(b, r)
	}
	if err != nil {
		s.Log.Warn("cannot look for the routes that a proxy refuses", "routes", b.name, "error", err)
		b.givenUp = r.Version
		return false
	}
	b.mark(parts)
	var suspects []string
	b.parts = map[string]compile.Part{}
	for _, p := range parts {
		if h := b.held[p.Name]; h != nil && !h.gone || known && same(before[p.Name], p.Hosts) {
			continue // held already, or accepted as it is
		}
		suspects = append(suspects, p.Name)
		b.parts[p.Name] = p
	}
	// Those first in which something stands that the proxy says.
	slices.SortStableFunc(suspects, func(x, y string) int { return b.suspicion(y, words) - b.suspicion(x, words) })
	for _, name := range suspects {
		old, revision := before[name], int64(0)
		if b.base != nil {
			revision = b.base.snapshot.Revision()
		}
		if h := b.held[name]; h != nil {
			old, revision = h.instead, h.revision // this is another form of what is held
		}
		instead, tightened := strictEnough(old, b.parts[name].Hosts)
		b.held[name] = &heldPart{part: b.parts[name], instead: instead, known: known && !tightened, revision: revision, since: s.Now()}
	}
	b.began = r.Version
	if why := b.unsafe(parts, before, len(suspects)); why != "" {
		s.Log.Warn("the routes of a host that a proxy refuses are only served together: they keep what they had", "routes", b.name, "because", why)
		b.givenUp, b.search, b.base, b.back = r.Version, nil, nil, 0
		return b.forget()
	}
	b.search = search.Start(suspects, known, words, func(words string) string { return b.pointed(suspects, words) })
	b.next(s)
	return true
}

var quoted = regexp.MustCompile(`'[^']{3,}'|"[^"]{3,}"`)

// suspicion is how much of the words of a refusal stands in a part.
func (b *book) suspicion(name, words string) (n int) {
	for _, q := range quoted.FindAllString(words, -1) {
		for _, f := range b.parts[name].Hosts {
			if f.Contains(q[1 : len(q)-1]) {
				n += len(q)
			}
		}
	}
	return n
}

// unsafe tells why a part of a change must not be served without the rest: something
// that keeps requests from a backend was moved or taken away, and what comes in its
// place may be what is refused. (A single change is not part of another.)
func (b *book) unsafe(parts []compile.Part, before map[string]map[string]*compile.Form, suspects int) string {
	now := map[string]compile.Part{}
	for _, p := range parts {
		now[p.Name] = p
	}
	for name, hosts := range before {
		if _, single := b.parts[name]; single && suspects == 1 {
			continue
		}
		for host, old := range hosts {
			if h := b.held[name]; old.Guards() && !now[name].Hosts[host].Covers(old) && (h == nil || h.words == "") {
				return name + " was moved or taken away, which guards its paths"
			}
		}
	}
	return ""
}

// strictEnough are the forms that may stand in the place of others: none that would let
// through what the others keep off, or a change that asks for a token would be refused
// and leave the door open. tightened tells that there was one.
func strictEnough(old, now map[string]*compile.Form) (instead map[string]*compile.Form, tightened bool) {
	instead = maps.Clone(old)
	maps.DeleteFunc(instead, func(host string, f *compile.Form) bool { return f.Laxer(now[host]) })
	return instead, len(instead) < len(old)
}

// pointed is the one suspect that is not held yet in which most of the words stand.
func (b *book) pointed(suspects []string, words string) string {
	best, most, twice := "", 0, false
	for _, name := range suspects {
		switch n := b.suspicion(name, words); {
		case n > most:
			best, most, twice = name, n, false
		case n == most:
			twice = true
		}
	}
	if twice {
		return ""
	}
	return best
}

// before are the forms of the parts in the version before the refused one, with what
// stood in the place of held ones; known tells that there is such a version.
func (sv *salvagedView) before(b *book, r *xds.Resource) (forms map[string]map[string]*compile.Form, known bool, err error) {
	if b.base == nil {
		skip := b.back
		for _, p := range slices.Backward(sv.history[:len(sv.history)-1]) {
			if old := p.generation.Get(xds.Route, r.Name); old != nil && old.Version == r.Version {
				continue
			}
			if skip--; skip < 0 {
				b.base = &p
				break
			}
		}
	}
	forms = map[string]map[string]*compile.Form{}
	if b.base == nil {
		return forms, false, nil
	}
	parts, err := compile.Parts(b.base.snapshot, sv.view, r)
	for _, part := range parts {
		forms[part.Name] = part.Hosts
		if h := b.held[part.Name]; h != nil && same(h.part.Hosts, part.Hosts) {
			forms[part.Name] = h.instead
		}
	}
	return forms, true, err
}

func same(a, b map[string]*compile.Form) bool {
	return maps.EqualFunc(a, b, func(x, y *compile.Form) bool { return x.Hash == y.Hash })
}

// mark notes which held parts are others now.
func (b *book) mark(parts []compile.Part) {
	now := map[string]compile.Part{}
	for _, p := range parts {
		now[p.Name] = p
	}
	for name, h := range b.held {
		h.gone = !same(h.part.Hosts, now[name].Hosts)
	}
}

// next takes over what a search wants to try, or what it found.
func (b *book) next(s *Room) {
	b.trying = ""
	if !b.search.Done() {
		return
	}
	if b.search.Failed() {
		// It may be that the version before was no better.
		unknown := b.base == nil
		if b.base, b.back = nil, b.back+1; unknown {
			b.givenUp, b.back = b.began, 0
			s.Log.Warn("no route of a host is why proxies refuse its routes: they keep what they had", "routes", b.name, "tries", b.search.Tries())
		}
		b.forget()
		return
	}
	for name, words := range b.search.Bad() {
		h := b.held[name]
		h.words, h.out = words, b.search.Out() && len(h.instead) == 0
		s.Log.Warn("quarantine of a route that proxies refuse", "object", h.part.Object, "field", h.part.Field, "words", words, "and", h.served(), "tries", b.search.Tries())
	}
	b.base, b.back = nil, 0
	b.forget()
}

// check ends the quarantine of parts that are others now, and were accepted.
func (sv *salvagedView) check(s *Room, b *book, r *xds.Resource) bool {
	b.checked = sv.now().snapshot
	parts, err := compile.Parts(sv.now().snapshot, sv.view, r)
	if err != nil {
		return false
	}
	b.mark(parts)
	n := len(b.held)
	maps.DeleteFunc(b.held, func(name string, h *heldPart) bool {
		if h.gone {
			s.Log.Info("the quarantine of a route ends: it was changed, and is accepted", "object", h.part.Object, "field", h.part.Field)
		}
		return h.gone
	})
	if len(b.held) == 0 && b.givenUp == "" {
		delete(sv.books, b.name)
	}
	return len(b.held) != n
}

// hold makes the holds of all books anew. Those that did not change stay the same
// pointers.
func (sv *salvagedView) hold() {
	made := map[string]compile.Holds{}
	for _, b := range sv.books {
		trying := b.searching()
		var try []string
		if trying {
			try = b.search.Hold()
		}
		for name, h := range b.held {
			if h.words == "" && !slices.Contains(try, name) {
				continue
			}
			for host, form := range h.part.Hosts {
				if made[host] == nil {
					made[host] = compile.Holds{}
				}
				out := h.out || trying && h.words == "" && b.search.Out()
				made[host][name] = compile.Hold{Form: form.Hash, Instead: h.instead[host], Out: out && h.known, Wide: out && !h.known}
			}
		}
	}
	next := map[string]*compile.Holds{}
	for host, holds := range made {
		if old := sv.holds[host]; old != nil && maps.Equal(*old, holds) {
			next[host] = old
		} else {
			next[host] = &holds
		}
	}
	sv.holds = next
}

// served says what stands in the place of a held part.
func (h *heldPart) served() string {
	switch {
	case len(h.instead) > 0:
		return "its last accepted form serves in its place"
	case h.out && h.known:
		return "it is left out, as before the change, for not even its match is accepted"
	case h.out:
		return "every path that may be meant is answered with 503, for not even its match is accepted"
	}
	return "it is answered with 503"
}
