package timeout

import (
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"

	"github.com/penstock-gateway/penstock/gateway"
	"github.com/penstock-gateway/penstock/xds/policy"
)

// Proxies is the time bounds in proxies. Of them gRPC clients keep max_stream_duration; the
// others bound what a proxy does.
var Proxies = &policy.Policy{
	Model:  Policy,
	Action: func(e *gateway.Entry, a *routev3.RouteAction) { Apply(a, Policy.Of(e.Policies).Merged) },
	GRPC:   func(*gateway.Effective) string { return "" },
}
