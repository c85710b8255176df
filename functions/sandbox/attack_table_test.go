//go:build linux

package sandbox

import (
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// Protocols that the standard packages do not name.
const (
	sctp = 132
	smc  = 256
)

// attacks do no harm where they come through: they are run without a sandbox, too.
var attacks = []attack{
	{"connect", "TCP to 127.0.0.1", connects(unix.AF_INET, 0, server("loopback"))},
	{"connect", "TCP to another address of the loopback", connects(unix.AF_INET, 0, server("loopback2"))},
	{"connect", "TCP to 0.0.0.0", connects(unix.AF_INET, 0, as("loopback", "0.0.0.0"))},
	{"connect", "TCP to ::1", connects(unix.AF_INET6, 0, server("loopback6"))},
	{"connect", "TCP to ::", connects(unix.AF_INET6, 0, as("loopback6", "::"))},
	{"connect", "TCP to ::ffff:127.0.0.1", connects(unix.AF_INET6, 0, embedding("loopback", "::ffff:0:0"))},
	{"connect", "TCP to 64:ff9b::127.0.0.1", connects(unix.AF_INET6, 0, embedding("loopback", "64:ff9b::"))},
	{"connect", "TCP to the machine's address", connects(unix.AF_INET, 0, server("machine"))},
	{"connect", "TCP to the machine's address, mapped to IPv6", connects(unix.AF_INET6, 0, embedding("machine", "::ffff:0:0"))},
	{"connect", "TCP to the machine's address, as NAT64", connects(unix.AF_INET6, 0, embedding("machine", "64:ff9b::"))},
	{"connect", "TCP to what listens on all addresses", connects(unix.AF_INET, 0, as("all", "127.0.0.1"))},
	{"connect", "TCP to the name localhost", resolves},
	{"connect", "TCP to another function's PORT", connects(unix.AF_INET, 0, func(*victims) netip.AddrPort { return netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), ServerPort) })},
	{"connect", "TCP to another function's Runtime API", connects(unix.AF_INET, 0, func(*victims) netip.AddrPort {
		return netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), runtimePort)
	})},
	{"connect", "MPTCP to 127.0.0.1", connects(unix.AF_INET, unix.IPPROTO_MPTCP, server("loopback"))},
	{"connect", "MPTCP to the machine's address", connects(unix.AF_INET, unix.IPPROTO_MPTCP, server("machine"))},
	{"connect", "TCP Fast Open to 127.0.0.1", fastOpen},
	{"connect", "UDP to 127.0.0.1", asks("loopback", nil)},
	{"connect", "UDP to ::1", asks("loopback6", nil)},
	{"connect", "UDP to the machine's address", asks("all", server("machine"))},
	{"connect", "abstract Unix socket", connectsUnix(func(v *victims) string { return v.Abstract })},
	{"connect", "Unix socket of another function's shim", connectsUnix(func(v *victims) string { return v.Socket })},

	{"listen", "on a port of the gateway, SO_REUSEPORT", takesOver(unix.AF_INET, 0, server("loopback"))},
	{"listen", "on all addresses with that port", takesOver(unix.AF_INET, 0, as("loopback", "0.0.0.0"))},
	{"listen", "on :: with that port", takesOver(unix.AF_INET6, 0, as("loopback", "::"))},
	{"listen", "by MPTCP on that port", takesOver(unix.AF_INET, unix.IPPROTO_MPTCP, server("loopback"))},
	{"listen", "without bind, on a port of the kernel's choice", listensAnywhere},
	{"listen", "by UDP on a port of the gateway", takesOverUDP},
	{"listen", "on an abstract Unix socket", bindsAbstract},

	{"sockets", "raw", opensSocket(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_ICMP)},
	{"sockets", "packets of a device", opensSocket(unix.AF_PACKET, unix.SOCK_RAW, 0)},
	{"sockets", "SCTP", opensSocket(unix.AF_INET, unix.SOCK_STREAM, sctp)},
	{"sockets", "SMC", opensSocket(unix.AF_INET, unix.SOCK_STREAM, smc)},
	{"sockets", "UDP-Lite", opensSocket(unix.AF_INET, unix.SOCK_DGRAM, unix.IPPROTO_UDPLITE)},
	{"sockets", "of the kernel's packet filter", opensSocket(unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_NETFILTER)},
	{"sockets", "of the kernel's drivers (generic netlink)", opensSocket(unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_GENERIC)},
	{"sockets", "of virtual machines (vsock)", opensSocket(unix.AF_VSOCK, unix.SOCK_STREAM, 0)},
	{"sockets", "of the kernel's cryptography", opensSocket(unix.AF_ALG, unix.SOCK_SEQPACKET, 0)},
	{"sockets", "seeing those of the machine", sees},
	{"sockets", "changing its network", changesNetwork},
	{"sockets", "entering the runner's network", entersNetwork},

	{"files", "read a key of the runner", reads(secret)},
	{"files", "list its folder", lists(func(v *victims) string { return v.Dir })},
	{"files", "write into its folder", writes(func(v *victims) string { return v.Dir + "/penstock-attack" })},
	{"files", "read /etc/shadow", reads(is("/etc/shadow"))},
	{"files", "write /etc", writes(is("/etc/penstock-attack"))},
	{"files", "write /usr", writes(is("/usr/penstock-attack"))},
	{"files", "write its own source", writes(func(v *victims) string { return v.Source + "/penstock-attack" })},
	{"files", "open by handle", calls(unix.SYS_OPEN_BY_HANDLE_AT, ^uintptr(0), 0, 0)},
	{"files", "make a device", makesDevice},
	{"files", "a descriptor that the runner was left", inherits},

	{"proc", "write /proc/sys/kernel/core_pattern", writes(is("/proc/sys/kernel/core_pattern"))},
	{"proc", "write /proc/sys/vm/drop_caches", writes(is("/proc/sys/vm/drop_caches"))},
	{"proc", "write /proc/sysrq-trigger", writes(is("/proc/sysrq-trigger"))},
	{"proc", "read /proc/kcore", reads(is("/proc/kcore"))},
	{"proc", "read /proc/kallsyms", reads(is("/proc/kallsyms"))},
	{"proc", "read /proc/timer_list", reads(is("/proc/timer_list"))},
	{"proc", "read the runner's environment", reads(ofRunner("environ"))},
	{"proc", "through the runner's root", reads(func(v *victims) string { return ofRunner("root")(v) + v.Secret })},
	{"proc", "read the memory of process 1", reads(is("/proc/1/maps"))},
	{"proc", "through the root of process 1", reads(func(v *victims) string { return "/proc/1/root" + v.Secret })},

	{"processes", "signal the runner", kills(runner)},
	{"processes", "signal another instance", kills(another)},
	{"processes", "trace a process", traces(process)},
	{"processes", "trace another instance", traces(another)},
	{"processes", "read another instance's environment", reads(func(v *victims) string { return fmt.Sprintf("/proc/%d/environ", v.Instance) })},
	{"processes", "open the runner's memory", writes(ofRunner("mem"))},
	{"processes", "take a descriptor of the runner", takesDescriptor},

	{"kernel", "have capabilities", gainsCapabilities},
	{"kernel", "a new file system", calls(unix.SYS_FSOPEN, text("tmpfs"), 0)},
	{"kernel", "a user namespace", calls(unix.SYS_UNSHARE, unix.CLONE_NEWUSER)},
	{"kernel", "chroot", calls(unix.SYS_CHROOT, text("/"))},
	{"kernel", "keys", calls(unix.SYS_KEYCTL, 0, ^uintptr(2), 0)},
	{"kernel", "BPF", calls(unix.SYS_BPF, 0, text("\x01\x00\x00\x00\x04\x00\x00\x00\x04\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"), 24)},
	{"kernel", "io_uring", calls(unix.SYS_IO_URING_SETUP, 1, text(string(make([]byte, 256))))},
	{"kernel", "load a module", calls(unix.SYS_INIT_MODULE, 0, 0, text(""))},

	{"shared", "memory of System V of the runner's user", sharesMemory},
	{"shared", "a message queue (POSIX) of the runner's user", opensQueue},
	{"shared", "a file in the machine's /dev/shm", reads(func(v *victims) string { return v.Shm })},
	{"shared", "the control group of the runner", writes(func(v *victims) string { return v.Group + "/cgroup.procs" })},
	{"kernel", "ask for a key", asksForKey},

	{"disk", "more in /tmp than it may", fills(func() string { return "/tmp" })},
}
