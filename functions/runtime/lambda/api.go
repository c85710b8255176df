package lambda

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/penstock-gateway/penstock/functions/instance"
)

const (
	// payloadSlack is how much more than the limit an answer's JSON may have, as on
	// AWS (6 MiB + 100 bytes).
	payloadSlack = 100
	// maxError bounds the body of a reported error.
	maxError = 1 << 20
	// exitPatience is how long, after the process has ended, the Runtime API waits
	// for what the process had sent before.
	exitPatience = time.Second
)

// api is the Runtime API server of one instance.
type api struct {
	host       instance.Host
	maxPayload int64
	listener   *listener
	server     *http.Server

	calls chan *call
	// polled is closed at the first poll for an event, initFailed when the runtime
	// said that it cannot start, exited when the process is gone.
	polled, initFailed, exited chan struct{}
	pollOnce, initOnce         sync.Once
	initError                  error

	mu      sync.Mutex
	current *call
}

// call is one event on its way through the runtime.
type call struct {
	id, arn, trace string
	client         string // JSON of the client context; empty: none
	event          []byte
	deadline       time.Time
	inv            *instance.Invocation
	// result gets exactly one value; over is closed when nobody waits any more.
	result chan *result
	over   chan struct{}

	mu   sync.Mutex
	conn *conn // that the event was sent on; nil: not sent
}

// result is what became of an event.
type result struct {
	payload  []byte
	failure  *Failure
	tooLarge bool
	stream   *streamed
	// unread means that the event did not reach the runtime.
	unread bool
}

// Failure is an error as runtimes report it.
type Failure struct {
	Message    string   `json:"errorMessage"`
	Type       string   `json:"errorType"`
	StackTrace []string `json:"-"`
	// Stack is kept raw: Python sends strings, Go objects.
	Stack json.RawMessage `json:"stackTrace"`
}

func (f *Failure) String() string {
	if f.Type == "" {
		return f.Message
	}
	return f.Type + ": " + f.Message
}

// stack is the stack trace as one text.
func (f *Failure) stack() string {
	var lines []string
	if json.Unmarshal(f.Stack, &lines) == nil {
		return strings.Join(lines, "")
	}
	return string(f.Stack)
}

func newAPI(h instance.Host, maxPayload int64) (*api, error) {
	l, err := h.Network.Listen()
	if err != nil {
		return nil, fmt.Errorf("listen for the Runtime API: %w", err)
	}
	a := &api{
		host: h, maxPayload: maxPayload, listener: &listener{Listener: l}, calls: make(chan *call),
		polled: make(chan struct{}), initFailed: make(chan struct{}), exited: make(chan struct{}),
	}
	mux := http.NewServeMux()
	const base = "/2018-06-01/runtime/"
	mux.HandleFunc("GET "+base+"invocation/next", a.next)
	mux.HandleFunc("POST "+base+"invocation/{id}/response", a.response)
	mux.HandleFunc("POST "+base+"invocation/{id}/error", a.failure)
	mux.HandleFunc("POST "+base+"init/error", a.initialization)
	a.server = &http.Server{
		Handler: a.onlyOwn(mux), ReadHeaderTimeout: time.Minute,
		ErrorLog:    slog.NewLogLogger(h.Logger.Handler(), slog.LevelDebug),
		ConnContext: func(ctx context.Context, c net.Conn) context.Context { return context.WithValue(ctx, connKey{}, c) },
	}
	go func() { _ = a.server.Serve(a.listener) }()
	return a, nil
}

// onlyOwn lets the instance's own processes through. Other functions share the
// network, and whoever asks for the next event gets a caller's request.
func (a *api) onlyOwn(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, _ := r.Context().Value(connKey{}).(*conn)
		if a.host.Owns != nil && (c == nil || !c.owned(a.host.Owns)) {
			a.host.Logger.Warn("the Runtime API was called by a process that is not the function's", "path", r.URL.Path)
			w.Header().Set("Connection", "close")
			reply(w, http.StatusForbidden, "Forbidden", "this Runtime API is another process's")
			return
		}
		next.ServeHTTP(w, r)
	})
}

func (a *api) address() string { return a.listener.Addr().String() }

// invoke hands an event to the runtime and waits for what becomes of it.
func (a *api) invoke(ctx context.Context, k *call) (*result, error) {
	select {
	case a.calls <- k:
	case <-a.exited:
		return nil, instance.RefusedDead
	case <-ctx.Done():
		return nil, errors.Join(errNotPolled, context.Cause(ctx))
	}
	defer a.forget(k)
	select {
	case res := <-k.result:
		return judge(res)
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	case <-a.exited:
	}
	select {
	case res := <-k.result: // it had answered, or said why it ends
		return judge(res)
	default:
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.conn == nil || k.conn.unread() {
		return nil, instance.RefusedUnread
	}
	return nil, instance.ErrDied
}

func judge(res *result) (*result, error) {
	if res.unread {
		return nil, instance.RefusedUnread
	}
	return res, nil
}

// forget makes room for the next event.
func (a *api) forget(k *call) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.current == k {
		a.current = nil
	}
}

// settle gives the result to the call with this id; false when there is none.
func (a *api) settle(id string, res *result) *call {
	a.mu.Lock()
	defer a.mu.Unlock()
	k := a.current
	if k == nil || k.id != id {
		return nil
	}
	a.current = nil
	k.result <- res
	return k
}

// next is the long poll for an event.
func (a *api) next(w http.ResponseWriter, r *http.Request) {
	a.pollOnce.Do(func() { close(a.polled) })
	a.mu.Lock()
	if k := a.current; k != nil {
		a.current = nil
		k.result <- &result{failure: &Failure{Type: "Runtime.NoResponse", Message: "the runtime asked for the next event without an answer to this one"}}
	}
	a.mu.Unlock()
	select {
	case k := <-a.calls:
		a.give(w, r, k)
	case <-r.Context().Done():
	case <-a.exited:
	}
}

// give sends an event as the answer to a poll.
func (a *api) give(w http.ResponseWriter, r *http.Request, k *call) {
	c, _ := r.Context().Value(connKey{}).(*conn)
	if c == nil || !c.send() {
		k.result <- &result{unread: true}
		return
	}
	a.mu.Lock()
	a.current = k
	a.mu.Unlock()
	k.mu.Lock()
	k.conn = c
	k.mu.Unlock()
	a.host.OutputOf(k.id)
	h := w.Header()
	h.Set("Lambda-Runtime-Aws-Request-Id", k.id)
	h.Set("Lambda-Runtime-Deadline-Ms", strconv.FormatInt(k.deadline.UnixMilli(), 10))
	h.Set("Lambda-Runtime-Invoked-Function-Arn", k.arn)
	if k.trace != "" {
		h.Set("Lambda-Runtime-Trace-Id", k.trace)
	}
	if k.client != "" {
		h.Set("Lambda-Runtime-Client-Context", k.client)
	}
	h.Set("Content-Type", "application/json")
	h.Set("Content-Length", strconv.Itoa(len(k.event)))
	k.inv.Begin()
	_, _ = w.Write(k.event) // a failure shows as the end of the process
}

// response takes the handler's answer.
func (a *api) response(w http.ResponseWriter, r *http.Request) {
	id := r.PathValue("id")
	a.mu.Lock()
	k := a.current
	a.mu.Unlock()
	if k == nil || k.id != id {
		refuseID(w, id)
		return
	}
	if isStream(r) {
		a.stream(w, r, k)
		return
	}
	limit := a.maxPayload + payloadSlack
	payload, err := io.ReadAll(io.LimitReader(r.Body, limit+1))
	if err != nil {
		reply(w, http.StatusBadRequest, "InvalidRequest", "the body could not be read: "+err.Error())
		return
	}
	if int64(len(payload)) > limit {
		k.inv.End()
		n, _ := io.Copy(io.Discard, r.Body) // a runtime that is cut off while it sends would end
		a.settle(id, &result{tooLarge: true})
		a.host.Logger.Warn("the handler's answer is too large", "request_id", id, "bytes", limit+1+n, "limit", limit)
		reply(w, http.StatusRequestEntityTooLarge, "Function.ResponseSizeTooLarge",
			fmt.Sprintf("Response payload size exceeded maximum allowed payload size (%d bytes).", limit))
		return
	}
	k.inv.End()
	if a.settle(id, &result{payload: payload}) == nil {
		refuseID(w, id)
		return
	}
	accept(w)
}

// failure takes the error of a handler.
func (a *api) failure(w http.ResponseWriter, r *http.Request) {
	id := r.PathValue("id")
	if a.settle(id, &result{failure: readFailure(r)}) == nil {
		refuseID(w, id)
		return
	}
	accept(w)
}

// initialization takes the error of a runtime that cannot start.
func (a *api) initialization(w http.ResponseWriter, r *http.Request) {
	f := readFailure(r)
	a.initOnce.Do(func() {
		a.initError = errors.New("the runtime could not start: " + f.String())
		close(a.initFailed)
	})
	accept(w)
}

func readFailure(r *http.Request) *Failure {
	f := &Failure{}
	b, err := io.ReadAll(io.LimitReader(r.Body, maxError))
	if err == nil {
		err = json.Unmarshal(b, f)
	}
	if err != nil {
		f.Message = fmt.Sprintf("an error that cannot be read: %v: %.200q", err, b)
	}
	if t := r.Header.Get("Lambda-Runtime-Function-Error-Type"); f.Type == "" {
		f.Type = t
	}
	return f
}

func refuseID(w http.ResponseWriter, id string) {
	reply(w, http.StatusBadRequest, "InvalidRequestID", fmt.Sprintf("no event with the id %.128q waits for an answer", id))
}

func reply(w http.ResponseWriter, status int, kind, message string) {
	w.Header().Set("Content-Type", "application/json")
	b, _ := json.Marshal(map[string]string{"errorType": kind, "errorMessage": message})
	w.Header().Set("Content-Length", strconv.Itoa(len(b)))
	w.WriteHeader(status)
	_, _ = w.Write(b)
}

func accept(w http.ResponseWriter) {
	const ok = `{"status":"OK"}`
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(len(ok)))
	w.WriteHeader(http.StatusAccepted)
	_, _ = io.WriteString(w, ok)
}

// exit tells that the process is gone. What it had sent before is taken first.
func (a *api) exit() {
	_ = a.listener.Close()
	a.listener.wait(exitPatience)
	close(a.exited)
}

func (a *api) close() { a.server.Close() }
