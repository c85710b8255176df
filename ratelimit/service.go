package ratelimit

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"sync"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	ratelimitv3 "github.com/envoyproxy/go-control-plane/envoy/service/ratelimit/v3"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/penstock-gateway/penstock/telemetry"
)

// Fields of the dynamic metadata that a refused or degraded request gets, in the
// namespace of Envoy's filter (envoy.filters.http.ratelimit), for access logs.
const (
	// MetadataDecision is one of telemetry's Decision values.
	MetadataDecision = "decision"
	// MetadataLimit is the name of the limit that decided.
	MetadataLimit = "limit"
)

// Service is the rate limit service (envoy.service.ratelimit.v3).
type Service struct {
	ratelimitv3.UnimplementedRateLimitServiceServer
	backend Backend
	metrics *Metrics
	log     *slog.Logger
	parser  parser
	quiet   quiet
}

// NewService makes a service. metrics and log may be nil.
func NewService(b Backend, metrics *Metrics, log *slog.Logger) *Service {
	if metrics == nil {
		metrics, _ = NewMetrics(nil) // without a registry nothing can fail
	}
	if log == nil {
		log = slog.Default()
	}
	return &Service{backend: b, metrics: metrics, log: log}
}

// Register adds the service to a gRPC server.
func (s *Service) Register(r grpc.ServiceRegistrar) {
	ratelimitv3.RegisterRateLimitServiceServer(r, s)
}

// ShouldRateLimit implements the rate limit service. A malformed request is
// INVALID_ARGUMENT, naming the descriptor. When the backend cannot be reached the
// limits' failure policies decide: when all are open the answer is OK, marked; else
// it is the error UNAVAILABLE. For a route with such a limit the filter denies
// on errors (failure_mode_deny, status_on_error 503), so that a limiter without
// its backend and no limiter at all are the same to the client.
func (s *Service) ShouldRateLimit(ctx context.Context, req *ratelimitv3.RateLimitRequest) (*ratelimitv3.RateLimitResponse, error) {
	requests, err := s.parser.requests(req)
	if err != nil {
		return nil, s.refuse(ctx, err)
	}
	start := time.Now()
	results, err := s.backend.Decide(ctx, requests)
	took := time.Since(start)
	switch {
	case err == nil:
	case errors.Is(err, ErrUnavailable):
		s.quiet.log(ctx, s.log, slog.LevelWarn, "limits are decided by their failure policy", err)
		results = failurePolicy(requests)
	default:
		st := status.FromContextError(err)
		s.metrics.requests.WithLabelValues(st.Code().String()).Inc()
		return nil, st.Err()
	}
	a := answer{requests: requests, results: results, names: uniqueNames(requests)}
	a.judge()
	s.metrics.decided(requests, results, took, a.code())
	s.annotate(ctx, &a)
	if a.unavailable {
		return nil, status.Errorf(codes.Unavailable, "limit %q cannot be counted now, and its failure policy is closed", a.names[a.deciding])
	}
	return a.response(), nil
}

func (s *Service) refuse(ctx context.Context, err error) error {
	reason := "other"
	if e, ok := errors.AsType[*invalid](err); ok {
		reason = e.reason
	}
	s.metrics.invalid.WithLabelValues(reason).Inc()
	s.metrics.requests.WithLabelValues(codes.InvalidArgument.String()).Inc()
	s.quiet.log(ctx, s.log, slog.LevelError, "a request has a malformed descriptor", err)
	return status.Error(codes.InvalidArgument, err.Error())
}

// annotate describes the decision in the span of the call.
func (s *Service) annotate(ctx context.Context, a *answer) {
	span := trace.SpanFromContext(ctx)
	if !span.IsRecording() {
		return
	}
	spec, result := a.requests[a.deciding].Spec, a.results[a.deciding]
	attrs := []attribute.KeyValue{
		attribute.String(telemetry.AttrLimit, a.names[a.deciding]),
		attribute.String(telemetry.AttrLimitID, spec.ID),
		attribute.String(telemetry.AttrLimitKey, keyKind(a.requests[a.deciding])),
		attribute.String(telemetry.AttrDecision, decision(spec, result)),
		attribute.String(telemetry.AttrBackend, s.backend.Name()),
	}
	if result.Degraded {
		attrs = append(attrs, attribute.Bool(telemetry.AttrDegraded, true))
	} else {
		attrs = append(attrs, attribute.Int64(telemetry.AttrRemaining, int64(result.Remaining)))
	}
	span.SetAttributes(attrs...)
}

// keyKind reports whether a consumer, an address or all were counted.
func keyKind(r Request) string {
	switch r.Key[len(r.Spec.ID)+1] {
	case 'c':
		return ConsumerOrAddress.String()
	case 'a':
		return Address.String()
	default:
		return Shared.String()
	}
}

// failurePolicy decides without counters.
func failurePolicy(requests []Request) []Result {
	results := make([]Result, len(requests))
	for i, r := range requests {
		results[i] = Result{Degraded: true, Limit: r.Spec.Limit(), Allowed: r.Spec.OnFailure == Open || r.Spec.Shadow}
	}
	return results
}

// answer is a decided request.
type answer struct {
	requests []Request
	results  []Result
	names    []string
	// refused: some limit refuses; unavailable: for want of its counter.
	refused, unavailable, degraded bool
	// deciding is the index of the limit that refused first or, when all let pass,
	// of the one with the least left.
	deciding int
}

func (a *answer) judge() {
	least, found := int64(-1), false
	for i, r := range a.results {
		a.degraded = a.degraded || r.Degraded
		if a.requests[i].Spec.Shadow {
			continue
		}
		if !r.Allowed {
			a.unavailable = a.unavailable || r.Degraded
			if !a.refused {
				a.refused, a.deciding, found = true, i, true
			}
			continue
		}
		if !a.refused && (!found || int64(r.Remaining) < least) {
			least, a.deciding, found = int64(r.Remaining), i, true
		}
	}
}

// code is the value of the metric's label.
func (a *answer) code() string {
	switch {
	case a.unavailable:
		return "unavailable"
	case a.refused:
		return "over_limit"
	default:
		return "ok"
	}
}

func (a *answer) response() *ratelimitv3.RateLimitResponse {
	res := &ratelimitv3.RateLimitResponse{
		OverallCode: ratelimitv3.RateLimitResponse_OK,
		Statuses:    make([]*ratelimitv3.RateLimitResponse_DescriptorStatus, len(a.results)),
	}
	for i, r := range a.results {
		res.Statuses[i] = descriptorStatus(a.names[i], a.requests[i].Spec, r)
	}
	add := func(key, value string) {
		if value != "" {
			res.ResponseHeadersToAdd = append(res.ResponseHeadersToAdd, &corev3.HeaderValue{Key: key, Value: value})
		}
	}
	add(headerPolicy, policyField(a.names, a.requests))
	add(headerLimit, limitField(a.names, a.requests, a.results))
	if a.degraded {
		add(headerDegraded, degradedField(a.names, a.requests, a.results))
	}
	if a.refused {
		res.OverallCode = ratelimitv3.RateLimitResponse_OVER_LIMIT
		retry := retryAfter(a.requests, a.results)
		add(headerRetryAfter, strconv.FormatInt(retry, 10))
		add("content-type", "application/problem+json")
		res.RawBody = a.problem(retry)
	}
	if a.refused || a.degraded {
		res.DynamicMetadata = a.metadata()
	}
	return res
}

// CodeExceeded is the code in the body of an answer that a limit gives; gateway.LimitExceeded
// is the same.
const CodeExceeded = "PK-LIMIT-EXCEEDED"

// problem is the body of a refused request: a problem of section 5 of the draft.
func (a *answer) problem(retry int64) []byte {
	p := struct {
		Type     string   `json:"type"`
		Title    string   `json:"title"`
		Status   int      `json:"status"`
		Code     string   `json:"code"`
		Detail   string   `json:"detail"`
		Violated []string `json:"violated-policies"`
	}{
		Type:  "https://iana.org/assignments/http-problem-types#quota-exceeded",
		Title: "Too many requests", Status: 429, Code: CodeExceeded,
	}
	for i, r := range a.results {
		if !r.Allowed && !a.requests[i].Spec.Shadow {
			p.Violated = append(p.Violated, a.names[i])
		}
	}
	p.Detail = fmt.Sprintf("Try again in %d s.", retry)
	b, err := json.Marshal(p)
	if err != nil {
		return nil // strings and numbers are always JSON
	}
	return append(b, '\n')
}

func (a *answer) metadata() *structpb.Struct {
	return &structpb.Struct{Fields: map[string]*structpb.Value{
		MetadataDecision: structpb.NewStringValue(decision(a.requests[a.deciding].Spec, a.results[a.deciding])),
		MetadataLimit:    structpb.NewStringValue(a.names[a.deciding]),
	}}
}

// units are the windows that the protocol has a name for.
var units = map[time.Duration]ratelimitv3.RateLimitResponse_RateLimit_Unit{
	time.Second:        ratelimitv3.RateLimitResponse_RateLimit_SECOND,
	time.Minute:        ratelimitv3.RateLimitResponse_RateLimit_MINUTE,
	time.Hour:          ratelimitv3.RateLimitResponse_RateLimit_HOUR,
	24 * time.Hour:     ratelimitv3.RateLimitResponse_RateLimit_DAY,
	7 * 24 * time.Hour: ratelimitv3.RateLimitResponse_RateLimit_WEEK,
}

func descriptorStatus(name string, spec Spec, r Result) *ratelimitv3.RateLimitResponse_DescriptorStatus {
	st := &ratelimitv3.RateLimitResponse_DescriptorStatus{
		Code: ratelimitv3.RateLimitResponse_OK,
		CurrentLimit: &ratelimitv3.RateLimitResponse_RateLimit{
			Name: name, RequestsPerUnit: spec.Requests, Unit: units[spec.Window],
		},
	}
	if !r.Allowed && !spec.Shadow {
		st.Code = ratelimitv3.RateLimitResponse_OVER_LIMIT
	}
	if !r.Degraded {
		st.LimitRemaining = r.Remaining
		st.DurationUntilReset = durationpb.New(r.Effective)
	}
	return st
}

// quiet logs at most one line each quietInterval: a fault that hits every request
// would fill the disk.
type quiet struct {
	mu      sync.Mutex
	last    time.Time
	skipped int
}

const quietInterval = 5 * time.Second

func (q *quiet) log(ctx context.Context, log *slog.Logger, level slog.Level, msg string, err error) {
	q.mu.Lock()
	now := time.Now()
	if !q.last.IsZero() && now.Sub(q.last) < quietInterval {
		q.skipped++
		q.mu.Unlock()
		return
	}
	skipped := q.skipped
	q.last, q.skipped = now, 0
	q.mu.Unlock()
	args := []any{"error", err}
	if skipped > 0 {
		args = append(args, "similar", skipped)
	}
	log.Log(ctx, level, msg, args...)
}
