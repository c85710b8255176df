package compile

import (
	"maps"
	"runtime"
	"slices"
	"sync"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"

	"github.com/penstock-gateway/penstock/gateway"
)

// hostSet is the compiled hosts of a listener, with what is looked up in them at a
// change, so that none has to be gone through.
type hostSet struct {
	units map[string]*unit // by host name
	// special are those of wildcards and the catch-all, and known the names of the others.
	special map[string]*unit
	known   shardNames
	// troubled are the units with problems.
	troubled map[string]*unit
	// refused are the units with clusters that proxies refuse.
	refused map[string]*unit
	// consumers are the host names of the units that looked up a consumer.
	consumers map[string]map[string]bool
}

func newHostSet() hostSet {
	return hostSet{
		units: map[string]*unit{}, special: map[string]*unit{},
		troubled: map[string]*unit{}, refused: map[string]*unit{}, consumers: map[string]map[string]bool{},
	}
}

// takeHosts compiles the hosts that are others than in the run before, and those
// that looked up a consumer that is, or have other holds. It returns their names, sorted, with those of
// hosts that are gone.
func (st *listenerState) takeHosts(v *view, gw *pb.Gateway, l *pb.Listener, first bool) []string {
	since := v.snapshot
	if first {
		since = nil
	}
	changes := v.in.Snapshot.ChangedHosts(since, gw.GetName(), l.GetName())
	seen := make(map[string]bool, len(changes))
	for _, c := range changes {
		seen[c.Hostname] = true
	}
	again := func(hostname string) {
		if u := st.hosts.units[hostname]; u != nil && !seen[hostname] {
			seen[hostname] = true
			changes = append(changes, gateway.HostChange{Hostname: hostname, Host: u.host})
		}
	}
	for _, name := range v.changed {
		for hostname := range st.hosts.consumers[name] {
			again(hostname)
		}
	}
	for _, hostname := range heldOtherwise(v.holds, v.in.Holds, HostKey(gw.GetName(), l.GetName(), "")) {
		again(hostname)
	}
	refused := v.refused()
	for hostname, u := range st.hosts.judged(refused) {
		if !u.fits(refused) {
			again(hostname)
		}
	}
	names := make([]string, len(changes))
	units := compileHosts(&v.in, changes, st.hosts.units, refused)
	for i, c := range changes {
		names[i] = c.Hostname
		if old := st.hosts.units[c.Hostname]; old != nil {
			v.needs.drop(old)
		}
		if units[i] != nil {
			v.needs.keep(units[i])
		}
		st.hosts.put(c.Hostname, units[i])
	}
	slices.Sort(names)
	return names
}

// compileHosts compiles hosts, many of them at once, from the units before where that
// can be. What is gone is nil.
func compileHosts(in *Input, changes []gateway.HostChange, before map[string]*unit, refused func(target) bool) []*unit {
	const few = 32
	out := make([]*unit, len(changes))
	one := func(i int) {
		h := changes[i].Host
		if h == nil {
			return
		}
		holds := in.holds(h)
		if holds == nil && refused == nil {
			out[i] = recompile(in.Snapshot, h, before[changes[i].Hostname])
		}
		if out[i] == nil {
			out[i] = compileHost(in.Snapshot, h, holds, refused)
			out[i].seal(h)
		}
	}
	if len(changes) <= few {
		for i := range changes {
			one(i)
		}
		return out
	}
	var wg sync.WaitGroup
	n := runtime.GOMAXPROCS(0)
	for part := range n {
		wg.Go(func() {
			for i := part; i < len(changes); i += n {
				one(i)
			}
		})
	}
	wg.Wait()
	return out
}

// put sets the unit of a host; nil takes it out.
func (s *hostSet) put(name string, u *unit) {
	old := s.units[name]
	if !isSpecial(name) {
		s.known.put(name, u != nil)
	}
	if old != nil {
		for c := range old.consumers {
			if delete(s.consumers[c], name); len(s.consumers[c]) == 0 {
				delete(s.consumers, c)
			}
		}
		delete(s.troubled, name)
		delete(s.refused, name)
	}
	if u == nil {
		delete(s.units, name)
		delete(s.special, name)
		return
	}
	s.units[name] = u
	if isSpecial(name) {
		s.special[name] = u
	}
	if len(u.problems) > 0 {
		s.troubled[name] = u
	}
	if len(u.refused) > 0 {
		s.refused[name] = u
	}
	for c := range u.consumers {
		if s.consumers[c] == nil {
			s.consumers[c] = map[string]bool{}
		}
		s.consumers[c][name] = true
	}
}

// judged are the units that may have to be made anew since proxies refuse something,
// or no longer do.
func (s *hostSet) judged(refused func(target) bool) map[string]*unit {
	if refused == nil {
		return s.refused
	}
	return s.units
}

// of returns the units of a scope, by host name.
func (s *hostSet) of(scope string) []*unit {
	if scope == anyHost {
		return inOrder(s.special)
	}
	if u := s.units[scope]; u != nil {
		return []*unit{u}
	}
	return nil
}

func inOrder(units map[string]*unit) []*unit {
	out := make([]*unit, 0, len(units))
	for _, name := range slices.Sorted(maps.Keys(units)) {
		out = append(out, units[name])
	}
	return out
}
