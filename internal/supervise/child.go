package supervise

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"time"

	"github.com/penstock-gateway/penstock/internal/launch"
)

// errStopped is the cause of a child's context when Stop was called.
var errStopped = errors.New("stopped")

type child struct {
	s      *Supervisor
	p      Process
	log    *lines
	ctx    context.Context // ends when the child is to stop
	cancel context.CancelCauseFunc
	ready  chan error    // the outcome of the first start
	done   chan struct{} // closed when nothing runs any more
	status Status        // guarded by s.mu
}

func (c *child) stop() {
	c.cancel(errStopped)
	<-c.done
}

// gone reports whether nothing of it runs, nor will.
func (c *child) gone() bool {
	select {
	case <-c.done:
		return true
	default:
		return false
	}
}

// run is the life of a child: start, wait, back off, start again.
func (c *child) run() {
	defer close(c.done)
	back := minBackOff
	first := true
	for {
		begin := c.s.o.Now()
		wasReady, err := c.once(first)
		if c.ctx.Err() != nil || (first && !wasReady) {
			c.s.change(c, func(st *Status) { st.State, st.PID, st.Detail = Exited, 0, err.Error() })
			if first && !wasReady {
				c.ready <- err
			}
			return
		}
		first = false
		if c.s.o.Now().Sub(begin) >= stableAfter {
			back = minBackOff
		}
		c.s.o.Logger.Warn("a process ended and is restarted", "process", c.p.Name, "how", err, "after", back)
		c.s.change(c, func(st *Status) { st.State, st.PID, st.Detail = BackOff, 0, err.Error() })
		if c.s.o.Sleep(c.ctx, back) != nil {
			c.s.change(c, func(st *Status) { st.State = Exited })
			return
		}
		back = min(2*back, maxBackOff)
		c.s.change(c, func(st *Status) { st.State = Starting; st.Restarts++ })
	}
}

// once runs the process from start to end. err is never nil and says how it
// ended.
func (c *child) once(first bool) (wasReady bool, err error) {
	cmd := exec.Command(c.p.Command, c.p.Args...)
	cmd.Dir = c.p.Dir
	cmd.Env = append(os.Environ(), c.p.Env...)
	// A pipe of our own, not cmd.StdoutPipe or a writer: Wait must return when the
	// process ends, also if a grandchild still holds the other end.
	r, w, err := os.Pipe()
	if err != nil {
		return false, err
	}
	defer r.Close()
	cmd.Stdout, cmd.Stderr = w, w
	err = launch.Start(cmd)
	w.Close()
	if err != nil {
		return false, err
	}
	if c.p.Priority != 0 {
		_ = syscall.Setpriority(syscall.PRIO_PGRP, cmd.Process.Pid, c.p.Priority)
	}
	copied := make(chan struct{})
	go func() { defer close(copied); c.log.copy(r) }()
	c.s.change(c, func(st *Status) { st.PID = cmd.Process.Pid })

	exited := make(chan struct{})
	var waitErr error
	go func() { waitErr = cmd.Wait(); close(exited) }()

	wasReady, reason := c.watch(cmd, exited, first)
	<-exited
	// Whatever the process left in its group goes with it.
	_ = launch.Signal(cmd, syscall.SIGKILL)
	drain(r, copied)
	switch {
	case reason != nil:
		return wasReady, reason
	case waitErr == nil:
		waitErr = errors.New("exit status 0")
	}
	if !wasReady {
		return false, fmt.Errorf("ended before it was ready: %w; its last words:\n%s", waitErr, c.log.tail())
	}
	return true, waitErr
}

// drain lets the last lines through, but does not wait for a process outside the
// group that holds the pipe.
func drain(r *os.File, copied chan struct{}) {
	select {
	case <-copied:
	case <-time.After(time.Second):
		r.Close()
		<-copied
	}
}

// watch waits for readiness, the end of the process or the wish to stop it, and
// stops it for the last. reason says why it was ended by us.
func (c *child) watch(cmd *exec.Cmd, exited chan struct{}, first bool) (wasReady bool, reason error) {
	ctx, cancel := context.WithTimeout(c.ctx, c.p.ReadyTimeout)
	defer cancel()
	running := func() {
		wasReady = true
		c.s.change(c, func(st *Status) { st.State = Running })
		if first {
			c.ready <- nil
		}
	}
	ready := make(chan error, 1)
	if c.p.Ready == nil {
		running() // also when it has ended already: it was started, and nothing else was asked for
	} else {
		go func() { ready <- c.p.Ready(ctx) }()
	}
	for {
		select {
		case <-exited:
			return wasReady, nil
		case <-c.ctx.Done():
			c.s.change(c, func(st *Status) { st.State = Stopping })
			c.terminate(cmd, exited)
			return wasReady, errStopped
		case err := <-ready:
			ready = nil
			if err == nil {
				running()
				continue
			}
			if c.ctx.Err() != nil {
				continue // the branch above stops it
			}
			c.terminate(cmd, exited)
			return false, fmt.Errorf("not ready within %s: %w; its last words:\n%s", c.p.ReadyTimeout, err, c.log.tail())
		}
	}
}

// terminate asks the process to end, and after StopTimeout ends its group.
func (c *child) terminate(cmd *exec.Cmd, exited chan struct{}) {
	_ = syscall.Kill(cmd.Process.Pid, syscall.SIGTERM)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	late := make(chan struct{})
	go func() {
		if sleep(ctx, c.p.StopTimeout) == nil {
			close(late)
		}
	}()
	select {
	case <-exited:
	case <-late:
		c.s.o.Logger.Warn("a process ignored SIGTERM and is killed", "process", c.p.Name, "after", c.p.StopTimeout)
		_ = launch.Signal(cmd, syscall.SIGKILL)
		<-exited
	}
}
