package sim

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/penstock-gateway/penstock/scale"
)

// fixed keeps a number of instances.
func fixed(n int) Contestant {
	return Contestant{Name: fmt.Sprint(n), New: func(c Config) *scale.Scaler {
		return scale.New(scale.Config{Min: n, Max: n, Concurrency: c.Concurrency})
	}}
}

// TestQueue compares the simulator with the formulas it is not made of: M/M/c waits as
// Erlang's C says.
func TestQueue(t *testing.T) {
	trace := Poisson(40, 200_000, 1)
	trace.Times = make([]float64, len(trace.Arrivals))
	gaps := Poisson(10, len(trace.Times), 2) // exponential times of 0.1 s
	last := 0.0
	for i, at := range gaps.Arrivals {
		trace.Times[i], last = at-last, at
	}
	c := Defaults()
	c.Warm = 5
	// 4 busy of 5: P(wait) 0.554, mean wait 0.554 x 0.1 / (5 - 4); T = W + 0.1.
	// P(T > x) for c=5, a=4 in closed form with mu = 10 and c mu - lambda = 10:
	// e^(-10x) (1 + 0.554 x 10 x).
	c.Objective.Limit = 500 * time.Millisecond
	r := Run(c, trace, fixed(5).New(c))
	want := math.Exp(-5) * (1 + 0.554*5)
	if r.Requests != len(trace.Arrivals) || math.Abs(r.Over-want) > 0.1*want {
		t.Errorf("%d requests, %.4f over, want %.4f", r.Requests, r.Over, want)
	}
	if want := 5 * trace.Length; math.Abs(r.InstanceSeconds-want) > 0.001*want || r.Starts != 0 || r.Peak != 5 {
		t.Errorf("%.0f instance-seconds, want %.0f; %d starts, %d at once", r.InstanceSeconds, want, r.Starts, r.Peak)
	}
	if again := Run(c, trace, fixed(5).New(c)); again != r {
		t.Errorf("the same again gives %+v after %+v", again, r)
	}
}

// TestSizing is the check of the model: with T = 50 ms (sd 20) + 10 ms (sd 10), the
// count that it gives keeps the objective, and one less does not.
func TestSizing(t *testing.T) {
	const n = 100_000
	met, missedByOneLess, cases := 0, 0, 0
	for _, limit := range []time.Duration{130 * time.Millisecond, 200 * time.Millisecond} {
		for i, lambda := range []float64{5, 20, 50, 100, 200, 500, 1000} {
			c := Defaults()
			c.Handler, c.Rest = Time{0.050, 0.020}, Time{0.010, 0.010}
			c.Objective.Limit, c.Seed = limit, uint64(i)
			trace := Poisson(lambda, n, uint64(i))
			m := moments(c)
			count := scale.Size(scale.Config{Max: 1000, Concurrency: 1, Objective: c.Objective}, lambda, m)
			if count < 1 {
				t.Fatalf("count %d", count)
			}
			over := func(n int) float64 {
				c.Warm = n
				return Run(c, trace, fixed(n).New(c)).Over
			}
			at, less := over(count), 1.0
			if float64(count-1) > lambda*m.Mean {
				less = over(count - 1)
			}
			seventy := int(math.Ceil(lambda * m.Mean / 0.7))
			t.Logf("%v, %4.0f/s: %2d miss %.2f %%, %2d miss %.2f %%, 70 %% is %d", limit, lambda, count, 100*at, count-1, 100*less, seventy)
			cases++
			if at <= 0.01 {
				met++
			}
			if at > 0.014 {
				t.Errorf("%v at %g/s: %d miss %.2f %%", limit, lambda, count, 100*at)
			}
			if less > 0.01 {
				missedByOneLess++
			}
		}
	}
	t.Logf("met in %d of %d, missed with one less in %d", met, cases, missedByOneLess)
	if met < cases-2 || missedByOneLess < cases-3 {
		t.Errorf("met in %d of %d, missed with one less in %d", met, cases, missedByOneLess)
	}
}

// TestSizingTails: so it does for times with long tails, and so does the scaler,
// which has to measure rate and times itself.
func TestSizingTails(t *testing.T) {
	for name, draw := range map[string]func(*rand.Rand) float64{
		"exponential": func(r *rand.Rand) float64 { return 0.060 * r.ExpFloat64() },
		"lognormal":   func(r *rand.Rand) float64 { return 0.060 * math.Exp(0.7*r.NormFloat64()) },
		"two kinds": func(r *rand.Rand) float64 {
			if r.Float64() < 0.1 {
				return 0.200 + 0.050*r.Float64()
			}
			return 0.030 + 0.010*r.Float64()
		},
	} {
		for i, lambda := range []float64{5, 50, 500} {
			c := Defaults()
			c.Objective.Limit = 400 * time.Millisecond
			trace, r := Poisson(lambda, 40_000, uint64(i)), rand.New(rand.NewPCG(uint64(i), 1))
			trace.Times = make([]float64, len(trace.Arrivals))
			for k := range trace.Times {
				trace.Times[k] = draw(r)
			}
			count := scale.Size(scale.Config{Max: 1000, Concurrency: 1, Objective: c.Objective}, lambda, momentsOf(trace.Times))
			c.Warm = count
			over := Run(c, trace, fixed(count).New(c)).Over
			c.Settle = 30 // its start is a cold one
			live := Run(c, trace, Ours().New(c))
			t.Logf("%s, %g/s: %d miss %.2f %%; with the scaler %.2f %% with %.1f", name, lambda, count, 100*over, 100*live.Over, live.InstanceSeconds/trace.Length)
			if over > 0.02 || live.Over > 0.01 {
				t.Errorf("%s at %g/s: %d miss %.2f %%; with the scaler %.2f %%", name, lambda, count, 100*over, 100*live.Over)
			}
		}
	}
}

// moments are those of many drawn times.
func moments(c Config) scale.Moments {
	r := newRun(c, Trace{}, nil)
	values := make([]float64, 200_000)
	for i := range values {
		_, values[i] = r.draw()
	}
	return momentsOf(values)
}

func momentsOf(values []float64) scale.Moments {
	n := float64(len(values))
	m := scale.Moments{Count: n}
	for _, v := range values {
		m.Mean += v / n
	}
	third := 0.0
	for _, v := range values {
		d := v - m.Mean
		m.Var += d * d / n
		third += d * d * d / n
	}
	m.Skew = third / math.Pow(m.Var, 1.5)
	return m
}

// TestAgainstKnative: on loads that change fast, p99 and cost are well below those of
// Knative's algorithm, with its defaults and with a window of 10 s; on those that do
// not, the objective is kept and the cost is not above.
func TestAgainstKnative(t *testing.T) {
	const seeds = 2
	for _, start := range []float64{1, 0.1} {
		c := Defaults()
		c.Start = start
		for _, name := range Names() {
			rows, err := Compare(c, seeds, Contestants(), func(seed uint64) (Trace, error) { return Make(name, seed) })
			if err != nil {
				t.Fatal(err)
			}
			ours, defaults, tuned := rows[0], rows[1], rows[2]
			for _, r := range rows {
				t.Logf("start %g s, %s, %s: p99 %.0f ms, over %.2f %%, %.0f instance-s (x %.2f), %.0f starts", start, r.Trace, r.Scaler, 1000*r.P99.Mean, 100*r.Over.Mean, r.InstanceSeconds.Mean, r.Ratio, r.Starts.Mean)
			}
			switch name {
			case "steady", "diurnal":
				if ours.Over.Mean > 0.01 {
					t.Errorf("%s: %.2f %% over the objective", name, 100*ours.Over.Mean)
				}
				if ours.Ratio > 1.1 {
					t.Errorf("%s: %.2f of the instance-seconds", name, ours.Ratio)
				}
			default:
				if ours.P99.Mean > 0.7*tuned.P99.Mean || ours.P99.Mean > 0.6*defaults.P99.Mean {
					t.Errorf("%s: p99 %.3f s against %.3f and %.3f", name, ours.P99.Mean, defaults.P99.Mean, tuned.P99.Mean)
				}
				if ours.Ratio > 0.6 || ours.InstanceSeconds.Mean > 0.8*tuned.InstanceSeconds.Mean {
					t.Errorf("%s: %.0f instance-seconds against %.0f and %.0f", name, ours.InstanceSeconds.Mean, defaults.InstanceSeconds.Mean, tuned.InstanceSeconds.Mean)
				}
				if ours.Starts.Mean > defaults.Starts.Mean {
					t.Errorf("%s: %.0f starts against %.0f", name, ours.Starts.Mean, defaults.Starts.Mean)
				}
			}
		}
	}
}

// TestNoFlapping: an even load starts its instances and leaves them alone.
func TestNoFlapping(t *testing.T) {
	c := Defaults()
	trace := Poisson(50, 45_000, 3)
	r := Run(c, trace, Ours().New(c))
	if r.Over > 0.01 || r.Starts > 5*r.Peak {
		t.Errorf("%+v", r)
	}
}

func TestMake(t *testing.T) {
	for _, name := range Names() {
		a, err := Make(name, 1)
		if err != nil {
			t.Fatal(err)
		}
		b, _ := Make(name, 1)
		other, _ := Make(name, 2)
		if len(a.Arrivals) < 1000 || fmt.Sprint(a) != fmt.Sprint(b) || fmt.Sprint(a) == fmt.Sprint(other) {
			t.Errorf("%s: %d arrivals; the same seed gives the same: %v", name, len(a.Arrivals), fmt.Sprint(a) == fmt.Sprint(b))
		}
	}
	if _, err := Make("rush", 1); err == nil || err.Error() != `no trace "rush"; there are spikes, burst, onoff, diurnal, steady` {
		t.Errorf("%v", err)
	}
	if _, err := Compare(Defaults(), 0, Contestants(), nil); err == nil {
		t.Error("no seed is not an error")
	}
}
