package gateway

import (
	"fmt"
	"iter"
	"slices"
	"strings"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
	"github.com/penstock-gateway/penstock/internal/cow"
)

// gatewayState is what follows from one gateway and the routes that attach to it.
type gatewayState struct {
	gateway   *pb.Gateway
	listeners []*listenerState
	// attached routes by name.
	attached *cow.Map[*attachment]
}

type listenerState struct {
	listener *pb.Listener
	hosts    *cow.Map[*Host]
	// sorted has the same hosts by name.
	sorted *sorted[*Host]
}

// attachment is one route at one gateway.
type attachment struct {
	// entries of the route in match order; shared by all hosts it serves.
	entries []*Entry
	// hosts that it serves, for each listener.
	hosts [][]string
}

// buildGateways brings the states of the gateways up to date. changed holds the
// changed objects as they were; dirty holds those and their referrers.
func (s *Snapshot) buildGateways(prev *Snapshot, changed map[string]Object, dirty map[string]bool) {
	whole := map[string]bool{}
	parts := map[string][]string{}
	for _, g := range s.Gateways() {
		if len(prev.damaged)+len(s.damaged) == 0 {
			break
		}
		if s.closedBy(g.GetName()) != prev.closedBy(g.GetName()) {
			whole[g.GetName()] = true
		}
	}
	for name := range dirty {
		switch kindOf(name) {
		case KindGateways:
			if _, own := changed[name]; own || s.policiesReferTo(name, changed) {
				whole[name] = true
			}
		case KindRoutes:
			for _, g := range s.gatewaysOf(prev, name) {
				parts[g] = append(parts[g], name)
			}
		}
	}
	for name := range whole {
		delete(parts, name)
		g, ok := s.Get(name).(*pb.Gateway)
		if !ok {
			s.states.Delete(name)
			continue
		}
		state := &gatewayState{gateway: g}
		for _, l := range g.GetListeners() {
			state.listeners = append(state.listeners, &listenerState{listener: l})
		}
		var routes []string
		for _, r := range s.List(KindRoutes, projectOf(name)) {
			if attaches(r.(*pb.Route), name) {
				routes = append(routes, r.GetName())
			}
		}
		s.states.Set(name, s.attach(state, routes))
	}
	for name, routes := range parts {
		if state := s.states.Get(name); state != nil {
			s.states.Set(name, s.attach(state, routes))
		}
	}
}

// policiesReferTo reports whether the policies of a gateway name one of the changed
// objects. Certificates of listeners are not part of any Host.
func (s *Snapshot) policiesReferTo(gateway string, changed map[string]Object) bool {
	g, _ := s.Get(gateway).(*pb.Gateway)
	return slices.ContainsFunc(s.model.policyReferences(projectOf(gateway), "policies", g.GetPolicies()), func(r reference) bool {
		_, ok := changed[r.name]
		return ok
	})
}

// gatewaysOf names the gateways that a route attaches to now or did before.
func (s *Snapshot) gatewaysOf(prev *Snapshot, route string) []string {
	var out []string
	for _, o := range []Object{prev.Get(route), s.Get(route)} {
		r, ok := o.(*pb.Route)
		if !ok {
			continue
		}
		project := projectOf(route)
		for _, g := range r.GetGateways() {
			out = append(out, Resolve(project, KindGateways, g))
		}
		if len(r.GetGateways()) == 0 {
			for _, g := range s.List(KindGateways, project) {
				out = append(out, g.GetName())
			}
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// listenersOf are the listeners that serve a route, each with the hosts that it serves
// the route for, in the order of the gateways' names and of their listeners.
func (s *Snapshot) listenersOf(route string) iter.Seq2[*listenerState, []string] {
	return func(yield func(*listenerState, []string) bool) {
		for _, g := range s.gatewaysOf(nil, route) {
			state := s.states.Get(g)
			if state == nil || state.attached.Get(route) == nil {
				continue
			}
			for i, hosts := range state.attached.Get(route).hosts {
				if len(hosts) > 0 && !yield(state.listeners[i], hosts) {
					return
				}
			}
		}
	}
}

// attaches reports whether a route attaches to a gateway: it names it, or names none.
// Both must be of one project.
func attaches(r *pb.Route, gateway string) bool {
	project := projectOf(r.GetName())
	if project != projectOf(gateway) {
		return false
	}
	return len(r.GetGateways()) == 0 || slices.ContainsFunc(r.GetGateways(), func(g string) bool {
		return Resolve(project, KindGateways, g) == gateway
	})
}

// hostChange is what happens to the entries of one host.
type hostChange struct{ removed, added []*Entry }

// attach makes the next state of a gateway, with these routes taken anew from s
// and all others as they were.
func (s *Snapshot) attach(old *gatewayState, routes []string) *gatewayState {
	g := &gatewayState{gateway: old.gateway, attached: old.attached.Clone()}
	changes := make([]map[string]*hostChange, len(old.listeners))
	for i := range changes {
		changes[i] = map[string]*hostChange{}
	}
	at := func(i int, host string) *hostChange {
		c := changes[i][host]
		if c == nil {
			c = &hostChange{}
			changes[i][host] = c
		}
		return c
	}
	for _, name := range routes {
		before := old.attached.Get(name)
		var after *attachment
		if r, ok := s.Get(name).(*pb.Route); ok && attaches(r, old.gateway.GetName()) {
			after = s.attachment(old.gateway, r)
			g.attached.Set(name, after)
		} else {
			g.attached.Delete(name)
		}
		for i := range changes {
			if before != nil {
				for _, h := range before.hosts[i] {
					at(i, h).removed = append(at(i, h).removed, before.entries...)
				}
			}
			if after != nil {
				for _, h := range after.hosts[i] {
					at(i, h).added = append(at(i, h).added, after.entries...)
				}
			}
		}
	}
	for i, l := range old.listeners {
		g.listeners = append(g.listeners, l.next(g.gateway, changes[i]))
	}
	return g
}

// next applies changes to the hosts of a listener.
func (l *listenerState) next(g *pb.Gateway, changes map[string]*hostChange) *listenerState {
	if len(changes) == 0 {
		return l
	}
	n := &listenerState{listener: l.listener, hosts: l.hosts.Clone()}
	var removed, added []*Host
	for name, c := range changes {
		var entries []*Entry
		answering := 0
		if h := l.hosts.Get(name); h != nil {
			removed = append(removed, h)
			entries, answering = h.written, h.answering
		}
		answering += answers(c.added) - answers(c.removed)
		if entries = splice(entries, c.removed, c.added, compareEntries); len(entries) == 0 {
			n.hosts.Delete(name)
			continue
		}
		h := &Host{Gateway: g, Listener: l.listener, Hostname: name, Entries: entries, written: entries, answering: answering}
		if answering > 0 {
			h.Entries = withPreflights(entries)
		}
		n.hosts.Set(name, h)
		added = append(added, h)
	}
	n.sorted = l.sorted.splice(removed, added, func(a, b *Host) int { return strings.Compare(a.Hostname, b.Hostname) })
	return n
}

// attachment makes the entries of a route at a gateway.
func (s *Snapshot) attachment(g *pb.Gateway, r *pb.Route) *attachment {
	a := &attachment{}
	for _, l := range g.GetListeners() {
		a.hosts = append(a.hosts, intersect(r.GetHostnames(), l.GetHostnames()))
	}
	if s.damaged[r.GetName()] != nil {
		a.entries = closedEntries(r)
		return a
	}
	outer := []level{
		{Source{g, "policies"}, g.GetPolicies()},
		{Source{r, "policies"}, r.GetPolicies()},
	}
	shared := s.model.merge(outer...)
	outerProblem := s.closing(g.GetName())
	if outerProblem == "" {
		outerProblem = s.policyProblem(g, "policies", g.GetPolicies())
	}
	if outerProblem == "" {
		outerProblem = s.policyProblem(r, "policies", r.GetPolicies())
	}
	for i, rule := range r.GetRules() {
		e := Entry{Route: r, Rule: rule, RuleName: RuleName(rule, i), RuleIndex: i, Policies: shared, Problem: outerProblem}
		if rule.GetPolicies() != nil {
			path := fmt.Sprintf("rules[%d].policies", i)
			e.Policies = s.model.merge(append(outer[:2:2], level{Source{r, path}, rule.GetPolicies()})...)
			if e.Problem == "" {
				e.Problem = s.policyProblem(r, path, rule.GetPolicies())
			}
		}
		if f := rule.GetForward(); f != nil {
			e.Backends = s.targets(r, i, f)
			if e.Problem == "" && !slices.ContainsFunc(e.Backends, func(t Target) bool { return t.Weight > 0 }) {
				e.Problem = fmt.Sprintf("rules[%d].forward has no backend that exists and has a weight", i)
			}
		}
		matches := rule.GetMatches()
		if len(matches) == 0 {
			matches = []*pb.RouteMatch{{}}
		}
		for j, m := range matches {
			one := e
			one.MatchIndex, one.Match = j, m
			one.ahead = s.model.aheadOf(&one)
			a.entries = append(a.entries, &one)
		}
	}
	slices.SortFunc(a.entries, compareEntries)
	return a
}

// RuleName is the name of the rule at a position of its route: its own, or
// "rule-N" with N counted from 0.
func RuleName(r *pb.RouteRule, position int) string {
	if n := r.GetName(); n != "" {
		return n
	}
	return fmt.Sprintf("rule-%d", position)
}

// policyProblem says why policies cannot be enforced as written; "" when they can.
func (s *Snapshot) policyProblem(o Object, path string, p *pb.Policies) string {
	for _, r := range s.model.policyReferences(projectOf(o.GetName()), path, p) {
		if _, m := s.target(o, r); m != "" {
			return fmt.Sprintf("%s of %s: %s", r.field, o.GetName(), m)
		}
	}
	return ""
}

// targets resolves the backends of a forward; what cannot be resolved is left out.
func (s *Snapshot) targets(r *pb.Route, rule int, f *pb.Forward) []Target {
	var parts [][]Target
	project := projectOf(r.GetName())
	for j, b := range f.GetBackends() {
		ref := refTo(fmt.Sprintf("rules[%d].forward.backends[%d].backend", rule, j), project, b.GetBackend(), KindBackends, KindFunctions)
		ref.subset, ref.port = b.GetSubset(), b.GetPort()
		o, problem := s.target(r, ref)
		if problem != "" {
			continue
		}
		t := Target{Subset: b.GetSubset(), Port: b.GetPort(), Weight: b.GetWeight()}
		if len(f.GetBackends()) == 1 && t.Weight == 0 {
			t.Weight = 1
		}
		if t.Backend, _ = o.(*pb.Backend); t.Backend != nil {
			t.Port = t.distinctPort()
			parts = append(parts, []Target{t})
		} else {
			parts = append(parts, s.split(o.(*pb.Function), t))
		}
	}
	return weigh(parts)
}

// intersect returns the host names that a route and a listener both serve, sorted
// and each once. No names mean all ("*").
func intersect(route, listener []string) []string {
	if len(route) == 0 {
		route = []string{"*"}
	}
	if len(listener) == 0 {
		listener = []string{"*"}
	}
	var out []string
	for _, r := range route {
		for _, l := range listener {
			switch {
			case hostWithin(r, l):
				out = append(out, anyHost(r))
			case hostWithin(l, r):
				out = append(out, anyHost(l))
			}
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

func anyHost(h string) string {
	if h == "" {
		return "*"
	}
	return h
}

// hostWithin reports whether every host that a names is one that b names. A wildcard
// stands for one or more labels.
func hostWithin(a, b string) bool {
	a, b = anyHost(a), anyHost(b)
	if b == "*" || a == b {
		return true
	}
	suffix, wild := strings.CutPrefix(b, "*")
	// "*.a.b" is within "*.b"; of "*.b" itself the equality above took care.
	return wild && a != "*" && strings.HasSuffix(a, suffix) && len(a) > len(suffix)
}
