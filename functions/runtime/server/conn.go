package server

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http/httptrace"
	"sync/atomic"
	"syscall"
)

// conn is a connection to the server. It remembers how the server's side ended, which
// the errors of net/http do not always tell: they may name what this side did next,
// such as closing the connection under a request that was being written.
type conn struct {
	net.Conn
	// ended: nothing more comes from the server. reset: it had not read all that was
	// sent (RFC 2525 section 2.17).
	ended, reset atomic.Bool
}

// Read implements net.Conn.
func (c *conn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.note(err)
	return n, err
}

// Write implements net.Conn.
func (c *conn) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	c.note(err)
	return n, err
}

func (c *conn) note(err error) {
	switch {
	case errors.Is(err, syscall.ECONNRESET):
		c.reset.Store(true)
		c.ended.Store(true)
	case errors.Is(err, io.EOF), errors.Is(err, syscall.EPIPE):
		c.ended.Store(true)
	}
}

// withConn has s know the connection of the request that is sent with the context.
func (s *served) withConn(ctx context.Context) context.Context {
	return httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(i httptrace.GotConnInfo) {
		c, _ := i.Conn.(*conn)
		s.conn.Store(c)
	}})
}

// broken reports whether the server's side of the connection ended under the request,
// given the error of the request; reset, whether something was unread then.
func (s *served) broken(err error) (ended, reset bool) {
	if c := s.conn.Load(); c != nil {
		ended, reset = c.ended.Load(), c.reset.Load()
	}
	reset = reset || errors.Is(err, syscall.ECONNRESET)
	ended = ended || reset || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.EPIPE)
	return ended, reset
}
