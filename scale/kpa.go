package scale

import (
	"math"
	"time"
)

// Knative's constants (serving, config/core/configmaps/autoscaler.yaml).
const (
	kpaTick        = 2 * time.Second
	panicPart      = 0.1 // of the window
	panicThreshold = 2.0
	maxScaleUp     = 1000.0
	maxScaleDown   = 2.0
)

// kpa is Knative's pod autoscaler: averages over a window and over a tenth of it;
// when the short one demands twice what there is, only upward until a window after.
// What waits for an instance counts as being in it.
type kpa struct {
	rps bool
	// target is for one instance, utilization included.
	target float64
	window time.Duration

	last      time.Time // of the last tick
	count     int
	panicking bool
	panicTime time.Time
	most      int // in this panic

	stable, panic float64 // averages
}

func newKPA(c Config) *kpa {
	k := &kpa{window: c.Window}
	switch {
	case c.TargetRPS > 0:
		k.rps, k.target = true, c.TargetRPS*c.Utilization
	case c.TargetConcurrency > 0:
		k.target = c.TargetConcurrency * c.Utilization
	default:
		k.target = float64(c.Concurrency) * c.Utilization
	}
	return k
}

func (k *kpa) panicWindow() time.Duration {
	return max(time.Second, time.Duration(float64(k.window)*panicPart))
}

func (k *kpa) average(h *history, window time.Duration) float64 {
	arrivals, busy, seconds := h.over(window, leastKnown)
	if k.rps {
		return arrivals / seconds
	}
	return busy / seconds
}

// decide is one evaluation, every two seconds, or at once when a request finds
// nothing (Knative's activator pokes the autoscaler then).
func (k *kpa) decide(o Observation, h *history, bound int) int {
	cold := o.Queued > 0 && o.Ready+o.Starting == 0
	if !k.last.IsZero() && o.Now.Sub(k.last) < kpaTick && !cold {
		return k.count
	}
	k.last = o.Now
	k.stable, k.panic = k.average(h, k.window), k.average(h, k.panicWindow())
	ready := float64(max(1, o.Ready))
	up := math.Ceil(maxScaleUp * ready)
	down := math.Floor(ready / maxScaleDown)
	limited := func(average float64) int {
		n := math.Ceil(average / k.target)
		if n = min(max(n, down), up); !(n < float64(bound)) {
			return bound
		}
		return int(n)
	}
	stable, panicked := limited(k.stable), limited(k.panic)
	over := k.panic/k.target/ready >= panicThreshold
	switch {
	case over && !k.panicking:
		k.panicking, k.panicTime, k.most = true, o.Now, 0
	case over:
		k.panicTime = o.Now
	case k.panicking && o.Now.Sub(k.panicTime) > k.window:
		k.panicking, k.most = false, 0
	}
	k.count = stable
	if k.panicking {
		k.most = max(k.most, panicked, stable)
		k.count = k.most
	}
	return k.count
}
