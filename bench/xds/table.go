package main

import (
	"fmt"
	"net"
	"strconv"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	routerv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// The work of all contestants: exact hosts of perHost routes each. The first route
// of a host answers directly, with a version that the changes change; the others
// forward to one backend.
const (
	perHost      = 10
	firstBody    = "v0"
	listenerName = "bench"
	clusterName  = "bench"
	timeout      = 10 * time.Second
)

func hostname(h int) string { return fmt.Sprintf("h%d.example.com", h) }
func path(i int) string     { return fmt.Sprintf("/r%d", i) }

// route is route i in the model of Penstock.
func route(i int, body string) *pb.Resource {
	rule := &pb.RouteRule{
		Matches: []*pb.RouteMatch{{Path: &pb.PathMatch{Match: &pb.PathMatch_Prefix{Prefix: path(i)}}}},
		Action:  &pb.RouteRule_Forward{Forward: &pb.Forward{Backends: []*pb.WeightedBackend{{Backend: clusterName}}}},
	}
	if i%perHost == 0 {
		rule.Action = &pb.RouteRule_DirectResponse{DirectResponse: &pb.DirectResponse{Status: 200, Body: body}}
	}
	return &pb.Resource{Kind: &pb.Resource_Route{Route: &pb.Route{
		Name:      fmt.Sprintf("projects/default/routes/r%d", i),
		Hostnames: []string{hostname(i / perHost)},
		Rules:     []*pb.RouteRule{rule},
	}}}
}

func backend(name, upstream string) *pb.Resource {
	host, port := hostPort(upstream)
	return &pb.Resource{Kind: &pb.Resource_Backend{Backend: &pb.Backend{
		Name:   "projects/default/backends/" + name,
		Target: &pb.Backend_Static{Static: &pb.StaticTarget{Endpoints: []*pb.Endpoint{{Address: host, Port: port}}}},
	}}}
}

func hostPort(addr string) (string, uint32) {
	h, p, _ := net.SplitHostPort(addr)
	n, _ := strconv.ParseUint(p, 10, 16)
	return h, uint32(n)
}

// table is the same for the peers, in Envoy's words.
type table struct{ role }

func (t *table) hosts() int { return t.Routes / perHost }

func (t *table) route(i int, body string) *routev3.Route {
	r := &routev3.Route{Match: &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_PathSeparatedPrefix{PathSeparatedPrefix: path(i)}}}
	if i%perHost == 0 {
		r.Action = &routev3.Route_DirectResponse{DirectResponse: &routev3.DirectResponseAction{
			Status: 200, Body: &corev3.DataSource{Specifier: &corev3.DataSource_InlineString{InlineString: body}},
		}}
		return r
	}
	r.Action = &routev3.Route_Route{Route: &routev3.RouteAction{
		ClusterSpecifier: &routev3.RouteAction_Cluster{Cluster: clusterName},
		Timeout:          durationpb.New(timeout),
		RetryPolicy:      &routev3.RetryPolicy{RetryOn: "connect-failure,refused-stream"},
	}}
	return r
}

func (t *table) virtualHost(h int, domain, body string) *routev3.VirtualHost {
	if body == "" {
		body = firstBody
	}
	v := &routev3.VirtualHost{Name: hostname(h), Domains: []string{domain}}
	for i := h * perHost; i < (h+1)*perHost; i++ {
		v.Routes = append(v.Routes, t.route(i, body))
	}
	return v
}

// hostRoutes is the RouteConfiguration of one host.
func (t *table) hostRoutes(h int, body string) *routev3.RouteConfiguration {
	return &routev3.RouteConfiguration{Name: hostname(h), VirtualHosts: []*routev3.VirtualHost{t.virtualHost(h, "*", body)}}
}

func scope(h int) *routev3.ScopedRouteConfiguration {
	return &routev3.ScopedRouteConfiguration{
		Name: hostname(h), RouteConfigurationName: hostname(h),
		Key: &routev3.ScopedRouteConfiguration_Key{Fragments: []*routev3.ScopedRouteConfiguration_Key_Fragment{{
			Type: &routev3.ScopedRouteConfiguration_Key_Fragment_StringKey{StringKey: hostname(h)},
		}}},
	}
}

func (t *table) cluster() *clusterv3.Cluster {
	host, port := hostPort(t.Upstream)
	return &clusterv3.Cluster{
		Name: clusterName, ConnectTimeout: durationpb.New(timeout),
		ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STATIC},
		LoadAssignment: &endpointv3.ClusterLoadAssignment{ClusterName: clusterName, Endpoints: []*endpointv3.LocalityLbEndpoints{{
			LbEndpoints: []*endpointv3.LbEndpoint{{HostIdentifier: &endpointv3.LbEndpoint_Endpoint{Endpoint: &endpointv3.Endpoint{
				Address: tcp(host, port),
			}}}},
		}}},
	}
}

func ads() *corev3.ConfigSource {
	return &corev3.ConfigSource{
		ResourceApiVersion:    corev3.ApiVersion_V3,
		ConfigSourceSpecifier: &corev3.ConfigSource_Ads{Ads: &corev3.AggregatedConfigSource{}},
	}
}

func tcp(host string, port uint32) *corev3.Address {
	return &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
		Address: host, PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: port},
	}}}
}

// listener takes its routes by scopes, or from the one RouteConfiguration.
func (t *table) listener(scopes bool) (*listenerv3.Listener, error) {
	router, err := anypb.New(&routerv3.Router{})
	if err != nil {
		return nil, err
	}
	h := &hcmv3.HttpConnectionManager{
		StatPrefix:  listenerName,
		HttpFilters: []*hcmv3.HttpFilter{{Name: "envoy.filters.http.router", ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: router}}},
		RouteSpecifier: &hcmv3.HttpConnectionManager_Rds{Rds: &hcmv3.Rds{
			ConfigSource: ads(), RouteConfigName: listenerName,
		}},
	}
	if scopes {
		h.RouteSpecifier = &hcmv3.HttpConnectionManager_ScopedRoutes{ScopedRoutes: byAuthority()}
	}
	a, err := anypb.New(h)
	return &listenerv3.Listener{
		Name: listenerName, Address: tcp("127.0.0.1", uint32(t.Port)),
		FilterChains: []*listenerv3.FilterChain{{Filters: []*listenerv3.Filter{{
			Name:       "envoy.filters.network.http_connection_manager",
			ConfigType: &listenerv3.Filter_TypedConfig{TypedConfig: a},
		}}}},
	}, err
}

func byAuthority() *hcmv3.ScopedRoutes {
	type extractor = hcmv3.ScopedRoutes_ScopeKeyBuilder_FragmentBuilder_HeaderValueExtractor
	return &hcmv3.ScopedRoutes{
		Name: listenerName, RdsConfigSource: ads(),
		ConfigSpecifier: &hcmv3.ScopedRoutes_ScopedRds{ScopedRds: &hcmv3.ScopedRds{ScopedRdsConfigSource: ads()}},
		ScopeKeyBuilder: &hcmv3.ScopedRoutes_ScopeKeyBuilder{Fragments: []*hcmv3.ScopedRoutes_ScopeKeyBuilder_FragmentBuilder{{
			Type: &hcmv3.ScopedRoutes_ScopeKeyBuilder_FragmentBuilder_HeaderValueExtractor_{HeaderValueExtractor: &extractor{
				Name: ":authority", ExtractType: &hcmv3.ScopedRoutes_ScopeKeyBuilder_FragmentBuilder_HeaderValueExtractor_Index{Index: 0},
			}},
		}}},
	}
}
