package sandbox

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// reachable is a copy of a program that every user may run where a machine has uids
// without roots; else the program.
func reachable(t testing.TB, m *Machine, program string) string {
	t.Helper()
	if !m.alone {
		return program
	}
	dir, err := os.MkdirTemp("", "penstock-alone-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	b, err := os.ReadFile(program)
	out := filepath.Join(dir, "program")
	if err = errors.Join(err, os.Chmod(dir, 0o755), os.WriteFile(out, b, 0o755)); err != nil {
		t.Fatal(err)
	}
	return out
}

// onlyUIDs is a machine on which uids are the only means, or nothing is.
func onlyUIDs(t testing.TB, uid bool) *Machine {
	t.Helper()
	m := *machine()
	if m.uids == nil {
		t.Fatal("this machine cannot be tested: ", m.missing)
	}
	m.namespaces, m.private, m.landlock, m.seccomp, m.alone = false, false, 0, false, true
	m.off.proc, m.off.capabilities = true, true
	if !uid {
		m.uids = nil
	}
	return &m
}

// TestOwnUIDAlone: what a uid of its own keeps off when it is the only means.
func TestOwnUIDAlone(t *testing.T) {
	if os.Geteuid() != 0 {
		return // there are none
	}
	own := machineAddress(t)
	try := func(uid bool) []string {
		m, v := onlyUIDs(t, uid), newVictims(t, own)
		plan, err := m.Plan(Policy{Scratch: t.TempDir()})
		if err != nil {
			t.Fatal(err)
		}
		other, err := plan.Start(Command{ID: "other", Args: []string{"sleep", "600"}, Dir: t.TempDir(), Env: map[string]string{"SECRET": "other"}}, (*exec.Cmd).Start)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = other.Cmd.Process.Kill(); _ = other.Cmd.Wait(); other.Close() }()
		v.Instance = other.Main()
		return came(attackWith(t, m, Policy{}, v))
	}
	without, with := try(false), try(true)
	for _, a := range []string{"write /proc/sysrq-trigger", "read the memory of process 1", "through the root of process 1"} { // not on every machine
		if slices.Contains(with, a) {
			t.Errorf("%s: it comes through", a)
		}
	}
	for _, a := range []string{
		"on a port of the gateway, SO_REUSEPORT", "by UDP on a port of the gateway", "Unix socket of another function's shim",
		"read a key of the runner", "list its folder", "write into its folder", "read /etc/shadow", "write /etc", "write /usr", "make a device",
		"write /proc/sys/kernel/core_pattern", "write /proc/sys/vm/drop_caches", "read /proc/timer_list",
		"read the runner's environment", "through the runner's root",
		"signal the runner", "trace a process", "open the runner's memory", "take a descriptor of the runner",
		"signal another instance", "trace another instance", "read another instance's environment",
		"have capabilities", "a new file system", "chroot", "raw", "packets of a device", "changing its network", "entering the runner's network",
	} {
		if slices.Contains(with, a) {
			t.Errorf("%s: it comes through", a)
		}
		if !slices.Contains(without, a) {
			t.Errorf("%s: it does not come through without a uid either, so this shows nothing", a)
		}
	}
}

// TestOwnUID: what an instance with a uid of its own sees, and what is left of it.
func TestOwnUID(t *testing.T) {
	if os.Geteuid() != 0 {
		return
	}
	m := machine()
	if m.uids == nil {
		t.Fatal("this machine cannot be tested: ", m.missing)
	}
	source, data := t.TempDir(), t.TempDir()
	for _, f := range []string{filepath.Join(source, "private"), filepath.Join(data, "old")} {
		if err := os.WriteFile(f, []byte("content\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(source, 0o700); err != nil {
		t.Fatal(err)
	}
	old := unix.Umask(0o077) // that of the runner is none of the sandbox's
	defer unix.Umask(old)
	out, err := run(t, m, Policy{Read: []string{source}, Write: []string{data}, Pids: 77}, fmt.Sprintf(`id -un; id -G | wc -w; umask; ulimit -u 2>/dev/null || ulimit -p
cat %[1]s/private; stat -c %%u %[1]s/private | grep -c "$(id -u)"
(echo x > %[1]s/new) 2>/dev/null || echo read-only
cat %[2]s/old; echo x > %[2]s/new; rm %[2]s/old; echo x > "$TMPDIR/x"; echo x > /dev/shm/x; (echo piped > /dev/stdout) | cat`, source, data))
	if want := "function\n1\n0077\n77\ncontent\n1\nread-only\ncontent\npiped\n"; err != nil || out != want {
		t.Errorf("%q, %v, want %q", out, err, want)
	}
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(data, "new"), &st); err != nil || st.Uid != 0 || st.Gid != 0 {
		t.Errorf("what it wrote is of %d:%d (%v), want root's: its uid is another instance's later", st.Uid, st.Gid, err)
	}
	// A file system that cannot do this: the instance runs as it did before, and says so.
	plan, err := m.Plan(Policy{Read: []string{"/sys/class"}})
	if err != nil || slices.Contains(plan.Means, MeansUID) || len(plan.Missing) != 1 || !strings.HasPrefix(plan.Missing[0], MeansUID+": the file system of /sys/class") {
		t.Errorf("%v, %v, %v", plan.Means, plan.Missing, err)
	}
	if out, err := run(t, m, Policy{Read: []string{"/sys/class"}}, "id -u; ls /sys/class | grep -c net"); err != nil || out != "0\n1\n" {
		t.Errorf("%q, %v", out, err)
	}
}

// TestOwnUIDBelowPath: a function that lies in a folder of PATH is read by its own uid all
// the same.
func TestOwnUIDBelowPath(t *testing.T) {
	if os.Geteuid() != 0 {
		return
	}
	dir := t.TempDir()
	t.Setenv("PATH", os.Getenv("PATH")+string(os.PathListSeparator)+dir)
	source := filepath.Join(dir, "source")
	if err := os.Mkdir(source, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(source, "private"), []byte("content\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := run(t, Probe(), Policy{Read: []string{source}}, "cd "+source+" && cat private; (echo x > private) 2>/dev/null || echo read-only")
	if want := "content\nread-only\n"; err != nil || out != want {
		t.Errorf("%q, %v, want %q", out, err, want)
	}
}

// TestUIDsAreApart: instances have different uids, and nobody gets one while something
// of it lives.
func TestUIDsAreApart(t *testing.T) {
	if os.Geteuid() != 0 {
		return
	}
	m := *machine()
	var err error
	if m.uids, err = newUIDs(UIDRange{Base: 1_900_000_000, Count: 3}); err != nil {
		t.Fatal(err)
	}
	m.uids.locks = t.TempDir()
	plan, err := m.Plan(Policy{})
	if err != nil {
		t.Fatal(err)
	}
	begin := func() (*Process, uint32) {
		t.Helper()
		p, err := plan.Start(Command{ID: "x", Args: []string{"sleep", "600"}, Dir: t.TempDir()}, (*exec.Cmd).Start)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = p.Cmd.Process.Kill(); _ = p.Cmd.Wait(); p.Close() })
		var st unix.Stat_t
		if err := unix.Stat(fmt.Sprintf("/proc/%d", p.Main()), &st); err != nil || st.Uid != st.Gid {
			t.Fatal(st.Uid, st.Gid, err)
		}
		return p, st.Uid
	}
	first, uid0 := begin()
	_, uid1 := begin()
	if uid0 != 1_900_000_000 || uid1 != uid0+1 {
		t.Errorf("uids %d and %d", uid0, uid1)
	}
	// As after the end of a runner that was killed: only the instance itself is left.
	first.place.launcher.identity.release()
	third, uid2 := begin()
	if uid2 != uid1+1 {
		t.Errorf("uid %d was given away again while its instance lived: %d", uid0, uid2)
	}
	// Another runner with the same range.
	other := m
	if other.uids, err = newUIDs(m.uids.r); err != nil {
		t.Fatal(err)
	}
	other.uids.locks = m.uids.locks
	for name, u := range map[string]*uids{"this runner": m.uids, "another": other.uids} {
		if _, err := u.take(); err == nil || !strings.Contains(err.Error(), "all 3 uids from 1900000000 on are in use: --uid-count") {
			t.Errorf("%s: %v", name, err)
		}
	}
	_ = third.Cmd.Process.Kill()
	_ = third.Cmd.Wait()
	third.Close()
	again, err := other.uids.take()
	if err != nil || again.uid != uid2 {
		t.Fatalf("%+v, %v", again, err)
	}
	again.release()
}

// TestUIDRange: a range that cannot be had says why, and what to do.
func TestUIDRange(t *testing.T) {
	for _, test := range []struct {
		r    UIDRange
		want string
	}{
		{UIDRange{}, ""}, {UIDRange{Base: 65_536, Count: 1}, ""}, {UIDRange{Base: 1<<32 - 2, Count: 1}, ""},
		{UIDRange{Base: 1}, "1 to 65536 is not valid: it has to lie between 65536 and 4294967294"},
		{UIDRange{Base: 65_535, Count: 1}, "not valid"}, {UIDRange{Base: 1<<32 - 1, Count: 1}, "not valid"}, {UIDRange{Base: 1<<32 - 2, Count: 2}, "not valid"},
		{UIDRange{Base: 4_000_000_000, Count: 1 << 31}, "not valid"},
	} {
		if err := test.r.Check(); test.want == "" && err != nil || test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)) {
			t.Errorf("%+v: %v", test.r, err)
		}
	}
	u := &uids{r: UIDRange{Base: 100_000, Count: 10}}
	for text, want := range map[string]string{
		"a:x:99999:1\nb:x:100010:1\n": "", "a:x:100000:1\n": "a", "a:x:100009:1": "a", "short\na:x:none:1\n": "", "": "",
	} {
		if got := u.overlap(text, 2, -1); got != want {
			t.Errorf("passwd %q: %q, want %q", text, got, want)
		}
	}
	for text, want := range map[string]string{"a:1:99999\n": "", "a:1:100000\n": "a", "b:100010:5\n": "", "b:100009:5\n": "b", "c:100005:0\n": "", "c:0:4294967295": "c"} {
		if got := u.overlap(text, 1, 2); got != want {
			t.Errorf("subuid %q: %q, want %q", text, got, want)
		}
	}
	for text, want := range map[string]bool{"         0          0 4294967295\n": true, "0 1000 65536\n": false, "0 0 100009\n": false, "0 0 100010\n": true, "100000 5 10\n": true, "": false} {
		if got := u.within(text); got != want {
			t.Errorf("uid_map %q: %v", text, got)
		}
	}
	if _, err := machine().WithUIDs(UIDRange{Base: 5}); err == nil {
		t.Error("a range that is not valid is taken")
	}
}
