package relay

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	collectortracev1 "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	tracev1 "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/penstock-gateway/penstock/internal/ports/porttest"
)

var silent = slog.New(slog.DiscardHandler)

// collector is a real OTLP/gRPC trace service that remembers names of spans.
type collector struct {
	collectortracev1.UnimplementedTraceServiceServer
	mu     sync.Mutex
	names  []string
	calls  int
	answer func(call int) (*collectortracev1.ExportTraceServiceResponse, error)
}

func (c *collector) Export(_ context.Context, r *collectortracev1.ExportTraceServiceRequest) (*collectortracev1.ExportTraceServiceResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.calls++
	res, err := &collectortracev1.ExportTraceServiceResponse{}, error(nil)
	if c.answer != nil {
		res, err = c.answer(c.calls)
	}
	if err != nil {
		return nil, err
	}
	for _, rs := range r.GetResourceSpans() {
		for _, ss := range rs.GetScopeSpans() {
			for _, s := range ss.GetSpans() {
				c.names = append(c.names, s.GetName())
			}
		}
	}
	return res, nil
}

func (c *collector) got() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.names)
}

func serve(t *testing.T, address string, register func(grpc.ServiceRegistrar)) (string, *grpc.Server) {
	t.Helper()
	l := porttest.Listen(t, address)
	s := grpc.NewServer()
	register(s)
	go func() { _ = s.Serve(l) }()
	t.Cleanup(s.Stop)
	return l.Addr().String(), s
}

func (c *collector) serve(t *testing.T, address string) (string, *grpc.Server) {
	return serve(t, address, func(r grpc.ServiceRegistrar) { collectortracev1.RegisterTraceServiceServer(r, c) })
}

// start runs a relay until the test or stop ends it; stop returns Run's error.
func start(t *testing.T, o Options) (r *Relay, address string, stop func() error) {
	t.Helper()
	if o.Logger == nil {
		o.Logger = silent
	}
	r, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	address, _ = serve(t, "127.0.0.1:0", r.Register)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	stop = sync.OnceValue(func() error {
		cancel()
		return <-done
	})
	t.Cleanup(func() { _ = stop() })
	return r, address, stop
}

func spans(names ...string) *collectortracev1.ExportTraceServiceRequest {
	ss := &tracev1.ScopeSpans{}
	for _, n := range names {
		ss.Spans = append(ss.Spans, &tracev1.Span{Name: n, TraceId: bytes.Repeat([]byte{1}, 16), SpanId: bytes.Repeat([]byte{2}, 8)})
	}
	return &collectortracev1.ExportTraceServiceRequest{ResourceSpans: []*tracev1.ResourceSpans{{ScopeSpans: []*tracev1.ScopeSpans{ss}}}}
}

func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !cond(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

func wantNames(n int) (out []string) {
	for i := range n {
		out = append(out, fmt.Sprint("span ", i))
	}
	return out
}

// TestLateCollector: a real exporter hands over spans, gets its acknowledgement,
// and a real collector that starts later has them all, in order.
func TestLateCollector(t *testing.T) {
	to := porttest.Address(t)
	r, address, stop := start(t, Options{To: to})
	exporter, err := otlptracegrpc.New(t.Context(), otlptracegrpc.WithEndpoint(address), otlptracegrpc.WithInsecure(), otlptracegrpc.WithCompressor("gzip"))
	if err != nil {
		t.Fatal(err)
	}
	tp := sdktrace.NewTracerProvider(sdktrace.WithSyncer(exporter)) // one call per span
	want := wantNames(50)
	for _, name := range want[:40] {
		_, span := tp.Tracer("test").Start(t.Context(), name)
		span.End()
	}
	if s := r.Status(); s.Received != 40 || s.BufferedSpans != 40 || s.Forwarded != 0 || s.CollectorUp {
		t.Errorf("before: %+v", s)
	}
	var c collector
	c.serve(t, to)
	eventually(t, "the spans", func() bool { return len(c.got()) == 40 })
	for _, name := range want[40:] {
		_, span := tp.Tracer("test").Start(t.Context(), name)
		span.End()
	}
	if err := tp.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
	if got := c.got(); !slices.Equal(got, want) {
		t.Errorf("got %q", got)
	}
	if s := r.Status(); s != (Status{Received: 50, Forwarded: 50, CollectorUp: true}) {
		t.Errorf("after: %+v", s)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.calls >= 40 {
		t.Errorf("%d calls: what waited is not sent together", c.calls)
	}
}

// TestCollectorRestarts: spans of the time between are held.
func TestCollectorRestarts(t *testing.T) {
	var c collector
	to, server := c.serve(t, "127.0.0.1:0")
	r, address, _ := start(t, Options{To: to})
	client := dial(t, address)
	send := func(name string) {
		t.Helper()
		if _, err := client.Export(t.Context(), spans(name)); err != nil {
			t.Fatal(err)
		}
	}
	send("span 0")
	eventually(t, "the first", func() bool { return len(c.got()) == 1 && r.Status().CollectorUp })
	server.Stop()
	send("span 1")
	send("span 2")
	eventually(t, "the failure", func() bool { return !r.Status().CollectorUp })
	c.serve(t, to)
	eventually(t, "the others", func() bool { return slices.Equal(c.got(), wantNames(3)) })
}

func dial(t *testing.T, address string) collectortracev1.TraceServiceClient {
	t.Helper()
	conn, err := grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return collectortracev1.NewTraceServiceClient(conn)
}

// TestBounded: the oldest spans go first, counted, and memory stays bounded.
func TestBounded(t *testing.T) {
	to := porttest.Address(t)
	var logged bytes.Buffer
	registry := prometheus.NewRegistry()
	r, _, stop := start(t, Options{To: to, MaxBytes: 10_000, Registerer: registry, Logger: slog.New(slog.NewTextHandler(&logged, nil))})
	var last []string
	for i := range 500 {
		name := fmt.Sprint("span ", i)
		last = append(last, name)
		if _, err := r.Export(t.Context(), spans(name)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := r.Export(t.Context(), spans(strings.Repeat("x", 10_000))); err != nil { // larger than the buffer
		t.Fatal(err)
	}
	s := r.Status()
	if s.BufferedBytes > 10_000 || s.Dropped < 100 || s.Received != 501 || s.Dropped+int64(s.BufferedSpans) != 501 {
		t.Errorf("%+v", s)
	}
	if m := gather(t, registry); m["penstock_relay_dropped_spans_total{full}"] != float64(s.Dropped) || m["penstock_relay_buffered_bytes{}"] != float64(s.BufferedBytes) {
		t.Errorf("metrics: %v", m)
	}
	var c collector
	c.serve(t, to)
	eventually(t, "the rest", func() bool { return r.Status().BufferedSpans == 0 })
	if got, want := c.got(), last[500-s.BufferedSpans:]; !slices.Equal(got, want) {
		t.Errorf("got %q, want the newest, %q", got, want)
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
	if n := strings.Count(logged.String(), "buffer of spans is full"); n != 1 {
		t.Errorf("%d warnings:\n%s", n, logged.String())
	}
}

func gather(t *testing.T, r *prometheus.Registry) map[string]float64 {
	t.Helper()
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			label := ""
			if l := m.GetLabel(); len(l) > 0 {
				label = l[0].GetValue()
			}
			out[f.GetName()+"{"+label+"}"] = m.GetCounter().GetValue() + m.GetGauge().GetValue()
		}
	}
	return out
}

// TestAnswers: what can succeed later is tried again, what cannot is lost and
// counted, and a partial success is not sent again.
func TestAnswers(t *testing.T) {
	var c collector
	c.answer = func(call int) (*collectortracev1.ExportTraceServiceResponse, error) {
		switch call {
		case 1:
			return nil, status.Error(codes.ResourceExhausted, "later")
		case 2:
			return nil, status.Error(codes.Unavailable, "later")
		case 3:
			return nil, status.Error(codes.InvalidArgument, "never")
		case 4:
			return &collectortracev1.ExportTraceServiceResponse{PartialSuccess: &collectortracev1.ExportTracePartialSuccess{RejectedSpans: 1}}, nil
		}
		return &collectortracev1.ExportTraceServiceResponse{}, nil
	}
	to, _ := c.serve(t, "127.0.0.1:0")
	r, _, _ := start(t, Options{To: to})
	for i, want := range []Status{
		{Received: 2, Refused: 2},
		{Received: 4, Refused: 3, Forwarded: 1},
		{Received: 6, Refused: 3, Forwarded: 3},
	} {
		if _, err := r.Export(t.Context(), spans("a", "b")); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the answer", func() bool {
			s := r.Status()
			return s.Refused+s.Forwarded == s.Received
		})
		s := r.Status()
		if s.Received != want.Received || s.Refused != want.Refused || s.Forwarded != want.Forwarded {
			t.Errorf("request %d: %+v, want %+v", i, s, want)
		}
	}
	if _, err := r.Export(t.Context(), &collectortracev1.ExportTraceServiceRequest{}); err != nil || r.Status().Received != 6 {
		t.Error("a request without spans is held")
	}
}

// TestEndIsBounded: the last try ends at once when the collector is not there.
func TestEndIsBounded(t *testing.T) {
	r, _, stop := start(t, Options{To: porttest.Address(t), FlushTimeout: 20 * time.Second})
	if _, err := r.Export(t.Context(), spans("a", "b")); err != nil {
		t.Fatal(err)
	}
	if err := stop(); err == nil || !strings.Contains(err.Error(), "2 spans were not forwarded") {
		t.Errorf("got %v", err)
	}
	if s := r.Status(); s.Dropped != 2 || s.BufferedSpans != 0 {
		t.Errorf("%+v", s)
	}
}

// TestEndFlushes: what came last is sent before Run returns.
func TestEndFlushes(t *testing.T) {
	var c collector
	to, _ := c.serve(t, "127.0.0.1:0")
	r, _, stop := start(t, Options{To: to})
	for _, name := range wantNames(100) {
		if _, err := r.Export(t.Context(), spans(name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	if got := c.got(); !slices.Equal(got, wantNames(100)) {
		t.Errorf("got %d spans", len(got))
	}
}

// TestHangingCollector: a collector that takes connections and never answers does
// not hold the end beyond its bound.
func TestHangingCollector(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	r, _, stop := start(t, Options{To: l.Addr().String(), FlushTimeout: 50 * time.Millisecond})
	if _, err := r.Export(t.Context(), spans("a")); err != nil {
		t.Fatal(err)
	}
	if err := stop(); err == nil {
		t.Error("no error")
	}
}

func TestBadOptions(t *testing.T) {
	for _, o := range []Options{{}, {To: "no-port"}, {To: "http://x:1"}, {To: "127.0.0.1:1", MaxBytes: -1}} {
		if _, err := New(o); err == nil {
			t.Errorf("%+v is accepted", o)
		}
	}
	registry := prometheus.NewRegistry()
	for i := range 2 {
		_, err := New(Options{To: "127.0.0.1:1", Registerer: registry})
		if (err != nil) != (i == 1) {
			t.Errorf("registered %d times: %v", i+1, err)
		}
	}
}

func TestRawCodec(t *testing.T) {
	var c rawCodec
	if _, err := c.Marshal("x"); err == nil {
		t.Error("Marshal takes a string")
	}
	if err := c.Unmarshal(nil, new(string)); err == nil {
		t.Error("Unmarshal takes a string")
	}
	if retryable(errors.New("x")) {
		t.Error("any error is tried again for ever")
	}
}
