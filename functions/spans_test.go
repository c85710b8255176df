package functions_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/propagation"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
	collectortracev1 "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	commonv1 "go.opentelemetry.io/proto/otlp/common/v1"
	tracev1 "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/penstock-gateway/penstock/functions"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// collected is a span with its resource.
type collected struct {
	*tracev1.Span
	resource map[string]string
}

func (c collected) parent() string { return fmt.Sprintf("%x", c.GetParentSpanId()) }

// collector is a receiver of traces.
type collector struct {
	collectortracev1.UnimplementedTraceServiceServer
	address string

	mu      sync.Mutex
	spans   []collected
	changed chan struct{}
}

func newCollector(t testing.TB) *collector {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := &collector{changed: make(chan struct{}), address: l.Addr().String()}
	s := grpc.NewServer()
	collectortracev1.RegisterTraceServiceServer(s, c)
	go func() { _ = s.Serve(l) }()
	t.Cleanup(s.Stop)
	return c
}

// Export implements the OTLP trace service.
func (c *collector) Export(_ context.Context, req *collectortracev1.ExportTraceServiceRequest) (*collectortracev1.ExportTraceServiceResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, rs := range req.GetResourceSpans() {
		resource := attributes(rs.GetResource().GetAttributes())
		for _, ss := range rs.GetScopeSpans() {
			for _, s := range ss.GetSpans() {
				c.spans = append(c.spans, collected{s, resource})
			}
		}
	}
	close(c.changed)
	c.changed = make(chan struct{})
	return &collectortracev1.ExportTraceServiceResponse{}, nil
}

func attributes(list []*commonv1.KeyValue) map[string]string {
	out := map[string]string{}
	for _, kv := range list {
		if _, twice := out[kv.GetKey()]; twice {
			out["twice"] = kv.GetKey()
		}
		out[kv.GetKey()] = kv.GetValue().GetStringValue()
	}
	return out
}

// await waits for the spans of a trace with some names.
func (c *collector) await(t testing.TB, traceID string, names ...string) map[string]collected {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for {
		c.mu.Lock()
		found, changed := map[string]collected{}, c.changed
		for _, s := range c.spans {
			if fmt.Sprintf("%x", s.GetTraceId()) == traceID {
				found[s.GetName()] = s
			}
		}
		c.mu.Unlock()
		if !slices.ContainsFunc(names, func(n string) bool { return found[n].Span == nil }) {
			return found
		}
		select {
		case <-changed:
		case <-ctx.Done():
			t.Fatalf("trace %s has no spans %q within %s, only %v", traceID, names, patience, found)
		}
	}
}

// collecting has a runner send spans of functions' own to a collector.
func collecting(t testing.TB, c *collector) func(*functions.Config) {
	conn, err := grpc.NewClient("passthrough:///"+c.address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return func(config *functions.Config) { config.Collector = conn }
}

// serveTraced is a server that traces itself with OpenTelemetry's SDK for Go, by gRPC.
func serveTraced() {
	exporter, err := otlptracegrpc.New(context.Background())
	if err != nil {
		panic(err)
	}
	provider := sdktrace.NewTracerProvider(sdktrace.WithBatcher(exporter))
	tracer := provider.Tracer("shop")
	panic(http.ListenAndServe("127.0.0.1:"+os.Getenv("PORT"), http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx := propagation.TraceContext{}.Extract(r.Context(), propagation.HeaderCarrier(r.Header))
		ctx, span := tracer.Start(ctx, "look up the order")
		defer span.End()
		_, inner := tracer.Start(ctx, "ask the database")
		inner.End()
		_ = json.NewEncoder(w).Encode(map[string]string{
			"trace": trace.SpanContextFromContext(ctx).TraceID().String(), "endpoint": os.Getenv("OTEL_EXPORTER_OTLP_ENDPOINT"),
		})
	})))
}

const traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

// TestSpansOfFunctions has functions trace themselves with the SDKs for Python (by HTTP)
// and Go (by gRPC): their spans are in the trace of the call, below the runner's, and say
// whose they are, whatever the function itself says.
func TestSpansOfFunctions(t *testing.T) {
	t.Parallel()
	c := newCollector(t)
	r := startRunner(t, collecting(t, c))
	isolated := func(level pb.IsolationLevel, network pb.NetworkAccess) func(*pb.Function) {
		return func(f *pb.Function) { f.Isolation = &pb.Isolation{Level: level, Network: network} }
	}
	own := func(none pb.IsolationLevel) func(*pb.Function) {
		return isolated(none, pb.NetworkAccess_NETWORK_ACCESS_UNSPECIFIED)
	}
	cases := []*pb.Function{
		python("py", "app.handler", source("traced")),
		python("forging", "app.handler", source("traced"), env(map[string]string{"FORGE": "1"})),
		python("quiet", "app.handler", source("traced"), isolated(pb.IsolationLevel_ISOLATION_LEVEL_BEST, pb.NetworkAccess_NETWORK_ACCESS_NONE)),
		python("shared", "app.handler", source("traced"), isolated(pb.IsolationLevel_ISOLATION_LEVEL_BEST, pb.NetworkAccess_NETWORK_ACCESS_HOST)),
		self(t, "go", "traced"),
		self(t, "plain", "traced", own(pb.IsolationLevel_ISOLATION_LEVEL_NONE), env(map[string]string{"OTEL_SERVICE_NAME": "orders"})),
	}
	r.want(cases...)
	for _, f := range cases {
		id := f.GetName()[strings.LastIndexByte(f.GetName(), '/')+1:]
		traceID := fmt.Sprintf("0af7651916cd43dd8448eb211c80%04x", len(id)<<8|int(id[0]))
		i := r.ready(id, 1)[0]
		a := mustSend(t, i, "GET", "/", "", "traceparent", strings.Replace(traceparent, "0af7651916cd43dd8448eb211c80319c", traceID, 1))
		if !strings.Contains(a.body, traceID) {
			t.Fatalf("%s: %+v", id, a)
		}
		got := c.await(t, traceID, "look up the order", "ask the database")
		outer, inner := got["look up the order"], got["ask the database"]
		if inner.parent() != fmt.Sprintf("%x", outer.GetSpanId()) {
			t.Errorf("%s: the inner span has the parent %s", id, inner.parent())
		}
		var above []string
		for _, s := range r.spans.GetSpans() {
			if s.SpanContext.TraceID().String() == traceID {
				above = append(above, s.SpanContext.SpanID().String())
			}
		}
		if !slices.Contains(above, outer.parent()) {
			t.Errorf("%s: the outer span has the parent %s, not one of the runner's %v", id, outer.parent(), above)
		}
		service := id
		if id == "plain" {
			service = "orders"
		}
		for k, want := range map[string]string{
			"service.name": service, "penstock.project": "default", "penstock.function": id, "penstock.instance": i.GetId(), "faas.name": f.GetName(), "twice": "",
		} {
			if outer.resource[k] != want {
				t.Errorf("%s: %s is %q, want %q (%v)", id, k, outer.resource[k], want, outer.resource)
			}
		}
		if v := attributes(outer.GetAttributes()); v["penstock.result"] != "" {
			t.Errorf("%s: a span of the function has an attribute of the runner's: %v", id, v)
		}
	}
}

// TestOwnCollector leaves functions alone whose author has a collector, and those of a
// runner that has none.
func TestOwnCollector(t *testing.T) {
	t.Parallel()
	c := newCollector(t)
	r := startRunner(t, collecting(t, c))
	elsewhere := env(map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector.example:4318"})
	own := newCollector(t)
	_, port, _ := net.SplitHostPort(own.address)
	r.want(self(t, "elsewhere", "environment", elsewhere), self(t, "here", "environment"),
		self(t, "allowed", "traced", env(map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:" + port}), func(f *pb.Function) {
			f.Isolation = &pb.Isolation{NetworkAllow: []string{"localhost:" + port, "127.0.0.1:4318"}}
		}))
	environment := func(r *runner, id string) string {
		return mustSend(t, r.ready(id, 1)[0], "GET", "/", "").body
	}
	if e := environment(r, "elsewhere"); !strings.Contains(e, "OTEL_EXPORTER_OTLP_ENDPOINT=http://collector.example:4318\n") || strings.Contains(e, "OTEL_SERVICE_NAME") {
		t.Errorf("a function with a collector of its own has %s", e)
	}
	e := environment(r, "here")
	for _, want := range []string{"OTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1:", "OTEL_SERVICE_NAME=here\n", "OTEL_METRICS_EXPORTER=none\n"} {
		if !strings.Contains(e, want) {
			t.Errorf("the environment has no %q: %s", want, e)
		}
	}
	a := mustSend(t, r.ready("allowed", 1)[0], "GET", "/", "", "traceparent", traceparent)
	if !strings.Contains(a.body, port) {
		t.Fatalf("%+v", a)
	}
	own.await(t, "0af7651916cd43dd8448eb211c80319c", "look up the order")
	none := startRunner(t)
	none.want(self(t, "alone", "environment"))
	if e := environment(none, "alone"); strings.Contains(e, "OTEL_") {
		t.Errorf("without a collector the environment is %s", e)
	}
}

// serveEnvironment answers with its environment.
func serveEnvironment() {
	panic(http.ListenAndServe("127.0.0.1:"+os.Getenv("PORT"), http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintln(w, strings.Join(os.Environ(), "\n"))
	})))
}
