package ratelimit

import (
	"context"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/penstock-gateway/penstock/internal/pause"
	"github.com/penstock-gateway/penstock/internal/signal"
)

const (
	// tripAfter is how many calls in a row must fail: one may be a connection that
	// was closed while it was idle.
	tripAfter = 3
	// firstProbe and maxProbe bound the pause between two probes.
	firstProbe = 50 * time.Millisecond
	maxProbe   = time.Second
)

// breaker keeps requests away from a backend that fails: closed = asked, open =
// not asked. While it is open, no request pays for finding out whether the
// backend is back: watch does, by a probe.
type breaker struct {
	probe    func(context.Context) error
	log      *slog.Logger
	failures atomic.Int32 // in a row
	open     atomic.Bool
	opened   signal.Wake // wakes watch
}

func newBreaker(probe func(context.Context) error, log *slog.Logger) *breaker {
	return &breaker{probe: probe, log: log, opened: signal.NewWake()}
}

func (b *breaker) closed() bool { return !b.open.Load() }

func (b *breaker) succeeded() {
	if b.failures.Load() != 0 {
		b.failures.Store(0)
	}
}

func (b *breaker) failed(err error) {
	if b.failures.Add(1) < tripAfter || b.open.Swap(true) {
		return
	}
	b.log.Warn("the counters' backend fails: failure policies decide until it answers", "error", err)
	b.opened.Set()
}

// watch probes whenever the breaker is open, and once at the start, until ctx
// ends.
func (b *breaker) watch(ctx context.Context) {
	if err := b.probe(ctx); err != nil && ctx.Err() == nil {
		b.failures.Store(tripAfter - 1)
		b.failed(err)
	}
	for {
		select {
		case <-b.opened:
		case <-ctx.Done():
			return
		}
		if !b.recover(ctx) {
			return
		}
	}
}

func (b *breaker) recover(ctx context.Context) bool {
	since := time.Now()
	for again := pause.Between(firstProbe, maxProbe); again.Wait(ctx); {
		if b.probe(ctx) == nil {
			b.failures.Store(0)
			b.open.Store(false)
			b.log.Info("the counters' backend answers again", "after", time.Since(since).Round(time.Millisecond).String())
			return true
		}
	}
	return false
}
