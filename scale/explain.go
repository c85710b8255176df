package scale

import (
	"fmt"
	"math"
	"time"
)

// explanation keeps the numbers of one decision until somebody asks for them.
type explanation struct {
	config Config
	o      Observation

	service               Moments
	start                 float64
	assumed, assumedStart bool
	rates                 rates
	size                  sizing
	pressure              pressure
	hold                  time.Duration
	need, held            int
	// most bounds what an assumed T starts: the requests of the last second. bounded says
	// that it did.
	most    int
	bounded bool

	kpa kpa

	// idle: no request for long. kept: what starts is kept. last: one is kept until
	// the idle timeout.
	idle, kept, last bool

	wanted int
	reason string
}

// steps writes the arithmetic, one step a line.
func (e explanation) steps() []string {
	var lines []string
	add := func(format string, args ...any) { lines = append(lines, fmt.Sprintf(format, args...)) }
	o, c := e.o, e.config
	line := fmt.Sprintf("%s ready, %d starting; %s in them, %d waiting", instances(o.Ready), o.Starting, requests(o.InFlight), o.Queued)
	if o.Queued > 0 && o.OldestWait > 0 {
		line += fmt.Sprintf(" (the first for %s)", seconds(o.OldestWait.Seconds()))
	}
	add("%s", line)
	switch {
	case c.Min == c.Max:
		add("min = max = %d: fixed", c.Min)
	case c.Objective.Set():
		e.latencySteps(add)
	default:
		e.kpaSteps(add)
	}
	if c.Min != c.Max {
		switch {
		case e.idle && o.LastRequest.IsZero():
			add("no request yet: none needed beyond min")
		case e.idle:
			add("no request for %s >= idle timeout %s: none needed beyond min", seconds(o.Now.Sub(o.LastRequest).Seconds()), seconds(c.IdleTimeout.Seconds()))
		case e.last && o.LastRequest.IsZero():
			add("requests are here: at least one")
		case e.last:
			add("one is kept: the last request was %s ago, idle timeout %s", seconds(o.Now.Sub(o.LastRequest).Seconds()), seconds(c.IdleTimeout.Seconds()))
		}
		if e.kept {
			add("%d starting, and a start is never given up", o.Starting)
		}
	}
	add("min %d, max %d: wanted %d (%s)", c.Min, c.Max, e.wanted, e.reason)
	return lines
}

func (e explanation) latencySteps(add func(string, ...any)) {
	m, c, p := e.service, e.config, e.o.Parts
	limit := seconds(c.Objective.Limit.Seconds())
	if e.assumed {
		add("fewer than %d requests measured: E[T] taken as half the objective, %s, sd %s", leastCount, seconds(m.Mean), seconds(m.SD()))
	} else {
		if p.Handler.Count > 0 {
			add("E[T] = E[t] %s + E[r] %s = %s", seconds(p.Handler.Mean), seconds(p.Rest.Mean), seconds(m.Mean))
			add("Var[T] = sd[t]^2 (%s)^2 + sd[r]^2 (%s)^2 + 2 Cov %.4g ms^2 = (%s)^2", seconds(p.Handler.SD()), seconds(p.Rest.SD()), 2e6*p.Cov, seconds(m.SD()))
		} else {
			add("E[T] %s, sd %s", seconds(m.Mean), seconds(m.SD()))
		}
		add("T alone: p%s %s, P(T > %s) %s of %.0f requests measured", short(c.Objective.Quantile*100), seconds(newShape(m).quantile(c.Objective.Quantile)), limit, percent(e.size.late), m.Count)
	}
	r, s := e.rates, e.size
	if r.trend > 0 {
		add("lambda %s/s over 2 s, more than 2 standard errors above %s/s over 10 s: + trend %s/s x start = %s/s", short(r.short), short(r.long), short(r.trend), short(r.planned))
	}
	over := "over 10 s"
	if r.trend > 0 {
		over = "planned"
	}
	line := fmt.Sprintf("lambda %s/s %s x E[T] %s = %s busy", short(r.planned), over, seconds(m.Mean), short(s.busy))
	if s.count > 0 && !(s.capped && s.misses >= 1) {
		line += fmt.Sprintf("; c=%d%s: P(wait) %s; P(T+W > %s) %s", s.count, e.slots(s.count), short(s.wait), limit, percent(s.misses))
		if allowed := 1 - c.Objective.Quantile; s.misses <= allowed {
			line += " <= " + percent(allowed)
		} else {
			line += " > " + percent(allowed)
		}
		if s.count > 1 && !math.IsNaN(s.fewer) {
			line += fmt.Sprintf("; c=%d: %s", s.count-1, percent(s.fewer))
		} else if s.count > 1 {
			line += fmt.Sprintf("; c=%d: not stable", s.count-1)
		}
	}
	add("%s", line)
	allowed := 1 - c.Objective.Quantile
	switch {
	case s.capped:
		add("max %d is too few for the objective", c.Max)
	case s.unreachable && !e.assumed:
		add("no count meets %s: %s of T alone is above it; %s, where at most %s have to wait", c.Objective, percent(s.late), instances(s.count), percent(allowed/2))
	case s.settled && s.misses > allowed:
		add("more than %s would not help: at most %s have to wait", instances(s.count), percent(allowed/2))
	}
	e.pressureSteps(add)
	if e.bounded {
		add("not more than %s while E[T] is assumed: so many requests are here or came in the last second", instances(e.most))
	}
	if e.held > e.need {
		add("hold: %d were needed within the last %s = max(30 s, 6 x start %s%s)", e.held, seconds(e.hold.Seconds()), seconds(e.start), assumed(e.assumedStart))
	}
}

func (e explanation) pressureSteps(add func(string, ...any)) {
	p, queued := e.pressure, waiting(e.o, e.config.Concurrency)
	if queued == 0 {
		return
	}
	half := seconds(e.config.Objective.Limit.Seconds() / 2)
	switch {
	case math.IsInf(p.wait, 1):
		add("queue: %d waiting and no instance ready", queued)
	case p.count == 0:
		add("queue: %d waiting / %d ready slots x E[T] = wait %s <= half the objective %s", queued, e.o.Ready*e.config.Concurrency, seconds(p.wait), half)
		return
	default:
		add("queue: %d waiting / %d ready slots x E[T] = wait %s > half the objective %s", queued, e.o.Ready*e.config.Concurrency, seconds(p.wait), half)
	}
	add("queue: %s will wait after a start of %s%s; worked off in %s: %d needed", short(p.left), seconds(e.start), assumed(e.assumedStart), seconds(p.drain), p.count)
}

func (e explanation) kpaSteps(add func(string, ...any)) {
	k, c := e.kpa, e.config
	unit, total := "requests at once", k.target/c.Utilization
	if k.rps {
		unit = "requests/s"
	}
	add("target %s %s x utilization %s = %s for one instance", short(total), unit, percent(c.Utilization), short(k.target))
	add("%s %s over %s / %s = %s", short(k.stable), unit, seconds(k.window.Seconds()), short(k.target), short(k.stable/k.target))
	add("%s %s over %s / %s = %s; panic from %s x ready", short(k.panic), unit, seconds(k.panicWindow().Seconds()), short(k.target), short(k.panic/k.target), short(panicThreshold))
	if k.panicking {
		add("panic for %s: only upward, most was %d", seconds(e.o.Now.Sub(k.panicTime).Seconds()), k.most)
	}
	add("at most halved each %s: %d", seconds(kpaTick.Seconds()), k.count)
}

// slots says what the count is in places for requests, where they differ.
func (e explanation) slots(n int) string {
	if e.config.Concurrency == 1 {
		return ""
	}
	return fmt.Sprintf(" (%d slots)", n*e.config.Concurrency)
}

func assumed(yes bool) string {
	if yes {
		return " (assumed)"
	}
	return ""
}

func instances(n int) string { return plural(n, "instance") }
func requests(n int) string  { return plural(n, "request") }

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// short has three digits and no exponent in the usual range.
func short(v float64) string {
	switch a := math.Abs(v); {
	case a != 0 && (a < 0.001 || a >= 1e7):
		return fmt.Sprintf("%.2g", v)
	case a >= 100:
		return fmt.Sprintf("%.0f", v)
	default:
		return fmt.Sprintf("%.3g", v)
	}
}

func percent(p float64) string { return short(p*100) + " %" }

// seconds has its unit: ms below a second, else s.
func seconds(v float64) string {
	if math.Abs(v) < 1 {
		return short(v*1000) + " ms"
	}
	return short(v) + " s"
}
