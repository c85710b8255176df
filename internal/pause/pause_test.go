package pause

import (
	"context"
	"testing"
	"testing/synctest"
	"time"
)

// TestGrowing has pauses grow to their bound, vary, and begin again.
func TestGrowing(t *testing.T) {
	const first, longest = 100 * time.Millisecond, 3 * time.Second
	firsts, lasts := map[time.Duration]bool{}, map[time.Duration]bool{}
	g := Between(first, longest)
	for range 200 {
		firsts[g.Next()] = true
		for range 8 {
			if d := g.Next(); d > longest || d <= 0 {
				t.Fatalf("a pause of %v", d)
			}
		}
		lasts[g.Next()] = true
		g.Reset()
	}
	for d := range firsts {
		if d < first/2 || d > first*3/2 {
			t.Errorf("a first pause of %v", d)
		}
	}
	for d := range lasts {
		if d < longest/3 {
			t.Errorf("a pause of %v after many", d)
		}
	}
	if len(firsts) < 100 || len(lasts) < 100 {
		t.Errorf("%d and %d different pauses of 200", len(firsts), len(lasts))
	}
	if d := Between(time.Second, time.Second).Next(); d > time.Second {
		t.Errorf("a pause of %v where a second is the longest", d)
	}
}

// TestWait waits for a pause, and not when there is nobody to wait for.
func TestWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		began := time.Now()
		if !Between(time.Hour, 2*time.Hour).Wait(ctx) || time.Since(began) < time.Hour/2 {
			t.Error("the pause was not waited for")
		}
		cancel()
		began = time.Now()
		if Between(time.Hour, time.Hour).Wait(ctx) || time.Since(began) != 0 {
			t.Error("a pause was waited for that nobody wants")
		}
	})
}
