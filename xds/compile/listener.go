package compile

import (
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	inspectorv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/tls_inspector/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	uuidv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/request_id/uuid/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/penstock-gateway/penstock/gateway"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
	"github.com/penstock-gateway/penstock/xds"
)

const (
	// initialFetchTimeout bounds the wait for a named resource.
	initialFetchTimeout = 2 * time.Second
	// bufferLimit of connections on either side (Envoy's edge best practices).
	bufferLimit = 32 << 10
	// transportTimeout bounds a TLS handshake.
	transportTimeout = 10 * time.Second
)

// listener makes the Envoy listener of one pb.Listener. certificates are the full
// names of the secrets that are there.
func (v *view) listener(gw *pb.Gateway, l *pb.Listener, certificates []string) (*xds.Resource, error) {
	name := listenerName(gw.GetName(), l.GetName())
	p := &packer{}
	manager := v.connectionManager(p, name, l)
	filterChain := &listenerv3.FilterChain{
		Filters: []*listenerv3.Filter{{
			Name:       "envoy.filters.network.http_connection_manager",
			ConfigType: &listenerv3.Filter_TypedConfig{TypedConfig: p.Pack(manager)},
		}},
		TransportSocketConnectTimeout: durationpb.New(transportTimeout),
	}
	refs := chain().needs(v.in.View.Project)
	if v.settings.tracing() {
		refs = append(refs, xds.Ref{Type: xds.Cluster, Name: otlpCluster})
	}
	if l.GetProtocol() == pb.ListenerProtocol_LISTENER_PROTOCOL_HTTPS {
		filterChain.TransportSocket = &corev3.TransportSocket{
			Name:       "envoy.transport_sockets.tls",
			ConfigType: &corev3.TransportSocket_TypedConfig{TypedConfig: p.Pack(serverTLS(certificates))},
		}
		for _, c := range certificates {
			refs = append(refs, xds.Ref{Type: xds.Secret, Name: c})
		}
	}
	out := &listenerv3.Listener{
		Name:                             name,
		StatPrefix:                       statPrefix(name),
		Address:                          socketAddress(addressOf(l), l.GetPort()),
		FilterChains:                     []*listenerv3.FilterChain{filterChain},
		PerConnectionBufferLimitBytes:    wrapperspb.UInt32(bufferLimit),
		ListenerFiltersTimeout:           durationpb.New(5 * time.Second),
		ContinueOnListenerFiltersTimeout: false,
		TrafficDirection:                 corev3.TrafficDirection_INBOUND,
		// With a socket for each worker (SO_REUSEPORT) any process of the same user may
		// add one and take its share of the connections. The workers take turns with the
		// one socket, or one of them would have most connections (decision 0018).
		EnableReusePort: wrapperspb.Bool(false),
		ConnectionBalanceConfig: &listenerv3.Listener_ConnectionBalanceConfig{
			BalanceType: &listenerv3.Listener_ConnectionBalanceConfig_ExactBalance_{ExactBalance: &listenerv3.Listener_ConnectionBalanceConfig_ExactBalance{}},
		},
	}
	names := gateway.ServerNames(l)
	if len(names) > 0 {
		filterChain.FilterChainMatch = &listenerv3.FilterChainMatch{ServerNames: names}
	}
	if len(names) > 0 || gateway.EdgeOf(l).StrictSNI {
		// Nothing else tells which name the client gave.
		out.ListenerFilters = []*listenerv3.ListenerFilter{{
			Name:       "envoy.filters.listener.tls_inspector",
			ConfigType: &listenerv3.ListenerFilter_TypedConfig{TypedConfig: p.Pack(&inspectorv3.TlsInspector{})},
		}}
	}
	p.Check(out)
	if err := p.Err(); err != nil {
		return nil, err
	}
	return xds.NewResource(xds.Listener, name, out, refs, []string{gw.GetName()})
}

func addressOf(l *pb.Listener) string {
	if a := l.GetAddress(); a != "" {
		return a
	}
	return gateway.DefaultListenerAddress
}

func socketAddress(address string, port uint32) *corev3.Address {
	return &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
		Address: address, PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: port},
	}}}
}

// serverTLS chooses among the certificates by SNI.
func serverTLS(certificates []string) *tlsv3.DownstreamTlsContext {
	c := &tlsv3.CommonTlsContext{
		TlsParams:     &tlsv3.TlsParameters{TlsMinimumProtocolVersion: tlsv3.TlsParameters_TLSv1_2, TlsMaximumProtocolVersion: tlsv3.TlsParameters_TLSv1_3},
		AlpnProtocols: []string{"h2", "http/1.1"},
	}
	for _, name := range certificates {
		c.TlsCertificateSdsSecretConfigs = append(c.TlsCertificateSdsSecretConfigs, &tlsv3.SdsSecretConfig{Name: name, SdsConfig: ads()})
	}
	return &tlsv3.DownstreamTlsContext{CommonTlsContext: c}
}

// connectionManager is the HTTP side of a listener: the edge profile, the early
// header mutation, the chain, and where the routes come from.
func (v *view) connectionManager(p *packer, name string, l *pb.Listener) *hcmv3.HttpConnectionManager {
	e := gateway.EdgeOf(l)
	m := edgeProfile(l, e)
	m.RequestIdExtension = requestID(p)
	m.RequestTimeout = durationpb.New(uploadTimeout(l))
	m.StatPrefix = statPrefix(name)
	m.HttpFilters = filters(p, v.in.View.Project, name, e, v.settings.tracing())
	m.EarlyHeaderMutationExtensions = []*corev3.TypedExtensionConfig{{
		Name: "envoy.http.early_header_mutation.header_mutation", TypedConfig: p.Pack(earlyMutation(name, e, v.settings.tracing())),
	}}
	m.LocalReplyConfig = localReplies(p, e)
	m.Tracing = v.tracing(p)
	m.RouteSpecifier = &hcmv3.HttpConnectionManager_ScopedRoutes{ScopedRoutes: scopedRoutes(name)}
	p.Check(m)
	return m
}

// requestID has Envoy's ids say nothing but who they are: by default it writes its
// decision to trace into them, also into a client's, and does not trace a request
// whose id is not a UUID.
func requestID(p *packer) *hcmv3.RequestIDExtension {
	return &hcmv3.RequestIDExtension{TypedConfig: p.Pack(&uuidv3.UuidRequestIdConfig{
		PackTraceReason: wrapperspb.Bool(false), UseRequestIdForTraceSampling: wrapperspb.Bool(false),
	})}
}

// uploadTimeout bounds how long a request may take to arrive; 0 for ever.
func uploadTimeout(l *pb.Listener) time.Duration {
	if d := l.GetUploadTimeout(); d != nil {
		return d.AsDuration()
	}
	return gateway.DefaultUploadTimeout
}

func scopedRoutes(name string) *hcmv3.ScopedRoutes {
	return &hcmv3.ScopedRoutes{
		Name: name,
		ScopeKeyBuilder: &hcmv3.ScopedRoutes_ScopeKeyBuilder{Fragments: []*hcmv3.ScopedRoutes_ScopeKeyBuilder_FragmentBuilder{{
			Type: &hcmv3.ScopedRoutes_ScopeKeyBuilder_FragmentBuilder_HeaderValueExtractor_{
				HeaderValueExtractor: &hcmv3.ScopedRoutes_ScopeKeyBuilder_FragmentBuilder_HeaderValueExtractor{
					Name: scopeHeader,
					// The key is what stands before the port: no name has a colon.
					ElementSeparator: ":",
					ExtractType:      &hcmv3.ScopedRoutes_ScopeKeyBuilder_FragmentBuilder_HeaderValueExtractor_Index{},
				},
			},
		}}},
		RdsConfigSource: ads(),
		ConfigSpecifier: &hcmv3.ScopedRoutes_ScopedRds{ScopedRds: &hcmv3.ScopedRds{ScopedRdsConfigSource: ads()}},
	}
}
