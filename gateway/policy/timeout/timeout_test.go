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
		policy       *pb.TimeoutPolicy
		idle, stream time.Duration
	}{
		"none":    {nil, 300 * time.Second, 0},
		"request": {&pb.TimeoutPolicy{Request: durationpb.New(time.Minute)}, 300 * time.Second, 0},
		"off":     {&pb.TimeoutPolicy{Request: durationpb.New(0), Idle: durationpb.New(0)}, 0, 0},
		"all":     {&pb.TimeoutPolicy{Request: durationpb.New(1), Idle: durationpb.New(2), MaxStreamDuration: durationpb.New(3)}, 2, 3},
	} {
		a := &routev3.RouteAction{}
		timeout.Apply(a, c.policy)
		if a.Timeout == nil || a.IdleTimeout == nil || a.Timeout.AsDuration() != 0 || a.IdleTimeout.AsDuration() != c.idle ||
			a.GetMaxStreamDuration().GetMaxStreamDuration().AsDuration() != c.stream {
			t.Errorf("%s: %v", name, a)
		}
	}
}
