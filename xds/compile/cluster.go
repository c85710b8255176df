package compile

import (
	"net/netip"
	"slices"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/config/common/matcher/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	httpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	stringv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/penstock-gateway/penstock/functions/contract"
	"github.com/penstock-gateway/penstock/gateway"
	"github.com/penstock-gateway/penstock/gateway/policy/retry"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
	"github.com/penstock-gateway/penstock/xds"
)

// backendIdle is how long a connection to a backend of HTTP/1.1 is kept without a request.
// It is below the time after which servers close such a connection themselves (gunicorn
// 2 s; Node.js, uvicorn and Apache httpd 5 s): a request that meets the close is lost, since
// nobody can tell whether it was begun, or costs a retry.
const backendIdle = 1500 * time.Millisecond

// httpOptions is the key of the protocol options of a cluster.
const httpOptions = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"

// clusterBase is what all clusters have in common.
func clusterBase(p *packer, name string, h2 bool) *clusterv3.Cluster {
	u32 := wrapperspb.UInt32
	return &clusterv3.Cluster{
		Name:           name,
		AltStatName:    statPrefix(name),
		ConnectTimeout: durationpb.New(gateway.DefaultConnectTimeout),
		LbPolicy:       clusterv3.Cluster_LEAST_REQUEST,
		CommonLbConfig: &clusterv3.Cluster_CommonLbConfig{
			// Never send to endpoints that are known to be bad just because most are.
			HealthyPanicThreshold: &typev3.Percent{Value: 0},
			// By default Envoy gathers changes of health for a second before its workers hear
			// of them. An endpoint that was let in again would then still be left alone when
			// the other one dies, and the requests of that second would have no endpoint.
			UpdateMergeWindow: durationpb.New(0),
		},
		IgnoreHealthOnHostRemoval:     true,
		PerConnectionBufferLimitBytes: u32(bufferLimit),
		CircuitBreakers: &clusterv3.CircuitBreakers{Thresholds: []*clusterv3.CircuitBreakers_Thresholds{{
			MaxConnections: u32(10_000), MaxPendingRequests: u32(10_000), MaxRequests: u32(100_000),
			// Envoy's default is 3 retries at once: when an endpoint dies under load, most
			// of its requests would fail for that.
			RetryBudget: &clusterv3.CircuitBreakers_Thresholds_RetryBudget{
				BudgetPercent: &typev3.Percent{Value: 25}, MinRetryConcurrency: u32(200),
			},
		}}},
		// An endpoint that cannot be reached is left alone for a while. Its answers,
		// whatever they are, are no reason, and the last ones are never taken out, unless
		// lastResort says so.
		OutlierDetection: &clusterv3.OutlierDetection{
			SplitExternalLocalOriginErrors:         true,
			ConsecutiveLocalOriginFailure:          u32(2),
			EnforcingConsecutiveLocalOriginFailure: u32(100),
			EnforcingLocalOriginSuccessRate:        u32(0),
			EnforcingConsecutive_5Xx:               u32(0),
			EnforcingConsecutiveGatewayFailure:     u32(0),
			EnforcingSuccessRate:                   u32(0),
			Interval:                               durationpb.New(500 * time.Millisecond),
			BaseEjectionTime:                       durationpb.New(time.Second),
			MaxEjectionTime:                        durationpb.New(10 * time.Second),
			MaxEjectionPercent:                     u32(50),
		},
		UpstreamConnectionOptions: &clusterv3.UpstreamConnectionOptions{TcpKeepalive: &corev3.TcpKeepalive{
			KeepaliveProbes: u32(3), KeepaliveTime: u32(30), KeepaliveInterval: u32(5),
		}},
		TypedExtensionProtocolOptions: map[string]*anypb.Any{httpOptions: p.Pack(protocolOptions(h2))},
	}
}

func protocolOptions(h2 bool) *httpv3.HttpProtocolOptions {
	e := &httpv3.HttpProtocolOptions_ExplicitHttpConfig{}
	if h2 {
		e.ProtocolConfig = &httpv3.HttpProtocolOptions_ExplicitHttpConfig_Http2ProtocolOptions{Http2ProtocolOptions: &corev3.Http2ProtocolOptions{
			ConnectionKeepalive: &corev3.KeepaliveSettings{Interval: durationpb.New(30 * time.Second), Timeout: durationpb.New(5 * time.Second)},
		}}
	} else {
		e.ProtocolConfig = &httpv3.HttpProtocolOptions_ExplicitHttpConfig_HttpProtocolOptions{HttpProtocolOptions: &corev3.Http1ProtocolOptions{}}
	}
	return &httpv3.HttpProtocolOptions{
		UpstreamProtocolOptions: &httpv3.HttpProtocolOptions_ExplicitHttpConfig_{ExplicitHttpConfig: e},
	}
}

// eds lets the endpoints come in a resource of their own.
func eds(c *clusterv3.Cluster) {
	c.ClusterDiscoveryType = &clusterv3.Cluster_Type{Type: clusterv3.Cluster_EDS}
	c.EdsClusterConfig = &clusterv3.Cluster_EdsClusterConfig{EdsConfig: ads(), ServiceName: c.Name}
}

// functionCluster is the cluster of a function: its instances come by EDS, so they
// start and end without a change of anything else. They speak HTTP/1.1, or HTTP/2
// when the function does, for trailers and streams both ways have no other way.
func functionCluster(f *pb.Function, name string) (*xds.Resource, error) {
	p := &packer{}
	c := clusterBase(p, name, contract.HTTP2(f))
	options := protocolOptions(contract.HTTP2(f))
	options.OutlierDetection = goneInstances()
	c.TypedExtensionProtocolOptions[httpOptions] = p.Pack(options)
	c.OutlierDetection.Consecutive_5Xx, c.OutlierDetection.EnforcingConsecutive_5Xx = wrapperspb.UInt32(2), wrapperspb.UInt32(100)
	eds(c)
	return clusterResource(p, c, []string{name})
}

// goneInstances makes errors of the answers of instances that are not there any more,
// and of no others: their shims go on refusing at once, so they would be the least busy
// until proxies hear of their end.
func goneInstances() *httpv3.HttpProtocolOptions_OutlierDetection {
	return &httpv3.HttpProtocolOptions_OutlierDetection{ErrorMatcher: &matcherv3.MatchPredicate{
		Rule: &matcherv3.MatchPredicate_HttpResponseHeadersMatch{HttpResponseHeadersMatch: &matcherv3.HttpHeadersMatch{
			Headers: []*routev3.HeaderMatcher{{
				Name: retry.RefusedHeader,
				HeaderMatchSpecifier: &routev3.HeaderMatcher_StringMatch{StringMatch: &stringv3.StringMatcher{
					MatchPattern: &stringv3.StringMatcher_SafeRegex{SafeRegex: &stringv3.RegexMatcher{Regex: retry.RefusedGone}},
				}},
			}},
		}},
	}}
}

// backendCluster is the cluster of a backend or of one of its subsets.
func backendCluster(b *pb.Backend, name string) (*xds.Resource, error) {
	p := &packer{}
	h2 := b.GetProtocol() == pb.BackendProtocol_BACKEND_PROTOCOL_H2C
	c := clusterBase(p, name, h2)
	if !h2 {
		options := protocolOptions(h2)
		options.CommonHttpProtocolOptions = &corev3.HttpProtocolOptions{IdleTimeout: durationpb.New(backendIdle)}
		c.TypedExtensionProtocolOptions[httpOptions] = p.Pack(options)
	}
	lastResort(c)
	if d := b.GetConnectTimeout(); d != nil {
		c.ConnectTimeout = durationpb.New(d.AsDuration())
	}
	switch b.GetLoadBalancing() {
	case pb.LoadBalancing_LOAD_BALANCING_ROUND_ROBIN:
		c.LbPolicy = clusterv3.Cluster_ROUND_ROBIN
	case pb.LoadBalancing_LOAD_BALANCING_RANDOM:
		c.LbPolicy = clusterv3.Cluster_RANDOM
	}
	if d := b.GetDns(); d != nil {
		c.ClusterDiscoveryType = &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STRICT_DNS}
		c.DnsLookupFamily = clusterv3.Cluster_V4_PREFERRED
		c.RespectDnsTtl = true                             //nolint:staticcheck // its successor, an extension, gives every DNS cluster another hash, and Envoy 1.40 takes both
		c.DnsRefreshRate = durationpb.New(5 * time.Second) //nolint:staticcheck // as above
		// A name that does not resolve must not hold up the other clusters.
		c.WaitForWarmOnInit = wrapperspb.Bool(false)
		c.LoadAssignment = assignment(name, []*endpointv3.LbEndpoint{lbEndpoint(d.GetHostname(), d.GetPort(), 0)})
	} else {
		eds(c)
	}
	return clusterResource(p, c, []string{b.GetName()})
}

// lastResort lets all endpoints be left alone, and uses all of them when none is left. Else
// the endpoint that dies while another one, which serves again, is still left alone would get
// all requests: the first second after the restart of one of two, in a rolling restart.
func lastResort(c *clusterv3.Cluster) {
	c.OutlierDetection.MaxEjectionPercent = wrapperspb.UInt32(100)
	// Not as soon as they are most of all, which is the default.
	c.CommonLbConfig.HealthyPanicThreshold = &typev3.Percent{Value: 1}
}

// internalCluster is a service of ours that speaks HTTP/2 (gRPC).
func internalCluster(name string, endpoints []Endpoint) (*xds.Resource, error) {
	p := &packer{}
	c := clusterBase(p, name, true)
	c.ConnectTimeout = durationpb.New(time.Second)
	c.ClusterDiscoveryType = &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STATIC}
	var out []*endpointv3.LbEndpoint
	for _, e := range endpoints {
		if _, err := netip.ParseAddr(e.Address); err != nil && e.Port != 0 {
			c.ClusterDiscoveryType = &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STRICT_DNS}
			c.WaitForWarmOnInit = wrapperspb.Bool(false)
		}
		out = append(out, e.lbEndpoint())
	}
	c.LoadAssignment = assignment(name, out)
	return clusterResource(p, c, nil)
}

func clusterResource(p *packer, c *clusterv3.Cluster, owners []string) (*xds.Resource, error) {
	p.Check(c)
	if err := p.Err(); err != nil {
		return nil, err
	}
	var refs []xds.Ref
	if c.EdsClusterConfig != nil {
		refs = []xds.Ref{{Type: xds.Endpoint, Name: c.Name}}
	}
	return xds.NewResource(xds.Cluster, c.Name, c, refs, owners)
}

// staticEndpoints are the endpoints of a target that is a backend.
func staticEndpoints(t gateway.Target) []*endpointv3.LbEndpoint {
	var out []*endpointv3.LbEndpoint
	for _, e := range t.StaticEndpoints() {
		out = append(out, lbEndpoint(e.GetAddress(), e.GetPort(), e.GetWeight()))
	}
	return out
}

func lbEndpoint(address string, port, weight uint32) *endpointv3.LbEndpoint {
	e := &endpointv3.LbEndpoint{HostIdentifier: &endpointv3.LbEndpoint_Endpoint{Endpoint: &endpointv3.Endpoint{Address: socketAddress(address, port)}}}
	if weight > 0 {
		e.LoadBalancingWeight = wrapperspb.UInt32(weight)
	}
	return e
}

// lbEndpoint is the endpoint of an instance.
func (e Endpoint) lbEndpoint() *endpointv3.LbEndpoint {
	out := lbEndpoint(e.Address, e.Port, 0)
	if e.Port == 0 {
		out.GetEndpoint().Address = &corev3.Address{Address: &corev3.Address_Pipe{Pipe: &corev3.Pipe{Path: e.Address}}}
	}
	return out
}

func assignment(name string, endpoints []*endpointv3.LbEndpoint) *endpointv3.ClusterLoadAssignment {
	a := &endpointv3.ClusterLoadAssignment{ClusterName: name}
	if len(endpoints) > 0 {
		a.Endpoints = []*endpointv3.LocalityLbEndpoints{{LbEndpoints: endpoints}}
	}
	return a
}

func endpointResource(name string, endpoints []*endpointv3.LbEndpoint, owner string) (*xds.Resource, error) {
	return assignmentResource(assignment(name, endpoints), owner)
}

func assignmentResource(a *endpointv3.ClusterLoadAssignment, owner string) (*xds.Resource, error) {
	if err := a.ValidateAll(); err != nil {
		return nil, err
	}
	return xds.NewResource(xds.Endpoint, a.ClusterName, a, nil, []string{owner})
}

// target is a gateway.Target with the name of its cluster.
type target struct {
	gateway.Target
	cluster string
}

// clusterState is a cluster that was made, with what it was made of.
type clusterState struct {
	from      target
	instances []Endpoint // that endpoints was made of; functions only
	cluster   *xds.Resource
	endpoints *xds.Resource // nil for DNS
	run       int
}

// madeFrom reports whether the cluster would be the same for t. Objects are
// immutable; of a function nothing but its protocol is in its cluster.
func (st *clusterState) madeFrom(t target) bool {
	if t.Function != nil {
		return st.from.Function != nil && contract.HTTP2(st.from.Function) == contract.HTTP2(t.Function)
	}
	return st.from.Backend == t.Backend && st.from.Subset == t.Subset && st.from.Port == t.Port
}

func newCluster(t target) (*clusterState, error) {
	st := &clusterState{from: t}
	var err error
	if t.Function != nil {
		st.cluster, err = functionCluster(t.Function, t.cluster)
		return st, err
	}
	if st.cluster, err = backendCluster(t.Backend, t.cluster); err != nil {
		return nil, err
	}
	if t.Backend.GetDns() == nil {
		st.endpoints, err = endpointResource(t.cluster, staticEndpoints(t.Target), t.Backend.GetName())
	}
	return st, err
}

// serve makes the instances of a function its endpoints. After an error the
// endpoints are those before.
func (st *clusterState) serve(name string, instances []Endpoint) error {
	if st.endpoints != nil && slices.Equal(st.instances, instances) {
		return nil
	}
	var list []*endpointv3.LocalityLbEndpoints
	for _, e := range instances {
		if n := len(list); n == 0 || list[n-1].Priority != e.Priority {
			list = append(list, &endpointv3.LocalityLbEndpoints{Priority: e.Priority})
		}
		l := list[len(list)-1]
		l.LbEndpoints = append(l.LbEndpoints, e.lbEndpoint())
	}
	r, err := assignmentResource(&endpointv3.ClusterLoadAssignment{ClusterName: name, Endpoints: list}, name)
	if err != nil {
		return err
	}
	st.endpoints, st.instances = r, slices.Clone(instances)
	return nil
}
