package ratelimit

import (
	ratelimitv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ratelimit/v3"

	"github.com/penstock-gateway/penstock/gateway"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
	"github.com/penstock-gateway/penstock/xds"
	"github.com/penstock-gateway/penstock/xds/policy"
)

// Cluster is the limiter, as proxies know it.
const Cluster = "penstock/limiter"

// Proxies is the limits in proxies: one of two filters asks the limiter, by what happens
// when it does not answer.
var Proxies = &policy.Policy{
	Model: Policy, Filters: []policy.Filter{openFilter, closedFilter}, Route: route,
	GRPC: func(*gateway.Effective) string { return "count calls (rate_limit)" },
}

var openFilter, closedFilter = filter("penstock.v1.limit-open", false), filter("penstock.v1.limit-closed", true)

func filter(name string, closed bool) policy.Filter {
	return policy.Filter{
		Name: name, Stage: policy.Limit, Mode: policy.Off, Needs: []xds.Ref{{Type: xds.Cluster, Name: Cluster}},
		Config: func(*policy.Packer) policy.Message { return Filter(Cluster, closed) },
		Entry:  &ratelimitv3.RateLimitPerRoute{}, Off: Off(),
	}
}

// informed are the headers that tell a client where it stands with a limit. Those of the
// limits are made later than a backend's, which would contradict them.
var informed = &pb.HeadersPolicy{Response: &pb.HeaderChange{Remove: []string{"ratelimit", "ratelimit-policy"}}}

func route(r *policy.Route) error {
	limits, closed, err := PerRoute(r.Entry, Claims(r.Identity))
	switch {
	case err != nil || limits == nil:
		return err
	case closed:
		r.Set(&closedFilter, limits)
	default:
		r.Set(&openFilter, limits)
	}
	r.Need(xds.Cluster, Cluster)
	r.ChangeHeaders(informed)
	return nil
}
