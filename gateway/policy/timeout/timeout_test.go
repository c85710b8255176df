package timeout_test

import (
	"testing"
	"time"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/penstock-gateway/penstock/gateway/policy/timeout"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

func TestApply(t *testing.T) {
	for name, c := range map[string]struct {
		policy        *pb.TimeoutPolicy
		request, idle time.Duration
	}{
		"none":    {nil, 15 * time.Second, 300 * time.Second},
		"request": {&pb.TimeoutPolicy{Request: durationpb.New(time.Minute)}, time.Minute, 300 * time.Second},
		"off":     {&pb.TimeoutPolicy{Request: durationpb.New(0), Idle: durationpb.New(0)}, 0, 0},
		"both":    {&pb.TimeoutPolicy{Request: durationpb.New(1), Idle: durationpb.New(2)}, 1, 2},
	} {
		a := &routev3.RouteAction{}
		timeout.Apply(a, c.policy)
		if a.Timeout == nil || a.IdleTimeout == nil || a.Timeout.AsDuration() != c.request || a.IdleTimeout.AsDuration() != c.idle {
			t.Errorf("%s: %v", name, a)
		}
	}
}
