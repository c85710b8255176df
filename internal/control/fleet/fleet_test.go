package fleet

import (
	"context"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
	"github.com/penstock-gateway/penstock/store"
	"github.com/penstock-gateway/penstock/xds/delivery"
	"github.com/penstock-gateway/penstock/xds/ledger"
)

// tell puts what a replica of a name would.
func tell(t *testing.T, st store.Store, name string, s ReplicaState) {
	t.Helper()
	if err := s.Put(t.Context(), st, name, time.Now()); err != nil {
		t.Fatal(err)
	}
}

func standing(name string, revision int64, connected time.Time, serves bool, lacks ...ledger.Problem) delivery.Standing {
	return delivery.Standing{
		ProxyStatus: ledger.ProxyStatus{Name: name, Identity: "spiffe://" + name, Revision: revision, State: ledger.Serving, Connected: connected},
		Serves:      serves, Lacks: lacks,
	}
}

// TestFleetReport: how proxies of other replicas count.
func TestFleetReport(t *testing.T) {
	now := time.Now()
	refused := ledger.Problem{Proxy: "p", State: ledger.Refused, Detail: "bad"}
	pending := ledger.Problem{Proxy: "p", State: ledger.Pending, Detail: "an answer"}
	for _, test := range []struct {
		name     string
		revision int64 // that the replica tells of
		proxy    delivery.Standing
		age      time.Duration
		serving  int
		complete bool
		state    ledger.State
		detail   string
	}{
		{"serves it", 7, standing("p", 7, now, true), 0, 1, true, "", ""},
		{"serves a later one", 9, standing("p", 9, now, true), 0, 1, true, "", ""},
		{"refused something before, not in this one", 7, standing("p", 5, now, true), 0, 1, true, "", ""},
		{"refused a part", 7, standing("p", 6, now, false, refused), 0, 0, true, ledger.Refused, "bad"},
		{"has not answered", 7, standing("p", 6, now, false, pending), 0, 0, false, ledger.Pending, "an answer"},
		{"the replica has not told yet", 6, standing("p", 6, now, true), 0, 0, false, ledger.Pending, "has not told of this revision yet"},
		{"the replica is silent", 6, standing("p", 6, now, true), replicaSilent, 0, true, ledger.Silent, "has not been heard of"},
		{"the replica is silent, the proxy served it before", 7, standing("p", 7, now, true), replicaSilent, 1, true, "", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			f := New(Params{Now: func() time.Time { return now }, Delivery: delivery.New(delivery.Options{})})
			f.others["x"] = &replica{name: "x", first: now.Add(-time.Hour), seen: now.Add(-test.age),
				ReplicaState: ReplicaState{Revision: test.revision, Proxies: []delivery.Standing{test.proxy}}}
			rep, next := f.add(ledger.Report{Revision: 7, Complete: true})
			if rep.Total != 1 || rep.Serving != test.serving || rep.Complete != test.complete {
				t.Errorf("%+v, want %d of 1, complete %t", rep, test.serving, test.complete)
			}
			if !test.complete && !next.Equal(now.Add(replicaSilent)) {
				t.Errorf("next is %s, want when the replica counts as silent", next)
			}
			if test.state == "" && len(rep.Problems) == 0 {
				return
			}
			if len(rep.Problems) != 1 || rep.Problems[0].State != test.state || !strings.Contains(rep.Problems[0].Detail, test.detail) {
				t.Errorf("problems %v, want one that is %s: %s", rep.Problems, test.state, test.detail)
			}
		})
	}
}

// TestFleetMoved: a proxy that has moved counts once, where it came last, even
// while its old replica is not known to be gone.
func TestFleetMoved(t *testing.T) {
	now := time.Now()
	f := New(Params{Now: func() time.Time { return now }, Delivery: delivery.New(delivery.Options{})})
	for name, connected := range map[string]time.Time{"old": now.Add(-time.Minute), "new": now, "older": now.Add(-time.Hour)} {
		f.others[name] = &replica{name: name, seen: now, ReplicaState: ReplicaState{Proxies: []delivery.Standing{standing("p", 1, connected, true)}}}
	}
	if r := f.remotes(); len(r) != 1 || r[0].replica.name != "new" {
		t.Errorf("%v, want p once, at the replica new", r)
	}
}

// openStore opens a store of its own.
func openStore(t *testing.T) store.Store {
	t.Helper()
	st, err := store.Open(t.Context(), store.Options{
		DataDir: filepath.Join(t.TempDir(), "etcd"), SealKey: make([]byte, store.SealKeyBytes), Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { st.Close() })
	return st
}

// replicaOn runs the room of a replica without proxies. stop ends it, as the replica's end does.
func replicaOn(t *testing.T, st store.Store) (f *Room, stop func()) {
	t.Helper()
	f = New(Params{
		State: st, Delivery: delivery.New(delivery.Options{Logger: slog.New(slog.DiscardHandler)}), Log: slog.New(slog.DiscardHandler), Now: time.Now,
		Revision: func() int64 { return 0 }, Joined: func() {},
	})
	if err := f.Load(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { f.Run(ctx) })
	stop = sync.OnceFunc(func() {
		cancel()
		running.Wait()
		f.Leave()
	})
	t.Cleanup(stop)
	return f, stop
}

func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within 30 s", what)
		}
	}
}

func statesOf(t *testing.T, st store.Store) map[string][]byte {
	t.Helper()
	states, err := st.State(t.Context(), Prefix)
	if err != nil {
		t.Fatal(err)
	}
	return states
}

// TestFleetOfTwo: replicas find each other; one that is deleted by mistake comes
// back; one that ends takes itself out; one that says nothing more is forgotten;
// one that cannot be read hurts nobody.
func TestFleetOfTwo(t *testing.T) {
	st := openStore(t)
	p, _ := replicaOn(t, st)
	q, stop := replicaOn(t, st)
	knows := func(f *Room, name string) bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		r := f.others[name]
		return r != nil && !r.Alone && r.unread == nil
	}
	both := func() bool { return knows(p, q.name) && knows(q, p.name) }
	until(t, "two replicas to know each other", both)
	if err := st.DeleteState(t.Context(), Prefix+q.name); err != nil {
		t.Fatal(err)
	}
	until(t, "the deleted one to come back", func() bool { return len(statesOf(t, st)[Prefix+q.name]) > 0 })
	until(t, "both to know it", both)

	tell(t, st, "third", ReplicaState{Revision: 1, Proxies: []delivery.Standing{standing("far", 1, time.Now(), true)}})
	if err := st.PutState(t.Context(), Prefix+"garbage", []byte("garbage of another version")); err != nil {
		t.Fatal(err)
	}
	for _, f := range []*Room{p, q} {
		until(t, "the third to be known", func() bool {
			return slices.ContainsFunc(f.List(), func(x *pb.Proxy) bool { return x.GetName() == "far" })
		})
	}
	p.mu.Lock()
	for _, name := range []string{"third", "garbage"} {
		if r := p.others[name]; r != nil {
			r.seen = r.seen.Add(-replicaGone)
		}
	}
	p.mu.Unlock()
	until(t, "the third to be forgotten", func() bool { return len(statesOf(t, st)) == 2 && both() })
	stop()
	until(t, "the one that ended to be out", p.Alone)
	until(t, "the other to be alone", func() bool {
		states := statesOf(t, st)
		s, err := decodeReplica(states[Prefix+p.name])
		return len(states) == 1 && err == nil && s.Alone
	})
}

// TestFleetAlone: a replica that seemed to be alone may say for a moment which
// proxies it has; one that is dead, as after a kill -9, holds nobody up longer.
func TestFleetAlone(t *testing.T) {
	st := openStore(t)
	p, _ := replicaOn(t, st)
	tell(t, st, "dead", ReplicaState{Alone: true})
	until(t, "the dead one to be seen", func() bool { return !p.Alone() })
	rep, err := p.Wait(t.Context(), 0, nil)
	if err != nil || !rep.Complete || rep.Total != 0 {
		t.Errorf("%+v, %v, want to be done with no proxy", rep, err)
	}
	now := time.Now()
	f := New(Params{Now: func() time.Time { return now }, Delivery: delivery.New(delivery.Options{})})
	f.others["x"] = &replica{name: "x", first: now, seen: now, ReplicaState: ReplicaState{Alone: true}}
	if rep, next := f.add(ledger.Report{Complete: true}); rep.Complete || !next.Equal(now.Add(replicaTells)) {
		t.Errorf("%+v until %s, want to wait for a moment", rep, next)
	}
}

// TestAcks: a state counts as acknowledged once the proxies here have it and every other
// replica says the same of the value in the store; nothing counts before CountFrom.
func TestAcks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := New(Params{Now: time.Now, Delivery: delivery.New(delivery.Options{})})
		told := f.Acks.Begin("a")
		f.Acks.CountFrom(time.Now().Add(time.Minute))
		ctx, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		running.Go(func() { f.Acks.run(ctx) })
		defer running.Wait()
		defer cancel()
		is := func(when string, want uint64) {
			t.Helper()
			time.Sleep(time.Second) // of the bubble: all that can happen has
			if got := f.Acks.Acknowledged("a"); got != want {
				t.Errorf("%s: %d is acknowledged, want %d", when, got, want)
			}
		}
		f.Acks.Published("a", 1, nil)
		is("before acknowledgements count", 0)
		time.Sleep(time.Minute)
		is("with no proxy anywhere", 1)
		if _, more := <-told; !more {
			t.Error("the runner's stream is not woken")
		}
		value := []byte("\x00\x00\x00\x00\x00\x00\x00\x07state")
		say := func(heard uint64) {
			f.mu.Lock()
			f.others["x"] = &replica{name: "x", seen: time.Now(), ReplicaState: ReplicaState{Heard: map[string]uint64{"a": heard}}}
			f.mu.Unlock()
			f.changed.Notify()
		}
		say(0)
		f.Acks.Published("a", 2, nil)
		f.Acks.Stored("a", value, 2)
		is("while another replica has not heard of 2", 1)
		say(Stamp(value))
		is("when it has", 2)
		f.Acks.Published("a", 3, nil)
		is("while 3 is not in the store", 2)
	})
}

// FuzzDecodeReplica: what stands in the store never panics.
func FuzzDecodeReplica(f *testing.F) {
	s := ReplicaState{Revision: 1, Proxies: []delivery.Standing{standing("p", 1, time.Unix(1, 0), true)}}
	value, err := s.encode(time.Unix(1, 0))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(value)
	f.Add([]byte("x"))
	f.Fuzz(func(_ *testing.T, b []byte) { _, _ = decodeReplica(b) })
}
