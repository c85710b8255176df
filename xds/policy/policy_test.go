package policy_test

import (
	"testing"

	"github.com/penstock-gateway/penstock/gateway"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
	"github.com/penstock-gateway/penstock/xds/policy"
)

// TestCannotDo: a policy that does not say what it is for gRPC clients is closed to them
// where it is in force, by name.
func TestCannotDo(t *testing.T) {
	model := &gateway.Policy[*pb.RetryPolicy]{Name: "retry"}
	other := &gateway.Policy[*pb.TimeoutPolicy]{Name: "timeout"}
	force := model.InForce(gateway.Sourced[*pb.RetryPolicy]{Value: &pb.RetryPolicy{Other: &pb.RetryRule{}}})
	says := func(text string) func(*gateway.Effective) string {
		return func(*gateway.Effective) string { return text }
	}
	for name, c := range map[string]struct {
		policy policy.Policy
		in     *gateway.Effective
		want   string
	}{
		"nothing said": {policy.Policy{Model: model}, force, "obey a policy (retry)"},
		"can":          {policy.Policy{Model: model, GRPC: says("")}, force, ""},
		"cannot":       {policy.Policy{Model: model, GRPC: says("retry")}, force, "retry"},
		"not in force": {policy.Policy{Model: model, GRPC: says("retry")}, &gateway.Effective{}, ""},
		"another is":   {policy.Policy{Model: other}, force, ""},
	} {
		if got := c.policy.CannotDo(c.in); got != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}
