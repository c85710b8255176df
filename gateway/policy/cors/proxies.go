package cors

import (
	"slices"
	"strconv"
	"strings"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	corsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/cors/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/penstock-gateway/penstock/gateway"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
	"github.com/penstock-gateway/penstock/xds/policy"
)

// Proxies is CORS in proxies: Envoy's filter, before authentication, since preflights hold no
// credentials and pages must be able to read why they are refused. Without an entry it does
// nothing. gRPC clients are not browsers.
var Proxies = &policy.Policy{
	Model: Policy, Filters: []policy.Filter{filter}, Route: route, Apply: replace,
	GRPC: func(*gateway.Effective) string { return "" },
}

// filter looks at the route after on-demand routes have come, and does nothing for routes
// that forward no request.
var filter = policy.Filter{
	Name: "penstock.v1.cors", Stage: policy.Prepare, Mode: policy.Always, AtHost: true, Forwards: true,
	Config: func(*policy.Packer) policy.Message { return &corsv3.Cors{} }, Entry: &corsv3.CorsPolicy{},
}

func route(r *policy.Route) error {
	if p := inForce(Policy.Of(r.Entry.Policies)); p != nil && r.Entry.Problem == "" && r.Entry.Rule.GetForward() != nil {
		r.Set(&filter, entry(r.Entry, p))
	}
	return nil
}

// entry says everything in one place: Envoy joins what it finds at route and host field by
// field.
func entry(e *gateway.Entry, p *pb.CorsPolicy) *corsv3.CorsPolicy {
	out := &corsv3.CorsPolicy{
		AllowMethods:     strings.Join(methods(e, p), ", "),
		AllowHeaders:     strings.Join(p.GetAllowHeaders(), ", "),
		ExposeHeaders:    strings.Join(p.GetExposeHeaders(), ", "),
		AllowCredentials: wrapperspb.Bool(p.GetAllowCredentials()),
		// A preflight of another origin is answered, too, without leave.
		ForwardNotMatchingPreflights: wrapperspb.Bool(false),
	}
	if d := p.GetMaxAge(); d != nil {
		out.MaxAge = strconv.FormatInt(int64(d.AsDuration()/time.Second), 10)
	}
	for _, o := range p.GetAllowOrigins() {
		m := &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Exact{Exact: o}} // Envoy knows "*"
		if pattern, wild := wildcard(o); wild {
			m = expression(pattern)
		}
		out.AllowOriginStringMatch = append(out.AllowOriginStringMatch, m)
	}
	for _, r := range p.GetAllowOriginRegexes() {
		out.AllowOriginStringMatch = append(out.AllowOriginStringMatch, expression(r))
	}
	return out
}

func expression(pattern string) *matcherv3.StringMatcher {
	return &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_SafeRegex{SafeRegex: &matcherv3.RegexMatcher{Regex: pattern}}}
}

// replace removes what backends, or header changes, say of access by pages, which Envoy's
// filter leaves where it allows none; and tells caches that the response depends on the
// origin (Fetch, section 3.2.5). It comes after all other changes.
func replace(r *policy.Route, out *routev3.Route) {
	if inForce(Policy.Of(r.Entry.Policies)) == nil || out.GetRoute() == nil {
		return
	}
	out.ResponseHeadersToAdd = slices.DeleteFunc(out.ResponseHeadersToAdd, func(h *corev3.HeaderValueOption) bool {
		return slices.Contains(responseHeaders, h.GetHeader().GetKey())
	})
	for _, name := range responseHeaders {
		if !slices.Contains(out.ResponseHeadersToRemove, name) {
			out.ResponseHeadersToRemove = append(out.ResponseHeadersToRemove, name)
		}
	}
	out.ResponseHeadersToAdd = append(out.ResponseHeadersToAdd, &corev3.HeaderValueOption{
		Header: &corev3.HeaderValue{Key: "vary", Value: "Origin"}, AppendAction: corev3.HeaderValueOption_APPEND_IF_EXISTS_OR_ADD,
	})
}
