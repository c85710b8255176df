package instance

import (
	"bufio"
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
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"
)

// Headers of answers that are the shim's own. A function's answer never has them.
const (
	// HeaderRefused is on answers to requests that another instance may have: on a 503
	// for one that was not begun, whatever its method, with the reason; and on the 502 for
	// an idempotent one whose process was killed, with "killed". Proxies repeat them.
	HeaderRefused = "x-penstock-refused"
	// HeaderError is on every other answer that is not the function's own:
	// handler-error, bad-response, too-large, died, deadline, bad-request, slow-body,
	// timeout.
	HeaderError = "x-penstock-error"
)

// Values of HeaderError.
const (
	// KindHandlerError: the handler raised an error.
	KindHandlerError = "handler-error"
	// KindBadResponse: its answer is not what the contract asks for.
	KindBadResponse = "bad-response"
	// KindTooLarge: the request, or the answer, is larger than the contract allows.
	KindTooLarge = "too-large"
	// KindDied: the process ended in mid-request.
	KindDied = "died"
	// KindDeadline: the function's timeout passed.
	KindDeadline = "deadline"
	// KindBadRequest: the request is not one that the contract can take.
	KindBadRequest = "bad-request"
	// KindSlowBody: the request's body did not come in time.
	KindSlowBody = "slow-body"
)

// answerLimit is how long a caller may take to make room for an answer of the shim.
const answerLimit = 10 * time.Second

// statusCanceled is what nginx made usual for a caller that went away.
const statusCanceled = 499

// ErrOverdue is why an instance was killed that could not give up a request.
var ErrOverdue = errors.New("longer than the function's timeout")

// ServeHTTP implements http.Handler: it is the shim.
func (i *Instance) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if Late(w, r) {
		return
	}
	i.o.Observer.Arrived()
	_ = i.serve(w, r, nil)
}

// serve answers a request; held is nil for one that a proxy sent here. It is false
// when a held one was not answered and another instance may have it.
func (i *Instance) serve(w http.ResponseWriter, r *http.Request, held *Held) (done bool) {
	began, again := time.Now(), false
	inv := &Invocation{ID: requestID(r), tracer: i.o.Tracer, name: i.name, given: i.given}
	ctx := i.propagator.Extract(r.Context(), propagation.HeaderCarrier(r.Header))
	ctx, span := i.o.Tracer.Start(ctx, i.name, trace.WithSpanKind(trace.SpanKindServer), trace.WithAttributes(
		semconv.FaaSName(i.o.Function), semconv.FaaSInstance(i.o.ID), semconv.FaaSInvocationID(inv.ID),
		semconv.HTTPRequestMethodKey.String(r.Method), semconv.URLPath(r.URL.Path),
	))
	i.given.add(span)
	rec := &recorder{ResponseWriter: w, instance: i, held: held, http2: r.ProtoMajor == 2, grpc: isGRPC(r)}
	i.traces.Store(inv.ID, span.SpanContext().TraceID())
	defer i.traces.Delete(inv.ID)
	result := "aborted"
	defer func() { // also when the answer is cut by a panic, as net/http wants it
		now := time.Now()
		if inv.handler != nil {
			inv.handler.End()
		}
		i.metrics.request(result, inv.own(now), now.Sub(began))
		if !again {
			i.o.Observer.Ended(rec.sample(inv, result, now))
		}
		if rec.status != 0 {
			span.SetAttributes(semconv.HTTPResponseStatusCode(rec.status))
		}
		span.SetAttributes(attribute.String("penstock.result", result))
		if rec.status >= 500 || result == "aborted" {
			span.SetStatus(codes.Error, result)
		}
		span.End()
	}()
	err := i.handle(rec, r.WithContext(ctx), inv, span, held)
	if again = held.again(rec, err); again {
		result = "refused"
		return false
	}
	begun := rec.begun
	if err == nil {
		i.answered.Store(true)
	}
	if !begun && i.killedUnder(r, err) {
		rec.own().Set(HeaderRefused, repeatable)
	}
	result = i.answer(ctx, rec, inv, err)
	rec.upload.linger()
	if err != nil && begun {
		panic(http.ErrAbortHandler) // a cut answer must not look like a whole one
	}
	return true
}

// handle reads the body as far as it is needed, waits for a slot and lets the
// contract serve.
func (i *Instance) handle(rec *recorder, r *http.Request, inv *Invocation, span trace.Span, held *Held) error {
	if held != nil {
		defer held.leave()
		rec.upload = held.up
	} else {
		rec.upload = newUpload(rec.ResponseWriter, r, &i.uploads, i.o.UploadStall)
	}
	up := rec.upload
	defer up.end()
	// Even when the process is gone: a proxy sends a request elsewhere only when it
	// has all of it.
	if up != nil {
		if err := up.receive(i.maxBody(), i.o.streamAfter()); err != nil {
			return err
		}
	}
	if held == nil {
		leave, err := i.admit(r.Context(), up)
		if err != nil {
			return err
		}
		defer leave()
	}
	rec.admitted = time.Now()
	span.SetAttributes(semconv.FaaSColdstart(i.invocations.Add(1) == 1))
	inv.Deadline = time.Now().Add(i.o.Timeout)
	parent := r.Context()
	if !i.contract.Cancels() {
		parent = context.WithoutCancel(parent)
	}
	ctx, cancel := context.WithCancelCause(parent)
	defer cancel(nil)
	stop := i.watch(rec, r.Context(), cancel)
	defer stop()
	// A connection that was taken over (WebSocket) lasts for as long as both sides want.
	rec.switched = stop
	err := i.contract.Serve(rec, r.WithContext(ctx), inv)
	if err == nil {
		return nil
	}
	if fault := up.sendersFault(); fault != nil {
		return fault // the instance is not to blame, whatever became of the request
	}
	if errors.Is(context.Cause(ctx), context.DeadlineExceeded) {
		if rec.slow.Load() {
			return context.Canceled
		}
		// A stream of HTTP/2 is reset alone, which servers take for its end.
		if !rec.http2 || !rec.begun || !i.contract.Cancels() {
			i.overdue(inv)
		}
		return context.DeadlineExceeded
	}
	return err
}

// admit takes a slot, or waits for one in the queue. A request whose body still
// comes needs a place among those as well, which are at most half of the slots: so
// many slow senders as there may be, they cannot take all.
func (i *Instance) admit(ctx context.Context, up *upload) (leave func(), err error) {
	if err := i.open(); err != nil {
		return nil, err
	}
	leave, streams := i.leaver(i.slots), !up.complete()
	if streams {
		if err := i.streams.enter(ctx, i.proc.done); err != nil {
			return nil, err
		}
		leave = func() { i.streams.leave(); i.leaver(i.slots)() }
	}
	if err := i.slots.enter(ctx, i.proc.done); err != nil {
		if streams {
			i.streams.leave()
		}
		return nil, err
	}
	if err := i.open(); err != nil { // it may have ended while we waited
		leave()
		return nil, err
	}
	return leave, nil
}

// leaver gives a slot back.
func (i *Instance) leaver(g *gate) func() {
	return func() { g.leave(); i.o.Observer.Freed() }
}

// maxBody is the largest body of a contract that takes whole ones, else 0.
func (i *Instance) maxBody() int64 {
	if c, ok := i.contract.(WholeBody); ok {
		return c.MaxBody()
	}
	return 0
}

// line tells of a line of output.
func (i *Instance) line(l Line) {
	l.Instance = i.o.ID
	i.o.Observer.Line(l)
}

// traceOf is the trace of a request that is handled; empty when there is none.
func (i *Instance) traceOf(request string) string {
	if id, ok := i.traces.Load(request); ok && id.(trace.TraceID).IsValid() {
		return id.(trace.TraceID).String()
	}
	return ""
}

func (i *Instance) open() error {
	switch {
	case i.gone.Load():
		return RefusedDead
	case i.stopping.Load():
		return RefusedStopping
	}
	return nil
}

// repeatable is the value of HeaderRefused for a request that was begun and that may be
// begun again.
const repeatable = "killed"

// killedUnder reports whether an idempotent request (RFC 9110 section 9.2.2) did not end
// because somebody else killed the process: such a request is lost by no fault of its own.
// One whose process exits or crashes is not meant, since it would end the next one, too.
func (i *Instance) killedUnder(r *http.Request, err error) bool {
	if !errors.Is(err, ErrDied) || !slices.Contains(idempotent, r.Method) {
		return false
	}
	late := time.NewTimer(answerLimit)
	defer late.Stop()
	select { // how it ended is known a moment after its connections are closed
	case <-i.proc.done:
		return i.proc.killed()
	case <-r.Context().Done():
	case <-late.C:
	}
	return false
}

// idempotent are the methods that routes repeat as such by default.
var idempotent = []string{http.MethodGet, http.MethodHead, http.MethodOptions, http.MethodPut, http.MethodDelete}

// overdue has an instance replaced whose request passed its deadline.
func (i *Instance) overdue(inv *Invocation) {
	reason := fmt.Errorf("request %s took %w of %s", inv.ID, ErrOverdue, i.o.Timeout)
	if i.contract.Cancels() {
		i.o.Logger.Warn("the instance is replaced", "reason", reason.Error())
		i.replaceOnce.Do(func() { close(i.replace) })
		return
	}
	i.kill(reason)
}

// answer writes what stands for the function's answer when there is none, and
// returns the result for metrics and span.
func (i *Instance) answer(ctx context.Context, rec *recorder, inv *Invocation, err error) string {
	if err == nil {
		return "ok"
	}
	var refused Refused
	var failed *Failed
	// The caller is not told the text of an unknown error: it is in the log.
	result, status, text := KindDied, http.StatusBadGateway, ErrDied.Error()
	level := slog.LevelWarn
	switch {
	case errors.As(err, &refused):
		result, status, text, level = "refused", http.StatusServiceUnavailable, refused.Error(), slog.LevelDebug
		rec.own().Set(HeaderRefused, string(refused))
		if refused == RefusedDead || refused == RefusedStopping || refused == RefusedUnread {
			rec.own().Set("Connection", "close")
		}
	case errors.As(err, &failed):
		result, status, text = failed.Kind, failed.Status, failed.Detail
	case errors.Is(err, context.DeadlineExceeded):
		result, status = KindDeadline, http.StatusGatewayTimeout
		text = fmt.Sprintf("the function did not answer within its timeout of %s", i.o.Timeout)
	case errors.Is(err, context.Canceled):
		result, status, text, level = "canceled", statusCanceled, "the caller went away", slog.LevelDebug
	}
	i.o.Logger.Log(ctx, level, "invocation failed", "result", result, "request_id", inv.ID, "error", err.Error())
	if rec.begun {
		return result
	}
	if refused == "" {
		rec.own().Set(HeaderError, result)
	}
	if rec.grpc {
		rec.own()
		writeGRPC(rec, status, result, text)
		return result
	}
	rec.own()
	if failed != nil && failed.Body != nil {
		writeBody(rec, status, "application/json", failed.Body)
		return result
	}
	kind := result
	if refused != "" {
		kind = string(refused)
	}
	writeProblem(rec, status, kind, text, inv.ID)
	return result
}

// recorder notes what was answered and keeps the shim's headers its own.
type recorder struct {
	http.ResponseWriter
	instance *Instance
	upload   *upload // nil: none
	held     *Held   // nil: a proxy sent the request here
	admitted time.Time
	http2    bool
	grpc     bool
	switched func()
	status   int
	internal bool
	// slow means that the deadline passed while the caller did not take the answer.
	slow atomic.Bool

	mu      sync.Mutex
	begun   bool
	expired bool
	writing int // calls that may wait for the caller
	// moved is when the answer began, or the last write began or ended.
	moved time.Time
}

// sample is what an observer is told.
func (r *recorder) sample(inv *Invocation, result string, now time.Time) Sample {
	s := Sample{Status: r.status, Refused: result == "refused", Cold: r.held != nil && r.held.Cold}
	if !r.admitted.IsZero() && r.status != http.StatusSwitchingProtocols {
		s.Handler, s.Total = inv.own(now), now.Sub(r.admitted)
	}
	return s
}

// own are the headers of an answer by the shim itself.
func (r *recorder) own() http.Header {
	r.internal = true
	return r.Header()
}

// expire is called at the deadline. It ends writes to the caller, and tells
// whether the caller is the one that is waited for.
func (r *recorder) expire() (slow bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	slow = r.writing > 0 && !r.expired
	r.expired = true
	if slow {
		r.slow.Store(true)
	}
	if r.begun {
		_ = http.NewResponseController(r.ResponseWriter).SetWriteDeadline(time.Unix(1, 0))
	}
	return slow
}

// enter and leave are around what may wait for the caller.
func (r *recorder) enter() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.writing++
	r.moved = time.Now()
}

func (r *recorder) leave() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.writing--
	r.moved = time.Now()
}

// begin notes that the answer begins.
func (r *recorder) begin(status int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.status, r.begun, r.moved = status, true, time.Now()
	if r.expired && !r.internal { // it came a moment too late
		_ = http.NewResponseController(r.ResponseWriter).SetWriteDeadline(time.Unix(1, 0))
	}
}

// WriteHeader implements http.ResponseWriter.
func (r *recorder) WriteHeader(status int) {
	h := r.Header()
	if !r.internal {
		h.Del(HeaderRefused)
		h.Del(HeaderError)
	}
	h.Del(HeaderColdStart)
	if r.held != nil && r.held.Cold {
		h.Set(HeaderColdStart, "1")
	}
	final := status >= 200 || status == http.StatusSwitchingProtocols
	if final {
		r.begin(status)
		if r.upload != nil && !r.internal {
			r.upload.relax()
		}
	}
	if status != http.StatusSwitchingProtocols && final && (r.instance.draining.Load() || !r.http2 && !r.upload.complete()) {
		// For HTTP/2 this asks for a new connection, without harm to other streams.
		h.Set("Connection", "close")
	}
	r.ResponseWriter.WriteHeader(status)
}

// Write implements http.ResponseWriter.
func (r *recorder) Write(b []byte) (int, error) {
	if !r.begun {
		r.WriteHeader(http.StatusOK)
	}
	r.enter()
	defer r.leave()
	return r.ResponseWriter.Write(b)
}

// FlushError is for http.ResponseController.
func (r *recorder) FlushError() error {
	if !r.begun {
		r.WriteHeader(http.StatusOK)
	}
	r.enter()
	defer r.leave()
	return http.NewResponseController(r.ResponseWriter).Flush()
}

// Hijack is for http.ResponseController. Nobody else may read the connection then.
func (r *recorder) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	if r.upload != nil {
		r.upload.end()
		if !r.upload.complete() {
			return nil, nil, errors.New("the connection cannot be taken over in the middle of the request's body")
		}
	}
	conn, buffered, err := http.NewResponseController(r.ResponseWriter).Hijack()
	if err == nil {
		// Who takes a connection over writes the head of the answer himself.
		r.begin(http.StatusSwitchingProtocols)
		if r.switched != nil {
			r.switched()
		}
	}
	return conn, buffered, err
}

// Unwrap is for http.ResponseController.
func (r *recorder) Unwrap() http.ResponseWriter { return r.ResponseWriter }

// requestID is the caller's id when it is safe to log and to put into a path.
func requestID(r *http.Request) string {
	id := r.Header.Get("X-Request-Id")
	ok := len(id) >= 1 && len(id) <= 128
	for _, c := range []byte(id) {
		ok = ok && (c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c == '-' || c == '_')
	}
	if ok {
		return id
	}
	return newUUID()
}

// newUUID returns a random UUID (RFC 9562, version 4).
func newUUID() string {
	var b [16]byte
	rand.Read(b[:])
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}
