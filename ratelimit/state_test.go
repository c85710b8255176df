package ratelimit

import (
	"math/big"
	"testing"
	"time"

	"pgregory.net/rapid"
)

const epoch = int64(1_790_000_000_000_000) // µs, in 2026

// drawLimit draws limits that are near to what people write, and extreme ones.
func drawLimit(t *rapid.T) limit {
	l := limit{
		requests: rapid.OneOf(rapid.Int64Range(1, 20), rapid.Int64Range(1, MaxRequests)).Draw(t, "requests"),
		window: rapid.OneOf(rapid.SampledFrom([]int64{1000, 1_000_000, 60_000_000, 3_600_000_000}),
			rapid.Int64Range(1000, int64(MaxWindow/time.Microsecond))).Draw(t, "window"),
		fixed: rapid.Bool().Draw(t, "fixed"),
	}
	l.burst = l.requests
	if !l.fixed {
		l.burst = rapid.OneOf(rapid.Int64Range(1, 20), rapid.Int64Range(1, MaxRequests)).Draw(t, "burst")
	}
	return l
}

// drawStep draws the time to the next request: none, short, about a window, long.
func drawStep(t *rapid.T, l limit) int64 {
	return rapid.OneOf(rapid.Just[int64](0), rapid.Int64Range(0, 1+2*l.window/l.requests),
		rapid.Int64Range(0, 2*l.window), rapid.Int64Range(0, 100*l.window)).Draw(t, "step")
}

type taken struct{ at, cost int64 }

// TestGCRABound: in any span X no more than burst + X*requests/window are let
// pass, exactly, and no request is refused that the bound would allow.
func TestGCRABound(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l := drawLimit(t)
		l.fixed = false
		var s State
		var all []taken
		now := epoch + rapid.Int64Range(0, l.window).Draw(t, "start")
		for range rapid.IntRange(1, 30).Draw(t, "requests made") {
			now += drawStep(t, l)
			cost := rapid.OneOf(rapid.Just[int64](1), rapid.Int64Range(1, l.burst)).Draw(t, "cost")
			s = l.advance(s, now)
			fits := l.fits(s, now, cost)
			within := true
			for i := range all {
				// (what was taken since i, with this) * window <= burst*window + span*requests
				sum := cost
				for _, x := range all[i:] {
					sum += x.cost
				}
				left := new(big.Int).Mul(big.NewInt(sum-l.burst), big.NewInt(l.window))
				right := new(big.Int).Mul(big.NewInt(now-all[i].at), big.NewInt(l.requests))
				within = within && left.Cmp(right) <= 0
			}
			if fits != within {
				t.Fatalf("fits = %t, the bound says %t; state %+v now %d cost %d taken %v", fits, within, s, now, cost, all)
			}
			if fits {
				s = l.take(s, cost)
				all = append(all, taken{now, cost})
			}
		}
	})
}

// TestFixedWindowBound: in each calendar window no more than requests are let
// pass, and none is refused below that.
func TestFixedWindowBound(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l := drawLimit(t)
		l.fixed, l.burst = true, l.requests
		var s State
		counts := map[int64]int64{}
		now := epoch
		for range rapid.IntRange(1, 40).Draw(t, "requests made") {
			now += drawStep(t, l)
			cost := rapid.OneOf(rapid.Just[int64](1), rapid.Int64Range(1, l.burst)).Draw(t, "cost")
			s = l.advance(s, now)
			fits := l.fits(s, now, cost)
			w := now / l.window
			if fits != (counts[w]+cost <= l.requests) {
				t.Fatalf("fits = %t at count %d of %d, cost %d", fits, counts[w], l.requests, cost)
			}
			if fits {
				s = l.take(s, cost)
				counts[w] += cost
			}
		}
	})
}

// TestReported: what is reported is true: Remaining can be taken at once and no
// more, a refused cost fits RetryAfter later and not a microsecond before, and a
// state is as good as none from idle on and not before.
func TestReported(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l := drawLimit(t)
		var s State
		now := epoch
		for range rapid.IntRange(0, 10).Draw(t, "requests made") {
			now += drawStep(t, l)
			cost := rapid.Int64Range(1, l.burst).Draw(t, "cost")
			if s = l.advance(s, now); l.fits(s, now, cost) {
				s = l.take(s, cost)
			}
		}
		s = l.advance(s, now)
		free := l.free(s, now)
		if free < 0 || free > l.burst {
			t.Fatalf("free = %d of %d", free, l.burst)
		}
		if free > 0 && !l.fits(s, now, free) || l.fits(s, now, free+1) {
			t.Fatalf("free = %d is not the most that fits", free)
		}
		cost := rapid.Int64Range(1, l.burst).Draw(t, "wanted")
		wait := l.wait(s, now, cost)
		if (wait == 0) != l.fits(s, now, cost) {
			t.Fatalf("wait = %d and fits = %t", wait, l.fits(s, now, cost))
		}
		if at := now + wait; !l.fits(l.advance(s, at), at, cost) {
			t.Fatalf("cost %d does not fit after the wait of %d", cost, wait)
		}
		if at := now + wait - 1; wait > 0 && l.fits(l.advance(s, at), at, cost) {
			t.Fatalf("cost %d fits before the wait of %d", cost, wait)
		}
		if e := l.effective(s, now); e < 0 || free == 0 && e != l.wait(s, now, 1) {
			t.Fatalf("effective = %d with %d free", e, free)
		}
		idle := l.idle(s)
		if at := max(now, idle); l.advance(s, at).Used != 0 {
			t.Fatalf("state %+v is not idle at %d: %+v", s, idle, l.advance(s, at))
		}
		if at := idle - 1; s.Used > 0 && at >= now && l.advance(s, at).Used == 0 {
			t.Fatalf("state %+v is idle before %d", s, idle)
		}
	})
}

// TestAdvanceKeeps: bringing a state to a time in several steps is the same as in
// one, so that it does not matter who looks in between.
func TestAdvanceKeeps(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l := drawLimit(t)
		s := l.take(l.advance(State{}, epoch), rapid.Int64Range(0, l.burst).Draw(t, "used"))
		mid := epoch + drawStep(t, l)
		now := mid + drawStep(t, l)
		once, twice := l.advance(s, now), l.advance(l.advance(s, mid), now)
		if once != twice && (once.Used != 0 || twice.Used != 0) {
			t.Fatalf("%+v at once, %+v in two steps", once, twice)
		}
	})
}

// TestAnyState: whatever is stored, by another limit or by a clock that ran wild,
// the arithmetic stays in its bounds.
func TestAnyState(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l := drawLimit(t)
		s := State{
			At:   rapid.OneOf(rapid.Int64Range(0, 1<<52), rapid.Int64Range(epoch-1e9, epoch+1e9)).Draw(t, "at"),
			Used: rapid.OneOf(rapid.Int64Range(0, 100), rapid.Int64Range(0, 1<<40)).Draw(t, "used"),
		}
		a := l.advance(s, epoch)
		if a.At > epoch || a.Used < 0 || a.Used > s.Used {
			t.Fatalf("advance(%+v) = %+v", s, a)
		}
		if f := l.free(a, epoch); f < 0 || f > l.burst {
			t.Fatalf("free = %d of %d", f, l.burst)
		}
		for _, d := range []int64{l.wait(a, epoch, 1), l.effective(a, epoch), l.idle(a) - epoch} {
			if d < 0 && !(a.Used == 0) {
				t.Fatalf("a time of %d for %+v", d, a)
			}
		}
	})
}

func TestGCRAFive(t *testing.T) {
	l := gcra("x", 5, time.Minute).limit()
	var s State
	now := epoch
	step := func(after time.Duration, wantFits bool, wantFree int64, wantEffective time.Duration) {
		t.Helper()
		now += int64(after / time.Microsecond)
		s = l.advance(s, now)
		fits := l.fits(s, now, 1)
		if fits {
			s = l.take(s, 1)
		}
		if free, e := l.free(s, now), micros(l.effective(s, now)); fits != wantFits || free != wantFree || e != wantEffective {
			t.Fatalf("fits %t, free %d, effective %s; want %t, %d, %s", fits, free, e, wantFits, wantFree, wantEffective)
		}
	}
	step(0, true, 4, 48*time.Second)
	step(0, true, 3, 36*time.Second)
	step(0, true, 2, 24*time.Second)
	step(0, true, 1, 12*time.Second)
	step(0, true, 0, 12*time.Second)
	step(0, false, 0, 12*time.Second)
	step(11*time.Second, false, 0, time.Second)
	step(time.Second, true, 0, 12*time.Second)
	step(time.Hour, true, 4, 48*time.Second)
}

// TestFixedWindowBoundary shows what the package says of fixed windows: twice the
// limit around a boundary, where GCRA lets the burst pass and the rate beyond.
func TestFixedWindowBoundary(t *testing.T) {
	count := func(l limit) (n int) {
		var s State
		start := epoch - epoch%l.window + l.window - 50_000 // 50 ms before the boundary
		for i := range int64(200) {
			now := start + i*1000 // 1 a ms, for 200 ms
			if s = l.advance(s, now); l.fits(s, now, 1) {
				s = l.take(s, 1)
				n++
			}
		}
		return n
	}
	if got := count(limit{requests: 40, window: 1_000_000, burst: 40, fixed: true}); got != 80 {
		t.Errorf("a fixed window of 40 a second let %d pass around the boundary, want 80", got)
	}
	if got := count(limit{requests: 40, window: 1_000_000, burst: 40}); got != 40+7 {
		t.Errorf("GCRA of 40 a second let %d pass in 199 ms, want 40 + 7", got)
	}
}

// TestChangedLimit: a limit whose numbers or algorithm change keeps its count.
func TestChangedLimit(t *testing.T) {
	five := gcra("x", 5, time.Minute).limit()
	s := five.take(five.advance(State{}, epoch), 5)
	for name, c := range map[string]struct {
		spec Spec
		free int64
	}{
		"more requests":  {gcra("x", 100, time.Minute), 95},
		"fewer requests": {gcra("x", 3, time.Minute), 0},
		"longer window":  {gcra("x", 5, time.Hour), 0},
		"shorter window": {gcra("x", 5, time.Second), 0},
		"fixed window":   {Spec{Requests: 7, Window: time.Hour, Algorithm: FixedWindow}, 2},
	} {
		l := c.spec.limit()
		if free := l.free(l.advance(s, epoch), epoch); free != c.free {
			t.Errorf("%s: %d free, want %d", name, free, c.free)
		}
	}
	day := Spec{Requests: 10, Window: 24 * time.Hour, Algorithm: FixedWindow}.limit()
	s = day.take(day.advance(State{}, epoch), 4)
	month := Spec{Requests: 10, Window: 30 * 24 * time.Hour, Algorithm: FixedWindow}.limit()
	if free := month.free(month.advance(s, epoch), epoch); free != 6 {
		t.Errorf("a longer fixed window has %d free, want 6", free)
	}
	if free := five.free(five.advance(s, epoch), epoch); free < 4 {
		t.Errorf("fixed window to GCRA: %d free", free)
	}
}

func TestClockBackwards(t *testing.T) {
	l := gcra("x", 5, time.Minute).limit()
	s := l.take(l.advance(State{}, epoch), 5)
	earlier := epoch - int64(time.Hour/time.Microsecond)
	if s = l.advance(s, earlier); l.fits(s, earlier, 1) {
		t.Error("the count is lost when the clock goes back")
	}
	if now := earlier + 12_000_000; !l.fits(l.advance(s, now), now, 1) {
		t.Error("nothing drains after the clock went back")
	}
}
