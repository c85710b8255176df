package sandbox

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// TestMain lets the test binary be what runs in a sandbox.
func TestMain(m *testing.M) {
	if what := os.Getenv("SANDBOX_RUNS"); what != "" {
		inside[what](strings.Fields(os.Getenv("SANDBOX_ARGS")))
		return
	}
	// On PATH, so that it may be run in a sandbox: it lies where only its user may look.
	if self, err := os.Executable(); err == nil {
		os.Setenv("PATH", os.Getenv("PATH")+string(os.PathListSeparator)+filepath.Dir(self))
	}
	os.Exit(m.Run())
}

// inside are the programs that run in a sandbox.
var inside = map[string]func(args []string){
	"dial": func(addresses []string) {
		for _, a := range addresses {
			c, err := net.DialTimeout("tcp", a, 5*time.Second)
			if err != nil {
				fmt.Println(a, "refused")
				continue
			}
			_ = c.SetDeadline(time.Now().Add(5 * time.Second))
			said, err := bufio.NewReader(c).ReadString('\n')
			if err != nil {
				said = "reset\n"
			}
			fmt.Print(a, " ", said)
			c.Close()
		}
	},
	"resolve": func(names []string) {
		for _, n := range names {
			fmt.Println(net.LookupHost(n))
		}
	},
	"serve": func([]string) {
		l, err := net.Listen("tcp", "127.0.0.1:"+strconv.Itoa(ServerPort))
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		c, err := l.Accept()
		if err == nil {
			_, _ = io.Copy(c, c)
			c.Close()
		}
	},
}

// victim is a server of this machine that says its address to all who connect.
func victim(t testing.TB, address string) string {
	t.Helper()
	l, err := net.Listen("tcp", address)
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
			fmt.Fprintln(c, "reached")
			c.Close()
		}
	}()
	return l.Addr().String()
}

// starts starts this test binary as one of inside.
func starts(t testing.TB, m *Machine, p Policy, what string, args ...string) (*Process, *os.File) {
	t.Helper()
	plan, err := m.Plan(p)
	if err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	started, err := plan.Start(Command{
		ID: "test", Args: []string{reachable(t, m, self)}, Dir: t.TempDir(), Stdout: w, Stderr: w,
		Env: map[string]string{"SANDBOX_RUNS": what, "SANDBOX_ARGS": strings.Join(args, " ")},
	}, (*exec.Cmd).Start)
	if err != nil {
		t.Fatal(err)
	}
	return started, r
}

// output is what one of inside prints until it ends.
func output(t testing.TB, m *Machine, p Policy, what string, args ...string) string {
	t.Helper()
	started, r := starts(t, m, p, what, args...)
	defer r.Close()
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	if err := started.Ending(started.Cmd.Wait()); err != nil {
		t.Errorf("%v: %s", err, b)
	}
	started.Close()
	return string(b)
}

// withNetwork are this machine as root and as an ordinary user would use it.
func withNetwork(t *testing.T, test func(*testing.T, *Machine)) {
	if !machine().outbound {
		t.Fatal("this machine cannot be tested: ", machine().missing)
	}
	for name, user := range map[string]bool{"user namespace": true, "root": false} {
		m := *machine()
		m.user = m.user || user
		t.Run(name, func(t *testing.T) { test(t, &m) })
	}
}

func machineAddress(t *testing.T) netip.Addr {
	t.Helper()
	for _, a := range lookAtMachine().Machine {
		if a.Is4() && !a.IsLoopback() {
			return a
		}
	}
	t.Fatal("this machine has no address besides the loopback's")
	return netip.Addr{}
}

// TestNetwork: a program reaches nothing of this machine but what it is allowed.
func TestNetwork(t *testing.T) {
	withNetwork(t, func(t *testing.T, m *Machine) {
		own := machineAddress(t)
		all := []string{
			victim(t, "127.0.0.1:0"), victim(t, "[::1]:0"), victim(t, netip.AddrPortFrom(own, 0).String()), victim(t, "127.0.0.2:0"),
		}
		mapped := "[::ffff:127.0.0.1]:" + all[0][strings.LastIndexByte(all[0], ':')+1:]
		for mode := range map[NetworkMode]bool{Outbound: true, NoNetwork: true} {
			var mu sync.Mutex
			var refused []netip.AddrPort
			p := Policy{Network: Network{Mode: mode, Refused: func(a netip.AddrPort, _ string) {
				mu.Lock()
				defer mu.Unlock()
				refused = append(refused, a)
			}}}
			tries := append(all, mapped, "169.254.169.254:80", "[64:ff9b::7f00:1]:80", "0.0.0.0:"+all[0][10:])
			for line := range strings.Lines(output(t, m, p, "dial", tries...)) {
				if !strings.HasSuffix(line, " refused\n") && !strings.HasSuffix(line, " reset\n") {
					t.Errorf("%v: %s", mode, line)
				}
			}
			for _, a := range all {
				to := netip.MustParseAddrPort(a)
				p.Network.Allow = append(p.Network.Allow, to)
			}
			for line := range strings.Lines(output(t, m, p, "dial", all...)) {
				if !strings.HasSuffix(line, " reached\n") {
					t.Errorf("%v, allowed: %s", mode, line)
				}
			}
		}
		if got := output(t, m, Policy{Network: Network{Mode: HostNetwork}}, "dial", all[0]); !strings.HasSuffix(got, "reached\n") {
			t.Errorf("the machine's network: %s", got)
		}
	})
}

// TestDial: the runner reaches what listens in a sandbox, and nobody else does.
func TestDial(t *testing.T) {
	withNetwork(t, func(t *testing.T, m *Machine) {
		p, r := starts(t, m, Policy{}, "serve")
		defer r.Close()
		defer p.Close()
		var c net.Conn
		for deadline := time.Now().Add(time.Minute); c == nil; {
			var err error
			if c, err = p.place.Dial(t.Context(), ServerPort); err != nil && time.Now().After(deadline) {
				t.Fatal(err)
			}
		}
		if _, err := io.WriteString(c, "hello"); err != nil {
			t.Fatal(err)
		}
		_ = c.(*net.TCPConn).CloseWrite()
		if b, err := io.ReadAll(c); string(b) != "hello" || err != nil {
			t.Errorf("%q, %v", b, err)
		}
		c.Close()
		if err := p.Ending(p.Cmd.Wait()); err != nil {
			t.Error(err)
		}
	})
}

// TestNames: questions to name servers are asked of those of this machine, whatever
// address they are sent to, and nothing else is passed on.
func TestNames(t *testing.T) {
	withNetwork(t, func(t *testing.T, m *Machine) {
		if got := output(t, m, Policy{Network: Network{Mode: NoNetwork}}, "resolve", "example.com"); !strings.HasPrefix(got, "[] ") {
			t.Errorf("without a network: %s", got)
		}
		if got := output(t, m, Policy{}, "resolve", "localhost"); !strings.HasSuffix(got, "<nil>\n") {
			t.Errorf("localhost: %s", got)
		}
	})
}

// TestFallbacks: what a machine does not offer is said, and refused where it was
// demanded.
func TestFallbacks(t *testing.T) {
	less := *machine()
	less.private = false
	less.missing = []string{MeansNetwork + ": none in this test"}
	if _, err := less.Plan(Policy{Network: Network{Mode: NoNetwork}}); err == nil || !strings.Contains(err.Error(), "none in this test") {
		t.Errorf("NONE without a network namespace: %v", err)
	}
	plan, err := less.Plan(Policy{})
	if err != nil || !slices.Contains(plan.Missing, less.missing[0]) {
		t.Errorf("BEST without a network namespace: %+v, %v", plan, err)
	}
	for _, p := range []Policy{
		{Level: None, Network: Network{Mode: NoNetwork}},
		{Level: None, Network: Network{Allow: []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:1")}}},
		{Network: Network{Mode: HostNetwork, Allow: []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:1")}}},
		{Network: Network{Allow: []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:8080")}}},
	} {
		if _, err := machine().Plan(p); err == nil {
			t.Errorf("%+v is taken", p)
		}
	}
}

func TestParseAllow(t *testing.T) {
	got, err := ParseAllow([]string{"127.0.0.1:5432", "localhost:6379", "[::ffff:10.0.0.1]:1"})
	want := []netip.AddrPort{
		netip.MustParseAddrPort("127.0.0.1:5432"), netip.MustParseAddrPort("127.0.0.1:6379"), netip.MustParseAddrPort("[::1]:6379"), netip.MustParseAddrPort("10.0.0.1:1"),
	}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("%v, %v", got, err)
	}
	_, err = ParseAllow([]string{"127.0.0.1", "db:5432", "0.0.0.0:1", "127.0.0.1:0", "[::1]:70000", "localhost:", "224.0.0.1:1", ""})
	if n := strings.Count(fmt.Sprint(err), "is not a valid address"); n != 8 {
		t.Errorf("%d of 8 are refused: %v", n, err)
	}
}
