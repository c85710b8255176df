package ratelimit

// A fixed window begins at each multiple of its length since the Unix epoch. It is
// easy to explain ("1000 a day, UTC") and lets twice the limit pass around a
// boundary; GCRA does not.

// windowAdvance moves a state to now. A count belongs to the window of now when it
// began in it. It may have begun later: the window's length grew, or the clock
// went back; then it is kept.
func (l limit) windowAdvance(s State, now int64) State {
	start := now - now%l.window
	if s.At < start {
		return State{At: start}
	}
	return State{At: start, Used: max(0, s.Used)}
}
