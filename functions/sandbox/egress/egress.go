//go:build linux

// Package egress leads the connections of a sandbox out: it takes them from listeners
// in the sandbox's network, looks at where they are to go, and makes them itself, so
// that what was looked at is what is connected to. A sandbox reaches other hosts, and
// nothing of this machine that it is not explicitly allowed.
package egress

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"
)

const (
	// MaxConnections bounds the connections of one sandbox at once.
	MaxConnections = 1024
	dialTimeout    = 30 * time.Second
)

// Policy is what one sandbox may reach besides other hosts.
type Policy struct {
	// Allow are services of this machine.
	Allow []netip.AddrPort
	// Refused hears of connections that are not made; nil: nobody does.
	Refused func(to netip.AddrPort, why string)
}

// Server passes on what comes from one sandbox.
type Server struct {
	policy Policy
	ctx    context.Context
	cancel context.CancelFunc
	// room has a place for each connection, questions one for each question to a name
	// server; all are those of all sandboxes together.
	room, questions chan struct{}
	all             *shared
	// names are the name servers of this machine, as they are asked.
	names func() []netip.AddrPort

	mu     sync.Mutex
	open   map[io.Closer]struct{}
	closed bool
}

// New makes a server that serves nothing yet.
func New(p Policy) *Server { return newServer(p, ofProcess()) }

func newServer(p Policy, all *shared) *Server {
	s := &Server{
		policy: p, all: all, names: Resolvers, open: map[io.Closer]struct{}{},
		room: make(chan struct{}, min(MaxConnections, cap(all.connections)/4)), questions: make(chan struct{}, min(maxQuestions, cap(all.questions)/4)),
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	return s
}

// Close ends all connections and listeners.
func (s *Server) Close() {
	s.cancel()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	for c := range s.open {
		c.Close()
	}
	s.open = nil
}

// keep has something closed with the server; false: that is closed already.
func (s *Server) keep(c io.Closer) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		c.Close()
		return false
	}
	s.open[c] = struct{}{}
	return true
}

func (s *Server) drop(c io.Closer) {
	c.Close()
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.open, c)
}

// Serve takes connections whose own address is the one that they are to go to.
func (s *Server) Serve(l net.Listener) {
	s.accept(l, func(c net.Conn) {
		to, _ := netip.ParseAddrPort(c.LocalAddr().String())
		to = netip.AddrPortFrom(to.Addr().Unmap(), to.Port())
		if to.Port() == namePort && slices.ContainsFunc(s.names(), func(r netip.AddrPort) bool { return r.Addr() == to.Addr() }) {
			s.passToNames(c)
			return
		}
		if why := s.refusal(to); why != "" {
			s.refused(to, why)
			reset(c)
			return
		}
		s.pass(c, to, copyTo)
	})
}

// Forward takes connections to one service that is allowed.
func (s *Server) Forward(l net.Listener, to netip.AddrPort) {
	s.accept(l, func(c net.Conn) { s.pass(c, to, copyTo) })
}

// ServeNames takes connections to name servers.
func (s *Server) ServeNames(l net.Listener) { s.accept(l, s.passToNames) }

func (s *Server) passToNames(c net.Conn) {
	if names := s.names(); len(names) > 0 {
		s.pass(c, names[0], copyQuestions)
	} else {
		reset(c)
	}
}

func (s *Server) accept(l net.Listener, serve func(net.Conn)) {
	if !s.keep(l) {
		return
	}
	go func() {
		defer s.drop(l)
		for {
			c, err := l.Accept()
			if err != nil {
				if s.ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
					return
				}
				// The runner is out of descriptors, or the connection is gone already.
				select {
				case <-s.ctx.Done():
					return
				case <-time.After(10 * time.Millisecond):
				}
				continue
			}
			leave, why := enter(s.room, s.all.connections)
			if why != "" {
				to, _ := netip.ParseAddrPort(c.LocalAddr().String())
				s.refused(to, why)
				reset(c)
				continue
			}
			go func() {
				defer leave()
				if s.keep(c) {
					defer s.drop(c)
					serve(c)
				}
			}()
		}
	}()
}

func (s *Server) refused(to netip.AddrPort, why string) {
	if s.policy.Refused != nil {
		s.policy.Refused(to, why)
	}
}

// pass connects and passes bytes both ways until both have ended: those that come back
// as they are, those that go out by send.
func (s *Server) pass(in net.Conn, to netip.AddrPort, send func(to, from net.Conn)) {
	d := net.Dialer{Timeout: dialTimeout}
	out, err := d.DialContext(s.ctx, "tcp", to.String())
	if err != nil {
		reset(in)
		return
	}
	if !s.keep(out) {
		return
	}
	defer s.drop(out)
	done := make(chan struct{})
	go func() {
		defer close(done)
		send(out, in)
	}()
	copyTo(in, out)
	<-done
}

// copyTo passes one direction on, and its end: an orderly one as such, another as a
// reset.
func copyTo(to, from net.Conn) {
	_, err := io.Copy(to, from) // by splice(2)
	ended(to, from, err)
}

// ended passes the end of one direction on.
func ended(to, from net.Conn, err error) {
	if err != nil {
		reset(to)
		reset(from)
		return
	}
	if t, ok := to.(*net.TCPConn); ok {
		_ = t.CloseWrite()
	}
}

// reset closes a connection so that its other end sees a failure.
func reset(c net.Conn) {
	if t, ok := c.(*net.TCPConn); ok {
		_ = t.SetLinger(0)
	}
	c.Close()
}
