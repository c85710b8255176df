// Package pause spaces the tries of something that failed. Pauses grow, so that nobody is
// asked without end, and vary, so that processes that lost the same server do not all come
// back to it in one instant.
package pause

import (
	"context"
	"time"

	"github.com/cenkalti/backoff/v5"
)

// variation is the part of itself by which a pause may be shorter or longer.
const variation = 0.5

// Growing are pauses, each about twice as long as the one before. It is for one goroutine.
type Growing struct{ b backoff.ExponentialBackOff }

// Between returns pauses that begin at about first, and are never longer than longest.
func Between(first, longest time.Duration) *Growing {
	g := &Growing{backoff.ExponentialBackOff{
		InitialInterval: first, MaxInterval: time.Duration(float64(longest) / (1 + variation)), Multiplier: 2, RandomizationFactor: variation,
	}}
	g.b.InitialInterval = min(g.b.InitialInterval, g.b.MaxInterval)
	g.Reset()
	return g
}

// Next is the next pause.
func (g *Growing) Next() time.Duration { return g.b.NextBackOff() }

// Reset begins again with the first pause: something worked.
func (g *Growing) Reset() { g.b.Reset() }

// Wait waits for the next pause. It is false when ctx ends before.
func (g *Growing) Wait(ctx context.Context) bool {
	t := time.NewTimer(g.Next())
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
