package signal

import (
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
)

func woken(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

func TestWakeMerges(t *testing.T) {
	w := NewWake()
	if woken(w) {
		t.Error("a new Wake is set")
	}
	w.Set()
	w.Set() // must not block
	if !woken(w) {
		t.Error("Set did not wake")
	}
	if woken(w) {
		t.Error("two Sets woke twice")
	}
	w.Set()
	if !woken(w) {
		t.Error("a Set after the reader had received is lost")
	}
}

func TestBroadcastWakesEveryWaiter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var b Broadcast
		b.Notify() // nobody waits: nothing to do, and nothing is kept for later
		var running sync.WaitGroup
		var n atomic.Int32
		for range 10 {
			next := b.Next()
			running.Go(func() {
				<-next
				n.Add(1)
			})
		}
		synctest.Wait()
		if n.Load() != 0 {
			t.Fatalf("%d of 10 woke before Notify", n.Load())
		}
		b.Notify()
		running.Wait()
		if n.Load() != 10 {
			t.Errorf("%d of 10 woke", n.Load())
		}
		if woken(b.Next()) {
			t.Error("a channel from after Notify is closed already")
		}
	})
}

// TestNoChangeIsLost has a reader follow a counter as the comment of Next says.
func TestNoChangeIsLost(t *testing.T) {
	var b Broadcast
	var state atomic.Int64
	const last = 10_000
	go func() {
		for i := range int64(last) {
			state.Store(i + 1)
			b.Notify()
		}
	}()
	for {
		next := b.Next()
		if state.Load() == last {
			return
		}
		<-next
	}
}
