package sim

import (
	"fmt"
	"math"
	"slices"
)

// Spread is a figure over several seeds.
type Spread struct {
	Mean float64 `json:"mean"`
	// CI is half the width of the 95 % confidence interval of the mean; 0 with one seed.
	CI float64 `json:"ci95"`
	// Low and High are the extremes.
	Low  float64 `json:"low"`
	High float64 `json:"high"`
}

// student are quantiles of Student's distribution at 97.5 %, by degrees of freedom.
var student = []float64{12.71, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131}

func spread(values []float64) Spread {
	s := Spread{Low: slices.Min(values), High: slices.Max(values)}
	n := float64(len(values))
	for _, v := range values {
		s.Mean += v / n
	}
	if len(values) < 2 {
		return s
	}
	v := 0.0
	for _, x := range values {
		v += (x - s.Mean) * (x - s.Mean) / (n - 1)
	}
	t := 1.96
	if len(values)-2 < len(student) {
		t = student[len(values)-2]
	}
	s.CI = t * math.Sqrt(v/n)
	return s
}

// Row is what one scaler did with one trace over several seeds. Times are in seconds.
type Row struct {
	Trace  string `json:"trace"`
	Scaler string `json:"scaler"`
	Seeds  int    `json:"seeds"`
	// Requests is the mean number of them.
	Requests        float64 `json:"requests"`
	P50             Spread  `json:"p50_seconds"`
	P99             Spread  `json:"p99_seconds"`
	Over            Spread  `json:"over_objective"`
	InstanceSeconds Spread  `json:"instance_seconds"`
	// Ratio is the mean of instance-seconds by that of Knative's defaults (kpa-60s),
	// where they take part; else 0.
	Ratio  float64 `json:"instance_seconds_ratio"`
	Starts Spread  `json:"starts"`
}

// Compare runs every contestant over the same traces, one for each seed from 1.
func Compare(c Config, seeds int, contestants []Contestant, traceOf func(seed uint64) (Trace, error)) ([]Row, error) {
	if seeds < 1 {
		return nil, fmt.Errorf("%d seeds: at least one is needed", seeds)
	}
	results := make([][]Result, len(contestants))
	name := ""
	for seed := uint64(1); seed <= uint64(seeds); seed++ {
		t, err := traceOf(seed)
		if err != nil {
			return nil, err
		}
		c.Seed, name = seed, t.Name
		for i, who := range contestants {
			results[i] = append(results[i], Run(c, t, who.New(c)))
		}
	}
	rows := make([]Row, len(contestants))
	for i, who := range contestants {
		rows[i] = newRow(name, who.Name, results[i])
	}
	for i := range rows {
		if k := slices.IndexFunc(rows, func(r Row) bool { return r.Scaler == "kpa-60s" }); k >= 0 && rows[k].InstanceSeconds.Mean > 0 {
			rows[i].Ratio = rows[i].InstanceSeconds.Mean / rows[k].InstanceSeconds.Mean
		}
	}
	return rows, nil
}

func newRow(trace, scaler string, results []Result) Row {
	of := func(get func(Result) float64) Spread {
		values := make([]float64, len(results))
		for i, r := range results {
			values[i] = get(r)
		}
		return spread(values)
	}
	return Row{
		Trace: trace, Scaler: scaler, Seeds: len(results),
		Requests:        of(func(r Result) float64 { return float64(r.Requests) }).Mean,
		P50:             of(func(r Result) float64 { return r.P50 }),
		P99:             of(func(r Result) float64 { return r.P99 }),
		Over:            of(func(r Result) float64 { return r.Over }),
		InstanceSeconds: of(func(r Result) float64 { return r.InstanceSeconds }),
		Starts:          of(func(r Result) float64 { return float64(r.Starts) }),
	}
}

// Table compares ours with Knative's over all made traces with the default
// parameters.
func Table(seeds int) ([]Row, error) { return TableOf(Defaults(), seeds) }

// TableOf does so with other parameters.
func TableOf(c Config, seeds int) ([]Row, error) {
	var rows []Row
	for _, name := range Names() {
		r, err := Compare(c, seeds, Contestants(), func(seed uint64) (Trace, error) { return Make(name, seed) })
		if err != nil {
			return nil, err
		}
		rows = append(rows, r...)
	}
	return rows, nil
}
