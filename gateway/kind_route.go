package gateway

import (
	"fmt"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

var _ = addKind(kindSpec[*pb.Route]{
	Singular: "route", Rank: 70,
	Normalize: func(m *Model, r *pb.Route) {
		r.Hostnames = hostnames(r.GetHostnames())
		m.normalizePolicies(r.GetPolicies())
		for _, rule := range r.GetRules() {
			m.normalizeRule(rule)
		}
	},
	Validate: (*checker).route,
	Warn:     (*checker).routeWarnings,
	Policies: func(r *pb.Route, visit func(string, Places, *pb.Policies)) {
		visit("policies", OnRoute, r.GetPolicies())
		for i, rule := range r.GetRules() {
			visit(fmt.Sprintf("rules[%d].policies", i), OnRule, rule.GetPolicies())
		}
	},
	References: routeReferences,
	Check:      (*Snapshot).unserved,
})

func routeReferences(m *Model, project string, r *pb.Route) []reference {
	var out []reference
	for i, g := range r.GetGateways() {
		out = append(out, refTo(fmt.Sprintf("gateways[%d]", i), project, g, KindGateways))
	}
	out = append(out, m.policyReferences(project, "policies", r.GetPolicies())...)
	for i, rule := range r.GetRules() {
		for j, b := range rule.GetForward().GetBackends() {
			ref := refTo(fmt.Sprintf("rules[%d].forward.backends[%d].backend", i, j), project, b.GetBackend(), KindBackends, KindFunctions)
			ref.subset, ref.port = b.GetSubset(), b.GetPort()
			out = append(out, ref)
		}
		out = append(out, m.policyReferences(project, fmt.Sprintf("rules[%d].policies", i), rule.GetPolicies())...)
	}
	return out
}

func (c *checker) routeWarnings(r *pb.Route) {
	for i, rule := range r.GetRules() {
		for j, m := range rule.GetMatches() {
			path := fmt.Sprintf("rules[%d].matches[%d]", i, j)
			c.matchWarnings(path, m)
			c.readingWarning(path+".path", rule, m.GetPath())
		}
	}
}
