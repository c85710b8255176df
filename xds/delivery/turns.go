package delivery

import (
	"slices"
	"sync"
	"time"
)

// fullState is from how many resources on a first synchronisation is a big one.
const fullState = 100

// turns bounds how many streams have a big first synchronisation at one time, so
// that a thousand proxies that come with nothing do not take the memory and the
// time of those that have all and only wait for a change. Who came first is first;
// one that comes back with the versions that it has needs no turn.
type turns struct {
	mu      sync.Mutex
	free    int
	holders map[*stream]struct{}
	queue   []*stream
}

// take takes a turn if there is one; else the stream is woken when it has one.
func (t *turns) take(st *stream) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if _, has := t.holders[st]; has {
		return true
	}
	if t.free > 0 && len(t.queue) == 0 {
		t.free--
		t.holders[st] = struct{}{}
		return true
	}
	if !slices.Contains(t.queue, st) {
		t.queue = append(t.queue, st)
	}
	return false
}

// leave gives a turn back, or the place in the queue. It may be called twice.
func (t *turns) leave(st *stream) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if i := slices.Index(t.queue, st); i >= 0 {
		t.queue = slices.Delete(t.queue, i, i+1)
		return
	}
	if _, has := t.holders[st]; !has {
		return
	}
	delete(t.holders, st)
	t.free++
	for t.free > 0 && len(t.queue) > 0 {
		next := t.queue[0]
		t.queue = slices.Delete(t.queue, 0, 1)
		t.free--
		t.holders[next] = struct{}{}
		next.wake.Set()
	}
}

// awaitTurn reports whether the stream has to wait for its turn to be synchronised.
// A turn ends when the proxy has all, or after SilentAfter: a slow one then goes
// on without, and holds nobody up. again is when that is. The caller holds the
// view's mu.
func (st *stream) awaitTurn(now time.Time) (wait bool, again time.Time) {
	if st.synced {
		return false, time.Time{}
	}
	n := st.proxy.Backlog()
	if n == 0 {
		if ok, _ := st.proxy.Serves(st.v.table.Revision(), now); ok {
			st.endTurn()
		}
		return false, time.Time{}
	}
	if st.granted.IsZero() {
		if n < fullState {
			return false, time.Time{}
		}
		if !st.s.turns.take(st) {
			return true, time.Time{}
		}
		st.granted = now
	}
	if again = st.granted.Add(st.s.opt.SilentAfter); now.Before(again) {
		return false, again
	}
	st.endTurn()
	return false, time.Time{}
}

func (st *stream) endTurn() {
	st.synced = true
	st.s.turns.leave(st)
}

// Waiting is how many proxies wait for their turn to be synchronised.
func (s *Server) Waiting() int {
	s.turns.mu.Lock()
	defer s.turns.mu.Unlock()
	return len(s.turns.queue)
}
