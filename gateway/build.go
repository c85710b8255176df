package gateway

import (
	"iter"
	"maps"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
	"github.com/penstock-gateway/penstock/internal/cow"
)

// Changes is what turns one state into the next.
type Changes struct {
	// Updates are objects to create or replace, normalized. The Snapshot keeps
	// them: the caller may not change them any more. An object without a proper
	// name of its kind is left out (Validate reports it).
	Updates []Object
	// Deletes are full names. A name that is also in Updates is updated.
	Deletes []string
	// Damaged are objects that are there and cannot be read; they end when they are
	// updated or deleted.
	Damaged []Damage
}

// Snapshot is all objects of one revision with everything that follows from them:
// who refers to whom, the hosts of each listener and what is wrong. It is
// immutable and safe for concurrent use; a nil Snapshot is empty.
//
// A Snapshot shares what did not change with the one it was built from. Build for
// one changed object costs what depends on that object, besides copies of
// pointers (a part of the sorted list of its kind, and for each host it touches the
// sorted list of entries).
type Snapshot struct {
	model    *Model
	revision int64
	objects  *cow.Map[Object]
	// kinds holds the objects of each collection, sorted by name.
	kinds map[string]*sorted[Object]
	// referrers of a name or key, sorted. Names that do not exist are kept, too:
	// who waits for them must be looked at when they come.
	referrers *cow.Map[*[]string]
	// states of the gateways, by name.
	states *cow.Map[*gatewayState]
	// problems by object; usually empty.
	problems map[string][]Problem
	// damaged objects by name; usually empty. Objects has the husks of some.
	damaged map[string]*lost
}

// Build makes the next Snapshot; prev may be nil and is not changed. What comes
// out depends on the objects only, not on the way to them: a Snapshot that was
// built step by step equals the one built at once. Hosts and gateways whose inputs
// did not change keep their pointers.
func (m *Model) Build(prev *Snapshot, revision int64, c Changes) *Snapshot {
	if prev == nil {
		prev = &Snapshot{}
	}
	s := &Snapshot{
		model: m, revision: revision,
		objects: prev.objects.Clone(), kinds: maps.Clone(prev.kinds),
		referrers: prev.referrers.Clone(), states: prev.states.Clone(),
		problems: maps.Clone(prev.problems),
	}
	if s.kinds == nil {
		s.kinds, s.problems = map[string]*sorted[Object]{}, map[string][]Problem{}
	}
	changed := s.take(prev, c)
	dirty := s.dirty(changed)
	for name := range dirty {
		delete(s.problems, name)
		if p := s.damageProblem(name); p != nil {
			s.problems[name] = p
		} else if o := s.Get(name); o != nil {
			if p := s.checkObject(o); len(p) > 0 {
				s.problems[name] = p
			}
		}
	}
	s.recheckRoutes(changed, dirty)
	s.buildGateways(prev, changed, dirty)
	return s
}

// recheckRoutes looks again at the routes that a changed gateway serves without being
// named by them: whether a request can match them depends on its listeners.
func (s *Snapshot) recheckRoutes(changed map[string]Object, dirty map[string]bool) {
	for name, old := range changed {
		if kindOf(name) != KindGateways || sameListeners(old, s.Get(name)) {
			continue
		}
		for _, o := range s.List(KindRoutes, projectOf(name)) {
			r := o.(*pb.Route)
			if dirty[r.GetName()] || len(r.GetGateways()) > 0 || s.damaged[r.GetName()] != nil {
				continue
			}
			delete(s.problems, r.GetName())
			if p := s.checkObject(r); len(p) > 0 {
				s.problems[r.GetName()] = p
			}
		}
	}
}

// sameListeners reports whether two gateways serve the same hosts with the same edge
// profiles.
func sameListeners(a, b Object) bool {
	x, _ := a.(*pb.Gateway)
	y, _ := b.(*pb.Gateway)
	return slices.EqualFunc(x.GetListeners(), y.GetListeners(), func(l, m *pb.Listener) bool {
		return EdgeOf(l).ofMatches() == EdgeOf(m).ofMatches() && slices.Equal(l.GetHostnames(), m.GetHostnames())
	})
}

// take puts the changes into objects, kinds and referrers. It returns the objects
// as they were (nil for a new one) of all names that really changed.
func (s *Snapshot) take(prev *Snapshot, c Changes) map[string]Object {
	next := make(map[string]Object, len(c.Updates)+len(c.Deletes))
	for _, name := range c.Deletes {
		next[name] = nil
	}
	for _, o := range c.Updates {
		if o != nil && checkName(o) == nil {
			next[o.GetName()] = o
		}
	}
	damage := s.takeDamage(prev, c, next)
	changed := make(map[string]Object, len(next))
	links := map[string]*linkChange{}
	for name, o := range next {
		old := prev.Get(name)
		if !damage[name] && ((o == nil && old == nil) || (o != nil && old != nil && proto.Equal(o, old))) {
			delete(next, name)
			continue
		}
		changed[name] = old
		if o == nil {
			s.objects.Delete(name)
		} else {
			s.objects.Set(name, o)
		}
		relink(links, name, s.model.refersTo(old), s.model.refersTo(o))
	}
	for target, l := range links {
		if all := splice(s.referring(target), l.removed, l.added, strings.Compare); len(all) > 0 {
			s.referrers.Set(target, &all)
		} else {
			s.referrers.Delete(target)
		}
	}
	for collection := range kindsByCollection {
		var removed, added []Object
		for name, o := range next {
			if kindOf(name) != collection {
				continue
			}
			if old := changed[name]; old != nil {
				removed = append(removed, old)
			}
			if o != nil {
				added = append(added, o)
			}
		}
		if len(removed)+len(added) > 0 {
			s.kinds[collection] = s.kinds[collection].splice(removed, added, compareNames)
		}
	}
	return changed
}

func compareNames(a, b Object) int { return strings.Compare(a.GetName(), b.GetName()) }

// linkChange is who stops and who begins to refer to a name.
type linkChange struct{ removed, added []string }

// relink notes what changes when an object names other targets than before. Both
// lists are sorted.
func relink(links map[string]*linkChange, name string, before, after []string) {
	at := func(target string) *linkChange {
		l := links[target]
		if l == nil {
			l = &linkChange{}
			links[target] = l
		}
		return l
	}
	for _, target := range before {
		if _, keeps := slices.BinarySearch(after, target); !keeps {
			at(target).removed = append(at(target).removed, name)
		}
	}
	for _, target := range after {
		if _, has := slices.BinarySearch(before, target); !has {
			at(target).added = append(at(target).added, name)
		}
	}
}

// dirty is the changed names and everybody whose references they may make or
// break.
func (s *Snapshot) dirty(changed map[string]Object) map[string]bool {
	out := make(map[string]bool, len(changed))
	for name, old := range changed {
		out[name] = true
		keys := []string{name}
		for _, o := range []Object{old, s.Get(name)} {
			keys = append(keys, kindOfObject(o).keys(o)...)
		}
		for _, k := range keys {
			for _, r := range s.Dependents(k) {
				out[r] = true
			}
		}
	}
	return out
}

// splice takes elements out of a sorted slice and puts others in. All removed
// elements must be there. The slice itself is not changed. It costs a binary
// search per change and one copy.
func splice[T any](old, removed, added []T, compare func(a, b T) int) []T {
	slices.SortFunc(removed, compare)
	slices.SortFunc(added, compare)
	out := make([]T, 0, len(old)-len(removed)+len(added))
	i := 0
	for len(removed)+len(added) > 0 {
		// At equal places what goes, goes first.
		takeAway := len(removed) > 0 && (len(added) == 0 || compare(removed[0], added[0]) <= 0)
		var at T
		if takeAway {
			at = removed[0]
		} else {
			at = added[0]
		}
		n, _ := slices.BinarySearchFunc(old[i:], at, compare)
		out = append(out, old[i:i+n]...)
		i += n
		if takeAway {
			removed = removed[1:]
			i++
		} else {
			out = append(out, at)
			added = added[1:]
		}
	}
	return append(out, old[i:]...)
}

// Revision is the number given to Build.
func (s *Snapshot) Revision() int64 {
	if s == nil {
		return 0
	}
	return s.revision
}

// Get returns the object with this full name, or nil.
func (s *Snapshot) Get(name string) Object {
	if s == nil {
		return nil
	}
	return s.objects.Get(name)
}

// All yields every object, by kind in the order of Kinds, then by name.
func (s *Snapshot) All() iter.Seq[Object] {
	return func(yield func(Object) bool) {
		if s == nil {
			return
		}
		for _, k := range Kinds() {
			for o := range s.kinds[k.Collection].all() {
				if !yield(o) {
					return
				}
			}
		}
	}
}

// List returns the objects of a collection such as "routes" in a project, or in
// all when project is "", by name. The slice is shared: do not change it.
func (s *Snapshot) List(kind, project string) []Object {
	if s == nil {
		return nil
	}
	all := s.kinds[kind].slice()
	if project == "" {
		return all
	}
	// Names of one project stand together: '/' follows the project, and "0" is the
	// next character after it.
	prefix := "projects/" + project
	find := func(text string) int {
		n, _ := slices.BinarySearchFunc(all, text, func(o Object, t string) int { return strings.Compare(o.GetName(), t) })
		return n
	}
	return slices.Clip(all[find(prefix+"/"):find(prefix+"0")])
}

// Len is the number of objects.
func (s *Snapshot) Len() int {
	n := 0
	if s != nil {
		for _, l := range s.kinds {
			n += l.len()
		}
	}
	return n
}

// Gateways returns all gateways, by name.
func (s *Snapshot) Gateways() []*pb.Gateway {
	var out []*pb.Gateway
	for _, o := range s.List(KindGateways, "") {
		out = append(out, o.(*pb.Gateway))
	}
	return out
}

// Hosts returns what a listener serves, by host name. The gateway is named in
// full. The slice is shared: do not change it.
func (s *Snapshot) Hosts(gateway, listener string) []*Host {
	if s == nil {
		return nil
	}
	if g := s.states.Get(gateway); g != nil {
		for _, l := range g.listeners {
			if l.listener.GetName() == listener {
				return l.sorted.slice()
			}
		}
	}
	return nil
}

// HostChange is a host of a listener that is another one than before.
type HostChange struct {
	Hostname string
	// Host is nil when it is gone.
	Host *Host
}

// ChangedHosts returns, by name, the hosts of a listener that differ from those of
// another Snapshot, of which every Host differs when it is nil. It costs what
// differs, when one Snapshot came from the other.
func (s *Snapshot) ChangedHosts(since *Snapshot, gateway, listener string) []HostChange {
	now := s.hosts(gateway, listener)
	names := cow.Differing(since.hosts(gateway, listener), now)
	slices.Sort(names)
	out := make([]HostChange, len(names))
	for i, name := range names {
		out[i] = HostChange{name, now.Get(name)}
	}
	return out
}

func (s *Snapshot) hosts(gateway, listener string) *cow.Map[*Host] {
	if s == nil {
		return nil
	}
	if g := s.states.Get(gateway); g != nil {
		for _, l := range g.listeners {
			if l.listener.GetName() == listener {
				return l.hosts
			}
		}
	}
	return nil
}

// Changed returns the sorted names of the objects that are not the same pointer in
// another Snapshot, which may be nil. It costs what differs, when one Snapshot came
// from the other.
func (s *Snapshot) Changed(since *Snapshot) []string {
	var before, now *cow.Map[Object]
	if since != nil {
		before = since.objects
	}
	if s != nil {
		now = s.objects
	}
	names := cow.Differing(before, now)
	slices.Sort(names)
	return names
}

// Problems are what Check finds in this state, by object. Writes that would make one are
// refused, so they come only from states written otherwise.
// Entries that they touch are kept in Hosts, with Entry.Problem or without the
// missing target.
func (s *Snapshot) Problems() []Problem { return s.Check() }

// Check returns what is wrong between the named objects and the others: missing
// references, secrets of the wrong kind, missing subsets, consumers that cannot be
// told apart, matches that no request satisfies on the listeners of a route. Without names it looks at all objects. It reports all problems, by
// object; names that do not exist have none.
func (s *Snapshot) Check(names ...string) []Problem {
	if s == nil {
		return nil
	}
	if names == nil {
		names = slices.Collect(maps.Keys(s.problems))
	}
	names = slices.Clone(names)
	slices.Sort(names)
	var out []Problem
	for _, name := range slices.Compact(names) {
		for _, p := range s.problems[name] {
			// Said when it is asked for: it depends on what else there is.
			p.Message, p.target = p.Message+s.nearby(p.target), ""
			out = append(out, p)
		}
	}
	return out
}

// referring is Referrers, shared.
func (s *Snapshot) referring(name string) []string {
	if all := s.referrers.Get(name); all != nil {
		return *all
	}
	return nil
}

// Referrers returns the objects that refer to a name, which need not exist, by
// name. Routes that attach to every gateway of their project refer to none.
func (s *Snapshot) Referrers(name string) []string {
	if s == nil {
		return nil
	}
	return slices.Clone(s.referring(name))
}
