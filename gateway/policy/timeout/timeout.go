// Package timeout compiles the time bounds of a request to Envoy's route fields.
package timeout

import (
	"time"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/penstock-gateway/penstock/gateway"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// Request is the bound of the whole request; 0 means none. p may be nil.
func Request(p *pb.TimeoutPolicy) time.Duration {
	if d := p.GetRequest(); d != nil {
		return d.AsDuration()
	}
	return gateway.DefaultRequestTimeout
}

// Idle is the bound of the time without a byte; 0 means none. p may be nil.
func Idle(p *pb.TimeoutPolicy) time.Duration {
	if d := p.GetIdle(); d != nil {
		return d.AsDuration()
	}
	return gateway.DefaultIdleTimeout
}

// Apply sets the time bounds of an action. Both are always set, so that neither
// Envoy's defaults nor those of the listener decide. In Envoy, too, 0 is none.
func Apply(a *routev3.RouteAction, p *pb.TimeoutPolicy) {
	a.Timeout = durationpb.New(Request(p))
	a.IdleTimeout = durationpb.New(Idle(p))
}
