// Package sim runs scalers of package scale against traces of requests, made ones
// or those of an access log, in simulated time: one first-in-first-out queue in
// front of instances that handle a number of requests at once and need time to
// start. The same trace and seed give the same result.
//
// It has no network, no processor that instances share and no failures. What it
// says of two scalers is how they compare, not how long a real request takes.
package sim

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/penstock-gateway/penstock/scale"
)

// Time is a time of requests or starts in seconds: a mean and a standard deviation.
type Time struct{ Mean, SD float64 }

// normal draws from a normal distribution, but no less than a tenth of the mean.
func (t Time) normal(r *rand.Rand) float64 { return max(t.Mean/10, t.Mean+t.SD*r.NormFloat64()) }

// Config is what is the same for all scalers.
type Config struct {
	// Handler is t and Rest is r, both normal; T = t + r. A trace with times of its
	// own goes before.
	Handler, Rest Time
	// Start is about the mean time from start to ready: each takes between 0.8 and 1.3
	// of it.
	Start float64
	// Objective is what requests are judged by, and what the latency model keeps.
	Objective scale.Objective
	// Min, Max and Concurrency are those of the function.
	Min, Max, Concurrency int
	// Warm instances are ready at the beginning.
	Warm int
	// Settle is how long, in seconds, requests are not judged at the beginning.
	Settle float64
	// Seed is of the times; that of the trace is the trace's.
	Seed uint64
}

// Defaults are the parameters of the tables: T = 150 ms (sd 60) + 10 ms (sd 10),
// one request at a time, a start of a second, p99 <= 400 ms.
func Defaults() Config {
	return Config{
		Handler: Time{0.150, 0.060}, Rest: Time{0.010, 0.010}, Start: 1,
		Objective: scale.Objective{Quantile: 0.99, Limit: 400 * time.Millisecond}, Max: 1000, Concurrency: 1, Seed: 1,
	}
}

// Result is what one scaler did with one trace. Times are in seconds.
type Result struct {
	// Requests counts those that were judged.
	Requests int     `json:"requests"`
	P50      float64 `json:"p50_seconds"`
	P99      float64 `json:"p99_seconds"`
	// Over is the part of the requests that took longer than the objective.
	Over float64 `json:"over_objective"`
	// InstanceSeconds adds up the time from start to end of every instance within the
	// trace's length.
	InstanceSeconds float64 `json:"instance_seconds"`
	// Starts counts instances that were started, Peak the most there were at once.
	Starts int `json:"starts"`
	Peak   int `json:"peak"`
}

// event is the end of a request or of a start.
type event struct {
	at       float64
	instance int
	start    bool
	t, total float64
}

type state int

const (
	gone state = iota
	starting
	ready
	draining
)

type instance struct {
	state    state
	inFlight int
	begun    float64
}

type request struct{ at, t, total float64 }

type run struct {
	config Config
	trace  Trace
	scaler *scale.Scaler
	rand   *rand.Rand

	now       float64
	events    events
	instances []instance
	free      []int // slots of instances that are gone
	count     [4]int
	queue     []request
	head      int
	inFlight  int

	arrivals  uint64
	busy      float64
	last      float64
	decided   float64
	split     scale.Split
	starts    scale.Sums
	started   int
	peak      int
	seconds   float64
	responses []float64
}

// epoch is the zero of simulated time; that it is long ago shows in no result.
var epoch = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)

const (
	tick = 0.250
	// together is how near each other queueing events are answered by one decision.
	together = 0.010
)

func newRun(c Config, t Trace, s *scale.Scaler) *run {
	return &run{
		config: c, trace: t, scaler: s, rand: rand.New(rand.NewPCG(c.Seed, 0x5ca1e)), last: math.Inf(-1), decided: math.Inf(-1),
		responses: make([]float64, 0, len(t.Arrivals)),
	}
}

// Run simulates the trace with the scaler.
func Run(c Config, t Trace, s *scale.Scaler) Result {
	r := newRun(c, t, s)
	for range c.Warm {
		r.add(ready)
	}
	r.loop()
	for i := range r.instances {
		r.end(i)
	}
	res := Result{Requests: len(r.responses), InstanceSeconds: r.seconds, Starts: r.started, Peak: r.peak}
	if len(r.responses) == 0 {
		return res
	}
	limit := c.Objective.Limit.Seconds()
	for _, v := range r.responses {
		if v > limit {
			res.Over++
		}
	}
	res.Over /= float64(len(r.responses))
	slices.Sort(r.responses)
	res.P50, res.P99 = quantile(r.responses, 0.50), quantile(r.responses, 0.99)
	return res
}

func quantile(sorted []float64, q float64) float64 {
	return sorted[min(len(sorted)-1, int(q*float64(len(sorted))))]
}

// loop takes the earliest of the next arrival, end and tick, until the trace is over
// and all are answered.
func (r *run) loop() {
	next, ticks := 0, 0
	for {
		arrival, end, at := math.Inf(1), math.Inf(1), float64(ticks)*tick
		if next < len(r.trace.Arrivals) {
			arrival = r.trace.Arrivals[next]
		}
		if len(r.events) > 0 {
			end = r.events[0].at
		}
		if math.IsInf(arrival, 1) && r.inFlight == 0 && r.head == len(r.queue) && min(end, at) > r.trace.Length {
			return
		}
		switch to := min(arrival, end, at); {
		case to == end:
			r.advance(to)
			r.ended(r.events.pop())
		case to == arrival:
			r.advance(to)
			r.arrive(next)
			next++
		default:
			r.advance(to)
			ticks++
			r.decide()
		}
	}
}

func (r *run) advance(to float64) {
	r.busy += (to - r.now) * float64(r.inFlight+len(r.queue)-r.head)
	r.now = to
}

func (r *run) arrive(i int) {
	r.arrivals++
	r.last = r.now
	q := request{at: r.now}
	if r.trace.Times != nil {
		q.total = r.trace.Times[i]
		q.t = q.total
	} else {
		q.t, q.total = r.draw()
	}
	r.queue = append(r.queue, q)
	if r.dispatch(); r.head < len(r.queue) && r.now-r.decided >= together {
		r.decide()
	}
}

// draw is t and T of one request.
func (r *run) draw() (t, total float64) {
	t = r.config.Handler.normal(r.rand)
	return t, t + r.config.Rest.normal(r.rand)
}

func (r *run) ended(e event) {
	in := &r.instances[e.instance]
	if e.start {
		r.starts.Add(r.now - in.begun)
		r.change(e.instance, ready)
	} else {
		in.inFlight--
		r.inFlight--
		r.split.Add(toDuration(e.t), toDuration(e.total))
		if in.state == draining && in.inFlight == 0 {
			r.end(e.instance)
		}
	}
	r.dispatch()
}

// dispatch gives waiting requests to the least busy instances with a free slot.
func (r *run) dispatch() {
	for r.head < len(r.queue) {
		best := -1
		for i := range r.instances {
			in := &r.instances[i]
			if in.state == ready && in.inFlight < r.config.Concurrency && (best < 0 || in.inFlight < r.instances[best].inFlight) {
				if best = i; in.inFlight == 0 {
					break
				}
			}
		}
		if best < 0 {
			return
		}
		q := r.queue[r.head]
		r.head++
		if r.head > 1000 && 2*r.head > len(r.queue) {
			r.queue = append(r.queue[:0], r.queue[r.head:]...)
			r.head = 0
		}
		r.instances[best].inFlight++
		r.inFlight++
		r.events.push(event{at: r.now + q.total, instance: best, t: q.t, total: q.total})
		if q.at >= r.config.Settle {
			r.responses = append(r.responses, r.now-q.at+q.total)
		}
	}
}

func (r *run) decide() {
	r.decided = r.now
	o := scale.Observation{
		Now: epoch.Add(toDuration(r.now)), Ready: r.count[ready], Starting: r.count[starting],
		InFlight: r.inFlight, Queued: len(r.queue) - r.head, Arrivals: r.arrivals, Busy: r.busy,
		Service: r.split.T(), Parts: r.split.Parts(), Start: r.starts.Moments(),
	}
	if r.head < len(r.queue) {
		o.OldestWait = toDuration(r.now - r.queue[r.head].at)
	}
	if !math.IsInf(r.last, -1) {
		o.LastRequest = epoch.Add(toDuration(r.last))
	}
	wanted := r.scaler.Decide(o).Wanted
	for range wanted - r.count[ready] - r.count[starting] {
		i := r.add(starting)
		r.started++
		r.events.push(event{at: r.now + r.config.Start*(0.8+0.5*r.rand.Float64()), instance: i, start: true})
	}
	r.drop(r.count[ready] + r.count[starting] - wanted)
}

// drop ends ready instances, the least busy first; those that work finish it.
func (r *run) drop(n int) {
	for inFlight := 0; n > 0 && inFlight <= r.config.Concurrency; inFlight++ {
		for i := len(r.instances) - 1; i >= 0 && n > 0; i-- {
			if r.instances[i].state != ready || r.instances[i].inFlight != inFlight {
				continue
			}
			n--
			if inFlight == 0 {
				r.end(i)
			} else {
				r.change(i, draining)
			}
		}
	}
}

func (r *run) add(s state) int {
	i := len(r.instances)
	if n := len(r.free); n > 0 {
		i, r.free = r.free[n-1], r.free[:n-1]
	} else {
		r.instances = append(r.instances, instance{})
	}
	r.instances[i] = instance{begun: r.now}
	r.change(i, s)
	r.peak = max(r.peak, r.count[ready]+r.count[starting]+r.count[draining])
	return i
}

func (r *run) end(i int) {
	if in := &r.instances[i]; in.state != gone {
		r.seconds += max(0, min(r.now, r.trace.Length)-in.begun)
		r.change(i, gone)
		r.free = append(r.free, i)
	}
}

func (r *run) change(i int, to state) {
	r.count[r.instances[i].state]--
	r.instances[i].state = to
	r.count[to]++
}

func toDuration(seconds float64) time.Duration { return time.Duration(seconds * float64(time.Second)) }

// Contestant is a scaler that takes part in a comparison.
type Contestant struct {
	// Name is what tables show.
	Name string
	// New makes one for a simulation.
	New func(Config) *scale.Scaler
}

// Ours is the latency model.
func Ours() Contestant {
	return Contestant{Name: "latency", New: func(c Config) *scale.Scaler {
		return scale.New(scale.Config{Min: c.Min, Max: c.Max, Concurrency: c.Concurrency, Objective: c.Objective})
	}}
}

// Knative is its pod autoscaler with a stable window (its default is 60 s), the panic
// window a tenth of it, a target of 70 % of the concurrency, and to zero 30 s, its
// grace period, after the window.
func Knative(window time.Duration) Contestant {
	return Contestant{Name: fmt.Sprintf("kpa-%.0fs", window.Seconds()), New: func(c Config) *scale.Scaler {
		return scale.New(scale.Config{Min: c.Min, Max: c.Max, Concurrency: c.Concurrency, Window: window, IdleTimeout: window + 30*time.Second})
	}}
}

// Contestants are ours and Knative's with its defaults and with a 10 s window: most
// of what the defaults cost more is the window.
func Contestants() []Contestant {
	return []Contestant{Ours(), Knative(time.Minute), Knative(10 * time.Second)}
}
