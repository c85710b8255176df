package gateway

import (
	"fmt"
	"maps"
	"slices"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
	"github.com/penstock-gateway/penstock/internal/unknown"
)

// Damage is an object that the configuration has and that can no longer be read.
//
// Losing an object must not open what it protected. An older version of it may have been
// open, so none takes its place: whatever refers to it answers 503, and so does every host
// of a route, or of a gateway, that is lost. What that is says its footprint.
type Damage struct {
	// Name is the full name.
	Name string
	// Detail says what is wrong with it.
	Detail string
	// Newer tells that it is whole, and that this version does not know all of it.
	Newer bool
	// Footprint is what Footprint returned for it, nil when that is lost, too. Of a route
	// or a gateway without one it is not known what it protected: the routes of its whole
	// project answer 503 then.
	Footprint []byte
}

// lost is a damaged object in a Snapshot.
type lost struct {
	detail string
	newer  bool
	// husk is what is left of a route or a gateway; nil for other kinds, and when nothing
	// is.
	husk Object
	// owned are the names of headers that only its policies may set: nobody else may
	// send them to the backends, which believe them.
	owned []string
}

// Footprint is what has to be known of an object when it is lost: the hosts and gateways of
// a route, the listeners of a gateway, and the headers that only their policies may set.
// It is nil for other kinds, which are known by those that refer to them.
func (m *Model) Footprint(r *pb.Resource) []byte {
	out := &pb.Resource{}
	switch {
	case r.GetRoute() != nil:
		route := r.GetRoute()
		policies := []*pb.Policies{route.GetPolicies()}
		for _, rule := range route.GetRules() {
			policies = append(policies, rule.GetPolicies())
		}
		out.Kind = &pb.Resource_Route{Route: &pb.Route{Gateways: route.GetGateways(), Hostnames: route.GetHostnames(), Policies: m.husk(policies)}}
	case r.GetGateway() != nil:
		g := proto.CloneOf(r.GetGateway())
		g.Policies = m.husk([]*pb.Policies{g.GetPolicies()})
		g.Name, g.Metadata, g.Status = "", nil, nil
		out.Kind = &pb.Resource_Gateway{Gateway: g}
	default:
		return nil
	}
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(out)
	if err != nil {
		return nil // it is not known then, which closes more
	}
	return b
}

// newLost reads the footprint of a damaged object.
func (m *Model) newLost(d Damage) *lost {
	l := &lost{detail: d.Detail, newer: d.Newer}
	r := &pb.Resource{}
	if len(d.Footprint) == 0 || proto.Unmarshal(d.Footprint, r) != nil || len(unknown.Fields(r)) > 0 {
		return l
	}
	var policies *pb.Policies
	switch kindOf(d.Name) {
	case KindRoutes:
		if route := r.GetRoute(); route != nil {
			policies, route.Policies = route.GetPolicies(), nil
			route.Name = d.Name
			l.husk = route
		}
	case KindGateways:
		if g := r.GetGateway(); g != nil {
			policies, g.Policies = g.GetPolicies(), nil
			g.Name = d.Name
			l.husk = g
		}
	}
	l.owned = m.owned(policies)
	return l
}

// unknown reports whether it is not known what the object protected.
func (l *lost) unknown(name string) bool {
	k := kindOf(name)
	return l.husk == nil && (k == KindRoutes || k == KindGateways)
}

// takeDamage notes the damaged objects of changes, and that others are whole again. It
// puts what is left of them into next, and returns the names whose state changed.
func (s *Snapshot) takeDamage(prev *Snapshot, c Changes, next map[string]Object) map[string]bool {
	changed := map[string]bool{}
	if len(prev.damaged)+len(c.Damaged) == 0 {
		return changed
	}
	s.damaged = maps.Clone(prev.damaged)
	for name := range next {
		if s.damaged[name] != nil {
			delete(s.damaged, name)
			changed[name] = true
		}
	}
	for _, d := range c.Damaged {
		if _, _, _, err := KindOf(d.Name); err != nil {
			continue
		}
		if s.damaged == nil {
			s.damaged = map[string]*lost{}
		}
		l := s.model.newLost(d)
		s.damaged[d.Name] = l
		next[d.Name] = l.husk
		changed[d.Name] = true
	}
	return changed
}

// damageProblem is what Check says of a damaged object; nil when it is not damaged.
func (s *Snapshot) damageProblem(name string) []Problem {
	l := s.damaged[name]
	if l == nil {
		return nil
	}
	closes := "what refers to it answers 503"
	switch k := kindOf(name); {
	case l.unknown(name):
		closes = fmt.Sprintf("which hosts it served is not known, so all routes of project %s answer 503", projectOf(name))
	case k == KindRoutes:
		closes = "its hosts answer 503"
	case k == KindGateways:
		closes = "its listeners answer 503"
	}
	prefix := "damaged in the store"
	if l.newer {
		prefix = "written by a newer version of Penstock"
	}
	return []Problem{{Reason: ReasonDamaged, Object: name, Message: fmt.Sprintf("%s: %s; %s until it is written again (penstock apply), deleted (penstock delete) or rolled back (penstock rollback)", prefix, l.detail, closes)}}
}

// Damaged reports whether an object is damaged. Get returns what is left of it: of a route
// or a gateway that may be something.
func (s *Snapshot) Damaged(name string) bool { return s != nil && s.damaged[name] != nil }

// DamagedNames are the full names of the damaged objects, sorted.
func (s *Snapshot) DamagedNames() []string {
	if s == nil {
		return nil
	}
	return slices.Sorted(maps.Keys(s.damaged))
}

// Listed is List with the damaged objects of which nothing is left, as objects with
// nothing but a name.
func (s *Snapshot) Listed(kind, project string) []Object {
	all := s.List(kind, project)
	if s == nil || len(s.damaged) == 0 {
		return all
	}
	all = slices.Clone(all)
	for name := range s.damaged {
		if kindOf(name) == kind && (project == "" || projectOf(name) == project) && s.Get(name) == nil {
			all = append(all, s.Shell(name))
		}
	}
	slices.SortFunc(all, compareNames)
	return all
}

// Shell is a damaged object of which nothing is left, with nothing but its name; nil when
// the object is not damaged.
func (s *Snapshot) Shell(name string) Object {
	if !s.Damaged(name) {
		return nil
	}
	for field := range fieldsOf(&pb.Resource{}) {
		r := &pb.Resource{}
		o, ok := r.ProtoReflect().Mutable(field).Message().Interface().(Object)
		if !ok {
			continue
		}
		o.ProtoReflect().Set(o.ProtoReflect().Descriptor().Fields().ByName("name"), protoreflect.ValueOfString(name))
		if checkName(o) == nil {
			return o
		}
	}
	return nil
}

// fieldsOf yields the fields of a message.
func fieldsOf(m proto.Message) func(func(protoreflect.FieldDescriptor) bool) {
	fields := m.ProtoReflect().Descriptor().Fields()
	return func(yield func(protoreflect.FieldDescriptor) bool) {
		for i := range fields.Len() {
			if !yield(fields.Get(i)) {
				return
			}
		}
	}
}

// DamagedHeaders are the headers that only policies of damaged objects of a project may set,
// sorted.
func (s *Snapshot) DamagedHeaders(project string) []string {
	if s == nil {
		return nil
	}
	var out []string
	for name, l := range s.damaged {
		if projectOf(name) == project {
			out = append(out, l.owned...)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// closedBy names the damaged object for which all routes of a gateway answer 503: itself,
// or one of its project of which it is not known what it protected. "" for none.
func (s *Snapshot) closedBy(gateway string) string {
	if s == nil || len(s.damaged) == 0 {
		return ""
	}
	if s.damaged[gateway] != nil {
		return gateway
	}
	for _, name := range slices.Sorted(maps.Keys(s.damaged)) {
		if s.damaged[name].unknown(name) && projectOf(name) == projectOf(gateway) {
			return name
		}
	}
	return ""
}

// closing is the Problem of the entries of a gateway that answers 503.
func (s *Snapshot) closing(gateway string) string {
	if by := s.closedBy(gateway); by != "" {
		return by + " is damaged in the store"
	}
	return ""
}

// closedEntries stand for a route that is damaged: every request of its hosts is answered
// with 503, before any other route is looked at.
func closedEntries(r *pb.Route) []*Entry {
	return []*Entry{{
		Route: r, Rule: &pb.RouteRule{}, RuleName: "damaged", Match: &pb.RouteMatch{}, Policies: &Effective{},
		Problem: r.GetName() + " is damaged in the store", First: true,
	}}
}

// lacksSecret reports whether a function needs a secret that is damaged: without its value
// it might start and be open.
func (s *Snapshot) lacksSecret(f *pb.Function) bool {
	for _, k := range f.GetEnvSecrets() {
		if len(s.damaged) > 0 && s.damaged[Resolve(projectOf(f.GetName()), KindSecrets, k.GetSecret())] != nil {
			return true
		}
	}
	return false
}
