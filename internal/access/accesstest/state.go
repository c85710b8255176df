package accesstest

import (
	"context"
	"maps"
	"strings"
	"sync"
)

// State is run-time state in memory, for tests that have no store.
type State struct {
	mu      sync.Mutex
	values  map[string][]byte
	changed chan struct{} // closed at each change
}

// NewState makes an empty one.
func NewState() *State { return &State{values: map[string][]byte{}, changed: make(chan struct{})} }

func (s *State) change(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
	close(s.changed)
	s.changed = make(chan struct{})
}

// PutState implements access.State.
func (s *State) PutState(_ context.Context, key string, value []byte) error {
	s.change(func() { s.values[key] = value })
	return nil
}

// DeleteState implements access.State.
func (s *State) DeleteState(_ context.Context, key string) error {
	s.change(func() { delete(s.values, key) })
	return nil
}

// State implements access.State.
func (s *State) State(_ context.Context, prefix string) (map[string][]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := maps.Clone(s.values)
	maps.DeleteFunc(out, func(k string, _ []byte) bool { return !strings.HasPrefix(k, prefix) })
	return out, nil
}

// WatchState implements access.State.
func (s *State) WatchState(ctx context.Context, _ string) <-chan struct{} {
	out := make(chan struct{})
	go func() {
		defer close(out)
		now := func() chan struct{} {
			s.mu.Lock()
			defer s.mu.Unlock()
			return s.changed
		}
		for changed := now(); ; {
			select {
			case <-changed:
			case <-ctx.Done():
				return
			}
			changed = now() // before the signal, which covers all until then
			select {
			case out <- struct{}{}:
			case <-ctx.Done():
				return
			}
		}
	}()
	return out
}
