package compile

import (
	"fmt"
	"strings"

	mutationv3 "github.com/envoyproxy/go-control-plane/envoy/config/common/mutation_rules/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	rbacconfigv3 "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	headermutationv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/header_mutation/v3"
	luav3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/lua/v3"
	ondemandv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/on_demand/v3"
	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/rbac/v3"
	routerv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/penstock-gateway/penstock/gateway"
	"github.com/penstock-gateway/penstock/xds/policy"
)

// filters is the fixed chain: first what is the same for all routes, then the filters of
// policies, the guard, and the router. Filters that protect are enabled and deny by
// default, a route opts out of each natively. None is disabled: see unused.
func filters(p *packer, project, listener string, e gateway.Edge, traced bool) []*hcmv3.HttpFilter {
	static := func(name string, m policy.Message, disabled bool) *hcmv3.HttpFilter {
		return &hcmv3.HttpFilter{Name: name, Disabled: disabled, ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: p.Pack(m)}}
	}
	router := &routerv3.Router{SuppressEnvoyHeaders: true}
	out := []*hcmv3.HttpFilter{static(filterTrace, traceHeader(), false)}
	if traced {
		out = append(out, static(filterTraceFlags, traceFlags(), false))
		router.UpstreamHttpFilters = upstreamFilters(p)
	}
	out = append(out,
		static(filterEdge, edge(e), false),
		// It is before every filter whose configuration depends on the route, for it may
		// change the route. Exact hosts switch it off.
		static(filterFallback, fallback(listener), false),
		// It waits for the routes of an on-demand scope. After fallback, so that it sees
		// the scope that the request ends at; before everything that takes its
		// configuration from the route.
		static(filterOnDemand, &ondemandv3.OnDemand{}, false),
	)
	for i, script := range checkScripts(e) {
		out = append(out, static(fmt.Sprintf("%s-%d", filterEdgeCheck, i), &luav3.Lua{StatPrefix: "edge_check", DefaultSourceCode: inline(script)}, false))
	}
	for _, f := range chain().filters {
		switch {
		case f.Config == nil: // fallback, above
		case f.Source == policy.Listener:
			out = append(out, static(f.Name, f.Config(p), false))
		default:
			out = append(out, discovered(f.NameIn(project), p.Pack(f.Config(p)), f.Source == policy.Discovered))
		}
	}
	return append(out, static(filterRouter, router, false))
}

// discovered is a filter that comes by ECDS. With a default the listener serves
// at once and the default decides until the real one is there; without one the
// listener waits, and answers 500 when nothing comes.
func discovered(name string, config *anypb.Any, byDefault bool) *hcmv3.HttpFilter {
	source := &corev3.ExtensionConfigSource{ConfigSource: ads(), TypeUrls: []string{config.GetTypeUrl()}}
	if byDefault {
		source.DefaultConfig, source.ApplyDefaultConfigWithoutWarming = config, true
	}
	return &hcmv3.HttpFilter{Name: name, ConfigType: &hcmv3.HttpFilter_ConfigDiscovery{ConfigDiscovery: source}}
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
// what came of it turn every character that is not a letter or digit into one and the
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
