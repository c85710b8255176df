package explain

import (
	"fmt"
	"slices"
	"strings"

	"github.com/penstock-gateway/penstock/gateway"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// Refusal is a part of the configuration that proxies refuse, and what they do instead.
type Refusal struct {
	// Object is its full name. Field is the listener, by its name, or the rule, as in
	// rules[2], that is meant; "" is all of the object.
	Object, Field string
	// Detail is what a proxy said.
	Detail string
	// Instead is what proxies do, and Revision, when it is known, the one whose form they
	// serve.
	Instead  Instead
	Revision int64
	// Prefix, of a rule in the place of which nothing is served: every path that begins so,
	// and that nothing before the rule takes, is answered with 503.
	Prefix string
}

// Instead is what proxies do in the place of what they refuse.
type Instead int

// What proxies do in the place of what they refuse.
const (
	// Unknown: they keep what they had, of which the model cannot tell what it answers.
	Unknown Instead = iota
	// Before: they serve an earlier form, which is that in Known.Served.
	Before
	// Nothing: nothing listens, the rule is answered with 503, the backend gets no requests.
	Nothing
)

// words are how an outcome tells of it.
func (r *Refusal) words() string {
	name := r.Object
	if r.Field != "" {
		name += " (" + r.Field + ")"
	}
	return fmt.Sprintf("Envoy refused %s: %s; %s", name, oneLine(r.Detail), r.serves())
}

func (r *Refusal) serves() string {
	switch {
	case r.Instead == Nothing:
		return "nothing is served in its place"
	case r.Revision > 0:
		return fmt.Sprintf("served as of revision %d", r.Revision)
	}
	return "what was accepted before is served in its place"
}

// maxDetail bounds what is told of the words of a proxy, which may be whole messages.
const maxDetail = 200

func oneLine(s string) string {
	s = strings.Join(strings.Fields(s), " ")
	if len(s) > maxDetail {
		s = strings.ToValidUTF8(s[:maxDetail], "") + " …"
	}
	return s
}

// explainRefused explains a request when proxies refuse a part of the configuration: by
// what they serve. Refusals are told that concern the way of the request, as it is
// and as it would be.
func explainRefused(s *gateway.Snapshot, req *pb.ExplainRequest, known *Known) *pb.ExplainResponse {
	plain := *known
	plain.Refused, plain.Served = nil, nil
	wanted := explain(s, req, &plain)
	if known.Served != nil {
		s = known.Served
	}
	out := explain(s, req, known)
	for i := range known.Refused {
		r := &known.Refused[i]
		if !r.concerns(s, wanted) && !r.concerns(s, out) {
			continue
		}
		out.Refused = append(out.Refused, &pb.ExplainRefusal{Object: r.Object, Field: r.Field, Detail: r.Detail, Serves: r.serves(), Revision: r.Revision})
		if r.Instead == Unknown {
			out.Outcome = notKnown(r, out.GetOutcome())
		}
	}
	return out
}

// notKnown is the outcome where proxies keep what they had, and it is not known what that
// answers.
func notKnown(r *Refusal, asWritten *pb.ExplainOutcome) *pb.ExplainOutcome {
	if asWritten.GetStatus() == 0 && asWritten.GetDecidedBy() == byConfig {
		return asWritten // it is not known already
	}
	o := possible(byConfig, 0, "not known: %s, and it is not known what that answers", r.words())
	asWritten.Certain = false
	o.MayBe = append([]*pb.ExplainOutcome{asWritten}, asWritten.GetMayBe()...)
	asWritten.MayBe = nil
	return o
}

// concerns reports whether a refusal is of something on the way of a request.
func (r *Refusal) concerns(s *gateway.Snapshot, way *pb.ExplainResponse) bool {
	switch {
	case way.GetListener().GetGateway() == r.Object:
		return r.Field == "" || way.GetListener().GetListener() == r.Field
	case way.GetRule().GetRoute() == r.Object:
		route, _ := s.Get(r.Object).(*pb.Route)
		i, ok := RuleAt(route, r.Field)
		return !ok || gateway.RuleName(route.GetRules()[i], i) == way.GetRule().GetRule()
	}
	return slices.ContainsFunc(way.GetBackends(), func(b *pb.ExplainBackend) bool { return b.GetName() == r.Object })
}

// RuleAt is the position that a field such as rules[2] means; false when there is none.
func RuleAt(route *pb.Route, field string) (i int, ok bool) {
	_, err := fmt.Sscanf(field, "rules[%d]", &i)
	return i, err == nil && i >= 0 && i < len(route.GetRules())
}

// nothing is the refusal because of which an object, or a part of it, is not served at
// all; nil when there is none.
func (x *explainer) nothing(object, field string) *Refusal {
	for i := range x.known.Refused {
		r := &x.known.Refused[i]
		if r.Instead == Nothing && r.Object == object && (r.Field == "" || r.Field == field) {
			return r
		}
	}
	return nil
}

// refusedRule is the answer of a rule that proxies refuse, or all of whose backends they
// refuse: before anything else, for nothing is behind it. nil for others.
func (x *explainer) refusedRule(h *gateway.Host, e *gateway.Entry) *pb.ExplainOutcome {
	for _, before := range h.Entries {
		if before == e {
			break
		}
		r := x.nothing(before.Route.GetName(), fmt.Sprintf("rules[%d]", before.RuleIndex))
		if r != nil && r.Prefix != "" && strings.HasPrefix(x.request.Path, r.Prefix) {
			x.out.Rule = &pb.ExplainRule{Route: before.Route.GetName(), Rule: before.RuleName, Origin: before.Route.GetMetadata().GetOrigin(), Match: gateway.DescribeMatch(before.Match)}
			return answered(byConfig, gateway.RouteBroken, "%s; every path that begins with %s is answered so", r.words(), r.Prefix)
		}
	}
	if e == nil {
		return nil
	}
	if r := x.nothing(e.Route.GetName(), fmt.Sprintf("rules[%d]", e.RuleIndex)); r != nil {
		return answered(byConfig, gateway.RouteBroken, "%s", r.words())
	}
	if len(e.Backends) == 0 || e.Problem != "" {
		return nil
	}
	var last *Refusal
	for _, t := range e.Backends {
		r := x.nothing(t.Name(), "")
		if r == nil {
			return nil
		}
		last = r
		x.out.Backends = append(x.out.Backends, &pb.ExplainBackend{Name: t.Name(), Subset: t.Subset, Port: t.Port})
	}
	return answered(byConfig, gateway.RouteBroken, "%s", last.words())
}
