package functions

import (
	"math/rand/v2"
	"testing"
	"time"
)

// TestPauses: the pauses of some lives.
func TestPauses(t *testing.T) {
	const never, moment = 0, 50 * time.Millisecond
	ms := func(n time.Duration) time.Duration { return n * time.Millisecond }
	served, lastServed := ending{ready: moment, answered: true, proven: true}, ending{ready: moment, answered: true, proven: true, last: true}
	for name, c := range map[string]struct {
		ends []ending
		want []time.Duration
	}{
		"cannot start":               {[]ending{{}, {}, {last: true}, {}}, []time.Duration{ms(100), ms(200), ms(400), ms(800)}},
		"ready, but never answers":   {[]ending{{ready: moment}, {ready: moment, last: true}, {ready: moment}}, []time.Duration{ms(100), ms(200), ms(400)}},
		"serves, beside others":      {[]ending{served, served, served, served}, []time.Duration{ms(100), ms(100), ms(100), ms(100)}},
		"serves, as the last":        {[]ending{lastServed, lastServed, lastServed}, []time.Duration{never, never, never}},
		"serves after failures":      {[]ending{{}, {}, {}, served, {}}, []time.Duration{ms(100), ms(200), ms(400), ms(100), ms(100)}},
		"ended for a slow request":   {[]ending{{}, {ready: moment, replaced: true}, {}}, []time.Duration{ms(100), never, ms(100)}},
		"idle for long":              {[]ending{{ready: stableAfter}, {ready: stableAfter - 1}}, []time.Duration{never, ms(100)}},
		"has served, fails to start": {[]ending{{proven: true}, {proven: true}, {proven: true}, {proven: true}, {proven: true}, {proven: true}}, []time.Duration{ms(100), ms(200), ms(400), ms(800), ms(1000), ms(1000)}},
	} {
		var p pauses
		for i, e := range c.ends {
			if got := p.after(e); got != c.want[i] {
				t.Errorf("%s: the pause after end %d is %s, want %s", name, i, got, c.want[i])
			}
		}
	}
	var p pauses
	for range 20 {
		p.after(ending{})
	}
	if got := p.after(ending{last: true}); got != backoffMax {
		t.Errorf("after twenty failures: %s", got)
	}
}

// TestPausesProperties: whatever happened before, one that has served is back at once
// or after the shortest pause, and failures in a row wait ever longer within bounds.
func TestPausesProperties(t *testing.T) {
	for seed := range uint64(2000) {
		rnd := rand.New(rand.NewPCG(seed, 5))
		var p pauses
		before, failing := time.Duration(0), false
		for range 100 {
			e := ending{answered: rnd.IntN(3) == 0, last: rnd.IntN(2) == 0, replaced: rnd.IntN(10) == 0, proven: rnd.IntN(2) == 0}
			if rnd.IntN(2) == 0 {
				e.ready = time.Duration(rnd.Int64N(int64(2 * stableAfter)))
			}
			got := p.after(e)
			good := e.answered || e.replaced || e.ready >= stableAfter
			switch {
			case good && (got > backoffMin || e.last && got > 0):
				t.Fatalf("seed %d: %+v waits %s", seed, e, got)
			case !good && (got < backoffMin || got > backoffMax || e.proven && got > backoffProven):
				t.Fatalf("seed %d: %+v waits %s", seed, e, got)
			case !good && failing && got < min(before, backoffProven):
				t.Fatalf("seed %d: a row of failures waits %s after %s", seed, got, before)
			}
			before, failing = got, !good
		}
	}
}

// TestPausesOutage: a handler that ends its process at one request in a hundred, or
// at every third, is away for no longer than its start takes, in simulated time, with
// one instance and with two; one that cannot start is tried some hundred times a day.
func TestPausesOutage(t *testing.T) {
	const start, every = 80 * time.Millisecond, 5 * time.Millisecond
	for _, instances := range []int{1, 2, 3} {
		for _, deadly := range []float64{0.01, 0.33} {
			rnd := rand.New(rand.NewPCG(uint64(instances), 7))
			up := make([]time.Duration, instances) // ready from then on
			answered := make([]bool, instances)
			ps := make([]pauses, instances)
			outage, since := time.Duration(0), time.Duration(0)
			for now := time.Duration(0); now < 10*time.Minute; now += every {
				i := rnd.IntN(instances)
				for range instances {
					if up[i] <= now {
						break
					}
					i = (i + 1) % instances
				}
				if up[i] > now {
					outage = max(outage, now-since)
					continue
				}
				since = now
				if rnd.Float64() >= deadly {
					answered[i] = true
					continue
				}
				last := true
				for j := range up {
					last = last && (j == i || up[j] > now)
				}
				up[i] = now + start + ps[i].after(ending{ready: now - up[i] + 1, answered: answered[i], last: last, proven: now > time.Second})
				answered[i] = false
			}
			if limit := start + backoffProven; deadly == 0.01 && outage > start+2*backoffMin || outage > limit {
				t.Errorf("%d instances, %.0f %% of the requests deadly: away for %s", instances, 100*deadly, outage)
			}
		}
	}
	starts, now := 0, time.Duration(0)
	for p := (pauses{}); now < 24*time.Hour; starts++ {
		now += start + p.after(ending{last: true})
	}
	if starts > 3000 {
		t.Errorf("one that cannot start is started %d times a day", starts)
	}
}
