package gateway

import (
	"strings"
	"testing"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// TestUnattached: why no listener serves a route.
func TestUnattached(t *testing.T) {
	wild := &pb.Gateway{Name: "projects/p/gateways/wild", Listeners: []*pb.Listener{{Name: "a", Port: 80, Hostnames: []string{"*.x.test", "b.test"}}}}
	all := &pb.Gateway{Name: "projects/p/gateways/all", Listeners: []*pb.Listener{{Name: "a", Port: 81}}}
	for name, c := range map[string]struct {
		route    *pb.Route
		gateways []Object
		want     string
	}{
		"served":            {&pb.Route{}, []Object{all}, ""},
		"by a wildcard":     {&pb.Route{Hostnames: []string{"a.x.test"}}, []Object{wild}, ""},
		"by one of several": {&pb.Route{Hostnames: []string{"c.test"}}, []Object{wild, all}, ""},
		"any host":          {&pb.Route{}, []Object{wild}, ""},
		"no gateway":        {&pb.Route{}, nil, "its project has no Gateway"},
		"in another project": {&pb.Route{}, []Object{&pb.Gateway{Name: "projects/q/gateways/all", Listeners: all.Listeners}},
			"its project has no Gateway"},
		"other hosts":           {&pb.Route{Hostnames: []string{"c.test", "x.test"}}, []Object{wild}, "its hostnames are c.test, x.test, those of the listeners of wild are *.x.test, b.test"},
		"another gateway":       {&pb.Route{Hostnames: []string{"c.test"}, Gateways: []string{"wild"}}, []Object{wild, all}, "those of the listeners of wild are"},
		"one that is not there": {&pb.Route{Gateways: []string{"none"}}, []Object{all}, "there is no Gateway none in its project"},
	} {
		c.route.Name = "projects/p/routes/r"
		s := model.Build(nil, 1, Changes{Updates: append([]Object{c.route}, c.gateways...)})
		got := s.Unattached(c.route)
		if (got == "") != (c.want == "") || !strings.Contains(got, c.want) || got != "" && !strings.HasPrefix(got, "attached to no listener: ") {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
		if n := len(s.UnattachedRoutes(nil)); (n == 1) != (c.want != "") {
			t.Errorf("%s: %d routes", name, n)
		}
	}
}
