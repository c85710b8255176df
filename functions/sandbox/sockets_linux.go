package sandbox

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// The launcher's side: sockets that are made in the instance's network namespace and
// handed out of it. A socket keeps the namespace in which it was made
// (network_namespaces(7)), so the runner needs no right to enter it.

// stream makes a TCP socket. Those of IPv6 take IPv4, too.
func stream(family int) (int, error) {
	return unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
}

// listenAt makes a listener on an address and a port.
func listenAt(a netip.AddrPort) (int, error) {
	f := int(family(a.Addr()))
	fd, err := stream(f)
	if err != nil {
		return -1, os.NewSyscallError("socket", err)
	}
	if err := bindAndListen(fd, f, a); err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

func bindAndListen(fd, f int, a netip.AddrPort) error {
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
		return os.NewSyscallError("setsockopt", err)
	}
	if !a.Addr().IsLoopback() {
		if err := transparent(fd, f); err != nil {
			return err
		}
	}
	if err := unix.Bind(fd, sockaddr(a)); err != nil {
		return os.NewSyscallError("bind", err)
	}
	return os.NewSyscallError("listen", unix.Listen(fd, 512))
}

// transparent lets a socket take what was sent to any address (ip(7), IP_TRANSPARENT).
func transparent(fd, f int) error {
	if f == unix.AF_INET6 {
		if err := unix.SetsockoptInt(fd, unix.SOL_IPV6, unix.IPV6_V6ONLY, 0); err != nil {
			return os.NewSyscallError("setsockopt", err)
		}
		if err := unix.SetsockoptInt(fd, unix.SOL_IPV6, unix.IPV6_TRANSPARENT, 1); err != nil {
			return os.NewSyscallError("setsockopt", err)
		}
	}
	return os.NewSyscallError("setsockopt", unix.SetsockoptInt(fd, unix.SOL_IP, unix.IP_TRANSPARENT, 1))
}

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
}

// dnsSocket takes questions to all name servers.
func dnsSocket(f int) (int, error) {
	fd, err := unix.Socket(f, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return -1, os.NewSyscallError("socket", err)
	}
	err = transparent(fd, f)
	if err == nil && f == unix.AF_INET6 {
		err = unix.SetsockoptInt(fd, unix.SOL_IPV6, unix.IPV6_RECVPKTINFO, 1)
	}
	if err == nil {
		err = unix.SetsockoptInt(fd, unix.SOL_IP, unix.IP_PKTINFO, 1)
	}
	if err == nil {
		err = unix.Bind(fd, sockaddr(netip.AddrPortFrom(wildcard(f), dnsPort)))
	}
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

func wildcard(f int) netip.Addr {
	if f == unix.AF_INET6 {
		return netip.IPv6Unspecified()
	}
	return netip.IPv4Unspecified()
}

// handed are the sockets that a launcher hands out with frameReady, in this order;
// those of the way out only where there is one.
const (
	handedAPI = iota
	handedTCP
	handedSpans
	handedOutbound
	handedDNS
	handedDNSStream
	handedAll
)

// sockets makes those that are handed out.
func (n *netns) sockets() ([]int, error) {
	f := unix.AF_INET6
	if probe, err := unix.Socket(f, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err != nil {
		f = unix.AF_INET
	} else {
		unix.Close(probe)
	}
	at := func(port uint16) func() (int, error) {
		return func() (int, error) { return listenAt(netip.AddrPortFrom(wildcard(f), port)) }
	}
	loopback := func(port uint16) func() (int, error) {
		return func() (int, error) {
			return listenAt(netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), port))
		}
	}
	makers := []func() (int, error){
		handedAPI:       loopback(runtimePort),
		handedTCP:       func() (int, error) { return stream(unix.AF_INET) },
		handedSpans:     loopback(spansPort),
		handedOutbound:  at(outboundPort),
		handedDNS:       func() (int, error) { return dnsSocket(f) },
		handedDNSStream: at(dnsPort),
	}
	if !n.Outbound {
		makers = makers[:handedOutbound]
	}
	var out []int
	for _, m := range makers {
		fd, err := m()
		if err != nil {
			for _, fd := range out {
				unix.Close(fd)
			}
			return nil, err
		}
		out = append(out, fd)
	}
	return out, nil
}

// supply makes sockets for the runner until that closes its end.
func supply(fd int) {
	for {
		kind, body, _, err := receiveFrame(fd)
		if err != nil || supplyOne(fd, kind, body) != nil {
			return
		}
	}
}

// supplyOne makes one socket. Its error is one of the connection to the runner.
func supplyOne(fd int, kind byte, body []byte) (err error) {
	made := -1
	switch kind {
	case frameTCP:
		made, err = stream(unix.AF_INET)
	case frameListen:
		var a netip.AddrPort
		if err = a.UnmarshalText(body); err == nil {
			err = reopen(a.Addr())
		}
		if err == nil {
			made, err = listenAt(a)
		}
	default:
		err = fmt.Errorf("message %q is not known", kind)
	}
	if err != nil {
		return sendFrame(fd, frameError, []byte(err.Error()))
	}
	defer unix.Close(made)
	return sendFrame(fd, frameSocket, nil, made)
}

// The runner's side.

// sockets are what the runner has of an instance's network.
type sockets struct {
	// control leads to the launcher.
	control *os.File
	mu      sync.Mutex
	// spare are TCP sockets that were made ahead.
	spare []*os.File
	// handed are those of frameReady; nil: none or given away.
	handed []*os.File
}

func newSockets(control *os.File, fds []int) *sockets {
	s := &sockets{control: control}
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "socket")
		if i == handedTCP {
			s.spare, f = append(s.spare, f), nil
		}
		s.handed = append(s.handed, f)
	}
	return s
}

func (s *sockets) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, f := range append(s.handed, s.spare...) {
		if f != nil {
			f.Close()
		}
	}
	s.handed, s.spare = nil, nil
	s.control.Close()
}

// take gives one of the handed ones away; nil when there is none.
func (s *sockets) take(which int) *os.File {
	s.mu.Lock()
	defer s.mu.Unlock()
	if which >= len(s.handed) {
		return nil
	}
	f := s.handed[which]
	s.handed[which] = nil
	return f
}

// listener makes a listener of one of the handed ones.
func (s *sockets) listener(which int) (net.Listener, error) {
	f := s.take(which)
	if f == nil {
		return nil, errors.New("the listener of the sandbox is given away already")
	}
	defer f.Close()
	return net.FileListener(f)
}

// ask has the launcher make a socket.
func (s *sockets) ask(kind byte, body []byte) (*os.File, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if kind == frameTCP && len(s.spare) > 0 {
		f := s.spare[0]
		s.spare = s.spare[1:]
		return f, nil
	}
	raw, err := s.control.SyscallConn()
	if err != nil {
		return nil, err
	}
	var out *os.File
	var asked error
	// Blocking, for the answer is there within microseconds: the launcher does nothing
	// else.
	err = raw.Control(func(fd uintptr) {
		if asked = sendFrame(int(fd), kind, body); asked != nil {
			return
		}
		var got byte
		var files []int
		got, body, files, asked = receiveFrame(int(fd))
		switch {
		case asked != nil:
		case got == frameSocket && len(files) == 1:
			out = os.NewFile(uintptr(files[0]), "socket")
		default:
			asked = errors.New(string(body))
		}
	})
	if err = errors.Join(err, asked); err != nil {
		return nil, fmt.Errorf("a socket of the sandbox's network: %w", err)
	}
	return out, nil
}

// dial connects to a port on the loopback interface of the instance.
func (s *sockets) dial(ctx context.Context, port int) (net.Conn, error) {
	to := netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), uint16(port))
	refuse := func(err error) error {
		return &net.OpError{Op: "dial", Net: "tcp", Addr: net.TCPAddrFromAddrPort(to), Err: err}
	}
	f, err := s.ask(frameTCP, nil)
	if err != nil {
		return nil, refuse(err)
	}
	if err := connect(ctx, f, to); err != nil {
		if errors.Is(err, unix.ECONNREFUSED) { // it can be tried again (connect(2))
			s.mu.Lock()
			s.spare = append(s.spare, f)
			s.mu.Unlock()
		} else {
			f.Close()
		}
		return nil, refuse(err)
	}
	defer f.Close()
	return net.FileConn(f)
}

// connect connects a socket that does not block.
func connect(ctx context.Context, f *os.File, to netip.AddrPort) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	_ = f.SetWriteDeadline(time.Time{})
	var result error
	if err := raw.Control(func(fd uintptr) { result = unix.Connect(int(fd), sockaddr(to)) }); err != nil {
		return err
	}
	if result == nil || !errors.Is(result, unix.EINPROGRESS) {
		return os.NewSyscallError("connect", result)
	}
	if d, ok := ctx.Deadline(); ok {
		_ = f.SetWriteDeadline(d)
	}
	stop := context.AfterFunc(ctx, func() { _ = f.SetWriteDeadline(time.Unix(1, 0)) })
	defer stop()
	err = raw.Write(func(fd uintptr) bool {
		var code int
		if code, result = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ERROR); result != nil {
			return true
		}
		if code != 0 {
			result = unix.Errno(code)
			return true
		}
		_, result = unix.Getpeername(int(fd))
		return !errors.Is(result, unix.ENOTCONN)
	})
	if err != nil {
		return errors.Join(context.Cause(ctx), err)
	}
	return os.NewSyscallError("connect", result)
}
