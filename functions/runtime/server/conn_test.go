package server

import (
	"errors"
	"fmt"
	"io"
	"net"
	"syscall"
	"testing"
)

// TestBroken: how a connection ended counts, whatever error this side made of it.
func TestBroken(t *testing.T) {
	for name, test := range map[string]struct {
		read, err    error
		ended, reset bool
	}{
		"the answer is not HTTP":               {err: errors.New("malformed HTTP response")},
		"it ended":                             {err: io.EOF, ended: true},
		"it ended in an answer":                {err: fmt.Errorf("broken: %w", io.ErrUnexpectedEOF), ended: true},
		"it ended as a body was written":       {err: syscall.EPIPE, ended: true},
		"it was reset":                         {err: syscall.ECONNRESET, ended: true, reset: true},
		"it ended, and this side closed it":    {read: io.EOF, err: net.ErrClosed, ended: true},
		"it was reset, and this side closed":   {read: syscall.ECONNRESET, err: net.ErrClosed, ended: true, reset: true},
		"it ended while it was idle":           {read: io.EOF, err: errors.New("http: server closed idle connection"), ended: true},
		"this side closed it":                  {read: net.ErrClosed, err: net.ErrClosed},
		"this side waited no longer for bytes": {read: timeoutError{}, err: timeoutError{}},
	} {
		t.Run(name, func(t *testing.T) {
			s, c := &served{}, &conn{Conn: readFails{err: test.read}}
			s.conn.Store(c)
			if test.read != nil {
				_, _ = c.Read(nil)
			}
			if ended, reset := s.broken(test.err); ended != test.ended || reset != test.reset {
				t.Errorf("ended %v, reset %v, want %v and %v", ended, reset, test.ended, test.reset)
			}
		})
	}
}

type readFails struct {
	net.Conn
	err error
}

func (r readFails) Read([]byte) (int, error) { return 0, r.err }

type timeoutError struct{}

func (timeoutError) Error() string   { return "i/o timeout" }
func (timeoutError) Timeout() bool   { return true }
func (timeoutError) Temporary() bool { return true }
