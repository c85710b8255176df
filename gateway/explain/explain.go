// Package explain says what would happen to a request, and why, from the model
// alone: which listener takes it, which host and rule serve it, what each policy
// does and where it was written, where the request may go, and why no other rule
// serves it. No request is sent.
package explain

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"

	"github.com/penstock-gateway/penstock/gateway"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// maxMisses bounds ExplainResponse.not_matched; a last row says how many more
// there are.
const maxMisses = 1000

// Explain follows one request through a snapshot. instances returns the instances
// of a function by its full name; nil when they are not known, as without a control
// plane. A request that cannot be understood is explained by the outcome.
// ExplainListener.layout is for the caller to fill: the model does not know how
// hosts are laid out in xDS.
func Explain(s *gateway.Snapshot, req *pb.ExplainRequest, instances func(function string) []*pb.Instance) *pb.ExplainResponse {
	x := &explainer{snapshot: s, instances: instances, out: &pb.ExplainResponse{Revision: s.Revision()}}
	x.project = cmp.Or(req.GetProject(), "default")
	if err := x.parse(req); err != nil {
		x.out.Outcome = "not sent: " + err.Error()
		return x.out
	}
	x.run()
	return x.out
}

type explainer struct {
	snapshot  *gateway.Snapshot
	instances func(string) []*pb.Instance
	project   string
	scheme    string
	port      uint32
	request   gateway.Request
	// badHost is why every listener refuses the host, if they do.
	badHost error
	rawPath string
	out     *pb.ExplainResponse
	// edgeRows say what the edge does to the headers.
	edgeRows []string
	// more counts misses beyond maxMisses.
	more int
}

// parse turns the request into what the edge would see.
func (x *explainer) parse(req *pb.ExplainRequest) error {
	scheme, rest, ok := strings.Cut(req.GetUrl(), "://")
	x.scheme = strings.ToLower(scheme)
	if !ok || x.scheme != "http" && x.scheme != "https" {
		return fmt.Errorf("%q is not an absolute URL: write it as http://host:port/path", req.GetUrl())
	}
	// Everything is taken as it would be sent: net/url decodes, and refuses what the
	// edge has a reason of its own for.
	rest, _, _ = strings.Cut(rest, "#")
	rest, x.request.Query, _ = strings.Cut(rest, "?")
	x.rawPath = "/"
	if i := strings.IndexByte(rest, '/'); i >= 0 {
		rest, x.rawPath = rest[:i], rest[i:]
	}
	var port uint32
	x.request.Host, port, x.badHost = gateway.CanonicalHost(rest[strings.LastIndexByte(rest, '@')+1:])
	x.port = cmp.Or(port, gateway.SchemePort(x.scheme))
	x.request.Method = cmp.Or(req.GetMethod(), http.MethodGet)
	x.request.Headers = map[string][]string{}
	for k, v := range req.GetHeaders() {
		k = strings.ToLower(k)
		x.request.Headers[k] = append(x.request.Headers[k], v)
	}
	return nil
}

func (x *explainer) run() {
	if x.badHost != nil {
		x.out.Outcome = x.badHost.Error()
		return
	}
	g, l, h := x.listener()
	if l == nil {
		return
	}
	x.out.Listener = &pb.ExplainListener{
		Gateway: g.GetName(), Listener: l.GetName(),
		Address: fmt.Sprintf("%s:%d", bracket(gateway.ListenerAddress(l)), l.GetPort()),
	}
	if reason := x.edge(gateway.EdgeOf(l)); reason != "" {
		x.out.Outcome = reason
		return
	}
	if h == nil {
		x.out.Outcome = fmt.Sprintf("404 no host: no route serves %q here; there are %s", x.request.Host, hostList(x.snapshot.Hosts(g.GetName(), l.GetName())))
		return
	}
	x.out.Host = h.Hostname
	e := h.Find(&x.request)
	x.misses(h, e)
	x.lessSpecific(h)
	if x.more > 0 {
		x.out.NotMatched = append(x.out.NotMatched, &pb.ExplainMiss{Reason: fmt.Sprintf("and %d more rules", x.more)})
	}
	if profile := gateway.EdgeOf(l); profile.Ambiguous(h, &x.request, e) {
		x.out.Outcome = fmt.Sprintf("400 Bad Request: %q could be read in two ways that lead to different rules, with what the listener keeps in paths and without (%s)", x.request.Path, gateway.AmbiguousPath.Code)
		return
	}
	if e == nil {
		x.out.Outcome = fmt.Sprintf("404 no route: no rule of host %q matches", h.Hostname)
		return
	}
	x.out.Rule = &pb.ExplainRule{
		Route: e.Route.GetName(), Rule: e.RuleName, Origin: e.Route.GetMetadata().GetOrigin(),
		Match: gateway.DescribeMatch(e.Match),
	}
	for _, row := range x.edgeRows {
		x.policy("edge", row, gateway.Source{}, "")
	}
	x.policies(e)
	x.action(e)
}

// edge is the answer of the proxy before any route is looked at; "" when it passes.
func (x *explainer) edge(e gateway.Edge) string {
	path, err := e.NormalizePath(x.rawPath)
	if r, ok := errors.AsType[*gateway.EdgeError](err); ok && (r.Answer == gateway.BadProtocol || r.Answer == gateway.BadSlash) {
		return err.Error()
	}
	if m := x.request.Method; m == http.MethodTrace || m == http.MethodConnect {
		return fmt.Sprintf("405 Method Not Allowed: the edge refuses %s (%s)", m, gateway.BadMethod.Code)
	} else if strings.ContainsFunc(m, func(r rune) bool { return (r < 'A' || r > 'Z') && r != '-' && r != '_' }) {
		return fmt.Sprintf("405 Method Not Allowed (400 Bad Request in HTTP/1.1): the edge refuses the method %q; methods are written in capital letters (%s)", m, gateway.BadMethod.Code)
	}
	if err != nil {
		return err.Error()
	}
	x.request.Path = path
	return x.headers(e)
}

// headers changes the headers as the edge does, and says why it refuses them.
func (x *explainer) headers(e gateway.Edge) string {
	if n := len(x.request.Headers); n > int(e.MaxHeaders) {
		return fmt.Sprintf("431 Request Header Fields Too Large: %d headers, and the listener takes %d (%s)", n, e.MaxHeaders, gateway.TooManyHeaders.Code)
	}
	for _, name := range slices.Sorted(maps.Keys(x.request.Headers)) {
		switch {
		case !strings.Contains(name, "_") || e.Underscores == pb.HeaderUnderscores_HEADER_UNDERSCORES_ALLOW:
		case e.Underscores == pb.HeaderUnderscores_HEADER_UNDERSCORES_REFUSE:
			return fmt.Sprintf("400 Bad Request: the edge refuses header names with _ (%s) (%s)", name, gateway.BadHeaderName.Code)
		default:
			x.changed("%s is dropped: the edge removes headers with _ in their name", name)
			delete(x.request.Headers, name)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(x.request.Headers)) {
		if why := e.Removed(name); why != "" {
			x.changed("%s: %s", name, why)
			delete(x.request.Headers, name)
		}
	}
	return ""
}

// changed notes what the edge does to the request.
func (x *explainer) changed(format string, args ...any) {
	x.edgeRows = append(x.edgeRows, fmt.Sprintf(format, args...))
}

// listener chooses the listener of the URL's scheme and port. Of several, in
// several gateways, the one with the most specific host for the request is taken,
// then the first by name.
func (x *explainer) listener() (*pb.Gateway, *pb.Listener, *gateway.Host) {
	var g *pb.Gateway
	var l *pb.Listener
	var h *gateway.Host
	var others []string
	for _, o := range x.snapshot.List(gateway.KindGateways, x.project) {
		gw := o.(*pb.Gateway)
		for _, li := range gw.GetListeners() {
			if scheme(li) != x.scheme || li.GetPort() != x.port {
				others = append(others, fmt.Sprintf("%s://…:%d (%s of %s)", scheme(li), li.GetPort(), li.GetName(), gw.GetName()))
				continue
			}
			host := x.snapshot.Host(gw.GetName(), li.GetName(), x.request.Host)
			if l == nil || specificity(host) > specificity(h) {
				g, l, h = gw, li, host
			}
		}
	}
	if l == nil {
		there := "project " + x.project + " has no gateway"
		if len(others) > 0 {
			there = "there are " + strings.Join(others, ", ")
		}
		x.out.Outcome = fmt.Sprintf("no listener: nothing listens for %s on port %d; %s", x.scheme, x.port, there)
	}
	return g, l, h
}

// specificity orders hosts that serve one request: exact, longest wildcard, "*".
func specificity(h *gateway.Host) int {
	switch {
	case h == nil:
		return -1
	case h.Hostname == "*":
		return 0
	case strings.HasPrefix(h.Hostname, "*"):
		return len(h.Hostname)
	}
	return 1 << 20
}

func scheme(l *pb.Listener) string {
	if l.GetProtocol() == pb.ListenerProtocol_LISTENER_PROTOCOL_HTTPS {
		return "https"
	}
	return "http"
}

func bracket(address string) string {
	if strings.Contains(address, ":") {
		return "[" + address + "]"
	}
	return address
}

func hostList(hosts []*gateway.Host) string {
	if len(hosts) == 0 {
		return "none"
	}
	var names []string
	for i, h := range hosts {
		if i == 20 {
			names = append(names, fmt.Sprintf("and %d more", len(hosts)-i))
			break
		}
		names = append(names, h.Hostname)
	}
	return strings.Join(names, ", ")
}

// misses says of every other rule of the host why it does not serve the request.
func (x *explainer) misses(h *gateway.Host, served *gateway.Entry) {
	after := false
	for _, e := range h.Entries {
		if e == served {
			after = true
		}
		// Another match of the rule that serves would change nothing.
		if served != nil && e.Rule == served.Rule {
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
