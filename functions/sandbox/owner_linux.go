package sandbox

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Owns reports whether the other end of a connection between two addresses of this
// machine (IPv4) is a socket of this sandbox, and not of another program that found
// the port. Where the sandbox has no network of its own nothing but the owner of the
// socket tells them apart. Processes without a view of their own are not told apart: it is true.
func (p *Process) Owns(c net.Conn) bool {
	if p.plan.policy.Level == None || !p.plan.machine.namespaces {
		return true
	}
	here, ok1 := address(c.LocalAddr())
	there, ok2 := address(c.RemoteAddr())
	if !ok1 || !ok2 {
		return false
	}
	inode, err := socketOf(there, here)
	if err != nil {
		return false
	}
	// In the sandbox's own /proc are its processes and no others.
	fds, _ := filepath.Glob(fmt.Sprintf("/proc/%d/root/proc/[0-9]*/fd/*", p.Main()))
	for _, fd := range fds {
		if to, err := os.Readlink(fd); err == nil && to == "socket:["+inode+"]" {
			return true
		}
	}
	return false
}

func address(a net.Addr) (netip.AddrPort, bool) {
	tcp, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.AddrPort{}, false
	}
	ap := netip.AddrPortFrom(tcp.AddrPort().Addr().Unmap(), tcp.AddrPort().Port())
	return ap, ap.Addr().Is4()
}

// socketOf is the inode of the socket with these addresses (proc_net_tcp of the
// kernel's documentation).
func socketOf(local, remote netip.AddrPort) (string, error) {
	f, err := os.Open("/proc/net/tcp")
	if err != nil {
		return "", err
	}
	defer f.Close()
	want := [2]string{kernelAddress(local), kernelAddress(remote)}
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		// sl local_address rem_address st tx:rx tr:when retrnsmt uid timeout inode
		if col := strings.Fields(lines.Text()); len(col) > 9 && col[1] == want[0] && col[2] == want[1] {
			if _, err := strconv.ParseUint(col[9], 10, 64); err != nil || col[9] == "0" {
				break // closed already
			}
			return col[9], nil
		}
	}
	return "", fmt.Errorf("no socket from %s to %s: %w", local, remote, os.ErrNotExist)
}

// kernelAddress is an address as in /proc/net/tcp: the four bytes as one number of
// this machine's order, and the port, in hexadecimal digits.
func kernelAddress(a netip.AddrPort) string {
	b := a.Addr().As4()
	return fmt.Sprintf("%08X:%04X", binary.NativeEndian.Uint32(b[:]), a.Port())
}
