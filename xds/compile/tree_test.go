package compile

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/types/known/wrapperspb"
	"pgregory.net/rapid"

	"github.com/penstock-gateway/penstock/gateway"
	"github.com/penstock-gateway/penstock/gateway/policies"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// firstOf is the position of the first of routes that matches, as Envoy tries them;
// -1 for none. Requests have a path and headers.
func firstOf(routes []*routev3.Route, path string, headers map[string]string) int {
	bare, _, _ := strings.Cut(path, "?")
	return slices.IndexFunc(routes, func(r *routev3.Route) bool {
		m := r.GetMatch()
		for _, h := range m.GetHeaders() {
			if headers[h.GetName()] != h.GetStringMatch().GetExact() {
				return false
			}
		}
		fold := func(s string) string { return s }
		if m.GetCaseSensitive() != nil && !m.GetCaseSensitive().GetValue() {
			fold = strings.ToLower
		}
		has := func(p string) bool { return strings.HasPrefix(fold(bare), fold(p)) }
		switch s := m.GetPathSpecifier().(type) {
		case *routev3.RouteMatch_Path:
			return fold(bare) == fold(s.Path)
		case *routev3.RouteMatch_Prefix:
			return has(s.Prefix)
		case *routev3.RouteMatch_PathSeparatedPrefix:
			return has(s.PathSeparatedPrefix) && (len(bare) == len(s.PathSeparatedPrefix) || bare[len(s.PathSeparatedPrefix)] == '/')
		case *routev3.RouteMatch_SafeRegex:
			return regexp.MustCompile("^(?:" + s.SafeRegex.GetRegex() + ")$").MatchString(bare)
		}
		return false
	})
}

// firstIn is firstOf for a tree: the longest prefix, then its list, and nothing else.
func firstIn(m branches, routes []*routev3.Route, path string, headers map[string]string) int {
	best := -1
	for i, b := range m.out {
		if strings.HasPrefix(path, b.prefix) && (best < 0 || len(b.prefix) > len(m.out[best].prefix)) {
			best = i
		}
	}
	if best < 0 {
		return -1
	}
	var list []*routev3.Route
	for _, i := range m.out[best].routes {
		list = append(list, routes[i])
	}
	if i := firstOf(list, path, headers); i >= 0 {
		return m.out[best].routes[i]
	}
	return -1
}

// TestTree: whatever the routes, their order and the request, tree and list give the
// same route.
func TestTree(t *testing.T) {
	// Few letters, so that prefixes meet.
	text := rapid.StringMatching(`/([abA]{0,2}/?){0,3}`)
	match := rapid.Custom(func(t *rapid.T) *pb.RouteMatch {
		m := &pb.RouteMatch{Path: &pb.PathMatch{}}
		switch p := text.Draw(t, "path"); rapid.IntRange(0, 5).Draw(t, "kind") {
		case 0:
			m.Path.Match = &pb.PathMatch_Exact{Exact: p}
		case 1, 2:
			m.Path.Match = &pb.PathMatch_Prefix{Prefix: p}
		case 3:
			m.Path.Match = &pb.PathMatch_TextPrefix{TextPrefix: p}
		case 4:
			m.Path.Match = &pb.PathMatch_Regex{Regex: p + rapid.SampledFrom([]string{"", "a*", "|/b", "[ab]+/", ".*", "?", "(?i)b"}).Draw(t, "regex")}
		case 5:
			m.Path = nil
		}
		if rapid.IntRange(0, 4).Draw(t, "any case") == 0 && m.GetPath() != nil && m.GetPath().GetRegex() == "" {
			m.Path.IgnoreCase = true
		}
		if rapid.IntRange(0, 2).Draw(t, "header") == 0 {
			m.Headers = []*pb.HeaderMatch{{Name: "x", Value: &pb.StringMatch{Match: &pb.StringMatch_Exact{Exact: "1"}}}}
		}
		return m
	})
	rapid.Check(t, func(t *rapid.T) {
		var routes []*routev3.Route
		for _, m := range rapid.SliceOfN(match, 1, 40).Draw(t, "matches") {
			for _, v := range pathVariants(m.GetPath(), rapid.SampledFrom([]string{"", "/"}).Draw(t, "rewrite")) {
				conditions(v.match, m, nil)
				routes = append(routes, &routev3.Route{Match: v.match})
			}
		}
		limits := treeLimits{leaf: rapid.IntRange(0, 12).Draw(t, "leaf"), regex: rapid.IntRange(1, 4).Draw(t, "regex cost")}
		b := branches{out: limits.grow(routes)}
		for range 20 {
			path := text.Draw(t, "request") + rapid.SampledFrom([]string{"", "?", "?/a", "b", "/"}).Draw(t, "end")
			headers := map[string]string{"x": rapid.SampledFrom([]string{"", "1"}).Draw(t, "x")}
			if got, want := firstIn(b, routes, path, headers), firstOf(routes, path, headers); got != want {
				t.Fatalf("%s %v: route %d, in the list %d\n%v\n%v", path, headers, got, want, routes, b.out)
			}
		}
	})
}

// TestPathPrefix: what every path that a match can match begins with.
func TestPathPrefix(t *testing.T) {
	re := func(s string) *routev3.RouteMatch {
		return pathVariants(&pb.PathMatch{Match: &pb.PathMatch_Regex{Regex: s}}, "")[0].match
	}
	anyCase := func(m *routev3.RouteMatch) *routev3.RouteMatch {
		m.CaseSensitive = wrapperspb.Bool(false)
		return m
	}
	prefix := func(s string) *routev3.RouteMatch {
		return &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: s}}
	}
	for _, c := range []struct {
		match *routev3.RouteMatch
		want  string
	}{
		{prefix("/a"), "/a"},
		{anyCase(prefix("/1/a2")), "/1/"},
		{re("/a/[0-9]+"), "/a/"},
		{re("/a/b?"), "/a/"},
		{re("/a/(b|c)"), "/a/"},
		{re("/a|/b"), "/"},
		{re("(?i)/a"), "/"},
		{re("^/a/.*$"), "/a/"},
		{re(".*"), ""},
		{re(`/a\xc3\xa9/.*`), "/a"},
		{re(`/\C`), ""}, // Envoy knows it, Go does not
	} {
		if got := pathPrefix(c.match); !strings.HasPrefix(c.want, got) || got != c.want && c.match.GetSafeRegex() == nil {
			t.Errorf("%v: %q, want %q", c.match, got, c.want)
		}
	}
	if got := pathPrefix(re("/a/[0-9]+")); got != "/a/" {
		t.Errorf("the expression's beginning is not used: %q", got)
	}
}

// TestTreePlan: when a host becomes a tree, and what that costs.
func TestTreePlan(t *testing.T) {
	routes := func(n int, format string, kind func(string) *pb.PathMatch) (out []*routev3.Route) {
		for i := range n {
			s := format
			if strings.Contains(format, "%d") {
				s = fmt.Sprintf(format, i)
			}
			out = append(out, &routev3.Route{Match: pathVariants(kind(s), "")[0].match})
		}
		return append(out, &routev3.Route{Match: &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: "/"}}})
	}
	prefix := func(s string) *pb.PathMatch { return &pb.PathMatch{Match: &pb.PathMatch_Prefix{Prefix: s}} }
	re := func(s string) *pb.PathMatch { return &pb.PathMatch{Match: &pb.PathMatch_Regex{Regex: s}} }
	for name, c := range map[string]struct {
		routes []*routev3.Route
		tree   bool
	}{
		"few":                   {routes(199, "/r%d", prefix), false},
		"many":                  {routes(200, "/r%d", prefix), true},
		"few expressions":       {routes(19, "/r%d/[0-9]+", re), false},
		"many expressions":      {routes(40, "/r%d/[0-9]+", re), true},
		"expressions of no use": {routes(400, ".*/r%d", re), false},
		"all the same path":     {routes(400, "/same", prefix), false},
	} {
		plan := trees.plan(c.routes)
		if (plan != nil) != c.tree {
			t.Errorf("%s: a tree %v, want %v", name, plan != nil, c.tree)
		}
		held := 0
		for _, b := range plan {
			held += len(b.routes)
		}
		if held > 2*len(c.routes) {
			t.Errorf("%s: %d routes became %d", name, len(c.routes), held)
		}
	}
}

// TestTreeEntries: each route of a tree is under the entries of all security filters.
func TestTreeEntries(t *testing.T) {
	SetTrees(t, 2)
	route := &pb.Route{Name: "projects/default/routes/r"}
	for i := range 40 {
		r := &pb.RouteRule{
			Matches: []*pb.RouteMatch{{Path: &pb.PathMatch{Match: &pb.PathMatch_Prefix{Prefix: fmt.Sprintf("/r%02d", i)}}}},
			Action:  &pb.RouteRule_DirectResponse{DirectResponse: &pb.DirectResponse{Status: 200}},
		}
		if i%3 == 0 {
			r.Policies = &pb.Policies{Authentication: &pb.AuthenticationPolicy{Jwt: &pb.JwtAuthentication{
				Issuer: "https://issuer.test", Audiences: []string{"app"}, Keys: &pb.JwtAuthentication_Jwks{Jwks: "{}"},
			}}}
		}
		route.Rules = append(route.Rules, r)
	}
	s := policies.Model().Build(nil, 1, gateway.Changes{Updates: []gateway.Object{
		&pb.Gateway{Name: "projects/default/gateways/g", Listeners: []*pb.Listener{{Name: "http", Port: 80}}}, route,
	}})
	u := compileHost(s, s.Hosts("projects/default/gateways/g", "http")[0], nil, nil)
	if len(u.vhost.GetRoutes()) != 0 || u.vhost.GetMatcher() == nil || len(u.problems) != 0 {
		t.Fatalf("no tree: %v %v", u.vhost, u.problems)
	}
	seen := map[string]bool{}
	branches := u.vhost.GetMatcher().GetMatcherTree().GetPrefixMatchMap().GetMap()
	for prefix, on := range branches {
		list := &routev3.RouteList{}
		if err := on.GetAction().GetTypedConfig().UnmarshalTo(list); err != nil {
			t.Fatal(err)
		}
		for _, r := range list.GetRoutes() {
			seen[r.GetName()] = true
			if err := chain().check("default", u.vhost.GetTypedPerFilterConfig(), r.GetTypedPerFilterConfig()); err != nil {
				t.Errorf("%s %s: %v", prefix, r.GetName(), err)
			}
		}
		if last := list.GetRoutes()[len(list.GetRoutes())-1]; last.GetName() != "penstock/no-route" {
			t.Errorf("%s: the last route is %s", prefix, last.GetName())
		}
	}
	if len(seen) != 41 || len(branches) < 4 {
		t.Errorf("%d routes in %d branches", len(seen), len(branches))
	}
}
