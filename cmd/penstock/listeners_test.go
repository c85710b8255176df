package main

import (
	"bufio"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/penstock-gateway/penstock/internal/envoytest"
	"github.com/penstock-gateway/penstock/internal/launch"
)

// listener is something of a process that others may send to.
type listener struct {
	process string // of `up`: control, envoy, …; "instance" for what the runner runs
	kind    string // tcp, udp, unix
	address string // IP:port, a path, or @name
}

func (l listener) String() string { return l.process + " " + l.kind + " " + l.address }

// listenersOf finds what processes listen on, in the network of this test; apart counts
// those in networks of their own.
func listenersOf(t *testing.T, processes map[int]string) (found []listener, apart int) {
	t.Helper()
	here, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	open := openSockets(t)
	for pid, name := range processes {
		proc := fmt.Sprintf("/proc/%d", pid)
		there, err := os.Readlink(proc + "/ns/net")
		if err == nil && there != here {
			apart++
			continue
		}
		fds, err := os.ReadDir(proc + "/fd")
		if err != nil {
			continue // it ended, or is an instance of a function, which nobody looks into
		}
		for _, fd := range fds {
			link, _ := os.Readlink(filepath.Join(proc, "fd", fd.Name()))
			inode, ok := strings.CutPrefix(link, "socket:[")
			if !ok {
				continue
			}
			if l, listens := open[strings.TrimSuffix(inode, "]")]; listens {
				l.process = name
				if !slices.Contains(found, l) {
					found = append(found, l)
				}
			}
		}
	}
	slices.SortFunc(found, func(a, b listener) int { return strings.Compare(a.String(), b.String()) })
	return found, apart
}

// openSockets are the sockets of this network that take connections or datagrams, by
// inode (proc_net(5)).
func openSockets(t *testing.T) map[string]listener {
	t.Helper()
	out := map[string]listener{}
	const listens, unconnected = "0A", "07"
	for _, f := range []struct{ file, kind, state string }{
		{"tcp", "tcp", listens}, {"tcp6", "tcp", listens}, {"udp", "udp", unconnected}, {"udp6", "udp", unconnected},
		{"udplite", "udplite", unconnected}, {"raw", "raw", unconnected}, {"raw6", "raw", unconnected},
	} {
		for _, fields := range procTable(t, f.file) {
			if len(fields) > 9 && fields[3] == f.state {
				out[fields[9]] = listener{kind: f.kind, address: procAddress(t, fields[1])}
			}
		}
	}
	for _, fields := range procTable(t, "unix") {
		flags, err := strconv.ParseUint(fields[3], 16, 32)
		if err != nil {
			continue
		}
		// Flag 1<<16: it listens. A datagram socket with a name takes from everybody.
		if len(fields) > 7 && (flags&(1<<16) != 0 || fields[4] != "0001") {
			out[fields[6]] = listener{kind: "unix", address: fields[7]}
		}
	}
	return out
}

func procTable(t *testing.T, name string) (rows [][]string) {
	t.Helper()
	f, err := os.Open("/proc/self/net/" + name)
	if os.IsNotExist(err) {
		return nil // the kernel has no such protocol
	}
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	s := bufio.NewScanner(f)
	s.Scan() // the header
	for s.Scan() {
		rows = append(rows, strings.Fields(s.Text()))
	}
	return rows
}

// procAddress reads ADDRESS:PORT of /proc/net: words of four bytes, as they lie in memory.
func procAddress(t *testing.T, s string) string {
	t.Helper()
	host, port, _ := strings.Cut(s, ":")
	b, err := hex.DecodeString(host)
	n, err2 := strconv.ParseUint(port, 16, 16)
	if err != nil || err2 != nil {
		t.Fatalf("%q: %v %v", s, err, err2)
	}
	for i := 0; i+3 < len(b); i += 4 {
		slices.Reverse(b[i : i+4])
	}
	ip, _ := netip.AddrFromSlice(b)
	return netip.AddrPortFrom(ip, uint16(n)).String()
}

// processesOf are all processes of an `up`, by the name of the one that started them.
func (s *upState) processesOf() map[int]string {
	out := map[int]string{s.PID: "up"}
	for _, p := range s.Processes {
		out[p.ID.PID] = p.Name
		for _, d := range launch.Descendants(p.ID.PID) {
			out[d.PID] = p.Name
			if p.Name == "runner" {
				out[d.PID] = "instance"
			}
		}
	}
	return out
}

// expected says what an outsider may get of a listener: nil for one that nobody has
// listed. Whoever adds a listener says here, and in docs/security.md, what it gives to
// whom.
func (in *installation) expected(l listener) func(tried) error {
	// private: another user does not even connect.
	private := func(got tried) error {
		if os.Geteuid() == 0 && got.Errno != syscall.EACCES {
			return fmt.Errorf("error %w, served %v; want %w", got.Errno, got.Served, syscall.EACCES)
		}
		return nil
	}
	only := func(calls ...string) func(tried) error {
		return func(got tried) error {
			slices.Sort(calls)
			if got.Errno != 0 || !slices.Equal(got.Served, calls) {
				return fmt.Errorf("error %w, served %v; want %v", got.Errno, got.Served, calls)
			}
			return nil
		}
	}
	anything := func(tried) error { return nil }
	inRun := strings.HasPrefix(l.address, runDir(in.dataDir)+"/")
	switch {
	case l.kind == "unix" && l.process == "control" && strings.HasPrefix(l.address, filepath.Join(in.dataDir, "access")+"/"):
		return private
	case l.kind == "unix" && inRun && slices.Contains([]string{"up", "limiter", "relay", "runner", "envoy", "jaeger"}, l.process):
		return private
	case l.process == "control" && l.address == in.flags.api:
		return only("grpc /grpc.health.v1.Health/Check")
	case l.process == "control" && l.address == in.flags.http:
		return only("http /readyz", "http /livez", "http /healthz")
	case l.process == "control" && l.address == in.flags.xds:
		// It answers that the token is wrong.
		return only("grpc+tls /penstock.v1.ProxyJoinService/Join")
	case l.process == "runner" && l.kind == "tcp" && strings.HasPrefix(l.address, "127.0.0.1:"):
		return only() // for the spans of the function that has the machine's network, and of nobody else
	case l.process == "envoy" && l.address == in.flags.gateway:
		return anything // the gateway is for all
	case l.process == "instance" && l.kind == "tcp" && strings.HasPrefix(l.address, "127.0.0.1:"):
		return anything // PORT of the function that has the machine's network, see docs/security.md
	}
	return nil
}

// reachFunction tries to connect to what a request names, and returns what it got.
const reachFunction = `
import errno, http.server, json, os, socket
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def log_message(self, *a): pass
    def do_POST(self):
        out = {}
        for target in json.loads(self.rfile.read(int(self.headers["content-length"]))):
            host, _, port = target.rpartition(":")
            try:
                if target[0] in "/@":
                    s = socket.socket(socket.AF_UNIX)
                    address = target.replace("@", "\0", 1)
                else:
                    s = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
                    address = (host.strip("[]"), int(port))
                s.settimeout(2)
                s.connect(address)
                out[target] = "connected"
            except OSError as e:
                out[target] = errno.errorcode.get(e.errno, str(e))
            finally:
                s.close()
        body = json.dumps(out).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
`

// reachConfig is a function for each way to be kept apart, each at a route of its name.
func reachConfig(t *testing.T, isolation map[string]string) (config, root string) {
	t.Helper()
	root = t.TempDir()
	if err := os.Mkdir(filepath.Join(root, "reach"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "reach", "app.py"), []byte(reachFunction), 0o644); err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for name, how := range isolation {
		fmt.Fprintf(&b, "---\nkind: Function\nname: %s\nsource: reach\nserver: {command: [python3, app.py]}\ninstances: 1\nisolation: %s\n", name, how)
		fmt.Fprintf(&b, "---\nkind: Route\nname: %s\nrules:\n- matches: [{path: {prefix: /%s}}]\n  forward: {backends: [{backend: functions/%s}]}\n", name, name, name)
	}
	config = filepath.Join(t.TempDir(), "reach.yaml")
	if err := os.WriteFile(config, []byte(b.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	return config, root
}

// TestEveryListener finds what the processes of `up` really listen on, and has others
// try each of it: another user of the machine gets health and the gateway, and what
// docs/security.md names as open; a function gets nothing, but with the machine's
// network what that user gets. A listener that nobody has listed fails the test.
func TestEveryListener(t *testing.T) {
	in := newInstallation(t)
	kept := map[string]string{
		"best": "{level: BEST}", "sandbox": "{level: SANDBOX}", "nothing": "{level: BEST, network: NONE}", "host": "{level: BEST, network: HOST}",
	}
	config, root := reachConfig(t, kept)
	in.up(t, "--config", config, "--functions-root", root)
	await(t, func() error {
		if j := in.state(t).Jaeger; j != "running" {
			return fmt.Errorf("Jaeger is %s", j)
		}
		return nil
	})
	// Every function has an instance, so that what those listen on is there, too.
	for name := range kept {
		in.reached(t, name, nil)
	}
	found, apart := listenersOf(t, in.state(t).processesOf())
	if apart == 0 {
		t.Error("no instance has a network of its own")
	}
	in.compareWithPage(t, found)
	in.compareFiles(t)
	var targets []string
	for _, l := range found {
		if in.expected(l) == nil {
			t.Errorf("%s: nobody has listed it: say in expected what others get of it", l)
		}
		if l.kind == "tcp" || l.kind == "unix" {
			targets = append(targets, l.address)
		}
	}
	for address, got := range asOutsider(t, targets) {
		l := found[slices.IndexFunc(found, func(l listener) bool { return l.address == address })]
		if check := in.expected(l); check != nil {
			if err := check(got); err != nil {
				t.Errorf("%s, from another user: %v", l, err)
			}
		}
	}
	// From inside functions.
	inside := slices.Concat(targets, otherNames(t, targets))
	for _, name := range slices.Sorted(maps.Keys(kept)) {
		for target, got := range in.reached(t, name, inside) {
			unix := strings.ContainsAny(target[:1], "/@")
			if got == "connected" && (unix || name != "host") {
				t.Errorf("the function %q (%s) connected to %s", name, kept[name], target)
			}
			if got != "connected" && !unix && name == "host" && slices.Contains(targets, target) {
				t.Errorf("the function %q has the machine's network and got %s at %s: this test finds nothing", name, got, target)
			}
		}
	}
}

// otherNames are the ports of targets at other addresses of the machine.
func otherNames(t *testing.T, targets []string) (out []string) {
	t.Helper()
	hosts := []string{"127.0.0.2", "0.0.0.0", "::1", "::", "::ffff:127.0.0.1"}
	addresses, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range addresses {
		if n, ok := a.(*net.IPNet); ok && n.IP.IsGlobalUnicast() {
			hosts = append(hosts, n.IP.String())
		}
	}
	for _, target := range targets {
		if _, port, err := net.SplitHostPort(target); err == nil {
			for _, h := range hosts {
				out = append(out, net.JoinHostPort(h, port))
			}
		}
	}
	return out
}

// reached is what a function got of targets.
func (in *installation) reached(t *testing.T, function string, targets []string) map[string]string {
	t.Helper()
	if targets == nil {
		targets = []string{}
	}
	b, err := json.Marshal(targets)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.Post("http://"+in.flags.gateway+"/"+function, "application/json", strings.NewReader(string(b)))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var out map[string]string
	if err := json.NewDecoder(resp.Body).Decode(&out); err != nil || resp.StatusCode != http.StatusOK || len(out) != len(targets) {
		t.Fatalf("the function %s: %s, %d of %d, %v", function, resp.Status, len(out), len(targets), err)
	}
	return out
}

// TestFindsListeners: the search of TestEveryListener finds each kind, so that it does
// not pass because it sees nothing.
func TestFindsListeners(t *testing.T) {
	sock := filepath.Join(t.TempDir(), "a.sock")
	for kind, address := range map[string]string{"tcp": "127.0.0.1:0", "tcp6": "[::1]:0", "unix": sock, "abstract": fmt.Sprintf("@penstock-test-%d", os.Getpid())} {
		network := strings.Replace(kind, "abstract", "unix", 1)
		l, err := net.Listen(network, address)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		want := listener{"me", strings.TrimSuffix(network, "6"), l.Addr().String()}
		if found, _ := listenersOf(t, map[int]string{os.Getpid(): "me"}); !slices.Contains(found, want) {
			t.Errorf("%s is not among %v", want, found)
		}
	}
	u, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	want := listener{"me", "udp", u.LocalAddr().String()}
	if found, _ := listenersOf(t, map[int]string{os.Getpid(): "me"}); !slices.Contains(found, want) {
		t.Errorf("%s is not among %v", want, found)
	}
	in := &installation{dataDir: t.TempDir()}
	if in.expected(want) != nil || in.expected(listener{"control", "tcp", fmt.Sprintf("127.0.0.1:%d", envoytest.FreePort(t))}) != nil {
		t.Error("a listener that nobody has listed counts as expected")
	}
}
