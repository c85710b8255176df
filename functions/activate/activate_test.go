package activate

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"github.com/penstock-gateway/penstock/functions/instance"
)

// room is an instance with some slots that serves for a time.
type room struct {
	mu     sync.Mutex
	slots  int
	takes  time.Duration
	gone   bool
	served []string
	freed  func()
}

func (r *room) Reserve(*instance.Held) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.slots == 0 {
		return false
	}
	r.slots--
	return true
}

func (r *room) ServeHeld(w http.ResponseWriter, q *http.Request, h *instance.Held) bool {
	r.mu.Lock()
	if r.gone {
		r.mu.Unlock()
		return false
	}
	r.served = append(r.served, q.URL.Path)
	r.mu.Unlock()
	time.Sleep(r.takes)
	w.WriteHeader(200)
	r.mu.Lock()
	r.slots++
	r.mu.Unlock()
	r.freed()
	return true
}

// rig is an activator in a bubble.
type rig struct {
	*Activator
	// Callers are told from goroutines of their own.
	pressed, left, refused atomic.Int64
	metrics                *prometheus.Registry
	spans                  *tracetest.InMemoryExporter
	wait                   sync.WaitGroup
}

func newRig(l Limits) *rig {
	r := &rig{metrics: prometheus.NewRegistry(), spans: tracetest.NewInMemoryExporter()}
	r.Activator = newActivator(Options{
		Function: "projects/p/functions/f", Receiver: instance.NewReceiver(0, instance.Options{Concurrency: 1}, 1<<20),
		Pressure: func() { r.pressed.Add(1) }, Metrics: NewMetrics(r.metrics),
		Left: func(refused bool) {
			r.left.Add(1)
			if refused {
				r.refused.Add(1)
			}
		},
		Tracer: sdktrace.NewTracerProvider(sdktrace.WithSyncer(r.spans)).Tracer(""),
	}, l)
	return r
}

// call sends a request; its answer is there when the bubble is at rest.
func (r *rig) call(ctx context.Context, path string) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	w.Code = 0
	q := httptest.NewRequestWithContext(ctx, "GET", path, nil)
	q.Header.Set("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
	r.wait.Go(func() { r.ServeHTTP(w, q) })
	synctest.Wait()
	return w
}

func (r *rig) ready(rooms ...*room) {
	var members []Member
	for _, x := range rooms {
		x.freed = r.Freed
		members = append(members, Member{Instance: x, Started: time.Now().Add(-30 * time.Millisecond), Ready: time.Now()})
	}
	r.Set(members, nil)
}

func refused(t *testing.T, w *httptest.ResponseRecorder, kind string, again bool) string {
	t.Helper()
	var body instance.Problem
	err := json.Unmarshal(w.Body.Bytes(), &body)
	if w.Code != 503 || w.Header().Get(instance.HeaderError) != kind || (w.Header().Get(instance.HeaderRefused) != "") != again || err != nil || body.Code != instance.Code(kind) || body.RequestID == "" {
		t.Errorf("%d %v %s, want 503 with %s", w.Code, w.Header(), w.Body, kind)
	}
	return body.Detail
}

// TestQueue: those that wait are served in their order, by what is free.
func TestQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(Limits{MaxQueued: 10, MaxWait: time.Minute})
		var answers []*httptest.ResponseRecorder
		for i := range 5 {
			answers = append(answers, r.call(t.Context(), fmt.Sprint("/", i)))
			time.Sleep(10 * time.Millisecond)
		}
		if n, oldest := r.Load(time.Now()); n != 5 || oldest != 50*time.Millisecond {
			t.Errorf("%d wait, the first for %s", n, oldest)
		}
		if r.pressed.Load() == 0 {
			t.Error("nobody was asked for an instance")
		}
		x := &room{slots: 2, takes: time.Second}
		r.ready(x)
		r.wait.Wait()
		if want := []string{"/0", "/1", "/2", "/3", "/4"}; !slices.Equal(x.served[:2], want[:2]) && !slices.Equal(x.served[:2], []string{"/1", "/0"}) || len(x.served) != 5 {
			t.Errorf("served %v", x.served)
		}
		for i, w := range answers {
			if w.Code != 200 {
				t.Errorf("request %d: %d", i, w.Code)
			}
		}
		if n, _ := r.Load(time.Now()); n != 0 || r.left.Load() != 0 {
			t.Errorf("%d wait, %d left", n, r.left.Load())
		}
	})
}

// TestColdStartSpan: what a request waited for is in its trace.
func TestColdStartSpan(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(Limits{MaxQueued: 10, MaxWait: time.Minute})
		r.call(t.Context(), "/cold")
		time.Sleep(40 * time.Millisecond)
		r.ready(&room{slots: 1, takes: 7 * time.Millisecond}) // whose process was started 30 ms ago
		r.wait.Wait()
		r.call(t.Context(), "/warm")
		r.wait.Wait()
		spans := r.spans.GetSpans()
		if len(spans) != 1 || spans[0].Name != "function.cold_start" || spans[0].SpanContext.TraceID().String() != "0af7651916cd43dd8448eb211c80319c" {
			t.Fatalf("spans %+v", spans)
		}
		got := map[string]float64{}
		for _, a := range spans[0].Attributes {
			if name, ok := strings.CutPrefix(string(a.Key), "penstock.cold_start."); ok {
				got[name] = a.Value.AsFloat64()
			}
		}
		for name, want := range map[string]float64{"queue_seconds": .010, "start_seconds": .030, "first_byte_seconds": .007} {
			if d := got[name] - want; d < -1e-9 || d > 1e-9 {
				t.Errorf("%s is %v, want %v", name, got[name], want)
			}
		}
		families, err := r.metrics.Gather()
		if err != nil || len(families) != 1 || families[0].GetName() != MetricColdStart || families[0].GetMetric()[0].GetHistogram().GetSampleSum() != .040 {
			t.Errorf("metrics %v: %v", families, err)
		}
	})
}

// TestRefusals: who gets no instance is told why.
func TestRefusals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(Limits{MaxQueued: 2, MaxWait: 3 * time.Second})
		a, b := r.call(t.Context(), "/a"), r.call(t.Context(), "/b")
		refused(t, r.call(t.Context(), "/c"), KindQueueFull, true)
		time.Sleep(3*time.Second + time.Millisecond)
		synctest.Wait()
		for _, w := range []*httptest.ResponseRecorder{a, b} {
			refused(t, w, KindQueueTimeout, false)
		}
		ctx, cancel := context.WithCancel(t.Context())
		gone := r.call(ctx, "/gone")
		cancel()
		synctest.Wait()
		if n, _ := r.Load(time.Now()); gone.Code != statusCanceled || n != 0 {
			t.Errorf("a caller that went away: %d, %d wait", gone.Code, n)
		}
		if r.left.Load() != 4 || r.refused.Load() != 3 {
			t.Errorf("%d left, %d of them refused", r.left.Load(), r.refused.Load())
		}
		waits := r.call(t.Context(), "/waits")
		trouble := &Trouble{Kind: KindCrashLoop, Text: "function f: exit status 7"}
		r.Set(nil, trouble)
		synctest.Wait()
		if text := refused(t, waits, KindCrashLoop, false); text != trouble.Text {
			t.Errorf("the caller is told %q", text)
		}
		refused(t, r.call(t.Context(), "/at-once"), KindCrashLoop, false)
		// As long as one instance serves, the others' trouble is not the caller's.
		x := &room{slots: 1, freed: r.Freed}
		r.Set([]Member{{Instance: x}}, trouble)
		if w := r.call(t.Context(), "/served"); w.Code != 200 {
			t.Errorf("with an instance: %d", w.Code)
		}
		r.wait.Wait()
	})
}

// TestEndsInBetween: an instance that ends with a request on its way to it costs
// the request nothing but the way to another one.
func TestEndsInBetween(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(Limits{MaxQueued: 2, MaxWait: time.Minute})
		r.ready(&room{slots: 1, gone: true})
		w := r.call(t.Context(), "/")
		if w.Code != 0 {
			t.Fatalf("answered %d by nobody", w.Code)
		}
		r.ready(&room{slots: 1})
		r.wait.Wait()
		if w.Code != 200 {
			t.Errorf("%d", w.Code)
		}
	})
}
