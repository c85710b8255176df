// Package telemetry sets up traces, metrics and logs of Penstock's processes:
// OpenTelemetry over OTLP, a Prometheus registry, and slog with trace ids. The
// names of all metrics, spans and attributes are in names.go.
package telemetry

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
)

const (
	// exportTimeout is how long one batch is retried: the collector may join
	// minutes after us.
	exportTimeout = 15 * time.Minute
	// queueSpans bounds the spans that wait meanwhile; some 1 kB each.
	queueSpans = 8192
	batchSpans = 512
	// batchDelay is short, for people look at a trace right after the request.
	batchDelay = 500 * time.Millisecond
	// maxReconnect bounds gRPC's pause between two attempts to connect, which is
	// two minutes by default.
	maxReconnect = 2 * time.Second
)

// Config says who this process is and where its traces go.
type Config struct {
	// Service is service.name, such as "penstock-limiter".
	Service string
	// Version is service.version.
	Version string
	// Instance is service.instance.id; "": host name and process id.
	Instance string
	// OTLP is host:port of an OTLP/gRPC receiver without TLS; "": no traces.
	OTLP string
	// Logger takes export errors; nil: slog.Default().
	Logger *slog.Logger
}

// Providers are what a process uses to report about itself.
type Providers struct {
	// TracerProvider makes spans; without Config.OTLP they go nowhere, and the
	// trace context of callers is still passed on.
	TracerProvider trace.TracerProvider
	// Propagator reads and writes W3C trace context and baggage.
	Propagator propagation.TextMapPropagator
	// Registry has the metrics of this process; Go and process metrics are there.
	Registry *prometheus.Registry

	shutdown func(context.Context) error
}

// Setup makes the providers and sets them as OpenTelemetry's global ones. It does
// not wait for the receiver, which may start later. The error names what is wrong
// with the configuration.
func Setup(ctx context.Context, c Config) (*Providers, error) {
	if c.Service == "" {
		return nil, errors.New("telemetry: Config.Service is empty")
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	p := &Providers{
		TracerProvider: noop.NewTracerProvider(),
		Propagator:     propagation.NewCompositeTextMapPropagator(propagation.TraceContext{}, propagation.Baggage{}),
		Registry:       NewRegistry(),
		shutdown:       func(context.Context) error { return nil },
	}
	if c.OTLP != "" {
		if err := p.export(ctx, c); err != nil {
			return nil, err
		}
	}
	otel.SetErrorHandler(&errorHandler{log: c.Logger, now: time.Now})
	otel.SetTracerProvider(p.TracerProvider)
	otel.SetTextMapPropagator(p.Propagator)
	return p, nil
}

// export adds the exporter and the SDK's provider.
func (p *Providers) export(ctx context.Context, c Config) error {
	if err := CheckCollector(c.OTLP); err != nil {
		return fmt.Errorf("OTLP address %q: %w", c.OTLP, err)
	}
	exporter, err := otlptracegrpc.New(ctx,
		otlptracegrpc.WithEndpoint(c.OTLP),
		otlptracegrpc.WithInsecure(),
		otlptracegrpc.WithTimeout(exportTimeout),
		otlptracegrpc.WithRetry(otlptracegrpc.RetryConfig{
			Enabled: true, InitialInterval: 250 * time.Millisecond, MaxInterval: maxReconnect, MaxElapsedTime: exportTimeout,
		}),
		otlptracegrpc.WithDialOption(grpc.WithConnectParams(Reconnect())),
	)
	if err != nil {
		return fmt.Errorf("OTLP exporter: %w", err)
	}
	provider := sdktrace.NewTracerProvider(
		sdktrace.WithSampler(sdktrace.ParentBased(sdktrace.AlwaysSample())),
		sdktrace.WithResource(newResource(c)),
		sdktrace.WithBatcher(exporter,
			sdktrace.WithMaxQueueSize(queueSpans), sdktrace.WithMaxExportBatchSize(batchSpans),
			sdktrace.WithBatchTimeout(batchDelay), sdktrace.WithExportTimeout(exportTimeout)),
	)
	p.TracerProvider = provider
	p.shutdown = func(ctx context.Context) error {
		err := provider.Shutdown(ctx)
		if ctx.Err() != nil {
			// The provider still waits for a batch that is being retried: end that.
			ended, cancel := context.WithCancel(context.Background())
			cancel()
			_ = exporter.Shutdown(ended)
		}
		return err
	}
	return nil
}

// Reconnect is how our gRPC clients of collectors connect again: often, since
// both ends are ours and a late trace helps nobody.
func Reconnect() grpc.ConnectParams {
	return grpc.ConnectParams{
		Backoff:           backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: maxReconnect},
		MinConnectTimeout: 5 * time.Second,
	}
}

// DialCollector makes a connection to a receiver of traces (see CheckCollector), OTLP over
// gRPC without TLS. It is dialled at the first call, and again for ever.
func DialCollector(address string, options ...grpc.DialOption) (*grpc.ClientConn, error) {
	if err := CheckCollector(address); err != nil {
		return nil, err
	}
	if !strings.HasPrefix(address, "unix:") {
		address = "passthrough:///" + address
	}
	return grpc.NewClient(address, append(options, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithConnectParams(Reconnect()))...)
}

// CheckCollector returns what is wrong with the address of a receiver of traces: it is
// host:port, or unix: and the absolute path of a Unix socket.
func CheckCollector(address string) error {
	if path, ok := strings.CutPrefix(address, "unix:"); ok {
		if !strings.HasPrefix(path, "/") {
			return errors.New("the path behind unix: must be absolute")
		}
		return nil
	}
	return CheckAddress(address)
}

// CheckAddress returns what is wrong with host:port.
func CheckAddress(hostport string) error {
	host, port, err := net.SplitHostPort(hostport)
	if err != nil {
		return fmt.Errorf("it must be host:port, without a scheme: %w", err)
	}
	if host == "" {
		return errors.New("it must be host:port, the host is missing")
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return errors.New("the port must be a number from 1 to 65535")
	}
	return nil
}

// newResource describes this process by OpenTelemetry's semantic conventions.
func newResource(c Config) *resource.Resource {
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	if c.Instance == "" {
		c.Instance = host + "-" + strconv.Itoa(os.Getpid())
	}
	attrs := []attribute.KeyValue{
		semconv.ServiceName(c.Service),
		semconv.ServiceInstanceID(c.Instance),
		semconv.HostName(host),
		semconv.ProcessPID(os.Getpid()),
		semconv.TelemetrySDKLanguageGo,
		semconv.TelemetrySDKName("opentelemetry"),
	}
	if c.Version != "" {
		attrs = append(attrs, semconv.ServiceVersion(c.Version))
	}
	return resource.NewWithAttributes(semconv.SchemaURL, attrs...)
}

// Shutdown sends what is left, within ctx, and ends the exporter. It returns
// ctx's error when not all was sent.
func (p *Providers) Shutdown(ctx context.Context) error { return p.shutdown(ctx) }

// Handler serves the metrics of Registry (Prometheus text or OpenMetrics).
func (p *Providers) Handler() http.Handler { return MetricsHandler(p.Registry) }

// MetricsHandler serves the metrics of a registry.
func MetricsHandler(r *prometheus.Registry) http.Handler {
	return promhttp.InstrumentMetricHandler(r, promhttp.HandlerFor(r, promhttp.HandlerOpts{
		EnableOpenMetrics: true, ErrorHandling: promhttp.ContinueOnError, MaxRequestsInFlight: 4,
	}))
}

// NewRegistry returns a registry with the metrics of the Go runtime and of the
// process.
func NewRegistry() *prometheus.Registry {
	r := prometheus.NewRegistry()
	r.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return r
}

// errorHandler logs OpenTelemetry's errors, at most one each errorInterval: a
// collector that is away would otherwise fill the log.
type errorHandler struct {
	log *slog.Logger
	now func() time.Time

	mu         sync.Mutex
	last       time.Time
	suppressed int
}

const errorInterval = 30 * time.Second

// Handle implements otel.ErrorHandler.
func (h *errorHandler) Handle(err error) {
	if err == nil {
		return
	}
	h.mu.Lock()
	now := h.now()
	if !h.last.IsZero() && now.Sub(h.last) < errorInterval {
		h.suppressed++
		h.mu.Unlock()
		return
	}
	suppressed := h.suppressed
	h.last, h.suppressed = now, 0
	h.mu.Unlock()
	args := []any{"error", strings.TrimSpace(err.Error())}
	if suppressed > 0 {
		args = append(args, "similar", suppressed)
	}
	h.log.Warn("telemetry: spans are not all exported", args...)
}
