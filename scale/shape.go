package scale

import "math"

// shape is a distribution of T with given mean, variance and skewness: Pearson's
// third type, a gamma distribution that is moved along the axis. It holds the
// normal (skewness 0), the exponential (skewness 2, deviation = mean) and all
// gamma distributions, and measured times of handlers lie between.
//
// Of the shapes that were compared (TestShapes), a normal distribution missed the
// long right tails, a lognormal one with two moments overstated the tails of sums
// of many parts, and only three moments fitted both.
type shape struct {
	m Moments
	// alpha and beta are form and scale of the gamma part, start where it begins;
	// alpha 0: normal.
	alpha, beta, start float64
}

// Skewness below this is that of a normal distribution for our purpose; that above
// maxSkew comes from single outliers, of which a sample says nothing.
const (
	minSkew = 0.05
	maxSkew = 6
)

func newShape(m Moments) shape {
	s := shape{m: m}
	sd := m.SD()
	g := min(m.Skew, maxSkew)
	if sd == 0 || !(g > minSkew) {
		// A negative skewness has the shorter tail on the right: the normal one is
		// on the safe side.
		return s
	}
	s.alpha = 4 / (g * g)
	s.beta = sd * g / 2
	s.start = m.Mean - 2*sd/g
	return s
}

// above is P(T > x).
func (s shape) above(x float64) float64 {
	if x <= 0 {
		return 1
	}
	sd := s.m.SD()
	switch {
	case sd == 0 || math.IsInf(s.m.Mean/sd, 0):
		if s.m.Mean > x {
			return 1
		}
		return 0
	case s.alpha == 0:
		return normalCDF((s.m.Mean - x) / sd)
	case x <= s.start:
		return 1
	}
	return gammaAbove(s.alpha, (x-s.start)/s.beta)
}

// quantile is the smallest x with P(T <= x) >= q, by bisection.
func (s shape) quantile(q float64) float64 {
	low, high := 0.0, s.m.Mean+s.m.SD()
	for range 200 {
		if s.above(high) <= 1-q {
			break
		}
		low, high = high, 2*high
	}
	for range 60 {
		if mid := (low + high) / 2; s.above(mid) > 1-q {
			low = mid
		} else {
			high = mid
		}
	}
	return high
}

// bins is how finely T is cut for the integral over its density. Twice as many
// change a probability by less than 1 % of itself.
const bins = 100

// cut is T's distribution up to a limit: late is P(T > limit), mass[i] the
// probability that T lies in the i-th of bins equal parts.
type cut struct {
	limit, late float64
	mass        [bins]float64
}

func (s shape) cut(limit float64) *cut {
	c := &cut{limit: limit, late: s.above(limit)}
	over := c.late
	for i := bins - 1; i >= 0; i-- {
		lower := s.above(limit * float64(i) / bins)
		c.mass[i] = max(0, lower-over)
		over = lower
	}
	return c
}

// misses is P(W + T > limit) = P(T > limit) + the integral of P(W > limit - t) over
// T's density up to the limit.
func (c *cut) misses(q queue) float64 {
	step := q.decay * c.limit / bins
	// The parts are of equal width, so the exponentials are powers of one.
	factor, tail := math.Exp(-step), math.Exp(-step/2)
	sum := 0.0
	for i := bins - 1; i >= 0; i-- {
		sum += c.mass[i] * tail
		tail *= factor
	}
	return min(1, c.late+q.wait*sum)
}

// gammaAbove is the regularised upper incomplete gamma function Q(a, x), by its
// series below a+1 and its continued fraction above (Abramowitz and Stegun 6.5.29
// and 6.5.31, the latter by Lentz's method).
func gammaAbove(a, x float64) float64 {
	if x <= 0 {
		return 1
	}
	lg, _ := math.Lgamma(a)
	front := math.Exp(a*math.Log(x) - x - lg)
	if x < a+1 {
		sum, term := 1/a, 1/a
		for n := 1.0; n < 10_000; n++ {
			term *= x / (a + n)
			sum += term
			if term < sum*1e-12 {
				break
			}
		}
		return min(1, max(0, 1-front*sum))
	}
	const tiny = 1e-300
	b := x + 1 - a
	c, d := 1/tiny, 1/b
	h := d
	for n := 1.0; n < 10_000; n++ {
		an := -n * (n - a)
		b += 2
		d = an*d + b
		if math.Abs(d) < tiny {
			d = tiny
		}
		c = b + an/c
		if math.Abs(c) < tiny {
			c = tiny
		}
		d = 1 / d
		h *= d * c
		if math.Abs(d*c-1) < 1e-12 {
			break
		}
	}
	return min(1, max(0, front*h))
}
