package gateway

import (
	"strings"
	"testing"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// TestNeighbours: a stricter rule beside a wider one to the same backend is told,
// whichever of the two is written; all other pairs are not.
func TestNeighbours(t *testing.T) {
	forward := func(backend string, m *pb.PathMatch, token bool) *pb.RouteRule {
		r := &pb.RouteRule{
			Matches: []*pb.RouteMatch{{Path: m}},
			Action:  &pb.RouteRule_Forward{Forward: &pb.Forward{Backends: []*pb.WeightedBackend{{Backend: backend}}}},
		}
		if token {
			r.Policies = &pb.Policies{Authentication: &pb.AuthenticationPolicy{Jwt: &pb.JwtAuthentication{Issuer: "i", Audiences: []string{"a"}}}}
		}
		return r
	}
	exact := &pb.PathMatch{Match: &pb.PathMatch_Exact{Exact: "/vault"}}
	regex := &pb.PathMatch{Match: &pb.PathMatch_Regex{Regex: "/v/[0-9]+"}}
	prefix := &pb.PathMatch{Match: &pb.PathMatch_Prefix{Prefix: "/vault"}}
	all := &pb.PathMatch{Match: &pb.PathMatch_Prefix{Prefix: "/"}}
	for name, c := range map[string]struct {
		strict, wide *pb.RouteRule
		want         int
	}{
		"exact":           {forward("b", exact, true), forward("b", all, false), 1},
		"regex":           {forward("b", regex, true), forward("b", all, false), 1},
		"prefix":          {forward("b", prefix, true), forward("b", all, false), 0},
		"other backend":   {forward("b", exact, true), forward("c", all, false), 0},
		"both strict":     {forward("b", exact, true), forward("b", all, true), 0},
		"both open":       {forward("b", exact, false), forward("b", all, false), 0},
		"exact elsewhere": {forward("b", exact, true), forward("b", &pb.PathMatch{Match: &pb.PathMatch_Exact{Exact: "/x"}}, false), 0},
	} {
		s := model.Build(nil, 1, Changes{Updates: []Object{
			&pb.Gateway{Name: "projects/p/gateways/g", Listeners: []*pb.Listener{{Name: "a", Port: 80}, {Name: "b", Port: 81}}},
			&pb.Backend{Name: "projects/p/backends/b"}, &pb.Backend{Name: "projects/p/backends/c"},
			&pb.Route{Name: "projects/p/routes/strict", Rules: []*pb.RouteRule{c.strict}},
			&pb.Route{Name: "projects/p/routes/wide", Rules: []*pb.RouteRule{c.wide}, Metadata: &pb.Metadata{Origin: &pb.Origin{File: "wide.yaml", Line: 7}}},
		}})
		for _, changed := range []string{"strict", "wide"} {
			got := s.Neighbours([]string{"projects/p/routes/" + changed})
			if len(got) != c.want || c.want == 1 && (got[0].Object != "projects/p/routes/strict" || !strings.Contains(got[0].Message, "projects/p/routes/wide (wide.yaml:7)")) {
				t.Errorf("%s, %s written: %v", name, changed, got)
			}
		}
	}
}
