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
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
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

	// A replica that cannot be connected to is passed over for ejectionTime, then
	// twice that, up to ejectionMax.
	ejectionTime = 2 * time.Second
	ejectionMax  = 10 * time.Second
)

func assignment(cluster string, addresses ...*corev3.Address) *endpointv3.ClusterLoadAssignment {
	e := &endpointv3.LocalityLbEndpoints{}
	for _, a := range addresses {
		e.LbEndpoints = append(e.LbEndpoints, &endpointv3.LbEndpoint{
			HostIdentifier: &endpointv3.LbEndpoint_Endpoint{Endpoint: &endpointv3.Endpoint{Address: a}},
		})
	}
	return &endpointv3.ClusterLoadAssignment{ClusterName: cluster, Endpoints: []*endpointv3.LocalityLbEndpoints{e}}
}

func socketAddress(host string, port uint32) *corev3.Address {
	return &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
		Address: host, PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: port},
	}}}
}

// localCluster has this proxy as its one member. Nothing is ever sent there:
// port 9 is the discard service.
func localCluster(c Config) *clusterv3.Cluster {
	a := assignment(LocalCluster, socketAddress("127.0.0.1", 9))
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
	if c.XDSSocket != "" {
		return keeperCluster(c)
	}
	var hosts []string
	var addresses []*corev3.Address
	for _, a := range c.XDSAddresses {
		host, port, err := splitAddress(a)
		if err != nil {
			return nil, err
		}
		hosts, addresses = append(hosts, host), append(addresses, socketAddress(host, port))
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
	protocol, err := http2()
	if err != nil {
		return nil, err
	}
	return &clusterv3.Cluster{
		Name:                 XDSCluster,
		ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: endpointType(hosts)},
		ConnectTimeout:       durationpb.New(time.Second),
		LoadAssignment:       assignment(XDSCluster, addresses...),
		LbPolicy:             clusterv3.Cluster_ROUND_ROBIN,
		OutlierDetection:     replicaHealth(),
		// The default, 50 %, would try dead replicas again as long as they are the
		// most. At 0 % healthy all are tried, which is what is left to do.
		CommonLbConfig: &clusterv3.Cluster_CommonLbConfig{
			HealthyPanicThreshold: &typev3.Percent{Value: 1},
			// By default, changes of health are used up to a second late.
			UpdateMergeWindow: durationpb.New(0),
		},
		UpstreamConnectionOptions: &clusterv3.UpstreamConnectionOptions{TcpKeepalive: &corev3.TcpKeepalive{
			KeepaliveProbes: wrapperspb.UInt32(3), KeepaliveTime: wrapperspb.UInt32(30), KeepaliveInterval: wrapperspb.UInt32(5),
		}},
		TypedExtensionProtocolOptions: protocol,
		TransportSocket: &corev3.TransportSocket{
			Name:       "envoy.transport_sockets.tls",
			ConfigType: &corev3.TransportSocket_TypedConfig{TypedConfig: socket},
		},
	}, nil
}

// keeperCluster is the keeper beside this proxy. No bytes of it leave the machine, and
// nobody but this user reaches its socket.
func keeperCluster(c Config) (*clusterv3.Cluster, error) {
	protocol, err := http2()
	if err != nil {
		return nil, err
	}
	return &clusterv3.Cluster{
		Name:                 XDSCluster,
		ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STATIC},
		ConnectTimeout:       durationpb.New(time.Second),
		LoadAssignment: assignment(XDSCluster, &corev3.Address{Address: &corev3.Address_Pipe{
			Pipe: &corev3.Pipe{Path: c.XDSSocket},
		}}),
		TypedExtensionProtocolOptions: protocol,
	}, nil
}

// http2 has a connection speak HTTP/2, and notice that its other end is gone.
func http2() (map[string]*anypb.Any, error) {
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
	return map[string]*anypb.Any{"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": protocol}, nil
}

// replicaHealth passes over a replica as soon as one connection to it failed.
// What it answers does not count: an answer that closes the stream is for this
// proxy, and another replica would give the same.
func replicaHealth() *clusterv3.OutlierDetection {
	return &clusterv3.OutlierDetection{
		SplitExternalLocalOriginErrors:         true,
		ConsecutiveLocalOriginFailure:          wrapperspb.UInt32(1),
		EnforcingConsecutiveLocalOriginFailure: wrapperspb.UInt32(100),
		EnforcingConsecutive_5Xx:               wrapperspb.UInt32(0),
		EnforcingConsecutiveGatewayFailure:     wrapperspb.UInt32(0),
		EnforcingSuccessRate:                   wrapperspb.UInt32(0),
		EnforcingLocalOriginSuccessRate:        wrapperspb.UInt32(0),
		EnforcingFailurePercentage:             wrapperspb.UInt32(0),
		EnforcingFailurePercentageLocalOrigin:  wrapperspb.UInt32(0),
		MaxEjectionPercent:                     wrapperspb.UInt32(100),
		Interval:                               durationpb.New(time.Second),
		BaseEjectionTime:                       durationpb.New(ejectionTime),
		MaxEjectionTime:                        durationpb.New(ejectionMax),
	}
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
