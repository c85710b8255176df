package sandbox

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
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
	user   bool
	groups *groups
	ready  *ready
	// means and missing are for the status.
	means, missing []string
}

// Probe finds out what this machine offers, by trying it once.
func Probe() *Machine {
	m := &Machine{groups: findGroups(), ready: &ready{}, means: []string{MeansNoCaps}}
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
	m.namespaces = true
	if err := m.try(); err != nil {
		m.namespaces = false
		m.missing = append(m.missing, fmt.Sprintf("%s, %s: %v", MeansPIDs, MeansRoot, err))
	} else {
		m.means = append(m.means, MeansPIDs, MeansRoot, MeansIPC, MeansUTS)
	}
	return m
}

// try starts a program in all namespaces.
func (m *Machine) try() error {
	program, err := exec.LookPath("true")
	if err != nil {
		return fmt.Errorf("try it: %w", err)
	}
	scratch, err := os.MkdirTemp("", "penstock-probe-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(scratch)
	p := &Plan{machine: m, policy: Policy{Scratch: scratch}}
	for _, s := range systemPaths() {
		if _, err := os.Stat(s); err == nil {
			p.paths = append(p.paths, path{Path: s})
		}
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
	if m.landlock > 0 && m.seccomp && m.namespaces {
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
func (m *Machine) unshare(a *syscall.SysProcAttr) {
	a.Cloneflags |= unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS
	if m.user {
		a.Cloneflags |= unix.CLONE_NEWUSER
		// Kept over the launcher's exec, which takes them from all but root; the
		// launcher drops them.
		a.AmbientCaps = []uintptr{unix.CAP_SYS_ADMIN, unix.CAP_SETPCAP}
		a.UidMappings = []syscall.SysProcIDMap{{ContainerID: os.Geteuid(), HostID: os.Geteuid(), Size: 1}}
		a.GidMappings = []syscall.SysProcIDMap{{ContainerID: os.Getegid(), HostID: os.Getegid(), Size: 1}}
	}
}
