package bootstrap

import (
	"fmt"
	"time"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	metricsv3 "github.com/envoyproxy/go-control-plane/envoy/config/metrics/v3"
	overloadv3 "github.com/envoyproxy/go-control-plane/envoy/config/overload/v3"
	connectionsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/resource_monitors/downstream_connections/v3"
	heapv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/resource_monitors/fixed_heap/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"
)

const heapMonitor = "envoy.resource_monitors.fixed_heap"

// overloadManager sheds load before memory runs out: first what costs nobody
// anything, at last new connections. Values: Envoy's edge best practices, tried
// under attack (heap pressure itself was not).
func overloadManager(c Config) (*overloadv3.OverloadManager, error) {
	heap, err := anypb.New(&heapv3.FixedHeapConfig{MaxHeapSizeBytes: c.MaxHeapBytes})
	if err != nil {
		return nil, fmt.Errorf("bootstrap: %w", err)
	}
	connections, err := anypb.New(&connectionsv3.DownstreamConnectionsConfig{MaxActiveDownstreamConnections: c.MaxConnections})
	if err != nil {
		return nil, fmt.Errorf("bootstrap: %w", err)
	}
	timeouts, err := anypb.New(scaledTimeouts())
	if err != nil {
		return nil, fmt.Errorf("bootstrap: %w", err)
	}
	monitor := func(name string, config *anypb.Any) *overloadv3.ResourceMonitor {
		return &overloadv3.ResourceMonitor{Name: name, ConfigType: &overloadv3.ResourceMonitor_TypedConfig{TypedConfig: config}}
	}
	action := func(name string, t *overloadv3.Trigger, config *anypb.Any) *overloadv3.OverloadAction {
		return &overloadv3.OverloadAction{Name: "envoy.overload_actions." + name, Triggers: []*overloadv3.Trigger{t}, TypedConfig: config}
	}
	shed := func(name string, at float64) *overloadv3.LoadShedPoint {
		return &overloadv3.LoadShedPoint{Name: "envoy.load_shed_points." + name, Triggers: []*overloadv3.Trigger{threshold(at)}}
	}
	return &overloadv3.OverloadManager{
		RefreshInterval: durationpb.New(250 * time.Millisecond),
		ResourceMonitors: []*overloadv3.ResourceMonitor{
			monitor(heapMonitor, heap),
			monitor("envoy.resource_monitors.global_downstream_max_connections", connections),
		},
		// Streams that hold 1 MiB or more are the candidates for a reset.
		BufferFactoryConfig: &overloadv3.BufferFactoryConfig{MinimumAccountToTrackPowerOfTwo: 20},
		Actions: []*overloadv3.OverloadAction{
			action("shrink_heap", threshold(0.90), nil),
			action("reduce_timeouts", scaled(0.85, 0.95), timeouts),
			action("reset_high_memory_stream", scaled(0.92, 0.98), nil),
			action("disable_http_keepalive", threshold(0.92), nil),
			action("stop_accepting_requests", threshold(0.95), nil),
			action("stop_accepting_connections", threshold(0.98), nil),
		},
		LoadshedPoints: []*overloadv3.LoadShedPoint{
			shed("tcp_listener_accept", 0.98),
			shed("http_connection_manager_decode_headers", 0.96),
			shed("http2_server_go_away_on_dispatch", 0.97),
		},
	}, nil
}

func scaledTimeouts() *overloadv3.ScaleTimersOverloadActionConfig {
	timer := func(t overloadv3.ScaleTimersOverloadActionConfig_TimerType, least time.Duration) *overloadv3.ScaleTimersOverloadActionConfig_ScaleTimer {
		return &overloadv3.ScaleTimersOverloadActionConfig_ScaleTimer{
			Timer:          t,
			OverloadAdjust: &overloadv3.ScaleTimersOverloadActionConfig_ScaleTimer_MinTimeout{MinTimeout: durationpb.New(least)},
		}
	}
	return &overloadv3.ScaleTimersOverloadActionConfig{TimerScaleFactors: []*overloadv3.ScaleTimersOverloadActionConfig_ScaleTimer{
		timer(overloadv3.ScaleTimersOverloadActionConfig_HTTP_DOWNSTREAM_CONNECTION_IDLE, 2*time.Second),
		timer(overloadv3.ScaleTimersOverloadActionConfig_HTTP_DOWNSTREAM_STREAM_IDLE, 5*time.Second),
		timer(overloadv3.ScaleTimersOverloadActionConfig_TRANSPORT_SOCKET_CONNECT, 2*time.Second),
	}}
}

func threshold(at float64) *overloadv3.Trigger {
	return &overloadv3.Trigger{Name: heapMonitor, TriggerOneof: &overloadv3.Trigger_Threshold{Threshold: &overloadv3.ThresholdTrigger{Value: at}}}
}

func scaled(from, to float64) *overloadv3.Trigger {
	return &overloadv3.Trigger{Name: heapMonitor, TriggerOneof: &overloadv3.Trigger_Scaled{Scaled: &overloadv3.ScaledTrigger{ScalingThreshold: from, SaturationThreshold: to}}}
}

// runtimeLayers is static: nobody can change it through the admin socket.
func runtimeLayers(c Config) (*bootstrapv3.LayeredRuntime, error) {
	values := map[string]any{
		// A connection may not take a worker's whole turn (rapid reset).
		"http.max_requests_per_io_cycle":                       1,
		"overload.premature_reset_total_stream_count":          100,
		"overload.premature_reset_min_stream_lifetime_seconds": 1,
		"re2.max_program_size.error_level":                     100,
		"re2.max_program_size.warn_level":                      80,
		"tracing.opentelemetry.flush_interval_ms":              1000,
		"tracing.opentelemetry.min_flush_spans":                64,
	}
	if c.FastTraces {
		values["tracing.opentelemetry.flush_interval_ms"] = 200
	}
	for _, name := range c.Listeners {
		values["envoy.resource_limits.listener."+name+".connection_limit"] = DefaultListenerConnections
	}
	layer, err := structpb.NewStruct(values)
	if err != nil {
		return nil, fmt.Errorf("bootstrap: Listeners: %w", err)
	}
	return &bootstrapv3.LayeredRuntime{Layers: []*bootstrapv3.RuntimeLayer{{
		Name:           "penstock",
		LayerSpecifier: &bootstrapv3.RuntimeLayer_StaticLayer{StaticLayer: layer},
	}}}, nil
}

func exact(s string) *matcherv3.StringMatcher {
	return &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Exact{Exact: s}}
}

func prefix(s string) *matcherv3.StringMatcher {
	return &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Prefix{Prefix: s}}
}

func suffix(s string) *matcherv3.StringMatcher {
	return &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Suffix{Suffix: s}}
}

func regex(s string) *matcherv3.StringMatcher {
	return &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_SafeRegex{SafeRegex: &matcherv3.RegexMatcher{Regex: s}}}
}

// admin is a UNIX socket that only the owner may use, and of its paths only
// those that read, or that drain before a stop.
func admin(c Config) *bootstrapv3.Admin {
	if c.AdminSocket == "" {
		return nil
	}
	a := &bootstrapv3.Admin{Address: &corev3.Address{Address: &corev3.Address_Pipe{Pipe: &corev3.Pipe{Path: c.AdminSocket, Mode: 0o600}}}}
	if c.AdminAll {
		return a
	}
	a.AllowPaths = []*matcherv3.StringMatcher{
		exact("/ready"), exact("/server_info"), exact("/certs"), exact("/memory"), exact("/runtime"),
		regex(`/stats(/prometheus)?(\?.*)?`), regex(`/(clusters|listeners|config_dump|init_dump)(\?.*)?`),
		exact("/healthcheck/fail"), exact("/healthcheck/ok"), regex(`/drain_listeners(\?.*)?`),
	}
	return a
}

// kept are the statistics that dashboards, alerts and our own tests read. All
// others are never made: an Envoy has about 250 for each cluster.
func kept() []*matcherv3.StringMatcher {
	return []*matcherv3.StringMatcher{
		prefix("server."), prefix("control_plane."), prefix("overload."), prefix("tracing."),
		prefix("cluster_manager."), prefix("listener_manager."), prefix("workers.watchdog_"), prefix("main_thread.watchdog_"),
		// Connections by listener.
		regex(`listener\.[^ ]+\.(downstream_cx_(active|total|overflow|overload_reject)|downstream_global_cx_overflow|ssl\.(handshake|connection_error))`),
		// Requests by listener and class, and what was refused before a route.
		regex(`http\.[^ ]+\.(downstream_rq_(active|total|time|timeout|[1-5]xx|too_large|header_timeout|idle_timeout|max_duration_reached|overload_close|rx_reset|tx_reset)` +
			`|downstream_cx_(active|total|protocol_error|overload_disable_keepalive)|no_route|no_cluster|rs_too_large|passthrough_internal_redirect_[a-z_]+)`),
		regex(`http\.[^ ]+\.(jwt_authn|rbac|ext_authz|ratelimit|local_rate_limit|tracing)\.[^ ]+`),
		regex(`http\.[^ ]+\.rbac\.(allowed|denied)`),
		// Updates: one table of a listener, and the set of scopes; not each host.
		regex(`http\.[^ ]+\.rds\.[^./]+/[^./]+/[^./]+\.(config_reload|update_success|update_rejected)`),
		regex(`http\.[^ ]+\.scoped_rds\.[^ ]+\.(all_scopes|active_scopes|config_reload|on_demand_scopes|update_success|update_rejected)`),
		regex(`(sds|extension_config_discovery)\.[^ ]+\.(update_success|update_rejected|update_failure|config_reload|config_fail|config_conflict)`),
		// Backends.
		regex(`cluster\.[^ ]+\.(upstream_rq_(active|total|time|timeout|per_try_timeout|[1-5]xx|retry|retry_success|retry_overflow|pending_active|pending_overflow|rx_reset|tx_reset|completed)` +
			`|upstream_cx_(active|total|connect_fail|connect_timeout|overflow|destroy_local_with_active_rq|destroy_remote_with_active_rq)` +
			`|membership_(total|healthy|degraded|change)|lb_healthy_panic|update_no_rebuild` +
			`|outlier_detection\.(ejections_active|ejections_enforced_total)|circuit_breakers\.default\.[a-z_]+_open|health_check\.(healthy|failure|success)` +
			`|ratelimit\.(ok|error|over_limit|failure_mode_allowed)|ext_authz\.(ok|error|denied))`),
		suffix(".http_local_rate_limit.rate_limited"), suffix(".http_local_rate_limit.ok"), suffix(".http_local_rate_limit.enabled"), suffix(".http_local_rate_limit.enforced"),
	}
}

func statsConfig() *metricsv3.StatsConfig {
	return &metricsv3.StatsConfig{
		StatsMatcher: &metricsv3.StatsMatcher{StatsMatcher: &metricsv3.StatsMatcher_InclusionList{
			InclusionList: &matcherv3.ListStringMatcher{Patterns: kept()},
		}},
	}
}
