package compile

import (
	"fmt"
	"time"

	mutationv3 "github.com/envoyproxy/go-control-plane/envoy/config/common/mutation_rules/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tracev3 "github.com/envoyproxy/go-control-plane/envoy/config/trace/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	earlyv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/http/early_header_mutation/header_mutation/v3"
	samplersv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/tracers/opentelemetry/samplers/v3"
	tracingv3 "github.com/envoyproxy/go-control-plane/envoy/type/tracing/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/penstock-gateway/penstock/gateway"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// noRouteTimeout bounds how long a request waits for the routes of its host, when
// they do not come to a proxy that has not loaded them yet (on-demand scopes). A
// request whose head does not come is ended by it, too.
const noRouteTimeout = 5 * time.Second

const (
	// cookieLines is how many lines of headers a request of HTTP/2 may have for its
	// cookies, beside the others: Envoy counts both together and resets the stream.
	cookieLines = 500
)

// edgeProfile are the settings of Envoy's "edge proxy" best practices, hardened where
// backends were seen to read a request differently than Envoy, and those of the
// listener's own edge profile.
func edgeProfile(l *pb.Listener, e gateway.Edge) *hcmv3.HttpConnectionManager {
	u32 := wrapperspb.UInt32
	slashes := hcmv3.HttpConnectionManager_REJECT_REQUEST
	switch {
	case e.KeepSlashes:
		slashes = hcmv3.HttpConnectionManager_KEEP_UNCHANGED
	case e.DecodeSlashes:
		slashes = hcmv3.HttpConnectionManager_UNESCAPE_AND_FORWARD
	}
	underscores := corev3.HttpProtocolOptions_DROP_HEADER
	if e.Underscores != pb.HeaderUnderscores_HEADER_UNDERSCORES_DROP {
		underscores = corev3.HttpProtocolOptions_ALLOW // what is refused is refused with a status, by edge-check
	}
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
		MergeSlashes:                 !e.KeepRepeated,
		PathWithEscapedSlashesAction: slashes,
		// The port of the Host stays, for redirects and backends need it; hosts are
		// found without it.
		StripTrailingHostDot: true,
		// The early header mutation has removed what is not kept. The id says nothing of
		// the trace: that has its own.
		PreserveExternalRequestId: e.RequestIDs != pb.ClientRequestIds_CLIENT_REQUEST_IDS_REPLACE,
		CommonHttpProtocolOptions: &corev3.HttpProtocolOptions{
			IdleTimeout:                  durationpb.New(time.Hour),
			MaxHeadersCount:              u32(e.MaxHeaders + cookieLines),
			MaxRequestsPerConnection:     u32(100_000),
			HeadersWithUnderscoresAction: underscores,
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
		MaxRequestHeadersKb:   u32(e.MaxHeadersKiB + gateway.HeadersRoomKiB),
		RequestHeadersTimeout: durationpb.New(10 * time.Second),
		RequestTimeout:        durationpb.New(300 * time.Second),
		// Of requests that have no route yet: every route that forwards has its own.
		StreamIdleTimeout:   durationpb.New(noRouteTimeout),
		DelayedCloseTimeout: durationpb.New(time.Second),
		UpgradeConfigs:      []*hcmv3.HttpConnectionManager_UpgradeConfig{{UpgradeType: "websocket"}},
	}
}

// Headers of the early mutation: nobody but it and the edge filter sees them.
const (
	// headersHeader says what is wrong with the headers of a request.
	headersHeader   = "x-penstock-headers"
	requestIDHeader = "x-penstock-request-id"
)

// What headersHeader says.
const (
	tooMany = "many"
	tooBig  = "big"
)

// headersTooMuch compares the headers as the client sent them.
func headersTooMuch(e gateway.Edge) string {
	return fmt.Sprintf("%%CEL(size(request.headers) > %d ? '%s' : request.total_size > %d ? '%s' : '')%%",
		e.MaxHeaders, tooMany, e.MaxHeadersKiB<<10, tooBig)
}

// goodRequestID is the client's request id, when it is kept.
func goodRequestID(e gateway.Edge) string {
	const id = "request.headers['x-request-id']"
	rule := "size(" + id + ") <= 128 && " + id + ".matches('^[0-9A-Za-z_-]+$')"
	if e.RequestIDs == pb.ClientRequestIds_CLIENT_REQUEST_IDS_KEEP_UUID {
		rule = id + `.matches(r'^\C{8}-\C{4}-\C{4}-\C{4}-\C{12}$') && ` + id + ".matches('^[0-9a-fA-F]+-[0-9a-fA-F]+-[0-9a-fA-F]+-[0-9a-fA-F]+-[0-9a-fA-F]+$')"
	}
	return "%CEL('x-request-id' in request.headers && " + rule + " ? " + id + " : '')%"
}

// earlyMutation runs before the route is chosen.
func earlyMutation(listener string, e gateway.Edge, traced bool) *earlyv3.HeaderMutation {
	m := []*mutationv3.HeaderMutation{removePrefix("x-penstock-"), removePrefix("x-envoy-"), set(headersHeader, headersTooMuch(e))}
	for _, name := range gateway.ClientHeaders {
		m = append(m, remove(name))
	}
	if e.Underscores == pb.HeaderUnderscores_HEADER_UNDERSCORES_ALLOW {
		m = append(m, removeTwins()...)
	}
	m = append(m, traceMutations(traced)...)
	if e.RequestIDs != pb.ClientRequestIds_CLIENT_REQUEST_IDS_REPLACE {
		m = append(m,
			set(requestIDHeader, goodRequestID(e)), remove("x-request-id"),
			set("x-request-id", "%REQ("+requestIDHeader+")%"), remove(requestIDHeader),
		)
	}
	// Scopes of all listeners come in one subscription, so the key begins with the listener.
	// A port may follow, which the listener cuts off.
	m = append(m, set(scopeHeader, listener+"/%REQ(:authority)%"))
	return &earlyv3.HeaderMutation{Mutations: m}
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
			ConfigType: &tracev3.Tracing_Http_TypedConfig{TypedConfig: p.Pack(&tracev3.OpenTelemetryConfig{
				GrpcService: &corev3.GrpcService{
					TargetSpecifier: &corev3.GrpcService_EnvoyGrpc_{EnvoyGrpc: &corev3.GrpcService_EnvoyGrpc{ClusterName: otlpCluster}},
					Timeout:         durationpb.New(5 * time.Second),
				},
				ServiceName: "penstock-gateway",
				Sampler: &corev3.TypedExtensionConfig{
					Name: "envoy.tracers.opentelemetry.samplers.always_on", TypedConfig: p.Pack(&samplersv3.AlwaysOnSamplerConfig{}),
				},
			})},
		},
	}
}
