package instance

import (
	"slices"
	"sync"
)

// maxUploads is how many bodies one instance reads at once.
const maxUploads = 1024

// uploads are the bodies that an instance reads. They share room; when there is
// none left, the sender that has been waited for longest loses its place, so that
// slow senders cannot keep others out.
type uploads struct {
	mu    sync.Mutex
	most  int64 // bytes
	count int   // bodies
	total int64
	held  map[*upload]int64
	order []*upload // from old to new
}

func (a *uploads) add(u *upload) {
	a.mu.Lock()
	if a.held == nil {
		a.held = map[*upload]int64{}
	}
	a.held[u] = 0
	a.order = append(a.order, u)
	full := len(a.order) > a.count
	a.mu.Unlock()
	if full {
		a.makeRoom(u)
	}
}

// grow counts n more bytes of a body, or fewer.
func (a *uploads) grow(u *upload, n int64) {
	a.mu.Lock()
	if _, ok := a.held[u]; !ok {
		a.mu.Unlock()
		return
	}
	a.held[u] += n
	a.total += n
	full := n > 0 && a.total > a.most
	a.mu.Unlock()
	if full {
		a.makeRoom(u)
	}
}

// makeRoom ends the oldest body whose sender is waited for, else the one that
// needs the room.
func (a *uploads) makeRoom(u *upload) {
	a.mu.Lock()
	order := slices.Clone(a.order)
	a.mu.Unlock()
	for _, o := range order {
		if o != u && o.evict() {
			return
		}
	}
	if !u.complete() {
		u.mu.Lock()
		fault := u.tooSlow("there is no room for more bodies")
		u.mu.Unlock()
		u.cut(fault)
	}
}

func (a *uploads) remove(u *upload) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.total -= a.held[u]
	delete(a.held, u)
	if at := slices.Index(a.order, u); at >= 0 {
		a.order = slices.Delete(a.order, at, at+1)
	}
}
