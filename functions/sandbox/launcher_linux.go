package sandbox

import (
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"os/signal"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// launcherName is argv[0] of a process that sets up a sandbox and then runs the
// program of a function in it. argv[1] is for the list of processes.
const launcherName = "penstock-instance"

// File descriptors of the launcher: what to do, and what came of it.
const (
	controlFD = 3
	statusFD  = 4
	// The lock of its uid, which stays open as long as this process lives, and the user
	// namespace that maps root to the uid.
	lockFD    = 5
	mappingFD = 6
)

// A launcher never comes to main: package initialization runs on the first thread
// and, for a package that imports little, before that of nearly all others.
func init() {
	if len(os.Args) == 2 && os.Args[0] == launcherName {
		runLauncher()
	}
}

// runLauncher does not return.
func runLauncher() {
	runtime.LockOSThread() // restrictions are of the thread until it is executed
	// Also those that whoever started the runner left open for it.
	if unix.CloseRange(controlFD, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC) != nil { // Linux 5.11
		unix.CloseOnExec(controlFD)
		unix.CloseOnExec(statusFD)
	}
	status := os.NewFile(statusFD, "status")
	l := &launching{}
	pid, err := l.run()
	if errors.Is(err, io.EOF) {
		os.Exit(0) // nobody has use for this launcher any more
	}
	if err != nil {
		errno, _ := errors.AsType[syscall.Errno](err)
		fmt.Fprintf(status, "error %d %v\n", int(errno), err)
		os.Exit(126)
	}
	fmt.Fprintln(status, "ok")
	// The pipes of its output end with the function's own processes.
	for fd := range 3 {
		unix.Close(fd)
	}
	if l.Private {
		go supply(controlFD)
	}
	reap(pid, status)
}

// launching is the state of a launcher.
type launching struct {
	ahead
	root *rootBuilder
	// umask is that of the runner, which the program gets.
	umask int
}

// run sets up the sandbox and starts the program; without a pid namespace it is the
// program then.
func (l *launching) run() (pid int, err error) {
	// An init stays, in reach of what runs under it, and the restrictions are of this
	// thread alone: the others of its Go runtime keep all that a runner may do. So its
	// memory and files must be nobody's to open, whoever asks (ptrace(2), "Ptrace
	// access mode checking"); the next program begins anew.
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return 0, os.NewSyscallError("prctl", err)
	}
	if err := l.prepare(); err != nil {
		return 0, err
	}
	s, err := receiveSpec()
	if err != nil {
		return 0, err
	}
	if err := l.enter(s); err != nil {
		return 0, err
	}
	if !l.Own {
		return 0, os.NewSyscallError("execve", syscall.Exec(s.Program, s.Args, s.Env))
	}
	// It must not die of what is for its child; to ignore would be inherited.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGPIPE)
	return syscall.ForkExec(s.Program, s.Args, &syscall.ProcAttr{Env: s.Env, Files: []uintptr{0, 1, 2}})
}

// prepare does what can be done before the program is known, and says so.
func (l *launching) prepare() error {
	kind, body, _, err := receiveFrame(controlFD)
	if err != nil {
		return err
	}
	if kind != frameAhead {
		return fmt.Errorf("message %q before the first", kind)
	}
	if err := l.unpack(body); err != nil {
		return err
	}
	var fds []int
	if l.Private {
		if err := l.Net.setUp(); err != nil {
			return fmt.Errorf("a network of its own: %w", err)
		}
		if fds, err = l.Net.sockets(); err != nil {
			return fmt.Errorf("sockets in a network of its own: %w", err)
		}
	}
	spareOthers("self")
	if l.UID != 0 {
		// What is made in its root is for another user, whatever the runner's umask.
		l.umask = unix.Umask(0o022)
	}
	if l.Own {
		if l.root, err = beginRoot(&l.ahead); err != nil {
			return fmt.Errorf("a root of its own: %w", err)
		}
	}
	if l.Restrict {
		if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
			return fmt.Errorf("no new privileges: %w", err)
		}
		if !l.Capabilities {
			if err := dropBounding(); err != nil {
				return fmt.Errorf("capabilities: %w", err)
			}
		}
	}
	if err := sendFrame(controlFD, frameReady, nil, fds...); err != nil && !errors.Is(err, unix.EPIPE) {
		return err
	}
	for _, fd := range fds {
		unix.Close(fd)
	}
	return nil
}

// receiveSpec waits for what is to be done, which may be long, and takes the output of
// the program from what comes with it. Sockets may be asked for before.
func receiveSpec() (*spec, error) {
	kind, body, output, err := receiveFrame(controlFD)
	for err == nil && kind != frameSpec {
		if err = supplyOne(controlFD, kind, body); err == nil {
			kind, body, output, err = receiveFrame(controlFD)
		}
	}
	if errors.Is(err, unix.ECONNRESET) { // closed, with frameReady unread
		err = io.EOF
	}
	if err != nil {
		return nil, err
	}
	for i, fd := range output {
		if err := unix.Dup2(fd, 1+i); err != nil {
			return nil, os.NewSyscallError("dup2", err)
		}
		unix.Close(fd)
	}
	s := &spec{}
	return s, s.unpack(body)
}

// reap is the life of the first process of a pid namespace: it takes the ends of all
// that are orphaned in it, and ends when pid does, which ends all that are left.
func reap(pid int, status *os.File) {
	for {
		var ws syscall.WaitStatus
		got, err := syscall.Wait4(-1, &ws, 0, nil)
		switch {
		case errors.Is(err, syscall.EINTR):
		case err != nil:
			os.Exit(126)
		case got == pid && ws.Signaled():
			fmt.Fprintf(status, "signal %d\n", ws.Signal())
			os.Exit(128 + int(ws.Signal()))
		case got == pid && ws.Exited():
			fmt.Fprintf(status, "exit %d\n", ws.ExitStatus())
			os.Exit(ws.ExitStatus())
		}
	}
}

// enter puts this thread into the sandbox, from the outside in: later steps could not
// do what earlier ones do.
func (l *launching) enter(s *spec) error {
	for _, g := range s.Groups {
		if err := os.WriteFile(g, []byte("0"), 0); err != nil {
			return fmt.Errorf("enter the control group: %w", err)
		}
	}
	for resource, most := range s.limits() {
		// Not by syscall.Setrlimit, which is undone before the next program.
		if err := setLimit(0, resource, most); err != nil {
			return fmt.Errorf("resource limits: %w", err)
		}
	}
	if l.root != nil {
		if err := l.root.complete(s); err != nil {
			return fmt.Errorf("a root of its own: %w", err)
		}
	}
	if err := os.Chdir(s.Dir); err != nil {
		return err
	}
	if !s.Restrict {
		return nil
	}
	if s.Landlock > 0 {
		if err := landlock(s.Landlock, l.visible(s), s.Ports); err != nil {
			return fmt.Errorf("landlock: %w", err)
		}
	}
	if s.Processes > 0 && l.countsAlone() {
		if err := setLimit(0, unix.RLIMIT_NPROC, s.Processes); err != nil {
			return fmt.Errorf("resource limits: %w", err)
		}
	}
	if l.UID != 0 {
		if err := l.changeUser(s); err != nil {
			return fmt.Errorf("a uid of its own: %w", err)
		}
	}
	if !s.Capabilities {
		if err := dropCapabilities(); err != nil {
			return fmt.Errorf("capabilities: %w", err)
		}
	}
	if s.Seccomp {
		if err := installFilter(); err != nil {
			return fmt.Errorf("seccomp: %w", err)
		}
	}
	return nil
}

// spareOthers has the kernel end a process (and what it will start) before those of the
// gateway and of the machine when memory is short (proc_pid_oom_score_adj(5)). Where it may
// not be said the kernel goes by size alone.
func spareOthers(pid string) { _ = os.WriteFile("/proc/"+pid+"/oom_score_adj", []byte("500"), 0) }

// changeUser gives this thread the uid, with its output.
func (l *launching) changeUser(s *spec) error {
	unix.Umask(l.umask)
	if err := ownPipes(l.UID); err != nil {
		return err
	}
	return become(l.UID)
}

// countsAlone reports whether the processes of this sandbox are counted apart from others
// (setrlimit(2), RLIMIT_NPROC): by a uid of its own, or, from Linux 5.14 on, by a user
// namespace of its own.
func (l *launching) countsAlone() bool {
	if l.UID != 0 {
		return true
	}
	return l.Own && os.Geteuid() != 0 && kernelFrom(5, 14)
}

// kernelFrom reports whether this kernel is of some version or a later one.
func kernelFrom(major, minor int) bool {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return false
	}
	var a, b int
	if n, _ := fmt.Sscanf(unix.ByteSliceToString(u.Release[:]), "%d.%d", &a, &b); n != 2 {
		return false
	}
	return a > major || a == major && b >= minor
}

// visible is what Landlock lets the program see. In a root of its own that is all that
// there is: what is not to be seen is not below that root, so Landlock holds also for
// who gets out of it.
func (l *launching) visible(s *spec) []path {
	out := append([]path{{Path: "/proc"}}, devicePaths()...)
	if l.root == nil {
		return append(append(out, l.System...), s.Paths...)
	}
	out = append(out, path{Path: "/"}, path{Path: "/dev/shm", Write: true}, path{Path: "/tmp", Write: true})
	for _, p := range s.Paths {
		if p.Write {
			out = append(out, p)
		}
	}
	return out
}

// limits are the resource limits: no endless file, and no core file, neither on the disk nor
// to a program of the machine that keeps them, which only a limit of 1 turns off (core(5)).
func (s *spec) limits() map[int]uint64 {
	return map[int]uint64{unix.RLIMIT_CORE: 1, unix.RLIMIT_FSIZE: s.File}
}

// setLimit sets a limit of a process (0: this one), which what it starts inherits.
func setLimit(pid, resource int, most uint64) error {
	var old unix.Rlimit
	if err := unix.Prlimit(pid, resource, nil, &old); err != nil {
		return err
	}
	return unix.Prlimit(pid, resource, &unix.Rlimit{Cur: min(most, old.Max), Max: min(most, old.Max)}, nil)
}

// dropBounding keeps programs of root that are executed from getting capabilities.
func dropBounding() error {
	for c := range 64 {
		err := unix.Prctl(unix.PR_CAPBSET_DROP, uintptr(c), 0, 0, 0)
		if errors.Is(err, unix.EINVAL) {
			break // beyond the last
		}
		if errors.Is(err, unix.EPERM) {
			break // it has none that could give it some
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// dropCapabilities takes all capabilities away.
func dropCapabilities() error {
	_ = unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var none [2]unix.CapUserData
	return unix.Capset(&header, &none[0])
}
