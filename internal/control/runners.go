package control

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
	"github.com/penstock-gateway/penstock/internal/control/kv"
	"github.com/penstock-gateway/penstock/internal/pki"
	"github.com/penstock-gateway/penstock/internal/signal"
	"github.com/penstock-gateway/penstock/xds/compile"
)

// runnersPrefix is where the last known instances stand in the store's run-time
// state, so that a restarted control plane knows the endpoints before the
// runners have come back.
const runnersPrefix = "runners/"

// runners is the RunnerService and what is known of instances.
type runners struct {
	pb.UnimplementedRunnerServiceServer
	core  *Core
	grace time.Duration

	mu    sync.Mutex
	known map[string]*runner
	// unread are the states that could not be read, by key.
	unread map[string]string
	// version counts changes of what is known.
	version atomic.Uint64
	// changed tells that the functions to run have changed, reported that a runner has
	// reported.
	changed, reported signal.Broadcast
	// check wakes expire.
	check signal.Wake
	logs  logHub

	// deployed is what runners are to run; see plan.
	deployed deployments
	// planned is the revision of the last plan, seen are the functions with an
	// automatic rollback then, rollouts the new versions that are watched.
	planned  int64
	seen     map[string]*pb.Function
	rollouts map[string]*rollout
}

// runner is one runner, connected here, to another replica, or lately so.
type runner struct {
	state *pb.RunnerState
	// stream is what is connected here; nil when gone, or with another replica,
	// which was last heard of it at away.
	stream *struct{}
	away   time.Time
	// heard is the last sign of life on a stream to this replica, beat how often one is
	// to come at least; 0: none is promised. See lost.
	heard time.Time
	beat  time.Duration
	// elsewhere: another replica has saved its state since this one knows of it.
	elsewhere bool
	// saved is the value that the store had when it was last looked at.
	saved []byte
	// serve are the endpoints that follow from the state, by function.
	serve map[string][]compile.Endpoint
	// refuse are, by function, what answers with the reason where it cannot be run.
	refuse map[string][]compile.Endpoint
	// stats is what it told last of what its functions did; nil: nothing.
	stats *pb.RunnerStats
	// saving is held while the state is put into the store.
	saving sync.Mutex
}

// runnerIdentity begins the SPIFFE ids of runners.
const runnerIdentity = "spiffe://" + pki.TrustDomain + "/runner/"

// heartbeat is how often a replica says that a runner is connected to it, by
// saving its state again.
const heartbeat = 5 * time.Second

func newRunners(c *Core, grace time.Duration) *runners {
	return &runners{
		core: c, grace: grace, known: map[string]*runner{}, unread: map[string]string{},
		seen: map[string]*pb.Function{}, rollouts: map[string]*rollout{},
		check: signal.NewWake(),
	}
}

// load takes over the instances that the store knows of runners that are not
// connected here, and calls publish when any endpoint changed by that.
func (r *runners) load(ctx context.Context, publish func()) error {
	states, err := r.core.store.State(ctx, runnersPrefix)
	if err != nil {
		return fmt.Errorf("read the runners' state: %w", err)
	}
	fresh, changed := r.takeOver(states)
	if changed && publish != nil {
		publish()
	}
	for name, functions := range fresh {
		r.core.fleet.Acks.Followed(name, states[runnersPrefix+name], r.resources(functions))
	}
	return nil
}

// takeOver brings what is known to what the store says. fresh are the runners whose
// states are others, with the functions whose endpoints are. A state that cannot be read is
// told of once and left: the runner's next one takes its place, and trying again helps nobody.
func (r *runners) takeOver(states map[string][]byte) (fresh map[string][]string, changed bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for name, k := range r.known {
		if _, there := states[runnersPrefix+name]; !there && k.stream == nil {
			delete(r.known, name)
			r.core.fleet.Acks.End(name)
			r.version.Add(1)
			changed = true
		}
	}
	fresh = map[string][]string{}
	for key, value := range states {
		st, bad := decodeState(value)
		if bad != nil {
			if told := string(value); r.unread[key] != told {
				r.unread[key] = told
				r.core.log.Error("the state of a runner in the store cannot be read; it counts again when it reports", "key", key, "error", bad)
			}
			continue
		}
		name := strings.TrimPrefix(key, runnersPrefix)
		k := r.known[name]
		first := k == nil
		if first {
			k = &runner{state: &pb.RunnerState{}}
			r.known[name] = k
		}
		if k.stream != nil || !first && bytes.Equal(k.saved, value) {
			continue // nobody knows better than its own stream
		}
		k.saved, k.away, k.elsewhere, k.heard = value, r.core.now(), !first, time.Time{}
		fresh[name] = k.set(st)
		changed = changed || len(fresh[name]) > 0
		r.version.Add(1)
	}
	if len(fresh) > 0 {
		r.reported.Notify()
	}
	return fresh, changed
}

// follow takes over what other replicas say of their runners.
func (r *runners) follow(ctx context.Context) {
	kv.Follow(ctx, r.core.store, runnersPrefix, r.core.log, "the runners of other replicas", func(ctx context.Context) error {
		return r.load(ctx, func() { r.core.publish(r.core.Snapshot()) })
	})
}

// RegisterRunners adds the RunnerService to the mutually authenticated server.
func (c *Core) RegisterRunners(s grpc.ServiceRegistrar) { pb.RegisterRunnerServiceServer(s, c.runners) }

// Connect implements pb.RunnerServiceServer.
func (r *runners) Connect(stream grpc.BidiStreamingServer[pb.ConnectRequest, pb.ConnectResponse]) error {
	ctx := stream.Context()
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	name := first.GetHello().GetRunner()
	id, err := pki.PeerSPIFFE(ctx)
	if err != nil {
		return status.Error(codes.Unauthenticated, err.Error())
	}
	if want := runnerIdentity + name; name == "" || id != want {
		return status.Errorf(codes.PermissionDenied, "the certificate is of %s, but the hello names runner %q", id, name)
	}
	me := &struct{}{}
	if !r.join(name, me, first.GetHello().GetSignOfLife().AsDuration()) {
		// Taking over would leave the one that runs the functions unheard.
		return status.Errorf(codes.AlreadyExists, "a runner named %q is connected: give this one another --name, or stop the other", name)
	}
	defer r.leave(name, me)
	r.core.log.Info("runner connected", "runner", name)
	acknowledged := r.core.fleet.Acks.Begin(name)
	fresh, stopSaving := r.keepSaving(ctx, name)
	defer stopSaving()

	failed := make(chan error, 1)
	go func() { failed <- r.receive(name, me, stream, fresh) }()
	sent := uint64(0) // version of the functions that were sent
	for {
		changed := r.changed.Next()
		listened := r.logs.changed.Next()
		message := r.wanted(&sent)
		message.AcknowledgedSequence = r.core.fleet.Acks.Acknowledged(name)
		message.Logs = &pb.LogSubscription{Functions: r.logs.wanted()}
		if err := stream.Send(message); err != nil {
			return err
		}
		select {
		case <-changed:
		case <-listened:
		case <-acknowledged:
		case err := <-failed:
			return err
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (r *runners) receive(name string, me *struct{}, stream grpc.BidiStreamingServer[pb.ConnectRequest, pb.ConnectResponse], fresh signal.Wake) error {
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		r.hear(name, me)
		switch {
		case m.GetState() != nil:
			r.report(name, me, m.GetState())
			fresh.Set()
		case m.GetStats() != nil:
			r.keepStats(name, me, m.GetStats())
		case m.GetLogs() != nil:
			r.logs.deliver(m.GetLogs().GetLines())
		}
	}
}

// join reports whether the runner may connect: none of its name is. It says something
// at least every beat; 0: it may be silent.
func (r *runners) join(name string, me *struct{}, beat time.Duration) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	k := r.known[name]
	if k != nil && k.stream != nil {
		return false
	}
	if k == nil {
		k = &runner{state: &pb.RunnerState{}}
		r.known[name] = k
	}
	k.stream, k.heard, k.beat = me, r.core.now(), beat
	r.check.Set() // and tell the other replicas
	return true
}

func (r *runners) leave(name string, me *struct{}) {
	r.mu.Lock()
	if k := r.known[name]; k != nil && k.stream == me {
		k.stream, k.away, k.elsewhere = nil, r.core.now(), false
		r.core.fleet.Acks.End(name)
	}
	r.mu.Unlock()
	r.core.log.Info("runner disconnected", "runner", name)
	r.check.Set()
}

// report takes over what a runner says and publishes it when endpoints changed.
func (r *runners) report(name string, me *struct{}, st *pb.RunnerState) {
	r.mu.Lock()
	k := r.known[name]
	if k == nil || k.stream != me {
		r.mu.Unlock()
		return // a newer stream of the same runner speaks now
	}
	changed := k.set(st)
	r.version.Add(1)
	r.reported.Notify()
	r.moved()
	r.mu.Unlock()
	if len(changed) > 0 {
		r.core.publish(r.core.Snapshot())
	}
	r.core.served.note(st.GetInstances())
	r.core.fleet.Acks.Published(name, st.GetSequence(), r.resources(changed))
}

// lastSave bounds the last save of a runner whose stream has ended.
const lastSave = 2 * time.Second

// keepSaving saves a runner's state after each signal, beside all else: endpoints do
// not wait for the store's disk. stop saves what is left.
func (r *runners) keepSaving(ctx context.Context, name string) (fresh signal.Wake, stop func()) {
	signals, end, ended := signal.NewWake(), make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for {
			select {
			case <-signals:
				r.save(ctx, name)
				continue
			case <-end:
			}
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastSave)
			defer cancel()
			r.save(ctx, name)
			return
		}
	}()
	return signals, func() { close(end); <-ended }
}

// save puts a runner's state where other replicas, and this one after a restart,
// find it.
func (r *runners) save(ctx context.Context, name string) {
	r.mu.Lock()
	k := r.known[name]
	r.mu.Unlock()
	if k == nil {
		return
	}
	k.saving.Lock() // so that an older state never replaces a newer one
	defer k.saving.Unlock()
	r.mu.Lock()
	st, here := k.state, k.stream != nil
	r.mu.Unlock()
	if !here {
		return // somebody else may save it by now
	}
	b, err := proto.Marshal(st)
	if err == nil {
		// The time makes each value another one, so that others see a sign of life.
		b = append(binary.BigEndian.AppendUint64(nil, uint64(r.core.now().UnixNano())), b...)
		r.mu.Lock()
		k.saved = b // ours, not a sign of life from elsewhere
		r.mu.Unlock()
		if err = r.core.store.PutState(ctx, runnersPrefix+name, b); err == nil {
			r.core.fleet.Acks.Stored(name, b, st.GetSequence())
		}
	}
	if err != nil && ctx.Err() == nil {
		r.core.log.Warn("cannot save the state of a runner; after a restart its instances are known when it reports again", "runner", name, "error", err)
	}
}

// stateTime is when a state was saved, by the clock of whoever did; zero: it is none.
func stateTime(value []byte) time.Time {
	if len(value) < 8 {
		return time.Time{}
	}
	return time.Unix(0, int64(binary.BigEndian.Uint64(value)))
}

// decodeState reads what save wrote.
func decodeState(value []byte) (*pb.RunnerState, error) {
	if len(value) < 8 {
		return nil, errors.New("it is too short")
	}
	st := &pb.RunnerState{}
	return st, proto.Unmarshal(value[8:], st)
}

// beat saves the states of the runners that are connected here.
func (r *runners) beat(ctx context.Context) {
	var here []string
	r.mu.Lock()
	for name, k := range r.known {
		// One that is silent gives no sign of life to others either.
		if _, lost := r.lost(k); k.stream != nil && !lost {
			here = append(here, name)
		}
	}
	r.mu.Unlock()
	for _, name := range here {
		r.save(ctx, name)
	}
}

// expire drops the instances of runners that stay away, from this replica and
// from all others.
func (r *runners) expire(ctx context.Context) {
	for {
		r.beat(ctx)
		next := heartbeat
		var gone []string
		r.mu.Lock()
		for name, k := range r.known {
			if k.stream != nil {
				continue
			}
			if left := k.away.Add(r.grace).Sub(r.core.now()); left > 0 {
				next = min(next, left)
			} else {
				gone = append(gone, name)
				delete(r.known, name)
				r.core.fleet.Acks.End(name)
				r.version.Add(1)
			}
		}
		if len(gone) > 0 {
			r.reported.Notify() // who waits for it to come back is told otherwise
		}
		r.mu.Unlock()
		for _, name := range gone {
			r.core.log.Warn("runner stays away: its instances are dropped", "runner", name)
			if err := r.core.store.DeleteState(ctx, runnersPrefix+name); err != nil && ctx.Err() == nil {
				r.core.log.Warn("cannot delete the state of a runner", "runner", name, "error", err)
			}
		}
		if len(gone) > 0 {
			r.core.publish(r.core.Snapshot())
		}
		select {
		case <-ctx.Done():
			return
		case <-r.check:
		case <-time.After(next):
		}
	}
}

// FetchPackage implements pb.RunnerServiceServer.
func (r *runners) FetchPackage(req *pb.FetchPackageRequest, stream grpc.ServerStreamingServer[pb.FetchPackageResponse]) error {
	if id, err := pki.PeerSPIFFE(stream.Context()); err != nil || !strings.HasPrefix(id, runnerIdentity) {
		return status.Error(codes.PermissionDenied, "only runners may have packages")
	}
	return r.core.packages.Send(req.GetDigest(), stream.Send)
}
