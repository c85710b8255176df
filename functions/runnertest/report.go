package runnertest

import (
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/durationpb"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// testScaleToZero: no instance before the first request, which waits for one; none
// when nobody calls, but only after every proxy knows.
func testScaleToZero(t *testing.T, r *runner) {
	f := function("f", func(f *pb.Function) {
		f.Instances, f.Scale = 0, &pb.Scale{Max: 1, IdleTimeout: durationpb.New(time.Second)}
	})
	r.want(f)
	address := r.activator("f")
	r.mu.Lock()
	if n := len(of(r.state(), "f")); n != 0 {
		t.Errorf("%d instances before the first request", n)
	}
	r.mu.Unlock()
	var calls sync.WaitGroup
	var cold atomic.Int64
	for range 8 {
		calls.Go(func() {
			if expect(t, address, "/", http.StatusOK, "f").header.Get("x-cold-start") == "1" {
				cold.Add(1)
			}
		})
	}
	calls.Wait()
	if cold.Load() == 0 {
		t.Error("no answer has x-cold-start: 1")
	}
	r.update(func() { r.deaf = true })
	var leaving []*pb.Instance
	r.await("an instance that leaves", func() bool {
		leaving = of(r.state(), "f", draining)
		return len(leaving) == 1
	})
	r.holds(t, f, leaving, "f")
	r.update(func() { r.deaf = false })
	r.await("no instance", func() bool { return len(of(r.state(), "f")) == 0 })
	gone(t, leaving[0])
	if expect(t, r.activator("f"), "/", http.StatusOK, "f").header.Get("x-cold-start") != "1" {
		t.Error("the first request after that is not told as a cold one")
	}
}

// testStats: what a function did arrives.
func testStats(t *testing.T, r *runner) {
	r.want(function("f"), function("quiet"))
	r.alone("quiet", 1)
	address := addressOf(r.alone("f", 1)[0])
	for range 3 {
		expect(t, address, "/", http.StatusOK, "f")
	}
	expect(t, address, "/status/500", http.StatusInternalServerError, "")
	r.await("3 requests that went well and one that did not", func() bool {
		at := slices.IndexFunc(r.stats.GetFunctions(), func(s *pb.FunctionStats) bool { return s.GetFunction() == full("f") })
		return at >= 0 && r.stats.GetFunctions()[at].GetRequests() == 4 && r.stats.GetFunctions()[at].GetErrors() == 1
	})
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, s := range r.stats.GetFunctions() {
		if s.GetFunction() == full("quiet") && s.GetRequests() != 0 {
			t.Errorf("requests of another function are counted: %v", s)
		}
	}
}

// testLines: those who listen get the lines of before and of after, each once, and
// of no other function.
func testLines(t *testing.T, r *runner) {
	r.want(function("f"), function("other"))
	f, other := r.alone("f", 1)[0], r.alone("other", 1)[0]
	expect(t, addressOf(f), "/before", http.StatusOK, "f")
	expect(t, addressOf(other), "/elsewhere", http.StatusOK, "other")
	r.update(func() { r.listening = []string{full("f")} })
	texts := func() []string {
		var out []string
		for _, l := range r.lines {
			if l.GetStream() != "runner" {
				out = append(out, l.GetText())
			}
		}
		return out
	}
	r.await("the line of before", func() bool { return slices.Contains(texts(), "request /before") })
	expect(t, addressOf(f), "/after", http.StatusOK, "f")
	r.await("the line of after", func() bool { return slices.Contains(texts(), "request /after") })
	r.update(func() { r.listening = []string{full("f"), full("other")} })
	r.await("the other's line", func() bool { return slices.Contains(texts(), "request /elsewhere") })

	r.mu.Lock()
	defer r.mu.Unlock()
	if got, want := texts(), []string{"request /before", "request /after", "request /elsewhere"}; !slices.Equal(got, want) {
		t.Errorf("lines %q, want %q", got, want)
	}
	seen := map[uint64]bool{}
	for _, l := range r.lines {
		if l.GetSequence() == 0 || seen[l.GetSequence()] {
			t.Errorf("the sequence of a line is 0 or was there before: %v", l)
		}
		seen[l.GetSequence()] = true
		if l.GetText() == "request /before" && (l.GetInstance() != f.GetId() || l.GetFunction() != full("f") || l.GetStream() != "stdout" || !l.GetTime().IsValid()) {
			t.Errorf("line %v of instance %s", l, f.GetId())
		}
	}
}

// testStreamLost: without a control plane instances serve on, those that are draining,
// too; when it is back it is told all, on a stream that counts from 1.
func testStreamLost(t *testing.T, r *runner) {
	f := function("f", count(2))
	bad := function("bad", func(f *pb.Function) { f.Source = "nowhere" })
	r.want(f, bad)
	r.alone("f", 2)
	r.problem("bad")
	r.update(func() { r.deaf = true })
	revision := r.want(with(f, count(1)), bad)
	var before, leaving []*pb.Instance
	r.await("an instance that leaves", func() bool {
		before, leaving = of(r.state(), "f", ready), of(r.state(), "f", draining)
		return len(before) == 1 && len(leaving) == 1
	})
	r.server.Stop()
	expect(t, addressOf(before[0]), "/", http.StatusOK, "f")
	expect(t, addressOf(leaving[0]), "/", http.StatusOK, "f")

	r.update(func() { r.hellos, r.states = nil, nil })
	r.listen()
	r.await("all instances that there were", func() bool {
		now := r.state()
		return slices.Equal(ids(of(now, "f", ready)), ids(before)) && slices.Equal(ids(of(now, "f", draining)), ids(leaving))
	})
	r.problem("bad")
	r.ofRevision("f", revision)
	expect(t, addressOf(leaving[0]), "/", http.StatusOK, "f")
	r.update(func() { r.deaf = false })
	after := r.alone("f", 1)
	if !slices.Equal(ids(after), ids(before)) || addressOf(after[0]) != addressOf(before[0]) {
		t.Errorf("the instance was replaced: %v, before %v", after, before)
	}
	gone(t, leaving[0])
	expect(t, addressOf(after[0]), "/", http.StatusOK, "f")
	r.mu.Lock()
	defer r.mu.Unlock()
	if !slices.Equal(r.hellos, []string{runnerName}) {
		t.Errorf("hellos %q", r.hellos)
	}
}

// testPackage: an uploaded package is fetched, and what is not there is told.
func testPackage(t *testing.T, r *runner) {
	digest, zip := r.suite.pack(t, "server")
	r.update(func() { r.packages[digest] = zip })
	absent := "sha256:" + strings.Repeat("0", 64)
	r.want(function("f", func(f *pb.Function) { f.Source = digest }), function("absent", func(f *pb.Function) { f.Source = absent }))
	expect(t, addressOf(r.alone("f", 1)[0]), "/", http.StatusOK, "f")
	if why := r.problem("absent"); !strings.Contains(why, absent) {
		t.Errorf("the problem does not name the package: %s", why)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.fetches == 0 {
		t.Error("no package was fetched")
	}
}

// testIsolation: level SANDBOX keeps a function from files of others, or is refused.
func testIsolation(t *testing.T, r *runner) {
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("secret"), 0o644); err != nil {
		t.Fatal(err)
	}
	r.want(function("f", func(f *pb.Function) {
		f.Isolation = &pb.Isolation{Level: pb.IsolationLevel_ISOLATION_LEVEL_SANDBOX}
	}))
	if !r.suite.can.Isolate {
		r.problem("f")
		return
	}
	i := r.alone("f", 1)[0]
	expect(t, addressOf(i), "/read?path="+secret, http.StatusNotFound, "")
	expect(t, addressOf(i), "/read?path=/proc/self/status", http.StatusOK, "f")
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(i.GetIsolation()) == 0 || len(stateOf(r.state(), "f").GetIsolation()) == 0 {
		t.Errorf("by what it is kept apart is not told: %v, %v", i, stateOf(r.state(), "f"))
	}
}

// testStop: a runner that stops tells that nothing of it is left.
func testStop(t *testing.T, r *runner) {
	r.want(function("f"))
	i := r.alone("f", 1)[0]
	r.stop()
	r.await("a state without instances", func() bool { return len(r.states) > 0 && len(r.state().GetInstances()) == 0 })
	gone(t, i)
}

// testSecrets: values of env_secrets reach the environment of the instances, a changed
// one replaces them, and none is in anything that the runner says. A function that is
// sent without one is not started.
func testSecrets(t *testing.T, r *runner) {
	const first, second = "canary-1-7f2a", "canary-2-7f2a"
	f := function("f", func(f *pb.Function) {
		f.Env = nil
		f.EnvSecrets = map[string]*pb.SecretKey{"GREETING": {Secret: "db", Key: "url"}}
	})
	r.update(func() { r.listening = []string{f.GetName()} })
	r.want(f)
	if why := r.problem("f"); !strings.Contains(why, "GREETING (secret db, key url)") {
		t.Errorf("without a value the problem is %q", why)
	}
	give := func(value string) {
		r.update(func() {
			r.secrets = []*pb.FunctionSecrets{{Function: f.GetName(), Env: map[string]string{"GREETING": value}}}
		})
		r.want(f)
	}
	give(first)
	old := r.alone("f", 1)
	expect(t, addressOf(old[0]), "/", http.StatusOK, first)
	give(second)
	now := r.alone("f", 1, old...)
	expect(t, addressOf(now[0]), "/", http.StatusOK, second)
	r.want(f) // the same again
	r.want(f, function("g"))
	r.alone("g", 1)
	if again := r.alone("f", 1); ids(again)[0] != ids(now)[0] {
		t.Error("the same value replaces the instance")
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, m := range r.states {
		if text := protojson.Format(m); strings.Contains(text, first) || strings.Contains(text, second) {
			t.Errorf("a state holds the value:\n%s", text)
		}
	}
	for _, l := range r.lines {
		if strings.Contains(l.GetText(), first) || strings.Contains(l.GetText(), second) {
			t.Errorf("a line holds the value: %s", l.GetText())
		}
	}
}
