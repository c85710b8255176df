package explain

import (
	"fmt"
	"slices"
	"strings"

	"github.com/penstock-gateway/penstock/gateway"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// misses says of every other rule of the host why it does not serve the request.
func (x *explainer) misses(h *gateway.Host, served *gateway.Entry) {
	after := false
	for _, e := range h.Entries {
		if e == served {
			after = true
		}
		// Another match of the rule that serves would change nothing.
		if e.Preflight || served != nil && e.Rule == served.Rule {
			continue
		}
		reason := gateway.Mismatch(e.Match, &x.request)
		if reason == "" && after {
			reason = fmt.Sprintf("stands behind: it matches, but %s, rule %s comes first (%s)",
				served.Route.GetName(), served.RuleName, precedence(served, e))
		}
		x.miss(e, reason)
	}
}

func (x *explainer) miss(e *gateway.Entry, reason string) {
	if len(x.out.NotMatched) >= maxMisses {
		x.more++
		return
	}
	if len(e.Rule.GetMatches()) > 1 {
		reason = fmt.Sprintf("matches[%d]: %s", e.MatchIndex, reason)
	}
	x.out.NotMatched = append(x.out.NotMatched, &pb.ExplainMiss{
		Route: e.Route.GetName(), Rule: e.RuleName, Origin: e.Route.GetMetadata().GetOrigin(), Reason: reason,
	})
}

// precedence says why one matching entry comes before another.
func precedence(first, second *gateway.Entry) string {
	listed := func(e *gateway.Entry) bool { return e.Route.GetRuleOrder() == pb.RuleOrder_RULE_ORDER_AS_LISTED }
	switch {
	case listed(first) && !listed(second):
		return "routes with rule_order AS_LISTED come before the others"
	case listed(first) && first.Route == second.Route:
		return "it is listed before"
	case listed(first):
		return "by the names of the routes"
	case gateway.MoreSpecific(first.Match, second.Match):
		return gateway.DescribeMatch(first.Match) + " is more specific than " + gateway.DescribeMatch(second.Match)
	case first.Route != second.Route:
		return "both are equally specific, and the name of its route comes first"
	}
	return "both are equally specific, and it is written first"
}

// lessSpecific names rules that would match, but whose host is less specific.
func (x *explainer) lessSpecific(served *gateway.Host) {
	for _, h := range x.snapshot.Hosts(served.Gateway.GetName(), served.Listener.GetName()) {
		if h == served || !covers(h.Hostname, x.request.Host) {
			continue
		}
		for _, e := range h.Entries {
			if e.Preflight {
				continue
			}
			also := slices.ContainsFunc(served.Entries, func(o *gateway.Entry) bool { return o.Rule == e.Rule })
			if !also && e.Matches(&x.request) {
				x.miss(e, fmt.Sprintf("it matches, but for host %q; the request is served by %q alone, which is more specific", h.Hostname, served.Hostname))
			}
		}
	}
}

func covers(pattern, host string) bool {
	suffix, wild := strings.CutPrefix(pattern, "*")
	return pattern == host || wild && strings.HasSuffix(host, suffix) && len(host) > len(suffix)
}
