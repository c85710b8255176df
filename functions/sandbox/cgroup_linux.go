package sandbox

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const (
	// groupPrefix begins the names of our groups; the runner's process id follows.
	groupPrefix = "penstock-"
	// cpuPeriod is over which processor time is bounded, in microseconds.
	cpuPeriod = 100_000
)

// groups are where control groups of instances are made: below the runner's own.
type groups struct {
	// v1 are the folders by controller, v2 is the one of the unified hierarchy.
	v1 map[string]string
	v2 string
	// reasons why a controller cannot be used.
	reasons map[string]error
}

// group is the control group of one instance: a folder in each hierarchy.
type group struct {
	dirs []string
	// memory is the file that tells of processes killed for want of memory.
	memory string
}

var controllers = []string{"memory", "cpu", "pids"}

// findGroups reads the runner's own groups (cgroups(7)) and where they are mounted.
func findGroups() *groups {
	own, _ := os.ReadFile("/proc/self/cgroup")
	mounts, _ := os.ReadFile("/proc/self/mountinfo")
	g := newGroups(string(own), string(mounts))
	g.v2 = above(g.v2)
	g.check()
	g.tidy()
	return g
}

func newGroups(own, mounts string) *groups {
	g := &groups{v1: map[string]string{}, reasons: map[string]error{}}
	type mounted struct{ root, point string }
	v1, v2 := map[string]mounted{}, mounted{}
	for line := range strings.Lines(mounts) {
		before, after, ok := strings.Cut(strings.TrimSpace(line), " - ")
		f, t := strings.Fields(before), strings.Fields(after)
		if !ok || len(f) < 5 || len(t) < 3 {
			continue
		}
		switch t[0] {
		case "cgroup2":
			v2 = mounted{f[3], f[4]}
		case "cgroup":
			for c := range strings.SplitSeq(t[2], ",") {
				v1[c] = mounted{f[3], f[4]}
			}
		}
	}
	at := func(m mounted, path string) string {
		rel, err := filepath.Rel(m.root, path)
		if m.point == "" || err != nil || rel == ".." || strings.HasPrefix(rel, "../") {
			return ""
		}
		return filepath.Join(m.point, rel)
	}
	for line := range strings.Lines(own) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(f) != 3 {
			continue
		}
		if f[1] == "" {
			g.v2 = at(v2, f[2])
			continue
		}
		for c := range strings.SplitSeq(f[1], ",") {
			if dir := at(v1[c], f[2]); dir != "" {
				g.v1[c] = dir
			}
		}
	}
	return g
}

// check finds out for each controller whether groups can be made.
func (g *groups) check() {
	for _, c := range controllers {
		g.reasons[c] = g.usable(c)
	}
}

func (g *groups) usable(controller string) error {
	if dir, ok := g.v1[controller]; ok {
		probe := filepath.Join(dir, g.name("probe-"+controller))
		if err := os.Mkdir(probe, 0o755); err != nil {
			return fmt.Errorf("no control group can be made: %w", err)
		}
		return os.Remove(probe)
	}
	if g.v2 == "" {
		return errors.New("no control groups are mounted")
	}
	has := func(file string) bool {
		b, _ := os.ReadFile(filepath.Join(g.v2, file))
		return strings.Contains(" "+strings.TrimSpace(string(b))+" ", " "+controller+" ")
	}
	if has("cgroup.subtree_control") {
		probe := filepath.Join(g.v2, g.name("probe-"+controller))
		if err := os.Mkdir(probe, 0o755); err != nil {
			return fmt.Errorf("no control group can be made: %w", err)
		}
		return os.Remove(probe)
	}
	if !has("cgroup.controllers") {
		return fmt.Errorf("the control group %s has no %s controller", g.v2, controller)
	}
	if err := g.passOn(controller); err != nil {
		return fmt.Errorf("the controller cannot be passed on to groups below %s, in which the runner is: %w", g.v2, err)
	}
	return nil
}

func (g *groups) offers(controller string) error { return g.reasons[controller] }

// name is that of a group. Others may see it, so it has the random part of the id alone, and
// not which function it is.
func (g *groups) name(id string) string {
	return groupPrefix + strconv.Itoa(os.Getpid()) + "-" + id[max(0, len(id)-10):]
}

// shown are the folders of control groups that programs see: those of the runner, with the
// groups of instances in them. Language runtimes read there how much memory and how many
// cores they have.
func (g *groups) shown() (out []string) {
	if g == nil {
		return nil
	}
	for _, dir := range append(slices.Collect(maps.Values(g.v1)), g.v2) {
		if dir != "" && !slices.Contains(out, dir) {
			out = append(out, dir)
		}
	}
	return out
}

// tidy removes what a killed runner left; groups that are in use cannot be removed.
func (g *groups) tidy() {
	dirs := []string{g.v2}
	for _, c := range controllers {
		dirs = append(dirs, g.v1[c])
	}
	for _, dir := range dirs {
		left, _ := filepath.Glob(filepath.Join(dir, groupPrefix+"*"))
		for _, d := range left {
			pid, _, _ := strings.Cut(strings.TrimPrefix(filepath.Base(d), groupPrefix), "-")
			if n, err := strconv.Atoi(pid); err == nil && dir != "" && errors.Is(syscall.Kill(n, 0), syscall.ESRCH) {
				_ = os.Remove(d)
			}
		}
	}
}

// unused reports whether a policy needs no group.
func (g *groups) unused(p Policy) bool {
	needs := func(value int64, controller string) bool { return value > 0 && g.reasons[controller] == nil }
	return g == nil || !needs(p.MemoryBytes, "memory") && !needs(p.CPUMillis, "cpu") && !needs(p.Pids, "pids")
}

// make makes the group of an instance; nil when it has no limits.
func (g *groups) make(id string, p Policy) (*group, error) {
	if g == nil {
		return nil, nil
	}
	out := &group{}
	files := map[string]map[string]string{} // by folder
	add := func(controller string, v1, v2 map[string]string) {
		if g.reasons[controller] != nil {
			return
		}
		parent, values := g.v2, v2
		if dir, ok := g.v1[controller]; ok {
			parent, values = dir, v1
		}
		dir := filepath.Join(parent, g.name(id))
		if files[dir] == nil {
			files[dir] = map[string]string{}
		}
		for k, v := range values {
			files[dir][k] = v
		}
		if controller == "memory" {
			out.memory = filepath.Join(dir, "memory.events")
			if _, ok := g.v1[controller]; ok {
				out.memory = filepath.Join(dir, "memory.oom_control")
			}
		}
	}
	if n := strconv.FormatInt(p.MemoryBytes, 10); p.MemoryBytes > 0 {
		add("memory", map[string]string{"memory.limit_in_bytes": n, "memory.memsw.limit_in_bytes": n},
			map[string]string{"memory.max": n, "memory.swap.max": "0", "memory.oom.group": "1"})
	}
	if n := p.CPUMillis * cpuPeriod / 1000; p.CPUMillis > 0 {
		quota := strconv.FormatInt(max(n, 1000), 10)
		add("cpu", map[string]string{"cpu.cfs_period_us": strconv.Itoa(cpuPeriod), "cpu.cfs_quota_us": quota},
			map[string]string{"cpu.max": quota + " " + strconv.Itoa(cpuPeriod)})
	}
	if p.Pids > 0 {
		n := strconv.FormatInt(p.Pids, 10)
		add("pids", map[string]string{"pids.max": n}, map[string]string{"pids.max": n})
	}
	for dir, values := range files {
		if err := out.fill(dir, values); err != nil {
			out.remove()
			return nil, err
		}
	}
	return out, nil
}

// optional are files that a kernel without swap accounting has not.
var optional = map[string]bool{"memory.memsw.limit_in_bytes": true, "memory.swap.max": true, "memory.oom.group": true}

func (g *group) fill(dir string, values map[string]string) error {
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	g.dirs = append(g.dirs, dir)
	// The bound of memory comes before that of memory with swap, which may not be less.
	for _, last := range []bool{false, true} {
		for name, v := range values {
			if optional[name] != last {
				continue
			}
			if err := os.WriteFile(filepath.Join(dir, name), []byte(v), 0o644); err != nil && !last {
				return err
			}
		}
	}
	return nil
}

// entrances are the files that let a process into the group.
func (g *group) entrances() []string {
	if g == nil {
		return nil
	}
	var out []string
	for _, d := range g.dirs {
		out = append(out, filepath.Join(d, "cgroup.procs"))
	}
	return out
}

// outOfMemory is how many processes were killed for want of memory.
func (g *group) outOfMemory() int {
	if g == nil || g.memory == "" {
		return 0
	}
	b, _ := os.ReadFile(g.memory)
	for line := range strings.Lines(string(b)) {
		if n, ok := strings.CutPrefix(line, "oom_kill "); ok {
			count, _ := strconv.Atoi(strings.TrimSpace(n))
			return count
		}
	}
	return 0
}

// remove kills what is left in the group (version 2) and removes it. The kernel lets
// go of ended processes a moment after they are gone.
func (g *group) remove() {
	if g == nil {
		return
	}
	for _, d := range g.dirs {
		if kill := filepath.Join(d, "cgroup.kill"); exists(kill) {
			_ = os.WriteFile(kill, []byte("1"), 0)
		}
		for range 100 {
			if err := os.Remove(d); err == nil || errors.Is(err, os.ErrNotExist) {
				break
			}
			time.Sleep(10 * time.Millisecond)
		}
	}
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
