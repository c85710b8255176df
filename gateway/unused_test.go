package gateway

import (
	"strings"
	"testing"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

func TestUnused(t *testing.T) {
	const in = "projects/p/"
	forward := func(backend string) *pb.RouteRule {
		return &pb.RouteRule{Action: &pb.RouteRule_Forward{Forward: &pb.Forward{Backends: []*pb.WeightedBackend{{Backend: backend}}}}}
	}
	objects := []Object{
		&pb.Gateway{Name: in + "gateways/g", Listeners: []*pb.Listener{{Name: "http", Port: 80}}},
		&pb.Route{Name: in + "routes/r", Rules: []*pb.RouteRule{forward("backends/used")}},
		&pb.Backend{Name: in + "backends/used"}, &pb.Backend{Name: in + "backends/left"},
		&pb.Function{Name: in + "functions/f", EnvSecrets: map[string]*pb.SecretKey{"A": {Secret: "secrets/used", Key: "k"}}},
		&pb.Secret{Name: in + "secrets/used"}, &pb.Secret{Name: in + "secrets/left"}, &pb.Secret{Name: DevIssuerSecret},
		&pb.Consumer{Name: in + "consumers/left", Jwt: &pb.JwtIdentity{Issuer: "i", Subject: "s"}},
	}
	s := model.Build(nil, 1, Changes{Updates: objects})
	var names []string
	for _, o := range objects {
		names = append(names, o.GetName())
	}
	var got []string
	for _, p := range s.Unused(names) {
		got = append(got, strings.TrimPrefix(p.Object, in))
	}
	if text := strings.Join(got, " "); text != "backends/left secrets/left consumers/left" {
		t.Errorf("unused: %s", text)
	}
	if p := s.Unused([]string{in + "secrets/used", in + "secrets/gone"}); len(p) != 0 {
		t.Errorf("of what is used, or is not there: %v", p)
	}
}

// TestDetached: a change of a Gateway names the routes that it leaves without a listener.
func TestDetached(t *testing.T) {
	gateway := func(hosts ...string) *pb.Gateway {
		return &pb.Gateway{Name: "projects/p/gateways/g", Listeners: []*pb.Listener{{Name: "http", Port: 80, Hostnames: hosts}}}
	}
	route := func(id, host string) *pb.Route {
		return &pb.Route{Name: "projects/p/routes/" + id, Hostnames: []string{host}, Rules: []*pb.RouteRule{{Action: &pb.RouteRule_DirectResponse{DirectResponse: &pb.DirectResponse{Status: 200}}}}}
	}
	before := model.Build(nil, 1, Changes{Updates: []Object{gateway("a.test", "b.test"), route("a", "a.test"), route("b", "b.test"), route("never", "c.test")}})
	for _, c := range []struct {
		what    string
		changes Changes
		names   []string
		want    string
	}{
		{"a host that is taken away", Changes{Updates: []Object{gateway("a.test")}}, []string{"projects/p/gateways/g"}, "projects/p/routes/b"},
		{"the gateway is deleted", Changes{Deletes: []string{"projects/p/gateways/g"}}, []string{"projects/p/gateways/g"}, "projects/p/routes/a projects/p/routes/b"},
		{"a route that is itself written", Changes{Updates: []Object{gateway("a.test"), route("b", "b.test")}}, []string{"projects/p/gateways/g", "projects/p/routes/b"}, ""},
		{"nothing is lost", Changes{Updates: []Object{gateway("*.test")}}, []string{"projects/p/gateways/g"}, ""},
		{"a route alone", Changes{Updates: []Object{route("a", "x.test")}}, []string{"projects/p/routes/a"}, ""},
	} {
		after := model.Build(before, 2, c.changes)
		var got []string
		for _, p := range after.Detached(before, c.names) {
			got = append(got, p.Object)
			if !strings.Contains(p.Message, "attached to no listener") {
				t.Errorf("%s: %s", c.what, p.Message)
			}
		}
		if text := strings.Join(got, " "); text != c.want {
			t.Errorf("%s: %q, want %q", c.what, text, c.want)
		}
	}
}
