package compile

import (
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
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/penstock-gateway/penstock/gateway"
	"github.com/penstock-gateway/penstock/gateway/policy/retry"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// retryOnHeader adds conditions to those of a route's retry policy. Envoy's router
// reads it and takes it away; from clients it never comes, for the early header
// mutation removes x-envoy-*.
const retryOnHeader = "x-envoy-retry-on"

// retryOn is the filter that says of every idempotent request that it may be
// repeated after a reset, too. So one Envoy route has two retry policies by
// method, which else takes two routes; and Envoy looks at the method of every route
// that it passes by before it looks at the path. A route that wants none of this
// removes the header, which happens before the router reads it.
func retryOn(p *packer) *matchingv3.ExtensionWithMatcher {
	mutation := &headermutationv3.HeaderMutation{Mutations: &headermutationv3.Mutations{
		RequestMutations: []*mutationv3.HeaderMutation{set(retryOnHeader, retry.Reset)},
	}}
	idempotent := &xdsmatcherv3.Matcher_MatcherList_Predicate{
		MatchType: &xdsmatcherv3.Matcher_MatcherList_Predicate_SinglePredicate_{SinglePredicate: &xdsmatcherv3.Matcher_MatcherList_Predicate_SinglePredicate{
			Input: &xdscorev3.TypedExtensionConfig{Name: "method", TypedConfig: p.pack(&matcherv3.HttpRequestHeaderMatchInput{HeaderName: ":method"})},
			Matcher: &xdsmatcherv3.Matcher_MatcherList_Predicate_SinglePredicate_ValueMatch{ValueMatch: &xdsmatcherv3.StringMatcher{
				MatchPattern: &xdsmatcherv3.StringMatcher_SafeRegex{SafeRegex: &xdsmatcherv3.RegexMatcher{
					EngineType: &xdsmatcherv3.RegexMatcher_GoogleRe2{GoogleRe2: &xdsmatcherv3.RegexMatcher_GoogleRE2{}},
					Regex:      strings.Join(gateway.IdempotentMethods(), "|"),
				}},
			}},
		}},
	}
	return &matchingv3.ExtensionWithMatcher{
		ExtensionConfig: &corev3.TypedExtensionConfig{Name: filterRetryOn, TypedConfig: p.pack(mutation)},
		XdsMatcher: &xdsmatcherv3.Matcher{MatcherType: &xdsmatcherv3.Matcher_MatcherList_{MatcherList: &xdsmatcherv3.Matcher_MatcherList{
			Matchers: []*xdsmatcherv3.Matcher_MatcherList_FieldMatcher{{
				Predicate: &xdsmatcherv3.Matcher_MatcherList_Predicate{MatchType: &xdsmatcherv3.Matcher_MatcherList_Predicate_NotMatcher{NotMatcher: idempotent}},
				OnMatch: &xdsmatcherv3.Matcher_OnMatch{OnMatch: &xdsmatcherv3.Matcher_OnMatch_Action{Action: &xdscorev3.TypedExtensionConfig{
					Name: "skip", TypedConfig: p.pack(&matcheractionv3.SkipFilter{}),
				}}},
			}},
		}}},
	}
}

// tryTimeoutHeader is how long a try waits for its response to begin, in milliseconds, in
// the place of what the retry policy of the route says. Envoy's router reads it before it
// takes headers away for a route, so only routes that want it have it set.
const tryTimeoutHeader = "x-envoy-upstream-rq-per-try-timeout-ms"

// shortTry is the entry of the filter retryOn for routes whose idempotent requests are
// tried elsewhere after a short time. The filter passes by requests that are not.
func shortTry() *headermutationv3.HeaderMutationPerRoute {
	return &headermutationv3.HeaderMutationPerRoute{Mutations: &headermutationv3.Mutations{
		RequestMutations: []*mutationv3.HeaderMutation{set(tryTimeoutHeader, strconv.FormatInt(gateway.DefaultTryTimeout.Milliseconds(), 10))},
	}}
}

// retryTargets is what retries have to know of the targets of a route.
func retryTargets(p *pb.TimeoutPolicy, targets []gateway.Target) retry.Targets {
	out := retry.Targets{Functions: true, Alone: gateway.Alone(targets)}
	out.Request, _ = gateway.RequestTimeout(p, targets)
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
		panic(err) // a string that is no UTF-8: the validation refused it
	}
	return b
}
