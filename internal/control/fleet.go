package control

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/penstock-gateway/penstock/internal/control/kv"
	"github.com/penstock-gateway/penstock/internal/signal"
	"github.com/penstock-gateway/penstock/store"
	"github.com/penstock-gateway/penstock/xds/delivery"
	"github.com/penstock-gateway/penstock/xds/ledger"
)

// replicasPrefix is where each replica tells in the store's run-time state which
// proxies it serves and how they stand, so that every replica can answer for the
// whole fleet, and a write waits for all of it.
const replicasPrefix = "replicas/"

const (
	// replicaBeat is how often a replica with others beside it gives a sign of life.
	replicaBeat = 2 * time.Second
	// replicaSilent is after how long without one its proxies hold nobody up any
	// more: as a proxy that does not answer, and as long.
	replicaSilent = 5 * time.Second
	// replicaGone is after how long it is forgotten. A proxy that has moved is known
	// from its new replica long before.
	replicaGone = 15 * time.Second
	// replicaTells is how long a replica that seemed to be alone may take to say
	// which proxies it has.
	replicaTells = time.Second
	// tellPause bounds how often a replica tells; tellCost adds to it by proxy.
	tellPause, tellCost = 10 * time.Millisecond, 20 * time.Microsecond
)

// fleet is the proxies of all replicas.
type fleet struct {
	core *Core
	name string      // of this replica, another one after each start
	wake signal.Wake // makes run tell again
	// changed tells that others has changed.
	changed signal.Broadcast

	mu     sync.Mutex
	others map[string]*replica
}

// replica is another replica, as its last value in the store tells.
type replica struct {
	name  string
	value []byte
	// first and seen are when it was first known and when its value last changed,
	// by our clock: those of other machines may be wrong.
	first, seen time.Time
	// unread is why the value could not be read.
	unread error
	replicaState
}

// replicaState is what a replica tells.
type replicaState struct {
	// Alone: it knows of no other replica and does not say which proxies it has.
	Alone bool `json:",omitempty"`
	// Revision is what the Standings are about.
	Revision int64
	Proxies  []delivery.Standing
	// Heard has, by runner that is connected to another replica, the stamp of its
	// newest state that all proxies of this one have (acks.go).
	Heard map[string]uint64 `json:",omitempty"`
}

func newFleet(c *Core) *fleet {
	return &fleet{
		core: c, name: rand.Text()[:12], wake: signal.NewWake(),
		others: map[string]*replica{},
	}
}

// encode makes a value that differs each time, as a sign of life.
func (s *replicaState) encode(now time.Time) ([]byte, error) {
	var b bytes.Buffer
	b.Write(binary.BigEndian.AppendUint64(nil, uint64(now.UnixNano())))
	z := gzip.NewWriter(&b)
	err := json.NewEncoder(z).Encode(s)
	err = errors.Join(err, z.Close()) // which writes the rest
	return b.Bytes(), err
}

// maxReplicaBytes bounds what a value in the store may unpack to.
const maxReplicaBytes = 256 << 20

func decodeReplica(value []byte) (s replicaState, err error) {
	if len(value) < 8 {
		return s, errors.New("it is too short")
	}
	z, err := gzip.NewReader(bytes.NewReader(value[8:]))
	if err != nil {
		return s, err
	}
	return s, json.NewDecoder(io.LimitReader(z, maxReplicaBytes)).Decode(&s)
}

// load takes over what the other replicas tell.
func (f *fleet) load(ctx context.Context) error {
	states, err := f.core.store.State(ctx, replicasPrefix)
	if err != nil {
		return fmt.Errorf("read the state of other replicas: %w", err)
	}
	if _, there := states[replicasPrefix+f.name]; !there {
		f.wake.Set() // somebody thought that this one was gone
	}
	delete(states, replicasPrefix+f.name)
	f.mu.Lock()
	defer f.mu.Unlock()
	alone, changed := len(f.others) == 0, false
	for name := range f.others {
		if _, there := states[replicasPrefix+name]; !there {
			delete(f.others, name)
			changed = true
		}
	}
	for key, value := range states {
		name := strings.TrimPrefix(key, replicasPrefix)
		r := f.others[name]
		if r == nil {
			r = &replica{name: name, first: f.core.now()}
			f.others[name] = r
			f.core.runners.check.Set() // it wants a sign of life of the runners here
		}
		if bytes.Equal(r.value, value) {
			continue
		}
		changed = true
		r.value, r.seen = value, f.core.now()
		before := r.unread
		if r.replicaState, err = decodeReplica(value); err != nil {
			// A replica of another version, say. The others count all the same.
			r.unread = err
		} else {
			r.unread = nil
		}
		for _, p := range r.Proxies {
			f.core.delivery.Moved(p.Identity)
		}
		if r.unread != nil && before == nil {
			f.core.log.Warn("cannot read what another replica tells of its proxies", "replica", name, "error", err)
		}
	}
	if changed {
		f.changed.Notify()
	}
	if alone != (len(f.others) == 0) {
		f.wake.Set()
	}
	return nil
}

// ForgetReplicas removes what all replicas have told of their proxies. Those that live
// tell it again.
func ForgetReplicas(ctx context.Context, st store.Store) error {
	states, err := st.State(ctx, replicasPrefix)
	for key := range states {
		err = errors.Join(err, st.DeleteState(ctx, key))
	}
	return err
}

// follow takes over what the other replicas tell whenever it changes.
func (f *fleet) follow(ctx context.Context) {
	kv.Follow(ctx, f.core.store, replicasPrefix, f.core.log, "the proxies of other replicas", f.load)
}

// run tells the other replicas of the proxies here.
func (f *fleet) run(ctx context.Context) {
	var signals <-chan struct{}
	stop := func() {}
	defer func() { stop() }()
	t := teller{fleet: f}
	for {
		alone := f.alone()
		if alone != (signals == nil) {
			stop()
			signals, stop = nil, func() {}
			if !alone {
				signals, stop = f.core.delivery.Follow()
			}
		}
		n := t.tell(ctx, alone)
		select {
		case <-ctx.Done():
			return
		case <-time.After(tellPause + time.Duration(n)*tellCost):
		}
		select {
		case <-ctx.Done():
			return
		case <-signals:
		case <-f.wake:
			t.last = nil
		case <-time.After(replicaBeat):
			f.expire(ctx)
		}
	}
}

// teller is what run remembers of what it told.
type teller struct {
	fleet  *fleet
	last   *replicaState
	at     time.Time
	failed bool
}

// tell puts the state of the proxies here into the store, when it differs or when
// a sign of life is due. It returns how many proxies there are.
func (t *teller) tell(ctx context.Context, alone bool) int {
	c := t.fleet.core
	s := &replicaState{Alone: alone, Revision: c.Snapshot().Revision(), Heard: c.acks.heardOf()}
	if !alone {
		s.Proxies = c.delivery.Standings(s.Revision)
	}
	now := c.now()
	// One that is alone needs no sign of life: whoever comes is seen, and told.
	if same := reflect.DeepEqual(t.last, s) || alone && t.last != nil && t.last.Alone; same && (alone || now.Sub(t.at) < replicaBeat) {
		return len(s.Proxies)
	}
	value, err := s.encode(now)
	if err == nil {
		err = c.store.PutState(ctx, replicasPrefix+t.fleet.name, value)
	}
	if err != nil {
		if !t.failed && ctx.Err() == nil {
			c.log.Warn("cannot tell the other replicas of the proxies here; tried again until it works", "error", err)
		}
		t.last, t.failed = nil, true
		return len(s.Proxies)
	}
	t.last, t.at, t.failed = s, now, false
	return len(s.Proxies)
}

// expire forgets replicas that have not been heard of for long.
func (f *fleet) expire(ctx context.Context) {
	if len(f.gone()) == 0 {
		return
	}
	// It may be us who were away.
	if err := f.load(ctx); err != nil {
		return // while the store is away the others stay, as silent ones
	}
	for _, name := range f.gone() {
		f.core.log.Warn("a replica has not been heard of for long: its proxies are forgotten", "replica", name)
		if err := f.core.store.DeleteState(ctx, replicasPrefix+name); err != nil {
			return
		}
	}
	_ = f.load(ctx)
}

func (f *fleet) gone() (names []string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for name, r := range f.others {
		if f.core.now().Sub(r.seen) >= replicaGone {
			names = append(names, name)
		}
	}
	return names
}

// leave takes this replica out.
func (f *fleet) leave() {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	if err := f.core.store.DeleteState(ctx, replicasPrefix+f.name); err != nil {
		f.core.log.Info("could not say good-bye to the other replicas", "error", err)
	}
}

func (f *fleet) alone() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.others) == 0
}

// remote is a proxy that is connected to another replica.
type remote struct {
	delivery.Standing
	replica *replica
}

// remotes are the proxies of other replicas, without those that are connected
// here by now, each once: where it connected last.
func (f *fleet) remotes() []remote {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.others) == 0 {
		return nil
	}
	newest := map[string]remote{}
	for _, r := range f.others {
		copied := *r
		for _, p := range r.Proxies {
			if old, known := newest[p.Identity]; !known || p.Connected.After(old.Connected) {
				newest[p.Identity] = remote{Standing: p, replica: &copied}
			}
		}
	}
	for _, p := range f.core.delivery.Proxies() {
		delete(newest, p.Identity)
	}
	out := make([]remote, 0, len(newest))
	for _, p := range newest {
		out = append(out, p)
	}
	slices.SortFunc(out, func(a, b remote) int { return strings.Compare(a.Name+"\x00"+a.Identity, b.Name+"\x00"+b.Identity) })
	return out
}

// silence is the problem of a proxy whose replica is not heard of.
func (p remote) silence(now time.Time) (ledger.Problem, bool) {
	if now.Sub(p.replica.seen) < replicaSilent {
		return ledger.Problem{}, false
	}
	return ledger.Problem{Proxy: p.Name, State: ledger.Silent, Detail: fmt.Sprintf(
		"replica %s, which it is connected to, has not been heard of since %s: it is gone, or cut off from the store",
		p.replica.name, p.replica.seen.UTC().Format(time.RFC3339))}, true
}

// serves reports whether the proxy serves a revision and, if not, why.
func (p remote) serves(revision int64, now time.Time) (bool, []ledger.Problem) {
	if p.Revision >= revision {
		return true, nil
	}
	if problem, silent := p.silence(now); silent {
		return false, []ledger.Problem{problem}
	}
	if p.replica.replicaState.Revision >= revision {
		return p.Serves, p.Lacks
	}
	return false, []ledger.Problem{{Proxy: p.Name, State: ledger.Pending, Detail: fmt.Sprintf(
		"replica %s, which it is connected to, has not told of this revision yet", p.replica.name)}}
}

// add completes a report of the proxies here by those of other replicas. next is
// when it may change by time alone; zero for never.
func (f *fleet) add(rep ledger.Report) (_ ledger.Report, next time.Time) {
	now := f.core.now()
	rep.Problems = slices.Clone(rep.Problems)
	for _, p := range f.remotes() {
		rep.Total++
		ok, problems := p.serves(rep.Revision, now)
		if ok {
			rep.Serving++
			continue
		}
		rep.Problems = append(rep.Problems, problems...)
		if slices.ContainsFunc(problems, func(q ledger.Problem) bool { return q.State == ledger.Pending }) {
			rep.Complete = false
			next = earlier(next, p.replica.seen.Add(replicaSilent))
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, r := range f.others {
		// Only a live one can tell; after a moment it is not one.
		if due := r.first.Add(replicaTells); r.Alone && now.Before(due) {
			rep.Complete = false
			next = earlier(next, due)
		}
	}
	return rep, next
}

func earlier(a, b time.Time) time.Time {
	if a.IsZero() || b.Before(a) {
		return b
	}
	return a
}

// proxies is the state of every proxy of every replica.
func (c *Core) proxies() []ledger.ProxyStatus {
	out := c.delivery.Proxies()
	now := c.now()
	for _, p := range c.fleet.remotes() {
		st := p.ProxyStatus
		if problem, silent := p.silence(now); silent {
			st.State, st.Problems = ledger.Silent, append(slices.Clone(st.Problems), problem)
		}
		out = append(out, st)
	}
	return out
}

// waitFleet is delivery.Wait for the proxies of all replicas.
func (c *Core) waitFleet(ctx context.Context, revision int64, progress func(ledger.Report)) (ledger.Report, error) {
	var last *ledger.Report
	tell := func(r ledger.Report) {
		if progress != nil && (last == nil || !reflect.DeepEqual(*last, r)) {
			last = &r
			progress(r)
		}
	}
	for {
		changed := c.fleet.changed.Next()
		local, err := c.delivery.Wait(ctx, revision, func(r ledger.Report) {
			if !r.Complete { // the complete one is told below
				all, _ := c.fleet.add(r)
				tell(all)
			}
		})
		all, next := c.fleet.add(local)
		tell(all)
		if err != nil || all.Complete {
			return all, err
		}
		var due <-chan time.Time
		if !next.IsZero() {
			due = time.After(next.Sub(c.now()))
		}
		select {
		case <-ctx.Done():
			return all, ctx.Err()
		case <-changed:
		case <-due:
		}
	}
}
