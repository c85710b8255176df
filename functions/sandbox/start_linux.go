package sandbox

import (
	"bufio"
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
)

// Process is a process that was started.
type Process struct {
	// Cmd is the started command: its process is the init of the sandbox or, without
	// one, the program itself.
	Cmd *exec.Cmd

	main   int
	plan   *Plan
	group  *group
	home   string
	status *os.File
	lines  *bufio.Reader
	once   sync.Once
}

// Start starts a program. start starts the command that it gets, unless its process
// runs already (KeepReady), and says when it is there; the error is one of the program (errors.Is(err, os.ErrNotExist)) or of the
// sandbox.
func (p *Plan) Start(c Command, start func(*exec.Cmd) error) (*Process, error) {
	program, err := c.program()
	if err != nil {
		return nil, err
	}
	s := &spec{Program: program, Args: c.Args, Dir: c.Dir, File: uint64(p.policy.FileBytes)}
	if s.File == 0 {
		s.File = defaultFileSize
	}
	out := &Process{plan: p}
	if err := out.prepare(c, s); err != nil {
		out.Close()
		return nil, err
	}
	launch := out.launch
	if len(s.Groups) == 0 && !s.Restrict {
		launch = out.plain
	}
	if err := launch(c, s, start); err != nil {
		out.Close()
		return nil, err
	}
	return out, nil
}

// program finds the program as os/exec does: by PATH of the runner, or in Dir.
func (c *Command) program() (string, error) {
	name := c.Args[0]
	if !strings.ContainsRune(name, '/') {
		return exec.LookPath(name)
	}
	if !filepath.IsAbs(name) {
		name = filepath.Join(c.Dir, name)
	}
	_, err := os.Stat(name)
	return name, err
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
	p.home = filepath.Join(p.plan.policy.Scratch, c.ID)
	tmp, root := filepath.Join(p.home, "tmp"), filepath.Join(p.home, "root")
	for _, d := range []string{tmp, root} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return nil, fmt.Errorf("a temporary folder: %w", err)
		}
	}
	s.Paths = append([]path{{Path: c.Dir}, {Path: s.Program}}, p.plan.paths...)
	if real, err := filepath.EvalSymlinks(s.Program); err == nil && real != s.Program {
		s.Paths = append(s.Paths, path{Path: real})
	}
	s.Landlock, s.Seccomp, s.Restrict = m.landlock, m.seccomp, true
	if !m.namespaces {
		s.Paths = append(s.Paths, path{Path: tmp, Write: true})
		return map[string]string{"HOME": tmp, "TMPDIR": tmp}, nil
	}
	s.Init, s.Root = true, root
	s.Paths = append(s.Paths, path{Path: "/tmp", From: tmp, Write: true})
	return map[string]string{"HOME": "/tmp", "TMPDIR": "/tmp"}, nil
}

// plain starts a program that needs no launcher: one exec less.
func (p *Process) plain(c Command, s *spec, start func(*exec.Cmd) error) error {
	cmd := &exec.Cmd{Path: s.Program, Args: s.Args, Dir: s.Dir, Env: s.Env, Stdout: c.Stdout, Stderr: c.Stderr, SysProcAttr: session()}
	if err := start(cmd); err != nil {
		return err
	}
	p.Cmd = cmd
	for resource, most := range s.limits() {
		// It can only fail when the process is gone already.
		_ = setLimit(cmd.Process.Pid, resource, most)
	}
	return nil
}

// launch takes a launcher, tells it what to do and waits until the program runs.
func (p *Process) launch(c Command, s *spec, start func(*exec.Cmd) error) error {
	l, err := p.plan.machine.launcher(s.Init, start)
	if err != nil {
		return err
	}
	p.Cmd, p.status, p.lines = l.cmd, l.status, bufio.NewReader(l.status)
	err = l.tell(c, s)
	said, readErr := p.lines.ReadString('\n')
	said = strings.TrimSpace(said)
	switch {
	case said == "ok":
		p.main = firstChild(l.cmd.Process.Pid)
		return nil
	case said == "" && err == nil && errors.Is(readErr, io.EOF) && !s.Init:
		return nil
	case strings.HasPrefix(said, "error "):
		number, text, _ := strings.Cut(strings.TrimPrefix(said, "error "), " ")
		errno, _ := strconv.Atoi(number)
		err = &launchError{text: text, errno: syscall.Errno(errno)}
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

// endedBySignal is an end by a signal, in the words of os/exec.
type endedBySignal struct{ signal syscall.Signal }

func (e *endedBySignal) Error() string { return "signal: " + e.signal.String() }

// Close gives back what the process had; call it after Wait.
func (p *Process) Close() {
	p.once.Do(func() {
		if p.status != nil {
			p.status.Close()
		}
		p.group.remove()
		if p.home != "" {
			_ = os.RemoveAll(p.home)
		}
	})
}
