package functions

import (
	"sync"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// unlisting knows what is waiting for all proxies to have been told that it is
// gone. It waits for as long as that takes: while the control plane is away a proxy
// may go on using what it knows, so nothing of that ends.
type unlisting struct {
	mu sync.Mutex
	// waiting has, for each of them, the first state of the stream that told of its
	// leaving; 0: it has not been told.
	waiting map[chan struct{}]uint64
	// acked is the newest state of the stream that all proxies have.
	acked uint64
	over  bool
}

// unlist returns a channel that is closed when no proxy knows of what leaves now.
// The state must say so from now on. The caller holds the manager's mu.
func (m *manager) unlist() <-chan struct{} {
	u := &m.unlisting
	u.mu.Lock()
	defer u.mu.Unlock()
	c := make(chan struct{})
	if u.over {
		close(c)
		return c
	}
	if u.waiting == nil {
		u.waiting = map[chan struct{}]uint64{}
	}
	u.waiting[c] = 0
	return c
}

// begin starts a stream: its states are counted from 1.
func (u *unlisting) begin() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.acked = 0
	for c := range u.waiting {
		u.waiting[c] = 0
	}
}

// state takes the state, with what it is the first to tell the leaving of.
func (u *unlisting) state(take func() *pb.RunnerState) (*pb.RunnerState, []chan struct{}) {
	u.mu.Lock()
	var fresh []chan struct{}
	for c, s := range u.waiting {
		if s == 0 {
			fresh = append(fresh, c)
		}
	}
	u.mu.Unlock()
	return take(), fresh // after these were noted, so it tells of all of them
}

// told says with which state that went out. It may be one that was sent, and
// acknowledged, before: what left while the state was taken was in it already.
func (u *unlisting) told(fresh []chan struct{}, sequence uint64) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, c := range fresh {
		if _, there := u.waiting[c]; there {
			u.waiting[c] = sequence
		}
	}
	u.release()
}

// acknowledged says that all proxies have what follows from a state.
func (u *unlisting) acknowledged(sequence uint64) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.acked = max(u.acked, sequence)
	u.release()
}

// release ends the waiting for what all proxies have. The caller holds mu.
func (u *unlisting) release() {
	for c, s := range u.waiting {
		if s > 0 && s <= u.acked {
			close(c)
			delete(u.waiting, c)
		}
	}
}

// end waits for nobody any more.
func (u *unlisting) end() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.over = true
	for c := range u.waiting {
		close(c)
	}
	clear(u.waiting)
}
