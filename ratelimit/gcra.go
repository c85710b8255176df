package ratelimit

// GCRA, the generic cell rate algorithm (ITU-T I.371, annex A), is usually kept as
// a theoretical arrival time: a request of cost c moves it by c*window/requests.
// That increment is not a whole number of microseconds, and rounding it changes high
// rates by a multiple. So the state is the beginning of the busy period and what
// was taken since: the theoretical arrival time is At + Used*window/requests, and
// all comparisons are exact in integers. Each window that passes within a busy
// period is exactly worth `requests`, so At moves on by whole windows and Used stays small.

// gcraAdvance moves a state to now.
func (l limit) gcraAdvance(s State, now int64) State {
	if s.At > now {
		// The clock went back: what was taken stays taken.
		s.At = now
	}
	if s.Used <= 0 {
		return State{At: now}
	}
	if passed := (now - s.At) / l.window; passed > 0 {
		// passed >= Used would drain all, as requests >= 1: the test keeps the
		// product small.
		if passed >= s.Used || passed*l.requests >= s.Used {
			return State{At: now}
		}
		s.At += passed * l.window
		s.Used -= passed * l.requests
	}
	if l.gcraDrained(s, now) >= s.Used {
		return State{At: now} // idle: the burst is whole again
	}
	return s
}

// gcraDrained is what the rate gave back since At; now-At is less than a window.
func (l limit) gcraDrained(s State, now int64) int64 {
	return mulDiv(now-s.At, l.requests, l.window)
}

func (l limit) gcraFree(s State, now int64) int64 {
	return min(max(0, l.burst-s.Used+l.gcraDrained(s, now)), l.burst)
}

// gcraWait returns how long it takes until cost is free.
func (l limit) gcraWait(s State, now, cost int64) int64 {
	need := s.Used + cost - l.burst // must have drained since At
	if need <= 0 {
		return 0
	}
	return max(0, mulDivUp(need, l.window, l.requests)-(now-s.At))
}
