package telemetry

// Names of all metrics, spans and attributes of Penstock's processes are here,
// so that dashboards, alerts and `penstock trace` have one place to look at.
// Metrics follow Prometheus' conventions (unit and _total at the end), attributes
// OpenTelemetry's (dots between namespaces).

// Metrics of the limiter.
const (
	// MetricLimiterDecisions counts decisions by LabelLimit and LabelDecision.
	MetricLimiterDecisions = "penstock_limiter_decisions_total"
	// MetricLimiterRequests counts answered requests by LabelCode (ok,
	// over_limit, unavailable, or the gRPC code of an error).
	MetricLimiterRequests = "penstock_limiter_requests_total"
	// MetricLimiterSeconds is the time that the backend took for a request.
	MetricLimiterSeconds = "penstock_limiter_backend_seconds"
	// MetricLimiterInvalid counts refused descriptors by LabelReason.
	MetricLimiterInvalid = "penstock_limiter_invalid_descriptors_total"
	// MetricLimiterKeys is the number of counters in memory.
	MetricLimiterKeys = "penstock_limiter_memory_keys"
	// MetricLimiterEvictions counts counters that were dropped while in use,
	// since memory for counters was full.
	MetricLimiterEvictions = "penstock_limiter_memory_evictions_total"
	// MetricLimiterBackendUp is 1 while the backend answers.
	MetricLimiterBackendUp = "penstock_limiter_backend_up"
	// MetricLimiterBackendFailures counts failed calls of the backend.
	MetricLimiterBackendFailures = "penstock_limiter_backend_failures_total"
	// MetricLimiterBatch is the number of requests in one call of Redis.
	MetricLimiterBatch = "penstock_limiter_batch_requests"
)

// Metrics of the relay of spans.
const (
	// MetricRelayBufferedBytes is how much waits for the collector.
	MetricRelayBufferedBytes = "penstock_relay_buffered_bytes"
	// MetricRelayBufferedRequests is how many export requests wait.
	MetricRelayBufferedRequests = "penstock_relay_buffered_requests"
	// MetricRelayReceivedSpans counts spans that were acknowledged.
	MetricRelayReceivedSpans = "penstock_relay_received_spans_total"
	// MetricRelayForwardedSpans counts spans that the collector took.
	MetricRelayForwardedSpans = "penstock_relay_forwarded_spans_total"
	// MetricRelayDroppedSpans counts lost spans by LabelReason (full, refused,
	// shutdown).
	MetricRelayDroppedSpans = "penstock_relay_dropped_spans_total"
	// MetricRelayCollectorUp is 1 when the last call of the collector succeeded.
	MetricRelayCollectorUp = "penstock_relay_collector_up"
)

// Metrics of the control plane.
const (
	// MetricControlRevision is the revision that this replica has.
	MetricControlRevision = "penstock_control_revision"
	// MetricStoreRefusing is 1 while the store takes no changes.
	MetricStoreRefusing = "penstock_store_refusing_writes"
	// MetricControlProxies is the number of connected proxies by LabelState.
	MetricControlProxies = "penstock_control_proxies"
	// MetricControlProblems is the number of things that are not served as written.
	MetricControlProblems = "penstock_control_problems"
	// MetricControlInstances is the number of function instances by LabelState.
	MetricControlInstances = "penstock_control_instances"
	// MetricControlHandshakes counts TLS handshakes that failed on the xDS port, by
	// LabelReason.
	MetricControlHandshakes = "penstock_control_failed_handshakes_total"
	// MetricXDSSent and MetricXDSRemoved count resources by LabelType,
	// MetricXDSPushes responses, MetricXDSAcks and MetricXDSNacks their answers.
	MetricXDSSent    = "penstock_xds_resources_sent_total"
	MetricXDSRemoved = "penstock_xds_resources_removed_total"
	MetricXDSPushes  = "penstock_xds_pushes_total"
	MetricXDSAcks    = "penstock_xds_acks_total"
	MetricXDSNacks   = "penstock_xds_nacks_total"
)

// Labels of metrics. All have few values: limits beyond a cap share "other".
const (
	LabelBackend  = "backend"
	LabelCode     = "code"
	LabelDecision = "decision"
	LabelLimit    = "limit"
	LabelReason   = "reason"
	LabelState    = "state"
	LabelType     = "type"
)

// SpanShouldRateLimit is the limiter's span, a child of the one that Envoy makes
// for its call; gRPC instrumentation names spans by the method.
const SpanShouldRateLimit = "envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit"

// Attributes of the span SpanShouldRateLimit. They describe the limit that
// decided: the one that refused or, when all let the request pass, the one with
// the least left.
const (
	// AttrLimit is the name of that limit.
	AttrLimit = "ratelimit.limit"
	// AttrLimitID is its identity: object and name.
	AttrLimitID = "ratelimit.limit_id"
	// AttrLimitKey says whose requests it counts: consumer, address or shared;
	// never who that is.
	AttrLimitKey = "ratelimit.key"
	// AttrDecision is one of the Decision values.
	AttrDecision = "ratelimit.decision"
	// AttrRemaining is how many requests are left.
	AttrRemaining = "ratelimit.remaining"
	// AttrBackend is memory or redis.
	AttrBackend = "ratelimit.backend"
	// AttrDegraded is set when the backend could not be asked.
	AttrDegraded = "ratelimit.degraded"
)

// Values of LabelDecision and AttrDecision.
const (
	// DecisionAllowed: the limit let the request pass.
	DecisionAllowed = "allowed"
	// DecisionLimited: the limit refused it.
	DecisionLimited = "limited"
	// DecisionShadow: a shadow limit would have refused it.
	DecisionShadow = "shadow_limited"
	// DecisionOpen: not counted, passed by the failure policy.
	DecisionOpen = "failed_open"
	// DecisionClosed: not counted, refused by the failure policy.
	DecisionClosed = "failed_closed"
)

// Fields of log lines.
const (
	LogService = "service"
	LogTraceID = "trace_id"
	LogSpanID  = "span_id"
)
