package compile

import (
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

// noRetries is the policy of a route without retries in a host that has some.
func noRetries() *routev3.RetryPolicy { return &routev3.RetryPolicy{NumRetries: wrapperspb.UInt32(0)} }

// shareRetries takes the retry policy that saves the most bytes out of the routes
// that have it and returns it for their host; nil when that saves none. A policy of
// a route replaces that of its host as a whole, so the others stay what they are,
// and a route without retries says so.
func shareRetries(routes []*routev3.Route) *routev3.RetryPolicy {
	type use struct {
		policy *routev3.RetryPolicy
		count  int
	}
	uses := map[string]*use{}
	var order []string
	none := 0
	for _, r := range routes {
		a := r.GetRoute()
		if a == nil {
			continue
		}
		if a.RetryPolicy == nil {
			none++
			continue
		}
		key := string(mustMarshal(a.RetryPolicy))
		if uses[key] == nil {
			uses[key] = &use{policy: a.RetryPolicy}
			order = append(order, key)
		}
		uses[key].count++
	}
	best, saved := "", 0
	for _, key := range order {
		if s := (uses[key].count-1)*len(key) - none*proto.Size(noRetries()); s > saved {
			best, saved = key, s
		}
	}
	if saved == 0 {
		return nil
	}
	for _, r := range routes {
		switch a := r.GetRoute(); {
		case a == nil:
		case a.RetryPolicy == nil:
			a.RetryPolicy = noRetries()
		case string(mustMarshal(a.RetryPolicy)) == best:
			a.RetryPolicy = nil
		}
	}
	return uses[best].policy
}

// mustMarshal is for messages that were marshalled or checked before.
func mustMarshal(m proto.Message) []byte {
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		panic(err) // a string that is no UTF-8: the validation refused it
	}
	return b
}
