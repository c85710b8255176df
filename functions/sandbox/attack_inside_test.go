//go:build linux

package sandbox

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// victims are what the attacker is told of the machine: more than a function knows.
type victims struct {
	// TCP are servers that say "reached", by what is special about them; UDP answer so.
	TCP, UDP map[string]netip.AddrPort
	// Socket is the path of a Unix socket, Abstract and AbstractDatagram are names.
	Socket, Abstract string
	// Secret is a file that the runner may read, Dir its folder.
	Secret, Dir string
	// Source is the function's own folder.
	Source string
	// Runner is the process id of the runner, Process one of another process, Instance
	// one of another instance.
	Runner, Process, Instance int
	// Queue is the name of a message queue, SharedMemory the key of a segment, Shm a file of
	// /dev/shm, Group the runner's control group.
	Queue, Shm, Group string
	SharedMemory      int
	// Names is how this process makes names that outside are not taken.
	Names string
}

// attack is one try. It returns what it got, or the error that it met.
type attack struct {
	group, name string
	try         func(v *victims) (string, error)
}

func init() {
	inside["attack"] = func(args []string) {
		var v victims
		if err := json.Unmarshal([]byte(args[0]), &v); err != nil {
			panic(err)
		}
		results := map[string]string{}
		for _, a := range attacks {
			got, err := a.try(&v)
			// Calls with a timeout are not begun again after a signal (signal(7)), and the
			// runtime of Go sends itself some.
			for errors.Is(err, unix.EINTR) {
				got, err = a.try(&v)
			}
			var errno syscall.Errno
			switch {
			case err == nil:
				results[a.name] = "done: " + got
			case errors.As(err, &errno):
				results[a.name] = unix.ErrnoName(errno)
			default:
				results[a.name] = err.Error()
			}
		}
		if err := json.NewEncoder(os.Stdout).Encode(results); err != nil {
			panic(err)
		}
		select {} // what it listens on stays
	}
}

const said = "reached\n"

func within(fd int) {
	tv := unix.Timeval{Sec: 1}
	_ = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv)
	_ = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &tv)
}

// hear reads what a victim says.
func hear(fd int) (string, error) {
	b := make([]byte, 64)
	n, err := unix.Read(fd, b)
	if err != nil {
		return "", err
	}
	if string(b[:n]) != said {
		return "", fmt.Errorf("it is not the victim that answers: %q", b[:n])
	}
	return "reached", nil
}

// connects is a connection with a protocol (0: TCP) from a family of addresses.
func connects(family, protocol int, to func(*victims) netip.AddrPort) func(*victims) (string, error) {
	return func(v *victims) (string, error) {
		fd, err := unix.Socket(family, unix.SOCK_STREAM, protocol)
		if err != nil {
			return "", err
		}
		defer unix.Close(fd)
		within(fd)
		if err := unix.Connect(fd, sockaddr(to(v))); err != nil {
			return "", err
		}
		return hear(fd)
	}
}

func server(name string) func(*victims) netip.AddrPort {
	return func(v *victims) netip.AddrPort { return v.TCP[name] }
}

// as is a server by another address with the same port.
func as(name, address string) func(*victims) netip.AddrPort {
	return func(v *victims) netip.AddrPort {
		return netip.AddrPortFrom(netip.MustParseAddr(address), v.TCP[name].Port())
	}
}

// embedding writes an address of IPv4 at the end of one of IPv6.
func embedding(name, prefix string) func(*victims) netip.AddrPort {
	return func(v *victims) netip.AddrPort {
		b, four := netip.MustParseAddr(prefix).As16(), v.TCP[name].Addr().As4()
		copy(b[12:], four[:])
		return netip.AddrPortFrom(netip.AddrFrom16(b), v.TCP[name].Port())
	}
}

func fastOpen(v *victims) (string, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	within(fd)
	if err := unix.Sendto(fd, []byte("x"), unix.MSG_FASTOPEN, sockaddr(v.TCP["loopback"])); err != nil {
		return "", err
	}
	return hear(fd)
}

func asks(name string, address func(*victims) netip.AddrPort) func(*victims) (string, error) {
	return func(v *victims) (string, error) {
		to := v.UDP[name]
		if address != nil {
			to = netip.AddrPortFrom(address(v).Addr(), to.Port())
		}
		fd, err := unix.Socket(int(family(to.Addr())), unix.SOCK_DGRAM, 0)
		if err != nil {
			return "", err
		}
		defer unix.Close(fd)
		within(fd)
		if err := unix.Sendto(fd, []byte("x"), 0, sockaddr(to)); err != nil {
			return "", err
		}
		return hear(fd)
	}
}

// takesOver listens where a victim does; the test looks who is reached then.
func takesOver(family, protocol int, to func(*victims) netip.AddrPort) func(*victims) (string, error) {
	return func(v *victims) (string, error) {
		fd, err := unix.Socket(family, unix.SOCK_STREAM, protocol)
		if err != nil {
			return "", err
		}
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1); err != nil {
			return "", err
		}
		if err := unix.Bind(fd, sockaddr(to(v))); err != nil {
			return "", err
		}
		return steals(fd)
	}
}

// steals answers all that connect.
func steals(fd int) (string, error) {
	if err := unix.Listen(fd, 128); err != nil {
		return "", err
	}
	go func() {
		for {
			c, _, err := unix.Accept(fd)
			if err != nil {
				return
			}
			_, _ = unix.Write(c, []byte("stolen\n"))
			unix.Close(c)
		}
	}()
	at, err := unix.Getsockname(fd)
	if err != nil {
		return "", err
	}
	return fmt.Sprint("listens at ", portOf(at)), nil
}

func portOf(a unix.Sockaddr) int {
	switch a := a.(type) {
	case *unix.SockaddrInet4:
		return a.Port
	case *unix.SockaddrInet6:
		return a.Port
	}
	return 0
}

func listensAnywhere(*victims) (string, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
	if err != nil {
		return "", err
	}
	return steals(fd)
}

func takesOverUDP(v *victims) (string, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	if err != nil {
		return "", err
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1); err != nil {
		return "", err
	}
	if err := unix.Bind(fd, sockaddr(v.UDP["loopback"])); err != nil {
		return "", err
	}
	go func() {
		b := make([]byte, 64)
		for {
			_, from, err := unix.Recvfrom(fd, b, 0)
			if err != nil {
				return
			}
			_ = unix.Sendto(fd, []byte("stolen\n"), 0, from)
		}
	}()
	return "listens", nil
}

func connectsUnix(name func(*victims) string) func(*victims) (string, error) {
	return func(v *victims) (string, error) {
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
		if err != nil {
			return "", err
		}
		defer unix.Close(fd)
		within(fd)
		if err := unix.Connect(fd, &unix.SockaddrUnix{Name: name(v)}); err != nil {
			return "", err
		}
		return hear(fd)
	}
}

func bindsAbstract(v *victims) (string, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err != nil {
		return "", err
	}
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: v.Names}); err != nil {
		return "", err
	}
	return steals(fd)
}

func opensSocket(family, kind, protocol int) func(*victims) (string, error) {
	return func(*victims) (string, error) {
		fd, err := unix.Socket(family, kind, protocol)
		if err != nil {
			return "", err
		}
		unix.Close(fd)
		return "open", nil
	}
}

// sees looks for the victim's port among the sockets of its network.
func sees(v *victims) (string, error) {
	b, err := os.ReadFile("/proc/net/tcp")
	if err != nil {
		return "", err
	}
	if strings.Contains(string(b), fmt.Sprintf(":%04X ", v.TCP["loopback2"].Port())) {
		return "the victim's socket", nil
	}
	return "", errors.New("not there")
}

// changesNetwork asks for what it would need to change its routes.
func changesNetwork(*victims) (string, error) {
	if err := (&netns{}).links().send(unix.NETLINK_ROUTE); err != nil {
		return "", err
	}
	return "the loopback interface is up, as it was", nil
}

func reads(name func(*victims) string) func(*victims) (string, error) {
	return func(v *victims) (string, error) {
		f, err := os.Open(name(v))
		if err != nil {
			return "", err
		}
		defer f.Close()
		b := make([]byte, 16)
		n, err := f.Read(b)
		if n == 0 {
			return "", cmpErr(err, errors.New("empty"))
		}
		return "read", nil
	}
}

func sharesMemory(v *victims) (string, error) {
	if _, _, errno := unix.Syscall(unix.SYS_SHMGET, uintptr(v.SharedMemory), 0, 0); errno != 0 {
		return "", errno
	}
	return "it can be attached", nil
}

func asksForKey(*victims) (string, error) {
	if _, err := unix.RequestKey("user", "penstock-attack", "", 0); errors.Is(err, unix.EPERM) {
		return "", err
	}
	return "the kernel looked for it", nil // there is none
}

func opensQueue(v *victims) (string, error) {
	fd, _, errno := unix.Syscall6(unix.SYS_MQ_OPEN, text(v.Queue), unix.O_RDONLY|unix.O_NONBLOCK, 0, 0, 0, 0)
	if errno != 0 {
		return "", errno
	}
	unix.Close(int(fd))
	return "it can be read", nil
}

func cmpErr(err, otherwise error) error {
	if err != nil && err.Error() != "EOF" {
		return err
	}
	return otherwise
}

func writes(name func(*victims) string) func(*victims) (string, error) {
	return func(v *victims) (string, error) {
		path := name(v)
		f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE, 0o600) // and writes nothing
		if err != nil {
			return "", err
		}
		f.Close()
		if strings.HasSuffix(path, "penstock-attack") {
			os.Remove(path)
		}
		return "opened for writing", nil
	}
}

func lists(name func(*victims) string) func(*victims) (string, error) {
	return func(v *victims) (string, error) {
		list, err := os.ReadDir(name(v))
		if err != nil {
			return "", err
		}
		return fmt.Sprint(len(list), " entries"), nil
	}
}

func is(path string) func(*victims) string { return func(*victims) string { return path } }

func secret(v *victims) string { return v.Secret }

func ofRunner(file string) func(*victims) string {
	return func(v *victims) string { return fmt.Sprintf("/proc/%d/%s", v.Runner, file) }
}

// calls makes a system call that needs no memory.
func calls(nr uintptr, args ...uintptr) func(*victims) (string, error) {
	return func(*victims) (string, error) {
		a := append(args, make([]uintptr, 6)...)
		_, _, errno := unix.RawSyscall6(nr, a[0], a[1], a[2], a[3], a[4], a[5])
		if errno != 0 {
			return "", errno
		}
		return "went well", nil
	}
}

func text(s string) uintptr {
	b := append([]byte(s), 0)
	kept = append(kept, b)
	return uintptr(unsafe.Pointer(&b[0]))
}

// kept are arguments of system calls.
var kept [][]byte

func runner(v *victims) int { return v.Runner }

func process(v *victims) int { return v.Process }

func another(v *victims) int { return v.Instance }

func kills(pid func(*victims) int) func(*victims) (string, error) {
	return func(v *victims) (string, error) { return "killed", unix.Kill(pid(v), 0) }
}

func traces(pid func(*victims) int) func(*victims) (string, error) {
	return func(v *victims) (string, error) {
		if _, _, errno := unix.RawSyscall6(unix.SYS_PTRACE, unix.PTRACE_SEIZE, uintptr(pid(v)), 0, 0, 0, 0); errno != 0 {
			return "", errno
		}
		return "traced", nil
	}
}

func takesDescriptor(v *victims) (string, error) {
	fd, err := unix.PidfdOpen(v.Runner, 0)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	got, err := unix.PidfdGetfd(fd, 0, 0)
	if err != nil {
		return "", err
	}
	unix.Close(got)
	return "taken", nil
}

func entersNetwork(v *victims) (string, error) {
	fd, err := unix.Open(fmt.Sprintf("/proc/%d/ns/net", v.Runner), unix.O_RDONLY, 0)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	return "entered", unix.Setns(fd, unix.CLONE_NEWNET)
}

// inherits looks for descriptors that it was not given.
func inherits(*victims) (string, error) {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return "", err
	}
	for _, e := range entries {
		to, err := os.Readlink(filepath.Join("/proc/self/fd", e.Name()))
		if err == nil && strings.HasSuffix(to, "/inherited") {
			return "has " + to, nil
		}
	}
	return "", errors.New("none")
}

func makesDevice(*victims) (string, error) {
	path := filepath.Join(os.TempDir(), fmt.Sprint("device-", os.Getpid()))
	defer os.Remove(path)
	return "made", unix.Mknod(path, unix.S_IFBLK|0o600, 0x0800)
}

// fills writes more than it may.
func fills(dir func() string) func(*victims) (string, error) {
	return func(*victims) (string, error) {
		var files []string
		defer func() {
			for _, f := range files {
				os.Remove(f)
			}
		}()
		piece := make([]byte, 1<<20)
		for n := range 8 {
			path := filepath.Join(dir(), fmt.Sprint("fill-", n))
			files = append(files, path)
			if err := os.WriteFile(path, piece, 0o600); err != nil {
				return "", err
			}
		}
		return "8 MiB written", nil
	}
}

// gainsCapabilities looks for privileges.
func gainsCapabilities(*victims) (string, error) {
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(b)) {
		if set, ok := strings.CutPrefix(line, "CapEff:"); ok && strings.Trim(set, "0 \t\n") != "" {
			return "has " + strings.TrimSpace(set), nil
		}
	}
	return "", errors.New("none")
}

func resolves(v *victims) (string, error) {
	c, err := net.DialTimeout("tcp", net.JoinHostPort("localhost", fmt.Sprint(v.TCP["loopback"].Port())), time.Second)
	if err != nil {
		return "", err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(time.Second))
	b := make([]byte, 16)
	if n, _ := c.Read(b); string(b[:n]) != said {
		return "", errors.New("not the victim")
	}
	return "reached", nil
}
