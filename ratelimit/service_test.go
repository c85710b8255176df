package ratelimit

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	commonratelimitv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/common/ratelimit/v3"
	ratelimitv3 "github.com/envoyproxy/go-control-plane/envoy/service/ratelimit/v3"
	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/propagation"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/penstock-gateway/penstock/internal/redistest"
	"github.com/penstock-gateway/penstock/telemetry"
)

var silent = slog.New(slog.DiscardHandler)

// descriptor makes one of pairs of key and value.
func descriptor(pairs ...string) *commonratelimitv3.RateLimitDescriptor {
	d := &commonratelimitv3.RateLimitDescriptor{}
	for pair := range slices.Chunk(pairs, 2) {
		d.Entries = append(d.Entries, &commonratelimitv3.RateLimitDescriptor_Entry{Key: pair[0], Value: pair[1]})
	}
	return d
}

func call1(descriptors ...*commonratelimitv3.RateLimitDescriptor) *ratelimitv3.RateLimitRequest {
	return &ratelimitv3.RateLimitRequest{Domain: Domain, Descriptors: descriptors}
}

func headersOf(res *ratelimitv3.RateLimitResponse) map[string]string {
	h := map[string]string{}
	for _, v := range res.GetResponseHeadersToAdd() {
		h[v.GetKey()] = v.GetValue()
	}
	return h
}

// serve runs a service behind a real gRPC server and returns a client.
func serve(t testing.TB, s *Service, tp *sdktrace.TracerProvider) *grpc.ClientConn {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var server *grpc.Server
	if tp == nil {
		server, _ = NewServer(s, nil, nil)
	} else {
		server, _ = NewServer(s, tp, propagation.TraceContext{})
	}
	done := make(chan error, 1)
	go func() { done <- server.Serve(l) }()
	conn, err := grpc.NewClient("passthrough:///"+l.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		conn.Close()
		server.Stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return conn
}

func TestSixthIsRefused(t *testing.T) {
	c := newClock()
	s := NewService(NewMemory(MemoryOptions{Now: c.now}), nil, silent)
	text := Spec{ID: "projects/default/routes/limited#per-consumer", Name: "per-consumer", Requests: 5, Window: time.Minute}.String()
	req := call1(descriptor("limit", text, "iss", "https://issuer", "sub", "alice", "masked_remote_address", "192.0.2.1/32"))
	for i := range 5 {
		res, err := s.ShouldRateLimit(t.Context(), req)
		if err != nil || res.GetOverallCode() != ratelimitv3.RateLimitResponse_OK {
			t.Fatalf("request %d: %v, %v", i+1, res, err)
		}
		left := 4 - i
		want := map[string]string{
			"ratelimit-policy": `"per-consumer";q=5;w=60`,
			"ratelimit":        fmt.Sprintf(`"per-consumer";r=%d;t=%d`, left, max(12, 12*left)),
		}
		if diff := cmp.Diff(want, headersOf(res)); diff != "" {
			t.Errorf("request %d (-want +got):\n%s", i+1, diff)
		}
	}
	c.add(1500 * time.Millisecond)
	res, err := s.ShouldRateLimit(t.Context(), req)
	if err != nil || res.GetOverallCode() != ratelimitv3.RateLimitResponse_OVER_LIMIT {
		t.Fatalf("sixth: %v, %v", res, err)
	}
	want := map[string]string{
		"ratelimit-policy": `"per-consumer";q=5;w=60`,
		"ratelimit":        `"per-consumer";r=0;t=11`,
		"retry-after":      "11",
		"content-type":     "application/problem+json",
	}
	if diff := cmp.Diff(want, headersOf(res)); diff != "" {
		t.Errorf("sixth (-want +got):\n%s", diff)
	}
	var problem map[string]any
	if err := json.Unmarshal(res.GetRawBody(), &problem); err != nil || fmt.Sprint(problem["violated-policies"]) != "[per-consumer]" || problem["code"] != CodeExceeded {
		t.Errorf("body %s: %v", res.GetRawBody(), err)
	}
	if res.GetStatuses()[0].GetCode() != ratelimitv3.RateLimitResponse_OVER_LIMIT ||
		res.GetStatuses()[0].GetCurrentLimit().GetUnit() != ratelimitv3.RateLimitResponse_RateLimit_MINUTE ||
		res.GetStatuses()[0].GetDurationUntilReset().AsDuration() != 10500*time.Millisecond {
		t.Errorf("status: %v", res.GetStatuses())
	}
	if res.GetDynamicMetadata().GetFields()[MetadataDecision].GetStringValue() != telemetry.DecisionLimited {
		t.Errorf("metadata: %v", res.GetDynamicMetadata())
	}
	if text := res.String(); strings.Contains(text, "alice") || strings.Contains(text, "192.0.2.1") {
		t.Errorf("the answer tells who the consumer is: %s", text)
	}

	// Others have counters of their own.
	for _, other := range []*commonratelimitv3.RateLimitDescriptor{
		descriptor("limit", text, "iss", "https://issuer", "sub", "bob", "address", "192.0.2.1"),
		descriptor("limit", text, "iss", "https://other", "sub", "alice", "address", "192.0.2.1"),
		descriptor("limit", text, "iss", "https://issuera", "sub", "lice", "address", "192.0.2.1"),
		descriptor("limit", text, "address", "192.0.2.1"),
	} {
		if res, err := s.ShouldRateLimit(t.Context(), call1(other)); err != nil || res.GetStatuses()[0].GetLimitRemaining() != 4 {
			t.Errorf("%v: %v, %v", other, res, err)
		}
	}
}

func TestHeadersOfSeveralLimits(t *testing.T) {
	c := newClock()
	s := NewService(NewMemory(MemoryOptions{Now: c.now}), nil, silent)
	d := func(s Spec) *commonratelimitv3.RateLimitDescriptor { return descriptor("limit", s.String()) }
	req := call1(
		d(Spec{ID: "g#all", Name: "all", Requests: 100, Window: time.Second, Burst: 20, Key: Shared}),
		d(Spec{ID: "r#all", Name: "all", Requests: 1, Window: 90 * time.Second, Key: Shared, Algorithm: FixedWindow}),
		d(Spec{ID: "r#half", Name: "half", Requests: 3, Window: 500 * time.Millisecond, Key: Shared}),
		d(Spec{ID: "r#trial", Name: "trial", Requests: 1, Window: time.Hour, Key: Shared, Shadow: true}),
	)
	res, err := s.ShouldRateLimit(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	untilEnd := 90 - (epoch/1_000_000)%90
	want := map[string]string{
		"ratelimit-policy": `"all";q=100;w=1;penstock-burst=20, "all-2";q=1;w=90, "half";q=3`,
		"ratelimit":        fmt.Sprintf(`"all";r=19;t=1, "all-2";r=0;t=%d, "half";r=2;t=1`, untilEnd),
	}
	if diff := cmp.Diff(want, headersOf(res)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if res, err = s.ShouldRateLimit(t.Context(), req); err != nil || headersOf(res)["retry-after"] != fmt.Sprint(untilEnd) {
		t.Errorf("second: %v, %v", res, err)
	}
	if got := len(res.GetStatuses()); got != 4 {
		t.Errorf("%d statuses for 4 descriptors", got)
	}
}

func TestRoundedUp(t *testing.T) {
	for d, want := range map[time.Duration]int64{0: 0, 1: 1, time.Second: 1, time.Second + 1: 2, 59*time.Second + 1: 60} {
		if got := seconds(d); got != want {
			t.Errorf("seconds(%s) = %d, want %d", d, got, want)
		}
	}
	var b strings.Builder
	item(&b, `a"b\c`)
	if b.String() != `"a\"b\\c"` {
		t.Errorf("a name in a structured field: %s", b.String())
	}
}

func TestHits(t *testing.T) {
	s := NewService(NewMemory(MemoryOptions{}), nil, silent)
	text := Spec{ID: "x", Name: "x", Requests: 10, Window: time.Hour, Key: Shared}.String()
	left := uint32(10)
	for _, c := range []struct {
		request    uint32
		descriptor *wrapperspb.UInt64Value
		takes      uint32
		ok         bool
	}{
		{0, nil, 1, true}, {3, nil, 3, true}, {3, wrapperspb.UInt64(2), 2, true}, {3, wrapperspb.UInt64(0), 0, true},
		{5, nil, 0, false}, {0, wrapperspb.UInt64(1 << 63), 0, false}, {4294967295, nil, 0, false}, {4, nil, 4, true}, {0, wrapperspb.UInt64(0), 0, false},
	} {
		d := descriptor("limit", text)
		d.HitsAddend = c.descriptor
		req := call1(d)
		req.HitsAddend = c.request
		res, err := s.ShouldRateLimit(t.Context(), req)
		if err != nil {
			t.Fatal(err)
		}
		left -= c.takes
		if ok := res.GetOverallCode() == ratelimitv3.RateLimitResponse_OK; ok != c.ok || res.GetStatuses()[0].GetLimitRemaining() != left {
			t.Errorf("%+v: ok %t, %d left, want %t, %d", c, ok, res.GetStatuses()[0].GetLimitRemaining(), c.ok, left)
		}
	}
}

func TestMalformed(t *testing.T) {
	registry := prometheus.NewRegistry()
	metrics, err := NewMetrics(registry)
	if err != nil {
		t.Fatal(err)
	}
	s := NewService(NewMemory(MemoryOptions{}), metrics, silent)
	good := Spec{ID: "i", Name: "n", Requests: 5, Window: time.Minute}
	text := good.String()
	shared := good
	shared.Key = Shared
	override := descriptor("limit", text, "address", "::1")
	override.Limit = &commonratelimitv3.RateLimitDescriptor_RateLimitOverride{}
	negative := descriptor("limit", text, "address", "::1")
	negative.IsNegativeHits = true
	many := call1()
	for range maxDescriptors + 1 {
		many.Descriptors = append(many.Descriptors, descriptor("limit", shared.String()))
	}
	ok := descriptor("limit", shared.String())
	cases := map[string]struct {
		req    *ratelimitv3.RateLimitRequest
		want   string
		reason string
	}{
		"domain":          {&ratelimitv3.RateLimitRequest{Domain: "other", Descriptors: []*commonratelimitv3.RateLimitDescriptor{ok}}, `domain "other"`, "domain"},
		"no descriptors":  {call1(), "0 descriptors", "count"},
		"too many":        {many, "65 descriptors", "count"},
		"empty":           {call1(ok, &commonratelimitv3.RateLimitDescriptor{}), `descriptor 1: the entry "limit" is missing or empty`, "entry"},
		"unknown entry":   {call1(ok, descriptor("limit", text, "path", "/")), `descriptor 1: entry "path" is unknown`, "entry"},
		"twice":           {call1(descriptor("limit", text, "limit", text)), `descriptor 0: duplicate entry "limit"`, "entry"},
		"two addresses":   {call1(descriptor("limit", text, "address", "::1", "remote_address", "::1")), `duplicate entry "remote_address"`, "entry"},
		"empty value":     {call1(descriptor("limit", "")), `descriptor 0: the entry "limit" is missing or empty`, "entry"},
		"bad limit":       {call1(ok, ok, descriptor("limit", "v1|0|60s|0|gcra|shared|open|-|n|i")), "descriptor 2: limit", "limit"},
		"override":        {call1(override), "limit override", "unsupported"},
		"negative":        {call1(negative), "is_negative_hits", "unsupported"},
		"long bad domain": {&ratelimitv3.RateLimitRequest{Domain: strings.Repeat("x", 1000)}, "…", "domain"},
	}
	for name, c := range cases {
		_, err := s.ShouldRateLimit(t.Context(), c.req)
		if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want InvalidArgument with %q", name, err, c.want)
		}
	}
	counted := metricsOf(t, registry)
	wanted := map[string]float64{}
	for c := range maps.Values(cases) {
		wanted["penstock_limiter_invalid_descriptors_total{"+c.reason+"}"]++
	}
	for k, v := range wanted {
		if counted[k] != v {
			t.Errorf("%s = %v, want %v", k, counted[k], v)
		}
	}
}

// metricsOf returns the counters of a registry as name{label values}.
func metricsOf(t *testing.T, r *prometheus.Registry) map[string]float64 {
	t.Helper()
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			var labels []string
			for _, l := range m.GetLabel() {
				labels = append(labels, l.GetValue())
			}
			v := m.GetCounter().GetValue() + m.GetGauge().GetValue()
			if h := m.GetHistogram(); h != nil {
				v = float64(h.GetSampleCount())
			}
			out[f.GetName()+"{"+strings.Join(labels, ",")+"}"] = v
		}
	}
	return out
}

func TestKeys(t *testing.T) {
	per := Spec{ID: "i", Key: ConsumerOrAddress}
	key := counterKey
	for _, c := range []struct {
		address, want string
	}{
		{"192.0.2.1", "i|a192.0.2.1"},
		{"192.0.2.1/32", "i|a192.0.2.1"},
		{"::ffff:192.0.2.1", "i|a192.0.2.1"},
		{"192.0.2.0/24", "i|a192.0.2.0/24"},
		{"2001:db8:1:2:3:4:5:6", "i|a2001:db8:1:2::/64"},
		{"2001:db8:1:2::/64", "i|a2001:db8:1:2::/64"},
		{"2001:db8::/48", "i|a2001:db8::/48"},
		{"fe80::1%eth0", "i|afe80::/64"},
	} {
		if got := key(per, entries{address: c.address}); got != c.want {
			t.Errorf("%s: %s, want %s", c.address, got, c.want)
		}
	}
	if got := key(per, entries{address: "/run/some.sock"}); !strings.HasPrefix(got, "i|a#") || strings.Contains(got, "sock") {
		t.Error(got)
	}
	if got := key(Spec{ID: "i", Key: Shared}, entries{issuer: "a", subject: "b", address: "c"}); got != "i|s" {
		t.Error(got)
	}
	if got := key(Spec{ID: "i", Key: Address}, entries{issuer: "a", subject: "b", address: "192.0.2.1"}); got != "i|a192.0.2.1" {
		t.Error(got)
	}
}

func TestBoundedMemory(t *testing.T) {
	var p parser
	for i := range maxSpecs + 10 {
		if _, err := p.spec(gcra(fmt.Sprint(i), 5, time.Minute).String()); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(p.specs); n != 10 {
		t.Errorf("%d limits are remembered", n)
	}
	m, err := NewMetrics(nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := range maxLimitLabels {
		if id := fmt.Sprint(i); m.label(id) != id {
			t.Fatal("a limit has no label of its own")
		}
	}
	if m.label("one more") != "other" || m.label("7") != "7" {
		t.Error("the labels have no bound")
	}
}

// TestTwoLimitersOneRedis: two limiter services over gRPC share one count, exactly.
func TestTwoLimitersOneRedis(t *testing.T) {
	server := redistest.Start(t)
	clients := make([]ratelimitv3.RateLimitServiceClient, 2)
	for i := range clients {
		clients[i] = ratelimitv3.NewRateLimitServiceClient(serve(t, NewService(newRedis(t, server, RedisOptions{}), nil, silent), nil))
	}
	req := call1(descriptor("limit", Spec{ID: "x", Name: "x", Requests: 100, Window: 24 * time.Hour, OnFailure: Closed}.String(), "address", "192.0.2.1"))
	var passed atomic.Int64
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			for range 10 {
				res, err := clients[i%2].ShouldRateLimit(context.Background(), req)
				if err != nil {
					t.Error(err)
					return
				}
				if res.GetOverallCode() == ratelimitv3.RateLimitResponse_OK {
					passed.Add(1)
				}
			}
		})
	}
	wg.Wait()
	if passed.Load() != 100 {
		t.Errorf("%d of 200 requests passed a limit of 100", passed.Load())
	}
}

func TestFailurePolicies(t *testing.T) {
	server := redistest.Start(t)
	registry := prometheus.NewRegistry()
	metrics, err := NewMetrics(registry)
	if err != nil {
		t.Fatal(err)
	}
	backend := newRedis(t, server, RedisOptions{Timeout: time.Second, OnBatch: metrics.ObserveBatch})
	if err := metrics.RegisterBackend(registry, backend); err != nil {
		t.Fatal(err)
	}
	client := ratelimitv3.NewRateLimitServiceClient(serve(t, NewService(backend, metrics, silent), nil))
	open := Spec{ID: "open", Name: "open", Requests: 5, Window: time.Hour, Key: Shared}
	closed := Spec{ID: "closed", Name: "closed", Requests: 5, Window: time.Hour, Key: Shared, OnFailure: Closed}
	shadow := closed
	shadow.ID, shadow.Name, shadow.Shadow = "trial", "trial", true
	openCall := call1(descriptor("limit", open.String()), descriptor("limit", shadow.String()))
	bothCall := call1(descriptor("limit", open.String()), descriptor("limit", closed.String()))
	ask := func(req *ratelimitv3.RateLimitRequest) (*ratelimitv3.RateLimitResponse, error) {
		return client.ShouldRateLimit(t.Context(), req)
	}
	for _, req := range []*ratelimitv3.RateLimitRequest{openCall, bothCall} {
		if res, err := ask(req); err != nil || res.GetOverallCode() != ratelimitv3.RateLimitResponse_OK || headersOf(res)["x-ratelimit-degraded"] != "" {
			t.Fatalf("with Redis: %v, %v", res, err)
		}
	}
	server.Kill()
	for i := range 20 { // before and after the breaker opened
		res, err := ask(openCall)
		if err != nil || res.GetOverallCode() != ratelimitv3.RateLimitResponse_OK {
			t.Fatalf("open %d: %v, %v", i, res, err)
		}
		want := map[string]string{"ratelimit-policy": `"open";q=5;w=3600`, "x-ratelimit-degraded": `"open"`}
		if diff := cmp.Diff(want, headersOf(res)); diff != "" {
			t.Fatalf("open (-want +got):\n%s", diff)
		}
		if _, err := ask(bothCall); status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), `"closed"`) {
			t.Fatalf("closed %d: %v", i, err)
		}
	}
	if m := metricsOf(t, registry); m["penstock_limiter_backend_up{redis}"] != 0 || m["penstock_limiter_decisions_total{failed_open,open}"] != 40 ||
		m["penstock_limiter_decisions_total{failed_closed,closed}"] != 20 || m["penstock_limiter_requests_total{unavailable}"] != 20 {
		t.Errorf("metrics: %v", m)
	}
	server.Restart(t)
	eventually(t, "limits to be counted again", func() bool {
		res, err := ask(bothCall)
		return err == nil && headersOf(res)["x-ratelimit-degraded"] == "" && res.GetStatuses()[1].GetLimitRemaining() > 0
	})
	if m := metricsOf(t, registry); m["penstock_limiter_backend_up{redis}"] != 1 || m["penstock_limiter_backend_failures_total{redis}"] == 0 {
		t.Errorf("metrics: %v", m)
	}
}

func TestCallerGivesUp(t *testing.T) {
	s := NewService(NewMemory(MemoryOptions{}), nil, silent)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := s.ShouldRateLimit(ctx, call1(descriptor("limit", Spec{ID: "x", Name: "x", Requests: 1, Window: time.Second, Key: Shared}.String())))
	if status.Code(err) != codes.Canceled {
		t.Errorf("got %v", err)
	}
}

// TestSpan: the span of a decision joins the caller's trace and says what was
// decided, and not for whom.
func TestSpan(t *testing.T) {
	recorder := tracetest.NewSpanRecorder()
	tp := sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(recorder))
	conn := serve(t, NewService(NewMemory(MemoryOptions{}), nil, silent), tp)
	spec := Spec{ID: "projects/p/routes/r#per-consumer", Name: "per-consumer", Requests: 1, Window: time.Hour}
	shared := Spec{ID: "projects/p/gateways/g#all", Name: "all", Requests: 9, Window: time.Hour, Key: Shared}
	req := call1(descriptor("limit", shared.String()), descriptor("limit", spec.String(), "iss", "https://issuer", "sub", "alice"))
	const trace = "0af7651916cd43dd8448eb211c80319c"
	ctx := metadata.AppendToOutgoingContext(t.Context(), "traceparent", "00-"+trace+"-b7ad6b7169203331-01")
	for i := range 2 {
		if _, err := ratelimitv3.NewRateLimitServiceClient(conn).ShouldRateLimit(ctx, req); err != nil {
			t.Fatal(err)
		}
		// A span ends a moment after the caller has the answer.
		eventually(t, "the span", func() bool { return len(recorder.Ended()) == i+1 })
	}
	if _, err := healthv1.NewHealthClient(conn).Check(ctx, &healthv1.HealthCheckRequest{Service: "envoy.service.ratelimit.v3.RateLimitService"}); err != nil {
		t.Error(err)
	}
	for i, span := range recorder.Ended() {
		got := map[string]string{}
		for _, a := range span.Attributes() {
			if strings.HasPrefix(string(a.Key), "ratelimit.") {
				got[string(a.Key)] = a.Value.String()
			}
		}
		want := map[string]string{
			"ratelimit.limit": "per-consumer", "ratelimit.limit_id": spec.ID, "ratelimit.key": "consumer",
			"ratelimit.decision": []string{"allowed", "limited"}[i], "ratelimit.remaining": "0", "ratelimit.backend": "memory",
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("span %d (-want +got):\n%s", i, diff)
		}
		if span.Name() != telemetry.SpanShouldRateLimit || span.SpanContext().TraceID().String() != trace || span.Parent().SpanID().String() != "b7ad6b7169203331" {
			t.Errorf("span %q of trace %s below %s", span.Name(), span.SpanContext().TraceID(), span.Parent().SpanID())
		}
	}
}

func TestQuietLog(t *testing.T) {
	var b strings.Builder
	log := slog.New(slog.NewTextHandler(&b, nil))
	var q quiet
	for range 1000 {
		q.log(t.Context(), log, slog.LevelWarn, "again", io.EOF)
	}
	if n := strings.Count(b.String(), "again"); n != 1 {
		t.Errorf("%d lines", n)
	}
	q.last = q.last.Add(-2 * quietInterval)
	q.log(t.Context(), log, slog.LevelWarn, "again", io.EOF)
	if !strings.Contains(b.String(), "similar=999") {
		t.Error(b.String())
	}
}

// FuzzDescriptors: whatever a proxy sends, the answer is a decision or an error
// that is InvalidArgument.
func FuzzDescriptors(f *testing.F) {
	text := gcra("x", 5, time.Minute).String()
	for _, req := range []*ratelimitv3.RateLimitRequest{
		call1(descriptor("limit", text, "iss", "a", "sub", "b", "address", "::1")),
		call1(descriptor("limit", text, "masked_remote_address", "10.0.0.0/8"), descriptor("limit", text, "address", "x")),
		call1(descriptor("", "")),
	} {
		b, err := proto.Marshal(req)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	s := NewService(NewMemory(MemoryOptions{MaxKeys: 100}), nil, silent)
	f.Fuzz(func(t *testing.T, b []byte) {
		var req ratelimitv3.RateLimitRequest
		if proto.Unmarshal(b, &req) != nil {
			return
		}
		res, err := s.ShouldRateLimit(context.Background(), &req)
		if err != nil {
			if status.Code(err) != codes.InvalidArgument {
				t.Errorf("got %v", err)
			}
			return
		}
		if len(res.GetStatuses()) != len(req.GetDescriptors()) {
			t.Errorf("%d statuses for %d descriptors", len(res.GetStatuses()), len(req.GetDescriptors()))
		}
		for _, h := range res.GetResponseHeadersToAdd() {
			if strings.ContainsAny(h.GetValue(), "\r\n\x00") {
				t.Errorf("header %s: %q", h.GetKey(), h.GetValue())
			}
		}
	})
}
