package scale

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"
)

var start = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func latencyConfig() Config {
	return Config{Max: 50, Concurrency: 1, Objective: Objective{0.99, 130 * time.Millisecond}}
}

// world is a function under an even load, looked at every 250 ms.
type world struct {
	s *Scaler
	o Observation
	d Decision
}

func newWorld(c Config) *world {
	return &world{s: New(c), o: Observation{
		Now: start, Service: Moments{Count: 1000, Mean: 0.060, Var: 0.0005}, Start: Moments{Count: 3, Mean: 0.5},
	}}
}

// run lets time pass with a rate of arrivals; all instances that are wanted are ready.
func (w *world) run(d time.Duration, rate float64) {
	for end := w.o.Now.Add(d); w.o.Now.Before(end); {
		w.o.Now = w.o.Now.Add(250 * time.Millisecond)
		n := uint64(rate * w.o.Now.Sub(start).Seconds())
		if rate > 0 && n > w.o.Arrivals {
			w.o.Arrivals, w.o.LastRequest = n, w.o.Now
		}
		w.o.Busy += rate * w.o.Service.Mean * 0.25
		w.d = w.s.Decide(w.o)
		w.o.Ready = w.d.Wanted
	}
}

func has(t *testing.T, d Decision, parts ...string) {
	t.Helper()
	text := strings.Join(d.Steps(), "\n")
	for _, p := range parts {
		if !strings.Contains(text, p) {
			t.Errorf("steps do not say %q:\n%s", p, text)
		}
	}
	if t.Failed() {
		return
	}
	t.Logf("%s", text)
}

// TestLatency is the seed's example: 60 ms, sd 22.4, 50 a second, p99 <= 130 ms.
func TestLatency(t *testing.T) {
	w := newWorld(latencyConfig())
	w.o.Parts = Parts{Handler: Moments{Count: 1000, Mean: 0.050, Var: 0.0004}, Rest: Moments{Count: 1000, Mean: 0.010, Var: 0.0001}}
	w.run(60*time.Second, 50)
	if w.d.Wanted != 5 || w.d.Reason != ReasonLatency || w.d.Unreachable {
		t.Errorf("wanted %d because of %s", w.d.Wanted, w.d.Reason)
	}
	has(t, w.d, "E[T] = E[t] 50 ms + E[r] 10 ms = 60 ms", "(20 ms)^2 + sd[r]^2 (10 ms)^2", "lambda 50/s over 10 s x E[T] 60 ms = 3 busy; c=5: P(wait) 0.236",
		"P(T+W > 130 ms)", "; c=4: ", "min 0, max 50: wanted 5 (LatencyObjective)")
	p := w.d.Proto("projects/p/functions/f")
	if p.GetWanted() != 5 || p.GetReason() != ReasonLatency || len(p.GetSteps()) < 4 || !p.GetTime().AsTime().Equal(w.o.Now) {
		t.Errorf("proto %v", p)
	}
	if (Decision{}).Steps() != nil {
		t.Error("an empty decision has steps")
	}
}

// TestUnreachable: T alone is longer than the objective. It is said, and the count is
// where waiting is rare, not the maximum.
func TestUnreachable(t *testing.T) {
	c := latencyConfig()
	c.Objective.Limit = 90 * time.Millisecond
	w := newWorld(c)
	w.run(20*time.Second, 50)
	if !w.d.Unreachable || w.d.Reason != ReasonUnreachable || w.d.Wanted < 5 || w.d.Wanted > 12 {
		t.Errorf("wanted %d because of %s, unreachable %v", w.d.Wanted, w.d.Reason, w.d.Unreachable)
	}
	has(t, w.d, "no count meets p99 <= 90ms", "(ObjectiveUnreachable)")
}

func TestMax(t *testing.T) {
	c := latencyConfig()
	c.Max = 4
	w := newWorld(c)
	w.run(20*time.Second, 50)
	if w.d.Wanted != 4 || w.d.Reason != ReasonMax {
		t.Errorf("wanted %d because of %s", w.d.Wanted, w.d.Reason)
	}
	has(t, w.d, "max 4 is too few for the objective")
}

// TestHoldAndIdle: the count stays for the hold, then follows the load, one stays
// until the idle timeout, then none.
func TestHoldAndIdle(t *testing.T) {
	w := newWorld(latencyConfig())
	w.run(60*time.Second, 50)
	w.run(29*time.Second, 0)
	if w.d.Wanted != 5 || w.d.Reason != ReasonHold {
		t.Errorf("within the hold: wanted %d because of %s", w.d.Wanted, w.d.Reason)
	}
	has(t, w.d, "hold: 5 were needed within the last 30 s = max(30 s, 6 x start 500 ms)")
	w.run(25*time.Second, 0)
	if w.d.Wanted != 1 {
		t.Errorf("after the hold: wanted %d because of %s", w.d.Wanted, w.d.Reason)
	}
	has(t, w.d, "one is kept: the last request was 54 s ago, idle timeout 60 s")
	w.run(10*time.Second, 0)
	if w.d.Wanted != 0 || w.d.Reason != ReasonIdle {
		t.Errorf("idle: wanted %d because of %s", w.d.Wanted, w.d.Reason)
	}
	has(t, w.d, ">= idle timeout 60 s")
}

// TestCold: nothing is known and a request waits.
func TestCold(t *testing.T) {
	s := New(latencyConfig())
	d := s.Decide(Observation{Now: start, LastRequest: start, Arrivals: 1, Queued: 1})
	if d.Wanted != 1 || d.Reason != ReasonPressure {
		t.Errorf("wanted %d because of %s", d.Wanted, d.Reason)
	}
	has(t, d, "fewer than 5 requests measured", "queue: 1 waiting and no instance ready", "(assumed)")
	// That nothing was known is no reason to call the objective unreachable.
	if d.Unreachable {
		t.Error("unreachable though nothing is known")
	}
}

// TestOneRequest: one request at a time starts one instance, with any objective, also
// for a handler that takes one at once, and also while it takes longer than was thought.
func TestOneRequest(t *testing.T) {
	for _, objective := range []time.Duration{10 * time.Millisecond, 200 * time.Millisecond, 2 * time.Second, 20 * time.Second} {
		s := New(Config{Max: 10, Concurrency: 1, Objective: Objective{Quantile: 0.99, Limit: objective}})
		s.Decide(Observation{Now: start.Add(-time.Minute)}) // when the function was deployed
		s.Decide(Observation{Now: start.Add(-time.Millisecond)})
		o := Observation{Now: start, LastRequest: start, Arrivals: 1, Queued: 1}
		for range 12 { // three seconds
			d := s.Decide(o)
			if d.Wanted != 1 {
				t.Errorf("%s: wanted %d after %s:\n%s", objective, d.Wanted, o.Now.Sub(start), strings.Join(d.Steps(), "\n"))
			}
			o.Now, o.Starting = o.Now.Add(250*time.Millisecond), 1
			o.Busy += 0.25
		}
	}
}

// TestAssumed: what was needed for an assumed T is not held when T is known.
func TestAssumed(t *testing.T) {
	w := newWorld(latencyConfig())
	known := w.o.Service
	w.o.Service = Moments{}
	w.run(20*time.Second, 500)
	if w.d.Wanted < 35 {
		t.Errorf("wanted %d for 500/s of half of 130 ms", w.d.Wanted)
	}
	known.Mean, known.Var = 0.006, 0.00001
	w.o.Service = known
	w.run(time.Second, 500)
	if w.d.Wanted > 6 {
		t.Errorf("wanted %d for 500/s of 6 ms because of %s", w.d.Wanted, w.d.Reason)
	}
}

// TestPressure: a queue starts instances at once, and they are in the hold.
func TestPressure(t *testing.T) {
	w := newWorld(latencyConfig())
	w.run(20*time.Second, 10)
	before := w.d.Wanted
	w.o.Queued, w.o.InFlight = 200, before
	w.o.Now = w.o.Now.Add(time.Millisecond)
	d := w.s.Decide(w.o)
	if d.Wanted <= before || d.Reason != ReasonPressure {
		t.Errorf("wanted %d after %d because of %s", d.Wanted, before, d.Reason)
	}
	has(t, d, "queue: 200 waiting", "> half the objective 65 ms")
	w.o.Starting, w.o.Queued = d.Wanted-before, 0
	w.o.Now = w.o.Now.Add(10 * time.Second)
	if again := w.s.Decide(w.o); again.Wanted != d.Wanted || again.Reason != ReasonHold {
		t.Errorf("wanted %d because of %s, want %d held", again.Wanted, again.Reason, d.Wanted)
	}
	// A short wait is none.
	w.o.Queued = 1
	w.o.Ready = d.Wanted
	has(t, w.s.Decide(w.o), "<= half the objective 65 ms")
}

// TestPressureInside: where proxies send to instances themselves, requests wait in
// them.
func TestPressureInside(t *testing.T) {
	w := newWorld(latencyConfig())
	w.run(20*time.Second, 10)
	before := w.d.Wanted
	w.o.InFlight = before + 200
	w.o.Now = w.o.Now.Add(time.Millisecond)
	d := w.s.Decide(w.o)
	if d.Wanted <= before || d.Reason != ReasonPressure {
		t.Errorf("wanted %d after %d because of %s", d.Wanted, before, d.Reason)
	}
	has(t, d, "queue: 200 waiting")
}

// TestTrend: a rise beyond chance is carried on until a start is done, at most doubled.
func TestTrend(t *testing.T) {
	w := newWorld(latencyConfig())
	w.run(20*time.Second, 20)
	for range 8 {
		w.o.Now = w.o.Now.Add(250 * time.Millisecond)
		w.o.Arrivals += 25
		w.o.LastRequest = w.o.Now
		w.d = w.s.Decide(w.o)
	}
	has(t, w.d, "more than 2 standard errors above", "planned x E[T]")
	r := newRates(&w.s.history, 1000)
	if r.planned > 2*r.short+1e-9 || r.planned < r.short {
		t.Errorf("planned %g of %g", r.planned, r.short)
	}
}

// TestTargets: Knative's arithmetic.
func TestTargets(t *testing.T) {
	for name, c := range map[string]struct {
		config Config
		want   int
		reason string
		steps  []string
	}{
		// 50 x 0.06 = 3 at once.
		"default":     {Config{Max: 50, Concurrency: 1}, 5, ReasonConcurrency, []string{"target 1 requests at once x utilization 70 % = 0.7 for one instance", "3 requests at once over 60 s / 0.7 = 4.29"}},
		"concurrency": {Config{Max: 50, Concurrency: 4, TargetConcurrency: 2}, 3, ReasonConcurrency, []string{"3 requests at once over 60 s / 1.4 = 2.14"}},
		"utilization": {Config{Max: 50, Concurrency: 4, TargetConcurrency: 2, Utilization: 1}, 2, ReasonConcurrency, nil},
		"rps":         {Config{Max: 50, Concurrency: 4, TargetRPS: 10}, 8, ReasonRPS, []string{"50 requests/s over 60 s / 7 = 7.14"}},
		"max":         {Config{Max: 3, Concurrency: 1, TargetRPS: 10}, 3, ReasonRPS, nil},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(c.config)
			w.run(150*time.Second, 50)
			if w.d.Wanted != c.want || w.d.Reason != c.reason {
				t.Errorf("wanted %d because of %s", w.d.Wanted, w.d.Reason)
			}
			has(t, w.d, c.steps...)
		})
	}
}

// TestPanic: twice what there is over a tenth of the window, and it only goes up until
// a window after; then by at most half a tick.
func TestPanic(t *testing.T) {
	w := newWorld(Config{Max: 100, Concurrency: 1})
	w.run(100*time.Second, 10)
	calm := w.d.Wanted
	for range 40 {
		w.o.Now = w.o.Now.Add(250 * time.Millisecond)
		w.o.Busy += 20 * 0.25
		w.o.LastRequest = w.o.Now
		w.d = w.s.Decide(w.o)
		w.o.Ready = w.d.Wanted
	}
	most := w.d.Wanted
	if most < 20 || calm > 2 {
		t.Fatalf("wanted %d in panic after %d", most, calm)
	}
	has(t, w.d, "panic for", "panic from 2 x ready")
	last := most
	for range 400 {
		w.o.Now = w.o.Now.Add(250 * time.Millisecond)
		w.o.LastRequest = w.o.Now
		w.d = w.s.Decide(w.o)
		if w.d.Wanted < last/2 {
			t.Fatalf("from %d to %d at once", last, w.d.Wanted)
		}
		last, w.o.Ready = w.d.Wanted, w.d.Wanted
	}
	if last != 1 {
		t.Errorf("wanted %d at last", last)
	}
}

func TestFixed(t *testing.T) {
	s := New(Config{Min: 3, Max: 3, Concurrency: 1})
	d := s.Decide(Observation{Now: start, Queued: 100})
	if d.Wanted != 3 || d.Reason != ReasonFixed {
		t.Errorf("wanted %d because of %s", d.Wanted, d.Reason)
	}
	has(t, d, "min = max = 3: fixed")
}

// TestMonotone: more load never wants less, nor does a tighter objective, a higher
// percentile, or a longer T.
func TestMonotone(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	size := func(lambda float64, m Moments, q float64, limit time.Duration, c int) int {
		config := Config{Max: 100_000, Concurrency: c, Objective: Objective{q, limit}}
		return config.size(lambda, m, newShape(m).cut(limit.Seconds())).count
	}
	for range 300 {
		mean := 0.001 * math.Exp(7*r.Float64())
		cv := 0.1 + 1.5*r.Float64()
		m := Moments{Count: 100, Mean: mean, Var: mean * mean * cv * cv, Skew: 2 * cv}
		limit := time.Duration(mean * (0.5 + 5*r.Float64()) * 1e9)
		lambda := math.Exp(6*r.Float64()) / mean / 10
		q := 0.9 + 0.099*r.Float64()
		c := 1 + r.IntN(3)*r.IntN(20)
		base := size(lambda, m, q, limit, c)
		in := fmt.Sprintf("lambda %g, %+v, p%g <= %v, concurrency %d: %d", lambda, m, 100*q, limit, c, base)
		if n := size(lambda*1.1, m, q, limit, c); n < base {
			t.Errorf("%s; more load: %d", in, n)
		}
		if n := size(lambda, m, q, limit*9/10, c); n < base {
			t.Errorf("%s; tighter: %d", in, n)
		}
		if n := size(lambda, m, 1-(1-q)/2, limit, c); n < base {
			t.Errorf("%s; higher percentile: %d", in, n)
		}
		if n := size(lambda, m, q, limit, c+1); n > base {
			t.Errorf("%s; more slots for each: %d", in, n)
		}
		if float64(base*c) <= lambda*mean {
			t.Errorf("%s: not stable", in)
		}
	}
}

// drive feeds a scaler from bytes and checks what holds always.
func drive(t *testing.T, c Config, data []byte) {
	s := New(c)
	c = c.withDefaults()
	o := Observation{Now: start}
	odd := []float64{0, -1, math.NaN(), math.Inf(1), math.Inf(-1), 1e308, 1e-308, 5e-324, 0.05, 1, 1e9}
	pick := func(b byte) float64 { return odd[int(b)%len(odd)] }
	type needed struct {
		at time.Time
		n  int
	}
	var needs []needed
	for ; len(data) >= 4; data = data[4:] {
		v := data[1]
		switch data[0] % 10 {
		case 0:
			o.Arrivals += uint64(v) * uint64(data[2])
			o.LastRequest = o.Now
		case 1:
			o.Queued = (int(v) - 2) * (1 + int(data[2]))
		case 2:
			o.Ready, o.Starting = int(v)-3, int(data[2])-3
		case 3:
			o.Service = Moments{Count: pick(v), Mean: pick(data[2]), Var: pick(data[3]), Skew: pick(v + data[3])}
		case 4:
			o.Service = Moments{Count: 9, Mean: float64(v) / 1000, Var: float64(data[2]) / 1e5, Skew: float64(data[3]) / 32}
		case 5:
			o.Start = Moments{Count: pick(v), Mean: pick(data[2])}
		case 6:
			o.Busy += pick(v)
		case 7:
			o.Arrivals = 0 // a counter that begins again
		case 8:
			o.Now = o.Now.Add(-time.Duration(v) * time.Second)
		case 9:
			o.InFlight, o.Busy = int(v)-3, o.Busy+float64(v)
		}
		o.Now = o.Now.Add(time.Duration(data[3]) * 20 * time.Millisecond)
		d := s.Decide(o)
		steps := strings.Join(d.Steps(), "\n")
		if d.Wanted < c.Min || d.Wanted > c.Max {
			t.Fatalf("wanted %d, not in [%d, %d]\n%s", d.Wanted, c.Min, c.Max, steps)
		}
		if d.Wanted < min(o.Starting, c.Max) && d.Reason != ReasonFixed {
			t.Fatalf("wanted %d, but %d are starting\n%s", d.Wanted, o.Starting, steps)
		}
		if strings.Contains(steps, "NaN") {
			t.Fatalf("not a number:\n%s", steps)
		}
		if d.Reason == "" {
			t.Fatal("no reason")
		}
		// Within the shortest hold nothing falls below what was needed, but when idle.
		if c.Objective.Set() && !strings.Contains(steps, "none needed beyond min") && d.Reason != ReasonFixed {
			needs = slices.DeleteFunc(needs, func(n needed) bool { return d.Time.Sub(n.at) > 30*time.Second })
			for _, n := range needs {
				if d.Wanted < n.n {
					t.Fatalf("wanted %d, though %d were needed %v before\n%s", d.Wanted, n.n, d.Time.Sub(n.at), steps)
				}
			}
			if strings.Contains(steps, "fewer than") {
				continue // what was needed for an assumed T is not held
			}
			if d.Reason == ReasonLatency || d.Reason == ReasonPressure || d.Reason == ReasonUnreachable {
				needs = append(needs, needed{d.Time, d.Wanted})
			}
		}
	}
}

func driveConfig(b byte) Config {
	c := Config{Min: int(b & 3), Max: 1 + int(b>>2&31), Concurrency: 1 + int(b>>5)*7}
	switch b % 3 {
	case 0:
		c.Objective = Objective{0.99, 200 * time.Millisecond}
	case 1:
		c.TargetRPS = 3
	}
	return c
}

func FuzzDecide(f *testing.F) {
	r := rand.New(rand.NewPCG(5, 6))
	for range 60 {
		data := make([]byte, 4*(10+r.IntN(60)))
		for i := range data {
			data[i] = byte(r.Uint32())
		}
		f.Add(byte(r.Uint32()), data)
	}
	f.Fuzz(func(t *testing.T, config byte, data []byte) { drive(t, driveConfig(config), data) })
}

// TestDecideAlways is FuzzDecide over many random sequences.
func TestDecideAlways(t *testing.T) {
	r := rand.New(rand.NewPCG(8, 9))
	for range 1000 {
		data := make([]byte, 4*80)
		for i := range data {
			data[i] = byte(r.Uint32())
		}
		drive(t, driveConfig(byte(r.Uint32())), data)
	}
}

// BenchmarkDecide is one decision with a queue, T changing each time (the most there
// is to do).
func BenchmarkDecide(b *testing.B) {
	w := newWorld(latencyConfig())
	w.run(20*time.Second, 50)
	w.o.Service.Skew = 1
	for b.Loop() {
		w.o.Now = w.o.Now.Add(time.Millisecond)
		w.o.Service.Mean += 1e-9
		w.s.Decide(w.o)
	}
}

// TestHistory: rates over windows that are not filled, that nobody looked into, and
// over counters that begin again.
func TestHistory(t *testing.T) {
	at := func(s float64) time.Time { return start.Add(time.Duration(s * 1e9)) }
	for name, c := range map[string]struct {
		points            []point
		window            time.Duration
		arrivals, seconds float64
	}{
		"nothing":         {nil, time.Second, 0, 1},
		"one look":        {[]point{{at: at(0), arrivals: 50}}, 2 * time.Second, 0, 1},
		"not filled":      {[]point{{at: at(0)}, {at: at(1), arrivals: 10}, {at: at(4), arrivals: 40}}, 10 * time.Second, 40, 4},
		"on the line":     {[]point{{at: at(0)}, {at: at(1), arrivals: 10}, {at: at(2), arrivals: 30}}, 1500 * time.Millisecond, 25, 1.5},
		"not looked":      {[]point{{at: at(0)}, {at: at(3600), arrivals: 7}}, 2 * time.Second, 7, 2},
		"begins again":    {[]point{{at: at(0), arrivals: 100}, {at: at(1), arrivals: 3}}, time.Second, 0, 1},
		"near each other": {[]point{{at: at(0)}, {at: at(1), arrivals: 1}, {at: at(1.01), arrivals: 5}, {at: at(1.02), arrivals: 6}}, time.Second, 5.98, 1},
	} {
		h := history{keep: 10 * time.Second, spacing: 100 * time.Millisecond}
		for _, p := range c.points {
			h.add(p)
		}
		if a, _, s := h.over(c.window, time.Second); math.Abs(a-c.arrivals) > 1e-6 || s != c.seconds {
			t.Errorf("%s: %g in %g s, want %g in %g s", name, a, s, c.arrivals, c.seconds)
		}
	}
	h := history{keep: 10 * time.Second, spacing: 100 * time.Millisecond}
	for i := range 100_000 {
		h.add(point{at: at(float64(i) / 1000), arrivals: float64(i)})
	}
	if a, _, s := h.over(10*time.Second, time.Second); len(h.points) > 110 || math.Abs(a/s-1000) > 1 {
		t.Errorf("%g a second from %d points", a/s, len(h.points))
	}
}
