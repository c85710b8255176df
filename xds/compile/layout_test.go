package compile

import (
	"fmt"
	"strings"
	"testing"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/penstock-gateway/penstock/gateway"
	"github.com/penstock-gateway/penstock/gateway/policies"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// TestEagerShare: all hosts are eager up to the limit and none from twice the limit
// on, a host more or less changes few others, and no number has more eager hosts
// than the limit.
func TestEagerShare(t *testing.T) {
	if eagerShare(DefaultEagerHosts, 0) != 1<<32 || eagerShare(2*DefaultEagerHosts, 0) != 0 || eagerShare(1, -1) != 0 || eagerShare(0, -1) == 0 {
		t.Error("the ends of the share")
	}
	const limit = 200
	var before map[string]bool
	for n := range 3 * limit {
		share, eager, moved := eagerShare(n, limit), map[string]bool{}, 0
		for i := range n {
			name := fmt.Sprintf("h%d.test", i)
			if eagerByName(name, share) {
				eager[name] = true
			}
			if i < n-1 && before != nil && before[name] != eager[name] {
				moved++
			}
		}
		if len(eager) > limit*115/100 || (n <= limit && len(eager) != n) || (n >= 2*limit && len(eager) > 0) {
			t.Errorf("%d of %d hosts are eager", len(eager), n)
		}
		if moved > 12 {
			t.Errorf("the %d-th host changes %d others", n, moved)
		}
		before = eager
	}
}

// TestHostLayout: what may be loaded on demand, and what is said of it.
func TestHostLayout(t *testing.T) {
	const gw = "projects/default/gateways/g"
	route := func(name string, limited bool, hosts ...string) gateway.Object {
		r := &pb.Route{Name: "projects/default/routes/" + name, Gateways: []string{gw}, Hostnames: hosts, Rules: []*pb.RouteRule{{
			Name: "all", Action: &pb.RouteRule_DirectResponse{DirectResponse: &pb.DirectResponse{Status: 200}},
		}}}
		if limited {
			r.Policies = &pb.Policies{RateLimit: &pb.RateLimitPolicy{Limits: []*pb.RateLimit{{Name: "l", Requests: 1, Window: durationpb.New(1e9)}}}}
		}
		return r
	}
	build := func(objects ...gateway.Object) *gateway.Snapshot {
		objects = append(objects, &pb.Gateway{Name: gw, Listeners: []*pb.Listener{{Name: "http", Port: 80}}})
		for _, o := range objects {
			policies.Model().Normalize(o)
		}
		return policies.Model().Build(nil, 1, gateway.Changes{Updates: objects})
	}
	s := build(
		route("plain", false, "plain.test", "*.w.test", "*.v.test"), route("limited", true, "limited.test", "x.v.test"),
		route("more", false, "limited.test"),
	)
	for host, want := range map[string]string{
		"plain.test": "scopes, on demand", "limited.test": "scopes, on demand", "x.v.test": "scopes, on demand",
		"*.w.test": "wildcards", "*.v.test": "wildcards", "unknown.test": "scopes",
	} {
		if got := HostLayout(s, Settings{EagerHosts: -1}, gw, "http", host); got != want {
			t.Errorf("%s: %q, want %q", host, got, want)
		}
		if got := HostLayout(s, Settings{}, gw, "http", host); !strings.HasPrefix(want, got) {
			t.Errorf("%s, few hosts: %q", host, got)
		}
	}
	if got := HostLayout(build(route("any", false)), Settings{EagerHosts: -1}, gw, "http", "*"); got != "wildcards" {
		t.Errorf("any host: %q", got)
	}
}
