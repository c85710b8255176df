package gateway

import (
	"fmt"
	"maps"
	"slices"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// Neighbours returns where authentication can be walked around by another spelling
// of a path: a rule that asks for a token matches by an exact path or a regular
// expression, and another rule of its host that matches more paths asks for none and
// leads to the same backend. To many servers /vault/ is /vault, but it is another
// path to an exact match. Only routes are looked at; a route is named once for each
// pair of rules.
func (s *Snapshot) Neighbours(routes []string) []Problem {
	var out []Problem
	seen := map[string]bool{}
	for _, name := range routes {
		s.eachHost(name, func(h *Host, r *pb.Route) {
			for _, p := range neighboursIn(h, r) {
				if key := p.Object + p.Field + p.Message; !seen[key] {
					seen[key] = true
					out = append(out, p)
				}
			}
		})
	}
	return out
}

// eachHost calls visit for every host that has entries of a route, once for each listener;
// never for what is not a route.
func (s *Snapshot) eachHost(name string, visit func(*Host, *pb.Route)) {
	r, ok := s.Get(name).(*pb.Route)
	if !ok {
		return
	}
	for l, hosts := range s.listenersOf(name) {
		for _, host := range hosts {
			if h := l.hosts.Get(host); h != nil {
				visit(h, r)
			}
		}
	}
}

// maxNeighbours bounds how many entries of a host are compared with a route, so that
// a write costs the same in a host with very many.
const maxNeighbours = 1000

// Crowded returns the hosts of routes, with their gateway and listener, that have so many
// matches that Neighbours and PolicyWarnings do not look at them.
func (s *Snapshot) Crowded(routes []string) []string {
	names := map[string]bool{}
	for _, name := range routes {
		s.eachHost(name, func(h *Host, _ *pb.Route) {
			if len(h.written) > maxNeighbours {
				names[fmt.Sprintf("%s of listener %s of %s (%d matches)", h.Hostname, h.Listener.GetName(), h.Gateway.GetName(), len(h.written))] = true
			}
		})
	}
	return slices.Sorted(maps.Keys(names))
}

func neighboursIn(h *Host, r *pb.Route) []Problem {
	if len(h.written) > maxNeighbours {
		return nil
	}
	var out []Problem
	for _, strict := range h.written {
		if !narrow(strict.Match.GetPath()) || !strict.Policies.Protected() {
			continue
		}
		for _, wide := range h.written {
			if strict.Route != r && wide.Route != r || wide.Policies.Protected() || narrow(wide.Match.GetPath()) || !sameBackend(strict, wide) {
				continue
			}
			out = append(out, Problem{
				Object: strict.Route.GetName(), Origin: strict.Route.GetMetadata().GetOrigin(),
				Field: fmt.Sprintf("rules[%d].matches[%d].path", strict.RuleIndex, strict.MatchIndex),
				Message: fmt.Sprintf("%s asks for a token, but rule %s of %s%s, %s, leads to the same backend without one: another spelling of the path, such as a / at its end, goes there; match by prefix or text_prefix, or ask for a token there, too",
					DescribePath(strict.Match.GetPath()), wide.RuleName, wide.Route.GetName(), at(wide.Route), DescribePath(wide.Match.GetPath())),
			})
		}
	}
	return out
}

// narrow reports whether a path match leaves out other spellings of its paths.
func narrow(p *pb.PathMatch) bool { return p.GetExact() != "" || p.GetRegex() != "" }

func sameBackend(a, b *Entry) bool {
	return slices.ContainsFunc(a.Backends, func(t Target) bool {
		return slices.ContainsFunc(b.Backends, func(o Target) bool { return o.Name() == t.Name() })
	})
}

// at is where a route was written, in parentheses; "" when that is not known.
func at(r *pb.Route) string {
	if o := r.GetMetadata().GetOrigin(); o.GetFile() != "" {
		return fmt.Sprintf(" (%s:%d)", o.GetFile(), o.GetLine())
	}
	return ""
}
