package ratelimit

import (
	"container/list"
	"context"
	"hash/maphash"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// DefaultMaxKeys bounds the counters of a Memory when MemoryOptions.MaxKeys is
	// 0: some 100 MB at most.
	DefaultMaxKeys = 500_000
	shardCount     = 64
	// sweep is how many of the longest unused counters are looked at for expiry
	// when a counter is added.
	sweep = 2
)

// MemoryOptions configure a Memory.
type MemoryOptions struct {
	// MaxKeys bounds the number of counters; 0: DefaultMaxKeys. Beyond it the
	// longest unused ones are forgotten, so their limits begin anew.
	MaxKeys int
	// Now is the clock; nil: time.Now.
	Now func() time.Time
}

// Memory is a Backend for one machine: counters live in this process and are gone
// when it ends.
type Memory struct {
	now       func() time.Time
	seed      maphash.Seed
	perShard  int
	shards    [shardCount]shard
	evictions atomic.Uint64
}

type shard struct {
	mu      sync.Mutex
	entries map[string]*list.Element // of *entry
	lru     list.List                // most recently used first
}

type entry struct {
	key   string
	state State
	idle  int64 // µs since the epoch; then the state says nothing
}

// NewMemory returns an empty Memory.
func NewMemory(o MemoryOptions) *Memory {
	if o.MaxKeys <= 0 {
		o.MaxKeys = DefaultMaxKeys
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	m := &Memory{now: o.Now, seed: maphash.MakeSeed(), perShard: max(1, o.MaxKeys/shardCount)}
	for i := range m.shards {
		m.shards[i].entries = map[string]*list.Element{}
		m.shards[i].lru.Init()
	}
	return m
}

// Name implements Backend.
func (m *Memory) Name() string { return "memory" }

// Close implements Backend.
func (m *Memory) Close() error { return nil }

// Len returns the number of counters.
func (m *Memory) Len() int {
	n := 0
	for i := range m.shards {
		s := &m.shards[i]
		s.mu.Lock()
		n += len(s.entries)
		s.mu.Unlock()
	}
	return n
}

// Evictions returns how many counters were forgotten while they were in use.
func (m *Memory) Evictions() uint64 { return m.evictions.Load() }

// Decide implements Backend. It fails only when ctx has ended.
func (m *Memory) Decide(ctx context.Context, requests []Request) ([]Result, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	shardOf := make([]int, len(requests))
	for i, r := range requests {
		shardOf[i] = int(maphash.String(m.seed, r.Key) % shardCount)
	}
	// Always locked in the same order, so that two requests cannot wait for each
	// other.
	locks := slices.Compact(slices.Sorted(slices.Values(shardOf)))
	for _, i := range locks {
		m.shards[i].mu.Lock()
	}
	defer func() {
		for _, i := range locks {
			m.shards[i].mu.Unlock()
		}
	}()
	// The clock is read under the locks, so no counter sees it run backwards.
	now := m.now().UnixMicro()

	get := func(i int) State { return m.shards[shardOf[i]].get(requests[i].Key) }
	results, states, taken := decide(requests, now, get)
	for i, s := range states {
		if taken[i] {
			m.shards[shardOf[i]].put(m, requests[i].Key, s, requests[i].Spec.limit().idle(s), now)
		} else {
			m.shards[shardOf[i]].touch(requests[i].Key)
		}
	}
	return results, nil
}

// decide does one request: all take or none. It returns the results, the state of
// each limit after it, and which of them took something and must be stored. Two
// limits of one key see each other.
func decide(requests []Request, now int64, get func(i int) State) (results []Result, states []State, taken []bool) {
	n := len(requests)
	results, states, taken = make([]Result, n), make([]State, n), make([]bool, n)
	before := make([]State, n) // advanced, nothing taken
	refused := false
	for i, r := range requests {
		l := r.Spec.limit()
		s := get(i)
		before[i] = l.advance(s, now)
		for j := i - 1; j >= 0; j-- {
			if requests[j].Key == r.Key {
				s = states[j]
				break
			}
		}
		states[i] = l.advance(s, now)
		results[i].Allowed = l.fits(states[i], now, int64(r.Cost))
		if results[i].Allowed {
			states[i] = l.take(states[i], int64(r.Cost))
			taken[i] = r.Cost > 0
		} else if !r.Spec.Shadow {
			refused = true
		}
	}
	if refused {
		states = before
		clear(taken)
	}
	for i, r := range requests {
		results[i] = r.Spec.limit().result(states[i], now, r.Cost, results[i].Allowed)
	}
	return results, states, taken
}

func (s *shard) get(key string) State {
	if e, ok := s.entries[key]; ok {
		return e.Value.(*entry).state
	}
	return State{}
}

func (s *shard) touch(key string) {
	if e, ok := s.entries[key]; ok {
		s.lru.MoveToFront(e)
	}
}

// put stores a state and makes room.
func (s *shard) put(m *Memory, key string, state State, idle, now int64) {
	if e, ok := s.entries[key]; ok {
		v := e.Value.(*entry)
		v.state, v.idle = state, idle
		s.lru.MoveToFront(e)
		return
	}
	for range sweep {
		if last := s.lru.Back(); last != nil && last.Value.(*entry).idle <= now {
			s.remove(last)
		}
	}
	for len(s.entries) >= m.perShard {
		last := s.lru.Back()
		if last.Value.(*entry).idle > now {
			m.evictions.Add(1)
		}
		s.remove(last)
	}
	s.entries[key] = s.lru.PushFront(&entry{key: key, state: state, idle: idle})
}

func (s *shard) remove(e *list.Element) {
	delete(s.entries, e.Value.(*entry).key)
	s.lru.Remove(e)
}
