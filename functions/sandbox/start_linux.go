package sandbox

import (
	"bufio"
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"github.com/penstock-gateway/penstock/functions/sandbox/egress"
)

// Process is a process that was started.
type Process struct {
	// Cmd is the started command: its process is the init of the sandbox or, without
	// one, the program itself.
	Cmd *exec.Cmd

	main   int
	plan   *Plan
	place  *Place
	group  *group
	home   string
	status *os.File
	lines  *bufio.Reader
	once   sync.Once
}

// Start starts a program: Reserve and then Place.Start.
func (p *Plan) Start(c Command, start func(*exec.Cmd) error) (*Process, error) {
	place, err := p.Reserve(start)
	if err != nil {
		return nil, err
	}
	return place.Start(c)
}

// Place is where a program is to run. Its network is there before the program is.
type Place struct {
	plan  *Plan
	start func(*exec.Cmd) error
	// launcher waits to be told what to run; nil: none is needed.
	launcher *launcher
	sockets  *sockets
	outbound *egress.Server
}

// Reserve makes a place for one program. start starts the command that it gets, unless
// its process runs already (KeepReady), and says when it is there. What Reserve returns
// has to be used by Start, or closed.
func (p *Plan) Reserve(start func(*exec.Cmd) error) (*Place, error) {
	out := &Place{plan: p, start: start}
	if p.policy.Level == None && p.machine.groups.unused(p.policy) {
		return out, nil
	}
	var err error
	if out.launcher, err = p.machine.launcher(p.ahead(), start); err != nil {
		return nil, err
	}
	if !p.private {
		return out, nil
	}
	out.sockets = out.launcher.sockets
	if err := out.serve(); err != nil {
		out.Close()
		return nil, err
	}
	return out, nil
}

// ahead is what launchers for this plan set up while they wait.
func (p *Plan) ahead() kind {
	sandboxed := p.policy.Level != None
	return kind{own: sandboxed && p.machine.namespaces, private: p.private, restrict: sandboxed, uid: p.uid}
}

// Close gives a place back that was not used.
func (p *Place) Close() {
	p.release()
	if p.launcher != nil {
		p.launcher.end()
		p.launcher.status.Close()
	}
}

func (p *Place) release() {
	if p.outbound != nil {
		p.outbound.Close()
	}
	if p.sockets != nil {
		p.sockets.close()
	}
}

// Start starts a program in the place. The error is one of the program
// (errors.Is(err, os.ErrNotExist)) or of the sandbox; the place is closed then.
func (p *Place) Start(c Command) (*Process, error) {
	out := &Process{plan: p.plan, place: p}
	program, err := p.plan.program(&c)
	if err != nil {
		p.Close()
		return nil, err
	}
	if p.sockets != nil { // the ports are the program's when nobody asked for them
		for _, which := range []int{handedAPI, handedSpans} {
			if f := p.sockets.take(which); f != nil {
				f.Close()
			}
		}
	}
	policy := p.plan.policy
	s := &spec{Program: program, Args: c.Args, Dir: c.Dir, File: uint64(policy.FileBytes), Tmp: uint64(policy.TmpBytes), Processes: uint64(cmp.Or(max(0, policy.Pids), defaultProcesses))}
	err = out.prepare(c, s)
	switch {
	case err != nil:
		p.Close()
	case p.launcher == nil:
		err = out.plain(c, s, p.start)
	default:
		err = out.launch(c, s)
	}
	if err != nil {
		out.Close()
		return nil, err
	}
	return out, nil
}

// prepare makes what the process is to find.
func (p *Process) prepare(c Command, s *spec) (err error) {
	policy := p.plan.policy
	if p.group, err = p.plan.machine.groups.make(c.ID, policy); err != nil {
		return fmt.Errorf("control group: %w", err)
	}
	s.Groups = p.group.entrances()
	var own map[string]string
	if policy.Level != None {
		if own, err = p.sandbox(c, s); err != nil {
			return err
		}
	}
	s.Env = c.environment(own)
	return nil
}

// sandbox adds what keeps the process apart, and returns its variables.
func (p *Process) sandbox(c Command, s *spec) (map[string]string, error) {
	m := p.plan.machine
	s.Paths = append([]path{{Path: c.Dir}, {Path: s.Program}}, p.plan.paths...)
	if target, err := filepath.EvalSymlinks(s.Program); err == nil && target != s.Program {
		s.Paths = append(s.Paths, path{Path: target})
	}
	s.Landlock, s.Seccomp, s.Restrict, s.Capabilities = m.landlock, m.seccomp, true, m.off.capabilities
	if p.plan.bound() {
		port, _ := strconv.ParseUint(c.Env["PORT"], 10, 16)
		s.Ports = &portRules{listen: uint16(port)}
	}
	if m.namespaces {
		return map[string]string{"HOME": "/tmp", "TMPDIR": "/tmp"}, nil
	}
	p.home = filepath.Join(p.plan.policy.Scratch, c.ID)
	tmp := filepath.Join(p.home, "tmp")
	if err := os.MkdirAll(tmp, 0o700); err != nil {
		return nil, fmt.Errorf("a temporary folder: %w", err)
	}
	s.Paths = append(s.Paths, path{Path: tmp, Write: true})
	return map[string]string{"HOME": tmp, "TMPDIR": tmp}, nil
}

// plain starts a program that needs no launcher: one exec less.
func (p *Process) plain(c Command, s *spec, start func(*exec.Cmd) error) error {
	cmd := &exec.Cmd{Path: s.Program, Args: s.Args, Dir: s.Dir, Env: s.Env, Stdout: c.Stdout, Stderr: c.Stderr, SysProcAttr: session()}
	if err := start(cmd); err != nil {
		return err
	}
	p.Cmd = cmd
	spareOthers(strconv.Itoa(cmd.Process.Pid))
	for resource, most := range s.limits() {
		// It can only fail when the process is gone already.
		_ = setLimit(cmd.Process.Pid, resource, most)
	}
	return nil
}

// launch tells the launcher what to do and waits until the program runs.
func (p *Process) launch(c Command, s *spec) error {
	l := p.place.launcher
	p.Cmd, p.status, p.lines = l.cmd, l.status, bufio.NewReader(l.status)
	err := l.tell(c, s)
	said, readErr := p.lines.ReadString('\n')
	said = strings.TrimSpace(said)
	switch {
	case said == "ok":
		p.main = firstChild(l.cmd.Process.Pid)
		return nil
	case said == "" && err == nil && errors.Is(readErr, io.EOF) && !l.kind.own:
		return nil
	case said != "":
		err = launchErrorOf(said)
	default:
		err = fmt.Errorf("the process that sets up the sandbox ended early: %w", errors.Join(err, readErr))
	}
	l.end()
	return err
}

// firstChild is the only child of an init; 0 when the kernel does not tell.
func firstChild(pid int) int {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	first, _, _ := strings.Cut(string(b), " ")
	n, _ := strconv.Atoi(first)
	return n
}

// Main is the process id of the program itself.
func (p *Process) Main() int {
	if p.main != 0 {
		return p.main
	}
	return p.Cmd.Process.Pid
}

// launchError is what the launcher said.
type launchError struct {
	text  string
	errno syscall.Errno
}

func (e *launchError) Error() string { return e.text }

// launchErrorOf reads a line of the launcher: "error", the number of a system's error
// and a text.
func launchErrorOf(line string) error {
	number, text, _ := strings.Cut(strings.TrimPrefix(strings.TrimSpace(line), "error "), " ")
	errno, _ := strconv.Atoi(number)
	return &launchError{text: text, errno: syscall.Errno(errno)}
}

// Unwrap lets errors.Is find os.ErrNotExist and the like.
func (e *launchError) Unwrap() error { return e.errno }

// Ending says how a program ended, given what Wait said: an init tells by its pipe,
// and a control group that memory was short.
func (p *Process) Ending(err error) error {
	if p.lines != nil {
		if said, _ := p.lines.ReadString('\n'); said != "" {
			kind, number, _ := strings.Cut(strings.TrimSpace(said), " ")
			if n, e := strconv.Atoi(number); e == nil && kind == "signal" {
				err = &endedBySignal{syscall.Signal(n)}
			}
		}
	}
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		if ws, ok := exit.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
			err = &endedBySignal{ws.Signal()}
		}
	}
	if ended, ok := errors.AsType[*endedBySignal](err); ok && ended.signal == syscall.SIGKILL && p.group.outOfMemory() > 0 {
		return fmt.Errorf("killed: out of memory, limit %d MiB", p.plan.policy.MemoryBytes>>20)
	}
	return err
}

// Killed reports whether an end is one by SIGKILL from outside, given what Ending
// returned. A process that took more memory than it may is not meant.
func Killed(err error) bool {
	ended, ok := errors.AsType[*endedBySignal](err)
	return ok && ended.signal == syscall.SIGKILL
}

// endedBySignal is an end by a signal, in the words of os/exec.
type endedBySignal struct{ signal syscall.Signal }

func (e *endedBySignal) Error() string { return "signal: " + e.signal.String() }

// Close gives back what the process had; call it after Wait.
func (p *Process) Close() {
	p.once.Do(func() {
		if p.status != nil {
			p.status.Close()
		}
		p.place.release()
		if l := p.place.launcher; l != nil {
			l.identity.release()
		}
		p.group.remove()
		if p.home != "" {
			_ = os.RemoveAll(p.home)
		}
	})
}
