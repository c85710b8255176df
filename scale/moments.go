package scale

import (
	"math"
	"time"
)

// memory is how many requests the moments look back: each one before counts
// 1/memory less. So many give an exponential time's mean within 2 %, which is what
// counts where many instances are nearly busy, and a changed function is known again
// after some thousand requests.
const memory = 1000

// Moments describe a time in seconds.
type Moments struct {
	// Count is the number of values, never decayed; 0: nothing is known.
	Count float64
	// Mean, in seconds.
	Mean float64
	// Var is the variance, in seconds squared.
	Var float64
	// Skew is the third central moment by Var^1.5: 0 for a symmetric time.
	Skew float64
}

// SD is the standard deviation, in seconds.
func (m Moments) SD() float64 { return math.Sqrt(max(0, m.Var)) }

// known reports whether there is something to reckon with: times between a nanosecond
// and eleven days, which no NaN and no infinity is.
func (m Moments) known() bool {
	return m.Count > 0 && m.Mean >= 1e-9 && m.Mean <= 1e6 && m.Var >= 0 && m.Var <= 1e12 && !math.IsNaN(m.Skew)
}

// Parts are the two parts of T = t + r.
type Parts struct {
	// Handler is t: the time in the handler. Rest is r = T - t.
	Handler, Rest Moments
	// Cov is their covariance, in seconds squared.
	Cov float64
}

// Sums keeps the moments of one time, later values counting more. The zero Sums is
// ready for use. It is not safe for concurrent use.
type Sums struct {
	n          float64
	weight     float64
	m1, m2, m3 float64 // mean, and central second and third sums by weight
}

// Add counts one value, in seconds.
func (s *Sums) Add(x float64) {
	if math.IsNaN(x) || math.IsInf(x, 0) {
		return
	}
	s.n++
	w := s.weight*(1-1.0/memory) + 1
	// West's update of weighted central moments (1979), with the old weight decayed.
	a := 1 / w
	d := x - s.m1
	m2, m3 := s.m2, s.m3
	s.m1 += a * d
	s.m3 = (1-a)*m3 - 3*a*(1-a)*d*m2 + a*(1-a)*(1-2*a)*d*d*d
	s.m2 = (1-a)*m2 + a*(1-a)*d*d
	s.weight = w
}

// Moments returns what is known.
func (s *Sums) Moments() Moments {
	m := Moments{Count: s.n, Mean: s.m1, Var: max(0, s.m2)}
	if s.n > 1 {
		// The unbiased form, for few values.
		m.Var *= s.weight / max(s.weight-1, 0.5)
	}
	if m.Var > 0 && s.m2 > 0 {
		m.Skew = s.m3 / (s.m2 * math.Sqrt(s.m2))
	}
	return m
}

// Split keeps the moments of T = t + r, of t and of r, with their covariance, later
// requests counting more. The zero Split is ready for use. It is not safe for
// concurrent use.
type Split struct {
	total, handler, rest Sums
}

// Add counts one request that took total, of which t in the handler.
func (s *Split) Add(t, total time.Duration) {
	t = min(max(0, t), max(0, total))
	s.total.Add(max(0, total).Seconds())
	s.handler.Add(t.Seconds())
	s.rest.Add((max(0, total) - t).Seconds())
}

// T is the whole time of a request.
func (s *Split) T() Moments { return s.total.Moments() }

// S is the time in the handler, t.
func (s *Split) S() Moments { return s.handler.Moments() }

// R is the rest, r = T - t.
func (s *Split) R() Moments { return s.rest.Moments() }

// Cov is the covariance of t and r, in seconds squared, from
// Var[T] = Var[t] + Var[r] + 2 Cov[t,r].
func (s *Split) Cov() float64 { return (s.T().Var - s.S().Var - s.R().Var) / 2 }

// Parts are t and r as an Observation takes them.
func (s *Split) Parts() Parts { return Parts{Handler: s.S(), Rest: s.R(), Cov: s.Cov()} }
