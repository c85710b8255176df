package sandbox

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// leafName is the group, below the one that was delegated, into which the runner goes. The
// kernel lets no group have both processes and bounds for the groups below it (cgroups(7),
// "no internal processes" rule). DelegateSubgroup=runner of systemd makes the same.
const leafName = "runner"

// leafRounds bounds how often processes are moved: meanwhile they may start others.
const leafRounds = 100

// above is the delegated group of a runner that is in its leaf already, as one that is
// started again is: dir itself when it is not a leaf.
func above(dir string) string {
	parent := filepath.Dir(dir)
	if filepath.Base(dir) != leafName {
		return dir
	}
	if b, err := os.ReadFile(filepath.Join(parent, "cgroup.procs")); err != nil || len(bytes.TrimSpace(b)) > 0 {
		return dir
	}
	return parent
}

// passOn lets groups below the runner's have bounds of a controller. Where the runner's
// group was delegated, it first moves what is in it into a leaf.
func (g *groups) passOn(controller string) error {
	write := func() error {
		return os.WriteFile(filepath.Join(g.v2, "cgroup.subtree_control"), []byte("+"+controller), 0)
	}
	err := write()
	if !errors.Is(err, syscall.EBUSY) {
		return err
	}
	if other, is := g.foreign(); is && !delegated(g.v2) {
		return fmt.Errorf("%w: the group has processes itself, such as process %d, which is none of the runner's: start the runner as a service with a group of its own, with Delegate=yes of systemd", err, other)
	}
	for range leafRounds {
		if err := g.moveAll(); err != nil {
			return fmt.Errorf("what is in the group cannot be moved to %s: %w", filepath.Join(g.v2, leafName), err)
		}
		if err = write(); !errors.Is(err, syscall.EBUSY) {
			break
		}
	}
	return err
}

// moveAll moves the processes of the runner's group into the leaf.
func (g *groups) moveAll() error {
	leaf := filepath.Join(g.v2, leafName)
	if err := os.Mkdir(leaf, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	for _, pid := range g.processes() {
		if pid == 0 {
			continue // it cannot be named
		}
		err := os.WriteFile(filepath.Join(leaf, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0)
		if err != nil && !errors.Is(err, syscall.ESRCH) { // ended
			return err
		}
	}
	return nil
}

// processes are those in the runner's own group, of which 0 is one that cannot be seen.
func (g *groups) processes() (out []int) {
	b, _ := os.ReadFile(filepath.Join(g.v2, "cgroup.procs"))
	for line := range strings.Lines(string(b)) {
		if pid, err := strconv.Atoi(strings.TrimSpace(line)); err == nil {
			out = append(out, pid)
		}
	}
	return out
}

// foreign is a process of the runner's group that is neither the runner nor what it
// started, if there is one; 0 is one that cannot be seen from here.
func (g *groups) foreign() (pid int, is bool) {
	for _, pid := range g.processes() {
		ours := false
		for up := pid; up > 0 && !ours; up = parentOf(up) {
			ours = up == os.Getpid()
		}
		if !ours {
			return pid, true
		}
	}
	return 0, false
}

// parentOf is the parent of a process; 0 when it has ended.
func parentOf(pid int) int {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	// The name, in parentheses, may have any characters (proc_pid_stat(5)).
	end := bytes.LastIndexByte(b, ')')
	if err != nil || end < 0 {
		return 0
	}
	if f := strings.Fields(string(b[end+1:])); len(f) > 1 {
		parent, _ := strconv.Atoi(f[1])
		return parent
	}
	return 0
}

// delegated reports whether systemd gave a group away with all that is in it
// (https://systemd.io/CGROUP_DELEGATION).
func delegated(dir string) bool {
	for _, name := range []string{"trusted.delegate", "user.delegate"} {
		var value [2]byte
		if n, err := unix.Getxattr(dir, name, value[:]); err == nil && string(value[:n]) == "1" {
			return true
		}
	}
	return false
}
