// Package spans takes the spans that functions make with an OpenTelemetry SDK of their
// own. Each instance has an OTLP endpoint inside its network, which nothing else
// reaches. What comes there is checked, bounded, marked with the instance that it comes
// from, and passed on to the collector of the runner.
//
// A function is not trusted: it cannot speak for another one or for the gateway, and
// nothing that it sends can make the collector refuse the spans of others.
package spans

import (
	"context"
	"fmt"
	"math"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/semaphore"
	"golang.org/x/time/rate"

	collectortracev1 "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"google.golang.org/grpc"
)

const (
	// maxBody bounds one request, also when it is decompressed, and what is passed on
	// for it. It stays well below the 4 MiB that gRPC servers of collectors take.
	maxBody    = 2 << 20
	maxForward = 3 << 20
	// maxRequests of an instance are read at once, so that what it sends takes a few MiB
	// of the runner, and twice maxDecoded at most; maxConnections are open.
	maxRequests    = 2
	maxConnections = 32
	// The runner reads workBytes a second for an instance, and workBurst at once.
	workBytes = 4 << 20
	workBurst = 16 << 20
	// readTimeout bounds how long a request may take to come.
	readTimeout = 10 * time.Second
	// forwardTimeout bounds one call of the collector.
	forwardTimeout = 5 * time.Second
	// tellEvery is how often a function's log hears of spans that were not taken.
	tellEvery = 10 * time.Second
)

// Limits of what is taken, per second and at once.
type limits struct{ spans, bytes, burstSpans, burstBytes int }

var (
	// Of one instance: five spans for each of 400 requests a second.
	ofInstance = limits{spans: 2000, bytes: 2 << 20, burstSpans: 10_000, burstBytes: 8 << 20}
	// Of all instances of a runner together, so that functions leave room for the
	// gateway's spans in the relay and the collector.
	ofRunner = limits{spans: 10_000, bytes: 8 << 20, burstSpans: 40_000, burstBytes: 32 << 20}
)

// MetricSpans counts spans of functions' own by function and result: forwarded, invalid,
// limited, unavailable.
const MetricSpans = "penstock_function_spans_total"

// Receiver is the receiver of one runner. A nil one takes nothing.
type Receiver struct {
	collector collectortracev1.TraceServiceClient
	metric    *prometheus.CounterVec
	budget    *budget
	grpc      *grpc.Server
	// decoded has room for requests that are decoded, in bytes.
	decoded *semaphore.Weighted
	now     func() time.Time
}

// New makes a receiver that passes spans on to a collector (OTLP over gRPC). r takes its
// metric; nil: it is not exported.
func New(collector grpc.ClientConnInterface, r prometheus.Registerer) *Receiver {
	out := &Receiver{
		collector: collectortracev1.NewTraceServiceClient(collector), budget: newBudget(ofRunner), decoded: semaphore.NewWeighted(maxDecodedAll), now: time.Now,
		metric: prometheus.NewCounterVec(prometheus.CounterOpts{Name: MetricSpans, Help: "Spans that functions made themselves, by result."}, []string{"function", "result"}),
	}
	if r != nil {
		r.MustRegister(out.metric)
	}
	out.grpc = grpc.NewServer(grpc.ForceServerCodecV2(codec{}), grpc.MaxRecvMsgSize(maxBody))
	out.grpc.RegisterService(&service, nil)
	return out
}

// Forget drops the series of a function that is gone.
func (r *Receiver) Forget(function string) {
	if r != nil {
		r.metric.DeletePartialMatch(prometheus.Labels{"function": function})
	}
}

// Source is one instance.
type Source struct {
	// Function is the full name, projects/PROJECT/functions/NAME, with @VERSION for an
	// older one; ID is the instance's.
	Function, ID string
	// Given reports whether a span id is one that the runner gave to a span of its own.
	Given func([8]byte) bool
	// Tell hears in words of spans that were not taken, now and then; nil: nobody does.
	Tell func(text string)
}

// budget bounds spans and bytes.
type budget struct{ spans, bytes *rate.Limiter }

func newBudget(l limits) *budget {
	return &budget{rate.NewLimiter(rate.Limit(l.spans), l.burstSpans), rate.NewLimiter(rate.Limit(l.bytes), l.burstBytes)}
}

// take takes all of it, or nothing.
func (b *budget) take(now time.Time, spans, bytes int) bool {
	r := b.spans.ReserveN(now, spans)
	if !r.OK() || r.DelayFrom(now) > 0 {
		r.CancelAt(now)
		return false
	}
	if b.bytes.AllowN(now, bytes) {
		return true
	}
	r.CancelAt(now)
	return false
}

// outcome is what became of a request.
type outcome struct {
	// rejected spans are lost, for the reason why. The sender need not try again.
	rejected int
	why      string
	// err is of the collector: the sender may try again.
	err error
}

// response is the answer of the OTLP specification ("Partial Success").
func (o outcome) response() *collectortracev1.ExportTraceServiceResponse {
	if o.rejected == 0 {
		return &collectortracev1.ExportTraceServiceResponse{}
	}
	return &collectortracev1.ExportTraceServiceResponse{PartialSuccess: &collectortracev1.ExportTracePartialSuccess{
		RejectedSpans: int64(o.rejected), ErrorMessage: "penstock: " + o.why,
	}}
}

// take checks, bounds, marks and forwards what an instance sent.
func (e *endpoint) take(ctx context.Context, req *collectortracev1.ExportTraceServiceRequest) outcome {
	r, now := e.receiver, e.receiver.now()
	kept, invalid, why := e.source.mark(req, now)
	out := outcome{rejected: invalid, why: why}
	r.count(e.source.Function, "invalid", invalid)
	if size := size(req); kept > 0 && size > maxForward {
		out = outcome{rejected: kept + invalid, why: fmt.Sprintf("a request of %d KiB, with what marks its resources, is more than %d KiB: send smaller batches", size>>10, maxForward>>10)}
		r.count(e.source.Function, "invalid", kept)
		kept = 0
	} else if kept > 0 && (!e.budget.take(now, kept, size) || !r.budget.take(now, kept, size)) {
		out = outcome{rejected: kept + invalid, why: fmt.Sprintf("more than %d spans or %d MiB a second from one instance, or %d and %d from all functions here", ofInstance.spans, ofInstance.bytes>>20, ofRunner.spans, ofRunner.bytes>>20)}
		r.count(e.source.Function, "limited", kept)
		kept = 0
	}
	e.tell(now, out)
	if kept == 0 {
		return out
	}
	ctx, cancel := context.WithTimeout(ctx, forwardTimeout)
	defer cancel()
	if _, err := r.collector.Export(ctx, req); err != nil {
		r.count(e.source.Function, "unavailable", kept)
		out.err = err
		return out
	}
	r.count(e.source.Function, "forwarded", kept)
	return out
}

func (r *Receiver) count(function, result string, n int) {
	if n > 0 {
		r.metric.WithLabelValues(function, result).Add(float64(n))
	}
}

// tell tells the function's author of spans that were not taken, with all that were lost
// since it was told last.
func (e *endpoint) tell(now time.Time, o outcome) {
	if o.rejected == 0 || e.source.Tell == nil {
		return
	}
	e.mu.Lock()
	e.lost += o.rejected
	lost, due := e.lost, now.Sub(e.told) >= tellEvery
	if due {
		e.lost, e.told = 0, now
	}
	e.mu.Unlock()
	if due {
		e.source.Tell(fmt.Sprintf("%d of its own spans were not taken: %s", min(lost, math.MaxInt32), o.why))
	}
}
