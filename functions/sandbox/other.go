//go:build !linux

package sandbox

import (
	"context"
	"net"
	"os/exec"
	"strconv"
)

// Machine is what this machine offers: nothing.
type Machine struct {
	means, missing    []string
	private, outbound bool
}

const onlyLinux = "all isolation: it is made of what only Linux has"

// Probe finds out what this machine offers.
func Probe() *Machine { return &Machine{missing: []string{onlyLinux}} }

// KeepReady does nothing here.
func (m *Machine) KeepReady(int, func(*exec.Cmd) error) (end func()) { return func() {} }

func (m *Machine) lacks() []string { return m.missing }

func (p *Plan) bound() bool { return false }

func (m *Machine) lacksOf(...string) []string { return m.missing }

func (p *Plan) limits() {
	p.Means = nil
	if p.policy.MemoryBytes+p.policy.CPUMillis+p.policy.Pids+p.policy.FileBytes > 0 {
		p.Missing = append(p.Missing, "resources: they are bounded on Linux only")
	}
}

// Process is a process that was started.
type Process struct{ Cmd *exec.Cmd }

// Place is where a program is to run.
type Place struct {
	plan  *Plan
	start func(*exec.Cmd) error
}

// Reserve makes a place for one program.
func (p *Plan) Reserve(start func(*exec.Cmd) error) (*Place, error) { return &Place{p, start}, nil }

// Start starts a program.
func (p *Plan) Start(c Command, start func(*exec.Cmd) error) (*Process, error) {
	return (&Place{p, start}).Start(c)
}

// Start starts a program in the place.
func (p *Place) Start(c Command) (*Process, error) {
	cmd := exec.Command(c.Args[0], c.Args[1:]...)
	cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr, cmd.SysProcAttr = c.Dir, c.environment(nil), c.Stdout, c.Stderr, session()
	return &Process{Cmd: cmd}, p.start(cmd)
}

// Close gives a place back that was not used.
func (p *Place) Close() {}

// Private reports whether the place has a network of its own.
func (p *Place) Private() bool { return false }

// Listen returns a listener for the Runtime API.
func (p *Place) Listen() (net.Listener, error) { return net.Listen("tcp", "127.0.0.1:0") }

// ListenSpans returns a listener for spans of the program.
func (p *Place) ListenSpans() (net.Listener, error) { return net.Listen("tcp", "127.0.0.1:0") }

// Dial connects to a port on 127.0.0.1.
func (p *Place) Dial(ctx context.Context, port int) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, "tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
}

// Main is the process id of the program.
func (p *Process) Main() int { return p.Cmd.Process.Pid }

// Owns reports whether the other end of a connection is of this sandbox; they are not
// told apart here.
func (p *Process) Owns(net.Conn) bool { return true }

// Ending says how a process ended; call it after Wait.
func (p *Process) Ending(err error) error { return err }

// Killed reports whether an end is one by SIGKILL, given what Ending returned.
func Killed(err error) bool { return err != nil && err.Error() == "signal: killed" }

// Close gives back what the process had.
func (p *Process) Close() {}

// WithUIDs is the machine itself.
func (m *Machine) WithUIDs(r UIDRange) (*Machine, error) { return m, r.Check() }

func (p *Plan) ownUID() {}
