// Package launch starts child processes that never outlive this one: each gets
// a process group of its own and, on Linux, a parent-death signal.
package launch

import (
	"errors"
	"os/exec"
	"runtime"
	"sync"
	"syscall"
)

type request struct {
	cmd  *exec.Cmd
	done chan error
}

var (
	startOnce sync.Once
	requests  chan request
)

// Start starts cmd in a process group of its own. On Linux the kernel kills the
// child when this process ends in whatever way, kill -9 included.
//
// The kernel sends that signal when the *thread* that forked the child ends, not
// the process (prctl(2), PR_SET_PDEATHSIG), and the Go runtime ends idle threads
// that were locked. So all children are forked by one thread that is kept for
// the life of the process.
//
// SysProcAttr of cmd is extended, not replaced.
func Start(cmd *exec.Cmd) error {
	attr := cmd.SysProcAttr
	if attr == nil {
		attr = &syscall.SysProcAttr{}
		cmd.SysProcAttr = attr
	}
	if !attr.Setsid {
		attr.Setpgid = true
	}
	dieWithParent(attr)
	startOnce.Do(func() {
		requests = make(chan request)
		go forkThread()
	})
	r := request{cmd: cmd, done: make(chan error, 1)}
	requests <- r
	return <-r.done
}

// Run is Start and cmd.Wait. A command made with exec.CommandContext is killed
// with its whole group when the context ends.
func Run(cmd *exec.Cmd) error {
	if cmd.Cancel != nil {
		cmd.Cancel = func() error { return Signal(cmd, syscall.SIGKILL) }
	}
	if err := Start(cmd); err != nil {
		return err
	}
	return cmd.Wait()
}

// Signal sends a signal to the process group of a command that Start started.
// That the group is gone already is not an error.
func Signal(cmd *exec.Cmd, sig syscall.Signal) error {
	if cmd.Process == nil {
		return errors.New("the command was not started")
	}
	err := syscall.Kill(-cmd.Process.Pid, sig)
	if errors.Is(err, syscall.ESRCH) {
		return nil
	}
	return err
}

func forkThread() {
	runtime.LockOSThread()
	for r := range requests {
		r.done <- r.cmd.Start()
	}
}
