// Package timeout compiles the time bounds of a request to Envoy's route fields.
package timeout

import (
	"time"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/penstock-gateway/penstock/gateway"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// Idle is the bound of the time without a byte; 0 means none. p may be nil.
func Idle(p *pb.TimeoutPolicy) time.Duration {
	if d := p.GetIdle(); d != nil {
		return d.AsDuration()
	}
	return gateway.DefaultIdleTimeout
}

// Apply sets the time bounds of an action but that of the time until the response
// begins, which is one of each try: package retry compiles it. Envoy's bound of a route
// would end a response that flows, so it is switched off. Those that are always set are,
// so that neither Envoy's defaults nor those of the listener decide. In Envoy, too, 0 is none.
func Apply(a *routev3.RouteAction, p *pb.TimeoutPolicy) {
	a.Timeout = durationpb.New(0)
	a.IdleTimeout = durationpb.New(Idle(p))
	if d := p.GetMaxStreamDuration().AsDuration(); d > 0 {
		a.MaxStreamDuration = &routev3.RouteAction_MaxStreamDuration{MaxStreamDuration: durationpb.New(d)}
	}
}
