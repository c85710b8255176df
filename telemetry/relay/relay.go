// Package relay stands between processes that export spans and a collector that
// may start later: an OTLP/gRPC trace receiver that acknowledges what it has in
// bounded memory and forwards it, in order, once the collector answers. Envoy
// drops spans when nobody acknowledges them; hence the relay.
package relay

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"strings"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	collectortracev1 "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	commonv1 "go.opentelemetry.io/proto/otlp/common/v1"
	tracev1 "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/encoding"
	_ "google.golang.org/grpc/encoding/gzip" // senders may compress
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/penstock-gateway/penstock/internal/pause"
	"github.com/penstock-gateway/penstock/telemetry"
)

const (
	// DefaultMaxBytes bounds the buffer when Options.MaxBytes is 0.
	DefaultMaxBytes = 64 << 20
	// batchBytes is the usual size of one call of the collector, well below the
	// 4 MiB that gRPC servers take by default.
	batchBytes = 1 << 20
	// callTimeout is how long the collector may take for one call.
	callTimeout = 10 * time.Second
	// firstPause and maxPause bound the pause after a failed call.
	firstPause = 100 * time.Millisecond
	maxPause   = 2 * time.Second
	// DefaultFlushTimeout bounds the last try when Options.FlushTimeout is 0.
	DefaultFlushTimeout = 3 * time.Second
)

// Options says where spans go and how many may wait.
type Options struct {
	// To is host:port of the collector (OTLP over gRPC, without TLS).
	To string
	// MaxBytes bounds what is held in memory, in bytes of OTLP; 0:
	// DefaultMaxBytes. Beyond it the oldest spans are dropped.
	MaxBytes int64
	// FlushTimeout bounds the last try at the end; 0: DefaultFlushTimeout.
	FlushTimeout time.Duration
	// Logger is told when the collector comes and goes; nil: slog.Default().
	Logger *slog.Logger
	// Registerer takes the metrics; nil: none are registered.
	Registerer prometheus.Registerer
}

// Status is what a relay did so far. Received is the sum of Forwarded, Dropped,
// Refused and what is buffered.
type Status struct {
	// BufferedRequests, BufferedSpans and BufferedBytes wait for the collector.
	BufferedRequests, BufferedSpans int
	BufferedBytes                   int64
	// Received spans were acknowledged to senders.
	Received int64
	// Forwarded spans were taken by the collector.
	Forwarded int64
	// Dropped spans were lost since the buffer was full, or at the end.
	Dropped int64
	// Refused spans were refused by the collector for good.
	Refused int64
	// CollectorUp reports whether the last call of the collector succeeded.
	CollectorUp bool
}

// Relay receives, holds and forwards spans.
type Relay struct {
	collectortracev1.UnimplementedTraceServiceServer
	o      Options
	log    *slog.Logger
	buffer *buffer
	conn   *grpc.ClientConn

	received, forwarded, dropped, refused atomic.Int64
	atEnd                                 atomic.Int64 // the part of dropped that Run left
	up                                    atomic.Bool
}

// New makes a relay. It does not wait for the collector. The error names what is
// wrong with the options.
func New(o Options) (*Relay, error) {
	if o.MaxBytes == 0 {
		o.MaxBytes = DefaultMaxBytes
	}
	if o.MaxBytes < 0 {
		return nil, fmt.Errorf("relay: MaxBytes %d is negative", o.MaxBytes)
	}
	if o.FlushTimeout == 0 {
		o.FlushTimeout = DefaultFlushTimeout
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	conn, err := telemetry.DialCollector(o.To, grpc.WithDefaultCallOptions(grpc.ForceCodecV2(rawCodec{})))
	if err != nil {
		return nil, fmt.Errorf("relay: collector %q: %w", o.To, err)
	}
	r := &Relay{o: o, log: o.Logger, buffer: newBuffer(o.MaxBytes), conn: conn}
	if o.Registerer != nil {
		if err := r.registerMetrics(o.Registerer); err != nil {
			return nil, errors.Join(err, conn.Close())
		}
	}
	return r, nil
}

// Register adds the OTLP trace service to a gRPC server.
func (r *Relay) Register(s grpc.ServiceRegistrar) {
	collectortracev1.RegisterTraceServiceServer(s, r)
}

// Export implements the OTLP trace service: the answer says that the spans are
// held, not that the collector has them.
func (r *Relay) Export(_ context.Context, req *collectortracev1.ExportTraceServiceRequest) (*collectortracev1.ExportTraceServiceResponse, error) {
	spans := 0
	for _, rs := range req.GetResourceSpans() {
		for _, ss := range rs.GetScopeSpans() {
			spans += len(ss.GetSpans())
			for _, s := range ss.GetSpans() {
				cutQueries(s)
			}
		}
	}
	if spans == 0 {
		return &collectortracev1.ExportTraceServiceResponse{}, nil
	}
	b, err := proto.Marshal(req)
	if err != nil {
		return nil, status.Errorf(codes.InvalidArgument, "spans cannot be serialized: %v", err)
	}
	r.received.Add(int64(spans))
	if n := r.buffer.push(b, spans); n > 0 {
		if r.dropped.Add(int64(n)) == int64(n) {
			r.log.Warn("the buffer of spans is full: the oldest are dropped", "max_bytes", r.o.MaxBytes)
		}
	}
	return &collectortracev1.ExportTraceServiceResponse{}, nil
}

// cutQueries takes the query out of URLs: tokens and other secrets stand there, and
// Envoy's tracer records the URL whole.
func cutQueries(s *tracev1.Span) {
	for _, a := range s.GetAttributes() {
		switch a.GetKey() {
		case "http.url", "url.full", "http.target":
			if v, ok := a.GetValue().GetValue().(*commonv1.AnyValue_StringValue); ok {
				v.StringValue, _, _ = strings.Cut(v.StringValue, "?")
			}
		case "url.query":
			a.Value = &commonv1.AnyValue{Value: &commonv1.AnyValue_StringValue{}}
		}
	}
}

// Status returns what the relay did so far.
func (r *Relay) Status() Status {
	// The counters of what left are read first: what moves meanwhile is then
	// still seen as received, never as lost.
	s := Status{
		Forwarded: r.forwarded.Load(), Dropped: r.dropped.Load(), Refused: r.refused.Load(), CollectorUp: r.up.Load(),
	}
	s.BufferedRequests, s.BufferedSpans, s.BufferedBytes = r.buffer.state()
	s.Received = r.received.Load()
	return s
}

// Run forwards until ctx ends, then goes on to send what is left, for
// Options.FlushTimeout at most and until the first failure, and closes the
// connection. It returns an error when spans were left. A call that is under way
// when ctx ends is not cut, or its spans would be sent twice.
func (r *Relay) Run(ctx context.Context) error {
	defer r.conn.Close()
	calls, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	stop := context.AfterFunc(ctx, func() {
		defer cancel()
		select {
		case <-time.After(r.o.FlushTimeout):
		case <-calls.Done():
		}
	})
	defer stop()
	again := pause.Between(firstPause, maxPause)
	for {
		items := r.buffer.batch(batchBytes)
		switch {
		case len(items) == 0 && ctx.Err() != nil:
			return nil
		case len(items) == 0:
			select {
			case <-r.buffer.filled:
			case <-ctx.Done():
			}
		case r.forward(calls, items):
			again.Reset()
		case ctx.Err() != nil:
			return r.giveUp()
		default:
			again.Wait(ctx)
		}
	}
}

// giveUp counts what is left as dropped.
func (r *Relay) giveUp() error {
	spans := r.buffer.done(math.MaxUint64)
	r.dropped.Add(int64(spans))
	r.atEnd.Add(int64(spans))
	return fmt.Errorf("relay: %d spans were not forwarded: the collector %s does not answer", spans, r.o.To)
}

// forward sends items in one call; false: they stay, and the call may be tried
// again.
func (r *Relay) forward(ctx context.Context, items []item) bool {
	// The concatenation of serialized messages is their union (protobuf encoding).
	size := 0
	for _, it := range items {
		size += len(it.bytes)
	}
	req := make([]byte, 0, size)
	for _, it := range items {
		req = append(req, it.bytes...)
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	var raw []byte
	err := r.conn.Invoke(ctx, collectortracev1.TraceService_Export_FullMethodName, req, &raw)
	if err != nil && retryable(err) {
		r.setUp(false, err)
		return false
	}
	spans := int64(r.buffer.done(items[len(items)-1].seq))
	if err != nil {
		// OTLP: a code that is not retryable means that the same call will fail again.
		r.refused.Add(spans)
		r.log.Error("the collector refused spans: they are lost", "collector", r.o.To, "spans", spans, "error", err)
		return true
	}
	r.setUp(true, nil)
	var res collectortracev1.ExportTraceServiceResponse
	if err := proto.Unmarshal(raw, &res); err == nil {
		if p := res.GetPartialSuccess(); p.GetRejectedSpans() > 0 {
			n := min(p.GetRejectedSpans(), spans)
			r.refused.Add(n)
			spans -= n
			r.log.Warn("the collector refused some spans", "collector", r.o.To, "spans", n, "error", p.GetErrorMessage())
		}
	}
	r.forwarded.Add(spans)
	return true
}

func (r *Relay) setUp(up bool, err error) {
	if r.up.Swap(up) == up {
		return
	}
	if up {
		r.log.Info("the collector answers: spans are forwarded", "collector", r.o.To)
	} else {
		r.log.Warn("the collector does not answer: spans are held", "collector", r.o.To, "error", err)
	}
}

// retryable codes are those of the OTLP specification ("Failures", OTLP/gRPC).
func retryable(err error) bool {
	switch status.Code(err) {
	case codes.Canceled, codes.DeadlineExceeded, codes.Aborted, codes.OutOfRange,
		codes.Unavailable, codes.DataLoss, codes.ResourceExhausted:
		return true
	default:
		return false
	}
}

// rawCodec passes serialized messages through.
type rawCodec struct{}

var _ encoding.CodecV2 = rawCodec{}

// Marshal implements encoding.CodecV2 for []byte.
func (rawCodec) Marshal(v any) (mem.BufferSlice, error) {
	b, ok := v.([]byte)
	if !ok {
		return nil, fmt.Errorf("relay: cannot marshal a %T", v)
	}
	return mem.BufferSlice{mem.SliceBuffer(b)}, nil
}

// Unmarshal implements encoding.CodecV2 for *[]byte.
func (rawCodec) Unmarshal(data mem.BufferSlice, v any) error {
	b, ok := v.(*[]byte)
	if !ok {
		return fmt.Errorf("relay: cannot unmarshal into a %T", v)
	}
	*b = data.Materialize()
	return nil
}

// Name implements encoding.CodecV2: the content type stays application/grpc+proto.
func (rawCodec) Name() string { return "proto" }
