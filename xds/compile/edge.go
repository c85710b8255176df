package compile

import (
	"time"

	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	mutationv3 "github.com/envoyproxy/go-control-plane/envoy/config/common/mutation_rules/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tracev3 "github.com/envoyproxy/go-control-plane/envoy/config/trace/v3"
	celfilterv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/filters/cel/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	earlyv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/http/early_header_mutation/header_mutation/v3"
	samplersv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/tracers/opentelemetry/samplers/v3"
	tracingv3 "github.com/envoyproxy/go-control-plane/envoy/type/tracing/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/penstock-gateway/penstock/authn/jwt"
	"github.com/penstock-gateway/penstock/gateway"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// noRouteTimeout bounds how long a request waits for the routes of its host, when
// they do not come to a proxy that has not loaded them yet (on-demand scopes). A
// request whose head does not come is ended by it, too.
const noRouteTimeout = 5 * time.Second

// edgeProfile are the settings that are the same on every listener: those of
// Envoy's "edge proxy" best practices, hardened where backends were seen to read a
// request differently than Envoy.
func edgeProfile(l *pb.Listener) *hcmv3.HttpConnectionManager {
	u32 := wrapperspb.UInt32
	return &hcmv3.HttpConnectionManager{
		ServerName: "penstock",
		// Who the client is: the peer, or what so many trusted proxies before us said.
		// No address is internal: a list without entries would mean private addresses.
		UseRemoteAddress:  wrapperspb.Bool(true),
		XffNumTrustedHops: l.GetTrustedHops(),
		InternalAddressConfig: &hcmv3.HttpConnectionManager_InternalAddressConfig{
			CidrRanges: []*corev3.CidrRange{{AddressPrefix: "255.255.255.255", PrefixLen: u32(32)}},
		},
		// What is authorised is what is sent: one canonical path, one canonical host.
		NormalizePath:                wrapperspb.Bool(true),
		MergeSlashes:                 true,
		PathWithEscapedSlashesAction: hcmv3.HttpConnectionManager_REJECT_REQUEST,
		// The port of the Host stays, for redirects and backends need it; hosts are
		// found without it.
		StripTrailingHostDot: true,
		CommonHttpProtocolOptions: &corev3.HttpProtocolOptions{
			IdleTimeout:                  durationpb.New(time.Hour),
			MaxHeadersCount:              u32(100),
			MaxRequestsPerConnection:     u32(100_000),
			HeadersWithUnderscoresAction: corev3.HttpProtocolOptions_REJECT_REQUEST,
		},
		Http2ProtocolOptions: &corev3.Http2ProtocolOptions{
			MaxConcurrentStreams:        u32(100),
			InitialStreamWindowSize:     u32(64 << 10),
			InitialConnectionWindowSize: u32(1 << 20),
			// Bounds against floods.
			MaxOutboundFrames:                            u32(10_000),
			MaxOutboundControlFrames:                     u32(1_000),
			MaxConsecutiveInboundFramesWithEmptyPayload:  u32(1),
			MaxInboundPriorityFramesPerStream:            u32(100),
			MaxInboundWindowUpdateFramesPerDataFrameSent: u32(10),
		},
		MaxRequestHeadersKb:   u32(60),
		RequestHeadersTimeout: durationpb.New(10 * time.Second),
		RequestTimeout:        durationpb.New(300 * time.Second),
		// Of requests that have no route yet: every route that forwards has its own.
		StreamIdleTimeout:   durationpb.New(noRouteTimeout),
		DelayedCloseTimeout: durationpb.New(time.Second),
		UpgradeConfigs:      []*hcmv3.HttpConnectionManager_UpgradeConfig{{UpgradeType: "websocket"}},
	}
}

// clientHeaders are removed from every request: what only proxies before us or
// we ourselves may say, and what makes a backend see another request than the one
// that was authorised. X-Forwarded-For and -Proto are Envoy's business.
var clientHeaders = []string{
	"forwarded", "x-forwarded-host", "x-forwarded-uri", "x-forwarded-prefix", "x-forwarded-path", "x-forwarded-method",
	"x-forwarded-server", "x-forwarded-port", "x-forwarded-scheme", "x-forwarded-ssl", "x-original-forwarded-for", "front-end-https",
	"x-real-ip", "true-client-ip", "x-client-ip", "cf-connecting-ip", "x-cluster-client-ip", "x-host",
	"x-http-method-override", "x-http-method", "x-method-override",
	"x-original-url", "x-original-uri", "x-original-host", "x-original-method", "x-rewrite-url",
}

// earlyMutation runs before the route is chosen.
func earlyMutation(lay layout, listener string, traced bool) *earlyv3.HeaderMutation {
	m := []*mutationv3.HeaderMutation{removePrefix("x-penstock-"), removePrefix("x-envoy-")}
	for _, name := range clientHeaders {
		m = append(m, remove(name))
	}
	m = append(m, traceMutations(traced)...)
	if lay.kind == LayoutScopes {
		m = append(m, set(scopeHeader, lay.scopeValue(listener)))
	}
	return &earlyv3.HeaderMutation{Mutations: m}
}

// denied is the CEL condition of what a policy of the edge filter refused.
func denied(policy string) string {
	return "response.code_details == 'rbac_access_denied_matched_policy[" + policy + "]'"
}

// noScope is the CEL condition of a request that the jwt filter refused by its
// default because there is no scope for its host, so no route either. (The header
// WWW-Authenticate of that refusal stays: a mapping cannot take it away.)
const noScope = "response.code_details.startsWith('jwt_authn_access_denied') && (!has(xds.route_name) || xds.route_name == '')"

// notLoaded is the CEL condition of a request whose host has a scope, but whose
// routes did not come within noRouteTimeout. (While its head is not there, a
// request has no method.)
const notLoaded = "response.code_details == 'stream_idle_timeout' && request.method != '' && (!has(xds.route_name) || xds.route_name == '')"

// badToken is the CEL condition of a request whose token does not hold, which the guard
// or, for its audience, the jwt filter says with 403; it is 401 (RFC 6750, section 3.1).
const badToken = "response.code_details.startsWith('rbac_access_denied_matched_policy[" + jwt.BadToken + "') || " +
	"response.code_details.startsWith('jwt_authn_access_denied{Audiences')"

// localReplies gives the refusals of the edge filter, and those for want of a
// scope, their status and a reason.
func localReplies(p *packer) *hcmv3.LocalReplyConfig {
	c := &hcmv3.LocalReplyConfig{}
	for _, r := range []struct {
		condition string
		status    uint32
		body      string
		challenge bool
	}{
		{denied(badMethod), gateway.BadMethod.Status, gateway.BadMethod.Detail + "\n", false},
		{denied(badHost), gateway.BadHost.Status, gateway.BadHost.Detail + "\n", false},
		{denied(longHost), gateway.HostTooLong.Status, gateway.HostTooLong.Detail + "\n", false},
		{denied(badPath), gateway.BadPath.Status, gateway.BadPath.Detail + "\n", false},
		{noScope, 404, "no route\n", false},
		{notLoaded, 503, "the routes of this host are not there yet\n", false},
		{badToken, 401, "the token is not valid here\n", true},
	} {
		m := &hcmv3.ResponseMapper{
			Filter: &accesslogv3.AccessLogFilter{FilterSpecifier: &accesslogv3.AccessLogFilter_ExtensionFilter{ExtensionFilter: &accesslogv3.ExtensionFilter{
				Name: "envoy.access_loggers.extension_filters.cel",
				ConfigType: &accesslogv3.ExtensionFilter_TypedConfig{TypedConfig: p.pack(&celfilterv3.ExpressionFilter{
					Expression: r.condition,
				})},
			}}},
			StatusCode: wrapperspb.UInt32(r.status),
			Body:       &corev3.DataSource{Specifier: &corev3.DataSource_InlineString{InlineString: r.body}},
		}
		if r.challenge {
			m.HeadersToAdd = []*corev3.HeaderValueOption{{
				Header:       &corev3.HeaderValue{Key: "www-authenticate", Value: `Bearer error="invalid_token"`},
				AppendAction: corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD,
			}}
		}
		c.Mappers = append(c.Mappers, m)
	}
	return c
}

// tracing sends every request's spans to the collector; nil without one.
func (v *view) tracing(p *packer) *hcmv3.HttpConnectionManager_Tracing {
	if !v.settings.tracing() {
		return nil
	}
	return &hcmv3.HttpConnectionManager_Tracing{
		// A client may continue its trace, but not keep us from having one.
		RandomSampling:    &typev3.Percent{Value: 100},
		OverallSampling:   &typev3.Percent{Value: 100},
		ClientSampling:    &typev3.Percent{Value: 100},
		SpawnUpstreamSpan: wrapperspb.Bool(true),
		// Said once here, and not in a decorator of every route.
		Operation:        "%ROUTE_NAME%",
		MaxPathTagLength: wrapperspb.UInt32(256),
		CustomTags: []*tracingv3.CustomTag{{
			Tag: "penstock.route", Type: &tracingv3.CustomTag_Value{Value: "%ROUTE_NAME%"},
		}},
		Provider: &tracev3.Tracing_Http{
			Name: "envoy.tracers.opentelemetry",
			ConfigType: &tracev3.Tracing_Http_TypedConfig{TypedConfig: p.pack(&tracev3.OpenTelemetryConfig{
				GrpcService: &corev3.GrpcService{
					TargetSpecifier: &corev3.GrpcService_EnvoyGrpc_{EnvoyGrpc: &corev3.GrpcService_EnvoyGrpc{ClusterName: otlpCluster}},
					Timeout:         durationpb.New(5 * time.Second),
				},
				ServiceName: "penstock-gateway",
				Sampler: &corev3.TypedExtensionConfig{
					Name: "envoy.tracers.opentelemetry.samplers.always_on", TypedConfig: p.pack(&samplersv3.AlwaysOnSamplerConfig{}),
				},
			})},
		},
	}
}
