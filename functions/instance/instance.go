package instance

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"

	"github.com/penstock-gateway/penstock/functions/sandbox"
	"github.com/penstock-gateway/penstock/functions/spans"
	"github.com/penstock-gateway/penstock/internal/launch"
)

const (
	// The shim of a process that died goes on refusing for lingerGrace, in which
	// proxies hear of the end, and then until there is no connection, at most
	// lingerLimit, so that requests on their way are retried elsewhere.
	lingerGrace = 2 * time.Second
	lingerLimit = 10 * time.Second
	// Draining ends when there was no connection in zeroChecks looks in a row.
	zeroChecks = 3
	zeroEvery  = 10 * time.Millisecond
)

// Options is one instance.
type Options struct {
	// Function is the full name, ID the instance's, unique over time.
	Function, ID string
	// Dir is the working directory, absolute.
	Dir string
	// Copies are folders that hold copies of the source: what is printed of files in them
	// has the names of the source.
	Copies []string
	// Env are the function's own variables.
	Env map[string]string
	// SocketDir is where the Unix socket is made that requests come by, a folder that
	// only this user may enter; "": they come by a TCP port of the loopback interface,
	// which all processes of the machine can reach.
	SocketDir string
	// Sandbox is how the process is kept apart; nil: not at all.
	Sandbox *sandbox.Plan
	// Contract says how the process is spoken to.
	Contract Factory
	// Concurrency is how many requests it handles at once, Queue how many more may
	// wait, QueueTimeout for how long. Defaults: 1, 16, 5 s.
	Concurrency, Queue int
	QueueTimeout       time.Duration
	// UploadStall is how long a sender may pause in the body of a request. Default
	// 10 s.
	UploadStall time.Duration
	// Silence is how long a response that has begun may pause. Default 5 min, as
	// timeout.idle of routes.
	Silence time.Duration
	// StreamAfter is how long a body of unknown length may come before its request
	// is begun as a stream. Default: 250 ms where Concurrency is above 1, else such
	// a request is not begun before its first MiB is there. When it is set, streams
	// may take all slots, else at most half.
	StreamAfter time.Duration
	// Timeout of one invocation, StartTimeout from start to ready, StopGrace from
	// SIGTERM to SIGKILL. Defaults: 30 s, 30 s, 2 s.
	Timeout, StartTimeout, StopGrace time.Duration
	// Logger takes the output of the process and what goes wrong; nil: none.
	Logger *slog.Logger
	// Tracer makes the spans; nil: none.
	Tracer trace.Tracer
	// Metrics; nil: none.
	Metrics *Metrics
	// Observer hears of requests and output; nil: nobody.
	Observer Observer
	// Spans takes the spans that the process makes itself; nil: nobody does. SpansLost
	// hears of those that were not taken, in words.
	Spans     *spans.Receiver
	SpansLost func(text string)
}

func (o *Options) setDefaults() {
	def := func(d *time.Duration, v time.Duration) {
		if *d <= 0 {
			*d = v
		}
	}
	def(&o.QueueTimeout, 5*time.Second)
	def(&o.UploadStall, 10*time.Second)
	def(&o.Silence, 5*time.Minute)
	def(&o.Timeout, 30*time.Second)
	def(&o.StartTimeout, 30*time.Second)
	def(&o.StopGrace, 2*time.Second)
	o.Concurrency = max(o.Concurrency, 1)
	if o.Queue <= 0 {
		o.Queue = 16
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Tracer == nil {
		o.Tracer = noop.NewTracerProvider().Tracer("")
	}
	if o.Observer == nil {
		o.Observer = nobody{}
	}
	o.Logger = o.Logger.With("function", o.Function, "instance", o.ID)
}

// streamAfter is how long a body of unknown length is read ahead; 0: it is not a stream.
func (o *Options) streamAfter() time.Duration {
	if o.StreamAfter <= 0 && o.Concurrency > 1 {
		return streamAfter
	}
	return o.StreamAfter
}

// streams is how many requests may be begun while their body still comes.
func (o *Options) streams() int {
	if o.StreamAfter > 0 {
		return o.Concurrency
	}
	return max(1, o.Concurrency/2)
}

// Instance is one running copy of a function.
type Instance struct {
	o          Options
	name       string
	contract   Contract
	proc       *process
	out        *output
	metrics    *functionMetrics
	propagator propagation.TextMapPropagator

	listener *countingListener
	server   *http.Server
	addr     net.Addr

	// slots are for all requests, streams for those whose body still comes.
	slots, streams *gate
	uploads        uploads
	// given is nil when the process sends no spans; stopSpans ends taking them.
	given       *givenIDs
	stopSpans   func()
	traces      sync.Map // trace ids of requests by their ids
	invocations atomic.Int64
	answered    atomic.Bool
	holding     atomic.Int64  // requests of ServeHeld, which have no connection here
	draining    atomic.Bool   // answers close their connection
	stopping    atomic.Bool   // new requests are refused
	spawned     chan struct{} // closed when proc is set, or will not be
	gone        atomic.Bool   // the process has ended

	ready, dead, closed, replace, cut chan struct{}
	drainOnce, replaceOnce, cutOnce   sync.Once

	mu    sync.Mutex
	asked bool
	err   error
}

// Start starts a process. It returns an error when there is none; whether it
// becomes ready is told by Ready and Dead.
func Start(o Options) (*Instance, error) {
	o.setDefaults()
	i := &Instance{
		o: o, name: o.Function[strings.LastIndexByte(o.Function, '/')+1:],
		metrics: o.Metrics.of(o.Function), propagator: propagation.NewCompositeTextMapPropagator(propagation.TraceContext{}, propagation.Baggage{}),
		slots: newGate(o.Concurrency, o.Queue, o.QueueTimeout), streams: newGate(o.streams(), o.Queue, o.QueueTimeout),
		ready: make(chan struct{}), dead: make(chan struct{}), closed: make(chan struct{}),
		replace: make(chan struct{}), cut: make(chan struct{}), spawned: make(chan struct{}), stopSpans: func() {},
	}
	if o.Spans != nil {
		i.given = &givenIDs{}
	}
	i.out = newOutput(o.Logger, i.metrics, o.Copies...)
	i.out.sink, i.out.trace = i.line, i.traceOf
	i.uploads.count = maxUploads
	place, err := reserve(o.Sandbox, o.ID)
	if err != nil {
		i.metrics.failed()
		return nil, err
	}
	host := Host{Function: o.Function, Name: i.name, ID: o.ID, Dir: o.Dir, Logger: o.Logger, OutputOf: i.out.of, Network: place, Ending: i.ending}
	if !place.Private() {
		host.Owns = i.owns
	}
	if i.contract, err = o.Contract(host); err != nil {
		place.close()
		return nil, err
	}
	each := int64(aheadBytes)
	if c, ok := i.contract.(WholeBody); ok {
		each = c.MaxBody() + 1
	}
	// Room for all that may be served and wait, and for as many to come.
	i.uploads.most = max(64<<20, int64(o.Concurrency+2*o.Queue)*each)
	if err := i.spawn(place); err != nil {
		i.contract.Exited()
		i.contract.Close()
		i.metrics.failed()
		return nil, err
	}
	go i.run()
	return i, nil
}

// owns is Host.Owns.
func (i *Instance) owns(c net.Conn) bool {
	<-i.spawned
	return i.proc != nil && i.proc.started.Owns(c)
}

func (i *Instance) spawn(place *place) error {
	defer close(i.spawned)
	stdout, err := i.out.pipe("stdout")
	if err != nil {
		place.close()
		return err
	}
	defer stdout.Close()
	stderr, err := i.out.pipe("stderr")
	if err != nil {
		place.close()
		i.out.close(0)
		return err
	}
	defer stderr.Close()
	tracing, err := i.takeSpans(place)
	if err != nil {
		place.close()
		i.out.close(0)
		return fmt.Errorf("an endpoint for its spans: %w", err)
	}
	c := i.contract.Command()
	env, own := environment(i.o.ID, tracing, i.o.Env, c.Env)
	i.proc, err = place.startProcess(sandbox.Command{
		ID: i.o.ID, Args: c.Args, Dir: i.o.Dir, Env: env, Own: own, Stdout: stdout, Stderr: stderr,
	})
	if err != nil {
		i.out.close(0)
		i.stopSpans()
		if errors.Is(err, os.ErrNotExist) {
			err = fmt.Errorf("%w (the command is looked for in the source folder when it has a slash, else on the runner's PATH)", err)
		}
		return err
	}
	i.out.start()
	return nil
}

// ending is Host.Ending.
func (i *Instance) ending() bool {
	<-i.spawned
	return i.proc == nil || launch.Exiting(i.proc.pid()) || launch.Exiting(i.Main())
}

// Ready is closed when the instance takes requests at Addr.
func (i *Instance) Ready() <-chan struct{} { return i.ready }

// Dead is closed when the process has ended; Err then says why.
func (i *Instance) Dead() <-chan struct{} { return i.dead }

// Closed is closed when nothing is left of the instance.
func (i *Instance) Closed() <-chan struct{} { return i.closed }

// Replace is closed when a request passed its deadline in a process that cannot
// be killed for it: a new instance should take over before this one drains.
func (i *Instance) Replace() <-chan struct{} { return i.replace }

// Addr is where requests reach a ready instance.
func (i *Instance) Addr() net.Addr { return i.addr }

// PID is the id of the process that all others of the instance descend from: the
// program, or the first process of its own view of processes.
func (i *Instance) PID() int { return i.proc.pid() }

// Main is the process id of the program.
func (i *Instance) Main() int { return i.proc.started.Main() }

// Isolation is what keeps the process apart.
func (i *Instance) Isolation() []string {
	if i.o.Sandbox == nil {
		return nil
	}
	return i.o.Sandbox.Means
}

// CPU is the processor time that the process used; known when it is Dead.
func (i *Instance) CPU() time.Duration { return i.proc.cpu() }

// ID is the instance's id.
func (i *Instance) ID() string { return i.o.ID }

// Err is why the instance ended unasked; nil while it runs and when it was
// asked to.
func (i *Instance) Err() error {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.err
}

// Answered reports whether the handler has answered any request, so that its end is no
// failed start.
func (i *Instance) Answered() bool { return i.answered.Load() }

// LastLines are the last lines that the process printed.
func (i *Instance) LastLines() string { return i.out.lastLines() }

// setErr keeps the first reason; one that was asked for has none.
func (i *Instance) setErr(err error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.err == nil && !i.asked {
		i.err = err
	}
}

func (i *Instance) run() {
	defer close(i.closed)
	began := time.Now()
	err := i.waitReady()
	if err == nil {
		err = i.listen()
	}
	if err != nil {
		i.setErr(err)
		i.proc.signal(syscall.SIGKILL)
	} else {
		i.metrics.started(time.Since(began))
		i.o.Observer.Ready(time.Since(began))
		i.o.Logger.Info("instance is ready", "address", i.addr.String(), "pid", i.Main(), "seconds", time.Since(began).Seconds())
		close(i.ready)
	}
	<-i.proc.done
	i.gone.Store(true)
	i.contract.Exited()
	i.stopSpans()
	i.proc.release()
	i.out.close(500 * time.Millisecond)
	i.setErr(fmt.Errorf("the process ended: %s", i.proc.ending()))
	if i.Err() != nil {
		i.metrics.failed()
	}
	close(i.dead)
	i.linger()
	i.contract.Close()
}

// waitReady waits for the contract, the process and the start timeout.
func (i *Instance) waitReady() error {
	ctx, cancel := context.WithTimeout(context.Background(), i.o.StartTimeout)
	defer cancel()
	go func() {
		select {
		case <-i.proc.done:
			cancel()
		case <-ctx.Done():
		}
	}()
	err := i.contract.WaitReady(ctx)
	switch {
	case err == nil:
		return nil
	case !errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded):
		return err
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return fmt.Errorf("it was not ready within its start timeout of %s", i.o.StartTimeout)
	}
	<-i.proc.done
	return fmt.Errorf("the process ended before it was ready: %s", i.proc.ending())
}

func (i *Instance) listen() error {
	l, err := Listen(i.o.SocketDir, i.o.ID[max(0, len(i.o.ID)-10):]) // its random part
	if err != nil {
		return fmt.Errorf("listen for requests: %w", err)
	}
	i.listener = &countingListener{Listener: l}
	i.addr = l.Addr()
	// No timeout for idle connections: Envoy closes its own, and a close of ours
	// could meet a request on its way.
	i.server = &http.Server{
		Handler: i, ReadHeaderTimeout: time.Minute,
		// Both for every function, so that a function may change its protocol while
		// proxies still speak the old one to its old instances.
		Protocols: new(http.Protocols),
		HTTP2:     &http.HTTP2Config{MaxConcurrentStreams: max(250, i.o.Concurrency+i.o.Queue)},
		ErrorLog:  slog.NewLogLogger(i.o.Logger.Handler(), slog.LevelDebug),
	}
	i.server.Protocols.SetHTTP1(true)
	i.server.Protocols.SetUnencryptedHTTP2(true)
	go func() { _ = i.server.Serve(i.listener) }()
	return nil
}

// linger refuses requests on open connections until there are none, so that
// their callers may try elsewhere, and then closes the listener.
func (i *Instance) linger() {
	if i.server == nil {
		return
	}
	if i.Err() != nil {
		select {
		case <-time.After(lingerGrace):
			i.awaitNoConnections(time.After(lingerLimit), nil)
		case <-i.cut:
		}
	}
	i.shutdown(time.Second)
	i.server.Close()
}

// shutdown closes the listener and idle connections and lets requests end, at
// most for d.
func (i *Instance) shutdown(d time.Duration) {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	defer cancel()
	go func() {
		select {
		case <-i.cut:
			cancel()
		case <-ctx.Done():
		}
	}()
	_ = i.server.Shutdown(ctx)
	for i.holding.Load() > 0 && ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case <-time.After(zeroEvery):
		}
	}
}

// awaitNoConnections returns when no connection was open in some looks, at the
// limit, when gone is closed, or when the instance is to be cut.
func (i *Instance) awaitNoConnections(limit <-chan time.Time, gone <-chan struct{}) {
	tick := time.NewTicker(zeroEvery)
	defer tick.Stop()
	for zero := 0; zero < zeroChecks; {
		select {
		case <-tick.C:
		case <-limit:
			return
		case <-gone:
			return
		case <-i.cut:
			return
		}
		if i.listener.open.Load() == 0 && i.holding.Load() == 0 {
			zero++
		} else {
			zero = 0
		}
	}
}

// kill ends the process at once for a reason.
func (i *Instance) kill(reason error) {
	i.setErr(reason)
	i.proc.signal(syscall.SIGKILL)
}

// DrainOptions say how an instance is taken out of service.
type DrainOptions struct {
	// Unlisted is closed when no proxy knows of the instance any more: only then are
	// connections counted. It serves on until then. nil: nobody tells.
	Unlisted <-chan struct{}
	// Grace is how long it serves on before connections are counted, when nobody
	// tells: Unlisted is nil.
	Grace time.Duration
	// Limit is when it is stopped in any case, from when it is unlisted.
	Limit time.Duration
	// CutIdle closes connections that carry no request at once: for when no proxy
	// is told to close them.
	CutIdle bool
}

// Drain takes the instance out of service: it serves on, asks for connections to
// be closed, and stops when there are none. It returns at once; Closed tells the
// end. An instance that is not ready is stopped at once.
func (i *Instance) Drain(o DrainOptions) {
	i.drainOnce.Do(func() { go i.drain(o) })
}

// Cut ends waiting: draining and lingering end now.
func (i *Instance) Cut() { i.cutOnce.Do(func() { close(i.cut) }) }

func (i *Instance) drain(o DrainOptions) {
	i.mu.Lock()
	i.asked = i.err == nil
	i.mu.Unlock()
	select {
	case <-i.ready:
	default:
		i.proc.signal(syscall.SIGKILL)
		return
	}
	if o.Unlisted != nil {
		o.Grace = 0
		select {
		case <-o.Unlisted:
		case <-i.dead:
		case <-i.cut:
		}
	}
	i.draining.Store(true)
	shutdown := time.Second
	if o.CutIdle {
		shutdown = o.Limit
	} else {
		i.awaitDrained(o)
		i.stopping.Store(true)
	}
	i.shutdown(shutdown)
	i.stopping.Store(true)
	i.terminate()
	i.Cut() // one that had died need not linger
}

// awaitDrained waits for the grace period and then for the last connection.
func (i *Instance) awaitDrained(o DrainOptions) {
	limit := time.NewTimer(o.Limit)
	defer limit.Stop()
	grace := time.NewTimer(o.Grace)
	defer grace.Stop()
	select {
	case <-grace.C:
		i.awaitNoConnections(limit.C, i.dead)
	case <-limit.C:
	case <-i.dead:
	case <-i.cut:
	}
}

// terminate asks the process to end and kills it when it does not.
func (i *Instance) terminate() {
	i.proc.signal(syscall.SIGTERM)
	grace := time.NewTimer(i.o.StopGrace)
	defer grace.Stop()
	select {
	case <-i.proc.done:
	case <-grace.C:
	case <-i.cut:
	}
	i.proc.signal(syscall.SIGKILL)
}
