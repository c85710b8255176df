package scale

import (
	"math"
	"slices"
	"strings"
	"time"
)

func joinSorted(names []string) string {
	slices.Sort(names)
	return strings.Join(names, " and ")
}

// Scaler decides for one function. It has no clock of its own: time is what the
// observations say. It is not safe for concurrent use.
type Scaler struct {
	config  Config
	history history
	peaks   peaks
	kpa     *kpa // for targets

	// knows says that T was measured before.
	knows bool

	// The cut of T costs a hundred incomplete gamma functions; T changes slowly.
	service Moments
	cut     *cut
}

// New makes a scaler that knows nothing yet.
func New(c Config) *Scaler {
	c = c.withDefaults()
	s := &Scaler{config: c, history: history{keep: longWindow, spacing: 100 * time.Millisecond}}
	if !c.Objective.Set() {
		s.kpa = newKPA(c)
		s.history = history{keep: c.Window, spacing: max(100*time.Millisecond, s.kpa.panicWindow()/12)}
	}
	return s
}

// Decide returns how many instances are wanted. It is meant to be called every 250
// ms and whenever a request has to wait.
func (s *Scaler) Decide(o Observation) Decision {
	o = sane(o, s.history.now)
	s.history.add(point{at: o.Now, arrivals: float64(o.Arrivals), busy: o.Busy})
	d := Decision{Time: o.Now, Ready: o.Ready, Starting: o.Starting}
	e := explanation{config: s.config, o: o}
	switch {
	case s.config.Min == s.config.Max:
		d.Wanted, d.Reason = s.config.Min, ReasonFixed
	case s.kpa != nil:
		s.target(o, &d, &e)
	default:
		s.latency(o, &d, &e)
	}
	s.bound(o, &d, &e)
	e.wanted, e.reason = d.Wanted, d.Reason
	d.steps = e.steps
	return d
}

// sane replaces what no counter can say, so that a bad number does harm once only.
func sane(o Observation, last point) Observation {
	if o.Now.Before(last.at) {
		o.Now = last.at
	}
	o.Ready, o.Starting = max(0, o.Ready), max(0, o.Starting)
	o.InFlight, o.Queued = max(0, o.InFlight), max(0, o.Queued)
	if !(o.Busy >= 0 && o.Busy < 1e300) {
		o.Busy = last.busy
	}
	return o
}

// target follows Knative.
func (s *Scaler) target(o Observation, d *Decision, e *explanation) {
	d.Wanted, d.Reason = s.kpa.decide(o, &s.history, s.config.Max), ReasonConcurrency
	if s.kpa.rps {
		d.Reason = ReasonRPS
	}
	e.kpa = *s.kpa
}

// latency keeps the objective.
func (s *Scaler) latency(o Observation, d *Decision, e *explanation) {
	e.service, e.start = o.Service, o.Start.Mean
	if !o.Service.known() || o.Service.Count < leastCount {
		// Until some are measured, a request is taken to need half of what it may.
		half := s.config.Objective.Limit.Seconds() / 2
		e.service, e.assumed = Moments{Mean: half, Var: half * half / 4}, true
	}
	if !o.Start.known() {
		e.start, e.assumedStart = defaultStart, true
	}
	e.start = min(e.start, time.Hour.Seconds())
	if s.cut == nil || s.service != e.service {
		s.service, s.cut = e.service, newShape(e.service).cut(s.config.Objective.Limit.Seconds())
	}
	e.rates = newRates(&s.history, e.start)
	e.size = s.config.size(e.rates.planned, e.service, s.cut)
	e.pressure = s.config.pressure(o, e.rates.planned, e.service, e.start)
	need, reason := e.size.count, ReasonLatency
	d.Unreachable = !e.assumed && e.size.unreachable
	if d.Unreachable {
		reason = ReasonUnreachable
	}
	if e.pressure.count > need {
		need, reason = e.pressure.count, ReasonPressure
	}
	if e.assumed {
		// One request is a rate of one a second, and T is a guess: together they would start
		// several instances for it.
		lately, _, _ := s.history.over(leastKnown, leastKnown)
		if e.most = max(1, o.InFlight+o.Queued, int(math.Ceil(lately))); need > e.most {
			need, e.bounded = e.most, true
		}
	}
	e.hold = s.config.Hold
	if e.hold <= 0 {
		e.hold = max(30*time.Second, time.Duration(6*e.start*float64(time.Second)))
	}
	if !s.knows && !e.assumed {
		// What was needed for a T that nobody had seen is not to be held.
		s.knows, s.peaks = true, peaks{}
	}
	s.peaks.add(o.Now, need)
	e.need = need
	if e.held = s.peaks.max(o.Now.Add(-e.hold)); e.held > need {
		need, reason = e.held, ReasonHold
	}
	d.Wanted, d.Reason = need, reason
}

// bound applies what holds for every way: idle, Min, Max, and that what starts is
// not given up.
func (s *Scaler) bound(o Observation, d *Decision, e *explanation) {
	c := s.config
	if d.Reason != ReasonFixed {
		e.idle = o.InFlight+o.Queued == 0 && (o.LastRequest.IsZero() || o.Now.Sub(o.LastRequest) >= c.IdleTimeout)
		if e.idle {
			d.Wanted, d.Reason = 0, ReasonIdle
		} else if d.Wanted < 1 {
			d.Wanted, d.Reason, e.last = 1, ReasonHold, true
		}
	}
	if d.Wanted < o.Starting {
		d.Wanted, d.Reason, e.kept = o.Starting, ReasonHold, true
	}
	if d.Wanted < c.Min {
		d.Wanted, d.Reason = c.Min, ReasonMin
	}
	if d.Wanted > c.Max || e.size.capped && d.Wanted == c.Max {
		d.Wanted, d.Reason = c.Max, ReasonMax
	}
}
