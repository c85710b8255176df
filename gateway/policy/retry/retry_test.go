package retry_test

import (
	"math"
	"slices"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/penstock-gateway/penstock/gateway/policy/retry"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

func TestPolicies(t *testing.T) {
	for name, c := range map[string]struct {
		policy            *pb.RetryPolicy
		functions         bool
		idempotent, other string // "" for no retries
		attempts          uint32
	}{
		"default": {
			nil, true,
			"connect-failure,refused-stream,reset-before-request,reset,retriable-headers",
			"connect-failure,refused-stream,reset-before-request,retriable-headers", 2,
		},
		"off": {
			&pb.RetryPolicy{Idempotent: &pb.RetryRule{Attempts: proto.Uint32(0)}, Other: &pb.RetryRule{Attempts: proto.Uint32(0)}},
			true, "", "", 0,
		},
		"not only functions": {
			nil, false,
			"connect-failure,refused-stream,reset-before-request,reset",
			"connect-failure,refused-stream,reset-before-request", 2,
		},
		"attempts alone keep the conditions": {
			&pb.RetryPolicy{Idempotent: &pb.RetryRule{Attempts: proto.Uint32(5)}, Other: &pb.RetryRule{Attempts: proto.Uint32(0)}},
			true, "connect-failure,refused-stream,reset-before-request,reset,retriable-headers", "", 5,
		},
		"conditions, in any order": {
			&pb.RetryPolicy{Idempotent: &pb.RetryRule{
				On:          []pb.RetryOn{pb.RetryOn_RETRY_ON_GRPC_CANCELLED, pb.RetryOn_RETRY_ON_5XX, pb.RetryOn_RETRY_ON_GATEWAY_ERROR, pb.RetryOn_RETRY_ON_RETRIABLE_4XX, pb.RetryOn_RETRY_ON_GRPC_UNAVAILABLE},
				StatusCodes: []uint32{503, 429},
			}},
			true, "5xx,gateway-error,retriable-4xx,unavailable,cancelled,retriable-headers,retriable-status-codes",
			"connect-failure,refused-stream,reset-before-request,retriable-headers", 2,
		},
		"status codes alone": {
			&pb.RetryPolicy{Idempotent: &pb.RetryRule{On: []pb.RetryOn{pb.RetryOn_RETRY_ON_STATUS_CODES}, StatusCodes: []uint32{503, 504}}},
			false, "retriable-status-codes", "connect-failure,refused-stream,reset-before-request", 2,
		},
		"status codes beside a condition": {
			&pb.RetryPolicy{Idempotent: &pb.RetryRule{On: []pb.RetryOn{pb.RetryOn_RETRY_ON_STATUS_CODES, pb.RetryOn_RETRY_ON_RESET}, StatusCodes: []uint32{503}}},
			false, "reset,retriable-status-codes", "connect-failure,refused-stream,reset-before-request", 2,
		},
	} {
		idempotent, other := retry.Policies(c.policy, retry.Targets{Functions: c.functions})
		if idempotent.GetRetryOn() != c.idempotent || other.GetRetryOn() != c.other || idempotent.GetNumRetries().GetValue() != c.attempts {
			t.Errorf("%s: %v / %v", name, idempotent, other)
		}
		if (idempotent == nil) != (c.idempotent == "") || (other == nil) != (c.other == "") {
			t.Errorf("%s: a policy without retries is not nil", name)
		}
		for _, p := range []interface{ ValidateAll() error }{idempotent, other} {
			if err := p.ValidateAll(); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
		if idempotent != nil && (len(idempotent.GetRetryHostPredicate()) != 1 || c.functions != (idempotent.GetRetriableHeaders() != nil)) {
			t.Errorf("%s: %v", name, idempotent)
		}
	}
	p, _ := retry.Policies(&pb.RetryPolicy{Idempotent: &pb.RetryRule{PerTryTimeout: durationpb.New(time.Second), StatusCodes: []uint32{503, 429}}}, retry.Targets{})
	if p.GetPerTryTimeout().AsDuration() != time.Second || !slices.Equal(p.GetRetriableStatusCodes(), []uint32{429, 503}) {
		t.Error(p)
	}
}

// TestEveryCondition: a condition that is added to the API has a word in Envoy.
func TestEveryCondition(t *testing.T) {
	for n := range pb.RetryOn_name {
		if n == 0 {
			continue
		}
		p, _ := retry.Policies(&pb.RetryPolicy{Idempotent: &pb.RetryRule{On: []pb.RetryOn{pb.RetryOn(n)}, StatusCodes: []uint32{503}}}, retry.Targets{})
		if p.GetRetryOn() == "" || p.GetRetryOn()[0] == ',' {
			t.Errorf("%s has no name in Envoy: %q", pb.RetryOn(n), p.GetRetryOn())
		}
	}
}

// TestMerge: one policy does for all methods when nothing but a reset of what was
// sent tells the two apart.
func TestMerge(t *testing.T) {
	rule := func(attempts uint32, on ...pb.RetryOn) *pb.RetryRule {
		return &pb.RetryRule{Attempts: &attempts, On: on}
	}
	const connect, reset, server = pb.RetryOn_RETRY_ON_CONNECT_FAILURE, pb.RetryOn_RETRY_ON_RESET, pb.RetryOn_RETRY_ON_5XX
	for name, c := range map[string]struct {
		policy    *pb.RetryPolicy
		reset, ok bool
	}{
		"default":            {nil, true, true},
		"none":               {&pb.RetryPolicy{Idempotent: rule(0), Other: rule(0)}, false, true},
		"the same":           {&pb.RetryPolicy{Idempotent: rule(1, connect), Other: rule(1, connect)}, false, true},
		"reset":              {&pb.RetryPolicy{Idempotent: rule(1, reset, connect), Other: rule(1, connect)}, true, true},
		"reset for others":   {&pb.RetryPolicy{Idempotent: rule(1, connect), Other: rule(1, reset, connect)}, false, false},
		"something else":     {&pb.RetryPolicy{Idempotent: rule(1, server, connect), Other: rule(1, connect)}, false, false},
		"other attempts":     {&pb.RetryPolicy{Idempotent: rule(2, reset, connect), Other: rule(1, connect)}, false, false},
		"only for some":      {&pb.RetryPolicy{Idempotent: rule(2, connect), Other: rule(0)}, false, false},
		"other status codes": {&pb.RetryPolicy{Idempotent: &pb.RetryRule{StatusCodes: []uint32{503}}}, false, false},
	} {
		for _, functions := range []bool{true, false} {
			idempotent, other := retry.Policies(c.policy, retry.Targets{Functions: functions})
			p, r, ok := retry.Merge(idempotent, other)
			if r != c.reset || ok != c.ok || ok && !proto.Equal(p, other) || !ok && p != nil {
				t.Errorf("%s: %v, reset %v, ok %v", name, p, r, ok)
			}
		}
	}
}

// TestDraws: an endpoint that was not tried is found, however the balancer prefers the
// ones that were: of two, or of three of which two were tried, LEAST_REQUEST draws such
// a one with a probability of 1/4 and 1/9; a weighted balancer may draw the heaviest as
// often in a row as it is heavier.
func TestDraws(t *testing.T) {
	for ratio, want := range map[uint64]int64{0: 250, 2: 250, 125: 250, 126: 252, 1001: 2002, 9000: 5000} {
		p, _ := retry.Policies(nil, retry.Targets{WeightRatio: ratio})
		if p.GetHostSelectionRetryMaxAttempts() != want {
			t.Errorf("weights of %d: %d draws, want %d", ratio, p.GetHostSelectionRetryMaxAttempts(), want)
		}
	}
	if missed := math.Pow(8./9, 250); missed > 1e-12 {
		t.Errorf("one retry in %g misses the third endpoint", 1/missed)
	}
}
