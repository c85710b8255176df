// Package instance runs one copy of a function: its process, and in front of it
// the shim, a small HTTP/1.1 server on a loopback port that proxies talk to. The
// shim is the same for every contract. It owns hard concurrency with a short
// queue, readiness, the deadline, draining by connection count, the output of
// the process, the span and the metrics of an invocation. How the process is
// spoken to is a Contract, one package each below functions/runtime.
package instance

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/trace"
)

// Contract speaks with one process. The instance calls Command once, starts the
// process, calls WaitReady once, then Serve from many goroutines (at most as many
// as the function's concurrency), then Exited when the process has ended, then
// Close.
type Contract interface {
	// Command is what to run.
	Command() Command
	// WaitReady returns nil as soon as the process can take requests. ctx ends
	// with the start timeout or with the process. An error that tells more than
	// that it ended is worth returning then, too.
	WaitReady(ctx context.Context) error
	// Serve answers one request. ctx of r ends at the deadline and, when the
	// contract Cancels, also when the caller goes away. An error of this package
	// (Refused, Failed, ErrDied, or one that wraps context.DeadlineExceeded) says
	// what is to be answered instead; when the answer had begun the connection is
	// cut.
	Serve(w http.ResponseWriter, r *http.Request, inv *Invocation) error
	// Cancels reports whether one request can be given up without harm to others.
	// If not, a request past its deadline means that the process is killed.
	Cancels() bool
	// Exited tells that the process is gone: pending calls of Serve must return.
	Exited()
	// Close gives back what the contract holds.
	Close()
}

// Factory makes the contract of one instance.
type Factory func(Host) (Contract, error)

// Host is what a contract gets from its instance.
type Host struct {
	// Function is the full name, Name its last part.
	Function, Name string
	// ID of the instance.
	ID string
	// Dir is the working directory of the process, absolute.
	Dir string
	// Logger has the function and the instance in every record.
	Logger *slog.Logger
	// OutputOf tells that what the process prints from now on belongs to this
	// request; what it has printed so far is read first. For processes that handle
	// one request at a time.
	OutputOf func(requestID string)
	// Network is where the process listens and is listened to.
	Network Network
	// Owns reports whether a connection comes from the process or what it started, as
	// far as its sandbox tells processes apart; it waits until there is a process.
	// nil: all do, since nothing else reaches the listener of Network.
	Owns func(net.Conn) bool
	// Ending reports whether the process is about to end, or has ended; call it after
	// WaitReady. A broken connection of a process that is not ending is one that it
	// closed. nil: not known.
	Ending func() bool
}

// Network is that of one process: its own, or the machine's.
type Network interface {
	// Private reports whether it is its own, so that its addresses and ports are not
	// those of the machine, and PORT may be any.
	Private() bool
	// Listen returns the listener of the Runtime API, once, on 127.0.0.1.
	Listen() (net.Listener, error)
	// Dial connects to a port on 127.0.0.1.
	Dial(ctx context.Context, port int) (net.Conn, error)
}

// Command is a program with its arguments and the contract's own variables, which
// win over those of the function.
type Command struct {
	Args []string
	Env  map[string]string
}

// Refused means that the request was not begun, so any other instance may take
// it whatever its method.
type Refused string

// Reasons of a refusal, as in the header HeaderRefused.
const (
	// RefusedQueueFull: all slots are busy and the queue is full.
	RefusedQueueFull Refused = "queue-full"
	// RefusedQueueTimeout: it waited in the queue for too long.
	RefusedQueueTimeout Refused = "queue-timeout"
	// RefusedStopping: the instance was taken out of service.
	RefusedStopping Refused = "stopping"
	// RefusedDead: the process has ended.
	RefusedDead Refused = "dead"
	// RefusedUnread: the process ended before it had read the request.
	RefusedUnread Refused = "ended-before-reading"
)

func (r Refused) Error() string { return "the request was refused before it began: " + string(r) }

// ErrDied means that the process ended while it handled the request.
var ErrDied = errors.New("the instance ended while it handled the request")

// Failed is an answer in place of the function's own.
type Failed struct {
	// Status is the HTTP status.
	Status int
	// Kind is the value of HeaderError, such as "handler-error".
	Kind string
	// Body is what the caller gets as JSON; nil: a Problem with Detail.
	Body []byte
	// Detail is for the log.
	Detail string
}

func (f *Failed) Error() string { return fmt.Sprintf("%s (%d): %s", f.Kind, f.Status, f.Detail) }

// Invocation is one request on its way through an instance.
type Invocation struct {
	// ID is the request id: the caller's x-request-id when it is well-formed,
	// else a new UUID.
	ID string
	// Deadline is when it must be answered.
	Deadline time.Time

	tracer  trace.Tracer
	given   *givenIDs
	name    string
	handler trace.Span
	// begun and ended bound the handler's own time, in nanoseconds since epoch.
	begun, ended atomic.Int64
}

// NewInvocation is for callers of a Contract other than an Instance.
func NewInvocation(id string, deadline time.Time, t trace.Tracer) *Invocation {
	return &Invocation{ID: id, Deadline: deadline, tracer: t}
}

// StartHandler begins the span of the handler's own time and returns the context
// with it, for the trace headers that the handler gets.
func (i *Invocation) StartHandler(ctx context.Context) context.Context {
	ctx, i.handler = i.tracer.Start(ctx, i.name+" handler")
	i.given.add(i.handler)
	return ctx
}

// Begin marks that the handler has the request.
func (i *Invocation) Begin() { i.begun.CompareAndSwap(0, time.Now().UnixNano()) }

// End marks that the handler is done with it.
func (i *Invocation) End() { i.ended.CompareAndSwap(0, time.Now().UnixNano()) }

// own is the handler's own time; 0 when it never began.
func (i *Invocation) own(now time.Time) time.Duration {
	b, e := i.begun.Load(), i.ended.Load()
	if b == 0 {
		return 0
	}
	if e == 0 {
		e = now.UnixNano()
	}
	return time.Duration(e - b)
}
