package gateway

import (
	"strings"
	"testing"

	"pgregory.net/rapid"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// TestShadowed: matches that no request reaches, and which one takes their requests.
func TestShadowed(t *testing.T) {
	route := func(name, match string, listed bool, hosts ...string) *pb.Route {
		r := &pb.Route{Name: "projects/p/routes/" + name, Hostnames: hosts, Rules: []*pb.RouteRule{{
			Matches: []*pb.RouteMatch{matchOf(t, match)},
			Action:  &pb.RouteRule_DirectResponse{DirectResponse: &pb.DirectResponse{Status: 200}},
		}}}
		if listed {
			r.RuleOrder = pb.RuleOrder_RULE_ORDER_AS_LISTED
		}
		return r
	}
	for name, c := range map[string]struct {
		a, b *pb.Route
		want string
	}{
		"duplicate":            {route("a", `{'path': {'prefix': '/x'}}`, false), route("b", `{'path': {'prefix': '/x'}}`, false), "has the same match and comes first"},
		"more specific":        {route("a", `{'path': {'prefix': '/x'}}`, false), route("b", `{'path': {'prefix': '/x/y'}}`, false), ""},
		"other hosts":          {route("a", `{'path': {'prefix': '/x'}}`, false, "h.test"), route("b", `{'path': {'prefix': '/x'}}`, false, "i.test"), ""},
		"listed, wider":        {route("a", `{'path': {'prefix': '/x'}}`, true), route("b", `{'path': {'exact': '/x/y'}}`, false), "takes all of its requests"},
		"listed, other method": {route("a", `{'path': {'prefix': '/x'}, 'methods': ['GET']}`, true), route("b", `{'path': {'exact': '/x/y'}}`, false), ""},
	} {
		s := model.Build(nil, 1, Changes{Updates: []Object{
			&pb.Gateway{Name: "projects/p/gateways/g", Listeners: []*pb.Listener{{Name: "a", Port: 80}, {Name: "b", Port: 81}}}, c.a, c.b,
		}})
		for _, written := range []Object{c.a, c.b} {
			got := s.Shadowed([]string{written.GetName()})
			if (len(got) == 1) != (c.want != "") || len(got) > 1 ||
				len(got) == 1 && (got[0].Object != c.b.GetName() || got[0].Field != "rules[0].matches[0]" || !strings.Contains(got[0].Message, "projects/p/routes/a "+c.want)) {
				t.Errorf("%s: %v, want %q", name, got, c.want)
			}
		}
		if got := s.Shadowed([]string{c.a.GetName(), c.b.GetName()}); (len(got) == 1) != (c.want != "") {
			t.Errorf("%s, both: %v", name, got)
		}
	}
}

// TestCovers: whatever request the covered match takes, the other one takes, too.
func TestCovers(t *testing.T) {
	paths := []string{"/", "/a", "/a/", "/A", "/a/b", "/ab", "/a/b/c", "/aB/", "/b"}
	pathOf := func(t *rapid.T, label string) *pb.PathMatch {
		text := rapid.SampledFrom(paths).Draw(t, label)
		p := &pb.PathMatch{IgnoreCase: rapid.Bool().Draw(t, label+" case")}
		switch rapid.IntRange(0, 4).Draw(t, label+" kind") {
		case 0:
			p.Match = &pb.PathMatch_Exact{Exact: text}
		case 1:
			p.Match = &pb.PathMatch_Prefix{Prefix: text}
		case 2:
			p.Match = &pb.PathMatch_TextPrefix{TextPrefix: text}
		case 3:
			p.Match, p.IgnoreCase = &pb.PathMatch_Regex{Regex: text + ".*"}, false
		default:
			return nil
		}
		return p
	}
	methods := []string{"GET", "POST", "PUT"}
	draw := func(t *rapid.T, label string) *pb.RouteMatch {
		m := &pb.RouteMatch{Path: pathOf(t, label), Methods: rapid.SliceOfNDistinct(rapid.SampledFrom(methods), 0, 2, rapid.ID[string]).Draw(t, label+" methods")}
		if rapid.Bool().Draw(t, label+" header") {
			m.Headers = []*pb.HeaderMatch{{Name: "x-a", Value: &pb.StringMatch{Match: &pb.StringMatch_Exact{Exact: rapid.SampledFrom([]string{"1", "2"}).Draw(t, label+" value")}}}}
		}
		return m
	}
	found := 0
	rapid.Check(t, func(t *rapid.T) {
		a, b := draw(t, "a"), draw(t, "b")
		if !covers(a, b) {
			return
		}
		found++
		for _, path := range append(paths, "/a/x", "/ax", "/A/B", "/A/b/c/d", "/a/bc") {
			for _, method := range methods {
				for _, value := range []string{"", "1", "2"} {
					r := &Request{Method: method, Host: "h.test", Path: path}
					if value != "" {
						r.Headers = map[string][]string{"x-a": {value}}
					}
					if Mismatch(b, r) == "" && Mismatch(a, r) != "" {
						t.Fatalf("%v is said to take all of %v, but not %s %s with %q", a, b, method, path, value)
					}
				}
			}
		}
	})
	if found == 0 {
		t.Error("no match that another covers was drawn")
	}
}
