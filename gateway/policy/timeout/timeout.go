// Package timeout compiles the time bounds of a request to Envoy's route fields.
package timeout

import (
	"time"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/penstock-gateway/penstock/gateway"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

const (
	// DefaultRequest bounds the time until the response of a backend begins.
	DefaultRequest = 15 * time.Second
	// DefaultIdle bounds the time without a byte in either direction.
	DefaultIdle = 300 * time.Second
)

// functionSlack is how much longer a route waits than its function may take, so that
// the function's own answer, with its reason, comes first.
const functionSlack = 10 * time.Second

// Request is how long a route waits for a response to begin (see
// TimeoutPolicy.request); 0 means for ever. Unless p says so it follows what is behind
// the route: the function that may take the longest, its start included, or
// DefaultRequest for backends. p may be nil. follows is the function, or nil.
func Request(p *pb.TimeoutPolicy, targets []gateway.Target) (d time.Duration, follows *pb.Function) {
	if d := p.GetRequest(); d != nil {
		return d.AsDuration(), nil
	}
	for _, t := range targets {
		if f := t.Function; f == nil {
			if d < DefaultRequest {
				d, follows = DefaultRequest, nil
			}
		} else if need := gateway.FunctionTimeout(f) + gateway.FunctionWait(f) + functionSlack; need > d {
			d, follows = need, f
		}
	}
	if d == 0 {
		d = DefaultRequest
	}
	return d, follows
}

// Idle is the bound of the time without a byte; 0 means none. p may be nil.
func Idle(p *pb.TimeoutPolicy) time.Duration {
	if d := p.GetIdle(); d != nil {
		return d.AsDuration()
	}
	return DefaultIdle
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
