// Package kv follows what replicas share in the run-time state of the store. What has
// to be done after a change is tried until it works: the next change may never come,
// and until then this replica would go by what was before.
package kv

import (
	"context"
	"log/slog"
	"time"

	"github.com/cenkalti/backoff/v5"
)

const (
	// firstPause and longestPause are about how long is waited before another try. Both
	// vary by half, so that replicas do not come back to a store all at once.
	firstPause   = 200 * time.Millisecond
	longestPause = 5 * time.Second
)

// Watcher is what Follow needs of a store.Store.
type Watcher interface {
	WatchState(ctx context.Context, prefix string) <-chan struct{}
}

// Follow calls load at the beginning and after each change of the state below a prefix,
// until ctx ends. What names it in the log, as in "the runners of other replicas".
func Follow(ctx context.Context, w Watcher, prefix string, log *slog.Logger, what string, load func(context.Context) error) {
	Run(ctx, w.WatchState(ctx, prefix), log, "follow "+what, load)
}

// Run calls do after each signal, and again after a pause while it fails, until ctx or
// signals end. Signals that come while it works are merged. What continues "cannot" in
// the log, where the first failure of a row is told, and its end.
func Run(ctx context.Context, signals <-chan struct{}, log *slog.Logger, what string, do func(context.Context) error) {
	pause := NewBackoff()
	var again <-chan time.Time // nil: the last call worked
	for {
		select {
		case <-ctx.Done():
			return
		case _, more := <-signals:
			if !more {
				return
			}
		case <-again:
		}
		err := do(ctx)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			if again == nil {
				log.Warn("cannot "+what+"; tried again until it works", "error", err)
			}
			again = time.After(pause.NextBackOff())
		case again != nil:
			log.Info("works again: " + what)
			pause.Reset()
			again = nil
		}
	}
}

// NewBackoff returns the pauses between tries of something that the store failed.
func NewBackoff() *backoff.ExponentialBackOff {
	b := backoff.NewExponentialBackOff()
	b.InitialInterval, b.MaxInterval = firstPause, longestPause
	return b
}
