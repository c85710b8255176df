package egress

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"os"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// local reports whether the kernel would deliver what is sent to an address on this
// machine: its type of route is local, broadcast, anycast or multicast (rtnetlink(7)).
func local(a netip.Addr) (bool, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return false, os.NewSyscallError("socket", err)
	}
	defer unix.Close(fd)
	family := byte(unix.AF_INET)
	if a.Is6() {
		family = unix.AF_INET6
	}
	address := a.AsSlice()
	b := binary.NativeEndian.AppendUint32(nil, uint32(unix.SizeofNlMsghdr+unix.SizeofRtMsg+unix.SizeofRtAttr+len(address)))
	b = binary.NativeEndian.AppendUint16(b, unix.RTM_GETROUTE)
	b = binary.NativeEndian.AppendUint16(b, unix.NLM_F_REQUEST)
	b = append(b, 1, 0, 0, 0, 0, 0, 0, 0)
	b = append(b, family, byte(a.BitLen()), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
	b = binary.NativeEndian.AppendUint16(b, uint16(unix.SizeofRtAttr+len(address)))
	b = binary.NativeEndian.AppendUint16(b, unix.RTA_DST)
	b = append(b, address...)
	if err := unix.Sendto(fd, b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return false, os.NewSyscallError("sendto", err)
	}
	answer := make([]byte, 4<<10)
	n, _, err := unix.Recvfrom(fd, answer, 0)
	if err != nil {
		return false, os.NewSyscallError("recvfrom", err)
	}
	return routeType(answer[:n])
}

// routeType reads the answer: the 8th byte of struct rtmsg.
func routeType(answer []byte) (bool, error) {
	if len(answer) < unix.SizeofNlMsghdr+unix.SizeofRtMsg {
		return false, errors.New("netlink: a message that is not whole")
	}
	if binary.NativeEndian.Uint16(answer[4:]) == unix.NLMSG_ERROR {
		errno := syscall.Errno(-int32(binary.NativeEndian.Uint32(answer[unix.SizeofNlMsghdr:])))
		if errno == unix.ENETUNREACH || errno == unix.EHOSTUNREACH {
			return false, nil // the dial says so
		}
		return false, errno
	}
	switch answer[unix.SizeofNlMsghdr+7] {
	case unix.RTN_LOCAL, unix.RTN_BROADCAST, unix.RTN_ANYCAST, unix.RTN_MULTICAST:
		return true, nil
	}
	return false, nil
}

// Routed6 reports whether this machine has a way to other hosts by IPv6.
func Routed6() bool {
	b, _ := os.ReadFile("/proc/net/ipv6_route")
	for line := range strings.Lines(string(b)) {
		// destination, its length, source, its length, next hop, metric, …, device
		if f := strings.Fields(line); len(f) == 10 && f[1] == "00" && f[9] != "lo" {
			return true
		}
	}
	return false
}
