// Package supervise runs child processes: it starts them in order, takes
// their logs, restarts with exponential back-off what dies, and stops all in
// reverse order so that nothing stays behind.
package supervise

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"syscall"
	"time"
)

// The back-off between restarts doubles from minBackOff to maxBackOff. A process
// that ran for stableAfter starts again from minBackOff.
const (
	minBackOff  = 200 * time.Millisecond
	maxBackOff  = 30 * time.Second
	stableAfter = time.Minute
)

// Process is a child to run.
type Process struct {
	// Name is unique and short; it stands with its log lines.
	Name    string
	Command string
	Args    []string
	// Env is appended to the environment of this process.
	Env []string
	Dir string
	// Ready returns nil as soon as the process serves. It is called once per
	// start, with a context that ends with ReadyTimeout or with the process.
	// nil: ready when started.
	Ready func(ctx context.Context) error
	// ReadyTimeout is how long Ready may take; 0: one minute.
	ReadyTimeout time.Duration
	// StopTimeout is the time from SIGTERM to SIGKILL of the group; 0: 10 s.
	StopTimeout time.Duration
	// Priority is the nice value of the process, 0 to 19.
	Priority int
}

// State is what a process is doing.
type State string

// The states of a process.
const (
	Starting State = "starting" // runs, but is not ready
	Running  State = "running"
	BackOff  State = "back-off" // died and waits for its restart
	Stopping State = "stopping"
	Exited   State = "exited" // was stopped, or never became ready
)

// Status is what is known of a process.
type Status struct {
	Name  string `json:"name"`
	State State  `json:"state"`
	// PID is 0 when no process runs.
	PID int `json:"pid,omitempty"`
	// Restarts counts the starts after the first.
	Restarts int `json:"restarts"`
	// Since is when State began.
	Since time.Time `json:"since"`
	// Detail says how it ended the last time.
	Detail string `json:"detail,omitempty"`
}

// Options of a Supervisor. The zero value works.
type Options struct {
	// Line receives each line that a process writes, without control characters
	// other than tabs; it is called by several goroutines. nil: they are dropped.
	Line func(process, line string)
	// Logger tells of deaths and restarts; nil: nothing.
	Logger *slog.Logger
	// OnChange is called with a snapshot after each change, one call at a time.
	OnChange func([]Status)
	// Sleep waits for d or for the end of ctx, whose error it then returns; nil:
	// the real one. Now is the time; nil: time.Now. Both are for tests.
	Sleep func(ctx context.Context, d time.Duration) error
	Now   func() time.Time
}

// Supervisor runs processes. Make it with New; it is safe for concurrent use.
type Supervisor struct {
	o Options

	mu       sync.Mutex
	children []*child
	closed   bool
	notify   sync.Mutex // held while OnChange runs
}

// New returns a Supervisor without processes.
func New(o Options) *Supervisor {
	if o.Line == nil {
		o.Line = func(string, string) {}
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Sleep == nil {
		o.Sleep = sleep
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	return &Supervisor{o: o}
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Start starts a process and waits until it is ready. A process that ends, or is
// not ready in time, before it was ready once is not restarted: the error says
// how it ended and has its last log lines, since it is most likely misused. From
// then on it is restarted whenever it dies, until Stop. One that never became ready
// may be started again.
func (s *Supervisor) Start(ctx context.Context, p Process) error {
	if p.ReadyTimeout == 0 {
		p.ReadyTimeout = time.Minute
	}
	if p.StopTimeout == 0 {
		p.StopTimeout = 10 * time.Second
	}
	c := &child{s: s, p: p, done: make(chan struct{}), ready: make(chan error, 1)}
	c.ctx, c.cancel = context.WithCancelCause(context.Background())
	c.log = &lines{name: p.Name, out: s.o.Line}
	c.status = Status{Name: p.Name, State: Starting, Since: s.o.Now()}
	s.mu.Lock()
	i := slices.IndexFunc(s.children, func(o *child) bool { return o.p.Name == p.Name })
	switch {
	case s.closed:
		s.mu.Unlock()
		return errors.New("the supervisor was stopped")
	case i >= 0 && !s.children[i].gone():
		s.mu.Unlock()
		return fmt.Errorf("there is a process %q already", p.Name)
	case i >= 0:
		c.status.Restarts = s.children[i].status.Restarts + 1
		s.children[i] = c
	default:
		s.children = append(s.children, c)
	}
	s.mu.Unlock()
	go c.run()
	select {
	case err := <-c.ready:
		if err != nil {
			<-c.done
			return fmt.Errorf("%s: %w", p.Name, err)
		}
		return nil
	case <-ctx.Done():
		c.stop()
		return fmt.Errorf("%s: %w", p.Name, context.Cause(ctx))
	}
}

// Status returns all processes in the order of their start.
func (s *Supervisor) Status() []Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]Status, len(s.children))
	for i, c := range s.children {
		out[i] = c.status
	}
	return out
}

// Signal sends a signal to one process, not to its group.
func (s *Supervisor) Signal(name string, sig syscall.Signal) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.children {
		if c.p.Name != name {
			continue
		}
		if c.status.PID == 0 {
			return fmt.Errorf("%s does not run now", name)
		}
		return syscall.Kill(c.status.PID, sig)
	}
	return fmt.Errorf("there is no process %q", name)
}

// Stop ends all processes in the reverse order of their start, each by SIGTERM
// and, after its StopTimeout, by SIGKILL of its group, and returns when all are
// gone. Later calls of Start fail.
func (s *Supervisor) Stop() {
	s.mu.Lock()
	s.closed = true
	children := slices.Clone(s.children)
	s.mu.Unlock()
	for _, c := range slices.Backward(children) {
		c.stop()
	}
}

// change updates the status of a child and tells OnChange.
func (s *Supervisor) change(c *child, f func(*Status)) {
	s.notify.Lock()
	defer s.notify.Unlock()
	s.mu.Lock()
	before := c.status.State
	f(&c.status)
	if c.status.State != before {
		c.status.Since = s.o.Now()
	}
	s.mu.Unlock()
	if s.o.OnChange != nil {
		s.o.OnChange(s.Status())
	}
}
