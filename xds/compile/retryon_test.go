package compile

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"pgregory.net/rapid"

	"github.com/penstock-gateway/penstock/gateway"
	"github.com/penstock-gateway/penstock/gateway/policies"
	"github.com/penstock-gateway/penstock/gateway/policy/retry"
	"github.com/penstock-gateway/penstock/gateway/policy/timeout"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// effectiveRetries is the policy that Envoy goes by for a method: that of the route
// or else of its host, with what the filter adds unless the route takes it away.
// It returns "" for no retries.
func effectiveRetries(vh *routev3.VirtualHost, r *routev3.Route, method string) string {
	p := r.GetRoute().GetRetryPolicy()
	if p == nil {
		p = vh.GetRetryPolicy()
	}
	var on []string
	if p.GetRetryOn() != "" {
		on = strings.Split(p.GetRetryOn(), ",")
	}
	if slices.Contains(retry.IdempotentMethods(), method) && !slices.Contains(r.GetRequestHeadersToRemove(), retry.OnHeader) {
		on = append(on, retry.Reset)
	}
	if len(on) == 0 || p.GetNumRetries().GetValue() == 0 {
		return ""
	}
	slices.Sort(on)
	out := proto.CloneOf(p)
	out.RetryOn = strings.Join(slices.Compact(on), ",")
	return string(mustMarshal(out))
}

// TestRetries: however the policies are laid out, each rule has its own for every
// method.
func TestRetries(t *testing.T) {
	conditions := []pb.RetryOn{pb.RetryOn_RETRY_ON_RESET, pb.RetryOn_RETRY_ON_CONNECT_FAILURE, pb.RetryOn_RETRY_ON_5XX, pb.RetryOn_RETRY_ON_REFUSED_STREAM}
	rule := rapid.Custom(func(t *rapid.T) *pb.RetryRule {
		if rapid.Bool().Draw(t, "default") {
			return nil
		}
		r := &pb.RetryRule{On: rapid.SliceOfDistinct(rapid.SampledFrom(conditions), rapid.ID).Draw(t, "on")}
		if rapid.Bool().Draw(t, "attempts given") {
			r.Attempts = proto.Uint32(rapid.Uint32Range(0, 2).Draw(t, "attempts"))
		}
		if rapid.IntRange(0, 3).Draw(t, "per try") == 0 {
			r.PerTryTimeout = &durationpb.Duration{Seconds: 1}
		}
		return r
	})
	methods := append(retry.IdempotentMethods(), "POST", "PATCH")
	rapid.Check(t, func(t *rapid.T) {
		route := &pb.Route{Name: "projects/default/routes/r"}
		for i := range rapid.IntRange(1, 6).Draw(t, "rules") {
			r := &pb.RouteRule{Name: fmt.Sprintf("r%d", i), Matches: []*pb.RouteMatch{{
				Path:    &pb.PathMatch{Match: &pb.PathMatch_Exact{Exact: fmt.Sprintf("/%d", i)}},
				Methods: rapid.SliceOfNDistinct(rapid.SampledFrom(methods), 0, 3, rapid.ID).Draw(t, "methods"),
			}}, Policies: &pb.Policies{Retry: &pb.RetryPolicy{Idempotent: rule.Draw(t, "idempotent"), Other: rule.Draw(t, "other")}}}
			r.Action = &pb.RouteRule_Forward{Forward: &pb.Forward{Backends: []*pb.WeightedBackend{{Backend: "up", Weight: 1}}}}
			if rapid.IntRange(0, 5).Draw(t, "answers") == 0 {
				r.Action = &pb.RouteRule_DirectResponse{DirectResponse: &pb.DirectResponse{Status: 200}}
			}
			route.Rules = append(route.Rules, r)
		}
		s := policies.Model().Build(nil, 1, gateway.Changes{Updates: []gateway.Object{
			&pb.Gateway{Name: "projects/default/gateways/g", Listeners: []*pb.Listener{{Name: "http", Port: 80}}},
			&pb.Backend{Name: "projects/default/backends/up", Target: &pb.Backend_Dns{Dns: &pb.DnsTarget{Hostname: "up.test", Port: 80}}}, route,
		}})
		host := s.Hosts("projects/default/gateways/g", "http")[0]
		u := compileHost(s, host, nil, nil)
		if len(u.problems) > 0 {
			t.Fatal(u.problems)
		}
		for _, e := range host.Entries {
			idempotent, other := retry.Policies(retry.Policy.Of(e.Policies).Merged, retry.Targets{Request: timeout.DefaultRequest})
			for _, method := range methods {
				want := other
				if slices.Contains(retry.IdempotentMethods(), method) {
					want = idempotent
				}
				i := slices.IndexFunc(u.vhost.Routes, func(r *routev3.Route) bool {
					return r.GetName() == routeName(e) && hasMethod(r, method)
				})
				if i < 0 {
					if len(e.Match.GetMethods()) == 0 || slices.Contains(e.Match.GetMethods(), method) {
						t.Fatalf("%s: no route for %s", routeName(e), method)
					}
					continue
				}
				r := u.vhost.Routes[i]
				if r.GetRoute() == nil {
					continue
				}
				plain := &routev3.Route{RequestHeadersToRemove: []string{retry.OnHeader}, Action: &routev3.Route_Route{Route: &routev3.RouteAction{RetryPolicy: want}}}
				if got, want := effectiveRetries(u.vhost, r, method), effectiveRetries(&routev3.VirtualHost{}, plain, method); got != want {
					t.Fatalf("%s %s: %q, want %q", method, routeName(e), got, want)
				}
			}
		}
	})
}

func hasMethod(r *routev3.Route, method string) bool {
	for _, h := range r.GetMatch().GetHeaders() {
		if m := h.GetStringMatch(); h.GetName() == ":method" && m.GetExact() != method && !slices.Contains(strings.Split(m.GetSafeRegex().GetRegex(), "|"), method) {
			return false
		}
	}
	return true
}

// TestSharedRetries: a host of plain forwards says its policy once, and a route that
// has nothing of its own costs little more than its match and its cluster.
func TestSharedRetries(t *testing.T) {
	objects := []gateway.Object{
		&pb.Gateway{Name: "projects/default/gateways/g", Listeners: []*pb.Listener{{Name: "http", Port: 80}}},
		&pb.Backend{Name: "projects/default/backends/up", Target: &pb.Backend_Dns{Dns: &pb.DnsTarget{Hostname: "up.test", Port: 80}}},
	}
	size := func(n int) int {
		for i := range n {
			objects = append(objects, &pb.Route{Name: fmt.Sprintf("projects/default/routes/r%02d", i), Rules: []*pb.RouteRule{{
				Matches: []*pb.RouteMatch{{Path: &pb.PathMatch{Match: &pb.PathMatch_Prefix{Prefix: fmt.Sprintf("/p%02d", i)}}}},
				Action:  &pb.RouteRule_Forward{Forward: &pb.Forward{Backends: []*pb.WeightedBackend{{Backend: "up", Weight: 1}}}},
			}}})
		}
		s := policies.Model().Build(nil, 1, gateway.Changes{Updates: objects})
		return proto.Size(compileHost(s, s.Hosts("projects/default/gateways/g", "http")[0], nil, nil).vhost)
	}
	if ten, more := size(10), size(20); more-ten > 10*100 {
		t.Errorf("%d bytes for 10 routes, %d for 20", ten, more)
	}
}
