package retry

import (
	"slices"
	"strconv"
	"strings"

	xdscorev3 "github.com/cncf/xds/go/xds/core/v3"
	xdsmatcherv3 "github.com/cncf/xds/go/xds/type/matcher/v3"
	mutationv3 "github.com/envoyproxy/go-control-plane/envoy/config/common/mutation_rules/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	matchingv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/common/matching/v3"
	matcheractionv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/common/matcher/action/v3"
	headermutationv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/header_mutation/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/penstock-gateway/penstock/gateway"
	"github.com/penstock-gateway/penstock/gateway/policy/timeout"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
	"github.com/penstock-gateway/penstock/xds/policy"
)

// Proxies is retries in proxies: a filter that tells the router of idempotent requests. The
// retry policies themselves stand in actions, by which an entry may become two routes, so
// the compiler asks for them (Policies, Merge). gRPC clients retry by gRPC status, see
// ForGRPC, and by themselves what no server has seen.
var Proxies = &policy.Policy{
	Model: Policy, Filters: []policy.Filter{on}, Route: route,
	GRPC: func(*gateway.Effective) string { return "" },
}

const onFilter = "penstock.v1.retry-on"

var on = policy.Filter{
	Name: onFilter, Stage: policy.Prepare, Config: retryOn, AtHost: true, Forwards: true, Entry: &headermutationv3.HeaderMutationPerRoute{},
}

// route gives idempotent requests a short try where another endpoint can answer.
func route(r *policy.Route) error {
	if r.Entry.Problem != "" {
		return nil
	}
	if ShortTry(timeout.Policy.Of(r.Entry.Policies).Merged, Policy.Of(r.Entry.Policies).Merged, r.Entry.Receivers()) > 0 {
		r.Set(&on, shortTry())
	}
	return nil
}

// tryTimeoutHeader is how long a try waits for its response to begin, in milliseconds, in
// the place of what the retry policy of the route says. Envoy's router reads it before it
// takes headers away for a route, so only routes that want it have it set.
const tryTimeoutHeader = "x-envoy-upstream-rq-per-try-timeout-ms"

// shortTry is the entry of the filter retryOn for routes whose idempotent requests are
// tried elsewhere after a short time. The filter passes by requests that are not.
func shortTry() *headermutationv3.HeaderMutationPerRoute {
	return &headermutationv3.HeaderMutationPerRoute{Mutations: &headermutationv3.Mutations{
		RequestMutations: []*mutationv3.HeaderMutation{set(tryTimeoutHeader, strconv.FormatInt(DefaultTry.Milliseconds(), 10))},
	}}
}

func set(name, value string) *mutationv3.HeaderMutation {
	return &mutationv3.HeaderMutation{Action: &mutationv3.HeaderMutation_Append{Append: &corev3.HeaderValueOption{
		Header: &corev3.HeaderValue{Key: name, Value: value}, AppendAction: corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD,
	}}}
}

// OnHeader adds conditions to those of a route's retry policy. Envoy's router
// reads it and takes it away; from clients it never comes, for the early header
// mutation removes x-envoy-*.
const OnHeader = "x-envoy-retry-on"

// retryOn is the filter that says of every idempotent request that it may be
// repeated after a reset, too. So one Envoy route has two retry policies by
// method, which else takes two routes; and Envoy looks at the method of every route
// that it passes by before it looks at the path. A route that wants none of this
// removes the header, which happens before the router reads it.
func retryOn(p *policy.Packer) policy.Message {
	mutation := &headermutationv3.HeaderMutation{Mutations: &headermutationv3.Mutations{
		RequestMutations: []*mutationv3.HeaderMutation{set(OnHeader, Reset)},
	}}
	idempotent := &xdsmatcherv3.Matcher_MatcherList_Predicate{
		MatchType: &xdsmatcherv3.Matcher_MatcherList_Predicate_SinglePredicate_{SinglePredicate: &xdsmatcherv3.Matcher_MatcherList_Predicate_SinglePredicate{
			Input: &xdscorev3.TypedExtensionConfig{Name: "method", TypedConfig: p.Pack(&matcherv3.HttpRequestHeaderMatchInput{HeaderName: ":method"})},
			Matcher: &xdsmatcherv3.Matcher_MatcherList_Predicate_SinglePredicate_ValueMatch{ValueMatch: &xdsmatcherv3.StringMatcher{
				MatchPattern: &xdsmatcherv3.StringMatcher_SafeRegex{SafeRegex: &xdsmatcherv3.RegexMatcher{
					EngineType: &xdsmatcherv3.RegexMatcher_GoogleRe2{GoogleRe2: &xdsmatcherv3.RegexMatcher_GoogleRE2{}},
					Regex:      strings.Join(IdempotentMethods(), "|"),
				}},
			}},
		}},
	}
	return &matchingv3.ExtensionWithMatcher{
		ExtensionConfig: &corev3.TypedExtensionConfig{Name: onFilter, TypedConfig: p.Pack(mutation)},
		XdsMatcher: &xdsmatcherv3.Matcher{MatcherType: &xdsmatcherv3.Matcher_MatcherList_{MatcherList: &xdsmatcherv3.Matcher_MatcherList{
			Matchers: []*xdsmatcherv3.Matcher_MatcherList_FieldMatcher{{
				Predicate: &xdsmatcherv3.Matcher_MatcherList_Predicate{MatchType: &xdsmatcherv3.Matcher_MatcherList_Predicate_NotMatcher{NotMatcher: idempotent}},
				OnMatch: &xdsmatcherv3.Matcher_OnMatch{OnMatch: &xdsmatcherv3.Matcher_OnMatch_Action{Action: &xdscorev3.TypedExtensionConfig{
					Name: "skip", TypedConfig: p.Pack(&matcheractionv3.SkipFilter{}),
				}}},
			}},
		}}},
	}
}

// grpcConditions are those that gRPC clients know (gRFC A44).
var grpcConditions = map[pb.RetryOn]bool{
	pb.RetryOn_RETRY_ON_GRPC_UNAVAILABLE: true, pb.RetryOn_RETRY_ON_GRPC_CANCELLED: true, pb.RetryOn_RETRY_ON_GRPC_DEADLINE_EXCEEDED: true,
	pb.RetryOn_RETRY_ON_GRPC_INTERNAL: true, pb.RetryOn_RETRY_ON_GRPC_RESOURCE_EXHAUSTED: true,
}

// ForGRPC is the retries that were asked for by gRPC status. A call that no
// server has seen is repeated by gRPC itself.
func ForGRPC(p *pb.RetryPolicy) *routev3.RetryPolicy {
	var on []string
	for _, c := range p.GetOther().GetOn() {
		if grpcConditions[c] {
			on = append(on, names[c])
		}
	}
	n := Attempts(p.GetOther())
	if len(on) == 0 || n == 0 {
		return nil
	}
	slices.Sort(on)
	return &routev3.RetryPolicy{RetryOn: strings.Join(on, ","), NumRetries: wrapperspb.UInt32(n)}
}
