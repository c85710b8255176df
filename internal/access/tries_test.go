package access

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"
)

// TestTries: a source that fails often is bounded, gets its attempts back with time,
// and is no matter of other sources.
func TestTries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tr := newTries(time.Now)
		for i := range triesBurst {
			if !tr.allowed("a") {
				t.Fatalf("attempt %d of a was not allowed", i)
			}
		}
		if tr.allowed("a") || !tr.allowed("b") {
			t.Error("want a to be bounded and b not")
		}
		time.Sleep(triesRefill)
		if !tr.allowed("a") || tr.allowed("a") {
			t.Error("want one more attempt of a after a refill")
		}
		for i := range 3 * maxSources {
			tr.allowed(fmt.Sprint(i))
		}
		if n := len(tr.sources); n > maxSources {
			t.Errorf("%d sources are remembered", n)
		}
	})
}
