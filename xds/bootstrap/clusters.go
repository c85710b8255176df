package bootstrap

import (
	"fmt"
	"maps"
	"path/filepath"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	httpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

const (
	// initialFetchTimeout is how long start-up waits for the control plane.
	initialFetchTimeout = 5 * time.Second
	// The default is 500 ms to 30 s, fully jittered: 15 s were measured until an
	// Envoy came back to a control plane that was there all the time.
	reconnectBase = 100 * time.Millisecond
	reconnectMax  = time.Second

	// An xDS connection whose other end is gone without a word is noticed within
	// keepaliveInterval + keepaliveTimeout.
	keepaliveInterval = 10 * time.Second
	keepaliveTimeout  = 5 * time.Second
)

func endpoint(cluster, host string, port uint32) *endpointv3.ClusterLoadAssignment {
	return &endpointv3.ClusterLoadAssignment{
		ClusterName: cluster,
		Endpoints: []*endpointv3.LocalityLbEndpoints{{
			LbEndpoints: []*endpointv3.LbEndpoint{{
				HostIdentifier: &endpointv3.LbEndpoint_Endpoint{Endpoint: &endpointv3.Endpoint{Address: socketAddress(host, port)}},
			}},
		}},
	}
}

func socketAddress(host string, port uint32) *corev3.Address {
	return &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
		Address: host, PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: port},
	}}}
}

// localCluster has this proxy as its one member. Nothing is ever sent there:
// port 9 is the discard service.
func localCluster(c Config) *clusterv3.Cluster {
	a := endpoint(LocalCluster, "127.0.0.1", 9)
	if c.Region != "" || c.Zone != "" {
		a.Endpoints[0].Locality = &corev3.Locality{Region: c.Region, Zone: c.Zone}
	}
	return &clusterv3.Cluster{
		Name:                 LocalCluster,
		ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STATIC},
		ConnectTimeout:       durationpb.New(time.Second),
		LoadAssignment:       a,
	}
}

func xdsCluster(c Config) (*clusterv3.Cluster, error) {
	host, port, err := splitAddress(c.XDSAddress)
	if err != nil {
		return nil, err
	}
	socket, err := anypb.New(&tlsv3.UpstreamTlsContext{
		Sni: c.XDSServerName,
		CommonTlsContext: &tlsv3.CommonTlsContext{
			TlsParams:                      &tlsv3.TlsParameters{TlsMinimumProtocolVersion: tlsv3.TlsParameters_TLSv1_3, TlsMaximumProtocolVersion: tlsv3.TlsParameters_TLSv1_3},
			TlsCertificateSdsSecretConfigs: []*tlsv3.SdsSecretConfig{sdsConfig(c, "identity")},
			ValidationContextType: &tlsv3.CommonTlsContext_ValidationContextSdsSecretConfig{
				ValidationContextSdsSecretConfig: sdsConfig(c, "trust"),
			},
		},
	})
	if err != nil {
		return nil, fmt.Errorf("bootstrap: %w", err)
	}
	protocol, err := anypb.New(&httpv3.HttpProtocolOptions{
		UpstreamProtocolOptions: &httpv3.HttpProtocolOptions_ExplicitHttpConfig_{ExplicitHttpConfig: &httpv3.HttpProtocolOptions_ExplicitHttpConfig{
			ProtocolConfig: &httpv3.HttpProtocolOptions_ExplicitHttpConfig_Http2ProtocolOptions{Http2ProtocolOptions: &corev3.Http2ProtocolOptions{
				ConnectionKeepalive: &corev3.KeepaliveSettings{Interval: durationpb.New(keepaliveInterval), Timeout: durationpb.New(keepaliveTimeout)},
			}},
		}},
	})
	if err != nil {
		return nil, fmt.Errorf("bootstrap: %w", err)
	}
	return &clusterv3.Cluster{
		Name:                 XDSCluster,
		ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: endpointType(host)},
		ConnectTimeout:       durationpb.New(time.Second),
		LoadAssignment:       endpoint(XDSCluster, host, port),
		UpstreamConnectionOptions: &clusterv3.UpstreamConnectionOptions{TcpKeepalive: &corev3.TcpKeepalive{
			KeepaliveProbes: wrapperspb.UInt32(3), KeepaliveTime: wrapperspb.UInt32(30), KeepaliveInterval: wrapperspb.UInt32(5),
		}},
		TypedExtensionProtocolOptions: map[string]*anypb.Any{"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": protocol},
		TransportSocket: &corev3.TransportSocket{
			Name:       "envoy.transport_sockets.tls",
			ConfigType: &corev3.TransportSocket_TypedConfig{TypedConfig: socket},
		},
	}, nil
}

// sdsConfig refers to a file. Certificates that are named in the bootstrap itself
// are read once; those of an SDS file are watched.
func sdsConfig(c Config, name string) *tlsv3.SdsSecretConfig {
	return &tlsv3.SdsSecretConfig{
		Name: name,
		SdsConfig: &corev3.ConfigSource{
			ResourceApiVersion:    corev3.ApiVersion_V3,
			ConfigSourceSpecifier: &corev3.ConfigSource_PathConfigSource{PathConfigSource: &corev3.PathConfigSource{Path: c.sdsFile(name)}},
		},
	}
}

// sdsResponses are the contents of the SDS files by name.
func sdsResponses(c Config) map[string]*discoveryv3.DiscoveryResponse {
	file := func(path string) *corev3.DataSource {
		return &corev3.DataSource{Specifier: &corev3.DataSource_Filename{Filename: path}}
	}
	watch := func(path string) *corev3.WatchedDirectory {
		return &corev3.WatchedDirectory{Path: filepath.Dir(path)}
	}
	secrets := map[string]*tlsv3.Secret{
		"identity": {Name: "identity", Type: &tlsv3.Secret_TlsCertificate{TlsCertificate: &tlsv3.TlsCertificate{
			CertificateChain: file(c.CertFile), PrivateKey: file(c.KeyFile), WatchedDirectory: watch(c.CertFile),
		}}},
		"trust": {Name: "trust", Type: &tlsv3.Secret_ValidationContext{ValidationContext: &tlsv3.CertificateValidationContext{
			TrustedCa:        file(c.CAFile),
			WatchedDirectory: watch(c.CAFile),
			MatchTypedSubjectAltNames: []*tlsv3.SubjectAltNameMatcher{{
				SanType: tlsv3.SubjectAltNameMatcher_URI,
				Matcher: &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Exact{Exact: c.XDSSPIFFE}},
			}},
		}}},
	}
	out := map[string]*discoveryv3.DiscoveryResponse{}
	for name, secret := range maps.All(secrets) {
		a, err := anypb.New(proto.Message(secret))
		if err != nil {
			panic(err) // a generated message of valid UTF-8 strings always marshals
		}
		out[name] = &discoveryv3.DiscoveryResponse{Resources: []*anypb.Any{a}}
	}
	return out
}
