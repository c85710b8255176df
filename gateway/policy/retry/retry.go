// Package retry compiles retries to Envoy. A rule has two retry policies, by
// method: a request that is not idempotent may only be repeated when it was never
// sent (RFC 9110, section 9.2.2), so a rule becomes two Envoy routes where the
// policies differ by more than that.
package retry

import (
	"cmp"
	"slices"
	"strings"
	"sync"
	"time"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	previoushostsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/retry/host/previous_hosts/v3"
	previousprioritiesv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/retry/priority/previous_priorities/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/penstock-gateway/penstock/gateway"
	"github.com/penstock-gateway/penstock/gateway/policy/timeout"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// RefusedHeader is the response header by which a function instance says that it
// refused a request before any work began. Such a request is repeated whatever
// its method is. Clients never see the header.
const RefusedHeader = "x-penstock-refused"

// RefusedGone is a regular expression for the values of RefusedHeader with which an
// instance says that it will take no request any more. The others say that it is busy.
const RefusedGone = "dead|stopping|ended-before-reading"

// RepeatHeader tells instances of functions that a request whose try has timed out is
// to be begun again; without it they answer 504.
const RepeatHeader = "x-penstock-repeat"

// Repeats reports whether tries have a time of their own, after which another follows.
func Repeats(p *pb.RetryPolicy) bool {
	return p.GetIdempotent().GetPerTryTimeout() != nil || p.GetOther().GetPerTryTimeout() != nil
}

const (
	// Back-off between tries: the next one goes to another endpoint, so there is
	// little to wait for.
	backOffBase = 5 * time.Millisecond
	backOffMax  = 50 * time.Millisecond
	// minDraws bounds the search for an endpoint that was not tried yet. It ends at
	// the first one that is found, so a high bound costs nothing but where there is
	// no other. A balancer that prefers the least busy endpoint prefers one that
	// fails at once: of two, three draws in four give that one; of three of which
	// two were tried, eight in nine.
	minDraws = 250
	// maxDraws bounds the work where the weights are far apart.
	maxDraws = 5000
)

// Targets is what a policy has to know of the endpoints behind a route.
type Targets struct {
	// Functions: nothing but functions can answer. Only then is RefusedHeader believed.
	Functions bool
	// WeightRatio is how many times the weight of the lightest endpoint of a backend
	// all of its endpoints weigh together; 0 when weights do not matter.
	WeightRatio uint64
	// Alone: there is no other endpoint than one.
	Alone bool
	// Request is how long a try waits for the response to begin; 0: for ever.
	Request time.Duration
}

// draws is how often an endpoint is drawn at most until one is found that was not
// tried. A weighted balancer may draw the heaviest WeightRatio times in a row.
func (t Targets) draws() int64 { return int64(min(max(minDraws, 2*t.WeightRatio), maxDraws)) }

// shared is t when its default policies are those of many.
func (t Targets) shared() Targets {
	if t.draws() == minDraws {
		t.WeightRatio = 0
	}
	return t
}

// names are Envoy's words for the conditions (x-envoy-retry-on).
var names = map[pb.RetryOn]string{
	pb.RetryOn_RETRY_ON_CONNECT_FAILURE:      "connect-failure",
	pb.RetryOn_RETRY_ON_REFUSED_STREAM:       "refused-stream",
	pb.RetryOn_RETRY_ON_RESET_BEFORE_REQUEST: "reset-before-request",
	pb.RetryOn_RETRY_ON_RESET:                Reset,
	pb.RetryOn_RETRY_ON_5XX:                  "5xx",
	pb.RetryOn_RETRY_ON_GATEWAY_ERROR:        "gateway-error",
	pb.RetryOn_RETRY_ON_RETRIABLE_4XX:        "retriable-4xx",
	pb.RetryOn_RETRY_ON_GRPC_UNAVAILABLE:     "unavailable",
	pb.RetryOn_RETRY_ON_GRPC_CANCELLED:       "cancelled",

	pb.RetryOn_RETRY_ON_STATUS_CODES:            statusCodes,
	pb.RetryOn_RETRY_ON_GRPC_DEADLINE_EXCEEDED:  "deadline-exceeded",
	pb.RetryOn_RETRY_ON_GRPC_INTERNAL:           "internal",
	pb.RetryOn_RETRY_ON_GRPC_RESOURCE_EXHAUSTED: "resource-exhausted",
}

// statusCodes is Envoy's word for the condition that RetriableStatusCodes lists.
const statusCodes = "retriable-status-codes"

// Reset is Envoy's word for the condition that idempotent requests alone are
// retried on by default.
const Reset = "reset"

// Merge reports whether one policy of Envoy's does for both groups of methods: as it
// is, or (reset) when Reset is added to its conditions for idempotent methods.
func Merge(idempotent, other *routev3.RetryPolicy) (p *routev3.RetryPolicy, reset, ok bool) {
	if idempotent == nil || other == nil {
		return nil, false, idempotent == other
	}
	for _, d := range defaults() {
		if idempotent == d.idempotent && other == d.other {
			return d.merged, d.reset, d.ok
		}
	}
	return merge(idempotent, other)
}

func merge(idempotent, other *routev3.RetryPolicy) (p *routev3.RetryPolicy, reset, ok bool) {
	if proto.Equal(idempotent, other) {
		return other, false, true
	}
	on := strings.Split(idempotent.GetRetryOn(), ",")
	without := proto.CloneOf(idempotent)
	without.RetryOn = strings.Join(slices.DeleteFunc(on, func(s string) bool { return s == Reset }), ",")
	if proto.Equal(without, other) {
		return other, true, true
	}
	return nil, false, false
}

// made is what Policies and Merge make of a policy.
type made struct {
	idempotent, other, merged *routev3.RetryPolicy
	reset, ok                 bool
}

// defaults are those of routes that say nothing about retries and time, which most do.
var defaults = sync.OnceValue(func() map[Targets]made {
	out := map[Targets]made{}
	for _, t := range []Targets{{}, {Alone: true}, {Functions: true}} {
		var function []gateway.Target
		if t.Functions {
			function = []gateway.Target{{Function: &pb.Function{}}}
		}
		t.Request, _ = timeout.Request(nil, function)
		var m made
		m.idempotent, m.other = policies(nil, t)
		m.merged, m.reset, m.ok = merge(m.idempotent, m.other)
		out[t] = m
	}
	return out
})

// Policies are those for idempotent methods and for all others; nil: no retries, and no
// bound of the time. They bound the time until a response begins, since Envoy leaves the
// bound of a try alone once the response has begun, as it does not with that of a route.
// p may be nil. The messages are shared: do not change them.
func Policies(p *pb.RetryPolicy, t Targets) (idempotent, other *routev3.RetryPolicy) {
	if p == nil {
		if d, ok := defaults()[t.shared()]; ok {
			return d.idempotent, d.other
		}
	}
	return policies(p, t)
}

func policies(p *pb.RetryPolicy, t Targets) (idempotent, other *routev3.RetryPolicy) {
	return rule(p.GetIdempotent(), DefaultIdempotentOn(t.Alone), t), rule(p.GetOther(), DefaultOtherOn(), t)
}

// Attempts is the number of retries of a rule, which may be nil.
func Attempts(r *pb.RetryRule) uint32 {
	if r != nil && r.Attempts != nil {
		return r.GetAttempts()
	}
	return DefaultAttempts
}

func rule(r *pb.RetryRule, defaults []pb.RetryOn, t Targets) *routev3.RetryPolicy {
	attempts := Attempts(r)
	if attempts == 0 {
		if t.Request == 0 {
			return nil
		}
		return &routev3.RetryPolicy{NumRetries: wrapperspb.UInt32(0), PerTryTimeout: durationpb.New(t.Request)}
	}
	conditions := r.GetOn()
	if len(conditions) == 0 {
		conditions = defaults
	}
	var on []string
	for _, c := range slices.Sorted(slices.Values(conditions)) {
		if c != pb.RetryOn_RETRY_ON_STATUS_CODES { // what status_codes lists is retried on anyway
			on = append(on, names[c])
		}
	}
	out := &routev3.RetryPolicy{
		NumRetries:                    wrapperspb.UInt32(attempts),
		RetryHostPredicate:            []*routev3.RetryPolicy_RetryHostPredicate{previousHosts()},
		HostSelectionRetryMaxAttempts: t.draws(),
		RetryBackOff:                  &routev3.RetryPolicy_RetryBackOff{BaseInterval: durationpb.New(backOffBase), MaxInterval: durationpb.New(backOffMax)},
	}
	if t.Functions {
		on = append(on, "retriable-headers")
		out.RetryPriority = previousPriorities()
		out.RetriableHeaders = []*routev3.HeaderMatcher{{
			Name: RefusedHeader, HeaderMatchSpecifier: &routev3.HeaderMatcher_PresentMatch{PresentMatch: true},
		}}
	}
	if codes := r.GetStatusCodes(); len(codes) > 0 {
		on = append(on, statusCodes)
		out.RetriableStatusCodes = slices.Sorted(slices.Values(codes))
	}
	if d := cmp.Or(r.GetPerTryTimeout().AsDuration(), t.Request); d > 0 {
		out.PerTryTimeout = durationpb.New(d)
	}
	out.RetryOn = strings.Join(on, ",")
	return out
}

// previousHosts keeps a retry from an endpoint that was tried.
func previousHosts() *routev3.RetryPolicy_RetryHostPredicate {
	a, err := anypb.New(&previoushostsv3.PreviousHostsPredicate{})
	if err != nil {
		panic(err) // an empty message always marshals
	}
	return &routev3.RetryPolicy_RetryHostPredicate{
		Name:       "envoy.retry_host_predicates.previous_hosts",
		ConfigType: &routev3.RetryPolicy_RetryHostPredicate_TypedConfig{TypedConfig: a},
	}
}

// previousPriorities sends a retry to the priority that was not tried: from
// instances that are gone to the activator, which knows the ones that are there.
func previousPriorities() *routev3.RetryPolicy_RetryPriority {
	a, err := anypb.New(&previousprioritiesv3.PreviousPrioritiesConfig{UpdateFrequency: 1})
	if err != nil {
		panic(err) // numbers always marshal
	}
	return &routev3.RetryPolicy_RetryPriority{
		Name:       "envoy.retry_priorities.previous_priorities",
		ConfigType: &routev3.RetryPolicy_RetryPriority_TypedConfig{TypedConfig: a},
	}
}
