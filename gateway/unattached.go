package gateway

import (
	"fmt"
	"slices"
	"strings"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// Unattached says why no listener serves a route, "" when one does: its project has no
// Gateway, those that it names are not there, or their listeners have other hosts. Such a
// route is valid and answers nobody.
func (s *Snapshot) Unattached(r *pb.Route) string {
	for range s.listenersOf(r.GetName()) {
		return ""
	}
	var there, theirs []string
	for _, name := range s.gatewaysOf(nil, r.GetName()) {
		g, ok := s.Get(name).(*pb.Gateway)
		if !ok {
			continue
		}
		there = append(there, name[strings.LastIndexByte(name, '/')+1:])
		for _, l := range g.GetListeners() {
			theirs = append(theirs, l.GetHostnames()...)
		}
	}
	const attached = "attached to no listener: "
	if len(there) == 0 {
		if named := r.GetGateways(); len(named) > 0 {
			return fmt.Sprintf(attached+"there is no Gateway %s in its project", strings.Join(named, " or "))
		}
		return attached + "its project has no Gateway"
	}
	slices.Sort(theirs)
	const most = 5
	if theirs = slices.Compact(theirs); len(theirs) > most {
		theirs = append(theirs[:most], "…")
	}
	return fmt.Sprintf(attached+"its hostnames are %s, those of the listeners of %s are %s",
		strings.Join(r.GetHostnames(), ", "), strings.Join(there, ", "), strings.Join(theirs, ", "))
}

// UnattachedRoutes are the routes that no listener serves, of those that are named, or of
// all when names is nil.
func (s *Snapshot) UnattachedRoutes(names []string) []Problem {
	var out []Problem
	add := func(o Object) {
		if r, ok := o.(*pb.Route); ok {
			if why := s.Unattached(r); why != "" {
				out = append(out, Problem{Object: r.GetName(), Message: why, Origin: r.GetMetadata().GetOrigin()})
			}
		}
	}
	if names == nil {
		for _, o := range s.Listed(KindRoutes, "") {
			add(o)
		}
		return out
	}
	for _, name := range names {
		add(s.Get(name))
	}
	return out
}

// Detached are the routes that a listener served before and none serves now, by a change
// of the named objects, without those that are themselves among them.
func (s *Snapshot) Detached(before *Snapshot, changed []string) []Problem {
	projects, named := map[string]bool{}, map[string]bool{}
	for _, name := range changed {
		named[name] = true
		if _, kind, _, ok := split(name); ok && kind == KindGateways {
			projects[projectOf(name)] = true
		}
	}
	var out []Problem
	for project := range projects {
		for _, o := range s.Listed(KindRoutes, project) {
			r, ok := o.(*pb.Route)
			if !ok || named[r.GetName()] {
				continue
			}
			why := s.Unattached(r)
			if old, was := before.Get(r.GetName()).(*pb.Route); why != "" && was && before.Unattached(old) == "" {
				out = append(out, Problem{Object: r.GetName(), Message: "this change leaves it without a listener, and its requests get 404: " + why, Origin: r.GetMetadata().GetOrigin()})
			}
		}
	}
	slices.SortFunc(out, func(a, b Problem) int { return strings.Compare(a.Object, b.Object) })
	return out
}
