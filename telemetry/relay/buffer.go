package relay

import (
	"sync"

	"github.com/penstock-gateway/penstock/internal/signal"
)

// item is one acknowledged export request.
type item struct {
	seq   uint64
	bytes []byte // a serialized ExportTraceServiceRequest
	spans int
}

// itemOverhead is what an item costs besides its bytes.
const itemOverhead = 64

func (i item) cost() int64 { return int64(len(i.bytes)) + itemOverhead }

// buffer is a queue of bounded size in bytes that loses its oldest items.
type buffer struct {
	max int64

	mu    sync.Mutex
	items []item // oldest first; a ring would save little: items are few and large
	size  int64
	spans int
	next  uint64
	// filled has a value when something was added since it was last read.
	filled signal.Wake
}

func newBuffer(maxBytes int64) *buffer {
	return &buffer{max: maxBytes, filled: signal.NewWake()}
}

// push adds an item and returns how many spans were dropped for it, its own when
// it alone is too large.
func (b *buffer) push(bytes []byte, spans int) (dropped int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	it := item{seq: b.next, bytes: bytes, spans: spans}
	if it.cost() > b.max {
		return spans
	}
	b.next++
	for b.size+it.cost() > b.max {
		old := b.items[0]
		b.items[0] = item{}
		b.items = b.items[1:]
		b.size -= old.cost()
		b.spans -= old.spans
		dropped += old.spans
	}
	b.items = append(b.items, it)
	b.size += it.cost()
	b.spans += spans
	b.filled.Set()
	return dropped
}

// batch returns the oldest items up to maxBytes, at least one when there is one.
// They stay in the buffer until done is called with the last one's seq.
func (b *buffer) batch(maxBytes int) []item {
	b.mu.Lock()
	defer b.mu.Unlock()
	n, size := 0, 0
	for _, it := range b.items {
		if n > 0 && size+len(it.bytes) > maxBytes {
			break
		}
		n++
		size += len(it.bytes)
	}
	return append([]item(nil), b.items[:n]...)
}

// done removes all items up to seq that are still there, and returns their spans:
// some may have been dropped while they were on their way.
func (b *buffer) done(seq uint64) (spans int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	n := 0
	for n < len(b.items) && b.items[n].seq <= seq {
		b.size -= b.items[n].cost()
		spans += b.items[n].spans
		b.items[n] = item{}
		n++
	}
	b.items = b.items[n:]
	b.spans -= spans
	if len(b.items) == 0 {
		b.items = nil // lets go of the array
	}
	return spans
}

// state returns how much waits.
func (b *buffer) state() (requests, spans int, bytes int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.items), b.spans, b.size
}
