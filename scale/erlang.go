package scale

import "math"

// exactSlots is up to how many slots Erlang's recursion is run; above, the limit of
// Halfin and Whitt, within a tenth of it even where waiting is rare, costs nothing.
const exactSlots = 20_000

// erlangC is the probability that a request has to wait when busy slots are needed
// on average (the offered load, lambda x E[T]) and there are slots of them: Erlang's
// C formula for M/M/c. It is 1 when the slots do not suffice.
func erlangC(slots int, busy float64) float64 {
	c := float64(slots)
	switch {
	case busy <= 0:
		return 0
	case c <= busy:
		return 1
	case slots > exactSlots:
		// Halfin, Whitt: Heavy-traffic limits for queues with many exponential
		// servers (1981).
		beta := (c - busy) / math.Sqrt(c)
		return 1 / (1 + beta*normalCDF(beta)/normalDensity(beta))
	}
	blocked := 1.0 // Erlang B, by its recursion over the slots
	for i := 1; i <= slots; i++ {
		blocked = busy * blocked / (float64(i) + busy*blocked)
	}
	return waitOf(blocked, c, busy)
}

// waitOf turns Erlang's B into his C.
func waitOf(blocked, slots, busy float64) float64 {
	return blocked / (1 - busy/slots*(1-blocked))
}

// queue is M/G/c with the service time of a shape: all that is known of the wait.
// P(W > w) = wait x exp(-decay x w): exact for exponential service; for another variance
// the mean wait is that of M/M/c times (1 + cs^2)/2, cs^2 = Var/E^2 (Lee and Longton, 1959).
type queue struct {
	// wait is the probability to wait at all.
	wait float64
	// decay is the rate, per second, at which longer waits become rarer.
	decay float64
}

func normalCDF(x float64) float64     { return 0.5 * math.Erfc(-x/math.Sqrt2) }
func normalDensity(x float64) float64 { return math.Exp(-x*x/2) / math.Sqrt(2*math.Pi) }
