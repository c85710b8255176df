package sandbox

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/penstock-gateway/penstock/internal/launch"
)

var machine = sync.OnceValue(Probe)

// run runs a shell script by a plan and returns what it printed and how it ended.
func run(t testing.TB, m *Machine, p Policy, script string) (string, error) {
	t.Helper()
	if p.Scratch == "" {
		p.Scratch = t.TempDir()
	}
	plan, err := m.Plan(p)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	out, err := os.Create(filepath.Join(t.TempDir(), "out"))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	c := Command{
		ID: "test", Args: []string{"sh", "-c", script}, Dir: dir, Stdout: out, Stderr: out,
		Env: map[string]string{"PATH": os.Getenv("PATH"), "HOME": "/home/test", "BYTES": "\xff\xfe"}, Own: map[string]bool{"HOME": true},
	}
	started, err := plan.Start(c, (*exec.Cmd).Start)
	if err != nil {
		t.Fatal(err)
	}
	err = started.Ending(started.Cmd.Wait())
	started.Close()
	b, readErr := os.ReadFile(out.Name())
	if readErr != nil {
		t.Fatal(readErr)
	}
	if left, _ := os.ReadDir(p.Scratch); len(left) > 0 {
		t.Errorf("left in the scratch folder: %v", left)
	}
	return string(b), err
}

// machines are this one and what it would be without some of its means.
func machines() map[string]*Machine {
	full := machine()
	m := map[string]*Machine{"full": full}
	for name, less := range map[string]func(*Machine){
		"no namespaces": func(m *Machine) { m.namespaces, m.private = false, false },
		"no landlock":   func(m *Machine) { m.landlock = 0 },
		"landlock 1":    func(m *Machine) { m.landlock = min(m.landlock, 1) },
		"landlock 3":    func(m *Machine) { m.landlock = min(m.landlock, 3) },
		"no seccomp":    func(m *Machine) { m.seccomp = false },
		"no network":    func(m *Machine) { m.private = false },
		"no nftables":   func(m *Machine) { m.outbound = false },
		"user":          func(m *Machine) { m.user = true },
	} {
		c := *full
		less(&c)
		c.missing = append(slices.Clone(full.missing), name+" in this test")
		m[name] = &c
	}
	return m
}

// TestEnds: how a program ends is told as it was, whatever is between.
func TestEnds(t *testing.T) {
	for name, m := range machines() {
		t.Run(name, func(t *testing.T) {
			for script, want := range map[string]string{"exit 0": "", "exit 3": "exit status 3", "kill -9 $$": "signal: killed", "kill -SEGV $$": "signal: segmentation fault"} {
				_, err := run(t, m, Policy{}, script)
				got := ""
				if err != nil {
					got = err.Error()
				}
				if got != want {
					t.Errorf("%s: %q, want %q", script, got, want)
				}
			}
			out, _ := run(t, m, Policy{}, `echo "$HOME"; printf %s "$BYTES" | od -An -tx1; echo x > "$TMPDIR/x" && cat "$TMPDIR/x"`)
			if !strings.Contains(out, "/home/test\n ff fe\nx\n") {
				t.Errorf("the environment and the temporary folder: %q", out)
			}
		})
	}
}

// TestRefused: with any one of the means less the others hold.
func TestRefused(t *testing.T) {
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, m := range machines() {
		t.Run(name, func(t *testing.T) {
			out, err := run(t, m, Policy{}, "cat "+secret+"; echo x > /usr/penstock-x; echo x > ./y; mount -t tmpfs none /tmp; unshare -U true; cat /etc/shadow; exit 0")
			if err != nil || strings.Contains(out, "secret\n") || strings.Contains(out, "root:") {
				t.Errorf("%s (%v)", out, err)
			}
			for _, f := range []string{secret} {
				if b, _ := os.ReadFile(f); string(b) != "secret" {
					t.Errorf("%s is now %q", f, b)
				}
			}
			if _, err := os.Stat("/usr/penstock-x"); err == nil {
				os.Remove("/usr/penstock-x")
				t.Error("it wrote to /usr")
			}
		})
	}
}

// TestInitIsClosed: what runs in a sandbox gets neither at the memory nor at the open
// files of its init, whose threads have rights that it has not, by whatever of the
// means there are.
func TestInitIsClosed(t *testing.T) {
	for name, m := range machines() {
		if !m.namespaces {
			continue
		}
		t.Run(name, func(t *testing.T) {
			out, err := run(t, m, Policy{}, `for f in mem environ maps auxv; do
	if (exec 3< /proc/1/$f && head -c 1 <&3) >/dev/null 2>&1; then echo "read $f"; fi
	if (exec 3<> /proc/1/$f) 2>/dev/null; then echo "write $f"; fi
done
ls /proc/1/fd/* 2>/dev/null
for p in /proc/1/task/*; do if (exec 3<> $p/mem) 2>/dev/null; then echo "write $p/mem"; fi; done
ls /proc/self/fd/0 >/dev/null && echo own`)
			if err != nil || out != "own\n" {
				t.Errorf("%q, %v", out, err)
			}
		})
	}
}

// TestOrphans: what a program leaves behind ends with it, and the status of an orphan
// is not taken for the program's.
func TestOrphans(t *testing.T) {
	if !machine().namespaces {
		t.Fatal("this machine cannot be tested: ", machine().missing)
	}
	dir := t.TempDir()
	p := Policy{Write: []string{dir}}
	out, err := run(t, machine(), p, "(setsid sh -c 'trap \"\" TERM; echo up > "+dir+"/up; sleep 600' &) ; (sh -c 'exit 9' &); while [ ! -e "+dir+"/up ]; do sleep 0.01; done; exit 4")
	if err == nil || err.Error() != "exit status 4" {
		t.Errorf("%s (%v)", out, err)
	}
	if left := launch.WaitGone(launch.Descendants(os.Getpid()), 0); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

func TestPlanErrors(t *testing.T) {
	for name, m := range machines() {
		_, err := m.Plan(Policy{Level: Sandbox})
		weak := name == "no namespaces" || name == "no landlock" || name == "no seccomp" || name == "no network"
		if weak != (err != nil) || err != nil && !strings.Contains(err.Error(), name+" in this test") {
			t.Errorf("SANDBOX on a machine with %s: %v", name, err)
		}
	}
	plan, err := machine().Plan(Policy{Level: None})
	if err != nil || !slices.Equal(plan.Means, []string{MeansFileLimit}) {
		t.Errorf("%+v, %v", plan, err)
	}
	for _, program := range []string{"no-such-program", "./absent", "/usr/absent/program"} {
		for _, l := range []Level{None, Best} {
			plan, err := machine().Plan(Policy{Level: l, Scratch: t.TempDir()})
			if err != nil {
				t.Fatal(err)
			}
			_, err = plan.Start(Command{ID: "x", Args: []string{program}, Dir: t.TempDir()}, (*exec.Cmd).Start)
			if !errors.Is(err, os.ErrNotExist) && !errors.Is(err, exec.ErrNotFound) {
				t.Errorf("%s: %v", program, err)
			}
		}
	}
	// A file that is there but cannot be executed.
	dir := t.TempDir()
	file := filepath.Join(dir, "text")
	if err := os.WriteFile(file, []byte("text"), 0o755); err != nil {
		t.Fatal(err)
	}
	plan, err = machine().Plan(Policy{Scratch: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := plan.Start(Command{ID: "x", Args: []string{file}, Dir: dir}, (*exec.Cmd).Start); !errors.Is(err, unix.ENOEXEC) {
		t.Errorf("no program: %v", err)
	}
}

// TestGroups reads both hierarchies as machines have them.
func TestGroups(t *testing.T) {
	v1 := newGroups("9:name=systemd:/\n8:pids:/\n4:memory:/api/x\n2:cpu,cpuacct:/user\n0::/\n", `
30 20 0:26 / /sys/fs/cgroup/pids rw,relatime - cgroup cgroup rw,pids
31 20 0:27 / /sys/fs/cgroup/memory rw shared:1 - cgroup cgroup rw,memory
32 20 0:28 /user /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
33 20 0:29 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
`)
	for c, want := range map[string]string{"pids": "/sys/fs/cgroup/pids", "memory": "/sys/fs/cgroup/memory/api/x", "cpu": "/sys/fs/cgroup/cpu,cpuacct"} {
		if v1.v1[c] != want {
			t.Errorf("%s: %q, want %q", c, v1.v1[c], want)
		}
	}
	v2 := newGroups("0::/system.slice/penstock.service\n", "33 20 0:29 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n")
	if len(v2.v1) != 0 || v2.v2 != "/sys/fs/cgroup/system.slice/penstock.service" {
		t.Errorf("%+v", v2)
	}
	// A container without a cgroup namespace: its group is not below what is mounted.
	if none := newGroups("0::/other\n", "33 20 0:29 /mine /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"); none.v2 != "" {
		t.Errorf("%+v", none)
	}
	if err := (&groups{}).usable("memory"); err == nil {
		t.Error("a machine without control groups offers memory limits")
	}
}

// TestUnified writes the files of version 2; a plain folder takes them, too.
func TestUnified(t *testing.T) {
	dir := t.TempDir()
	g := &groups{v2: dir, v1: map[string]string{}, reasons: map[string]error{"cpu": errors.New("none")}}
	// Of the kernel a new group has its files; here they are made as they are written.
	made, err := g.make("x", Policy{MemoryBytes: 64 << 20, Pids: 10, CPUMillis: 500})
	if err != nil {
		t.Fatal(err)
	}
	for file, want := range map[string]string{"memory.max": "67108864", "memory.swap.max": "0", "pids.max": "10"} {
		if b, _ := os.ReadFile(filepath.Join(made.dirs[0], file)); string(b) != want {
			t.Errorf("%s: %q", file, b)
		}
	}
	if _, err := os.Stat(filepath.Join(made.dirs[0], "cpu.max")); err == nil {
		t.Error("a controller that is not there was written to")
	}
	if err := os.WriteFile(made.memory, []byte("low 0\noom 1\noom_kill 2\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if n := made.outOfMemory(); n != 2 {
		t.Errorf("%d killed", n)
	}
}
