package control

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
	"github.com/penstock-gateway/penstock/internal/pki"
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
	// version counts changes of what is known.
	version atomic.Uint64
	// changed is closed and replaced when the functions to run change.
	changed chan struct{}
	// reported is closed and replaced when a runner reports.
	reported chan struct{}
	// check wakes expire.
	check chan struct{}
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
	// elsewhere: another replica has saved its state since this one knows of it.
	elsewhere bool
	// saved is the value that the store had when it was last looked at.
	saved []byte
	// stats is what it last said its functions did; of runners connected here only.
	stats *pb.RunnerStats
}

// runnerIdentity begins the SPIFFE ids of runners.
const runnerIdentity = "spiffe://" + pki.TrustDomain + "/runner/"

// heartbeat is how often a replica says that a runner is connected to it, by
// saving its state again.
const heartbeat = 5 * time.Second

func newRunners(c *Core, grace time.Duration) *runners {
	return &runners{
		core: c, grace: grace, known: map[string]*runner{},
		seen: map[string]*pb.Function{}, rollouts: map[string]*rollout{},
		changed: make(chan struct{}), reported: make(chan struct{}), check: make(chan struct{}, 1),
	}
}

// load takes over the instances that the store knows of runners that are not
// connected here, and tells whether any endpoint changed by that.
func (r *runners) load(ctx context.Context) (changed bool, err error) {
	states, err := r.core.store.State(ctx, runnersPrefix)
	if err != nil {
		return false, fmt.Errorf("read the runners' state: %w", err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for name, k := range r.known {
		if _, there := states[runnersPrefix+name]; !there && k.stream == nil {
			delete(r.known, name)
			r.version.Add(1)
			changed = true
		}
	}
	for key, value := range states {
		st, err := decodeState(value)
		if err != nil {
			return changed, fmt.Errorf("read the state of %s: %w", key, err)
		}
		name := strings.TrimPrefix(key, runnersPrefix)
		k := r.known[name]
		first := k == nil
		if first {
			k = &runner{state: &pb.RunnerState{}}
			r.known[name] = k
		}
		if k.stream != nil {
			continue // nobody knows better than its own stream
		}
		changed = changed || !sameEndpoints(k.state, st)
		if !bytes.Equal(k.saved, value) {
			k.saved, k.away, k.elsewhere = value, r.core.now(), !first
		}
		k.state = st
		r.version.Add(1)
	}
	return changed, nil
}

func sameEndpoints(a, b *pb.RunnerState) bool {
	return slices.EqualFunc(ready(a), ready(b), func(a, b *pb.Instance) bool { return proto.Equal(a, b) })
}

// follow takes over what other replicas say of their runners.
func (r *runners) follow(ctx context.Context) {
	for range r.core.store.WatchState(ctx, runnersPrefix) {
		changed, err := r.load(ctx)
		if err != nil && ctx.Err() == nil {
			r.core.log.Warn("cannot follow the runners of other replicas", "error", err)
		}
		if changed {
			r.core.publish(r.core.Snapshot())
		}
	}
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
	if !r.join(name, me) {
		// Taking over would leave the one that runs the functions unheard.
		return status.Errorf(codes.AlreadyExists, "a runner named %q is connected: give this one another --name, or stop the other", name)
	}
	defer r.leave(name, me)
	r.core.log.Info("runner connected", "runner", name)

	failed := make(chan error, 1)
	go func() { failed <- r.receive(name, me, stream) }()
	sent := uint64(0) // version of the functions that were sent
	for {
		r.mu.Lock()
		changed := r.changed
		r.mu.Unlock()
		listened := r.logs.wait()
		out := r.wanted(&sent)
		out.Logs = &pb.LogSubscription{Functions: r.logs.wanted()}
		if err := stream.Send(out); err != nil {
			return err
		}
		select {
		case <-changed:
		case <-listened:
		case err := <-failed:
			return err
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (r *runners) receive(name string, me *struct{}, stream grpc.BidiStreamingServer[pb.ConnectRequest, pb.ConnectResponse]) error {
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		switch {
		case m.GetState() != nil:
			r.report(stream.Context(), name, me, m.GetState())
		case m.GetStats() != nil:
			r.keepStats(name, me, m.GetStats())
		case m.GetLogs() != nil:
			r.logs.deliver(m.GetLogs().GetLines())
		}
	}
}

// join tells whether the runner may connect: none of its name is.
func (r *runners) join(name string, me *struct{}) bool {
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
	k.stream = me
	r.look() // and tell the other replicas
	return true
}

// look wakes expire.
func (r *runners) look() {
	select {
	case r.check <- struct{}{}:
	default:
	}
}

func (r *runners) leave(name string, me *struct{}) {
	r.mu.Lock()
	if k := r.known[name]; k != nil && k.stream == me {
		k.stream, k.away, k.elsewhere = nil, r.core.now(), false
	}
	r.mu.Unlock()
	r.core.log.Info("runner disconnected", "runner", name)
	r.look()
}

// report takes over what a runner says and publishes it when endpoints changed.
func (r *runners) report(ctx context.Context, name string, me *struct{}, st *pb.RunnerState) {
	r.mu.Lock()
	k := r.known[name]
	if k == nil || k.stream != me {
		r.mu.Unlock()
		return // a newer stream of the same runner speaks now
	}
	before := k.state
	k.state = st
	r.version.Add(1)
	close(r.reported)
	r.reported = make(chan struct{})
	r.moved()
	r.mu.Unlock()
	if !sameEndpoints(before, st) {
		r.core.publish(r.core.Snapshot())
	}
	if !proto.Equal(before, st) {
		r.save(ctx, name, st)
	}
}

// save puts a runner's state where other replicas, and this one after a restart,
// find it.
func (r *runners) save(ctx context.Context, name string, st *pb.RunnerState) {
	b, err := proto.Marshal(st)
	if err == nil {
		// The time makes each value another one, so that others see a sign of life.
		b = append(binary.BigEndian.AppendUint64(nil, uint64(r.core.now().UnixNano())), b...)
		r.mu.Lock()
		if k := r.known[name]; k != nil {
			k.saved = b // ours, not a sign of life from elsewhere
		}
		r.mu.Unlock()
		err = r.core.store.PutState(ctx, runnersPrefix+name, b)
	}
	if err != nil && ctx.Err() == nil {
		r.core.log.Warn("cannot save the state of a runner; after a restart its instances are known when it reports again", "runner", name, "error", err)
	}
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
	states := map[string]*pb.RunnerState{}
	r.mu.Lock()
	for name, k := range r.known {
		if k.stream != nil {
			states[name] = k.state
		}
	}
	r.mu.Unlock()
	for name, st := range states {
		r.save(ctx, name, st)
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
				r.version.Add(1)
			}
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

func ready(st *pb.RunnerState) []*pb.Instance {
	var out []*pb.Instance
	for _, i := range st.GetInstances() {
		if i.GetState() == pb.InstanceState_INSTANCE_STATE_READY && i.GetPort() != 0 {
			out = append(out, i)
		}
	}
	return out
}

// endpoints are the addresses of the ready instances of a function, sorted.
func (r *runners) endpoints(function string) []compile.Endpoint {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.serves(function) {
		if other := r.standIn(function); other != "" {
			function = other
		}
	}
	var out []compile.Endpoint
	for _, k := range r.known {
		for _, i := range ready(k.state) {
			if i.GetFunction() == function {
				out = append(out, compile.Endpoint{Address: i.GetAddress(), Port: i.GetPort()})
			}
		}
	}
	slices.SortFunc(out, func(a, b compile.Endpoint) int {
		if c := strings.Compare(a.Address, b.Address); c != 0 {
			return c
		}
		return int(a.Port) - int(b.Port)
	})
	return slices.Compact(out)
}

// instances are all instances of a function, or of all functions when it is "".
func (r *runners) instances(function string) []*pb.Instance {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []*pb.Instance
	for _, k := range r.known {
		for _, i := range k.state.GetInstances() {
			if function == "" || i.GetFunction() == function {
				out = append(out, i)
			}
		}
	}
	slices.SortFunc(out, func(a, b *pb.Instance) int {
		return strings.Compare(a.GetFunction()+"\x00"+a.GetId(), b.GetFunction()+"\x00"+b.GetId())
	})
	return out
}

// connected are the runners that are connected to any replica, by name.
func (r *runners) connected() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []string
	for name, k := range r.known {
		if k.stream != nil || k.elsewhere && r.core.now().Sub(k.away) < 2*heartbeat {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out
}

func (r *runners) problems() map[string]string {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := map[string]string{}
	for _, k := range r.known {
		maps.Copy(out, k.state.GetProblems())
	}
	return out
}

// condition says how many instances of a function are ready.
func (r *runners) condition(f *pb.Function) *pb.Condition {
	want := max(int(f.GetInstances()), 1)
	n, why := 0, r.problems()[f.GetName()]
	for _, i := range r.instances(f.GetName()) {
		if i.GetState() == pb.InstanceState_INSTANCE_STATE_READY {
			n++
		} else if why == "" {
			why = i.GetMessage()
		}
	}
	c := &pb.Condition{Type: "Ready", Ok: n >= want, Reason: "InstancesReady", Message: fmt.Sprintf("%d of %d instances ready", n, want)}
	switch {
	case c.Ok:
	case len(r.connected()) == 0:
		c.Reason, c.Message = "NoRunner", c.Message+": no runner is connected"
	case why != "":
		c.Reason, c.Message = "InstancesFailing", c.Message+": "+why
	default:
		c.Reason = "InstancesStarting"
	}
	return c
}

// waitReady waits until functions have their instances, or cannot have them, and
// returns what is in the way. Without a runner there is nothing to wait for.
func (r *runners) waitReady(ctx context.Context, functions []*pb.Function) []*pb.ProxyProblem {
	// What stood in the way of the version before may be mended by this one.
	for fresh := false; ; fresh = true {
		r.mu.Lock()
		reported := r.reported
		r.mu.Unlock()
		var out []*pb.ProxyProblem
		pending := false
		for _, f := range functions {
			c := r.condition(f)
			if c.GetOk() {
				continue
			}
			out = append(out, &pb.ProxyProblem{Proxy: "runner", State: strings.ToLower(c.GetReason()), Object: f.GetName(), Detail: c.GetMessage()})
			pending = pending || c.GetReason() == "InstancesStarting" || (!fresh && c.GetReason() == "InstancesFailing")
		}
		if !pending {
			return out
		}
		select {
		case <-ctx.Done():
			return out
		case <-reported:
		}
	}
}
