package sandbox

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// answersUDP is a server that says "reached" to all that ask.
func answersUDP(t testing.TB, address string) netip.AddrPort {
	t.Helper()
	c, err := (&net.ListenConfig{Control: reusable}).ListenPacket(t.Context(), "udp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	go func() {
		b := make([]byte, 64)
		for {
			_, from, err := c.ReadFrom(b)
			if err != nil {
				return
			}
			_, _ = c.WriteTo([]byte(said), from)
		}
	}()
	return netip.MustParseAddrPort(c.LocalAddr().String())
}

// reusable lets others listen beside it, as Envoy does.
func reusable(_, _ string, c syscall.RawConn) error {
	var err error
	control := c.Control(func(fd uintptr) {
		err = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, 15 /* SO_REUSEPORT */, 1)
	})
	if control != nil {
		return control
	}
	return err
}

// answers is such a server of a stream.
func answers(t testing.TB, network, address string) net.Addr {
	t.Helper()
	config := &net.ListenConfig{}
	if network == "tcp" {
		config.Control = reusable
	}
	l, err := config.Listen(t.Context(), network, address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				_, _ = io.WriteString(c, said)
				c.Close()
			}()
		}
	}()
	return l.Addr()
}

// newVictims opens all that is attacked.
func newVictims(t testing.TB, own netip.Addr) *victims {
	t.Helper()
	dir := t.TempDir()
	v := &victims{
		TCP: map[string]netip.AddrPort{}, UDP: map[string]netip.AddrPort{}, Runner: os.Getpid(), Dir: dir,
		Secret: filepath.Join(dir, "key"), Socket: filepath.Join(dir, "s"), Abstract: fmt.Sprintf("@penstock-victim-%d-%d", os.Getpid(), time.Now().UnixNano()),
	}
	v.Names = v.Abstract + "-taken"
	for name, at := range map[string]string{"loopback": "127.0.0.1:0", "loopback2": "127.0.0.2:0", "loopback6": "[::1]:0", "machine": netip.AddrPortFrom(own, 0).String(), "all": "0.0.0.0:0"} {
		v.TCP[name] = netip.MustParseAddrPort(answers(t, "tcp", at).String())
	}
	for name, at := range map[string]string{"loopback": "127.0.0.1:0", "loopback6": "[::1]:0", "all": "0.0.0.0:0"} {
		v.UDP[name] = answersUDP(t, at)
	}
	for _, pid := range []*int{&v.Process, &v.Instance} {
		other := exec.Command("sleep", "600")
		if err := other.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = other.Process.Kill(); _ = other.Wait() })
		*pid = other.Process.Pid
	}
	answers(t, "unix", v.Socket)
	answers(t, "unix", v.Abstract)
	v.share(t)
	if err := os.WriteFile(v.Secret, []byte("PRIVATE KEY"), 0o600); err != nil {
		t.Fatal(err)
	}
	return v
}

// share makes what processes of a machine share by name.
func (v *victims) share(t testing.TB) {
	t.Helper()
	v.Queue = strings.TrimPrefix(v.Abstract, "@")
	v.Shm, v.SharedMemory = "/dev/shm/"+v.Queue, int(rand.Int32())|1 // 0 is IPC_PRIVATE
	if err := os.WriteFile(v.Shm, []byte("PRIVATE KEY"), 0o600); err != nil {
		t.Fatal(err)
	}
	id, _, errno := unix.Syscall(unix.SYS_SHMGET, uintptr(v.SharedMemory), 4096, unix.IPC_CREAT|unix.IPC_EXCL|0o600)
	if errno != 0 {
		t.Fatal("shmget: ", errno)
	}
	name, attributes := append([]byte(v.Queue), 0), [8]int{1: 1, 2: 16} // one message of 16 bytes
	fd, _, errno := unix.Syscall6(unix.SYS_MQ_OPEN, uintptr(unsafe.Pointer(&name[0])), unix.O_CREAT|unix.O_EXCL|unix.O_RDWR, 0o600, uintptr(unsafe.Pointer(&attributes)), 0, 0)
	if errno != 0 {
		t.Fatal("mq_open: ", errno)
	}
	t.Cleanup(func() {
		os.Remove(v.Shm)
		_, _, _ = unix.Syscall(unix.SYS_SHMCTL, id, unix.IPC_RMID, 0)
		unix.Close(int(fd))
		_, _, _ = unix.Syscall(unix.SYS_MQ_UNLINK, uintptr(unsafe.Pointer(&name[0])), 0, 0)
	})
	for _, dir := range machine().groups.shown() {
		v.Group = dir
	}
}

// attackWith runs all attacks in one sandbox, with the file of an inherited descriptor
// open, and returns what came of each, with what the test saw outside in place of what
// a listener says.
func attackWith(t *testing.T, m *Machine, p Policy, v *victims) map[string]string {
	t.Helper()
	p.Scratch, p.TmpBytes = t.TempDir(), 4<<20
	arg, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	started, r := starts(t, m, p, "attack", string(arg))
	defer r.Close()
	defer started.Close()
	results := map[string]string{}
	if err := json.NewDecoder(r).Decode(&results); err != nil {
		t.Fatalf("the attacker says nothing: %v, %v", err, started.Ending(started.Cmd.Wait()))
	}
	for name, got := range results {
		if at, ok := strings.CutPrefix(got, "done: listens"); ok && !stolen(t, v, strings.TrimSpace(strings.TrimPrefix(at, " at "))) {
			results[name] = "met by nobody"
		}
	}
	_ = syscall.Kill(started.Cmd.Process.Pid, syscall.SIGKILL)
	_ = started.Cmd.Wait()
	return results
}

// stolen reports whether anybody outside meets the attacker, where a victim listens or at
// a port that it told.
func stolen(t *testing.T, v *victims, port string) bool {
	t.Helper()
	tries := map[string][]string{
		"tcp":  {v.TCP["loopback"].String(), "[::1]:" + fmt.Sprint(v.TCP["loopback"].Port())},
		"udp":  {v.UDP["loopback"].String()},
		"unix": {v.Names},
	}
	if port != "" {
		tries["tcp"] = append(tries["tcp"], "127.0.0.1:"+port)
	}
	for network, addresses := range tries {
		for _, a := range addresses {
			for range 20 { // the kernel deals connections out among all that listen
				c, err := net.DialTimeout(network, a, 5*time.Second)
				if err != nil {
					continue
				}
				_ = c.SetDeadline(time.Now().Add(5 * time.Second))
				_, _ = io.WriteString(c, "x")
				line, _ := bufio.NewReader(c).ReadString('\n')
				c.Close()
				if line == "stolen\n" {
					return true
				}
			}
		}
	}
	return false
}

// came are the attacks that came through.
func came(results map[string]string) (out []string) {
	for _, a := range attacks {
		if strings.HasPrefix(results[a.name], "done: ") {
			out = append(out, a.name)
		}
	}
	return out
}

// without are the means that are turned off in turn, and the attacks that these alone
// keep off. All others are kept off by what is left.
var without = map[string]struct {
	less func(*Machine)
	open []string
	// uid are those of open that a uid of its own keeps off, too.
	uid []string
}{
	"landlock": {less: func(m *Machine) { m.landlock = 0 }},
	"seccomp": {less: func(m *Machine) { m.seccomp = false }, open: []string{
		"UDP-Lite", "of the kernel's packet filter", "of the kernel's drivers (generic netlink)", "of virtual machines (vsock)", "keys", "ask for a key", "io_uring",
	}},
	"read-only-proc": {less: func(m *Machine) { m.off.proc = true }, open: []string{"read /proc/kallsyms", "read /proc/timer_list"}, uid: []string{"read /proc/timer_list"}},
	"no-capabilities": {
		less: func(m *Machine) { m.off.capabilities = true },
		open: []string{"have capabilities", "raw", "changing its network", "make a device", "read the memory of process 1"},
		uid:  []string{"have capabilities", "raw", "changing its network", "make a device", "read the memory of process 1"},
	},
	"network-namespace": {less: func(m *Machine) { m.private = false }, open: reachedInMachine, uid: []string{"by UDP on a port of the gateway"}},
	"nothing else":      {less: func(*Machine) {}},
	"all namespaces": {less: func(m *Machine) { m.namespaces, m.private = false, false }, open: slices.Concat(reachedInMachine, []string{
		"Unix socket of another function's shim", "read /proc/kallsyms", "read /proc/timer_list",
		"memory of System V of the runner's user",
	})},
}

// reachedInMachine is what comes through in the machine's network.
var reachedInMachine = []string{
	"TCP to 127.0.0.1", "TCP to another address of the loopback", "TCP to 0.0.0.0", "TCP to ::1", "TCP to ::", "TCP to ::ffff:127.0.0.1",
	"TCP to the machine's address", "TCP to the machine's address, mapped to IPv6", "TCP to what listens on all addresses", "TCP to the name localhost",
	"TCP Fast Open to 127.0.0.1", "UDP to 127.0.0.1", "UDP to ::1", "UDP to the machine's address",
	"without bind, on a port of the kernel's choice", "by UDP on a port of the gateway", "on an abstract Unix socket", "seeing those of the machine",
}

// TestAttackSuite: what a function tries in a sandbox comes through at no level but
// NONE, and with any one of the means less only what the table says.
func TestAttackSuite(t *testing.T) {
	if missing := machine().lacks(); len(missing) > 0 || !machine().outbound {
		t.Fatal("this machine cannot be tested: ", missing)
	}
	inherited, err := os.Create(filepath.Join(t.TempDir(), "inherited"))
	if err != nil {
		t.Fatal(err)
	}
	defer inherited.Close()
	if _, _, errno := syscall.Syscall(syscall.SYS_FCNTL, inherited.Fd(), syscall.F_SETFD, 0); errno != 0 {
		t.Fatal(errno)
	}
	own := machineAddress(t)
	t.Run("NONE", func(t *testing.T) {
		if got := came(attackWith(t, machine(), Policy{Level: None}, newVictims(t, own))); len(got) < 20 {
			t.Errorf("as a plain process only these come through, so the suite does not attack: %q", got)
		}
	})
	for name, p := range map[string]Policy{
		"BEST": {}, "SANDBOX": {Level: Sandbox}, "network NONE": {Level: Sandbox, Network: Network{Mode: NoNetwork}},
	} {
		t.Run(name, func(t *testing.T) {
			withNetwork(t, func(t *testing.T, m *Machine) {
				results := attackWith(t, m, p, newVictims(t, own))
				if len(results) != len(attacks) {
					t.Errorf("%d of %d attacks were tried", len(results), len(attacks))
				}
				for _, a := range attacks {
					t.Logf("%s: %s: %s", a.group, a.name, results[a.name])
				}
				for _, a := range came(results) {
					t.Errorf("%s: %s", a, results[a])
				}
			})
		})
	}
	for _, name := range slices.Sorted(maps.Keys(without)) {
		if name != "nothing else" {
			t.Run("without "+name, func(t *testing.T) {
				m := *machine()
				without[name].less(&m)
				attacksWithout(t, &m, own, slices.DeleteFunc(slices.Clone(without[name].open), func(a string) bool {
					return m.uids != nil && slices.Contains(without[name].uid, a)
				}))
			})
		}
		if machine().uids != nil {
			t.Run("without own-uid and "+name, func(t *testing.T) {
				m := *machine()
				m.uids = nil
				without[name].less(&m)
				attacksWithout(t, &m, own, without[name].open)
			})
		}
	}
}

// attacksWithout attacks on a machine that lacks some means: only what is expected comes
// through.
func attacksWithout(t *testing.T, m *Machine, own netip.Addr, want []string) {
	t.Helper()
	results := attackWith(t, m, Policy{}, newVictims(t, own))
	got := came(results)
	for _, a := range attacks {
		// An ordinary user may do less.
		through, expected := slices.Contains(got, a.name), slices.Contains(want, a.name)
		if through && !expected || expected && !through && os.Geteuid() == 0 {
			t.Errorf("%s: %s", a.name, results[a.name])
		}
	}
}

// TestAttackSuiteAsUser is the suite run by an ordinary user.
func TestAttackSuiteAsUser(t *testing.T) {
	if os.Geteuid() != 0 {
		return // TestAttackSuite was
	}
	dir, err := os.MkdirTemp("", "penstock-user-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	const uid = 54321
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(dir, "bin", "sandbox.test") // its folder is on PATH, so functions see it
	for _, err := range []error{os.Mkdir(filepath.Dir(program), 0o755), os.WriteFile(program, self, 0o755), os.Chmod(dir, 0o755), os.Mkdir(filepath.Join(dir, "tmp"), 0o700), os.Chown(filepath.Join(dir, "tmp"), uid, uid)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.CommandContext(t.Context(), program, "-test.run=^TestAttackSuite$", "-test.v")
	cmd.Dir = dir
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "TMPDIR=" + filepath.Join(dir, "tmp"), "HOME=" + dir}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "--- PASS: TestAttackSuite ") {
		t.Errorf("%v\n%s", err, out)
	}
}
