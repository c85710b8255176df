package instance

import (
	"fmt"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"

	"github.com/penstock-gateway/penstock/internal/launch"
)

// instanceVariable is in the environment of every process of an instance, so
// that those which left its process group are found when it ends.
const instanceVariable = "PENSTOCK_INSTANCE"

// process is a child in a session and a process group of its own. All of the
// group goes when its leader goes.
type process struct {
	cmd  *exec.Cmd
	done chan struct{}
	// err is what Wait said; read it after done.
	err error

	mu     sync.Mutex
	reaped bool
}

func startProcess(id string, c Command, dir string, env []string, stdout, stderr *os.File) (*process, error) {
	cmd := exec.Command(c.Args[0], c.Args[1:]...)
	cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr = dir, env, stdout, stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err := startFamily(id, func() (int, error) {
		if err := launch.Start(cmd); err != nil {
			return 0, err
		}
		return cmd.Process.Pid, nil
	})
	if err != nil {
		return nil, fmt.Errorf("start %q in %s: %w", c.Args[0], dir, err)
	}
	limit(cmd.Process.Pid)
	p := &process{cmd: cmd, done: make(chan struct{})}
	go p.wait()
	return p, nil
}

func (p *process) pid() int { return p.cmd.Process.Pid }

func (p *process) wait() {
	// The group is killed while its leader is a zombie: its number cannot have
	// been given to another by then.
	if awaitExit(p.pid()) {
		p.signal(syscall.SIGKILL)
	}
	err := p.cmd.Wait()
	p.mu.Lock()
	p.err, p.reaped = err, true
	p.mu.Unlock()
	close(p.done)
}

// signal sends a signal to the whole group, unless it is gone.
func (p *process) signal(s syscall.Signal) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.reaped {
		_ = launch.Signal(p.cmd, s)
	}
}

// ending says how a process ended: "exit status 3", "signal: killed".
func (p *process) ending() string {
	if p.err == nil {
		return "exit status 0"
	}
	return p.err.Error()
}

// cpu is the processor time that it used, with children that it waited for; known
// after done.
func (p *process) cpu() time.Duration {
	if st := p.cmd.ProcessState; st != nil {
		return st.UserTime() + st.SystemTime()
	}
	return 0
}

// environment is all that a process gets: nothing of the runner's own but where
// programs, the home folder and temporary files are.
func environment(id string, function map[string]string, contract map[string]string) []string {
	env := map[string]string{"LANG": "C.UTF-8"}
	for _, k := range []string{"PATH", "HOME", "TMPDIR"} {
		if v, ok := os.LookupEnv(k); ok {
			env[k] = v
		}
	}
	for _, from := range []map[string]string{function, contract} {
		for k, v := range from {
			env[k] = v
		}
	}
	env[instanceVariable] = id // last: nobody else has a say in it
	out := make([]string, 0, len(env))
	for k, v := range env {
		out = append(out, k+"="+v)
	}
	return out
}
