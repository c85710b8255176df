package control

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
	"github.com/penstock-gateway/penstock/store"
	"github.com/penstock-gateway/penstock/xds/delivery"
	"github.com/penstock-gateway/penstock/xds/ledger"
)

// tell puts what a replica of a name would.
func tell(t *testing.T, st store.Store, name string, s replicaState) {
	t.Helper()
	value, err := s.encode(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if err := st.PutState(t.Context(), replicasPrefix+name, value); err != nil {
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
			c := &Core{now: func() time.Time { return now }, delivery: delivery.New(delivery.Options{})}
			c.fleet = newFleet(c)
			c.fleet.others["x"] = &replica{name: "x", first: now.Add(-time.Hour), seen: now.Add(-test.age),
				replicaState: replicaState{Revision: test.revision, Proxies: []delivery.Standing{test.proxy}}}
			rep, next := c.fleet.add(ledger.Report{Revision: 7, Complete: true})
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
	c := &Core{now: func() time.Time { return now }, delivery: delivery.New(delivery.Options{})}
	c.fleet = newFleet(c)
	for name, connected := range map[string]time.Time{"old": now.Add(-time.Minute), "new": now, "older": now.Add(-time.Hour)} {
		c.fleet.others[name] = &replica{name: name, seen: now, replicaState: replicaState{Proxies: []delivery.Standing{standing("p", 1, connected, true)}}}
	}
	if r := c.fleet.remotes(); len(r) != 1 || r[0].replica.name != "new" {
		t.Errorf("%v, want p once, at the replica new", r)
	}
}

// TestFleetOfTwo: replicas find each other; one that is deleted by mistake comes
// back; one that ends takes itself out; one that says nothing more is forgotten;
// one that cannot be read hurts nobody.
func TestFleetOfTwo(t *testing.T) {
	p := start(t, t.TempDir())
	st := p.core.store
	q, err := New(t.Context(), Options{Store: st, Logger: p.core.log, Authenticate: func(context.Context) (delivery.Identity, error) {
		return delivery.Identity{}, context.Canceled
	}})
	if err != nil {
		t.Fatal(err)
	}
	knows := func(c *Core, name string) bool {
		c.fleet.mu.Lock()
		defer c.fleet.mu.Unlock()
		r := c.fleet.others[name]
		return r != nil && !r.Alone && r.unread == nil
	}
	both := func() bool { return knows(p.core, q.fleet.name) && knows(q, p.core.fleet.name) }
	until(t, "two replicas to know each other", both)
	if err := st.DeleteState(t.Context(), replicasPrefix+q.fleet.name); err != nil {
		t.Fatal(err)
	}
	until(t, "the deleted one to come back", func() bool {
		states, err := st.State(t.Context(), replicasPrefix)
		if err != nil {
			t.Fatal(err)
		}
		return len(states[replicasPrefix+q.fleet.name]) > 0
	})
	until(t, "both to know it", both)

	tell(t, st, "third", replicaState{Revision: 1, Proxies: []delivery.Standing{standing("far", 1, time.Now(), true)}})
	if err := st.PutState(t.Context(), replicasPrefix+"garbage", []byte("garbage of another version")); err != nil {
		t.Fatal(err)
	}
	for _, c := range []*Core{p.core, q} {
		until(t, "the third to be known", func() bool {
			return slices.ContainsFunc(c.Proxies(), func(x *pb.Proxy) bool { return x.GetName() == "far" })
		})
	}
	p.core.fleet.mu.Lock()
	for _, name := range []string{"third", "garbage"} {
		if r := p.core.fleet.others[name]; r != nil {
			r.seen = r.seen.Add(-replicaGone)
		}
	}
	p.core.fleet.mu.Unlock()
	until(t, "the third to be forgotten", func() bool {
		states, err := st.State(t.Context(), replicasPrefix)
		if err != nil {
			t.Fatal(err)
		}
		return len(states) == 2 && both()
	})
	q.Close()
	until(t, "the one that ended to be out", func() bool { return p.core.fleet.alone() })
	until(t, "the other to be alone", func() bool {
		states, err := st.State(t.Context(), replicasPrefix)
		if err != nil {
			t.Fatal(err)
		}
		s, err := decodeReplica(states[replicasPrefix+p.core.fleet.name])
		return len(states) == 1 && err == nil && s.Alone
	})
}

// TestFleetAlone: a replica that seemed to be alone may say for a moment which
// proxies it has; one that is dead, as after a kill -9, holds nobody up longer.
func TestFleetAlone(t *testing.T) {
	dir := t.TempDir()
	p := start(t, dir)
	tell(t, p.core.store, "dead", replicaState{Alone: true})
	until(t, "the dead one to be seen", func() bool { return !p.core.fleet.alone() })
	rep, err := p.core.waitFleet(t.Context(), 0, nil)
	if err != nil || !rep.Complete || rep.Total != 0 {
		t.Errorf("%+v, %v, want to be done with no proxy", rep, err)
	}
	now := time.Now()
	c := &Core{now: func() time.Time { return now }, delivery: delivery.New(delivery.Options{})}
	c.fleet = newFleet(c)
	c.fleet.others["x"] = &replica{name: "x", first: now, seen: now, replicaState: replicaState{Alone: true}}
	if rep, next := c.fleet.add(ledger.Report{Complete: true}); rep.Complete || !next.Equal(now.Add(replicaTells)) {
		t.Errorf("%+v until %s, want to wait for a moment", rep, next)
	}
}

// FuzzDecodeReplica: what stands in the store never panics.
func FuzzDecodeReplica(f *testing.F) {
	s := replicaState{Revision: 1, Proxies: []delivery.Standing{standing("p", 1, time.Unix(1, 0), true)}}
	value, err := s.encode(time.Unix(1, 0))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(value)
	f.Add([]byte("x"))
	f.Fuzz(func(_ *testing.T, b []byte) { _, _ = decodeReplica(b) })
}
