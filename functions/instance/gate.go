package instance

import (
	"context"
	"sync/atomic"
	"time"
)

// gate lets a number of requests in at once, and has some more wait for a while.
type gate struct {
	slots   chan struct{}
	waiting atomic.Int64
	queue   int64
	patient time.Duration
}

func newGate(slots, queue int, patient time.Duration) *gate {
	return &gate{slots: make(chan struct{}, slots), queue: int64(queue), patient: patient}
}

// enter takes a slot, or waits for one in the queue, at most until dead.
func (g *gate) enter(ctx context.Context, dead <-chan struct{}) error {
	select {
	case g.slots <- struct{}{}:
		return nil
	default:
	}
	defer g.waiting.Add(-1)
	if g.waiting.Add(1) > g.queue {
		return RefusedQueueFull
	}
	timer := time.NewTimer(g.patient)
	defer timer.Stop()
	select {
	case g.slots <- struct{}{}:
		return nil
	case <-timer.C:
		return RefusedQueueTimeout
	case <-dead:
		return RefusedDead
	case <-ctx.Done():
		return ctx.Err()
	}
}

// try takes a slot if one is free.
func (g *gate) try() bool {
	select {
	case g.slots <- struct{}{}:
		return true
	default:
		return false
	}
}

func (g *gate) leave() { <-g.slots }
