package storetest

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
	"github.com/penstock-gateway/penstock/store"
)

// Conflict lets writers on several handles of one store race for each revision:
// exactly one wins, the others are told the head.
func Conflict(t *testing.T, handles ...store.Store) {
	const rounds, writers = 20, 8
	for round := range int64(rounds) {
		var wg sync.WaitGroup
		errs := make([]error, writers)
		start := make(chan struct{})
		for w := range writers {
			wg.Go(func() {
				<-start
				_, errs[w] = handles[w%len(handles)].Commit(t.Context(), round, Routes(w%3, 1, fmt.Sprintf("r%d-w%d", round, w)), store.Info{})
			})
		}
		close(start)
		wg.Wait()
		winner := -1
		for w, err := range errs {
			switch {
			case err == nil && winner < 0:
				winner = w
			case err == nil:
				t.Fatalf("round %d: writers %d and %d both won", round, winner, w)
			case !isConflict(err, round+1):
				t.Fatalf("round %d: writer %d: %v", round, w, err)
			}
		}
		if winner < 0 {
			t.Fatalf("round %d: nobody won", round)
		}
		for _, h := range handles {
			if got, want := Value(content(t, h, round+1)[RouteName(winner%3)]), fmt.Sprintf("r%d-w%d", round, winner); got != want {
				t.Fatalf("round %d: writer %d won and %q was stored", round, winner, got)
			}
		}
	}
}

func testConflict(t *testing.T, s store.Store) { Conflict(t, s) }

func testLarge(t *testing.T, s store.Store) {
	const n = 10_000
	ctx := t.Context()
	changes := Routes(0, n, "a")
	r1 := must[store.Revision](t)(s.Commit(ctx, 0, changes, store.Info{}))
	if r1.Resources != n || r1.Changes != n {
		t.Fatalf("%+v", r1)
	}
	r2 := must[store.Revision](t)(s.Commit(ctx, 1, Routes(n/2, 1, "b"), store.Info{}))
	if r2.Resources != n || r2.Changes != 1 {
		t.Fatalf("%+v", r2)
	}
	if d := must[[]store.Change](t)(s.Diff(ctx, 1, 2)); len(d) != 1 || d[0].Name != RouteName(n/2) || Value(d[0].Resource) != "b" {
		t.Fatalf("diff: %v", d)
	}
	changes[n/2] = Routes(n/2, 1, "b")[0]
	want := map[string]*pb.Resource{}
	for _, c := range changes {
		want[c.Name] = c.Resource
	}
	sameContent(t, "load", content(t, s, 2), want)

	deletes := make([]store.Change, 0, n)
	for i := range n - 1 {
		deletes = append(deletes, Delete(RouteName(i)))
	}
	r3 := must[store.Revision](t)(s.Commit(ctx, 2, deletes, store.Info{}))
	if r3.Resources != 1 || len(content(t, s, 3)) != 1 {
		t.Fatalf("%+v", r3)
	}
	// Few resources that are together too much for one transaction.
	var heavy []store.Change
	for i := range 6 {
		heavy = append(heavy, Routes(i, 1, strings.Repeat(fmt.Sprint(i), store.MaxObjectBytes-1000))...)
	}
	must[store.Revision](t)(s.Commit(ctx, 3, heavy, store.Info{}))
	if got := content(t, s, 4); len(got) != 7 || len(Value(got[RouteName(5)])) != store.MaxObjectBytes-1000 {
		t.Fatalf("%d resources", len(got))
	}
}

// testWhole reads while commits replace everything: all values of a revision agree.
func testWhole(t *testing.T, s store.Store) {
	const n, commits = 300, 12 // n is more than one transaction
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	must[store.Revision](t)(s.Commit(ctx, 0, Routes(0, n, "v1"), store.Info{}))
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			for ctx.Err() == nil {
				head, err := s.Head(t.Context())
				if err != nil {
					t.Error(err)
					return
				}
				list, err := s.Load(t.Context(), head.Number)
				if err != nil || len(list) != n {
					t.Errorf("revision %d: %d resources, %v", head.Number, len(list), err)
					return
				}
				for _, r := range list {
					if Value(r) != fmt.Sprint("v", head.Number) {
						t.Errorf("revision %d holds %s", head.Number, Value(r))
						return
					}
				}
			}
		})
	}
	for i := int64(1); i < commits; i++ {
		must[store.Revision](t)(s.Commit(ctx, i, Routes(0, n, fmt.Sprint("v", i+1)), store.Info{}))
	}
	cancel()
	wg.Wait()
}

func testWatch(t *testing.T, s store.Store) {
	commit := func(base, n int64) {
		for i := base; i < base+n; i++ {
			must[store.Revision](t)(s.Commit(t.Context(), i, Routes(0, 1, fmt.Sprint("v", i+1)), store.Info{Message: fmt.Sprint(i + 1)}))
		}
	}
	expect := func(ch <-chan store.Revision, first, last int64) {
		t.Helper()
		for n := first; n <= last; n++ {
			select {
			case r, ok := <-ch:
				if !ok || r.Number != n || r.Message != fmt.Sprint(n) {
					t.Fatalf("got %+v (open %v), want revision %d", r, ok, n)
				}
			case <-t.Context().Done():
				t.Fatalf("revision %d did not come", n)
			}
		}
	}
	commit(0, 5)
	ctx, cancel := context.WithCancel(t.Context())
	all, late, slow := s.Watch(ctx, 0), s.Watch(ctx, 3), s.Watch(ctx, 0)
	future := s.Watch(ctx, 7)
	expect(all, 1, 5)
	expect(late, 4, 5)
	done := make(chan struct{})
	go func() { // a burst while the watches are read
		defer close(done)
		commit(5, 40)
	}()
	expect(all, 6, 45)
	expect(late, 6, 45)
	expect(future, 8, 45)
	<-done
	expect(slow, 1, 45)
	cancel()
	for _, ch := range []<-chan store.Revision{all, late, slow, future} {
		for r := range ch {
			t.Errorf("revision %d after the end", r.Number)
		}
	}
	commit(45, 2)
	expect(s.Watch(t.Context(), 45), 46, 47) // resumed after what was seen
}

func testRequestID(t *testing.T, s store.Store) {
	ctx := t.Context()
	rev := must[store.Revision](t)
	r1 := rev(s.Commit(ctx, 0, Routes(0, 1, "a"), store.Info{RequestID: "one/1"}))
	r2 := rev(s.Commit(ctx, 1, Routes(0, 1, "b"), store.Info{RequestID: "two"}))
	got, ok, err := s.ByRequest(ctx, "one/1")
	if !ok || err != nil {
		t.Fatal(ok, err)
	}
	same(t, "by request", got, r1)
	same(t, "retry on the old base", rev(s.Commit(ctx, 0, Routes(0, 1, "a"), store.Info{RequestID: "one/1"})), r1)
	same(t, "retry on the head", rev(s.Commit(ctx, 2, Routes(0, 1, "a"), store.Info{RequestID: "one/1"})), r1)
	same(t, "retry that changes nothing", rev(s.Commit(ctx, 2, Routes(0, 1, "b"), store.Info{RequestID: "one/1"})), r1)
	same(t, "head", rev(s.Head(ctx)), r2)
	r3 := rev(s.Rollback(ctx, 2, 1, store.Info{RequestID: "three"}))
	same(t, "rollback again", rev(s.Rollback(ctx, 2, 1, store.Info{RequestID: "three"})), r3)
	// The same request many times at once is made once.
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			r, err := s.Commit(ctx, 3, Routes(0, 1, "c"), store.Info{RequestID: "four"})
			if err != nil || r.Number != 4 {
				t.Errorf("%+v %v", r, err)
			}
		})
	}
	wg.Wait()
	if h := rev(s.Head(ctx)); h.Number != 4 {
		t.Errorf("head %d, want 4", h.Number)
	}
}
