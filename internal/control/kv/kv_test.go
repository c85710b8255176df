package kv

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/penstock-gateway/penstock/internal/signal"
)

var errStore = errors.New("deadline exceeded")

// TestRunTriesAgain: what fails is tried again with no other signal, ever more rarely,
// and the log tells of the row of failures once.
func TestRunTriesAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log strings.Builder
		signals, began := signal.NewWake(), time.Now()
		var calls []time.Duration
		failures := 12
		ctx, cancel := context.WithCancel(t.Context())
		go Run(ctx, signals, slog.New(slog.NewTextHandler(&log, nil)), "read what proxies refused", func(context.Context) error {
			calls = append(calls, time.Since(began))
			if len(calls) <= failures {
				return errStore
			}
			return nil
		})
		synctest.Wait()
		if len(calls) != 0 {
			t.Fatalf("%d calls before a signal", len(calls))
		}
		signals.Set()
		time.Sleep(time.Hour)
		synctest.Wait()
		if len(calls) != failures+1 {
			t.Fatalf("%d calls, want %d: %v", len(calls), failures+1, calls)
		}
		for i := range calls[1:] {
			if pause := calls[i+1] - calls[i]; pause < firstPause/2 || pause > longestPause*3/2 {
				t.Errorf("pause %d is %s", i, pause)
			}
		}
		signals.Set()
		synctest.Wait()
		if len(calls) != failures+2 {
			t.Errorf("a signal after the failures made %d calls, want 1", len(calls)-failures-1)
		}
		cancel()
		synctest.Wait()
		if n := strings.Count(log.String(), "level=WARN"); n != 1 || !strings.Contains(log.String(), "cannot read what proxies refused; tried again until it works") {
			t.Errorf("the log has %d warnings:\n%s", n, log.String())
		}
		if n := strings.Count(log.String(), "works again"); n != 1 {
			t.Errorf("the log tells %d times that it works again:\n%s", n, log.String())
		}
	})
}

// TestRunSignalCutsAPauseShort: the store that is back sends a signal, and then nobody
// has to wait.
func TestRunSignalCutsAPauseShort(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		signals, calls := signal.NewWake(), 0
		go Run(t.Context(), signals, slog.New(slog.DiscardHandler), "try", func(context.Context) error { calls++; return errStore })
		for want := range 3 {
			signals.Set()
			synctest.Wait()
			if calls != want+1 {
				t.Fatalf("%d calls after %d signals", calls, want+1)
			}
		}
	})
}

type watcher map[string]chan struct{}

func (w watcher) WatchState(_ context.Context, prefix string) <-chan struct{} { return w[prefix] }

// TestFollowEnds: with its context, in the middle of a pause, too, and with the watch.
func TestFollowEnds(t *testing.T) {
	for name, end := range map[string]func(cancel func(), watch chan struct{}){
		"context": func(cancel func(), _ chan struct{}) { cancel() },
		"watch":   func(_ func(), watch chan struct{}) { close(watch) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				watch := make(chan struct{}, 1)
				watch <- struct{}{}
				calls, ended := 0, make(chan struct{})
				go func() {
					defer close(ended)
					Follow(ctx, watcher{"runners/": watch}, "runners/", slog.New(slog.DiscardHandler), "runners", func(context.Context) error { calls++; return errStore })
				}()
				synctest.Wait()
				end(cancel, watch)
				<-ended
				if calls != 1 {
					t.Errorf("%d calls", calls)
				}
			})
		})
	}
}
