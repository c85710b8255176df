package ratelimit

import (
	"math"
	"math/bits"
	"time"
)

// State is the counter of one key: all that a backend keeps of it. Both algorithms
// use the same two integers, so that a limit whose numbers or algorithm change
// keeps its count. The zero State is a key that was never used.
//
// The functions on it are pure and exact: they know no clock, round in integers
// only, and redis.lua does the same steps on doubles without leaving the range
// in which those are exact (2^53).
type State struct {
	// At is a time in microseconds since the Unix epoch: for GCRA the beginning
	// of the busy period (or a later time, by whole windows); for a fixed window
	// its start.
	At int64
	// Used is what was taken since At, in requests.
	Used int64
}

// limit is a Spec in the units of the arithmetic.
type limit struct {
	requests int64 // each window
	window   int64 // µs
	burst    int64 // what fits at once
	fixed    bool
}

func (s Spec) limit() limit {
	return limit{
		requests: int64(s.Requests),
		window:   int64(s.Window / time.Microsecond),
		burst:    int64(s.Limit()),
		fixed:    s.Algorithm == FixedWindow,
	}
}

// advance brings a state to the time now: what has drained since is forgotten,
// where that can be done exactly.
func (l limit) advance(s State, now int64) State {
	if l.fixed {
		return l.windowAdvance(s, now)
	}
	return l.gcraAdvance(s, now)
}

// free returns how much can be taken now: 0 … burst. The state must be advanced
// to now.
func (l limit) free(s State, now int64) int64 {
	if l.fixed {
		return max(0, l.requests-s.Used)
	}
	return l.gcraFree(s, now)
}

// take adds cost. The state must be advanced to now.
func (l limit) take(s State, cost int64) State {
	s.Used += cost
	return s
}

// fits reports whether cost can be taken. A cost of 0 takes nothing and asks
// whether one request would fit.
func (l limit) fits(s State, now, cost int64) bool {
	return l.free(s, now) >= max(cost, 1)
}

// wait returns how many microseconds after now cost fits, if nothing else is taken
// until then; 0 when it fits now. For a cost that never fits it is the time until
// the counter is empty. The state must be advanced to now.
func (l limit) wait(s State, now, cost int64) int64 {
	cost = min(max(cost, 1), l.burst)
	if l.fits(s, now, cost) {
		return 0
	}
	if l.fixed {
		return s.At + l.window - now
	}
	return l.gcraWait(s, now, cost)
}

// effective returns the effective window, in microseconds, of the free quota: in
// that time no more than the free quota can be used without exceeding the rate
// (draft-ietf-httpapi-ratelimit-headers-11, sections 4.1.2 and 8.5). A fixed
// window has its own end. GCRA adds to the quota all the time: the time in which
// the free quota is used up at the limit's rate, and, when nothing is free, the
// time until something is. The state must be advanced to now.
func (l limit) effective(s State, now int64) int64 {
	if l.fixed {
		return s.At + l.window - now
	}
	if free := l.gcraFree(s, now); free > 0 {
		return mulDivUp(free, l.window, l.requests)
	}
	return l.gcraWait(s, now, 1)
}

// idle returns when the state says no more than the zero State does, in
// microseconds since the epoch; backends may then forget it.
func (l limit) idle(s State) int64 {
	if l.fixed {
		return saturatingAdd(s.At, l.window)
	}
	return saturatingAdd(s.At, mulDivUp(s.Used, l.window, l.requests))
}

// mulDiv returns a*b/c rounded down, for a, b >= 0 and c > 0; math.MaxInt64 when
// that does not fit.
func mulDiv(a, b, c int64) int64 {
	hi, lo := bits.Mul64(uint64(a), uint64(b))
	if hi >= uint64(c) {
		return math.MaxInt64
	}
	q, _ := bits.Div64(hi, lo, uint64(c))
	return int64(min(q, math.MaxInt64))
}

// mulDivUp is mulDiv rounded up.
func mulDivUp(a, b, c int64) int64 {
	hi, lo := bits.Mul64(uint64(a), uint64(b))
	if hi >= uint64(c) {
		return math.MaxInt64
	}
	q, r := bits.Div64(hi, lo, uint64(c))
	if r > 0 && q < math.MaxInt64 {
		q++
	}
	return int64(min(q, math.MaxInt64))
}

func saturatingAdd(a, b int64) int64 {
	if a > math.MaxInt64-b {
		return math.MaxInt64
	}
	return a + b
}
