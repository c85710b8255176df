package sandbox

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// launcherEnv is the environment of the launcher, whose Go runtime is for the work of
// one thread. That of the function is in what it is told.
var launcherEnv = []string{"GOMAXPROCS=1", "GOGC=off", "GOTRACEBACK=none"}

// refillAfter is how long after a start the pool is filled again: a new launcher at
// once would compete with the program that starts.
const refillAfter = 15 * time.Millisecond

// kind is what a launcher sets up while it waits.
type kind struct{ own, private, restrict, uid bool }

// pooled is the kind that is kept ready.
func (m *Machine) pooled() kind {
	return kind{own: true, private: m.private, restrict: true, uid: m.uids != nil && !m.user}
}

// launcher is a process that waits to be told what to run.
type launcher struct {
	cmd  *exec.Cmd
	kind kind
	// control is where it is told, status where it answers.
	control, status *os.File
	// sockets are those of its own network; nil: it has none.
	sockets *sockets
	// network is the version of the machine's network for which its own was made.
	network uint64
	// identity is its uid; nil: that of the runner.
	identity *identity
}

// startLauncher starts one and waits until it is ready.
func (m *Machine) startLauncher(k kind, start func(*exec.Cmd) error) (*launcher, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socketpair", err)
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "control"), os.NewFile(uintptr(pair[1]), "control")
	statusR, statusW, err := os.Pipe()
	if err != nil {
		ours.Close()
		theirs.Close()
		return nil, err
	}
	// This very program, also when its file is gone or another by now.
	cmd := &exec.Cmd{Path: "/proc/self/exe", Args: []string{launcherName, "waits"}, Env: launcherEnv, ExtraFiles: []*os.File{theirs, statusW}}
	cmd.SysProcAttr = session()
	if k.own {
		m.unshare(cmd.SysProcAttr, k)
	}
	a := ahead{Own: k.own, Private: k.private, Restrict: k.restrict, PlainProc: m.off.proc, Capabilities: m.off.capabilities}
	if k.own || k.restrict {
		a.System = existing(append(systemPaths(), m.groups.shown()...))
	}
	l := &launcher{cmd: cmd, kind: k, control: ours, status: statusR}
	if k.uid {
		if l.identity, err = m.uids.take(); err != nil {
			for _, f := range []*os.File{ours, theirs, statusR, statusW} {
				f.Close()
			}
			return nil, err
		}
		a.UID = l.identity.uid
		cmd.ExtraFiles = append(cmd.ExtraFiles, l.identity.lock, l.identity.mapping)
	}
	if k.private {
		l.network, a.Net = m.nets.current()
		a.Net.Outbound = a.Net.Outbound && m.outbound
	}
	err = start(cmd)
	theirs.Close() // so that the end of the launcher is seen
	statusW.Close()
	if err != nil {
		ours.Close()
		statusR.Close()
		l.identity.release()
		return nil, err
	}
	if err := l.ready(&a); err != nil {
		l.end()
		statusR.Close()
		return nil, err
	}
	return l, nil
}

// ready tells a new launcher what to set up and waits for that.
func (l *launcher) ready(a *ahead) error {
	fd := int(l.control.Fd())
	if err := sendFrame(fd, frameAhead, a.pack()); err != nil {
		return err
	}
	got, _, files, err := receiveFrame(fd)
	if err == nil && got == frameReady {
		if l.kind.private {
			l.sockets = newSockets(l.control, files)
		}
		return nil
	}
	said, _ := io.ReadAll(l.status)
	if line := string(said); strings.HasPrefix(line, "error ") {
		return launchErrorOf(line)
	}
	return fmt.Errorf("the process that sets up the sandbox ended early: %w", err)
}

// tell says what to run, and where its output goes.
func (l *launcher) tell(c Command, s *spec) error {
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
	if l.sockets == nil {
		defer l.control.Close()
		return sendFrame(int(l.control.Fd()), frameSpec, s.pack(), output...)
	}
	l.sockets.mu.Lock()
	defer l.sockets.mu.Unlock()
	return sendFrame(int(l.control.Fd()), frameSpec, s.pack(), output...)
}

// end ends one that came to nothing.
func (l *launcher) end() {
	if l.sockets != nil {
		l.sockets.close()
	} else {
		l.control.Close()
	}
	_ = l.cmd.Process.Kill()
	_ = l.cmd.Wait()
	l.identity.release()
}

// pool keeps launchers of sandboxes ready: most of what a start costs is done then.
type pool struct {
	start func(*exec.Cmd) error
	most  int

	mu     sync.Mutex
	ready  []*launcher
	coming int
	refill *time.Timer
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
		p.refill = time.AfterFunc(refillAfter, func() { p.fill(m) })
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
	p.refill.Stop()
	p.mu.Unlock()
	p.filled.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, l := range p.ready {
		l.discard()
	}
}

// discard ends a launcher that nobody has.
func (l *launcher) discard() {
	l.end()
	l.status.Close()
}

// fill starts what is missing, beside all else.
func (p *pool) fill(m *Machine) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for !p.closed && len(p.ready)+p.coming < p.most {
		p.coming++
		p.filled.Go(func() {
			l, err := m.startLauncher(m.pooled(), p.start)
			p.mu.Lock()
			defer p.mu.Unlock()
			p.coming--
			if err == nil { // else the next start says what is wrong
				p.ready = append(p.ready, l)
			}
		})
	}
}

// take returns one that is ready; nil: none is.
func (p *pool) take() *launcher {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed || len(p.ready) == 0 {
		return nil
	}
	l := p.ready[0]
	p.ready = p.ready[1:]
	return l
}

// launcher is one that is ready, or a new one. start is called for it with its
// process running already in the first case.
func (m *Machine) launcher(k kind, start func(*exec.Cmd) error) (*launcher, error) {
	p := m.ready.pool.Load()
	if p == nil || k != m.pooled() {
		return m.startLauncher(k, start)
	}
	defer p.refill.Reset(refillAfter)
	for l := p.take(); l != nil; l = p.take() {
		if !l.alive() || l.kind.private && l.network != m.nets.version() {
			l.discard()
			continue
		}
		if err := start(l.cmd); err != nil {
			return nil, errors.Join(err, os.NewSyscallError("close", l.status.Close()))
		}
		return l, nil
	}
	return m.startLauncher(k, start)
}

// alive reports whether a launcher has not ended while it waited.
func (l *launcher) alive() bool {
	var info unix.Siginfo
	err := unix.Waitid(unix.P_PID, l.cmd.Process.Pid, &info, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil)
	return err == nil && info.Signo == 0
}
