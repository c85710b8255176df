package sim

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
)

// Trace is when requests come.
type Trace struct {
	// Name says what it is.
	Name string
	// Arrivals are in seconds from the beginning, ascending.
	Arrivals []float64
	// Times are how long each takes, in seconds; nil: as Config says.
	Times []float64
	// Length is that of the whole, in seconds.
	Length float64
}

// traceLength is that of the made traces: 15 minutes.
const traceLength = 900.0

// made is a rate of requests, per second, over time; make may draw what it needs.
// top bounds the rate.
type made struct {
	name string
	make func(r *rand.Rand) (rate func(t float64) float64, top float64)
}

// Names are those of the made traces.
func Names() []string {
	names := make([]string, len(synthetic))
	for i, m := range synthetic {
		names[i] = m.name
	}
	return names
}

var synthetic = []made{
	// A quiet service that is called by many at once now and then.
	{"spikes", func(r *rand.Rand) (func(float64) float64, float64) {
		var at, high []float64
		for t := 30 * r.Float64(); t < traceLength; t += 40 + 80*r.Float64() {
			at, high = append(at, t), append(high, 60+60*r.Float64())
		}
		return func(t float64) float64 {
			if i := before(at, t); i >= 0 && t-at[i] < 10 {
				return high[i]
			}
			return 5
		}, 120
	}},
	// Markov-modulated Poisson: 5 or 50 a second, for 40 and 10 s on average.
	{"burst", func(r *rand.Rand) (func(float64) float64, float64) {
		return switching(r, 5, 50, 40, 10), 50
	}},
	// Nothing for a while, then all at once.
	{"onoff", func(r *rand.Rand) (func(float64) float64, float64) {
		return switching(r, 0, 30, 80, 25), 30
	}},
	// A day in 15 minutes.
	{"diurnal", func(*rand.Rand) (func(float64) float64, float64) {
		return func(t float64) float64 { return 5 + 55*(1-math.Cos(2*math.Pi*t/traceLength))/2 }, 60
	}},
	{"steady", func(*rand.Rand) (func(float64) float64, float64) {
		return func(float64) float64 { return 50 }, 50
	}},
}

func before(at []float64, t float64) int {
	i, found := slices.BinarySearch(at, t)
	if found {
		return i
	}
	return i - 1
}

// switching changes between two rates after exponential times.
func switching(r *rand.Rand, low, high, lowFor, highFor float64) func(float64) float64 {
	at, rate := []float64{0}, []float64{low}
	for t, up := 0.0, false; t < traceLength; up = !up {
		if up {
			t += r.ExpFloat64() * highFor
			rate = append(rate, low)
		} else {
			t += r.ExpFloat64() * lowFor
			rate = append(rate, high)
		}
		at = append(at, t)
	}
	return func(t float64) float64 { return rate[before(at, t)] }
}

// Make makes a synthetic trace: Poisson arrivals of a rate that changes.
func Make(name string, seed uint64) (Trace, error) {
	i := slices.IndexFunc(synthetic, func(m made) bool { return m.name == name })
	if i < 0 {
		return Trace{}, fmt.Errorf("no trace %q; there are %s", name, strings.Join(Names(), ", "))
	}
	r := rand.New(rand.NewPCG(seed, uint64(i)))
	rate, top := synthetic[i].make(r)
	t := Trace{Name: name, Length: traceLength}
	// Thinning (Lewis and Shedler, 1979).
	for at := r.ExpFloat64() / top; at < t.Length; at += r.ExpFloat64() / top {
		if r.Float64()*top < rate(at) {
			t.Arrivals = append(t.Arrivals, at)
		}
	}
	return t, nil
}

// Poisson makes n arrivals at one rate.
func Poisson(rate float64, n int, seed uint64) Trace {
	r := rand.New(rand.NewPCG(seed, 99))
	t := Trace{Name: "poisson", Arrivals: make([]float64, n)}
	for i := range t.Arrivals {
		t.Length += r.ExpFloat64() / rate
		t.Arrivals[i] = t.Length
	}
	return t
}
