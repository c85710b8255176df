package ratelimit

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"time"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	rlsconfigv3 "github.com/envoyproxy/go-control-plane/envoy/config/ratelimit/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	filterv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ratelimit/v3"
	routerv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	upstreamhttpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/penstock-gateway/penstock/internal/envoytest"
	"github.com/penstock-gateway/penstock/internal/redistest"
)

func pack(t *testing.T, m proto.Message) *anypb.Any {
	t.Helper()
	a, err := anypb.New(m)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func tcpAddress(port int) *corev3.Address {
	return &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
		Address: "127.0.0.1", PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: uint32(port)},
	}}}
}

// limitFilter is the filter as the compiler makes it; see gateway/policy/ratelimit.
func limitFilter(t *testing.T, name string, closed bool) *hcmv3.HttpFilter {
	return &hcmv3.HttpFilter{Name: name, Disabled: true, ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: pack(t, &filterv3.RateLimit{
		Domain: Domain, FailureModeDeny: closed, StatusOnError: &typev3.HttpStatus{Code: typev3.StatusCode_ServiceUnavailable},
		Timeout: durationpb.New(10 * time.Second), DisableXEnvoyRatelimitedHeader: true,
		RateLimitService: &rlsconfigv3.RateLimitServiceConfig{
			TransportApiVersion: corev3.ApiVersion_V3,
			GrpcService: &corev3.GrpcService{TargetSpecifier: &corev3.GrpcService_EnvoyGrpc_{
				EnvoyGrpc: &corev3.GrpcService_EnvoyGrpc{ClusterName: "limiter"},
			}},
		},
	})}}
}

// limitedRoute goes to the upstream, after the limits.
func limitedRoute(t *testing.T, path, filter string, limits ...Spec) *routev3.Route {
	per := &filterv3.RateLimitPerRoute{Domain: Domain}
	for _, s := range limits {
		per.RateLimits = append(per.RateLimits, &routev3.RateLimit{Actions: []*routev3.RateLimit_Action{
			{ActionSpecifier: &routev3.RateLimit_Action_GenericKey_{GenericKey: &routev3.RateLimit_Action_GenericKey{
				DescriptorKey: EntryLimit, DescriptorValue: s.String(),
			}}},
			{ActionSpecifier: &routev3.RateLimit_Action_MaskedRemoteAddress_{MaskedRemoteAddress: &routev3.RateLimit_Action_MaskedRemoteAddress{}}},
		}})
	}
	return &routev3.Route{
		Match: &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Path{Path: path}},
		Action: &routev3.Route_Route{Route: &routev3.RouteAction{
			ClusterSpecifier: &routev3.RouteAction_Cluster{Cluster: "upstream"},
		}},
		TypedPerFilterConfig: map[string]*anypb.Any{filter: pack(t, per)},
	}
}

// answeringRoute has a limit and is answered by Envoy itself.
func answeringRoute(t *testing.T, path, filter string, limit Spec, r *routev3.Route) *routev3.Route {
	l := limitedRoute(t, path, filter, limit)
	l.Action = r.Action
	return l
}

func staticCluster(name string, port int) *clusterv3.Cluster {
	return &clusterv3.Cluster{
		Name: name, ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STATIC},
		LoadAssignment: &endpointv3.ClusterLoadAssignment{ClusterName: name, Endpoints: []*endpointv3.LocalityLbEndpoints{{
			LbEndpoints: []*endpointv3.LbEndpoint{{HostIdentifier: &endpointv3.LbEndpoint_Endpoint{
				Endpoint: &endpointv3.Endpoint{Address: tcpAddress(port)},
			}}},
		}}},
	}
}

// envoyBootstrap is an Envoy with the routes on port, whose limiter and upstream
// listen on those ports.
func envoyBootstrap(t *testing.T, port, limiter, upstream int, routes ...*routev3.Route) *bootstrapv3.Bootstrap {
	manager := &hcmv3.HttpConnectionManager{
		StatPrefix: "test",
		RouteSpecifier: &hcmv3.HttpConnectionManager_RouteConfig{RouteConfig: &routev3.RouteConfiguration{
			Name: "test", VirtualHosts: []*routev3.VirtualHost{{Name: "all", Domains: []string{"*"}, Routes: routes}},
		}},
		HttpFilters: []*hcmv3.HttpFilter{
			limitFilter(t, "open", false), limitFilter(t, "closed", true),
			{Name: "router", ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: pack(t, &routerv3.Router{})}},
		},
	}
	limiterCluster := staticCluster("limiter", limiter)
	limiterCluster.TypedExtensionProtocolOptions = map[string]*anypb.Any{
		"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": pack(t, &upstreamhttpv3.HttpProtocolOptions{
			UpstreamProtocolOptions: &upstreamhttpv3.HttpProtocolOptions_ExplicitHttpConfig_{
				ExplicitHttpConfig: &upstreamhttpv3.HttpProtocolOptions_ExplicitHttpConfig{
					ProtocolConfig: &upstreamhttpv3.HttpProtocolOptions_ExplicitHttpConfig_Http2ProtocolOptions{
						Http2ProtocolOptions: &corev3.Http2ProtocolOptions{},
					},
				},
			},
		}),
	}
	return &bootstrapv3.Bootstrap{StaticResources: &bootstrapv3.Bootstrap_StaticResources{
		Listeners: []*listenerv3.Listener{{
			Name: "test", Address: tcpAddress(port),
			FilterChains: []*listenerv3.FilterChain{{Filters: []*listenerv3.Filter{{
				Name: "hcm", ConfigType: &listenerv3.Filter_TypedConfig{TypedConfig: pack(t, manager)},
			}}}},
		}},
		Clusters: []*clusterv3.Cluster{limiterCluster, staticCluster("upstream", upstream)},
	}}
}

// TestEnvoy: the real Envoy with our service behind its ratelimit filter, Redis
// behind that, and then without Redis and without the service.
func TestEnvoy(t *testing.T) {
	redis := redistest.Start(t)
	backend := newRedis(t, redis, RedisOptions{Timeout: time.Second})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server, _ := NewServer(NewService(backend, nil, silent), nil, nil)
	go func() { _ = server.Serve(l) }()
	t.Cleanup(server.Stop)

	perClient := Spec{ID: "r#per-client", Name: "per-client", Requests: 5, Window: time.Minute}
	wide := Spec{ID: "g#all", Name: "all", Requests: 1000, Window: time.Hour, Key: Shared}
	wide.Key = Address // the shared one would take the address as well
	strict := Spec{ID: "s#strict", Name: "strict", Requests: 1000, Window: time.Hour, OnFailure: Closed}
	upstream := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok") }))
	t.Cleanup(upstream.Close)
	port := envoytest.FreePort(t)
	e := envoytest.Start(t, envoytest.Options{Bootstrap: envoyBootstrap(t, port, l.Addr().(*net.TCPAddr).Port, upstream.Listener.Addr().(*net.TCPAddr).Port,
		limitedRoute(t, "/limited", "open", wide, perClient),
		limitedRoute(t, "/strict", "closed", strict, wide),
		answeringRoute(t, "/direct", "closed", strict, &routev3.Route{Action: &routev3.Route_DirectResponse{
			DirectResponse: &routev3.DirectResponseAction{Status: 204},
		}}),
		answeringRoute(t, "/redirect", "closed", strict, &routev3.Route{Action: &routev3.Route_Redirect{
			Redirect: &routev3.RedirectAction{HostRedirect: "example.com", ResponseCode: routev3.RedirectAction_SEE_OTHER},
		}}),
	)})
	get := envoyClient(t, port)

	checkSixth(t, get)
	if status, h, _ := get("/strict"); status != 200 || h.Get("RateLimit") == "" {
		t.Errorf("strict: %d %v", status, h)
	}

	// What Envoy 1.40 does, and whoever compiles routes must know: its filter asks
	// only for routes that go to a cluster.
	for path, want := range map[string]int{"/direct": 204, "/redirect": 303} {
		if status, h, _ := get(path); status != want || h.Get("RateLimit-Policy") != "" {
			t.Errorf("%s: %d %v: limits of routes that Envoy answers itself have an effect now", path, status, h)
		}
	}

	redis.Kill()
	if status, h, _ := get("/limited"); status != 200 || h.Get("X-RateLimit-Degraded") != `"all", "per-client"` {
		t.Errorf("open without Redis: %d %v", status, h)
	}
	if status, h, _ := get("/strict"); status != 503 {
		t.Errorf("closed without Redis: %d %v", status, h)
	}
	redis.Restart(t)
	eventually(t, "limits to be counted again", func() bool {
		_, h, _ := get("/limited")
		return h.Get("RateLimit") != ""
	})

	server.Stop()
	if status, h, _ := get("/limited"); status != 200 || h.Get("RateLimit") != "" {
		t.Errorf("open without a limiter: %d %v", status, h)
	}
	if status, h, _ := get("/strict"); status != 503 {
		t.Errorf("closed without a limiter: %d %v", status, h)
	}
	if n := e.Stat(t, "cluster.upstream.ratelimit.over_limit"); n != 1 {
		t.Errorf("Envoy counted %d refusals", n)
	}
}

// checkSixth asks six times for /limited, which has 5 a minute.
func checkSixth(t *testing.T, get func(string) (int, http.Header, string)) {
	t.Helper()
	for i := range 5 {
		status, h, body := get("/limited")
		if status != 200 || body != "ok" || h.Get("RateLimit-Policy") != `"all";q=1000;w=3600, "per-client";q=5;w=60` || h.Get("Retry-After") != "" {
			t.Fatalf("request %d: %d %v", i+1, status, h)
		}
		all, per := 0, 0
		if _, err := fmt.Sscanf(h.Get("RateLimit"), `"all";r=%d;t=3597, "per-client";r=%d;`, &all, &per); i == 0 && (err != nil || all != 999) || err == nil && per != 4-i {
			t.Errorf("request %d: RateLimit: %s", i+1, h.Get("RateLimit"))
		}
	}
	status, h, body := get("/limited")
	retry, err := strconv.Atoi(h.Get("Retry-After"))
	if status != 429 || err != nil || retry < 1 || retry > 12 || h.Get("RateLimit-Policy") == "" || h.Get("RateLimit") == "" {
		t.Errorf("sixth: %d %v", status, h)
	}
	if h.Get("Content-Type") != "application/problem+json" || !strings.Contains(body, `"code":"`+CodeExceeded+`"`) || len(h.Values("Content-Type")) != 1 {
		t.Errorf("sixth: %v %s", h, body)
	}
}

// envoyClient returns a function that asks Envoy for a path.
func envoyClient(t *testing.T, port int) func(path string) (int, http.Header, string) {
	client := &http.Client{Timeout: 30 * time.Second, CheckRedirect: func(*http.Request, []*http.Request) error {
		return http.ErrUseLastResponse
	}}
	t.Cleanup(client.CloseIdleConnections)
	return func(path string) (int, http.Header, string) {
		t.Helper()
		res, err := client.Get(fmt.Sprintf("http://127.0.0.1:%d%s", port, path))
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		b, err := io.ReadAll(res.Body)
		if err != nil {
			t.Fatal(err)
		}
		return res.StatusCode, res.Header, string(b)
	}
}
