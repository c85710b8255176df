// Package signal wakes goroutines without ever blocking the one that wakes them: Wake
// has one reader, Broadcast any number. Neither carries a value. A reader that wakes
// looks at the state itself, which the writer has changed before.
package signal

import "sync"

// Wake wakes the one goroutine that receives from it. Calls of Set that come before it
// receives are merged to one, and one that comes while it works is not lost.
type Wake chan struct{}

// NewWake returns a Wake that is not set.
func NewWake() Wake { return make(Wake, 1) }

// Set wakes the reader. It never blocks.
func (w Wake) Set() {
	select {
	case w <- struct{}{}:
	default:
	}
}

// Broadcast wakes every goroutine that waits. The zero value is ready to use; it must
// not be copied.
type Broadcast struct {
	mu   sync.Mutex
	next chan struct{}
}

// Next returns a channel that is closed by the next Notify. A reader takes it before it
// looks at the state, so that no change between the look and the wait is lost.
func (b *Broadcast) Next() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.next == nil {
		b.next = make(chan struct{})
	}
	return b.next
}

// Notify closes the channels that Next has returned so far. It never blocks.
func (b *Broadcast) Notify() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.next != nil {
		close(b.next)
		b.next = nil
	}
}
