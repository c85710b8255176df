package fleet

import (
	"context"
	"encoding/binary"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/penstock-gateway/penstock/internal/signal"
	"github.com/penstock-gateway/penstock/xds"
)

const (
	// drainPatience is for how much longer than until it counts as silent (5 s) a
	// proxy that does not answer holds up the end of instances. One whose stream is
	// gone does not. An instance that ends then still waits for its connections to be
	// closed, at most for the function's timeout.
	drainPatience = 10 * time.Second
	// ackPause bounds how often it is looked who has acknowledged what.
	ackPause = 2 * time.Millisecond
)

// Acks follows how far the proxies of all replicas are with what came of the states
// of runners, so that a runner knows when nobody uses an instance any more. It only
// looks: nothing waits for it but the end of instances.
//
// Each replica looks at its own proxies. Of a runner that is connected to another
// one it knows the states by their values in the store, and says in its ReplicaState the
// newest that its proxies have.
type Acks struct {
	room *Room
	wake signal.Wake

	mu sync.Mutex
	// from is when acknowledgements begin to count.
	from    time.Time
	runners map[string]*progress
	heard   map[string]uint64
}

// progress is that of one runner, connected here or to another replica.
type progress struct {
	// published is the number of the last state that was made endpoints: its
	// sequence, or a count of our own for a runner that is elsewhere.
	published uint64
	// late are the functions whose endpoints changed and that some proxy here may not
	// have yet, with the first state that changed them.
	late map[string]uint64
	// here is the number of the newest state that all proxies here have.
	here uint64
	// saved are the states in the store, from old to new.
	saved []saved
	// told is what the runner has been told, whose stream wakes by tell; nil for one
	// that is elsewhere.
	told uint64
	tell signal.Wake
}

// saved is a state in the store: its stamp there, and its number.
type saved struct{ stamp, number uint64 }

func newAcks(f *Room) *Acks {
	return &Acks{room: f, wake: signal.NewWake(), runners: map[string]*progress{}, heard: map[string]uint64{}}
}

// CountFrom has no acknowledgement count before a time.
func (a *Acks) CountFrom(from time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.from = from
}

// From is when acknowledgements begin to count.
func (a *Acks) From() time.Time {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.from
}

// Begin starts to count the states of a runner that connected here. The channel has a
// signal when the runner is to be told something; see Acknowledged.
func (a *Acks) Begin(runner string) <-chan struct{} {
	a.mu.Lock()
	defer a.mu.Unlock()
	p := &progress{late: map[string]uint64{}, tell: signal.NewWake()}
	if old := a.runners[runner]; old != nil {
		for f := range old.late {
			p.late[f] = 1
		}
	}
	a.runners[runner] = p
	return p.tell
}

// End stops it.
func (a *Acks) End(runner string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.runners, runner)
}

// Published notes that a state of a runner that is connected here has been made
// endpoints, and of which functions it changed them.
func (a *Acks) Published(runner string, sequence uint64, changed []string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if p := a.runners[runner]; p != nil && p.tell != nil {
		p.publish(sequence, changed)
	}
	a.wake.Set()
}

// Followed notes the same of a runner that is connected to another replica, by the
// value in the store.
func (a *Acks) Followed(runner string, value []byte, changed []string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	p := a.runners[runner]
	if p == nil {
		p = &progress{late: map[string]uint64{}}
		a.runners[runner] = p
	}
	if p.tell != nil {
		return
	}
	p.publish(p.published+1, changed)
	p.saved = append(p.saved, saved{Stamp(value), p.published})
	a.wake.Set()
}

// Stored notes that a state of a runner that is connected here is in the store.
func (a *Acks) Stored(runner string, value []byte, sequence uint64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if p := a.runners[runner]; p != nil && p.tell != nil {
		p.saved = append(p.saved, saved{Stamp(value), sequence})
		p.saved = p.saved[max(0, len(p.saved)-64):] // of which another replica is at most some behind
		a.wake.Set()
	}
}

// Stamp tells the values apart that the store had of a runner, as in ReplicaState.Heard.
func Stamp(value []byte) uint64 { return binary.BigEndian.Uint64(value) }

func (p *progress) publish(number uint64, changed []string) {
	p.published = number
	for _, f := range changed {
		if _, there := p.late[f]; !there {
			p.late[f] = number
		}
	}
}

// Acknowledged is the sequence of the newest state whose endpoints every proxy has.
func (a *Acks) Acknowledged(runner string) uint64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	if p := a.runners[runner]; p != nil {
		return p.told
	}
	return 0
}

// heardOf are, by runner, the stamps of the newest states that all proxies here have.
func (a *Acks) heardOf() map[string]uint64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	return maps.Clone(a.heard)
}

// run follows the proxies, while there is something that they do not have.
func (a *Acks) run(ctx context.Context) {
	var signals <-chan struct{}
	stop := func() {}
	defer func() { stop() }()
	for {
		others := a.room.changed.Next()
		late, again := a.step()
		if late != (signals != nil) {
			stop()
			signals, stop = nil, func() {}
			if late {
				signals, stop = a.room.Delivery.Follow()
				continue // what happened before it followed
			}
		}
		var due <-chan time.Time
		if !again.IsZero() {
			due = time.After(again.Sub(a.room.Now()))
		}
		select {
		case <-ctx.Done():
			return
		case <-a.wake:
		case <-signals:
		case <-others:
		case <-due:
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(ackPause):
		}
	}
}

// step looks once. late tells that some proxy here lacks something; again is when to
// look even if nothing happens.
func (a *Acks) step() (late bool, again time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if now := a.room.Now(); now.Before(a.from) {
		return false, a.from
	}
	functions := map[string]bool{}
	for _, p := range a.runners {
		for f := range p.late {
			functions[f] = true
		}
	}
	names := slices.Sorted(maps.Keys(functions))
	refs := make([]xds.Ref, len(names))
	for i, f := range names {
		refs[i] = xds.Ref{Type: xds.Endpoint, Name: f}
	}
	current, again := a.room.Delivery.Current(refs, drainPatience)
	for i, f := range names {
		functions[f] = !current[i]
		late = late || !current[i]
	}
	heard := map[string]uint64{}
	for name, p := range a.runners {
		maps.DeleteFunc(p.late, func(f string, _ uint64) bool { return !functions[f] })
		p.here = p.published
		for _, first := range p.late {
			p.here = min(p.here, first-1)
		}
		if p.tell == nil {
			p.forget(p.here)
			if len(p.saved) > 0 && p.saved[0].number <= p.here {
				heard[name] = p.saved[0].stamp
			}
			continue
		}
		if all := min(p.here, a.elsewhere(name, p)); all > p.told {
			p.told = all
			p.tell.Set()
		}
	}
	if !maps.Equal(heard, a.heard) {
		a.heard = heard
		a.room.wake.Set()
	}
	return late, again
}

// forget drops saved states before the newest that is not above a number.
func (p *progress) forget(number uint64) {
	for len(p.saved) > 1 && p.saved[1].number <= number {
		p.saved = p.saved[1:]
	}
}

// elsewhere is the newest state of a runner that the proxies of all other replicas
// have.
func (a *Acks) elsewhere(runner string, p *progress) uint64 {
	all := p.published
	for _, heard := range a.room.heard(runner) {
		number := uint64(0)
		for _, s := range p.saved {
			if s.stamp == heard {
				number = s.number
			}
		}
		all = min(all, number)
	}
	return all
}

// WaitCurrent waits until the proxies of all replicas have some endpoints as they are now:
// that a proxy serves a revision says nothing of instances that have become ready since.
func (f *Room) WaitCurrent(ctx context.Context, refs []xds.Ref) {
	told := f.Acks.reached()
	signals, stop := f.Delivery.Follow()
	defer stop()
	for {
		current, again := f.Delivery.Current(refs, 0)
		alone := f.Alone()
		if !slices.Contains(current, false) && (alone || f.Acks.passed(told)) {
			return
		}
		next := f.Now().Add(ackPause)
		if again.After(next) && alone {
			next = again
		}
		var due <-chan time.Time
		if !again.IsZero() || !alone {
			due = time.After(next.Sub(f.Now()))
		}
		select {
		case <-ctx.Done():
			return
		case <-signals:
		case <-due:
		}
	}
}

// reached are the newest states of the runners that are connected here.
func (a *Acks) reached() map[string]uint64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	out := map[string]uint64{}
	for name, p := range a.runners {
		if p.tell != nil {
			out[name] = p.published
		}
	}
	return out
}

// passed reports whether states have been acknowledged by the proxies of all replicas.
func (a *Acks) passed(reached map[string]uint64) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	for name, n := range reached {
		if p := a.runners[name]; p != nil && p.tell != nil && p.told < n {
			return false
		}
	}
	return true
}
