package compile

import (
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/penstock-gateway/penstock/gateway"
	"github.com/penstock-gateway/penstock/gateway/policy/retry"
	"github.com/penstock-gateway/penstock/gateway/policy/timeout"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// retryTargets is what retries have to know of the targets of a route.
func retryTargets(p *pb.TimeoutPolicy, targets []gateway.Target) retry.Targets {
	out := retry.Targets{Functions: true, Alone: gateway.Alone(targets)}
	out.Request, _ = timeout.Request(p, targets)
	for _, t := range targets {
		if t.Function != nil {
			continue
		}
		// A header of anybody else's is no promise that nothing was done.
		out.Functions = false
		lightest, all := uint64(0), uint64(0)
		for _, e := range t.StaticEndpoints() {
			w := uint64(max(e.GetWeight(), 1))
			if all += w; lightest == 0 || w < lightest {
				lightest = w
			}
		}
		if lightest > 0 {
			out.WeightRatio = max(out.WeightRatio, all/lightest)
		}
	}
	return out
}

// noRetries is the policy of a route without retries, and without a bound of its time,
// in a host that has some.
func noRetries() *routev3.RetryPolicy { return &routev3.RetryPolicy{NumRetries: wrapperspb.UInt32(0)} }

// sharedRetries is the retry policy that saves the most bytes when it stands at the
// host of routes, with its bytes; nil when that saves none. A policy of a route
// replaces that of its host as a whole, so the others stay what they are, and a route
// without retries says so.
func sharedRetries(routes []trait) (*routev3.RetryPolicy, string) {
	counts := map[string]int{}
	none := 0
	for _, t := range routes {
		switch {
		case !t.forwards:
		case t.retry == nil:
			none++
		default:
			counts[t.retryKey]++
		}
	}
	if len(counts) == 0 {
		return nil, ""
	}
	var best trait
	saved, lost := 0, none*proto.Size(noRetries())
	for _, t := range routes { // in order, so that the first of equals is taken
		if n := counts[t.retryKey]; t.retry != nil && n > 1 {
			if s := (n-1)*len(t.retryKey) - lost; s > saved {
				best, saved = t, s
			}
		}
	}
	return best.retry, best.retryKey
}

// mustMarshal is for messages that were marshalled or checked before.
func mustMarshal(m proto.Message) []byte {
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		panic(err) // a string that is not a UTF-8: the validation refused it
	}
	return b
}
