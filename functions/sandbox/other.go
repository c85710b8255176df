//go:build !linux

package sandbox

import (
	"net"
	"os/exec"
)

// Machine is what this machine offers: nothing.
type Machine struct{ means, missing []string }

const onlyLinux = "all isolation: it is made of what only Linux has"

// Probe finds out what this machine offers.
func Probe() *Machine { return &Machine{missing: []string{onlyLinux}} }

func (m *Machine) lacks() []string { return m.missing }

func (p *Plan) limits() {
	p.Means = nil
	if p.policy.MemoryBytes+p.policy.CPUMillis+p.policy.Pids+p.policy.FileBytes > 0 {
		p.Missing = append(p.Missing, "resources: they are bounded on Linux only")
	}
}

// Process is a process that was started.
type Process struct{ Cmd *exec.Cmd }

// Start starts a process.
func (p *Plan) Start(c Command, start func(*exec.Cmd) error) (*Process, error) {
	cmd := exec.Command(c.Args[0], c.Args[1:]...)
	cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr, cmd.SysProcAttr = c.Dir, c.environment(nil), c.Stdout, c.Stderr, session()
	return &Process{Cmd: cmd}, start(cmd)
}

// Main is the process id of the program.
func (p *Process) Main() int { return p.Cmd.Process.Pid }

// Owns tells whether the other end of a connection is of this sandbox; they are not
// told apart here.
func (p *Process) Owns(net.Conn) bool { return true }

// Ending says how a process ended; call it after Wait.
func (p *Process) Ending(err error) error { return err }

// Close gives back what the process had.
func (p *Process) Close() {}
