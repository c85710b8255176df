package sandbox

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// netlinkBatch is some messages of one netlink family, sent as one datagram
// (netlink(7)). It is written here, without a library, because the launcher has to
// be initialized within a few milliseconds.
type netlinkBatch struct {
	b []byte
	// start is where the message begins that is being written, messages how many
	// there are, acks how many of them are acknowledged.
	start, messages, acks int
}

// message begins a message, with its fixed header after that of netlink.
func (n *netlinkBatch) message(kind, flags uint16, header []byte) {
	n.end()
	n.start = len(n.b)
	n.messages++
	flags |= unix.NLM_F_REQUEST
	if flags&unix.NLM_F_ACK != 0 {
		n.acks++
	}
	n.b = binary.NativeEndian.AppendUint32(n.b, 0)
	n.b = binary.NativeEndian.AppendUint16(n.b, kind)
	n.b = binary.NativeEndian.AppendUint16(n.b, flags)
	n.b = binary.NativeEndian.AppendUint32(n.b, uint32(n.messages))
	n.b = binary.NativeEndian.AppendUint32(n.b, 0)
	n.b = append(n.b, header...)
	n.pad()
}

// end writes the length of the message that was begun.
func (n *netlinkBatch) end() {
	if n.messages > 0 {
		binary.NativeEndian.PutUint32(n.b[n.start:], uint32(len(n.b)-n.start))
	}
}

func (n *netlinkBatch) pad() {
	for len(n.b)%unix.NLMSG_ALIGNTO != 0 {
		n.b = append(n.b, 0)
	}
}

// attr adds an attribute.
func (n *netlinkBatch) attr(kind uint16, value []byte) {
	n.b = binary.NativeEndian.AppendUint16(n.b, uint16(unix.SizeofRtAttr+len(value)))
	n.b = binary.NativeEndian.AppendUint16(n.b, kind)
	n.b = append(n.b, value...)
	n.pad()
}

// str adds an attribute that is a string, as netfilter wants it.
func (n *netlinkBatch) str(kind uint16, value string) { n.attr(kind, append([]byte(value), 0)) }

// u32 adds a number in network order, as netfilter wants it.
func (n *netlinkBatch) u32(kind uint16, value uint32) {
	n.attr(kind, binary.BigEndian.AppendUint32(nil, value))
}

// nest adds an attribute that holds attributes.
func (n *netlinkBatch) nest(kind uint16, inside func()) {
	at := len(n.b)
	n.attr(kind|unix.NLA_F_NESTED, nil)
	inside()
	binary.NativeEndian.PutUint16(n.b[at:], uint16(len(n.b)-at))
}

// send has the kernel carry out all messages and returns its first refusal.
func (n *netlinkBatch) send(family int) error {
	n.end()
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, family)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	defer unix.Close(fd)
	if err := unix.Sendto(fd, n.b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return os.NewSyscallError("sendto", err)
	}
	var refused error
	buffer := make([]byte, 8<<10)
	for acks := 0; acks < n.acks; {
		got, _, err := unix.Recvfrom(fd, buffer, 0)
		if err != nil {
			return errors.Join(refused, os.NewSyscallError("recvfrom", err))
		}
		for b := buffer[:got]; len(b) >= unix.SizeofNlMsghdr; {
			length := int(binary.NativeEndian.Uint32(b))
			if length < unix.SizeofNlMsghdr || length > len(b) {
				return errors.New("netlink: a message that is not whole")
			}
			if binary.NativeEndian.Uint16(b[4:]) == unix.NLMSG_ERROR && length >= unix.SizeofNlMsghdr+4 {
				acks++
				code := int32(binary.NativeEndian.Uint32(b[unix.SizeofNlMsghdr:]))
				if code != 0 && refused == nil {
					refused = fmt.Errorf("netlink message %d: %w", binary.NativeEndian.Uint32(b[8:]), syscall.Errno(-code))
				}
				if code != 0 && family == unix.NETLINK_NETFILTER {
					return refused // the batch is given up as a whole, and not all of it is answered
				}
			}
			b = b[min(len(b), (length+unix.NLMSG_ALIGNTO-1)&^(unix.NLMSG_ALIGNTO-1)):]
		}
	}
	return refused
}
