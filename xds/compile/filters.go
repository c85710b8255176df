package compile

import (
	"fmt"
	"slices"
	"strings"

	mutationv3 "github.com/envoyproxy/go-control-plane/envoy/config/common/mutation_rules/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	rbacconfigv3 "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	headermutationv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/header_mutation/v3"
	jwtv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/jwt_authn/v3"
	luav3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/lua/v3"
	ondemandv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/on_demand/v3"
	ratelimitv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ratelimit/v3"
	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/rbac/v3"
	routerv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/penstock-gateway/penstock/authn/jwt"
	"github.com/penstock-gateway/penstock/gateway"
	"github.com/penstock-gateway/penstock/gateway/policy/ratelimit"
)

// filters is the fixed chain. Security filters are enabled and deny by default, a
// route opts out of each natively; the guard stands before the router. A later
// filter that depends on an external service (ext_authz) has its place between jwt
// and rbac, enabled, as soon as there is such a service.
func filters(p *packer, project string, l layout, listener string, e gateway.Edge, traced bool) []*hcmv3.HttpFilter {
	static := func(name string, m validated, disabled bool) *hcmv3.HttpFilter {
		return &hcmv3.HttpFilter{Name: name, Disabled: disabled, ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: p.pack(m)}}
	}
	router := &routerv3.Router{SuppressEnvoyHeaders: true}
	chain := []*hcmv3.HttpFilter{static(filterTrace, traceHeader(), false)}
	if traced {
		chain = append(chain, static(filterTraceFlags, traceFlags(), false))
		router.UpstreamHttpFilters = upstreamFilters(p)
	}
	chain = append(chain,
		static(filterEdge, edge(e), false),
		// Only the mixed-case scope and redirects switch it on; it is before every filter
		// whose configuration depends on the route, for it may change the route.
		static(filterHostCase, hostCase(l, listener), true),
		// It waits for the routes of an on-demand scope. After host-case, so that it
		// sees the scope that a host in capital letters ends at; before everything that
		// takes its configuration from the route.
		static(filterOnDemand, &ondemandv3.OnDemand{}, false),
	)
	for i, script := range checkScripts(e) {
		chain = append(chain, static(fmt.Sprintf("%s-%d", filterEdgeCheck, i), &luav3.Lua{StatPrefix: "edge_check", DefaultSourceCode: inline(script)}, false))
	}
	return append(chain,
		static(filterRetryOn, retryOn(p), false),
		discovered(claimsFilter(project), nil, p.pack(&headermutationv3.HeaderMutation{})),
		discovered(jwtFilter(project), p.pack(jwt.Deny()), p.pack(jwt.Deny())),
		static(filterRBAC, denyAll("rbac"), false),
		static(filterLimitOpen, ratelimit.Filter(limiterCluster, false), true),
		static(filterLimitClosed, ratelimit.Filter(limiterCluster, true), true),
		static(filterGuard, denyAll("guard"), false),
		static(filterRouter, router, false),
	)
}

// discovered is a filter that comes by ECDS. With a default the listener serves
// at once and the default decides until the real one is there; without one the
// listener waits, and answers 500 when nothing comes.
func discovered(name string, byDefault, like *anypb.Any) *hcmv3.HttpFilter {
	return &hcmv3.HttpFilter{Name: name, ConfigType: &hcmv3.HttpFilter_ConfigDiscovery{ConfigDiscovery: &corev3.ExtensionConfigSource{
		ConfigSource:                     ads(),
		DefaultConfig:                    byDefault,
		ApplyDefaultConfigWithoutWarming: byDefault != nil,
		TypeUrls:                         []string{like.GetTypeUrl()},
	}}}
}

// ads is the source of everything that is named in a resource.
func ads() *corev3.ConfigSource {
	return &corev3.ConfigSource{
		ResourceApiVersion:    corev3.ApiVersion_V3,
		ConfigSourceSpecifier: &corev3.ConfigSource_Ads{Ads: &corev3.AggregatedConfigSource{}},
		// What is missing must not hold up the rest for Envoy's 15 s.
		InitialFetchTimeout: durationpb.New(initialFetchTimeout),
	}
}

// traceHeader tells every client, also of local replies, the trace of its request,
// and takes away the response headers that are between Envoy and backends.
// It is the first filter, so it is the last to see a response.
func traceHeader() *headermutationv3.HeaderMutation {
	return &headermutationv3.HeaderMutation{Mutations: &headermutationv3.Mutations{
		// The router and Envoy itself have read what they want of x-envoy-* by now; a
		// client must not believe that what a backend wrote there is ours.
		ResponseMutations: []*mutationv3.HeaderMutation{removePrefix("x-envoy-"), set("x-trace-id", "%TRACE_ID%")},
	}}
}

// denyAll is an RBAC filter that only a route's entry can open.
func denyAll(prefix string) *rbacv3.RBAC {
	return &rbacv3.RBAC{RulesStatPrefix: prefix, Rules: &rbacconfigv3.RBAC{Action: rbacconfigv3.RBAC_ALLOW}}
}

func hostCase(l layout, listener string) *luav3.Lua {
	inline := func(script string) *corev3.DataSource {
		return &corev3.DataSource{Specifier: &corev3.DataSource_InlineString{InlineString: script}}
	}
	return &luav3.Lua{StatPrefix: "host_case", SourceCodes: map[string]*corev3.DataSource{
		hostCaseSource: inline(l.hostCaseScript(listener)), dropPortSource: inline(dropPortScript),
	}}
}

// stripClaims is the configuration of the claims filter: headers that some policy
// of the project makes from claims never come from a client, on no route. Envoy's
// jwt_authn strips them only where it verifies, and only its own.
func stripClaims(names []string) *headermutationv3.HeaderMutation {
	m := &headermutationv3.HeaderMutation{Mutations: &headermutationv3.Mutations{}}
	for _, name := range names {
		m.Mutations.RequestMutations = append(m.Mutations.RequestMutations, removeMatching(regex(aliases(name))))
	}
	return m
}

// aliases matches the names that some server may take for the same header: CGI and
// what came of it turn every character that is no letter or digit into one and the
// same. (Names with underscores are refused by the listener, but belong to them.)
// Of a name that is too long for Envoy's expressions the end is left open.
func aliases(name string) string {
	const (
		// other is a character of a header name that is neither, in ranges: letters
		// are lower case here.
		other      = "[!-/^-`{-~]"
		otherSteps = 3
		// fixed is what an expression costs beside its characters, with ".*"; at 80
		// Envoy begins to warn.
		fixed, limit = 8, 80
	)
	var b strings.Builder
	steps := fixed
	for _, c := range []byte(name) {
		letter := 'a' <= c && c <= 'z' || '0' <= c && c <= '9'
		if letter {
			steps++
			b.WriteByte(c)
		} else {
			steps += otherSteps
			b.WriteString(other)
		}
		if steps > limit-otherSteps {
			b.WriteString(".*")
			break
		}
	}
	return b.String()
}

func set(name, value string) *mutationv3.HeaderMutation {
	return &mutationv3.HeaderMutation{Action: &mutationv3.HeaderMutation_Append{Append: &corev3.HeaderValueOption{
		Header:       &corev3.HeaderValue{Key: name, Value: value},
		AppendAction: corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD,
	}}}
}

func remove(name string) *mutationv3.HeaderMutation {
	return &mutationv3.HeaderMutation{Action: &mutationv3.HeaderMutation_Remove{Remove: name}}
}

func removePrefix(prefix string) *mutationv3.HeaderMutation {
	return removeMatching(&matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Prefix{Prefix: prefix}})
}

func removeMatching(name *matcherv3.StringMatcher) *mutationv3.HeaderMutation {
	return &mutationv3.HeaderMutation{Action: &mutationv3.HeaderMutation_RemoveOnMatch_{
		RemoveOnMatch: &mutationv3.HeaderMutation_RemoveOnMatch{KeyMatcher: name},
	}}
}

// perRoute are the filters that a route may have an entry for, beside that of
// jwtFilter, with the type of the entry. Envoy acknowledges an entry of a misspelt
// filter or of another type, and ignores it.
var perRoute = map[string]string{
	filterHostCase:    typeURL(&luav3.LuaPerRoute{}),
	filterRBAC:        typeURL(&rbacv3.RBACPerRoute{}),
	filterLimitOpen:   typeURL(&ratelimitv3.RateLimitPerRoute{}),
	filterLimitClosed: typeURL(&ratelimitv3.RateLimitPerRoute{}),
	filterGuard:       typeURL(&rbacv3.RBACPerRoute{}),
	filterRetryOn:     typeURL(&headermutationv3.HeaderMutationPerRoute{}),
}

var jwtPerRoute = typeURL(&jwtv3.PerRouteConfig{})

// perRouteType is the type of the entry for a filter; "" for none.
func perRouteType(project, filter string) string {
	if filter == jwtFilter(project) {
		return jwtPerRoute
	}
	return perRoute[filter]
}

// checkEntries reports entries that Envoy would ignore, and enabled security
// filters for which none stands at any of the levels, outermost first.
func checkEntries(project string, levels ...map[string]*anypb.Any) error {
	for _, level := range levels {
		for name, entry := range level {
			switch want := perRouteType(project, name); {
			case want == "":
				return fmt.Errorf("entry for %q, which is no filter of the chain that takes entries", name)
			case entry.GetTypeUrl() != want:
				return fmt.Errorf("entry for %q has type %s, the filter takes %s", name, entry.GetTypeUrl(), want)
			}
		}
	}
	for _, name := range [...]string{jwtFilter(project), filterRBAC, filterGuard} {
		if !slices.ContainsFunc(levels, func(l map[string]*anypb.Any) bool { return l[name] != nil }) {
			return fmt.Errorf("no entry for the security filter %q", name)
		}
	}
	return nil
}

func typeURL(m proto.Message) string {
	return "type.googleapis.com/" + string(m.ProtoReflect().Descriptor().FullName())
}
