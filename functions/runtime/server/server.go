// Package server runs ordinary HTTP servers: a program that listens on the port
// in the variable PORT (the container contract of Cloud Run, Heroku and others).
// Requests are passed on as they are: HTTP/1.1, with streaming in both directions
// and upgrades such as WebSocket, or HTTP/2 without TLS, with trailers, which is
// what gRPC needs. Contracts whose processes are HTTP servers with some rules more
// are built on it.
//
// Ready means that the port takes connections. No system tells a stranger when a
// process begins to listen, so the contract tries to connect, first every
// millisecond, then every five, until the start timeout. A server therefore sees
// a few connections without a request.
package server

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/propagation"

	"github.com/penstock-gateway/penstock/functions/instance"
	"github.com/penstock-gateway/penstock/functions/sandbox"
)

const (
	pollFirst = 200 * time.Microsecond
	pollMost  = 5 * time.Millisecond
	// dialTimeout bounds one connection to a server whose backlog is full.
	dialTimeout = 5 * time.Second
	// wrapperEnds is how long a process may outlive the program that it wraps.
	wrapperEnds = 250 * time.Millisecond
)

// Options are of one function.
type Options struct {
	// Command and arguments.
	Command []string
	// Env are variables of the process besides PORT, HOST and K_SERVICE.
	Env map[string]string
	// PortVariables hold the port, too. The first is the one that errors name.
	PortVariables []string
	// Concurrency is how many connections are kept open to the server.
	Concurrency int
	// HTTP2 means that the server speaks HTTP/2 without TLS, by prior knowledge.
	HTTP2 bool
	// IdleTimeout is how long a connection without a request is kept. It must be
	// shorter than the server's own. Default 1 min.
	IdleTimeout time.Duration
	// Workers means that requests are handled by children of the process, which
	// puts others in their place when they end: a connection that ends without an
	// answer is the end of one.
	Workers bool
	// Uncancelable means that a request that was begun cannot be given up by closing
	// its connection: one past its deadline costs the process its life.
	Uncancelable bool
	// Inspect looks at the head of an answer, and may return an instance.Failed for
	// the caller in its place; nil: none.
	Inspect func(*http.Response) error
}

// New makes the contract of instances.
func New(o Options) instance.Factory {
	return func(h instance.Host) (instance.Contract, error) {
		port := sandbox.ServerPort
		if !h.Network.Private() {
			var err error
			if port, err = ports.take(); err != nil {
				return nil, fmt.Errorf("find a free port: %w", err)
			}
		}
		c := &contract{o: o, host: h, port: port, exited: make(chan struct{})}
		c.transport = c.newTransport()
		c.proxy = &httputil.ReverseProxy{
			Rewrite: c.rewrite, Transport: c.transport, FlushInterval: -1,
			ModifyResponse: c.head, ErrorHandler: c.failed,
			ErrorLog: slog.NewLogLogger(h.Logger.Handler(), slog.LevelDebug),
		}
		if o.HTTP2 {
			// Bodies without a length are passed on at once all the same. An answer that
			// is a head alone must stay one: it holds the status of gRPC then.
			c.proxy.FlushInterval = 0
		}
		return c, nil
	}
}

func (c *contract) newTransport() *http.Transport {
	t := &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			ctx, cancel := context.WithTimeout(ctx, dialTimeout)
			defer cancel()
			dialed, err := c.host.Network.Dial(ctx, c.port)
			if err != nil {
				return nil, &dialError{err}
			}
			return &conn{Conn: dialed}, nil
		},
		DisableCompression: true, MaxIdleConns: 0, MaxIdleConnsPerHost: max(c.o.Concurrency, 1),
		IdleConnTimeout: cmp.Or(c.o.IdleTimeout, time.Minute),
	}
	if c.o.HTTP2 {
		t.Protocols = new(http.Protocols)
		t.Protocols.SetUnencryptedHTTP2(true)
	}
	return t
}

// head takes the head of an answer, with which the handler's own time ends.
func (c *contract) head(r *http.Response) error {
	invocation(r.Request).End()
	if c.o.Inspect != nil {
		return c.o.Inspect(r)
	}
	return nil
}

type contract struct {
	o         Options
	host      instance.Host
	port      int
	transport *http.Transport
	proxy     *httputil.ReverseProxy
	exited    chan struct{}
}

func (c *contract) address() string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(c.port)) }

// Command implements instance.Contract.
func (c *contract) Command() instance.Command {
	env := map[string]string{
		"PORT": strconv.Itoa(c.port),
		// For servers that ask which address to listen on; others take all of them.
		"HOST":      "127.0.0.1",
		"K_SERVICE": c.host.Name,
	}
	for _, name := range c.o.PortVariables {
		env[name] = strconv.Itoa(c.port)
	}
	maps.Copy(env, c.o.Env)
	return instance.Command{Args: c.o.Command, Env: env}
}

// WaitReady implements instance.Contract.
func (c *contract) WaitReady(ctx context.Context) error {
	pause := pollFirst
	for {
		if c.accepts(ctx) {
			return nil
		}
		timer := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			timer.Stop()
			if errors.Is(ctx.Err(), context.DeadlineExceeded) {
				v := append(c.o.PortVariables[:len(c.o.PortVariables):len(c.o.PortVariables)], "PORT")[0]
				return fmt.Errorf("nothing listens on the port in %s (%d on 127.0.0.1) within the start timeout: the server must read the variable %s", v, c.port, v)
			}
			return ctx.Err()
		case <-timer.C:
		}
		pause = min(pause*9/8, pollMost)
	}
}

// accepts reports whether the port takes connections.
func (c *contract) accepts(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	conn, err := c.host.Network.Dial(ctx, c.port)
	if err != nil {
		return false
	}
	conn.Close()
	return true
}

// Cancels implements instance.Contract: the connection is closed.
func (c *contract) Cancels() bool { return !c.o.Uncancelable }

// Exited implements instance.Contract. Connections of the process are closed by
// the kernel, which ends what waits for them.
func (c *contract) Exited() { close(c.exited) }

// Close implements instance.Contract.
func (c *contract) Close() {
	c.transport.CloseIdleConnections()
	if !c.host.Network.Private() {
		ports.give(c.port)
	}
}

type invocationKey struct{}

// served is what one request brings to the functions of the proxy.
type served struct {
	inv  *instance.Invocation
	err  error
	conn atomic.Pointer[conn] // the one that it was sent on; nil: not known
}

func invocation(r *http.Request) *instance.Invocation {
	return r.Context().Value(invocationKey{}).(*served).inv
}

// Serve implements instance.Contract. The handler's own time ends with the head of
// its answer.
func (c *contract) Serve(w http.ResponseWriter, r *http.Request, inv *instance.Invocation) (err error) {
	s := &served{inv: inv}
	if c.o.Concurrency == 1 {
		c.host.OutputOf(inv.ID)
	}
	inv.Begin()
	defer func() {
		inv.End()
		switch p := recover(); {
		case p == nil:
			err = s.err
		case p != http.ErrAbortHandler: //nolint:errorlint // a value of panic, not an error that may be wrapped
			panic(p)
		case context.Cause(r.Context()) != nil: // the deadline, or the caller went away
			err = context.Cause(r.Context())
		case c.o.HTTP2 && !c.gone(): // it reset this stream and goes on
			err = &instance.Failed{Status: http.StatusBadGateway, Kind: instance.KindBadResponse, Detail: "the server broke off its answer"}
		default: // the proxy broke off in the middle of the answer
			err = instance.ErrDied
		}
	}()
	c.proxy.ServeHTTP(w, r.WithContext(s.withConn(context.WithValue(r.Context(), invocationKey{}, s))))
	return nil
}

// rewrite passes the request on as it came, with the trace context of this hop.
func (c *contract) rewrite(p *httputil.ProxyRequest) {
	p.SetURL(&url.URL{Scheme: "http", Host: c.address()})
	p.Out.URL.Path, p.Out.URL.RawPath, p.Out.URL.RawQuery = p.In.URL.Path, p.In.URL.RawPath, p.In.URL.RawQuery
	p.Out.Host = p.In.Host
	if c.o.HTTP2 && p.Out.Body != nil {
		// A stream that the server ends waits for who reads the request's body, and
		// closes that for it; the proxy's own wrapper would not let it.
		p.Out.Body = p.In.Body
	}
	// They come from the proxy in front of us, which knows what to trust.
	for _, h := range []string{"Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto"} {
		if v, ok := p.In.Header[h]; ok {
			p.Out.Header[h] = v
		}
	}
	p.Out.Header.Set("X-Request-Id", invocation(p.In).ID)
	propagation.TraceContext{}.Inject(p.In.Context(), propagation.HeaderCarrier(p.Out.Header))
	if _, ok := p.Out.Header["User-Agent"]; !ok {
		p.Out.Header["User-Agent"] = nil // Go would add its own
	}
}

// failed says what an error of the server means for the caller.
func (c *contract) failed(_ http.ResponseWriter, r *http.Request, err error) {
	s := r.Context().Value(invocationKey{}).(*served)
	var dial *dialError
	var answer *instance.Failed
	switch {
	case errors.As(err, &answer):
		s.err = answer
	case context.Cause(r.Context()) != nil:
		s.err = context.Cause(r.Context())
	case errors.As(err, &dial):
		// It did not take the connection, so it has not seen the request.
		s.err = instance.RefusedUnread
	case c.ended(s, err):
		s.err = instance.ErrDied
		if _, reset := s.broken(err); reset && r.ContentLength == 0 && !c.o.HTTP2 {
			// A process that ends with something unread resets its connections. A
			// request without body cannot have been begun then, if it was alone on its.
			s.err = instance.RefusedUnread
		}
	default:
		// The error quotes what the server wrote, which is not for the caller.
		c.host.Logger.WarnContext(r.Context(), "the server's answer could not be read", "request_id", s.inv.ID, "error", err.Error())
		s.err = &instance.Failed{
			Status: http.StatusBadGateway, Kind: instance.KindBadResponse,
			Detail: "the server's answer is not valid HTTP; its log has more, with this request id",
		}
	}
}

// ended reports whether an error is that of a process that ended.
func (c *contract) ended(s *served, err error) bool {
	if broken, _ := s.broken(err); !broken {
		return false
	}
	return c.o.Workers || c.gone()
}

// gone reports whether the process has ended, or is about to. The kernel closes the
// connections of a process that is ending, so that who sees them break asks whether it
// is, however long its end takes. Only a program behind another one, such as a shell's
// child, may end before the process does: that is waited for.
func (c *contract) gone() bool {
	if c.host.Ending != nil && c.host.Ending() {
		return true
	}
	timer := time.NewTimer(wrapperEnds)
	defer timer.Stop()
	select {
	case <-c.exited:
		return true
	case <-timer.C:
		return false // it only closed a connection
	}
}

type dialError struct{ error }

func (e *dialError) Unwrap() error { return e.error }

// portPool hands out free ports and no port twice at once: two servers that start
// together would otherwise be given the same one.
type portPool struct {
	mu    sync.Mutex
	taken map[int]bool
}

var ports = portPool{taken: map[int]bool{}}

func (p *portPool) take() (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for range 100 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return 0, err
		}
		port := l.Addr().(*net.TCPAddr).Port
		l.Close()
		if !p.taken[port] {
			p.taken[port] = true
			return port, nil
		}
	}
	return 0, errors.New("all free ports are taken by other instances")
}

func (p *portPool) give(port int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.taken, port)
}
