package telemetry

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
	collectortracev1 "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"google.golang.org/grpc"

	"github.com/penstock-gateway/penstock/internal/ports/porttest"
)

// collector is an OTLP receiver that hands over what it gets.
type collector struct {
	collectortracev1.UnimplementedTraceServiceServer
	got chan *collectortracev1.ExportTraceServiceRequest
}

func (c *collector) Export(_ context.Context, r *collectortracev1.ExportTraceServiceRequest) (*collectortracev1.ExportTraceServiceResponse, error) {
	c.got <- r
	return &collectortracev1.ExportTraceServiceResponse{}, nil
}

// listenLate returns an address at which nobody listens until start is called.
func listenLate(t *testing.T) (address string, start func() *collector) {
	t.Helper()
	address = porttest.Address(t)
	return address, func() *collector {
		t.Helper()
		l, err := net.Listen("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		c := &collector{got: make(chan *collectortracev1.ExportTraceServiceRequest, 100)}
		s := grpc.NewServer()
		collectortracev1.RegisterTraceServiceServer(s, c)
		go func() { _ = s.Serve(l) }()
		t.Cleanup(s.Stop)
		return c
	}
}

// TestExport: spans that were made before the collector started arrive, with the
// resource that says who made them.
func TestExport(t *testing.T) {
	address, start := listenLate(t)
	p, err := Setup(t.Context(), Config{Service: "penstock-test", Version: "v1", Instance: "one", OTLP: address, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	_, span := p.TracerProvider.Tracer("test").Start(t.Context(), "early")
	span.End()
	c := start()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if err := p.Shutdown(ctx); err != nil {
		t.Fatal(err)
	}
	r := (<-c.got).GetResourceSpans()[0]
	if name := r.GetScopeSpans()[0].GetSpans()[0].GetName(); name != "early" {
		t.Errorf("got span %q", name)
	}
	attrs := map[string]string{}
	for _, a := range r.GetResource().GetAttributes() {
		attrs[a.GetKey()] = a.GetValue().String()
	}
	for key, want := range map[string]string{
		"service.name": "penstock-test", "service.version": "v1", "service.instance.id": "one", "host.name": "", "process.pid": "int_value",
	} {
		if got, ok := attrs[key]; !ok || !strings.Contains(got, want) {
			t.Errorf("%s is %q, want %q", key, got, want)
		}
	}
}

// TestShutdownIsBounded: without a collector the end is not delayed beyond the
// context, and the exporter lets go.
func TestShutdownIsBounded(t *testing.T) {
	address, _ := listenLate(t)
	p, err := Setup(t.Context(), Config{Service: "x", OTLP: address, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	_, span := p.TracerProvider.Tracer("test").Start(t.Context(), "lost")
	span.End()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := p.Shutdown(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
}

func TestOff(t *testing.T) {
	p, err := Setup(t.Context(), Config{Service: "x"})
	if err != nil {
		t.Fatal(err)
	}
	// The caller's trace context is passed on all the same.
	in := propagation.MapCarrier{"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "baggage": "a=b"}
	ctx := p.Propagator.Extract(t.Context(), in)
	ctx, span := p.TracerProvider.Tracer("test").Start(ctx, "x")
	out := propagation.MapCarrier{}
	otel.GetTextMapPropagator().Inject(ctx, out)
	span.End()
	if out["traceparent"] != in["traceparent"] || out["baggage"] != "a=b" {
		t.Errorf("passed on: %v", out)
	}
	w := httptest.NewRecorder()
	p.Handler().ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	if body := w.Body.String(); !strings.Contains(body, "go_goroutines") || !strings.Contains(body, "process_resident_memory_bytes") {
		t.Errorf("metrics: %.200s", body)
	}
	if err := p.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestBadConfig(t *testing.T) {
	for _, c := range []struct {
		config Config
		want   string
	}{
		{Config{}, "Service is empty"},
		{Config{Service: "x", OTLP: "http://127.0.0.1:4317"}, "without a scheme"},
		{Config{Service: "x", OTLP: "127.0.0.1"}, "host:port"},
		{Config{Service: "x", OTLP: ":4317"}, "the host is missing"},
		{Config{Service: "x", OTLP: "127.0.0.1:0"}, "from 1 to 65535"},
		{Config{Service: "x", OTLP: "127.0.0.1:otlp"}, "from 1 to 65535"},
	} {
		if _, err := Setup(t.Context(), c.config); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v, want %q", c.config, err, c.want)
		}
	}
}

func TestErrorsAreLoggedRarely(t *testing.T) {
	var b bytes.Buffer
	now := time.Unix(0, 0)
	h := &errorHandler{log: slog.New(slog.NewTextHandler(&b, nil)), now: func() time.Time { return now }}
	h.Handle(nil)
	for range 100 {
		h.Handle(errors.New("no collector"))
	}
	now = now.Add(errorInterval)
	h.Handle(errors.New("no collector"))
	if n := strings.Count(b.String(), "no collector"); n != 2 || !strings.Contains(b.String(), "similar=99") {
		t.Errorf("%d lines:\n%s", n, b.String())
	}
}

func TestLogger(t *testing.T) {
	lines := func(b *bytes.Buffer) (out []map[string]any) {
		for d := json.NewDecoder(b); ; {
			var m map[string]any
			if err := d.Decode(&m); errors.Is(err, io.EOF) {
				return out
			} else if err != nil {
				t.Fatal(err)
			}
			out = append(out, m)
		}
	}
	t.Setenv(LogFormatEnv, "")
	var b bytes.Buffer
	log := NewLogger(&b, "warn", "limiter")
	span := trace.NewSpanContext(trace.SpanContextConfig{TraceID: trace.TraceID{1}, SpanID: trace.SpanID{2}})
	ctx := trace.ContextWithSpanContext(t.Context(), span)
	log.InfoContext(ctx, "hidden")
	log.With("a", 1).WarnContext(ctx, "shown", "b", 2)
	log.WithGroup("g").Error("no span")
	got := lines(&b)
	if len(got) != 2 || got[0]["msg"] != "shown" || got[0]["service"] != "limiter" || got[0]["a"] != 1.0 || got[0]["b"] != 2.0 ||
		got[0]["trace_id"] != span.TraceID().String() || got[0]["span_id"] != span.SpanID().String() || got[1]["trace_id"] != nil {
		t.Errorf("lines: %v", got)
	}

	b.Reset()
	NewLogger(&b, "loud", "x").Debug("hidden")
	if got := lines(&b); len(got) != 1 || !strings.Contains(got[0]["msg"].(string), "log level loud is unknown") {
		t.Errorf("lines: %v", got)
	}

	for format, want := range map[string]string{"text": `msg=hello`, "json": `"msg":"hello"`, "xml": `xml is unknown`} {
		t.Setenv(LogFormatEnv, format)
		b.Reset()
		NewLogger(&b, "debug", "x").Debug("hello")
		if !strings.Contains(b.String(), want) {
			t.Errorf("%s: %s", format, b.String())
		}
	}
	for _, level := range []string{"debug", "info", "warn", "error", "ERROR"} {
		b.Reset()
		t.Setenv(LogFormatEnv, "json")
		NewLogger(&b, level, "x").Error("hello")
		if len(lines(&b)) != 1 {
			t.Errorf("level %s: %s", level, b.String())
		}
	}
}
