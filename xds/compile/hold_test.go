package compile

import (
	"slices"
	"strings"
	"testing"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/proto"

	"github.com/penstock-gateway/penstock/gateway"
	"github.com/penstock-gateway/penstock/gateway/policies"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
	"github.com/penstock-gateway/penstock/xds"
)

// holdObjects are a gateway, a backend and a route of two rules.
func holdObjects(regex, cluster string) []gateway.Object {
	forward := &pb.RouteRule_Forward{Forward: &pb.Forward{Backends: []*pb.WeightedBackend{{Backend: cluster, Weight: 1}}}}
	backend := func(name string) *pb.Backend {
		return &pb.Backend{Name: "projects/default/backends/" + name, Target: &pb.Backend_Dns{Dns: &pb.DnsTarget{Hostname: "up.test", Port: 80}}}
	}
	return []gateway.Object{
		&pb.Gateway{Name: "projects/default/gateways/g", Listeners: []*pb.Listener{{Name: "http", Port: 80}}}, backend("old"), backend("new"),
		&pb.Route{Name: "projects/default/routes/r", Hostnames: []string{"a.test", "b.test"}, Rules: []*pb.RouteRule{
			{Name: "bad", Matches: []*pb.RouteMatch{{Path: &pb.PathMatch{Match: &pb.PathMatch_Regex{Regex: regex}}}}, Action: forward},
			{Name: "good", Matches: []*pb.RouteMatch{{Path: &pb.PathMatch{Match: &pb.PathMatch_Prefix{Prefix: "/good"}}}}, Action: forward},
		}},
	}
}

// TestHolds: what is held has something else in its place, in the hosts that it is
// held in, and only for as long as it is what it is.
func TestHolds(t *testing.T) {
	view := View{Project: "default", Gateway: "-"}
	before := policies.Model().Build(nil, 1, gateway.Changes{Updates: holdObjects("/old/.*", "old")})
	after := policies.Model().Build(before, 2, gateway.Changes{Updates: holdObjects("/new/.*x", "new")})
	c := New(Settings{})
	route := func(in Input, host, name string) *routev3.Route {
		t.Helper()
		g, problems := c.Compile(in)
		if len(problems) > 0 {
			t.Fatal(problems)
		}
		fresh, _ := New(Settings{}).Compile(in)
		r := g.Get(xds.Route, "default/g/http/"+host)
		if f := fresh.Get(xds.Route, r.Name); f.Version != r.Version || !slices.Equal(f.Refs, r.Refs) {
			t.Fatalf("%s differs from that of a fresh compiler", r.Name)
		}
		rc := &routev3.RouteConfiguration{}
		if err := r.Body.UnmarshalTo(rc); err != nil {
			t.Fatal(err)
		}
		for _, x := range rc.GetVirtualHosts()[0].GetRoutes() {
			if x.GetName() == "projects/default/routes/"+name {
				if err := chain().check("default", rc.GetVirtualHosts()[0].GetTypedPerFilterConfig(), x.GetTypedPerFilterConfig()); err != nil {
					t.Error(err)
				}
				return x
			}
		}
		return nil
	}
	parts := func(s *gateway.Snapshot) map[string]Part {
		t.Helper()
		g, _ := New(Settings{}).Compile(Input{Snapshot: s, View: view})
		all, err := Parts(s, view, g.Get(xds.Route, "default/g/http/a.test"))
		if err != nil {
			t.Fatal(err)
		}
		out := map[string]Part{}
		for _, p := range all {
			out[strings.TrimPrefix(p.Name, "projects/default/routes/")] = p
		}
		return out
	}
	key := HostKey("projects/default/gateways/g", "http", "a.test")
	old, now := parts(before), parts(after)
	bad := now["r/bad/0"]
	if len(now) != 2 || bad.Field != "rules[0]" || len(bad.Hosts) != 1 || !bad.Hosts[key].Contains("/new/.*x") || bad.Hosts[key].Hash == old["r/bad/0"].Hosts[key].Hash {
		t.Fatalf("%v", now)
	}
	in := Input{Snapshot: after, View: view}
	hold := func(h Hold) {
		h.Form = bad.Hosts[key].Hash
		in.Holds = map[string]*Holds{key: {bad.Name: h}}
	}
	if r := route(in, "a.test", "r/bad/0"); r.GetMatch().GetSafeRegex().GetRegex() != "/new/.*x" {
		t.Errorf("nothing held: %v", r)
	}
	hold(Hold{Instead: old["r/bad/0"].Hosts[key]})
	if r := route(in, "a.test", "r/bad/0"); r.GetMatch().GetSafeRegex().GetRegex() != "/old/.*" || r.GetRoute().GetCluster() != "projects/default/backends/old" {
		t.Errorf("the form before: %v", r)
	}
	g, _ := c.Compile(in)
	if g.Get(xds.Cluster, "projects/default/backends/old") == nil || !slices.Contains(g.Get(xds.Route, "default/g/http/a.test").Refs, xds.Ref{Type: xds.Cluster, Name: "projects/default/backends/old"}) {
		t.Error("the backend of what serves is not there")
	}
	if r := route(in, "a.test", "r/good/0"); r.GetRoute().GetCluster() != "projects/default/backends/new" {
		t.Errorf("the one beside it: %v", r)
	}
	if r := route(in, "b.test", "r/bad/0"); r.GetMatch().GetSafeRegex().GetRegex() != "/new/.*x" {
		t.Errorf("the other host: %v", r)
	}
	hold(Hold{})
	if r := route(in, "a.test", "r/bad/0"); r.GetDirectResponse().GetStatus() != 503 || r.GetMatch().GetSafeRegex().GetRegex() != "/new/.*x" {
		t.Errorf("503: %v", r)
	}
	hold(Hold{Wide: true})
	if r := route(in, "a.test", "r/bad/0"); r.GetDirectResponse().GetStatus() != 503 || r.GetMatch().GetPrefix() != "/new/" {
		t.Errorf("503 for all that may be meant: %v", r)
	}
	hold(Hold{Out: true})
	if r := route(in, "a.test", "r/bad/0"); r != nil {
		t.Errorf("left out: %v", r)
	}
	in.Snapshot = policies.Model().Build(after, 3, gateway.Changes{Updates: holdObjects("/mended/.*", "new")})
	if r := route(in, "a.test", "r/bad/0"); r.GetMatch().GetSafeRegex().GetRegex() != "/mended/.*" {
		t.Errorf("changed: %v", r)
	}
}

// TestGuards: what keeps requests from a backend, and whether something else does.
func TestGuards(t *testing.T) {
	objects := holdObjects("/x", "old")
	r := objects[3].(*pb.Route)
	token := &pb.Policies{Authentication: &pb.AuthenticationPolicy{Jwt: &pb.JwtAuthentication{Issuer: "https://issuer.test", Audiences: []string{"app"}, Keys: &pb.JwtAuthentication_Jwks{Jwks: "{}"}}}}
	add := func(name string, change func(*pb.RouteRule)) {
		rule := proto.CloneOf(r.GetRules()[1])
		rule.Name = name
		change(rule)
		r.Rules = append(r.Rules, rule)
	}
	answer := func(status uint32) func(*pb.RouteRule) {
		return func(x *pb.RouteRule) {
			x.Action = &pb.RouteRule_DirectResponse{DirectResponse: &pb.DirectResponse{Status: status}}
		}
	}
	add("token", func(x *pb.RouteRule) { x.Policies = token })
	add("token2", func(x *pb.RouteRule) {
		x.Policies = proto.CloneOf(token)
		x.Policies.Authentication.Jwt.Audiences = []string{"other"}
	})
	add("forbidden", answer(403))
	add("hello", answer(200))
	add("away", func(x *pb.RouteRule) { x.Action = &pb.RouteRule_Redirect{Redirect: &pb.Redirect{Host: "b.test"}} })
	add("moved", func(x *pb.RouteRule) {
		x.Matches[0].Path.Match = &pb.PathMatch_Prefix{Prefix: "/moved"}
		x.Policies = token
	})
	s := policies.Model().Build(nil, 1, gateway.Changes{Updates: objects})
	h := s.Hosts("projects/default/gateways/g", "http")[0]
	forms := map[string]*Form{}
	for _, e := range h.Entries {
		forms[e.RuleName] = newHostCompiler("default", s, h).form(e)
	}
	for name, want := range map[string]bool{"good": false, "bad": false, "token": true, "forbidden": true, "hello": false, "away": true, "moved": true} {
		if got := forms[name].Guards(); got != want {
			t.Errorf("%s guards: %v", name, got)
		}
	}
	for _, c := range []struct {
		now, old string
		want     bool
	}{
		{"token", "token", true}, {"token", "good", true}, {"good", "token", false}, {"moved", "token", false}, {"hello", "forbidden", false}, {"hello", "hello", true},
		{"forbidden", "away", true}, {"gone", "token", false},
	} {
		if got := forms[c.now].Covers(forms[c.old]); got != c.want {
			t.Errorf("%s covers %s: %v", c.now, c.old, got)
		}
	}
	for _, c := range []struct {
		old, now string
		want     bool
	}{
		{"good", "token", true}, {"good", "forbidden", true}, {"good", "away", true}, {"token", "forbidden", true}, {"token", "token2", true}, {"hello", "token", true},
		{"token", "good", false}, {"token", "moved", false}, {"good", "bad", false}, {"good", "hello", false}, {"away", "token", false}, {"forbidden", "away", false},
		{"good", "gone", false},
	} {
		if got := forms[c.old].Laxer(forms[c.now]); got != c.want {
			t.Errorf("%s is laxer than %s: %v", c.old, c.now, got)
		}
	}
}
