package access

import (
	"sync"
	"time"
)

const (
	// A source may fail so often at once, and again after each refill.
	triesBurst  = 10
	triesRefill = time.Second
	// maxSources bounds what is remembered of sources.
	maxSources = 4096
)

// tries bounds failed attempts to be known, by source. It is asked only after the
// credentials that are looked up by their hash were found wrong, so it never keeps
// out who has a good one: a program that fails as fast as it can locks out nobody
// else on its address.
type tries struct {
	now func() time.Time

	mu      sync.Mutex
	sources map[string]*bucket
}

type bucket struct {
	left float64
	at   time.Time
}

func newTries(now func() time.Time) *tries {
	return &tries{now: now, sources: map[string]*bucket{}}
}

// allowed reports whether a source may fail once more, and counts it.
func (t *tries) allowed(source string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.now()
	b := t.sources[source]
	if b == nil {
		if len(t.sources) >= maxSources {
			t.forget(now)
		}
		b = &bucket{left: triesBurst, at: now}
		t.sources[source] = b
	}
	b.left = min(triesBurst, b.left+float64(now.Sub(b.at))/float64(triesRefill))
	b.at = now
	if b.left < 1 {
		return false
	}
	b.left--
	return true
}

// forget drops the sources that may fail as if they had never come, or else all.
func (t *tries) forget(now time.Time) {
	for source, b := range t.sources {
		if now.Sub(b.at) > triesBurst*triesRefill {
			delete(t.sources, source)
		}
	}
	if len(t.sources) >= maxSources {
		clear(t.sources)
	}
}
