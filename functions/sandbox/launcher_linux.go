package sandbox

import (
	"encoding/gob"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// launcherName is argv[0] of a process that sets up a sandbox and then runs the
// program of a function in it. argv[1] is the instance's id, for the list of
// processes.
const launcherName = "penstock-instance"

// File descriptors of the launcher: what to do, and what came of it.
const (
	specFD   = 3
	statusFD = 4
)

// spec is what the launcher is to do.
type spec struct {
	Program string
	Args    []string
	Env     []string
	Dir     string
	// Groups are cgroup.procs files to enter.
	Groups []string
	// File bounds the size of a file, in bytes.
	File uint64
	// Init means that it is the first process of a pid namespace, and stays.
	Init bool
	// Root is an empty folder for the root of its own; "": none.
	Root string
	// Paths are what it may see, Landlock the version of Landlock's interface (0:
	// none).
	Paths    []path
	Landlock int
	// Restrict takes capabilities and, with Seccomp, system calls away.
	Restrict, Seccomp bool
}

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
	unix.CloseOnExec(specFD)
	unix.CloseOnExec(statusFD)
	// An init stays, in reach of what runs under it, and the restrictions are of this
	// thread alone: the others of its Go runtime keep all that a runner may do. So its
	// memory and files must be nobody's to open, whoever asks (ptrace(2), "Ptrace
	// access mode checking"); the next program begins anew.
	dumpable := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0)
	status := os.NewFile(statusFD, "status")
	var s spec
	err := receive(&s)
	if err == nil {
		err = dumpable
	}
	if err == nil {
		err = s.enter()
	}
	if err == nil && !s.Init {
		err = os.NewSyscallError("execve", syscall.Exec(s.Program, s.Args, s.Env))
	}
	pid := 0
	if err == nil {
		// It must not die of what is for its child; to ignore would be inherited.
		signal.Notify(make(chan os.Signal, 1), syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGPIPE)
		pid, err = syscall.ForkExec(s.Program, s.Args, &syscall.ProcAttr{Env: s.Env, Files: []uintptr{0, 1, 2}})
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
	reap(pid, status)
}

// receive waits for what is to be done, which may be long, and takes the output of
// the program from what comes with it.
func receive(s *spec) error {
	in := os.NewFile(specFD, "spec")
	defer in.Close()
	first, control := make([]byte, 1), make([]byte, unix.CmsgSpace(2*4))
	_, n, _, _, err := unix.Recvmsg(specFD, first, control, unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		return os.NewSyscallError("recvmsg", err)
	}
	messages, err := unix.ParseSocketControlMessage(control[:n])
	if err != nil || len(messages) != 1 {
		os.Exit(0) // nobody has use for this launcher any more
	}
	output, err := unix.ParseUnixRights(&messages[0])
	if err != nil {
		return err
	}
	for i, fd := range output {
		if err := unix.Dup2(fd, 1+i); err != nil {
			return os.NewSyscallError("dup2", err)
		}
		unix.Close(fd)
	}
	return gob.NewDecoder(in).Decode(s) // strings of a system need not be UTF-8
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
func (s *spec) enter() error {
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
	if s.Root != "" {
		if err := newRoot(s.Root, s.Paths); err != nil {
			return fmt.Errorf("a root of its own: %w", err)
		}
	}
	if err := os.Chdir(s.Dir); err != nil {
		return err
	}
	if !s.Restrict {
		return nil
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("no new privileges: %w", err)
	}
	if s.Landlock > 0 {
		if err := landlock(s.Landlock, s.Paths, s.Root != ""); err != nil {
			return fmt.Errorf("landlock: %w", err)
		}
	}
	if err := dropCapabilities(); err != nil {
		return fmt.Errorf("capabilities: %w", err)
	}
	if s.Seccomp {
		if err := installFilter(); err != nil {
			return fmt.Errorf("seccomp: %w", err)
		}
	}
	return nil
}

// limits are the resource limits: no core files, no endless file.
func (s *spec) limits() map[int]uint64 {
	return map[int]uint64{unix.RLIMIT_CORE: 0, unix.RLIMIT_FSIZE: s.File}
}

// setLimit sets a limit of a process (0: this one), which what it starts inherits.
func setLimit(pid, resource int, most uint64) error {
	var old unix.Rlimit
	if err := unix.Prlimit(pid, resource, nil, &old); err != nil {
		return err
	}
	return unix.Prlimit(pid, resource, &unix.Rlimit{Cur: min(most, old.Max), Max: min(most, old.Max)}, nil)
}

// dropCapabilities takes all capabilities away, also from programs of root that it
// executes.
func dropCapabilities() error {
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
	_ = unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var none [2]unix.CapUserData
	return unix.Capset(&header, &none[0])
}
