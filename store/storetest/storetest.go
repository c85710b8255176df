// Package storetest is the conformance suite of store.Store: what every
// implementation must do, whatever etcd it talks to.
package storetest

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
	"github.com/penstock-gateway/penstock/store"
)

// Run runs the suite. open returns an empty store with a seal key, which is closed
// at the end of the test given to it; it is called once for each part, and parts run
// in parallel.
func Run(t *testing.T, open func(t *testing.T) store.Store) {
	for _, part := range []struct {
		name string
		run  func(t *testing.T, s store.Store)
	}{
		{"Empty", testEmpty},
		{"History", testHistory},
		{"ObjectHistory", testObjectHistory},
		{"Unchanged", testUnchanged},
		{"BadInput", testBadInput},
		{"Model", testModel},
		{"Secrets", testSecrets},
		{"Conflict", testConflict},
		{"Large", testLarge},
		{"Whole", testWhole},
		{"Watch", testWatch},
		{"RequestID", testRequestID},
		{"State", testState},
		{"WatchState", testWatchState},
		{"Cancelled", testCancelled},
		{"Closed", testClosed},
	} {
		t.Run(part.name, func(t *testing.T) {
			t.Parallel()
			part.run(t, open(t))
		})
	}
}

// must fails the test on an error.
func must[T any](t *testing.T) func(T, error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// wantErr checks an error by errors.Is.
func wantErr(t *testing.T, what string, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("%s: got %v, want %v", what, err, want)
	}
}

// same compares revisions. Times may lose their location on the way.
func same(t *testing.T, what string, got, want store.Revision) {
	t.Helper()
	if !got.Time.Equal(want.Time) {
		t.Errorf("%s: time %v, want %v", what, got.Time, want.Time)
	}
	got.Time, want.Time = time.Time{}, time.Time{}
	if got != want {
		t.Errorf("%s:\n got %+v\nwant %+v", what, got, want)
	}
}

// content is a revision as a map from name to resource.
func content(t *testing.T, s store.Store, number int64) map[string]*pb.Resource {
	t.Helper()
	list := must[[]*pb.Resource](t)(s.Load(t.Context(), number))
	out := map[string]*pb.Resource{}
	last := ""
	for _, r := range list {
		name := cmp.Or(r.GetRoute().GetName(), r.GetSecret().GetName())
		if name <= last {
			t.Fatalf("revision %d: %s after %s", number, name, last)
		}
		last = name
		out[name] = r
	}
	return out
}

// sameContent compares maps of resources.
func sameContent(t *testing.T, what string, got, want map[string]*pb.Resource) {
	t.Helper()
	for name := range want {
		if !proto.Equal(got[name], want[name]) {
			t.Errorf("%s: %s is\n%v, want\n%v", what, name, got[name], want[name])
		}
	}
	for name := range got {
		if want[name] == nil {
			t.Errorf("%s: %s should not be there", what, name)
		}
	}
}

func testEmpty(t *testing.T, s store.Store) {
	ctx := t.Context()
	same(t, "head", must[store.Revision](t)(s.Head(ctx)), store.Revision{})
	if got := content(t, s, 0); len(got) != 0 {
		t.Errorf("revision 0 holds %v", got)
	}
	if got := must[[]store.Change](t)(s.Diff(ctx, 0, 0)); len(got) != 0 {
		t.Errorf("diff of nothing: %v", got)
	}
	if got := must[[]store.Revision](t)(s.List(ctx, 0, 10)); len(got) != 0 {
		t.Errorf("list: %v", got)
	}
	same(t, "commit of nothing", must[store.Revision](t)(s.Commit(ctx, 0, nil, store.Info{})), store.Revision{})
	_, err := s.Get(ctx, 1)
	wantErr(t, "get", err, store.ErrNotFound)
	_, err = s.Get(ctx, -1)
	wantErr(t, "get of -1", err, store.ErrNotFound)
	_, err = s.Load(ctx, 1)
	wantErr(t, "load", err, store.ErrNotFound)
	_, err = s.Diff(ctx, 0, 1)
	wantErr(t, "diff", err, store.ErrNotFound)
	_, err = s.Rollback(ctx, 0, 1, store.Info{})
	wantErr(t, "rollback", err, store.ErrNotFound)
	_, err = s.Commit(ctx, 3, Routes(0, 1, "a"), store.Info{})
	if c, ok := errors.AsType[*store.ConflictError](err); !ok || c.Head != 0 || c.Base != 3 {
		t.Errorf("commit on 3: %v", err)
	}
	if _, ok, err := s.ByRequest(ctx, "unknown"); ok || err != nil {
		t.Errorf("unknown request: %v %v", ok, err)
	}
}

func testHistory(t *testing.T, s store.Store) {
	ctx := t.Context()
	rev := must[store.Revision](t)
	r1 := rev(s.Commit(ctx, 0, Routes(0, 3, "a"), store.Info{Author: "ada", Message: "first", RequestID: "req-1"}))
	want := store.Revision{Number: 1, Root: r1.Root, Time: r1.Time, Author: "ada", Message: "first", RequestID: "req-1", Resources: 3, Changes: 3}
	same(t, "first", r1, want)
	r2 := rev(s.Commit(ctx, 1, append(Routes(1, 3, "b"), Delete(RouteName(0))), store.Info{}))
	if r2.Number != 2 || r2.Resources != 3 || r2.Changes != 4 || r2.Root == r1.Root || r2.Time.Before(r1.Time) {
		t.Errorf("second: %+v", r2)
	}
	same(t, "head", rev(s.Head(ctx)), r2)
	same(t, "get 1", rev(s.Get(ctx, 1)), r1)
	r3 := rev(s.Rollback(ctx, 2, 1, store.Info{Message: "back"}))
	if r3.Number != 3 || r3.Root != r1.Root || r3.Resources != 3 || r3.Changes != 4 || r3.Message != "back" {
		t.Errorf("rollback: %+v", r3)
	}
	sameContent(t, "after rollback", content(t, s, 3), content(t, s, 1))
	same(t, "rollback to what is", rev(s.Rollback(ctx, 3, 1, store.Info{})), r3)
	if _, err := s.Rollback(ctx, 2, 1, store.Info{}); !isConflict(err, 3) {
		t.Errorf("rollback on an old base: %v", err)
	}

	var names []string
	for _, c := range must[[]store.Change](t)(s.Diff(ctx, 1, 2)) {
		switch {
		case c.Resource == nil:
			names = append(names, "-"+c.Name)
		case Value(c.Resource) != "b":
			t.Errorf("%s: %s", c.Name, Value(c.Resource))
		default:
			names = append(names, "+"+c.Name)
		}
	}
	if want := []string{"-" + RouteName(0), "+" + RouteName(1), "+" + RouteName(2), "+" + RouteName(3)}; !slices.Equal(names, want) {
		t.Errorf("diff: %v, want %v", names, want)
	}
	if got := must[[]store.Change](t)(s.Diff(ctx, 1, 3)); len(got) != 0 {
		t.Errorf("diff of equal content: %v", got)
	}

	for _, c := range []struct {
		before int64
		limit  int
		want   []int64
	}{{0, 0, []int64{3, 2, 1}}, {0, 2, []int64{3, 2}}, {3, 10, []int64{2, 1}}, {1, 10, nil}, {99, 1, []int64{3}}} {
		var got []int64
		for _, r := range must[[]store.Revision](t)(s.List(ctx, c.before, c.limit)) {
			got = append(got, r.Number)
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("list before %d, %d: %v, want %v", c.before, c.limit, got, c.want)
		}
	}
	r4 := rev(s.Commit(ctx, 3, []store.Change{Delete(RouteName(0)), Delete(RouteName(1)), Delete(RouteName(2))}, store.Info{}))
	if r4.Resources != 0 || len(content(t, s, 4)) != 0 {
		t.Errorf("after deleting all: %+v", r4)
	}
}

// isConflict says whether err is a conflict with that head.
func isConflict(err error, head int64) bool {
	c, ok := errors.AsType[*store.ConflictError](err)
	return ok && c.Head == head
}

func testUnchanged(t *testing.T, s store.Store) {
	ctx := t.Context()
	rev := must[store.Revision](t)
	all := append(Routes(0, 3, "a"), Certificate("tls", "key"))
	r1 := rev(s.Commit(ctx, 0, all, store.Info{}))
	same(t, "same again", rev(s.Commit(ctx, 1, all, store.Info{Message: "nothing"})), r1)
	same(t, "deleting what is not there", rev(s.Commit(ctx, 1, []store.Change{Delete("projects/p/routes/none")}, store.Info{})), r1)
	same(t, "head", rev(s.Head(ctx)), r1)
	r2 := rev(s.Commit(ctx, 1, append(Routes(0, 1, "b"), all[1:]...), store.Info{}))
	if r2.Changes != 1 || r2.Number != 2 {
		t.Errorf("one of four changed: %+v", r2)
	}
	if _, err := s.Commit(ctx, 1, all, store.Info{}); !isConflict(err, 2) {
		t.Errorf("a stale base is a conflict: %v", err)
	}
}

func testBadInput(t *testing.T, s store.Store) {
	twice := append(Routes(0, 1, "a"), Delete(RouteName(0)))
	misnamed := Routes(0, 1, "a")
	misnamed[0].Name = RouteName(1)
	big := Routes(0, 1, strings.Repeat("x", store.MaxObjectBytes))
	for _, c := range []struct {
		name    string
		changes []store.Change
		info    store.Info
		want    string
	}{
		{"no name", []store.Change{{}}, store.Info{}, "no name"},
		{"twice", twice, store.Info{}, RouteName(0) + " appears twice"},
		{"misnamed", misnamed, store.Info{}, "carries the resource"},
		{"no kind", []store.Change{{Name: "x", Resource: &pb.Resource{}}}, store.Info{}, "no kind"},
		{"long name", []store.Change{Delete(strings.Repeat("n", 5000))}, store.Info{}, "at most"},
		{"not text", []store.Change{Delete("a\xff")}, store.Info{}, "not text"},
		{"too big", big, store.Info{}, RouteName(0) + " takes"},
		{"long author", nil, store.Info{Author: strings.Repeat("n", 5000)}, "author has 5000 bytes"},
		{"long message", nil, store.Info{Message: strings.Repeat("n", 50000)}, "message has 50000 bytes"},
		{"long request id", nil, store.Info{RequestID: strings.Repeat("n", 5000)}, "request id has 5000 bytes"},
	} {
		_, err := s.Commit(t.Context(), 0, c.changes, c.info)
		wantErr(t, c.name, err, store.ErrInvalid)
		if err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: error %q does not say %q", c.name, err, c.want)
		}
	}
	_, err := s.Commit(t.Context(), 0, []store.Change{{}, misnamed[0]}, store.Info{})
	if err == nil || !strings.Contains(err.Error(), "change 0") || !strings.Contains(err.Error(), "change 1") {
		t.Errorf("not all problems are told: %v", err)
	}
	same(t, "head", must[store.Revision](t)(s.Head(t.Context())), store.Revision{})
}

// testModel compares the store with a map after random commits and rollbacks.
func testModel(t *testing.T, s store.Store) {
	rnd := rand.New(rand.NewPCG(1, 2))
	ctx := t.Context()
	history := []map[string]*pb.Resource{{}}
	for step := range 40 {
		head := int64(len(history) - 1)
		next := map[string]*pb.Resource{}
		if head > 0 && rnd.IntN(8) == 0 {
			to := 1 + rnd.Int64N(head)
			r := must[store.Revision](t)(s.Rollback(ctx, head, to, store.Info{}))
			if r.Number == head {
				continue
			}
			next = history[to]
		} else {
			for k, v := range history[head] {
				next[k] = v
			}
			var changes []store.Change
			for _, i := range rnd.Perm(30)[:rnd.IntN(20)] {
				c := Routes(i, 1, fmt.Sprint("v", step))[0]
				if rnd.IntN(3) == 0 {
					c.Resource = nil
					delete(next, c.Name)
				} else {
					next[c.Name] = c.Resource
				}
				changes = append(changes, c)
			}
			r := must[store.Revision](t)(s.Commit(ctx, head, changes, store.Info{}))
			if r.Resources != len(next) {
				t.Fatalf("step %d: %d resources, want %d", step, r.Resources, len(next))
			}
			if r.Number == head {
				continue
			}
		}
		history = append(history, next)
	}
	for range 60 {
		from, to := rnd.IntN(len(history)), rnd.IntN(len(history))
		got := map[string]*pb.Resource{}
		for k, v := range history[from] {
			got[k] = v
		}
		for _, c := range must[[]store.Change](t)(s.Diff(ctx, int64(from), int64(to))) {
			if c.Resource == nil {
				delete(got, c.Name)
			} else {
				got[c.Name] = c.Resource
			}
		}
		sameContent(t, fmt.Sprintf("diff %d to %d", from, to), got, history[to])
		sameContent(t, fmt.Sprintf("load %d", to), content(t, s, int64(to)), history[to])
	}
}

func testSecrets(t *testing.T, s store.Store) {
	ctx := t.Context()
	one := Certificate("tls", "private one")
	two := Certificate("tls", "private two")
	must[store.Revision](t)(s.Commit(ctx, 0, []store.Change{one, Certificate("other", "private one")}, store.Info{}))
	must[store.Revision](t)(s.Commit(ctx, 1, []store.Change{two}, store.Info{}))
	for number, want := range map[int64]store.Change{1: one, 2: two} {
		if got := content(t, s, number)[one.Name]; !proto.Equal(got, want.Resource) {
			t.Errorf("revision %d: %v", number, got)
		}
	}
}

func testWatchState(t *testing.T, s store.Store) {
	ctx, cancel := context.WithCancel(t.Context())
	signals := s.WatchState(ctx, "watched/")
	<-signals // the beginning
	if err := s.PutState(ctx, "watched/a", []byte("1")); err != nil {
		t.Fatal(err)
	}
	<-signals
	if err := s.DeleteState(ctx, "watched/a"); err != nil {
		t.Fatal(err)
	}
	<-signals
	cancel()
	for range signals {
	}
}

func testState(t *testing.T, s store.Store) {
	ctx := t.Context()
	put := func(key, value string) {
		t.Helper()
		if err := s.PutState(ctx, key, []byte(value)); err != nil {
			t.Fatal(err)
		}
	}
	check := func(prefix string, want map[string]string) {
		t.Helper()
		got := must[map[string][]byte](t)(s.State(ctx, prefix))
		if len(got) != len(want) {
			t.Errorf("%q: %d values, want %d", prefix, len(got), len(want))
		}
		for k, v := range want {
			if string(got[k]) != v {
				t.Errorf("%q: %s is %q, want %q", prefix, k, got[k], v)
			}
		}
	}
	check("", nil)
	put("instances/a", "1")
	put("instances/b", "2")
	put("instances/a", "3")
	put("leases/a", "4")
	check("instances/", map[string]string{"instances/a": "3", "instances/b": "2"})
	check("", map[string]string{"instances/a": "3", "instances/b": "2", "leases/a": "4"})
	for range 2 {
		if err := s.DeleteState(ctx, "instances/b"); err != nil {
			t.Fatal(err)
		}
	}
	check("instances/", map[string]string{"instances/a": "3"})
	many := map[string]string{}
	var wg sync.WaitGroup
	for i := range 1200 { // more than a page
		key := fmt.Sprintf("many/%04d", i)
		if i >= 1100 {
			key = "access/" + key // a list of tags is written with these
		}
		many[key] = key
		wg.Go(func() {
			if err := s.PutState(ctx, key, []byte(key)); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for _, prefix := range []string{"many/", "access/"} {
		of := maps.Clone(many)
		maps.DeleteFunc(of, func(key, _ string) bool { return !strings.HasPrefix(key, prefix) })
		check(prefix, of)
	}
	wantErr(t, "no key", s.PutState(ctx, "", nil), store.ErrInvalid)
	wantErr(t, "too big", s.PutState(ctx, "big", make([]byte, store.MaxObjectBytes+1)), store.ErrInvalid)
	same(t, "head", must[store.Revision](t)(s.Head(ctx)), store.Revision{})
}

func testCancelled(t *testing.T, s store.Store) {
	must[store.Revision](t)(s.Commit(t.Context(), 0, Routes(0, 1, "a"), store.Info{}))
	ctx, cancel := context.WithCancel(t.Context())
	watch := s.Watch(ctx, 1)
	cancel()
	for range watch {
		t.Error("a revision out of nothing")
	}
	_, err := s.Head(ctx)
	wantErr(t, "head", err, context.Canceled)
	_, err = s.Load(ctx, 1)
	wantErr(t, "load", err, context.Canceled)
	_, err = s.Commit(ctx, 1, Routes(0, 1, "b"), store.Info{})
	wantErr(t, "commit", err, context.Canceled)
	_, err = s.State(ctx, "")
	wantErr(t, "state", err, context.Canceled)
	for range s.Watch(ctx, 0) {
		t.Error("a revision after the end")
	}
	// A large commit that is cancelled somewhere on its way happens whole or not at
	// all, and the next one works.
	for i := range 8 {
		head := must[store.Revision](t)(s.Head(t.Context()))
		ctx, cancel := context.WithTimeout(t.Context(), time.Duration(i)*4*time.Millisecond)
		_, err := s.Commit(ctx, head.Number, Routes(0, 1000, fmt.Sprint("big-", i)), store.Info{})
		cancel()
		if err != nil && !errors.Is(err, context.DeadlineExceeded) {
			t.Fatal(err)
		}
		now := must[store.Revision](t)(s.Head(t.Context()))
		if now.Number != head.Number && now.Resources != 1000 {
			t.Fatalf("half a commit: %+v", now)
		}
		must[store.Revision](t)(s.Commit(t.Context(), now.Number, Routes(0, 1, fmt.Sprint("small-", i)), store.Info{}))
	}
}

func testClosed(t *testing.T, s store.Store) {
	watch := s.Watch(t.Context(), 0)
	for range 2 {
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	for range watch {
		t.Error("a revision out of nothing")
	}
	_, err := s.Head(t.Context())
	wantErr(t, "head", err, store.ErrClosed)
	_, err = s.Commit(t.Context(), 0, Routes(0, 1, "a"), store.Info{})
	wantErr(t, "commit", err, store.ErrClosed)
	wantErr(t, "put state", s.PutState(t.Context(), "k", nil), store.ErrClosed)
	for range s.Watch(t.Context(), 0) {
		t.Error("a revision after the end")
	}
}
