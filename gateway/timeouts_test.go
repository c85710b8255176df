package gateway

import (
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// TestShortTimeouts: a route that gives up before its function does is told, whichever of
// the two is written and whatever level says it.
func TestShortTimeouts(t *testing.T) {
	policies := func(d time.Duration) *pb.Policies {
		return &pb.Policies{Timeout: &pb.TimeoutPolicy{Request: durationpb.New(d)}}
	}
	for name, c := range map[string]struct {
		gateway, route, rule *pb.Policies
		function             time.Duration // 0: the default
		from                 string        // "" for no warning
	}{
		"default":             {},
		"rule":                {rule: policies(time.Second), function: 2 * time.Second, from: "rules[0].policies of projects/p/routes/r"},
		"route":               {route: policies(time.Second), function: 2 * time.Second, from: "policies of projects/p/routes/r"},
		"gateway":             {gateway: policies(time.Second), function: 2 * time.Second, from: "policies of projects/p/gateways/g"},
		"the nearer wins":     {gateway: policies(time.Second), rule: policies(3 * time.Second), function: 2 * time.Second},
		"the same":            {rule: policies(2 * time.Second), function: 2 * time.Second},
		"off":                 {rule: policies(0), function: 2 * time.Second},
		"below the default":   {rule: policies(DefaultFunctionTimeout - 1), from: "rules[0].policies"},
		"as long as it takes": {rule: policies(DefaultFunctionTimeout)},
	} {
		f := &pb.Function{Name: "projects/p/functions/f"}
		if c.function > 0 {
			f.Timeout = durationpb.New(c.function)
		}
		s := model.Build(nil, 1, Changes{Updates: []Object{
			&pb.Gateway{Name: "projects/p/gateways/g", Policies: c.gateway, Listeners: []*pb.Listener{{Name: "a", Port: 80}, {Name: "b", Port: 81}}},
			f,
			&pb.Backend{Name: "projects/p/backends/b"},
			&pb.Route{Name: "projects/p/routes/r", Policies: c.route, Rules: []*pb.RouteRule{
				{Policies: c.rule, Action: &pb.RouteRule_Forward{Forward: &pb.Forward{Backends: []*pb.WeightedBackend{{Backend: "functions/f"}}}}},
				{Policies: policies(1), Action: &pb.RouteRule_Forward{Forward: &pb.Forward{Backends: []*pb.WeightedBackend{{Backend: "b"}}}}},
			}},
		}})
		for _, written := range []string{"projects/p/routes/r", "projects/p/functions/f"} {
			got := s.PolicyWarnings([]string{written})
			switch {
			case c.from == "" && len(got) == 0:
			case c.from != "" && len(got) == 1 && got[0].Field == "rules[0]" && strings.Contains(got[0].Message, "("+c.from):
			default:
				t.Errorf("%s, %s written: %v; want %q", name, written, got, c.from)
			}
		}
		if got := s.PolicyWarnings([]string{"projects/p/backends/b"}); got != nil {
			t.Errorf("%s, a backend written: %v", name, got)
		}
	}
}
