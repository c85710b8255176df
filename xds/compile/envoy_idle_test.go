package compile_test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"
)

// endingListener tells who ends its connections.
type endingListener struct {
	net.Listener
	ends chan string
}

func (l *endingListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &endingConn{Conn: c, ends: l.ends}, nil
}

type endingConn struct {
	net.Conn
	ends chan string
	once sync.Once
}

func (c *endingConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if errors.Is(err, io.EOF) {
		c.once.Do(func() { c.ends <- "proxy" })
	}
	return n, err
}

func (c *endingConn) Close() error {
	c.once.Do(func() { c.ends <- "server" })
	return c.Conn.Close()
}

// TestIdleConnections: a connection to a backend is closed by the proxy, before the
// server does it: else a request that arrives in that moment is lost. What is in use
// is not idle, however long it takes.
func TestIdleConnections(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	ends, finish := make(chan string, 10), make(chan struct{})
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if req.URL.Path == "/slow" {
			<-finish
		}
		fmt.Fprint(w, "served")
	}))
	s.Listener = &endingListener{Listener: s.Listener, ends: ends}
	s.Config.IdleTimeout = 5 * time.Second // that of Node.js
	s.Start()
	t.Cleanup(s.Close)
	port := r.serve(t, replaceAll(gatewayOn+`
---
kind: Backend
name: one
static: {endpoints: [SERVER]}
---
kind: Route
name: all
rules: [{name: all, matches: [{path: {prefix: /}}], forward: {backends: [{backend: one}]}}]
`, "SERVER", endpointYAML(endpointOf(t, s.Listener.Addr().String()), 0)))
	slow := make(chan answer, 1)
	go func() { slow <- r.do(t, port, "GET", "x.test/slow") }()
	if a := r.do(t, port, "GET", "x.test/"); a.status != 200 {
		t.Fatalf("%d %s", a.status, a.body)
	}
	if who := <-ends; who != "proxy" {
		t.Errorf("the %s closed the idle connection first", who)
	}
	close(finish)
	if a := <-slow; a.status != 200 || a.body != "served" {
		t.Errorf("a request that takes longer than an idle connection lasts: %d %s", a.status, a.body)
	}
}
