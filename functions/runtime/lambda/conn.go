package lambda

import (
	"errors"
	"net"
	"sync"
	"syscall"
	"time"
)

type connKey struct{}

// listener counts connections, so that one can wait for their end.
type listener struct {
	net.Listener
	open sync.WaitGroup
}

func (l *listener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	l.open.Add(1)
	return &conn{Conn: c, closed: sync.OnceFunc(l.open.Done)}, nil
}

// wait waits until all connections are closed, at most d.
func (l *listener) wait(d time.Duration) {
	done := make(chan struct{})
	go func() { l.open.Wait(); close(done) }()
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-done:
	case <-timer.C:
	}
}

// conn is a connection of a runtime. It knows whether the runtime ended before
// it had read what was sent to it last.
//
// When a process ends, the kernel closes its sockets. If one of them holds bytes
// that the process has not read, or gets some afterwards, the kernel answers with
// a reset instead of an orderly end (RFC 2525 §2.17). So a reset after an event
// was sent says: no code of the handler ran for it, and the request may go to
// another instance, whatever its method.
type conn struct {
	net.Conn
	closed func()

	// Whether it is the runtime's own is found out at its first request.
	once sync.Once
	own  bool

	mu    sync.Mutex
	ended bool // nothing more comes from the runtime
	reset bool
}

// owned reports whether the other end is the runtime's; owns finds it out.
func (c *conn) owned(owns func(net.Conn) bool) bool {
	c.once.Do(func() { c.own = owns(c) })
	return c.own
}

// Read implements net.Conn.
func (c *conn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	var timeout net.Error
	if err != nil && !(errors.As(err, &timeout) && timeout.Timeout()) {
		// An event that met the closed socket leaves its reset as a pending error.
		reset := errors.Is(err, syscall.ECONNRESET) || c.pending() != nil
		c.mu.Lock()
		c.ended, c.reset = true, c.reset || reset
		c.mu.Unlock()
	}
	return n, err
}

// Close implements net.Conn.
func (c *conn) Close() error {
	err := c.Conn.Close()
	c.closed()
	return err
}

// pending is the socket's pending error.
func (c *conn) pending() error {
	tcp, ok := c.Conn.(*net.TCPConn)
	if !ok {
		return nil
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return nil
	}
	var code int
	if raw.Control(func(fd uintptr) { code, err = syscall.GetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_ERROR) }) != nil || err != nil || code == 0 {
		return nil
	}
	return syscall.Errno(code)
}

// send reports whether an event may be sent: the runtime has not ended.
func (c *conn) send() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return !c.ended
}

// unread reports whether the runtime ended with something unread.
func (c *conn) unread() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.reset
}
