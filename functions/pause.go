package functions

import "time"

// Pauses between an end and the next start.
const (
	backoffMin = 100 * time.Millisecond
	backoffMax = 30 * time.Second
	// backoffProven is the longest pause of a version that has answered requests: it
	// can start, so what keeps it from that now may pass.
	backoffProven = time.Second
	// stableAfter is how long an instance must have been ready for its end to be no
	// failed start although it answered nothing.
	stableAfter = 10 * time.Second
)

// ending is what is known of the end of an instance.
type ending struct {
	// ready is for how long it was ready; 0 when it never was.
	ready time.Duration
	// answered: it answered a request.
	answered bool
	// replaced: it was ended on purpose, for a request that took too long.
	replaced bool
	// last: no other instance of the function serves.
	last bool
	// proven: this version has answered a request at some time.
	proven bool
}

// pauses says how long to wait before the next start. The waiting is for what cannot
// start, so that nothing spins: each failure in a row doubles it. What has served
// comes back at once, or after the shortest pause while others serve; that cannot
// spin, for each of its starts has answered a request.
type pauses struct {
	// failed is the last pause of a row of failed starts.
	failed time.Duration
}

// after is the pause after an end. It is a pure function of what has ended so far.
func (p *pauses) after(e ending) time.Duration {
	switch {
	case e.replaced || e.ready >= stableAfter, e.answered && e.last:
		p.failed = 0
		return 0
	case e.answered:
		p.failed = 0
		return backoffMin
	}
	longest := backoffMax
	if e.proven {
		longest = backoffProven
	}
	p.failed = min(max(2*p.failed, backoffMin), longest)
	return p.failed
}
