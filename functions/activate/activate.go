// Package activate holds the requests of a function while no instance is free. An
// Activator has a listener of its own, which is where proxies send a request when
// they know of no instance (or all requests, with the queue CENTRAL), keeps it in
// one queue, asks for instances, and hands it to the first one with a free slot,
// in this process: there is no second hop. What a caller waited for stands in its
// trace, as the span function.cold_start.
package activate

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"

	"github.com/penstock-gateway/penstock/functions/instance"
)

// Reasons why a request got no instance; values of instance.HeaderError.
const (
	// KindQueueFull: as many as may wait do.
	KindQueueFull = "queue-full"
	// KindQueueTimeout: it waited for as long as it may.
	KindQueueTimeout = "queue-timeout"
	// KindCrashLoop: instances end again and again before they are ready.
	KindCrashLoop = "crash-loop"
	// KindCannotStart: the function cannot be prepared: source, build.
	KindCannotStart = "cannot-start"
	// KindStopping: the runner stops.
	KindStopping = "stopping"
)

// statusCanceled is what nginx made usual for a caller that went away.
const statusCanceled = 499

// Instance is what takes requests: an *instance.Instance.
type Instance interface {
	// Reserve takes a slot for a request if one is free.
	Reserve(*instance.Held) bool
	// ServeHeld answers it; false: the instance is gone and nothing was answered.
	ServeHeld(http.ResponseWriter, *http.Request, *instance.Held) bool
}

// Member is an instance that is ready.
type Member struct {
	Instance
	// Started and Ready are when its process was started and when it became ready.
	Started, Ready time.Time
}

// Trouble is why no instance will be there soon.
type Trouble struct {
	// Kind is KindCrashLoop or KindCannotStart.
	Kind string
	// Text is for the caller.
	Text string
}

// Options of an Activator.
type Options struct {
	// Function is the full name.
	Function string
	// SocketDir is as of an instance.
	SocketDir string
	// Receiver takes in the bodies.
	Receiver *instance.Receiver
	// Pressure is called when a request begins to wait. It must not block.
	Pressure func()
	// Arrived is called for each request that comes, Left for each that gets no
	// instance, since it was refused or its caller went away; nil: nobody wants to
	// know.
	Arrived func()
	Left    func(refused bool)
	// Logger, Tracer and Metrics; nil: none.
	Logger  *slog.Logger
	Tracer  trace.Tracer
	Metrics *Metrics
}

// Limits of the queue, which may change.
type Limits struct {
	// MaxQueued is how many requests may wait at once, MaxWait for how long each.
	MaxQueued int
	MaxWait   time.Duration
}

// Activator is the queue of one function.
type Activator struct {
	o          Options
	propagator propagation.TextMapPropagator
	listener   net.Listener
	server     *http.Server
	conns      atomic.Int64
	waiting    atomic.Int64 // len(queue), to be looked at without mu

	mu      sync.Mutex
	limits  Limits
	held    int // requests that have no instance yet, those whose body still comes included
	queue   []*waiter
	members []Member
	turn    int
	trouble *Trouble
	closed  bool
}

// waiter is a request that waits.
type waiter struct {
	at     time.Time
	held   *instance.Held
	result chan outcome // one value
}

// outcome is an instance with a slot reserved, or why there is none.
type outcome struct {
	member Member
	err    error
}

// refusal is why a request gets no instance.
type refusal struct {
	kind, text string
	// again: another runner may have room.
	again bool
}

func (r *refusal) Error() string { return r.text }

// New makes the activator of a function and opens its listener.
func New(o Options, l Limits) (*Activator, error) {
	a := newActivator(o, l)
	var err error
	if a.listener, err = instance.Listen(o.SocketDir, "a-"+rand.Text()[:12]); err != nil {
		return nil, fmt.Errorf("listen for requests of %s: %w", o.Function, err)
	}
	// No timeout for idle connections, as for instances: a close of ours could meet
	// a request on its way.
	a.server = &http.Server{
		Handler: a, ReadHeaderTimeout: time.Minute, ConnState: a.count,
		ErrorLog: slog.NewLogLogger(a.o.Logger.Handler(), slog.LevelDebug), Protocols: new(http.Protocols),
		HTTP2: &http.HTTP2Config{MaxConcurrentStreams: 2 * max(l.MaxQueued, 1000)},
	}
	a.server.Protocols.SetHTTP1(true)
	a.server.Protocols.SetUnencryptedHTTP2(true)
	go func() { _ = a.server.Serve(a.listener) }()
	return a, nil
}

// newActivator makes one without a listener.
func newActivator(o Options, l Limits) *Activator {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Tracer == nil {
		o.Tracer = noop.NewTracerProvider().Tracer("")
	}
	for _, f := range []*func(){&o.Pressure, &o.Arrived} {
		if *f == nil {
			*f = func() {}
		}
	}
	if o.Left == nil {
		o.Left = func(bool) {}
	}
	return &Activator{o: o, limits: l, propagator: propagation.TraceContext{}}
}

func (a *Activator) count(_ net.Conn, s http.ConnState) {
	switch s {
	case http.StateNew:
		a.conns.Add(1)
	case http.StateClosed, http.StateHijacked:
		a.conns.Add(-1)
	}
}

// Addr is where requests come in.
func (a *Activator) Addr() net.Addr { return a.listener.Addr() }

// SetLimits changes the limits for requests that come from now on.
func (a *Activator) SetLimits(l Limits) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.limits = l
}

// Set says which instances are ready, and why none will be; nil: nothing is wrong.
// Requests that wait get a slot, or the trouble when there is no instance at all.
func (a *Activator) Set(members []Member, trouble *Trouble) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.members, a.trouble = members, trouble
	a.dispatch()
	if err := a.hopeless(); err != nil {
		a.failAll(err)
	}
}

// Freed says that a slot of an instance became free.
func (a *Activator) Freed() {
	if a.waiting.Load() == 0 {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.dispatch()
}

// Load is how many requests have no instance yet, and how long the first of the
// queue has waited.
func (a *Activator) Load(now time.Time) (queued int, oldest time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.queue) > 0 {
		oldest = now.Sub(a.queue[0].at)
	}
	return a.held, oldest
}

// dispatch gives slots to those that wait, in their order. The caller holds mu.
func (a *Activator) dispatch() {
	for n := 0; n < len(a.queue) && len(a.members) > 0; {
		w := a.queue[n]
		m, ok := a.reserve(w.held)
		if !ok {
			// One whose body still comes needs more than a slot; it holds up no other.
			if w.held.Whole() {
				break
			}
			n++
			continue
		}
		a.queue = slices.Delete(a.queue, n, n+1)
		a.waiting.Store(int64(len(a.queue)))
		w.result <- outcome{member: m}
	}
}

// reserve finds a slot, with a turn for each instance. The caller holds mu.
func (a *Activator) reserve(h *instance.Held) (Member, bool) {
	for range a.members {
		a.turn = (a.turn + 1) % len(a.members)
		if m := a.members[a.turn]; m.Reserve(h) {
			return m, true
		}
	}
	return Member{}, false
}

// hopeless is the error of a request when no instance will come. The caller holds mu.
func (a *Activator) hopeless() error {
	switch {
	case a.closed:
		return &refusal{kind: KindStopping, text: fmt.Sprintf("function %s is taken out of service here", a.o.Function), again: true}
	case a.trouble != nil && len(a.members) == 0:
		return &refusal{kind: a.trouble.Kind, text: a.trouble.Text}
	}
	return nil
}

func (a *Activator) failAll(err error) {
	for _, w := range a.queue {
		w.result <- outcome{err: err}
	}
	a.queue = nil
	a.waiting.Store(0)
}

// enter counts a request that comes.
func (a *Activator) enter() (Limits, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if err := a.hopeless(); err != nil {
		return a.limits, err
	}
	// Those whose body still comes count, but they are not what others wait for.
	if a.held >= 2*max(a.limits.MaxQueued, 1) {
		return a.limits, a.full()
	}
	a.held++
	return a.limits, nil
}

func (a *Activator) full() error {
	return &refusal{kind: KindQueueFull, again: true, text: fmt.Sprintf(
		"%d requests for function %s wait already: it takes longer, or gets more requests, than its instances can do (scale.max, scale.max_queued)",
		len(a.queue), a.o.Function)}
}

func (a *Activator) leave() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.held--
}

// acquire returns an instance with a slot reserved for h.
func (a *Activator) acquire(ctx context.Context, h *instance.Held, at time.Time, wait time.Duration) (Member, error) {
	a.mu.Lock()
	if len(a.queue) == 0 || !h.Whole() {
		if m, ok := a.reserve(h); ok {
			a.mu.Unlock()
			return m, nil
		}
	}
	err := a.hopeless()
	if err == nil && len(a.queue) >= max(a.limits.MaxQueued, 1) {
		err = a.full()
	}
	if err != nil {
		a.mu.Unlock()
		return Member{}, err
	}
	w := &waiter{at: at, held: h, result: make(chan outcome, 1)}
	a.queue = append(a.queue, w)
	a.waiting.Store(int64(len(a.queue)))
	// A slot may have become free before this one could be seen to wait.
	a.dispatch()
	a.mu.Unlock()
	a.o.Pressure()
	timer := time.NewTimer(time.Until(at.Add(wait)))
	defer timer.Stop()
	select {
	case o := <-w.result:
		return o.member, o.err
	case <-timer.C:
		err = &refusal{kind: KindQueueTimeout, text: fmt.Sprintf("no instance of function %s was free within %s", a.o.Function, wait)}
	case <-ctx.Done():
		err = ctx.Err()
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if n := slices.Index(a.queue, w); n >= 0 {
		a.queue = slices.Delete(a.queue, n, n+1)
		a.waiting.Store(int64(len(a.queue)))
		return Member{}, err
	}
	o := <-w.result // it came at the same time
	if o.err == nil && ctx.Err() != nil {
		h.GiveBack()
		return Member{}, err
	}
	return o.member, o.err
}

// ServeHTTP implements http.Handler.
func (a *Activator) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if instance.Late(w, r) {
		return
	}
	at := time.Now()
	id := instance.RequestID(r)
	a.o.Arrived()
	limits, err := a.enter()
	if err != nil {
		a.refuse(w, r, id, err)
		return
	}
	entered := true
	leave := func() {
		if entered {
			entered = false
			a.leave()
		}
	}
	defer leave()
	a.callEarly()
	held, err := a.o.Receiver.Receive(w, r)
	defer held.Done()
	for err == nil {
		var m Member
		if m, err = a.acquire(r.Context(), held, at, limits.MaxWait); err != nil {
			break
		}
		leave()
		if a.serve(w, r, held, m, at) {
			return
		}
		a.drop(m) // it ended in this moment
	}
	a.refuse(w, r, id, err)
}

// callEarly asks for an instance before the body of a request has come.
func (a *Activator) callEarly() {
	a.mu.Lock()
	none := len(a.members) == 0
	a.mu.Unlock()
	if none {
		a.o.Pressure()
	}
}

// drop takes out an instance that has ended, until Set.
func (a *Activator) drop(m Member) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.members = slices.DeleteFunc(slices.Clone(a.members), func(x Member) bool { return x.Instance == m.Instance })
}

// serve hands a request to an instance. It is false when that is gone.
func (a *Activator) serve(w http.ResponseWriter, r *http.Request, held *instance.Held, m Member, at time.Time) bool {
	held.Cold = m.Ready.After(at)
	if !held.Cold {
		return m.ServeHeld(w, r, held)
	}
	given := time.Now()
	first := &firstByte{ResponseWriter: w}
	if !m.ServeHeld(first, r, held) {
		return false
	}
	a.o.Metrics.coldStart(a.o.Function, given.Sub(at))
	end := first.at
	if end.IsZero() {
		end = time.Now()
	}
	started := m.Started
	if started.Before(at) {
		started = at
	}
	start := m.Ready.Sub(started)
	ctx := a.propagator.Extract(context.Background(), propagation.HeaderCarrier(r.Header))
	_, span := a.o.Tracer.Start(ctx, "function.cold_start", trace.WithTimestamp(at), trace.WithAttributes(
		attribute.String("faas.name", a.o.Function),
		attribute.Float64("penstock.cold_start.queue_seconds", (given.Sub(at)-start).Seconds()),
		attribute.Float64("penstock.cold_start.start_seconds", start.Seconds()),
		attribute.Float64("penstock.cold_start.first_byte_seconds", end.Sub(given).Seconds()),
	))
	span.AddEvent("start", trace.WithTimestamp(started))
	span.AddEvent("ready", trace.WithTimestamp(m.Ready))
	span.AddEvent("given", trace.WithTimestamp(given))
	span.End(trace.WithTimestamp(end))
	return true
}

// refuse answers a request that gets no instance.
func (a *Activator) refuse(w http.ResponseWriter, r *http.Request, id string, err error) {
	var no *refusal
	var failed *instance.Failed
	switch {
	case errors.As(err, &no):
		a.o.Metrics.refuse(a.o.Function, no.kind)
		a.o.Left(true)
		a.o.Logger.Debug("request refused", "function", a.o.Function, "request_id", id, "reason", no.kind)
		instance.Refuse(w, r, id, http.StatusServiceUnavailable, no.kind, no.text, no.again)
	case errors.As(err, &failed):
		a.o.Metrics.refuse(a.o.Function, failed.Kind)
		a.o.Left(false)
		instance.Refuse(w, r, id, failed.Status, failed.Kind, failed.Detail, false)
	default:
		a.o.Metrics.cancel(a.o.Function)
		a.o.Left(false)
		w.WriteHeader(statusCanceled)
	}
}

// Close ends the activator: requests that wait are refused. unlisted is closed when
// no proxy knows of it any more; then it waits for connections to be closed, no
// longer than limit. It returns when nothing is left.
func (a *Activator) Close(ctx context.Context, unlisted <-chan struct{}, limit time.Duration) {
	select {
	case <-unlisted:
	case <-ctx.Done():
	}
	a.mu.Lock()
	a.closed = true
	a.failAll(a.hopeless())
	a.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for zero := 0; zero < 3 && ctx.Err() == nil; zero++ {
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
		if a.conns.Load() > 0 {
			zero = -1
		}
	}
	_ = a.server.Shutdown(ctx)
	_ = a.server.Close()
}

// firstByte notes when an answer began.
type firstByte struct {
	http.ResponseWriter
	at time.Time
}

// WriteHeader implements http.ResponseWriter.
func (f *firstByte) WriteHeader(status int) {
	if f.at.IsZero() && (status >= 200 || status == http.StatusSwitchingProtocols) {
		f.at = time.Now()
	}
	f.ResponseWriter.WriteHeader(status)
}

// Unwrap is for http.ResponseController.
func (f *firstByte) Unwrap() http.ResponseWriter { return f.ResponseWriter }
