package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/penstock-gateway/penstock/scale"
	"github.com/penstock-gateway/penstock/scale/sim"
)

// replayFlags are the flags of `fn replay`.
type replayFlags struct {
	objective, output                       string
	concurrency, min, max, seeds            int
	start, handler, handlerSD, rest, restSD time.Duration
}

func newFnReplayCommand() *cobra.Command {
	var f replayFlags
	c := &cobra.Command{
		Use:   "replay TRACE",
		Short: "Run the scalers, ours and Knative's, over a trace in simulated time",
		Long: "Runs the latency scaler and Knative's algorithm (with its defaults, and with a window of 10 s) over the\n" +
			"same requests and shows what each would have given: p99, requests over the objective, instance-seconds\n" +
			"and starts, as mean over the seeds with the 95 % confidence interval. Nothing is started or called.\n\n" +
			"TRACE is " + strings.Join(sim.Names(), ", ") + " (15 minutes each), or an access log: CSV with a header, or JSON\n" +
			"lines, with time (RFC 3339, or seconds) and duration (\"12.5ms\"; duration_s, duration_ms, duration_us as\n" +
			"numbers). With a log, requests take as long as it says.",
		Example: "  penstock fn replay burst --objective 'p99 <= 400ms'\n" +
			"  penstock fn replay access.jsonl --objective 'p99 <= 1s' --concurrency 10 --start 5s",
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return f.run(cmd, args[0])
		},
	}
	d := sim.Defaults()
	c.Flags().StringVar(&f.objective, "objective", d.Objective.String(), "the latency to keep, and what requests are judged by")
	c.Flags().IntVar(&f.concurrency, "concurrency", d.Concurrency, "requests that one instance handles at once")
	c.Flags().IntVar(&f.min, "min", 0, "instances that are always there")
	c.Flags().IntVar(&f.max, "max", 1000, "never more instances than this")
	c.Flags().IntVar(&f.seeds, "seeds", 8, "how many random traces and start times to average over")
	c.Flags().DurationVar(&f.start, "start", time.Second, "time from start to ready, on average")
	c.Flags().DurationVar(&f.handler, "service", 150*time.Millisecond, "time t in the handler, on average; made traces only")
	c.Flags().DurationVar(&f.handlerSD, "service-sd", 60*time.Millisecond, "standard deviation of t")
	c.Flags().DurationVar(&f.rest, "rest", 10*time.Millisecond, "the rest r of T = t + r, on average")
	c.Flags().DurationVar(&f.restSD, "rest-sd", 10*time.Millisecond, "standard deviation of r")
	c.Flags().StringVarP(&f.output, "output", "o", "text", "text or json")
	return c
}

// config checks the flags: all that is wrong at once.
func (f *replayFlags) config() (sim.Config, error) {
	var problems []error
	within := func(name string, v, low, high int) {
		if v < low || v > high {
			problems = append(problems, fmt.Errorf("--%s %d is not between %d and %d", name, v, low, high))
		}
	}
	o, err := scale.ParseObjective(f.objective)
	if err != nil {
		problems = append(problems, fmt.Errorf("--objective: %w", err))
	} else if !o.Set() {
		problems = append(problems, errors.New("--objective is empty: requests are judged by it; write it as in \"p99 <= 200ms\""))
	}
	within("concurrency", f.concurrency, 1, 10_000)
	within("max", f.max, 1, 1000)
	within("min", f.min, 0, max(0, f.max))
	within("seeds", f.seeds, 1, 1000)
	for name, d := range map[string]time.Duration{"service-sd": f.handlerSD, "rest": f.rest, "rest-sd": f.restSD} {
		if d < 0 || d > time.Hour {
			problems = append(problems, fmt.Errorf("--%s %v is not between 0 and 1h", name, d))
		}
	}
	for name, d := range map[string]time.Duration{"service": f.handler, "start": f.start} {
		if d < time.Microsecond || d > time.Hour {
			problems = append(problems, fmt.Errorf("--%s %v is not between 1us and 1h", name, d))
		}
	}
	switch f.output {
	case "text", "json":
	default:
		problems = append(problems, fmt.Errorf("--output %q is none of text, json", f.output))
	}
	return sim.Config{
		Handler: sim.Time{Mean: f.handler.Seconds(), SD: f.handlerSD.Seconds()}, Rest: sim.Time{Mean: f.rest.Seconds(), SD: f.restSD.Seconds()},
		Start: f.start.Seconds(), Objective: o, Min: f.min, Max: f.max, Concurrency: f.concurrency,
	}, errors.Join(problems...)
}

func (f *replayFlags) run(cmd *cobra.Command, name string) error {
	c, err := f.config()
	if err != nil {
		return err
	}
	traceOf := func(seed uint64) (sim.Trace, error) { return sim.Make(name, seed) }
	if !slices.Contains(sim.Names(), name) {
		for _, flag := range []string{"service", "service-sd", "rest", "rest-sd"} {
			if cmd.Flags().Changed(flag) {
				return fmt.Errorf("--%s is for made traces: requests of a log take as long as the log says", flag)
			}
		}
		t, err := readTrace(name)
		if err != nil {
			return err
		}
		traceOf = func(uint64) (sim.Trace, error) { return t, nil }
	}
	rows, err := sim.Compare(c, f.seeds, sim.Contestants(), traceOf)
	if err != nil {
		return err
	}
	w := cmd.OutOrStdout()
	if f.output == "json" {
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		return e.Encode(rows)
	}
	printReplay(w, c, rows)
	return nil
}

func readTrace(name string) (sim.Trace, error) {
	in, err := os.Open(name)
	if errors.Is(err, os.ErrNotExist) {
		return sim.Trace{}, fmt.Errorf("%q is neither a made trace (%s) nor a file", name, strings.Join(sim.Names(), ", "))
	}
	if err != nil {
		return sim.Trace{}, err
	}
	defer in.Close()
	return sim.ReadLog(name, in)
}

func printReplay(w io.Writer, c sim.Config, rows []sim.Row) {
	fmt.Fprintf(w, "%s: %.0f requests, objective %s, concurrency %d, start %g s; mean of %d seeds, +- is the 95 %% confidence interval\n\n",
		rows[0].Trace, rows[0].Requests, c.Objective, c.Concurrency, c.Start, rows[0].Seeds)
	table(w, "SCALER P50(ms) P99(ms) OVER(%) INSTANCE-SECONDS RATIO STARTS", func(row func(...any)) {
		for _, r := range rows {
			row(r.Scaler, spreadOf(r.P50, 1000, 0), spreadOf(r.P99, 1000, 0), spreadOf(r.Over, 100, 2), spreadOf(r.InstanceSeconds, 1, 0),
				fmt.Sprintf("%.2f", r.Ratio), spreadOf(r.Starts, 1, 0))
		}
	})
}

func spreadOf(s sim.Spread, unit float64, digits int) string {
	if s.CI == 0 {
		return fmt.Sprintf("%.*f", digits, s.Mean*unit)
	}
	return fmt.Sprintf("%.*f+-%.*f", digits, s.Mean*unit, digits, s.CI*unit)
}
