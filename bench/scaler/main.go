// Command scaler runs the latency scaler and Knative's algorithm over the same made
// traces in simulated time, several seeds each, and compares p99, instance-seconds
// and starts. It says nothing of real processes and of a real Knative. Run it with
// `make bench-scaler`.
package main

import (
	"flag"
	"fmt"
	"log"
	"os"

	"github.com/penstock-gateway/penstock/bench/report"
	"github.com/penstock-gateway/penstock/scale/sim"
)

func main() {
	out := flag.String("out", "bench/results/scaler.json", "where the figures are written")
	seeds := flag.Int("seeds", 8, "random traces of each kind")
	flag.Parse()
	if err := run(*out, *seeds); err != nil {
		log.Fatal(err)
	}
}

// setting is what instances are like.
type setting struct {
	name        string
	start       float64
	concurrency int
	// judged says that the targets are for it.
	judged bool
}

var settings = []setting{
	{"start 1 s", 1, 1, true},
	{"start 0.1 s", 0.1, 1, true},
	// Slow starts: what is held is what counts, and that is cheap with both.
	{"start 5 s, 10 at once", 5, 10, false},
}

func run(out string, seeds int) error {
	r := report.New()
	for _, s := range settings {
		c := sim.Defaults()
		c.Start, c.Concurrency = s.start, s.concurrency
		rows, err := sim.TableOf(c, seeds)
		if err != nil {
			return err
		}
		per := len(sim.Contestants())
		for i := 0; i < len(rows); i += per {
			s.add(r, rows[i], rows[i+1:i+per])
		}
	}
	return r.Write(os.Stdout, out)
}

// add adds one trace: our figures, and the ratios to each of the others.
func (s setting) add(r *report.Report, ours sim.Row, others []sim.Row) {
	name := func(what string) string { return fmt.Sprintf("%s, %s: %s", s.name, ours.Trace, what) }
	smooth := ours.Trace == "steady" || ours.Trace == "diurnal"
	value := func(what, unit string, v sim.Spread, factor float64) {
		r.Figures = append(r.Figures, report.Figure{Name: name(what), Unit: unit, Value: v.Mean * factor, Spread: []float64{v.Low * factor, v.High * factor}})
	}
	value("p99", "ms", ours.P99, 1000)
	value("over the objective of 400 ms", "%", ours.Over, 100)
	if smooth && s.judged {
		r.Judge("<= 1", ours.Over.Mean <= 0.01)
	}
	value("instance-seconds", "s", ours.InstanceSeconds, 1)
	value("starts", "", ours.Starts, 1)
	for _, o := range others {
		ratio := func(what string, v, of sim.Spread, bound float64) {
			r.Add(name(what+" against "+o.Scaler), "x", v.Mean/of.Mean)
			if s.judged && !smooth {
				r.Judge(fmt.Sprintf("<= %g", bound), v.Mean <= bound*of.Mean)
			}
		}
		ratio("p99", ours.P99, o.P99, 0.7)
		ratio("instance-seconds", ours.InstanceSeconds, o.InstanceSeconds, 0.8)
		value("p99 of "+o.Scaler, "ms", o.P99, 1000)
		value("over the objective, "+o.Scaler, "%", o.Over, 100)
	}
}
