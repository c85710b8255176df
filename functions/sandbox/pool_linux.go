package sandbox

import (
	"bytes"
	"encoding/gob"
	"errors"
	"os"
	"os/exec"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// launcherEnv is the environment of the launcher, whose Go runtime is for the work of
// one thread. That of the function is in what it is told.
var launcherEnv = []string{"GOMAXPROCS=1", "GOGC=off", "GOTRACEBACK=none"}

// launcher is a process that waits to be told what to run.
type launcher struct {
	cmd *exec.Cmd
	// spec is where it is told, status where it answers.
	spec, status *os.File
}

// startLauncher starts one.
func (m *Machine) startLauncher(init bool, start func(*exec.Cmd) error) (*launcher, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socketpair", err)
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "spec"), os.NewFile(uintptr(pair[1]), "spec")
	defer theirs.Close()
	statusR, statusW, err := os.Pipe()
	if err != nil {
		ours.Close()
		return nil, err
	}
	defer statusW.Close()
	// This very program, also when its file is gone or another by now.
	cmd := &exec.Cmd{Path: "/proc/self/exe", Args: []string{launcherName, "waits"}, Env: launcherEnv, ExtraFiles: []*os.File{theirs, statusW}}
	cmd.SysProcAttr = session()
	if init {
		m.unshare(cmd.SysProcAttr)
	}
	if err := start(cmd); err != nil {
		ours.Close()
		statusR.Close()
		return nil, err
	}
	return &launcher{cmd: cmd, spec: ours, status: statusR}, nil
}

// tell says what to run, and where its output goes.
func (l *launcher) tell(c Command, s *spec) error {
	defer l.spec.Close()
	var b bytes.Buffer
	if err := gob.NewEncoder(&b).Encode(s); err != nil {
		return err
	}
	var output []int
	for _, f := range []*os.File{c.Stdout, c.Stderr} {
		if f == nil {
			null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
			if err != nil {
				return err
			}
			defer null.Close()
			f = null
		}
		output = append(output, int(f.Fd()))
	}
	if err := unix.Sendmsg(int(l.spec.Fd()), []byte{0}, unix.UnixRights(output...), nil, 0); err != nil {
		return os.NewSyscallError("sendmsg", err)
	}
	_, err := l.spec.Write(b.Bytes())
	return err
}

// end ends one that came to nothing.
func (l *launcher) end() {
	l.spec.Close()
	_ = l.cmd.Process.Kill()
	_ = l.cmd.Wait()
}

// pool keeps launchers of sandboxes ready: most of what a start costs is done then.
type pool struct {
	start func(*exec.Cmd) error
	most  int

	mu     sync.Mutex
	ready  []*launcher
	coming int
	closed bool
	filled sync.WaitGroup
}

// ready is the pool of a machine.
type ready struct {
	// pool is nil when no launchers are kept ready; keepers counts who wants it.
	pool    atomic.Pointer[pool]
	mu      sync.Mutex
	keepers int
}

// KeepReady has some launchers ready from now on, for the starts to come; start
// starts the command that it gets. Who asks while others have asked shares theirs.
// What it returns ends them, when all have called it.
func (m *Machine) KeepReady(most int, start func(*exec.Cmd) error) (end func()) {
	if !m.namespaces || most <= 0 {
		return func() {}
	}
	r := m.ready
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.keepers++; r.keepers == 1 {
		p := &pool{start: start, most: most}
		r.pool.Store(p)
		p.fill(m)
	}
	return func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.keepers--; r.keepers == 0 {
			r.pool.Swap(nil).close()
		}
	}
}

// close ends what is ready.
func (p *pool) close() {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.filled.Wait()
	for _, l := range p.ready {
		l.end()
		l.status.Close()
	}
}

// fill starts what is missing, beside all else.
func (p *pool) fill(m *Machine) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for !p.closed && len(p.ready)+p.coming < p.most {
		p.coming++
		p.filled.Go(func() {
			l, err := m.startLauncher(true, p.start)
			p.mu.Lock()
			defer p.mu.Unlock()
			p.coming--
			if err == nil { // else the next start says what is wrong
				p.ready = append(p.ready, l)
			}
		})
	}
}

// launcher is one that is ready, or a new one. start is called for it with its
// process running already in the first case.
func (m *Machine) launcher(init bool, start func(*exec.Cmd) error) (*launcher, error) {
	if p := m.ready.pool.Load(); p != nil && init {
		p.mu.Lock()
		var l *launcher
		if n := len(p.ready); n > 0 && !p.closed {
			l, p.ready = p.ready[0], p.ready[1:]
		}
		p.mu.Unlock()
		p.fill(m)
		if l != nil {
			if !l.alive() {
				l.end()
				l.status.Close()
			} else if err := start(l.cmd); err != nil {
				return nil, errors.Join(err, os.NewSyscallError("close", l.status.Close()))
			} else {
				return l, nil
			}
		}
	}
	return m.startLauncher(init, start)
}

// alive tells whether a launcher has not ended while it waited.
func (l *launcher) alive() bool {
	var info unix.Siginfo
	err := unix.Waitid(unix.P_PID, l.cmd.Process.Pid, &info, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil)
	return err == nil && info.Signo == 0
}
