package sandbox

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// What the runner and a launcher say to each other over a stream socket: frames of a
// kind, a length (4 bytes) and a body, with file descriptors at the first byte.
const (
	frameAhead  = 'a' // to the launcher: what to set up while it waits
	frameReady  = 'r' // from it: done, with the sockets of its network
	frameSpec   = 's' // to it: what to run, with stdout and stderr
	frameTCP    = 't' // to it: make a TCP socket
	frameListen = 'l' // to it: make a listener on an address
	frameSocket = 'f' // from it: here it is
	frameError  = 'e' // from it: why not
)

// maxFrame bounds a frame; the arguments and variables of a program are at most 2 MiB
// (execve(2)).
const maxFrame = 8 << 20

// maxFDs bounds the descriptors of a frame.
const maxFDs = 16

func sendFrame(fd int, kind byte, body []byte, files ...int) error {
	b := binary.NativeEndian.AppendUint32([]byte{kind}, uint32(len(body)))
	b = append(b, body...)
	var rights []byte
	if len(files) > 0 {
		rights = unix.UnixRights(files...)
	}
	for first := true; len(b) > 0; first = false {
		if !first {
			rights = nil
		}
		n, err := unix.SendmsgN(fd, b, rights, nil, unix.MSG_NOSIGNAL)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return os.NewSyscallError("sendmsg", err)
		}
		b = b[n:]
	}
	return nil
}

// receiveFrame returns io.EOF when the other end is closed.
func receiveFrame(fd int) (kind byte, body []byte, files []int, err error) {
	header, control := make([]byte, 5), make([]byte, unix.CmsgSpace(maxFDs*4))
	var n, cn int
	for {
		n, cn, _, _, err = unix.Recvmsg(fd, header, control, unix.MSG_CMSG_CLOEXEC)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		return 0, nil, nil, os.NewSyscallError("recvmsg", err)
	}
	if n == 0 {
		return 0, nil, nil, io.EOF
	}
	messages, err := unix.ParseSocketControlMessage(control[:cn])
	if err != nil {
		return 0, nil, nil, err
	}
	for _, m := range messages {
		if fds, err := unix.ParseUnixRights(&m); err == nil {
			files = append(files, fds...)
		}
	}
	if err := readFull(fd, header[n:]); err != nil {
		return 0, nil, files, err
	}
	length := binary.NativeEndian.Uint32(header[1:])
	if length > maxFrame {
		return 0, nil, files, fmt.Errorf("a message of %d bytes", length)
	}
	body = make([]byte, length)
	return header[0], body, files, readFull(fd, body)
}

func readFull(fd int, b []byte) error {
	for len(b) > 0 {
		n, err := unix.Read(fd, b)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return os.NewSyscallError("read", err)
		case n == 0:
			return io.ErrUnexpectedEOF
		default:
			b = b[n:]
		}
	}
	return nil
}

// packer writes values one after another; unpacker reads them in the same order.
// Unlike encoding/gob it costs a process that lives for some milliseconds nothing.
type packer struct{ b []byte }

func (p *packer) number(n uint64) { p.b = binary.AppendUvarint(p.b, n) }

func (p *packer) flag(v bool) {
	if v {
		p.number(1)
	} else {
		p.number(0)
	}
}

func (p *packer) string(s string) {
	p.number(uint64(len(s)))
	p.b = append(p.b, s...)
}

func (p *packer) strings(list []string) {
	p.number(uint64(len(list)))
	for _, s := range list {
		p.string(s)
	}
}

func (p *packer) paths(list []path) {
	p.number(uint64(len(list)))
	for _, v := range list {
		p.string(v.Path)
		p.flag(v.Write)
		p.string(v.From)
	}
}

type unpacker struct {
	b   []byte
	err error
}

func (u *unpacker) number() uint64 {
	n, size := binary.Uvarint(u.b)
	if size <= 0 {
		u.err, u.b = io.ErrUnexpectedEOF, nil
		return 0
	}
	u.b = u.b[size:]
	return n
}

func (u *unpacker) flag() bool { return u.number() != 0 }

func (u *unpacker) string() string {
	n := u.number()
	if n > uint64(len(u.b)) {
		u.err, u.b = io.ErrUnexpectedEOF, nil
		return ""
	}
	s := string(u.b[:n])
	u.b = u.b[n:]
	return s
}

// count is the length of a list, each of whose values has at least one byte.
func (u *unpacker) count() int {
	n := u.number()
	if n > uint64(len(u.b)) {
		u.err, u.b = io.ErrUnexpectedEOF, nil
		return 0
	}
	return int(n)
}

func (u *unpacker) strings() (out []string) {
	for range u.count() {
		out = append(out, u.string())
	}
	return out
}

func (u *unpacker) paths() (out []path) {
	for range u.count() {
		out = append(out, path{Path: u.string(), Write: u.flag(), From: u.string()})
	}
	return out
}
