package runnertest

import (
	"net/http"
	"slices"
	"strings"
	"testing"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// testRun: functions run as often as is wanted, and end when they are not wanted.
func testRun(t *testing.T, r *runner) {
	a, b := function("a", count(2)), function("b")
	r.want(a, b)
	two := r.alone("a", 2)
	for _, i := range two {
		expect(t, addressOf(i), "/", http.StatusOK, "a")
	}
	expect(t, addressOf(r.alone("b", 1)[0]), "/", http.StatusOK, "b")

	r.want(with(a, count(3)), b)
	three := r.alone("a", 3)
	for _, i := range two {
		if !slices.Contains(ids(three), i.GetId()) {
			t.Errorf("a third instance replaced %s", i.GetId())
		}
	}
	revision := r.want(with(a, count(1)), b)
	r.ofRevision("a", revision)
	one := r.alone("a", 1)
	if !slices.Contains(ids(three), one[0].GetId()) {
		t.Error("with fewer instances none of those before is left")
	}
	r.want(b)
	r.await("the end of what was removed", func() bool { return len(of(r.state(), "a")) == 0 && stateOf(r.state(), "a") == nil })
	gone(t, one[0])
	expect(t, addressOf(r.alone("b", 1)[0]), "/", http.StatusOK, "b")
}

// testContracts: a contract is run, or refused by its name.
func testContracts(t *testing.T, r *runner) {
	all := map[Contract]*pb.Function{
		Server: function("server"),
		Lambda: function("lambda", func(f *pb.Function) {
			f.Source = "lambda"
			f.Contract = &pb.Function_Lambda{Lambda: &pb.LambdaContract{Runtime: pb.LambdaRuntime_LAMBDA_RUNTIME_PROVIDED, Handler: "bootstrap"}}
		}),
		Azure: function("azure", func(f *pb.Function) {
			f.Source = "azure"
			f.Contract = &pb.Function_Azure{Azure: &pb.AzureContract{}}
		}),
	}
	r.want(all[Server], all[Lambda], all[Azure])
	for c := range all {
		if c != Server && !slices.Contains(r.suite.can.Contracts, c) {
			if why := r.problem(string(c)); !strings.Contains(why, string(c)) {
				t.Errorf("the problem of a contract that it cannot run does not name %s: %s", c, why)
			}
			continue
		}
		expect(t, addressOf(r.alone(string(c), 1)[0]), "/", http.StatusOK, string(c))
	}
}

// testRollout: a new version takes over when all of it is ready, in one state, and
// the old one serves until every proxy knows that it leaves.
func testRollout(t *testing.T, r *runner) {
	v1 := function("f", count(2))
	first := r.want(v1)
	old := r.alone("f", 2)
	r.ofRevision("f", first)

	var from int
	r.update(func() { r.deaf, from = true, len(r.states) })
	second := r.want(with(v1, env("GREETING", "two"), env("DELAY", "300ms")))
	r.await("the old version draining", func() bool {
		return slices.Equal(ids(of(r.state(), "f", draining)), ids(old))
	})
	r.ofRevision("f", second)
	r.mu.Lock()
	for _, s := range r.states[from:] {
		now := of(s, "f", ready)
		kept := slices.DeleteFunc(ids(now), func(id string) bool { return !slices.Contains(ids(old), id) })
		if fresh := len(now) - len(kept); len(kept) < len(old) && fresh < 2 {
			t.Errorf("the old version has %d of 2 instances ready while the new one has %d: state %d", len(kept), fresh, s.GetSequence())
		}
		if rev := stateOf(s, "f").GetRevision(); len(kept) == len(old) && len(now) == len(old) && rev != first {
			t.Errorf("revision %d is told while only that of %d serves: state %d", rev, first, s.GetSequence())
		}
	}
	r.mu.Unlock()
	r.holds(t, v1, old, "f")
	r.update(func() { r.deaf = false })
	expect(t, addressOf(r.alone("f", 2, old...)[0]), "/", http.StatusOK, "two")
	gone(t, old[0])
}

// holds checks that instances that are draining serve on while no proxy has
// acknowledged it, for as long as another function needs to be started.
func (r *runner) holds(t *testing.T, like *pb.Function, leaving []*pb.Instance, text string) {
	t.Helper()
	r.mu.Lock()
	wanted := slices.Clone(r.wanted)
	r.mu.Unlock()
	r.want(append(wanted, with(like, func(f *pb.Function) {
		f.Name, f.Instances, f.Scale = full("meanwhile"), 1, nil
		f.Env["DELAY"] = "300ms"
	}))...)
	r.alone("meanwhile", 1)
	for _, i := range leaving {
		if a := expect(t, addressOf(i), "/", http.StatusOK, text); a.header.Get("Connection") == "close" {
			t.Errorf("%s closes connections of proxies that know of it only", i.GetId())
		}
	}
}

// testBadVersion: what cannot start takes nothing away, and is a problem of that
// function alone, with the last lines that it printed.
func testBadVersion(t *testing.T, r *runner) {
	f, other := function("f"), function("other")
	good := r.want(f, other)
	old := r.alone("f", 1)
	r.ofRevision("f", good)
	r.want(with(f, env("FAIL", "there is no database")), other, function("absent", func(f *pb.Function) { f.Source = "nowhere" }))
	if why := r.problem("f"); !strings.Contains(why, "there is no database") {
		t.Errorf("the problem has not the last line: %s", why)
	}
	if why := r.problem("absent"); !strings.Contains(why, "nowhere") || strings.Contains(why, "database") {
		t.Errorf("the problem does not name the source that is missing: %s", why)
	}
	r.alone("other", 1)
	r.mu.Lock()
	s := r.state()
	r.mu.Unlock()
	if why, bad := s.GetProblems()[full("other")]; bad {
		t.Errorf("another function has the problem, too: %s", why)
	}
	if got := stateOf(s, "f").GetRevision(); got != good {
		t.Errorf("a version that cannot start is told as revision %d; that of %d serves", got, good)
	}
	if got := of(s, "f", ready); !slices.Equal(ids(got), ids(old)) {
		t.Errorf("ready is %v, before it was %v", ids(got), ids(old))
	}
	expect(t, addressOf(old[0]), "/", http.StatusOK, "f")

	mended := r.want(with(f, env("GREETING", "mended")), other)
	expect(t, addressOf(r.alone("f", 1, old...)[0]), "/", http.StatusOK, "mended")
	r.ofRevision("f", mended)
	r.await("no problems", func() bool { return len(r.state().GetProblems()) == 0 })
}

// testOlderVersion: an older version runs beside the function, under its own name.
func testOlderVersion(t *testing.T, r *runner) {
	f := function("f")
	older := with(f, func(f *pb.Function) { f.Name += "@3" }, env("GREETING", "third"))
	revision := r.want(f, older)
	now, then := r.alone("f", 1), r.alone("f@3", 1)
	expect(t, addressOf(now[0]), "/", http.StatusOK, "f")
	expect(t, addressOf(then[0]), "/", http.StatusOK, "third")
	r.ofRevision("f", revision)
	r.ofRevision("f@3", revision)
	revision = r.want(f)
	r.ofRevision("f", revision)
	r.await("the end of the older version", func() bool { return len(of(r.state(), "f@3")) == 0 })
	if got := r.alone("f", 1); !slices.Equal(ids(got), ids(now)) {
		t.Errorf("the function itself was replaced: %v, before %v", ids(got), ids(now))
	}
}

// testReplace: an instance whose process ends is replaced.
func testReplace(t *testing.T, r *runner) {
	r.want(function("f", count(2)))
	both := r.alone("f", 2)
	if a, err := send(t.Context(), addressOf(both[0]), "/exit"); err == nil && a.status < 500 {
		t.Errorf("a request whose process ended has the answer %d", a.status)
	}
	r.await("another in its place", func() bool {
		now := ids(of(r.state(), "f", ready))
		return len(now) == 2 && !slices.Contains(now, both[0].GetId()) && slices.Contains(now, both[1].GetId())
	})
}
