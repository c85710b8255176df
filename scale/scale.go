// Package scale decides how many instances of a function there are to be. It is
// pure: it has no clock, no goroutines and no state but a Scaler's; what it knows
// of the world is an Observation.
//
// With an objective ("p99 <= 200ms") the count is sized from the measured time
// T = t + r that a request spends in the function, t in the handler and r in the
// rest: with E[T] = E[t] + E[r] and Var[T] = Var[t] + Var[r] + 2 Cov[t,r], the rate
// of arrivals and the Erlang-C formula give the distribution of the wait, and the
// smallest count is taken at which wait and T together keep the objective
// (latency.go, erlang.go, shape.go). With a target, or with neither, Knative's
// algorithm averages requests at once, or requests a second (kpa.go).
//
// The objective holds for one queue in front of all instances (queue CENTRAL). The
// model takes T as independent of the number of requests that an instance handles
// at once; where they slow each other down, T is measured longer and the count
// follows.
//
// Package scale/sim runs the same code against made or recorded traces.
package scale

import (
	"cmp"
	"fmt"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/penstock-gateway/penstock/functions/contract"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// Observation is what is known of one function at one moment.
type Observation struct {
	// Now is the moment. It may not go back.
	Now time.Time
	// Ready and Starting count instances; those that drain or wait for another try
	// are in neither.
	Ready, Starting int
	// InFlight counts the requests in instances, Queued those that wait for one.
	InFlight, Queued int
	// OldestWait is how long the first of the queue has waited. It is only shown: at
	// the end of a long queue it is long though there is nothing left to start for.
	OldestWait time.Duration
	// Arrivals counts requests since the beginning.
	Arrivals uint64
	// Busy is the number of requests in instances and queue, integrated over time:
	// request-seconds since the beginning.
	Busy float64
	// Service is the time T = t + r of requests, without their wait for an instance,
	// in seconds.
	Service Moments
	// Parts are t and r, for people who want to know where T comes from. Optional.
	Parts Parts
	// Start is the time from start to ready, in seconds.
	Start Moments
	// LastRequest is when the last request came; zero: never.
	LastRequest time.Time
}

// Objective is a bound on a quantile of the time of requests. The zero Objective is
// none.
type Objective struct {
	// Quantile is between 0 and 1: 0.99 for p99.
	Quantile float64
	// Limit is the time that this part of the requests may take at most, the wait
	// for a free instance included.
	Limit time.Duration
}

// Set reports whether there is an objective.
func (o Objective) Set() bool { return o.Limit > 0 }

// String is the form that ParseObjective reads.
func (o Objective) String() string {
	if !o.Set() {
		return ""
	}
	return "p" + strconv.FormatFloat(o.Quantile*100, 'g', 6, 64) + " <= " + o.Limit.String()
}

// ParseObjective reads an objective such as "p99 <= 200ms" or "p99.9<=1.5s". The
// empty string is none.
func ParseObjective(s string) (Objective, error) {
	fail := func(what string) (Objective, error) {
		return Objective{}, fmt.Errorf("objective %q: %s; write it as in \"p99 <= 200ms\"", s, what)
	}
	if strings.TrimSpace(s) == "" {
		return Objective{}, nil
	}
	left, right, ok := strings.Cut(s, "<=")
	if !ok {
		return fail("there is no \"<=\"")
	}
	digits, ok := strings.CutPrefix(strings.TrimSpace(left), "p")
	if !ok {
		return fail("it does not begin with a percentile")
	}
	percent, err := strconv.ParseFloat(digits, 64)
	// Beyond p99.99 no measured variance says anything; below p50 it is not a bound
	// that anybody means.
	if err != nil || !(percent >= 50 && percent <= 99.99) {
		return fail(fmt.Sprintf("%q is not a percentile from p50 to p99.99", strings.TrimSpace(left)))
	}
	limit, err := time.ParseDuration(strings.TrimSpace(right))
	if err != nil || limit < time.Millisecond || limit > time.Hour {
		return fail(fmt.Sprintf("%q is not a duration from 1ms to 1h", strings.TrimSpace(right)))
	}
	return Objective{Quantile: percent / 100, Limit: limit}, nil
}

// Config is how one function is scaled.
type Config struct {
	// Min and Max bound the count. Max is at least 1.
	Min, Max int
	// Concurrency is how many requests one instance handles at once.
	Concurrency int
	// Objective is the latency to keep. It goes before the targets.
	Objective Objective
	// TargetConcurrency is the number of requests at once for one instance.
	TargetConcurrency float64
	// TargetRPS is the number of requests a second for one instance.
	TargetRPS float64
	// Utilization is the part of a target that is planned for, Knative's
	// target-utilization-percentage. Default 0.7.
	Utilization float64
	// Window is what targets are averaged over. Default 60 s.
	Window time.Duration
	// IdleTimeout is the time without a request after which only Min stay. Default 60 s.
	IdleTimeout time.Duration
	// Hold is how long the highest need counts. Default: the longer of 30 s and six
	// times the start of an instance.
	Hold time.Duration
}

// DefaultMax is the largest count where a function names none.
const DefaultMax = 10

// ConfigOf reads how a function is scaled. Without scale the count is fixed.
func ConfigOf(f *pb.Function) (Config, error) {
	c := Config{Concurrency: contract.Concurrency(f)}
	s := f.GetScale()
	if s == nil {
		c.Min = int(cmp.Or(f.GetInstances(), 1))
		c.Max = c.Min
		return c.withDefaults(), nil
	}
	c.Min, c.Max = int(s.GetMin()), int(cmp.Or(s.GetMax(), max(DefaultMax, s.GetMin())))
	if c.Min > c.Max {
		return Config{}, fmt.Errorf("scale: min is %d, more than max, which is %d", c.Min, c.Max)
	}
	var err error
	if c.Objective, err = ParseObjective(s.GetObjective()); err != nil {
		return Config{}, fmt.Errorf("scale: %w", err)
	}
	c.TargetConcurrency, c.TargetRPS = s.GetTargetConcurrency(), s.GetTargetRps()
	var targets []string
	for name, set := range map[string]bool{"objective": c.Objective.Set(), "target_concurrency": c.TargetConcurrency > 0, "target_rps": c.TargetRPS > 0} {
		if set {
			targets = append(targets, name)
		}
	}
	if len(targets) > 1 {
		return Config{}, fmt.Errorf("scale: %s are set: choose one", joinSorted(targets))
	}
	c.Window, c.IdleTimeout = s.GetWindow().AsDuration(), s.GetIdleTimeout().AsDuration()
	return c.withDefaults(), nil
}

func (c Config) withDefaults() Config {
	c.Max = max(1, c.Max)
	c.Min = min(max(0, c.Min), c.Max)
	c.Concurrency = max(1, c.Concurrency)
	if !(c.Utilization > 0 && c.Utilization <= 1) {
		c.Utilization = 0.7
	}
	if c.Window <= 0 {
		c.Window = time.Minute
	}
	if c.IdleTimeout <= 0 {
		c.IdleTimeout = time.Minute
	}
	return c
}

// The reasons of decisions, as ScaleDecision.reason names them.
const (
	ReasonLatency     = "LatencyObjective"
	ReasonConcurrency = "TargetConcurrency"
	ReasonRPS         = "TargetRps"
	ReasonFixed       = "Fixed"
	ReasonIdle        = "Idle"
	ReasonHold        = "Hold"
	ReasonPressure    = "QueuePressure"
	ReasonMin         = "Min"
	ReasonMax         = "Max"
	ReasonUnreachable = "ObjectiveUnreachable"
)

// Decision is how many instances are wanted, and why.
type Decision struct {
	// Time is that of the observation.
	Time time.Time
	// Wanted is between Min and Max. It counts ready and starting instances; one that
	// starts is never given up, so where fewer are wanted than there are, ready ones
	// are to go.
	Wanted int
	// Ready and Starting are those of the observation.
	Ready, Starting int
	// Reason is one of the Reason constants.
	Reason string
	// Unreachable says that no count meets the objective.
	Unreachable bool
	// steps writes the arithmetic; only when somebody asks.
	steps func() []string
}

// Steps is the arithmetic for people, one step a line.
func (d Decision) Steps() []string {
	if d.steps == nil {
		return nil
	}
	return d.steps()
}

// Proto is the decision as the API shows it.
func (d Decision) Proto(function string) *pb.ScaleDecision {
	return &pb.ScaleDecision{
		Function: function, Time: timestamppb.New(d.Time),
		Wanted: uint32(max(0, d.Wanted)), Ready: uint32(max(0, d.Ready)), Starting: uint32(max(0, d.Starting)),
		Reason: d.Reason, Steps: d.Steps(), Unreachable: d.Unreachable,
	}
}
