package sandbox

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Machine is what this machine offers.
type Machine struct {
	landlock   int
	seccomp    bool
	namespaces bool
	// user means that namespaces need a user namespace: this process has not the
	// right to make them.
	user bool
	// private means that a network of its own can be had, outbound that connections
	// can be led out of it.
	private, outbound bool
	groups            *groups
	// off are means that tests turn off, to see what the others keep.
	// alone has a uid of its own without a root of its own, for tests, too.
	off   struct{ proc, capabilities bool }
	alone bool
	// uids are handed out to instances; nil: they run with that of the runner.
	uids  *uids
	ready *ready
	nets  *machineNet
	// means and missing are for the status.
	means, missing []string
}

// Probe finds out what this machine offers, by trying it once.
func Probe() *Machine {
	m := &Machine{groups: findGroups(), ready: &ready{}, nets: &machineNet{}, means: []string{MeansNoCaps}}
	if abi, err := landlockABI(); err != nil {
		m.missing = append(m.missing, MeansLandlock+": "+err.Error())
	} else {
		m.landlock = abi
		m.means = append(m.means, MeansLandlock)
	}
	if err := seccompMissing(); err != nil {
		m.missing = append(m.missing, MeansSeccomp+": "+err.Error())
	} else {
		m.seccomp = true
		m.means = append(m.means, MeansSeccomp)
	}
	m.user = os.Geteuid() != 0
	m.probeNamespaces()
	_ = m.probeUIDs(UIDRange{})
	return m
}

// probeNamespaces tries all namespaces, and then with fewer means of the network.
func (m *Machine) probeNamespaces() {
	m.namespaces, m.private, m.outbound = true, true, true
	withOutbound := m.try()
	if withOutbound == nil {
		m.means = append(m.means, MeansPIDs, MeansRoot, MeansReadOnly, MeansTmpLimit, MeansIPC, MeansUTS, MeansNetwork, MeansOutbound)
		return
	}
	m.outbound = false
	withNetwork := m.try()
	if withNetwork == nil {
		m.means = append(m.means, MeansPIDs, MeansRoot, MeansReadOnly, MeansTmpLimit, MeansIPC, MeansUTS, MeansNetwork)
		m.missing = append(m.missing, fmt.Sprintf("%s: %v", MeansOutbound, withOutbound))
		return
	}
	m.private = false
	m.missing = append(m.missing, fmt.Sprintf("%s, %s: %v", MeansNetwork, MeansOutbound, withNetwork))
	if err := m.try(); err != nil {
		m.namespaces = false
		m.missing = append(m.missing, fmt.Sprintf("%s, %s, %s, %s: %v", MeansPIDs, MeansRoot, MeansReadOnly, MeansTmpLimit, err))
		return
	}
	m.means = append(m.means, MeansPIDs, MeansRoot, MeansReadOnly, MeansTmpLimit, MeansIPC, MeansUTS)
}

// WithUIDs is the machine with another range of uids for instances. Its error is one of
// a range that was asked for and cannot be had; the zero range is the default, without
// which instances run all the same.
func (m *Machine) WithUIDs(r UIDRange) (*Machine, error) {
	if r == (UIDRange{}) {
		return m, nil
	}
	if err := r.Check(); err != nil {
		return nil, err
	}
	out := *m
	out.uids, out.ready = nil, &ready{}
	out.means = slices.DeleteFunc(slices.Clone(m.means), func(s string) bool { return s == MeansUID })
	out.missing = slices.DeleteFunc(slices.Clone(m.missing), func(s string) bool { return strings.HasPrefix(s, MeansUID+":") })
	if err := out.probeUIDs(r); err != nil {
		return nil, err
	}
	return &out, nil
}

// probeUIDs finds out whether instances can have uids of their own, by trying it.
func (m *Machine) probeUIDs(r UIDRange) error {
	if m.user { // an ordinary user is the second wall already: root's files and processes are out of reach
		return nil
	}
	err := errors.New("it needs " + MeansRoot)
	if m.namespaces {
		if m.uids, err = newUIDs(r); err == nil {
			err = m.try()
		}
	}
	if err != nil {
		m.uids = nil
		m.missing = append(m.missing, MeansUID+": "+err.Error())
		return err
	}
	m.means = append(m.means, MeansUID)
	return nil
}

// ownUID decides whether instances of a plan run with uids of their own.
func (p *Plan) ownUID() {
	m := p.machine
	if m.uids != nil && !m.user && (m.namespaces || m.alone) {
		var err error
		if m.namespaces {
			err = m.uids.mappable(p.paths)
		}
		if p.uid = err == nil; p.uid {
			return
		}
		p.Missing = append(p.Missing, MeansUID+": "+err.Error())
	}
	p.Means = slices.DeleteFunc(p.Means, func(s string) bool { return s == MeansUID })
}

// try starts a program in the namespaces that there are believed to be.
func (m *Machine) try() error {
	program, err := exec.LookPath("true")
	if err != nil {
		return fmt.Errorf("try it: %w", err)
	}
	p, err := m.Plan(Policy{})
	if err != nil {
		return err
	}
	started, err := p.Start(Command{ID: "probe", Args: []string{program}, Dir: filepath.Dir(program)}, (*exec.Cmd).Start)
	if err != nil {
		if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) {
			return fmt.Errorf("this process may not make them: %w (they need root, or user namespaces that everybody may make)", err)
		}
		return err
	}
	err = started.Ending(started.Cmd.Wait())
	started.Close()
	return err
}

// lacks is what SANDBOX needs and this machine has not.
func (m *Machine) lacks() []string {
	if m.landlock > 0 && m.seccomp && m.namespaces && m.private {
		return nil
	}
	return m.missing
}

// limits adds the limits to the plan's means.
func (p *Plan) limits() {
	add := func(wanted int64, means, controller string) {
		if wanted == 0 {
			return
		}
		if err := p.machine.groups.offers(controller); err != nil {
			p.Missing = append(p.Missing, means+": "+err.Error())
			return
		}
		p.Means = append(p.Means, means)
	}
	add(p.policy.MemoryBytes, MeansMemory, "memory")
	add(p.policy.CPUMillis, MeansCPU, "cpu")
	add(p.policy.Pids, MeansPidsLimit, "pids")
}

// unshare has a process start in namespaces of its own.
func (m *Machine) unshare(a *syscall.SysProcAttr, k kind) {
	a.Cloneflags |= unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS
	if k.private {
		a.Cloneflags |= unix.CLONE_NEWNET
	}
	if m.user {
		a.Cloneflags |= unix.CLONE_NEWUSER
		// Kept over the launcher's exec, which takes them from all but root; the
		// launcher drops them.
		a.AmbientCaps = []uintptr{unix.CAP_SYS_ADMIN, unix.CAP_SETPCAP, unix.CAP_NET_ADMIN, unix.CAP_NET_BIND_SERVICE}
		a.UidMappings = []syscall.SysProcIDMap{{ContainerID: os.Geteuid(), HostID: os.Geteuid(), Size: 1}}
		a.GidMappings = []syscall.SysProcIDMap{{ContainerID: os.Getegid(), HostID: os.Getegid(), Size: 1}}
	}
}
