package scale

import (
	"math"
	"time"
)

const (
	shortWindow, longWindow = 2 * time.Second, 10 * time.Second
	// leastKnown bounds rates from below in time: the first request is not a rate.
	leastKnown = time.Second
	// leastCount is how many requests are to be measured before T is known.
	leastCount = 5
	// defaultStart is what a start is taken to need until one was seen.
	defaultStart = 1.0
)

// rates are what is known of the arrivals, per second.
type rates struct {
	short, long float64
	// trend is what is added for the rise that is seen, planned what is sized for.
	trend, planned float64
}

// newRates plans for the rate over the long window; when that over the short one
// is more than two standard errors above it, for the short one and what the rise
// adds until an instance that is started now is ready, at most as much again.
func newRates(h *history, start float64) rates {
	n2, _, s2 := h.over(shortWindow, leastKnown)
	n10, _, s10 := h.over(longWindow, leastKnown)
	r := rates{short: n2 / s2, long: n10 / s10}
	r.planned = r.long
	// The variance of a rate of Poisson arrivals is the rate by the time.
	if rise := r.short - r.long; rise > 2*math.Sqrt(r.long/s10+r.short/s2) {
		// The middles of the windows are so far apart.
		if apart := (s10 - s2) / 2; apart > 0 {
			r.trend = min(rise/apart*start, r.short)
		}
		r.planned = r.short + r.trend
	}
	return r
}

// sizing is the count for a rate, and what is to be expected with it.
type sizing struct {
	count        int
	busy         float64
	wait, misses float64
	// fewer is misses with one less; NaN when that is not stable.
	fewer float64
	// late is P(T > limit): what no count mends.
	late        float64
	unreachable bool
	// capped says that Max is too few.
	capped bool
	// settled says that the count is where waiting is rare, not where the objective
	// is met.
	settled bool
}

// Size is the smallest count that keeps the configured objective at a rate of
// requests, per second, once all of it is ready; at most Max.
func Size(c Config, rate float64, service Moments) int {
	c = c.withDefaults()
	return c.size(rate, service, newShape(service).cut(c.Objective.Limit.Seconds())).count
}

// size finds the smallest count with P(W + T > limit) <= 1 - quantile. Where T alone
// is longer, more instances only shorten the wait: then, or when that comes first, it
// is the smallest at which half of 1 - quantile have to wait.
func (c Config) size(lambda float64, service Moments, t *cut) sizing {
	allowed := 1 - c.Objective.Quantile
	s := sizing{busy: lambda * service.Mean, late: t.late, unreachable: t.late > allowed, fewer: math.NaN()}
	if !(s.busy > 0) {
		return s
	}
	s.misses, s.wait = 1, 1
	if s.busy >= float64(c.Max*c.Concurrency) {
		s.count, s.capped = c.Max, true
		return s
	}
	cs2 := service.Var / (service.Mean * service.Mean)
	blocked, slot := 1.0, 0
	for n := 1; n <= c.Max; n++ {
		slots := n * c.Concurrency
		var wait float64
		if slots <= exactSlots {
			for ; slot < slots; slot++ {
				blocked = s.busy * blocked / (float64(slot+1) + s.busy*blocked)
			}
			if float64(slots) <= s.busy {
				continue
			}
			wait = waitOf(blocked, float64(slots), s.busy)
		} else if wait = erlangC(slots, s.busy); float64(slots) <= s.busy {
			continue
		}
		if s.count > 0 {
			s.fewer = s.misses
		}
		s.count, s.wait = n, wait
		s.misses = t.misses(queue{wait: wait, decay: (float64(slots) - s.busy) / service.Mean * 2 / (1 + cs2)})
		s.settled = wait <= allowed/2
		if s.misses <= allowed || s.settled {
			return s
		}
	}
	s.capped = true
	return s
}

// pressure is what the queue demands.
type pressure struct {
	// wait is how long the last of the queue will wait when nothing is started, in
	// seconds; +Inf without a ready instance.
	wait float64
	// left is what will be queued when an instance that is started now is ready.
	left float64
	// drain is how long that may take to be worked off, in seconds.
	drain float64
	// count is the number of instances for it; 0: no pressure.
	count int
}

// pressure starts instances when a wait on the ready ones takes more than half of
// the objective. What waits then, and what comes, is to be worked off in the time of
// a start or half the objective, whichever is longer: quicker than that, and instances
// would be started for a moment only.
func (c Config) pressure(o Observation, lambda float64, service Moments, start float64) pressure {
	queued := waiting(o, c.Concurrency)
	if queued <= 0 {
		return pressure{}
	}
	half := c.Objective.Limit.Seconds() / 2
	slots := float64(o.Ready * c.Concurrency)
	p := pressure{wait: math.Inf(1), drain: max(start, half)}
	if slots > 0 {
		p.wait = float64(queued) * service.Mean / slots
	}
	if p.wait <= half {
		return p
	}
	p.left = max(0, float64(queued)+(lambda-slots/service.Mean)*start)
	if slots == 0 {
		p.left = float64(queued) + lambda*start
	}
	each := float64(c.Concurrency)
	want := (p.left*service.Mean/p.drain + lambda*service.Mean) / each
	// Never more than one slot for each request that there can be.
	most := (float64(o.InFlight+o.Queued) + lambda*start) / each
	p.count = count(min(want, most), c.Max)
	return p
}

// waiting are the requests that wait: for an instance, and, where proxies send to
// instances themselves, in them beyond their slots.
func waiting(o Observation, concurrency int) int {
	if o.Ready == 0 {
		return o.Queued // those in flight are in instances that drain
	}
	return o.Queued + max(0, o.InFlight-o.Ready*concurrency)
}

// count rounds up, within 1 and a bound that also catches what is not a number.
func count(x float64, bound int) int {
	if !(x < float64(bound)) {
		return bound
	}
	return max(1, int(math.Ceil(x)))
}
