package functions_test

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/penstock-gateway/penstock/functions/sandbox"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// writable lets a function write a folder.
func writable(dir string) func(*pb.Function) {
	return func(f *pb.Function) { f.Isolation = &pb.Isolation{Writable: []string{dir}} }
}

// level is of isolation.
func level(l pb.IsolationLevel) func(*pb.Function) {
	return func(f *pb.Function) { f.Isolation = &pb.Isolation{Level: l} }
}

// plain is a function that nothing keeps apart: it knows its processes by the numbers
// that the test knows.
var plain = level(pb.IsolationLevel_ISOLATION_LEVEL_NONE)

// attack has a function try something, and returns what it got, or the error that it
// met.
func attack(t testing.TB, i *pb.Instance, what string, arg any) (done, refused string) {
	t.Helper()
	body, err := json.Marshal([]string{what, fmt.Sprint(arg)})
	if err != nil {
		t.Fatal(err)
	}
	var got struct{ Done, Refused string }
	if a := mustSend(t, i, "POST", "/", string(body)); json.Unmarshal([]byte(a.body), &got) != nil || a.status != 200 {
		t.Fatalf("%s %v: %d %s", what, arg, a.status, a.body)
	}
	return got.Done, got.Refused
}

// stateOf is what is reported of a function as a whole.
func (r *runner) stateOf(id string) *pb.FunctionState {
	r.t.Helper()
	var out *pb.FunctionState
	r.await("the state of "+id, func(s *pb.RunnerState) bool {
		for _, f := range s.GetFunctions() {
			if f.GetFunction() == name(id) {
				out = f
			}
		}
		return out != nil
	})
	return out
}

func attacker(id string, l pb.IsolationLevel, r *pb.Resources) *pb.Function {
	return python(id, "app.handler", source("attack"), level(l), func(f *pb.Function) { f.Resources = r })
}

// TestAttacks has functions of the highest level try what they must not do: each is
// refused, and what they are allowed works.
func TestAttacks(t *testing.T) {
	t.Parallel()
	secrets := t.TempDir()
	key, socket := filepath.Join(secrets, "runner.key"), filepath.Join(secrets, "s")
	if err := os.WriteFile(key, []byte("PRIVATE KEY"), 0o600); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	r := startRunner(t)
	r.want(attacker("evil", pb.IsolationLevel_ISOLATION_LEVEL_SANDBOX, nil), python("neighbour", "app.echo"))
	neighbour, evil := r.ready("neighbour", 1)[0], r.ready("evil", 1)[0]
	if st := r.stateOf("evil"); !slices.Contains(st.GetIsolation(), "landlock") || !slices.Contains(st.GetIsolation(), "pid-namespace") || !slices.Equal(evil.GetIsolation(), st.GetIsolation()) {
		t.Errorf("reported: %v, %v", st, evil)
	}
	absent := []string{"ENOENT", "EACCES"}
	for _, c := range []struct {
		what string
		arg  any
		want []string
	}{
		{"read", filepath.Join(r.root, "py", "app.py"), absent},
		{"read", key, absent},
		{"read", "/etc/shadow", absent},
		{"read", fmt.Sprintf("/proc/%d/environ", os.Getpid()), absent},
		{"read", fmt.Sprintf("/proc/%d/environ", neighbour.GetPid()), absent},
		{"list", r.root + "/py", absent},
		{"connect", socket, []string{"ENOENT"}},
		{"write", "/etc/penstock-attack", []string{"EACCES", "EROFS"}},
		{"write", "/usr/penstock-attack", []string{"EACCES", "EROFS"}},
		{"write", filepath.Join(r.root, "attack", "more.py"), []string{"EACCES", "EROFS"}},
		{"write", "/proc/sys/kernel/hostname", []string{"EACCES", "EROFS"}},
		{"kill", os.Getpid(), []string{"ESRCH"}},
		{"kill", neighbour.GetPid(), []string{"ESRCH"}},
		{"ptrace", 1, []string{"EPERM"}},
		{"mount", "/tmp", []string{"EPERM"}},
		{"unshare", "0x10000000", []string{"EPERM"}},
		{"keyctl", "", []string{"EPERM"}},
		{"socket", 17, []string{"EAFNOSUPPORT"}},
		{"socket", 2, []string{"EPERM", "EPROTONOSUPPORT"}},
		{"chown", "/tmp", []string{"EPERM"}},
	} {
		if done, refused := attack(t, evil, c.what, c.arg); !slices.Contains(c.want, refused) {
			t.Errorf("%s %v: done %q, refused %q; want %v", c.what, c.arg, done, refused, c.want)
		}
	}
	for what, arg := range map[string]string{"write": "/tmp/own", "read": "/etc/hosts", "list": "/proc/self"} {
		if _, refused := attack(t, evil, what, arg); refused != "" {
			t.Errorf("%s %s is refused: %s", what, arg, refused)
		}
	}
	status, _ := attack(t, evil, "status", "")
	for _, want := range []string{"CapEff:\t0000000000000000", "CapBnd:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2"} {
		if !strings.Contains(status, want) {
			t.Errorf("/proc/self/status has no %q", want)
		}
	}
	if a := mustSend(t, neighbour, "GET", "/", ""); a.status != 200 {
		t.Errorf("the neighbour: %d", a.status)
	}
}

// TestResources: a function that takes more than it may gets no more, is told of, and
// harms nobody.
func TestResources(t *testing.T) {
	t.Parallel()
	r := startRunner(t)
	best := pb.IsolationLevel_ISOLATION_LEVEL_BEST
	r.want(
		attacker("forks", best, &pb.Resources{Pids: 40}), attacker("fills", best, &pb.Resources{FileMib: 1}),
		attacker("eats", best, &pb.Resources{MemoryMib: 96, CpuMillis: 900}), python("neighbour", "app.echo"),
		attacker("plain", pb.IsolationLevel_ISOLATION_LEVEL_NONE, &pb.Resources{FileMib: 1, MemoryMib: 96}),
	)
	forks, fills, eats := r.ready("forks", 1)[0], r.ready("fills", 1)[0], r.ready("eats", 1)[0]
	for id, means := range map[string]string{"forks": "pids-limit", "eats": "memory-limit", "plain": "memory-limit"} {
		if st := r.stateOf(id); !slices.Contains(st.GetIsolation(), means) {
			t.Fatalf("this machine cannot be tested: %v", st.GetIsolationMissing())
		}
	}
	if st := r.stateOf("plain"); slices.Contains(st.GetIsolation(), "landlock") {
		t.Errorf("level NONE has %v", st.GetIsolation())
	}
	if done, refused := attack(t, forks, "fork", ""); !strings.HasPrefix(done, "EAGAIN after ") {
		t.Errorf("fork: %q, %q", done, refused)
	}
	for _, i := range []*pb.Instance{fills, r.ready("plain", 1)[0]} {
		if done, refused := attack(t, i, "fill", ""); refused != "EFBIG" {
			t.Errorf("fill: %q, %q", done, refused)
		}
	}
	for _, i := range []*pb.Instance{eats, r.ready("plain", 1)[0]} {
		id := strings.TrimPrefix(i.GetFunction(), name(""))
		if a := mustSend(t, i, "POST", "/", `["eat", ""]`); a.status != 502 || a.header.Get("x-penstock-error") != "died" {
			t.Errorf("%s: %d %s", id, a.status, a.body)
		}
		r.logs.await(t, "out of memory", func(m map[string]any) bool {
			why, _ := m["reason"].(string)
			return m["function"] == i.GetFunction() && strings.Contains(why, "killed: out of memory, limit 96 MiB")
		})
		s := r.await("another instance", func(s *pb.RunnerState) bool {
			of := instances(s, id)
			return len(of) == 1 && of[0].GetState() == pb.InstanceState_INSTANCE_STATE_READY && of[0].GetId() != i.GetId()
		})
		if done, refused := attack(t, instances(s, id)[0], "read", "/etc/hosts"); done == "" {
			t.Errorf("%s serves no more: %s", id, refused)
		}
	}
	if a := mustSend(t, r.ready("neighbour", 1)[0], "GET", "/", ""); a.status != 200 {
		t.Errorf("the neighbour: %d", a.status)
	}
}

// TestIsolationProblems: what cannot be had is the function's problem.
func TestIsolationProblems(t *testing.T) {
	t.Parallel()
	r := startRunner(t)
	isolation := func(i *pb.Isolation) func(*pb.Function) { return func(f *pb.Function) { f.Isolation = i } }
	dir := t.TempDir()
	r.want(
		python("nowhere", "app.echo", isolation(&pb.Isolation{Level: pb.IsolationLevel_ISOLATION_LEVEL_NONE, Network: pb.NetworkAccess_NETWORK_ACCESS_NONE})),
		python("service", "app.echo", isolation(&pb.Isolation{NetworkAllow: []string{"127.0.0.1:0", "db:1"}})),
		python("relative", "app.echo", isolation(&pb.Isolation{Writable: []string{"data"}})),
		python("absent", "app.echo", isolation(&pb.Isolation{Writable: []string{dir + "/absent"}})),
		python("future", "app.echo", level(99)),
		python("writes", "app.handler", source("attack"), writable(dir)),
		self(t, "foreign", "echo", func(f *pb.Function) { f.GetServer().Command = []string{"../golambda/main.go"} }),
		self(t, "probing", "echo", func(f *pb.Function) { f.GetServer().Command = []string{"/root/.ssh/id_rsa"} }),
	)
	for id, want := range map[string]string{
		"nowhere": "level NONE is a plain process", "service": `isolation.network_allow: "127.0.0.1:0" is not a valid address`, "relative": "is not absolute", "absent": "is not a folder", "future": "not one that this runner knows",
		"foreign": "is not among what the function may run", "probing": "is not among what the function may run",
	} {
		s := r.await("a problem of "+id, func(s *pb.RunnerState) bool { return problemOf(s, id) != "" })
		if got := problemOf(s, id); !strings.Contains(got, want) {
			t.Errorf("%s: %s", id, got)
		}
	}
	if done, refused := attack(t, r.ready("writes", 1)[0], "write", filepath.Join(dir, "x")); done != "written" {
		t.Errorf("a writable folder: %q %q", done, refused)
	}
}

// problemOf is why a function cannot be run, or its instance could not be started.
func problemOf(s *pb.RunnerState, function string) string {
	if p := s.GetProblems()[name(function)]; p != "" {
		return p
	}
	for _, i := range instances(s, function) {
		if i.GetState() == pb.InstanceState_INSTANCE_STATE_BACKOFF {
			return i.GetMessage()
		}
	}
	return ""
}

// TestForeignPoll: where an instance has the machine's network, who is not of it gets
// no event of its Runtime API, and does it no harm.
func TestForeignPoll(t *testing.T) {
	t.Parallel()
	r := startRunner(t)
	r.want(python("echo", "app.echo", func(f *pb.Function) { f.Isolation = &pb.Isolation{Network: pb.NetworkAccess_NETWORK_ACCESS_HOST} }))
	i := r.ready("echo", 1)[0]
	if !slices.Contains(i.GetIsolation(), sandbox.MeansPIDs) {
		t.Logf("processes are not told apart here: %v", i.GetIsolation())
		return
	}
	ask := func() (e echoed) {
		t.Helper()
		a := mustSend(t, i, "POST", "/", "hello")
		if err := json.Unmarshal([]byte(a.body), &e); err != nil || a.status != 200 {
			t.Fatalf("%d %s (%v)", a.status, a.body, err)
		}
		return e
	}
	e := ask()
	const base = "/2018-06-01/runtime/"
	for path, method := range map[string]string{
		"invocation/next": "GET", "invocation/" + e.RequestID + "/response": "POST", "invocation/" + e.RequestID + "/error": "POST", "init/error": "POST",
	} {
		req, err := http.NewRequestWithContext(t.Context(), method, "http://"+e.Env["AWS_LAMBDA_RUNTIME_API"]+base+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusForbidden {
			t.Errorf("%s %s: %s", method, path, resp.Status)
		}
	}
	if again := ask(); again.PID != e.PID {
		t.Errorf("process %d, then %d", e.PID, again.PID)
	}
}
