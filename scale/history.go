package scale

import (
	"sort"
	"time"
)

// point is what the counters said at one moment.
type point struct {
	at       time.Time
	arrivals float64
	busy     float64
}

// history keeps the counters of the last while, so that rates can be taken over any
// window of it.
type history struct {
	keep, spacing time.Duration
	points        []point
	now           point
}

// add notes the counters. Points nearer than the spacing replace each other: a
// queue under load is looked at thousands of times a second.
func (h *history) add(p point) {
	if n := len(h.points); n > 0 {
		last := h.points[n-1]
		// Counters and clocks that go back would give negative rates.
		p.arrivals, p.busy = max(p.arrivals, h.now.arrivals), max(p.busy, h.now.busy)
		if p.at.Before(h.now.at) {
			p.at = h.now.at
		}
		h.now = p
		if p.at.Sub(last.at) < h.spacing {
			return
		}
	}
	h.now = p
	h.points = append(h.points, p)
	// One point beyond the window stays, to reckon from.
	drop := 0
	for drop+1 < len(h.points) && p.at.Sub(h.points[drop+1].at) >= h.keep {
		drop++
	}
	if drop > 0 {
		h.points = append(h.points[:0], h.points[drop:]...)
	}
}

// before is what the counters were at a moment: between two points on the line
// between them, unless nobody looked for long, when the change is taken to have
// come just before somebody did.
func (h *history) before(at time.Time) point {
	i := sort.Search(len(h.points), func(i int) bool { return h.points[i].at.After(at) })
	if i == 0 {
		return h.points[0]
	}
	left, right := h.points[i-1], h.now
	if i < len(h.points) {
		right = h.points[i]
	}
	gap := right.at.Sub(left.at)
	if gap <= 0 || gap > 4*h.spacing+time.Second {
		return left
	}
	f := float64(at.Sub(left.at)) / float64(gap)
	return point{at: at, arrivals: left.arrivals + f*(right.arrivals-left.arrivals), busy: left.busy + f*(right.busy-left.busy)}
}

// over are the changes of the counters within the window before now, and its length
// in seconds, which is shorter when less is known, but never below least.
func (h *history) over(window, least time.Duration) (arrivals, busy, seconds float64) {
	if len(h.points) == 0 {
		return 0, 0, least.Seconds()
	}
	from := h.now.at.Add(-window)
	p := h.before(from)
	known := min(window, max(least, h.now.at.Sub(h.points[0].at)))
	return h.now.arrivals - p.arrivals, h.now.busy - p.busy, known.Seconds()
}

// peaks keeps the highest value of the last while: a queue of falling values.
type peaks struct {
	at    []time.Time
	value []int
}

func (p *peaks) add(at time.Time, v int) {
	n := len(p.value)
	for n > 0 && p.value[n-1] <= v {
		n--
	}
	p.at, p.value = append(p.at[:n], at), append(p.value[:n], v)
}

// max is the highest value since a moment; 0 when there is none.
func (p *peaks) max(since time.Time) int {
	drop := 0
	for drop < len(p.at) && p.at[drop].Before(since) {
		drop++
	}
	p.at, p.value = append(p.at[:0], p.at[drop:]...), append(p.value[:0], p.value[drop:]...)
	if len(p.value) == 0 {
		return 0
	}
	return p.value[0]
}
