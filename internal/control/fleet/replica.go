// Package fleet knows the proxies of all replicas of the control plane: how they stand to a
// revision, and which endpoints they have acknowledged. Each replica says in the store's
// run-time state which proxies it serves, so that every one can answer for the whole
// fleet, and a write waits for all of it.
//
// Locks: Acks.mu > Room.mu, and the delivery's after both. Nothing waits while holding them.
package fleet

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
	"log/slog"
	"reflect"
	"strings"
	"sync"
	"time"

	"github.com/penstock-gateway/penstock/internal/control/kv"
	"github.com/penstock-gateway/penstock/internal/signal"
	"github.com/penstock-gateway/penstock/xds"
	"github.com/penstock-gateway/penstock/xds/delivery"
	"github.com/penstock-gateway/penstock/xds/ledger"
)

// Prefix is where replicas say in the store's run-time state which proxies they serve and
// how they stand.
const Prefix = "replicas/"

// State is what a Room needs of a store.Store, which documents it.
type State interface {
	kv.Watcher
	State(ctx context.Context, prefix string) (map[string][]byte, error)
	PutState(ctx context.Context, key string, value []byte) error
	DeleteState(ctx context.Context, key string) error
}

// Delivery is what a Room needs of a delivery.Server, which documents it.
type Delivery interface {
	Proxies() []ledger.ProxyStatus
	Standings(revision int64) []delivery.Standing
	Current(refs []xds.Ref, patience time.Duration) (current []bool, again time.Time)
	Follow() (signals <-chan struct{}, stop func())
	Wait(ctx context.Context, revision int64, progress func(ledger.Report)) (ledger.Report, error)
	Moved(identity string)
}

// Params are what a Room needs.
type Params struct {
	State    State
	Delivery Delivery
	Log      *slog.Logger
	Now      func() time.Time
	// Revision is the newest that this replica has.
	Revision func() int64
	// Joined is called when another replica becomes known, which then waits for a sign of
	// life of the runners here.
	Joined func()
}

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

// Room is the proxies of all replicas, as one replica knows them.
type Room struct {
	Params
	// Acks are the acknowledgements of endpoints.
	Acks *Acks

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
	ReplicaState
}

// ReplicaState is what a replica says of itself.
type ReplicaState struct {
	// Alone: it knows of no other replica and does not say which proxies it has.
	Alone bool `json:",omitempty"`
	// Revision is what the Standings are about.
	Revision int64
	Proxies  []delivery.Standing
	// Heard has, by runner that is connected to another replica, the stamp of its
	// newest state that all proxies of this one have (acks.go).
	Heard map[string]uint64 `json:",omitempty"`
}

// New returns a Room that knows of no other replica: Load reads them.
func New(p Params) *Room {
	f := &Room{Params: p, name: rand.Text()[:12], wake: signal.NewWake(), others: map[string]*replica{}}
	f.Acks = newAcks(f)
	return f
}

// Run follows the other replicas and the proxies here, and says how these stand, until
// ctx ends.
func (f *Room) Run(ctx context.Context) {
	var loops sync.WaitGroup
	loops.Go(func() { f.tellOthers(ctx) })
	loops.Go(func() { f.Acks.run(ctx) })
	kv.Follow(ctx, f.State, Prefix, f.Log, "the proxies of other replicas", f.Load)
	loops.Wait()
}

// Put makes the state that of the replica of a name, for all others to see.
func (s *ReplicaState) Put(ctx context.Context, to State, name string, now time.Time) error {
	value, err := s.encode(now)
	if err != nil {
		return err
	}
	return to.PutState(ctx, Prefix+name, value)
}

// encode makes a value that differs each time, as a sign of life.
func (s *ReplicaState) encode(now time.Time) ([]byte, error) {
	var b bytes.Buffer
	b.Write(binary.BigEndian.AppendUint64(nil, uint64(now.UnixNano())))
	z := gzip.NewWriter(&b)
	err := json.NewEncoder(z).Encode(s)
	err = errors.Join(err, z.Close()) // which writes the rest
	return b.Bytes(), err
}

// maxReplicaBytes bounds what a value in the store may unpack to.
const maxReplicaBytes = 256 << 20

func decodeReplica(value []byte) (s ReplicaState, err error) {
	if len(value) < 8 {
		return s, errors.New("it is too short")
	}
	z, err := gzip.NewReader(bytes.NewReader(value[8:]))
	if err != nil {
		return s, err
	}
	return s, json.NewDecoder(io.LimitReader(z, maxReplicaBytes)).Decode(&s)
}

// Load takes over what the other replicas say.
func (f *Room) Load(ctx context.Context) error {
	states, err := f.State.State(ctx, Prefix)
	if err != nil {
		return fmt.Errorf("read the state of other replicas: %w", err)
	}
	if _, there := states[Prefix+f.name]; !there {
		f.wake.Set() // somebody thought that this one was gone
	}
	delete(states, Prefix+f.name)
	f.mu.Lock()
	defer f.mu.Unlock()
	alone, changed := len(f.others) == 0, false
	for name := range f.others {
		if _, there := states[Prefix+name]; !there {
			delete(f.others, name)
			changed = true
		}
	}
	for key, value := range states {
		name := strings.TrimPrefix(key, Prefix)
		r := f.others[name]
		if r == nil {
			r = &replica{name: name, first: f.Now()}
			f.others[name] = r
			f.Joined()
		}
		if bytes.Equal(r.value, value) {
			continue
		}
		changed = true
		r.value, r.seen = value, f.Now()
		before := r.unread
		if r.ReplicaState, err = decodeReplica(value); err != nil {
			// A replica of another version, say. The others count all the same.
			r.unread = err
		} else {
			r.unread = nil
		}
		for _, p := range r.Proxies {
			f.Delivery.Moved(p.Identity)
		}
		if r.unread != nil && before == nil {
			f.Log.Warn("cannot read what another replica tells of its proxies", "replica", name, "error", err)
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

// Forget removes what all replicas have told of their proxies. Those that live
// tell it again.
func Forget(ctx context.Context, st State) error {
	states, err := st.State(ctx, Prefix)
	for key := range states {
		err = errors.Join(err, st.DeleteState(ctx, key))
	}
	return err
}

// tellOthers tells the other replicas of the proxies here.
func (f *Room) tellOthers(ctx context.Context) {
	var signals <-chan struct{}
	stop := func() {}
	defer func() { stop() }()
	t := teller{room: f}
	for {
		alone := f.Alone()
		if alone != (signals == nil) {
			stop()
			signals, stop = nil, func() {}
			if !alone {
				signals, stop = f.Delivery.Follow()
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
	room   *Room
	last   *ReplicaState
	at     time.Time
	failed bool
}

// tell puts the state of the proxies here into the store, when it differs or when
// a sign of life is due. It returns how many proxies there are.
func (t *teller) tell(ctx context.Context, alone bool) int {
	f := t.room
	s := &ReplicaState{Alone: alone, Revision: f.Revision(), Heard: f.Acks.heardOf()}
	if !alone {
		s.Proxies = f.Delivery.Standings(s.Revision)
	}
	now := f.Now()
	// One that is alone needs no sign of life: whoever comes is seen, and told.
	if same := reflect.DeepEqual(t.last, s) || alone && t.last != nil && t.last.Alone; same && (alone || now.Sub(t.at) < replicaBeat) {
		return len(s.Proxies)
	}
	if err := s.Put(ctx, f.State, f.name, now); err != nil {
		if !t.failed && ctx.Err() == nil {
			f.Log.Warn("cannot tell the other replicas of the proxies here; tried again until it works", "error", err)
		}
		t.last, t.failed = nil, true
		return len(s.Proxies)
	}
	t.last, t.at, t.failed = s, now, false
	return len(s.Proxies)
}

// expire forgets replicas that have not been heard of for long.
func (f *Room) expire(ctx context.Context) {
	if len(f.gone()) == 0 {
		return
	}
	// It may be us who were away.
	if err := f.Load(ctx); err != nil {
		return // while the store is away the others stay, as silent ones
	}
	for _, name := range f.gone() {
		f.Log.Warn("a replica has not been heard of for long: its proxies are forgotten", "replica", name)
		if err := f.State.DeleteState(ctx, Prefix+name); err != nil {
			return
		}
	}
	_ = f.Load(ctx)
}

func (f *Room) gone() (names []string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for name, r := range f.others {
		if f.Now().Sub(r.seen) >= replicaGone {
			names = append(names, name)
		}
	}
	return names
}

// Leave takes this replica out.
func (f *Room) Leave() {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	if err := f.State.DeleteState(ctx, Prefix+f.name); err != nil {
		f.Log.Info("could not say good-bye to the other replicas", "error", err)
	}
}

// Alone reports whether no other replica is known.
func (f *Room) Alone() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.others) == 0
}

// heard are the stamps that the other replicas have heard last of a runner.
func (f *Room) heard(runner string) []uint64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := make([]uint64, 0, len(f.others))
	for _, r := range f.others {
		out = append(out, r.Heard[runner])
	}
	return out
}
