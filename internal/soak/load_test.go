package soak

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// answer is what a route is to answer: by one of these upstreams, with this mark
// in a response header.
type answer struct {
	servers []string
	mark    string
}

// span is the time in which an answer is right. A zero end is now.
type span struct {
	answer
	from, to time.Time
}

// target is a route that clients call all the time.
type target struct {
	name, host, path string
	token            string

	mu    sync.Mutex
	spans []span
}

// begin lets a new answer be right from now on, besides the old one: the change
// that leads to it is under way.
func (g *target) begin(a answer) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.spans = append(g.spans, span{answer: a, from: time.Now()})
}

// settle ends all answers but the last: the change has been acknowledged.
func (g *target) settle() {
	g.mu.Lock()
	defer g.mu.Unlock()
	now := time.Now()
	for i := range g.spans[:len(g.spans)-1] {
		if g.spans[i].to.IsZero() {
			g.spans[i].to = now
		}
	}
}

func (g *target) last() answer {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.spans[len(g.spans)-1].answer
}

// right reports whether an answer was right at some time between start and end.
func (g *target) right(server, mark string, start, end time.Time) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.ContainsFunc(g.spans, func(s span) bool {
		return s.mark == mark && slices.Contains(s.servers, server) && !s.from.After(end) && (s.to.IsZero() || !s.to.Before(start))
	})
}

// client is one keep-alive connection to a listener.
type client struct {
	base string
	h2   bool
	http *http.Client
	// dials are connections made; cuts those that the other end closed, or said it
	// would close.
	dials, cuts atomic.Int64
	n           int
	// getOnly: no bodies. Envoy closes a connection when it refuses a request
	// whose body it has not read.
	getOnly bool
}

func newClient(scheme, address string, h2 bool) *client {
	c := &client{base: scheme + "://" + address, h2: h2}
	tr := transport(h2)
	tr.TLSClientConfig = &tls.Config{InsecureSkipVerify: true} // which certificate is shown is another check
	tr.DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
		c.dials.Add(1)
		conn, err := new(net.Dialer).DialContext(ctx, network, address)
		return &watched{Conn: conn, cuts: &c.cuts}, err
	}
	c.http = &http.Client{Transport: tr, Timeout: patience}
	return c
}

// watched counts when the other end closes the connection first.
type watched struct {
	net.Conn
	cuts   *atomic.Int64
	closed atomic.Bool
}

func (w *watched) Read(b []byte) (int, error) {
	n, err := w.Conn.Read(b)
	if err != nil && w.closed.CompareAndSwap(false, true) {
		w.cuts.Add(1)
	}
	return n, err
}

func (w *watched) Close() error {
	w.closed.Store(true)
	return w.Conn.Close()
}

// kept checks that the connection was never cut. Go's client of HTTP/1.1 gives up
// one by itself when the machine is so busy that it does not learn within 50 ms
// that its own request was written; that of HTTP/2 only when it is told to go.
func (c *client) kept(t *testing.T, who string) {
	t.Helper()
	if cuts, dials := c.cuts.Load(), c.dials.Load(); cuts > 0 || c.h2 && dials != 1 {
		t.Errorf("the connection of %s to %s was cut %d times and opened %d times, want once", who, c.base, cuts, dials)
	}
}

// reply is what came back.
type reply struct {
	status int
	header http.Header
	body   string
}

// do sends one request, every third one with a body.
func (c *client) do(host, path, token string) (reply, error) {
	c.n++
	method, size := http.MethodGet, 0
	if c.n%3 == 0 && !c.getOnly {
		method, size = http.MethodPost, 1000
	}
	req, err := http.NewRequest(method, c.base+path, bytes.NewReader(make([]byte, size)))
	if err != nil {
		return reply{}, err
	}
	req.Host = host
	req.Header.Set("X-Nonce", fmt.Sprintf("%d-%d", c.n, size))
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	res, err := c.http.Do(req)
	if err != nil {
		return reply{}, err
	}
	defer res.Body.Close()
	if res.Close {
		c.cuts.Add(1)
	}
	b, err := io.ReadAll(res.Body)
	return reply{res.StatusCode, res.Header, string(b)}, err
}

// server checks that the reply is the answer to the last request, and tells which
// upstream gave it.
func (c *client) server(path string, r reply) (string, error) {
	size := 0
	if c.n%3 == 0 && !c.getOnly {
		size = 1000
	}
	id, rest, _ := strings.Cut(r.body, " ")
	if want := fmt.Sprintf("%s %d-%d %d", path, c.n, size, size); r.status != http.StatusOK || rest != want {
		return "", fmt.Errorf("%d %q, want 200 and an upstream with %q; headers %v", r.status, r.body, want, r.header)
	}
	return id, nil
}

// load calls targets on 8 connections at an even pace.
type load struct {
	clients []*client
	done    atomic.Int64
	failed  atomic.Int64
	wrong   atomic.Int64
	ended   chan struct{}
	halted  sync.Once
	wg      sync.WaitGroup
	begun   time.Time
}

// maxReports bounds the failures that are printed.
const maxReports = 10

// run starts one worker per client. targetsOf says what a client may call.
func (l *load) run(t *testing.T, every time.Duration, targetsOf func(i int) []*target) {
	l.ended, l.begun = make(chan struct{}), time.Now()
	t.Cleanup(l.halt)
	for i, c := range l.clients {
		targets := targetsOf(i)
		l.wg.Go(func() {
			pace := time.NewTicker(every)
			defer pace.Stop()
			defer c.http.CloseIdleConnections()
			for n := i; ; n++ {
				select {
				case <-l.ended:
					return
				case <-pace.C:
				}
				l.once(t, c, targets[n%len(targets)])
			}
		})
	}
}

func (l *load) once(t *testing.T, c *client, g *target) {
	start := time.Now()
	r, err := c.do(g.host, g.path, g.token)
	end := time.Now()
	l.done.Add(1)
	server := ""
	if err == nil {
		server, err = c.server(g.path, r)
	}
	switch {
	case err != nil:
		if l.failed.Add(1) <= maxReports {
			t.Errorf("%s, %s after the start: %v", g.name, start.Sub(l.begun).Round(time.Millisecond), err)
		}
	case !g.right(server, r.header.Get("X-Mark"), start, end):
		if l.wrong.Add(1) <= maxReports {
			t.Errorf("%s, %s after the start: answered by %s with mark %q, want %+v", g.name, start.Sub(l.begun).Round(time.Millisecond), server, r.header.Get("X-Mark"), g.last())
		}
	}
}

// pass waits until n more requests are done.
func (l *load) pass(t *testing.T, n int64) {
	t.Helper()
	goal := l.done.Load() + n
	waitFor(t, "requests to be done", func() bool { return l.done.Load() >= goal })
}

// halt stops the workers.
func (l *load) halt() {
	l.halted.Do(func() { close(l.ended) })
	l.wg.Wait()
}

// end stops the workers and judges.
func (l *load) end(t *testing.T) {
	t.Helper()
	l.halt()
	took := time.Since(l.begun)
	t.Logf("%d requests in %s (%.0f/s): %d failed, %d wrong", l.done.Load(), took.Round(time.Millisecond),
		float64(l.done.Load())/took.Seconds(), l.failed.Load(), l.wrong.Load())
	for i, c := range l.clients {
		c.kept(t, fmt.Sprintf("client %d", i))
	}
}
