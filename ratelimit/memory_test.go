package ratelimit

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// clock is a clock that tests set.
type clock struct{ us atomic.Int64 }

func newClock() *clock {
	c := new(clock)
	c.us.Store(epoch)
	return c
}

func (c *clock) now() time.Time { return time.UnixMicro(c.us.Load()) }

func (c *clock) add(d time.Duration) { c.us.Add(int64(d / time.Microsecond)) }

func one(s Spec) []Request { return []Request{{Key: s.ID, Spec: s, Cost: 1}} }

func mustDecide(t testing.TB, b Backend, requests []Request) []Result {
	t.Helper()
	r, err := b.Decide(context.Background(), requests)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// remaining asks without taking.
func remaining(t testing.TB, b Backend, s Spec) uint32 {
	t.Helper()
	r := one(s)
	r[0].Cost = 0
	return mustDecide(t, b, r)[0].Remaining
}

func TestMemoryBounded(t *testing.T) {
	c := newClock()
	m := NewMemory(MemoryOptions{MaxKeys: 640, Now: c.now})
	for i := range 10_000 {
		mustDecide(t, m, one(gcra(fmt.Sprint("key", i), 5, time.Minute)))
	}
	if n := m.Len(); n > 640 || n < 320 {
		t.Errorf("%d counters, 640 are allowed", n)
	}
	if m.Evictions() == 0 {
		t.Error("no eviction was counted")
	}
	// Counters in use are the last to go, those that are idle the first.
	c.add(time.Hour)
	before := m.Evictions()
	hot := gcra("hot", 5, 24*time.Hour)
	for range 5 {
		mustDecide(t, m, one(hot))
	}
	for i := range 1000 {
		mustDecide(t, m, one(gcra(fmt.Sprint("other", i), 5, time.Millisecond)))
		c.add(time.Millisecond)
		if mustDecide(t, m, one(hot))[0].Allowed {
			t.Fatal("a counter that is asked for all the time was forgotten")
		}
	}
	if m.Evictions() != before {
		t.Errorf("%d counters in use were forgotten, there were enough idle ones", m.Evictions()-before)
	}
	if m.Name() != "memory" || m.Close() != nil {
		t.Error("Name or Close")
	}
}

func TestMemoryConcurrent(t *testing.T) {
	m := NewMemory(MemoryOptions{})
	limits := make([]Spec, 5)
	for i := range limits {
		limits[i] = gcra(fmt.Sprint("limit", i), 100, 24*time.Hour)
	}
	var passed atomic.Int64
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			for i := range 100 {
				// Three limits of five, in changing order.
				var r []Request
				for j := range 3 {
					s := limits[(g+i*(j+1))%len(limits)]
					r = append(r, Request{Key: s.ID, Spec: s, Cost: 1})
				}
				res, err := m.Decide(context.Background(), r)
				if err != nil {
					t.Error(err)
					return
				}
				if !refuses(r, res) {
					passed.Add(3)
				}
			}
		})
	}
	wg.Wait()
	left := int64(0)
	for _, s := range limits {
		left += int64(remaining(t, m, s))
	}
	// Of a single key more than once in a request all count, so the sum is exact.
	if got := 500 - left; got != passed.Load() {
		t.Errorf("%d were taken for requests that took %d", got, passed.Load())
	}
}

func TestMemoryContext(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := NewMemory(MemoryOptions{}).Decide(ctx, one(gcra("x", 1, time.Second))); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

// decideCases are what every backend must do alike.
var decideCases = map[string]func(t *testing.T, c *clock, b Backend){
	"all or none":   decideAllOrNone,
	"shadow":        decideShadow,
	"cost":          decideCost,
	"one key twice": decideOneKeyTwice,
	"extreme":       decideExtreme,
}

func decideAllOrNone(t *testing.T, _ *clock, b Backend) {
	a, c, d, e := gcra("a", 10, time.Hour), gcra("b", 1, time.Hour), gcra("c", 10, time.Hour), gcra("d", 10, time.Hour)
	d.Algorithm = FixedWindow
	all := []Request{{"a", a, 1}, {"b", c, 1}, {"c", d, 2}, {"d", e, 3}}
	if r := mustDecide(t, b, all); refuses(all, r) || r[0].Remaining != 9 || r[1].Remaining != 0 || r[2].Remaining != 8 || r[3].Remaining != 7 {
		t.Fatalf("first: %+v", r)
	}
	for range 3 {
		r := mustDecide(t, b, all)
		if !refuses(all, r) || r[1].Allowed || !r[0].Allowed || !r[2].Allowed || !r[3].Allowed {
			t.Fatalf("second: %+v", r)
		}
		if r[0].Remaining != 9 || r[2].Remaining != 8 || r[3].Remaining != 7 {
			t.Fatalf("a refused request took something: %+v", r)
		}
		if r[1].RetryAfter != time.Hour || r[1].Effective != time.Hour || r[0].RetryAfter != 0 {
			t.Fatalf("retry after: %+v", r)
		}
	}
	for _, s := range []struct {
		spec Spec
		want uint32
	}{{a, 9}, {c, 0}, {d, 8}, {e, 7}} {
		if got := remaining(t, b, s.spec); got != s.want {
			t.Errorf("%s has %d left, want %d", s.spec.ID, got, s.want)
		}
	}
}

func decideShadow(t *testing.T, _ *clock, b Backend) {
	shadow, enforced := gcra("shadow", 1, time.Hour), gcra("real", 3, time.Hour)
	shadow.Shadow = true
	both := []Request{{"shadow", shadow, 1}, {"real", enforced, 1}}
	for i := range 3 {
		r := mustDecide(t, b, both)
		if refuses(both, r) || r[0].Allowed != (i == 0) || r[1].Remaining != uint32(2-i) {
			t.Fatalf("request %d: %+v", i, r)
		}
	}
	if r := mustDecide(t, b, both); !refuses(both, r) {
		t.Fatalf("the real limit does not refuse: %+v", r)
	}
	// A request that another limit refuses is not counted by a shadow either.
	other := gcra("other shadow", 5, time.Hour)
	other.Shadow = true
	mustDecide(t, b, []Request{{"other shadow", other, 1}, {"real", enforced, 1}})
	if got := remaining(t, b, other); got != 5 {
		t.Errorf("the shadow limit counted a refused request: %d left", got)
	}
}

func decideCost(t *testing.T, c *clock, b Backend) {
	s := Spec{ID: "x", Name: "x", Requests: 10, Window: 10 * time.Second, Burst: 4}
	if r := mustDecide(t, b, []Request{{"x", s, 5}})[0]; r.Allowed || r.Remaining != 4 || r.Limit != 4 {
		t.Errorf("more than the burst: %+v", r)
	}
	if r := mustDecide(t, b, []Request{{"x", s, 3}})[0]; !r.Allowed || r.Remaining != 1 {
		t.Errorf("3 of 4: %+v", r)
	}
	if r := mustDecide(t, b, []Request{{"x", s, 3}})[0]; r.Allowed || r.RetryAfter != 2*time.Second {
		t.Errorf("3 of 1: %+v", r)
	}
	c.add(2 * time.Second)
	if r := mustDecide(t, b, []Request{{"x", s, 3}})[0]; !r.Allowed || r.Remaining != 0 {
		t.Errorf("3 after the wait: %+v", r)
	}
	if r := mustDecide(t, b, []Request{{"x", s, 0}})[0]; r.Allowed || r.Remaining != 0 || r.RetryAfter != time.Second {
		t.Errorf("asked when empty: %+v", r)
	}
}

func decideOneKeyTwice(t *testing.T, _ *clock, b Backend) {
	s := gcra("x", 3, time.Hour)
	twice := []Request{{"x", s, 1}, {"x", s, 1}}
	if r := mustDecide(t, b, twice); refuses(twice, r) || r[0].Remaining != 2 || r[1].Remaining != 1 {
		t.Fatalf("first: %+v", r)
	}
	if r := mustDecide(t, b, twice); !refuses(twice, r) || !r[0].Allowed || r[1].Allowed || r[1].Remaining != 1 {
		t.Fatalf("second: %+v", r)
	}
	if got := remaining(t, b, s); got != 1 {
		t.Errorf("%d left, want 1", got)
	}
}

func decideExtreme(t *testing.T, c *clock, b Backend) {
	s := Spec{ID: "x", Name: "x", Requests: 999_999_937, Window: MaxWindow, Burst: MaxRequests}
	if r := mustDecide(t, b, []Request{{"x", s, MaxRequests}})[0]; !r.Allowed || r.Remaining != 0 {
		t.Errorf("all at once: %+v", r)
	}
	c.add(MaxWindow / 2)
	if r := mustDecide(t, b, []Request{{"x", s, 499_999_969}})[0]; r.Allowed || r.Remaining != 499_999_968 {
		t.Errorf("half a window later: %+v", r)
	}
	if r := mustDecide(t, b, []Request{{"x", s, 499_999_968}})[0]; !r.Allowed || r.Remaining != 0 {
		t.Errorf("what is free: %+v", r)
	}
	if r := mustDecide(t, b, []Request{{"y", s, MaxRequests + 1}})[0]; r.Allowed {
		t.Errorf("more than any limit: %+v", r)
	}
	slow := Spec{ID: "z", Name: "z", Requests: 1, Window: MaxWindow, Burst: MaxRequests}
	if r := mustDecide(t, b, []Request{{"z", slow, MaxRequests}})[0]; !r.Allowed || r.Effective != MaxWindow {
		t.Errorf("a bucket of a billion years: %+v", r)
	}
}

func TestMemoryDecides(t *testing.T) {
	for name, decide := range decideCases {
		t.Run(name, func(t *testing.T) {
			c := newClock()
			decide(t, c, NewMemory(MemoryOptions{Now: c.now}))
		})
	}
}
