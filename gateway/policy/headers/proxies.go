package headers

import (
	"slices"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"

	"github.com/penstock-gateway/penstock/gateway"
	"github.com/penstock-gateway/penstock/xds/policy"
)

// Proxies is header changes in proxies: fields of the route, those of other policies first.
var Proxies = &policy.Policy{
	Model: Policy,
	Apply: func(r *policy.Route, out *routev3.Route) {
		Apply(out, slices.Concat(r.HeaderChanges(), Policy.Of(r.Entry.Policies).Levels))
	},
	GRPC: func(*gateway.Effective) string { return "change headers (headers)" },
}
