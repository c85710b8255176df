package compile

import (
	"slices"
	"strings"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/proto"

	"github.com/penstock-gateway/penstock/gateway"
	"github.com/penstock-gateway/penstock/gateway/policy/retry"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// maxVariants bounds the routes that one entry becomes for its inverted headers.
const maxVariants = 16

// grpcEntry compiles one entry for gRPC clients.
type grpcEntry struct {
	e *gateway.Entry
	// why says what the clients cannot do, so that the routes are answered
	// UNAVAILABLE; "" for nothing, or when the entry is not for gRPC anyway.
	why     string
	targets []gateway.Target
}

// routes are none when no gRPC call can match the entry: those are all POST, and
// their URLs have no query.
func (c *grpcEntry) routes() []*routev3.Route {
	m := c.e.Match
	if methods := m.GetMethods(); len(methods) > 0 && !slices.Contains(methods, "POST") {
		return nil
	}
	for _, q := range m.GetQuery() {
		if stringMatcher(q.GetValue()) != nil || q.GetValue().GetPresent() {
			return nil
		}
	}
	cannot := cannotDo(c.e)
	conditions, ok := grpcHeaders(m.GetHeaders())
	if !ok {
		// Whatever may match it is not let through to the entries after it.
		conditions = [][]*routev3.HeaderMatcher{nil}
		cannot = append(cannot, "match these headers")
	}
	var action *routev3.RouteAction
	if forGRPC(c.e) && len(cannot) == 0 {
		action = c.action()
	} else if forGRPC(c.e) || !ok {
		c.why = strings.Join(cannot, ", ")
	}
	var out []*routev3.Route
	for _, v := range pathVariants(m.GetPath(), "") {
		for _, path := range grpcPaths(v.match) {
			for _, headers := range conditions {
				match := proto.CloneOf(path)
				match.Headers = headers
				r := &routev3.Route{Name: routeName(c.e), Match: match}
				if action != nil {
					r.Action = &routev3.Route_Route{Route: action}
				} else {
					// gRPC fails calls whose route has an action that it does not know (gRFC
					// A28).
					r.Action = directResponse(503, "")
				}
				out = append(out, r)
			}
		}
	}
	return out
}

// cannotDo is what an entry asks for and a gRPC client does not do.
func cannotDo(e *gateway.Entry) (out []string) {
	for _, p := range chain().policies {
		if cannot := p.CannotDo(e.Policies); cannot != "" {
			out = append(out, cannot)
		}
	}
	f := e.Rule.GetForward()
	if f.GetPrefixRewrite() != "" {
		out = append(out, "rewrite paths (prefix_rewrite)")
	}
	if f.GetHostRewrite() != "" {
		out = append(out, "rewrite hosts (host_rewrite)")
	}
	if f != nil && slices.ContainsFunc(e.Backends, func(t gateway.Target) bool { return !speaksH2C(t) }) {
		out = append(out, "call what speaks HTTP/1.1 (a function, or a backend whose protocol is not H2C)")
	}
	if e.Problem != "" {
		out = append(out, "be served ("+e.Problem+")")
	}
	return out
}

// action is that of a forward; nil when no backend has a weight, which is a problem
// of the route itself.
func (c *grpcEntry) action() *routev3.RouteAction {
	p := &part{}
	all, err := forwardAction(p, c.e, c.e.Rule.GetForward(), nil)
	if err != nil {
		return nil
	}
	c.targets = p.targets
	a := &routev3.RouteAction{ClusterSpecifier: all.GetClusterSpecifier()}
	// gRPC knows no bound but that of the whole call, which would end streams.
	a.MaxStreamDuration = all.GetMaxStreamDuration()
	a.RetryPolicy = retry.ForGRPC(retry.Policy.Of(c.e.Policies).Merged)
	return a
}

// grpcPaths says a match of a path in the words of gRPC, which has no prefix that
// ends between segments.
func grpcPaths(m *routev3.RouteMatch) []*routev3.RouteMatch {
	prefix := m.GetPathSeparatedPrefix()
	if prefix == "" {
		return []*routev3.RouteMatch{m}
	}
	return []*routev3.RouteMatch{
		{PathSpecifier: &routev3.RouteMatch_Path{Path: prefix}, CaseSensitive: m.GetCaseSensitive()},
		{PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: prefix + "/"}, CaseSensitive: m.GetCaseSensitive()},
	}
}

// grpcHeaders are the conditions on headers, one list for each route that is
// needed: with gRPC a header that is not there matches nothing, inverted or not. It
// returns false for what cannot be said: gRPC does not show some headers to its
// matchers.
func grpcHeaders(all []*pb.HeaderMatch) ([][]*routev3.HeaderMatcher, bool) {
	out := [][]*routev3.HeaderMatcher{nil}
	for _, h := range all {
		if !grpcSees(h.GetName()) {
			return nil, false
		}
		m := headerMatcher(h)
		m.TreatMissingHeaderAsEmpty = false
		ways := []*routev3.HeaderMatcher{m}
		if h.GetInvert() {
			missing := &routev3.HeaderMatcher{Name: m.GetName(), HeaderMatchSpecifier: &routev3.HeaderMatcher_PresentMatch{PresentMatch: false}}
			if _, presence := m.GetHeaderMatchSpecifier().(*routev3.HeaderMatcher_PresentMatch); presence {
				missing.HeaderMatchSpecifier = &routev3.HeaderMatcher_PresentMatch{PresentMatch: !m.GetPresentMatch()}
				ways = []*routev3.HeaderMatcher{missing}
			} else {
				ways = append(ways, missing)
			}
		}
		var next [][]*routev3.HeaderMatcher
		for _, before := range out {
			for _, way := range ways {
				next = append(next, append(slices.Clone(before), way))
			}
		}
		if out = next; len(out) > maxVariants {
			return nil, false
		}
	}
	return out, true
}

// grpcSees reports whether gRPC's matchers see a header: the metadata of the call,
// which has neither what the transport adds nor, by its rule, binary values.
func grpcSees(name string) bool {
	name = strings.ToLower(name)
	switch name {
	case "host", "user-agent", "te", "connection", "content-length":
		return false
	}
	return !strings.HasPrefix(name, ":") && !strings.HasPrefix(name, "grpc-") && !strings.HasSuffix(name, "-bin")
}
