package instance

import (
	"fmt"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"

	"github.com/penstock-gateway/penstock/functions/sandbox"
	"github.com/penstock-gateway/penstock/internal/launch"
)

// instanceVariable is in the environment of every process of an instance, so
// that those which left its process group are found when it ends.
const instanceVariable = "PENSTOCK_INSTANCE"

// process is a child in a session and a process group of its own. All of the
// group goes when its leader goes.
type process struct {
	id      string
	started *sandbox.Process
	done    chan struct{}
	// err is what Wait said; read it after done.
	err error

	mu     sync.Mutex
	reaped bool
}

// place is where the process of an instance is to run.
type place struct {
	*sandbox.Place
	id  string
	pid int
}

// reserve makes a place for the process of an instance.
func reserve(plan *sandbox.Plan, id string) (*place, error) {
	if plan == nil {
		plan = sandbox.Plain()
	}
	p := &place{id: id}
	var err error
	p.Place, err = plan.Reserve(func(cmd *exec.Cmd) error {
		return startFamily(id, func() (int, error) {
			if cmd.Process == nil {
				if err := launch.Start(cmd); err != nil {
					return 0, err
				}
			}
			p.pid = cmd.Process.Pid
			return p.pid, nil
		})
	})
	if err != nil {
		p.forget()
		return nil, fmt.Errorf("make a place for the process: %w", err)
	}
	return p, nil
}

// forget ends what was started for it.
func (p *place) forget() {
	if p.pid != 0 {
		endFamily(p.id, p.pid)
	}
}

// close gives back a place that was not used.
func (p *place) close() {
	p.Place.Close()
	p.forget()
}

func (p *place) startProcess(c sandbox.Command) (*process, error) {
	started, err := p.Start(c)
	if err != nil {
		p.forget()
		return nil, fmt.Errorf("start %q in %s: %w", c.Args[0], c.Dir, err)
	}
	out := &process{id: c.ID, started: started, done: make(chan struct{})}
	go out.wait()
	return out, nil
}

func (p *process) pid() int { return p.started.Cmd.Process.Pid }

func (p *process) wait() {
	// The group is killed while its leader is a zombie: its number cannot have
	// been given to another by then.
	if awaitExit(p.pid()) {
		p.signal(syscall.SIGKILL)
	}
	err := p.started.Ending(p.started.Cmd.Wait())
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
		_ = launch.Signal(p.started.Cmd, s)
	}
}

// ending says how a process ended: "exit status 3", "signal: killed".
func (p *process) ending() string {
	if p.err == nil {
		return "exit status 0"
	}
	return p.err.Error()
}

// killed reports whether it ended by SIGKILL, which does not come of what it was doing;
// call it after done.
func (p *process) killed() bool { return sandbox.Killed(p.err) }

// cpu is the processor time that it used, with children that it waited for; known
// after done.
func (p *process) cpu() time.Duration {
	if st := p.started.Cmd.ProcessState; st != nil {
		return st.UserTime() + st.SystemTime()
	}
	return 0
}

// release ends what is left of it and gives back what it had; call it after done.
func (p *process) release() {
	endFamily(p.id, p.pid())
	p.started.Close()
}

// environment is all that a process gets: nothing of the runner's own but where
// programs, the home folder and temporary files are. own are the names of those in sets,
// of which later ones win: what leads to the runner, the function's, the contract's.
func environment(id string, sets ...map[string]string) (env map[string]string, own map[string]bool) {
	env, own = map[string]string{"LANG": "C.UTF-8"}, map[string]bool{}
	for _, k := range []string{"PATH", "HOME", "TMPDIR"} {
		if v, ok := os.LookupEnv(k); ok {
			env[k] = v
		}
	}
	for _, from := range sets {
		for k, v := range from {
			env[k], own[k] = v, true
		}
	}
	env[instanceVariable] = id // last: nobody else has a say in it
	return env, own
}
