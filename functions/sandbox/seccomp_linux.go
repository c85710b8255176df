package sandbox

import (
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// refused are system calls that no function needs and that reach into the kernel, the
// machine or other processes. They fail with EPERM.
var refused = append([]uint32{
	// Other processes.
	unix.SYS_PTRACE, unix.SYS_PROCESS_VM_READV, unix.SYS_PROCESS_VM_WRITEV, unix.SYS_PROCESS_MADVISE, unix.SYS_KCMP, unix.SYS_PIDFD_GETFD,
	// Mounts and namespaces.
	unix.SYS_MOUNT, unix.SYS_UMOUNT2, unix.SYS_PIVOT_ROOT, unix.SYS_CHROOT, unix.SYS_UNSHARE, unix.SYS_SETNS,
	unix.SYS_OPEN_TREE, unix.SYS_MOVE_MOUNT, unix.SYS_FSOPEN, unix.SYS_FSCONFIG, unix.SYS_FSMOUNT, unix.SYS_FSPICK, unix.SYS_MOUNT_SETATTR,
	// Files past their names.
	unix.SYS_OPEN_BY_HANDLE_AT, unix.SYS_NAME_TO_HANDLE_AT, unix.SYS_FANOTIFY_INIT, unix.SYS_QUOTACTL, unix.SYS_QUOTACTL_FD,
	// Programs in the kernel, and parts of it with many holes.
	unix.SYS_BPF, unix.SYS_PERF_EVENT_OPEN, unix.SYS_USERFAULTFD, unix.SYS_IO_URING_SETUP, unix.SYS_IO_URING_ENTER, unix.SYS_IO_URING_REGISTER,
	unix.SYS_INIT_MODULE, unix.SYS_FINIT_MODULE, unix.SYS_DELETE_MODULE, unix.SYS_KEXEC_LOAD,
	unix.SYS_ADD_KEY, unix.SYS_REQUEST_KEY, unix.SYS_KEYCTL,
	// The machine.
	unix.SYS_REBOOT, unix.SYS_SWAPON, unix.SYS_SWAPOFF, unix.SYS_ACCT, unix.SYS_SYSLOG, unix.SYS_VHANGUP, unix.SYS_SETHOSTNAME, unix.SYS_SETDOMAINNAME,
	unix.SYS_SETTIMEOFDAY, unix.SYS_CLOCK_SETTIME, unix.SYS_ADJTIMEX, unix.SYS_CLOCK_ADJTIME, unix.SYS_PERSONALITY,
}, refusedHere...)

// families of sockets that are allowed, with their protocols (nil: all); the others reach
// drivers and parts of the kernel, which it may load for them. A protocol may also be
// what bounds on TCP (Landlock) and UDP do not see: Multipath TCP, SMC, SCTP, UDP-Lite.
var families = []struct {
	family    uint32
	protocols []uint32
}{
	{unix.AF_UNIX, nil},
	{unix.AF_INET, []uint32{0, unix.IPPROTO_ICMP, unix.IPPROTO_TCP, unix.IPPROTO_UDP}},
	{unix.AF_INET6, []uint32{0, unix.IPPROTO_ICMPV6, unix.IPPROTO_TCP, unix.IPPROTO_UDP}},
	// Addresses, sockets and devices of the own network, as C libraries list them.
	{unix.AF_NETLINK, []uint32{unix.NETLINK_ROUTE, unix.NETLINK_SOCK_DIAG, unix.NETLINK_KOBJECT_UEVENT}},
}

// newNamespaces are the flags of clone(2) that make namespaces.
const newNamespaces = unix.CLONE_NEWUSER | unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS | unix.CLONE_NEWCGROUP

// Offsets in struct seccomp_data: number, architecture, arguments of 8 bytes, of which
// the lower half is first (all architectures here are little-endian).
const (
	offsetNumber = 0
	offsetArch   = 4
	offsetArg0   = 16
	offsetArg2   = 32
)

func load(offset uint32) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: offset}
}

func jump(op uint16, k uint32, yes, no int) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_JMP | op | unix.BPF_K, Jt: uint8(yes), Jf: uint8(no), K: k}
}

func answer(what uint32) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: what}
}

func fail(errno unix.Errno) unix.SockFilter { return answer(unix.SECCOMP_RET_ERRNO | uint32(errno)) }

// filter is the program, in classic BPF (seccomp(2)).
func filter() []unix.SockFilter {
	f := []unix.SockFilter{
		load(offsetArch),
		jump(unix.BPF_JEQ, auditArch, 1, 0),
		answer(unix.SECCOMP_RET_KILL_PROCESS), // numbers of another architecture would mean other calls
		load(offsetNumber),
		// Numbers of x32, which this list does not hold.
		jump(unix.BPF_JGE, 0x40000000, 0, 1),
		fail(unix.EPERM),
		// The flags of clone3 are out of reach for a filter; C libraries then use clone.
		jump(unix.BPF_JEQ, unix.SYS_CLONE3, 0, 1),
		fail(unix.ENOSYS),
	}
	for _, nr := range refused {
		f = append(f, jump(unix.BPF_JEQ, nr, 0, 1), fail(unix.EPERM))
	}
	f = append(f,
		jump(unix.BPF_JEQ, unix.SYS_CLONE, 0, 4),
		load(offsetArg0),
		jump(unix.BPF_JSET, newNamespaces, 0, 1),
		fail(unix.EPERM),
		answer(unix.SECCOMP_RET_ALLOW),
	)
	return append(append(f, socketFilter()...), answer(unix.SECCOMP_RET_ALLOW))
}

// socketFilter is the part of the filter for socket(2); other calls are jumped on to its end.
func socketFilter() []unix.SockFilter {
	var f []unix.SockFilter
	for _, allowed := range families {
		one := []unix.SockFilter{answer(unix.SECCOMP_RET_ALLOW)}
		if n := len(allowed.protocols); n > 0 {
			one = []unix.SockFilter{load(offsetArg2)}
			for i, protocol := range allowed.protocols {
				one = append(one, jump(unix.BPF_JEQ, protocol, n-i, 0))
			}
			one = append(one, fail(unix.EPROTONOSUPPORT), answer(unix.SECCOMP_RET_ALLOW))
		}
		f = append(append(f, jump(unix.BPF_JEQ, allowed.family, 0, len(one))), one...)
	}
	f = append(f, fail(unix.EAFNOSUPPORT))
	return append([]unix.SockFilter{jump(unix.BPF_JEQ, unix.SYS_SOCKET, 0, len(f)+1), load(offsetArg0)}, f...)
}

// seccompMissing tells why there is no seccomp; nil when there is.
func seccompMissing() error {
	if auditArch == 0 {
		return fmt.Errorf("the filter is not written for %s", runtime.GOARCH)
	}
	action := uint32(unix.SECCOMP_RET_ERRNO)
	_, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_GET_ACTION_AVAIL, 0, uintptr(unsafe.Pointer(&action)))
	if errno != 0 {
		return fmt.Errorf("the kernel has no seccomp filters: %w", errno)
	}
	return nil
}

// installFilter filters this thread and what it starts.
func installFilter() error {
	f := filter()
	program := unix.SockFprog{Len: uint16(len(f)), Filter: &f[0]}
	_, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, 0, uintptr(unsafe.Pointer(&program)))
	runtime.KeepAlive(f)
	if errno != 0 {
		return errno
	}
	return nil
}
