// Package control is the control plane: it joins the store, the model, the
// compiler and the xDS delivery, and is the Core behind the API.
//
// The way of a change: Write validates and builds the next gateway.Snapshot,
// compiles it, commits it to the store as one revision (compare-and-swap on the
// head), publishes the compiled generation and waits for the proxies, those of
// other replicas included. Revisions of other replicas come in through
// the store's watch (follow). Instances of functions come from runners
// (runners.go) and only make new generations.
//
// Rooms of its own have what a write does to the configuration (change), who is let in
// (admission), the proxies of all replicas (fleet), what these refuse (quarantine, and for
// single routes salvage), uploaded code (packages) and the following of what replicas
// share (kv); each names what it needs in its Params.
//
// Locks are taken in this order, from left to right, and none of them but writing is held
// while the store or a proxy is waited for:
//
//	writing > compiling > salvage, gate > quarantine, runners > fleet > delivery
package control

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/penstock-gateway/penstock/gateway"
	"github.com/penstock-gateway/penstock/gateway/policies"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
	"github.com/penstock-gateway/penstock/internal/control/admission"
	"github.com/penstock-gateway/penstock/internal/control/change"
	"github.com/penstock-gateway/penstock/internal/control/fleet"
	"github.com/penstock-gateway/penstock/internal/control/kv"
	"github.com/penstock-gateway/penstock/internal/control/packages"
	"github.com/penstock-gateway/penstock/internal/control/quarantine"
	"github.com/penstock-gateway/penstock/internal/control/salvage"
	"github.com/penstock-gateway/penstock/internal/control/service"
	"github.com/penstock-gateway/penstock/internal/pki"
	"github.com/penstock-gateway/penstock/internal/signal"
	"github.com/penstock-gateway/penstock/store"
	"github.com/penstock-gateway/penstock/xds"
	"github.com/penstock-gateway/penstock/xds/compile"
	"github.com/penstock-gateway/penstock/xds/delivery"
	"github.com/penstock-gateway/penstock/xds/ledger"
)

// Options configure a Core.
type Options struct {
	Store    store.Store
	Settings compile.Settings
	Logger   *slog.Logger
	// Version is reported by the status.
	Version string
	// Authenticate tells who a proxy is; see delivery.Options.
	Authenticate func(context.Context) (delivery.Identity, error)
	// RunnerGrace is how long the instances of a runner that went away are kept.
	// Default 15 s: a restarted control plane must not empty the endpoints before
	// the runners have come back.
	RunnerGrace time.Duration
	// CA signs the certificates of proxies that join; all replicas must have the
	// same. nil: proxies cannot join here, nor renew.
	CA *pki.CA
	// PackagesDir keeps uploaded code of functions. Empty: none can be uploaded.
	PackagesDir string
	// ProxyCertLife is the life of those certificates. Default 30 days.
	ProxyCertLife time.Duration
	// StreamAge is how long the stream of a proxy lasts; default delivery.DefaultStreamAge.
	StreamAge time.Duration
	// Shadow has each configuration tried on an Envoy of its own before proxies get
	// it; nil: it is not.
	Shadow *ShadowOptions
}

// returning is how long after a start proxies may take to come back. What they may still
// use until then is kept: extension configurations of before, and instances, whose ends
// wait for acknowledgements that do not count before.
const returning = 10 * time.Second

// Core is one replica of the control plane.
type Core struct {
	store     store.Store
	log       *slog.Logger
	version   string
	settings  compile.Settings
	delivery  *delivery.Server
	runners   *runners
	served    *servedBook
	fleet     *fleet.Room
	packages  *packages.Room
	planner   *change.Planner
	admission *admission.Room
	salvage   *salvage.Room
	refused   *quarantine.Room
	gate      *gate // nil: no shadow
	now       func() time.Time
	// streamAge is Options.StreamAge.
	streamAge time.Duration

	// writing serialises writes and the taking over of foreign revisions, so that
	// snapshot only moves forward.
	writing  turn
	snapshot atomic.Pointer[gateway.Snapshot]
	// heads wakes Watch calls at each new snapshot.
	heads signal.Broadcast

	compiling sync.Mutex
	views     map[string]*view
	// unsettled wakes settle. It does nothing before settleFrom, which compiling guards.
	unsettled  signal.Wake
	settleFrom time.Time
	// frozen is published in place of newer snapshots while settle needs that; nil: none.
	// compiling guards it.
	frozen *gateway.Snapshot
	// unkept wakes keepShared.
	unkept signal.Wake

	// run ends with Close, which waits for done. closing is held while something is added
	// to it in the background.
	run     context.Context
	stop    context.CancelFunc
	done    sync.WaitGroup
	closing sync.Mutex
}

// view is what one group of proxies may see.
type view struct {
	view     compile.View
	compiler *compile.Compiler
	problems []gateway.Problem
	// published is what the proxies may have, made from snapshot.
	published *xds.Generation
	snapshot  *gateway.Snapshot
	name      string
	// kept is what the store is to have of what proxies share, and stored what it has
	// (shared.go); nil for nothing.
	kept, stored *sharing
	// held: what was compiled last waits until the store has kept.
	held bool
	// tried is what the last compile made, and of what.
	tried tried
}

// New loads the head revision and starts to follow the store. Close ends it; the
// store stays the caller's.
func New(ctx context.Context, o Options) (*Core, error) {
	if o.RunnerGrace == 0 {
		o.RunnerGrace = 15 * time.Second
	}
	c := &Core{
		store: o.Store, log: o.Logger, version: o.Version, settings: o.Settings,
		writing: make(turn, 1), now: time.Now, views: map[string]*view{}, unsettled: signal.NewWake(), unkept: signal.NewWake(),
		streamAge: cmp.Or(o.StreamAge, delivery.DefaultStreamAge),
	}
	c.delivery = delivery.New(delivery.Options{
		Logger: o.Logger.With("part", "xds"), Authenticate: o.Authenticate, OnView: c.addView,
		StreamAge: c.streamAge, WarmRoutes: compile.WarmRoutes,
		OnRefused: func(r delivery.Refusal) {
			if r.Resource.Type != xds.Route { // these are for c.salvage
				c.refused.Refused(r)
			}
		},
		OnAccepted: func(view string, r xds.Ref) { c.refused.Accepted(view, r) },
		OnForbidden: func(who delivery.Identity, r xds.Ref) {
			o.Logger.Warn("audit: a proxy asked for what its view does not have", "proxy", who.SPIFFE, "view", who.View, "resource", r.String())
		},
	})
	c.served = newServedBook(c)
	c.runners = newRunners(c, o.RunnerGrace)
	c.fleet = fleet.New(fleet.Params{
		State: c.store, Delivery: c.delivery, Log: c.log, Now: c.now,
		Revision: func() int64 { return c.Snapshot().Revision() }, Joined: c.runners.check.Set,
	})
	c.packages = packages.New(packages.Params{Dir: o.PackagesDir, Snapshot: c.Snapshot})
	c.planner = change.New(change.Params{Now: c.now, Missing: c.packages.Missing})
	c.salvage = salvage.New(salvage.Params{
		Delivery: c.delivery, Log: c.log, Now: c.now,
		Revision: func() int64 { return c.Snapshot().Revision() }, Still: c.still,
	})
	c.admission = admission.New(admission.Params{
		State: c.store, Log: c.log, CA: o.CA, CertLife: o.ProxyCertLife,
		Exists: func(name string) bool { return c.Snapshot().Get(name) != nil },
	})
	c.refused = quarantine.New(quarantine.Params{
		State: c.store, Delivery: c.delivery, Log: c.log, Now: c.now, Snapshot: c.Snapshot,
		Publish: func() { c.publish(c.Snapshot()) },
	})
	c.gate = newGate(c, o.Shadow)

	head, err := c.store.Head(ctx)
	if err != nil {
		return nil, fmt.Errorf("read the head revision: %w", err)
	}
	whole, err := c.whole(ctx, head.Number)
	if _, damaged := errors.AsType[*store.CorruptError](err); damaged {
		return nil, fmt.Errorf("load revision %d: %w; %s", head.Number, err, store.HowToRepair)
	}
	if err != nil {
		return nil, fmt.Errorf("load revision %d: %w", head.Number, err)
	}
	for _, d := range whole.Damaged {
		c.log.Error("an object in the store cannot be read; what it protected answers 503, the rest is served", "object", d.Name, "error", d.Detail)
	}
	c.snapshot.Store(policies.Model().Build(nil, head.Number, whole))
	if err := c.served.load(ctx); err != nil {
		return nil, fmt.Errorf("read which versions have served: %w", err)
	}
	if err := c.runners.load(ctx, nil); err != nil {
		return nil, err
	}
	c.runners.plan(c.Snapshot())
	if len(c.runners.known) > 0 {
		c.fleet.Acks.CountFrom(c.now().Add(returning))
	}
	if err := c.admission.Load(ctx); err != nil {
		return nil, err
	}
	if err := c.fleet.Load(ctx); err != nil {
		return nil, err
	}
	if err := c.refused.Load(ctx); err != nil {
		return nil, err
	}
	// The default view is compiled even with no proxy connected, so that a write
	// is always checked by the compiler.
	c.addView(compile.View{Project: "default", Gateway: "-"}.String())

	run, stop := context.WithCancel(context.WithoutCancel(ctx))
	c.run, c.stop = run, stop
	c.done.Go(func() { c.follow(run) })
	c.done.Go(func() { c.runners.expire(run) })
	c.done.Go(func() { c.runners.follow(run) })
	c.done.Go(func() { c.served.follow(run) })
	c.done.Go(func() { c.served.run(run) })
	c.done.Go(func() { c.admission.Follow(run) })
	c.done.Go(func() { c.fleet.Run(run) })
	c.done.Go(func() { c.settle(run) })
	c.done.Go(func() { c.keepShared(run) })
	c.done.Go(func() { c.salvage.Run(run) })
	c.done.Go(func() { c.refused.Run(run) })
	return c, nil
}

// background runs f beside its caller, until Close at the latest: ctx ends then, and
// Close waits. After Close it does nothing.
func (c *Core) background(f func(ctx context.Context)) {
	c.closing.Lock()
	defer c.closing.Unlock()
	if c.run.Err() == nil {
		c.done.Go(func() { f(c.run) })
	}
}

// Close stops following and disconnects the proxies. Nothing of this Core runs on when
// it returns, once Serve has returned, too.
func (c *Core) Close() {
	c.closing.Lock()
	c.stop()
	c.closing.Unlock()
	c.gate.close()
	c.done.Wait()
	c.served.leave()
	c.fleet.Leave()
	c.delivery.Close()
}

// Delivery is the xDS server, to be registered on the mutually authenticated
// gRPC server.
func (c *Core) Delivery() *delivery.Server { return c.delivery }

// CertificateRevoked is an error when a certificate, or the whole identity, was revoked,
// and while that is not known.
func (c *Core) CertificateRevoked(id, serial string) error {
	return c.admission.CertificateRevoked(id, serial)
}

// Snapshot implements api.Core.
func (c *Core) Snapshot() *gateway.Snapshot { return c.snapshot.Load() }

// addView makes a view known, compiles it and hands it to the delivery.
func (c *Core) addView(name string) {
	v, err := compile.ParseView(name)
	if err != nil {
		// The name was made from a certificate that our own CA signed.
		c.log.Error("proxy asks for a view that cannot be read", "view", name, "error", err)
		return
	}
	c.compiling.Lock()
	_, known := c.views[name]
	c.compiling.Unlock()
	var before *xds.Generation
	var stored *sharing
	if !known {
		before, stored = c.remembered(name) // not under compiling: the store may be slow
	}
	c.compiling.Lock()
	defer c.compiling.Unlock()
	if _, known := c.views[name]; !known {
		if before != nil {
			c.settleFrom = c.now().Add(returning)
			c.unsettled.Set()
		}
		c.views[name] = &view{name: name, view: v, compiler: compile.New(c.settings), published: before, kept: stored, stored: stored}
	}
	c.publishLocked(c.Snapshot())
}

// publish compiles a snapshot for every view and hands the result to the delivery.
func (c *Core) publish(s *gateway.Snapshot) {
	c.compiling.Lock()
	defer c.compiling.Unlock()
	c.publishLocked(s)
}

// still calls f while nothing else is published.
func (c *Core) still(f func(publish func())) {
	c.compiling.Lock()
	defer c.compiling.Unlock()
	f(func() { c.publishLocked(c.Snapshot()) })
}

func (c *Core) publishLocked(s *gateway.Snapshot) {
	if c.frozen != nil {
		s = c.frozen
	}
	for _, v := range c.views {
		g, problems := c.compile(v, s)
		v.problems = problems
		differs := shared(v.published, g)
		v.held = differs && !v.stored.covers(g)
		if v.held {
			c.hold(v, s, g)
			continue
		}
		c.give(v, s, g)
		if differs {
			c.unsettled.Set()
		}
	}
}

// give hands a generation to the delivery. The caller holds compiling.
func (c *Core) give(v *view, s *gateway.Snapshot, g *xds.Generation) {
	c.deliver(v.name, g)
	c.salvage.Published(v.view, s, g)
	v.published, v.snapshot = g, s
}

// tried is a compile: a write compiles to be checked, and once it is stored the
// same is published.
type tried struct {
	snapshot  *gateway.Snapshot
	instances uint64
	refusals  uint64
	holds     uint64
	previous  *xds.Generation
	made      *xds.Generation
	problems  []gateway.Problem
}

// compile makes the generation that a view goes to next from what is published.
// The caller holds compiling.
func (c *Core) compile(v *view, s *gateway.Snapshot) (*xds.Generation, []gateway.Problem) {
	instances, refusals, holds := c.runners.version.Load(), c.refused.Version(), c.salvage.Version()
	if t := v.tried; t.made != nil && t.snapshot == s && t.instances == instances && t.refusals == refusals && t.holds == holds && t.previous == v.published {
		return t.made, t.problems
	}
	in := c.input(s, v)
	in.Previous = v.published
	g, problems := v.compiler.Compile(in)
	v.tried = tried{snapshot: s, instances: instances, refusals: refusals, holds: holds, previous: v.published, made: g, problems: problems}
	return g, problems
}

func (c *Core) input(s *gateway.Snapshot, v *view) compile.Input {
	return compile.Input{Snapshot: s, View: v.view, Instances: c.runners.endpoints, Holds: c.salvage.Holds(v.view), Refused: c.refused.Held(v.name)}
}

// install makes a snapshot the current one. The caller holds writing.
func (c *Core) install(s *gateway.Snapshot) {
	c.snapshot.Store(s)
	c.publish(s)
	c.runners.plan(s)
	c.heads.Notify()
}

// follow takes over the revisions that other replicas write.
func (c *Core) follow(ctx context.Context) {
	pause := kv.NewBackoff()
	for ctx.Err() == nil {
		for rev := range c.store.Watch(ctx, c.Snapshot().Revision()) {
			err := c.writing.take(ctx)
			if err == nil {
				err = c.catchUp(ctx, rev.Number)
				c.writing.pass()
			}
			if err != nil && ctx.Err() == nil {
				c.log.Error("cannot take over a revision; will try again", "revision", rev.Number, "error", err)
				break
			}
			pause.Reset()
		}
		sleep(ctx, pause.NextBackOff())
	}
}

// catchUp brings the snapshot to a revision. The caller holds writing.
func (c *Core) catchUp(ctx context.Context, to int64) error {
	s := c.Snapshot()
	if to <= s.Revision() {
		return nil
	}
	// From revision 0 the difference is everything.
	changes, err := toChanges(c.store.Diff(ctx, s.Revision(), to))
	if err != nil {
		return err
	}
	c.install(policies.Model().Build(s, to, changes))
	c.served.gone(changes.Deletes)
	return nil
}

// whole is all of a stored revision, as changes to nothing. Revision 0 is empty.
func (c *Core) whole(ctx context.Context, revision int64) (gateway.Changes, error) {
	return toChanges(c.store.Diff(ctx, 0, revision))
}

// toChanges takes what Store.Diff returned. Objects that are damaged are not errors: they
// are changes of their own kind.
func toChanges(diff []store.Change, err error) (gateway.Changes, error) {
	var ch gateway.Changes
	if damage, ok := errors.AsType[*store.DamageError](err); ok {
		err = nil
		for _, d := range damage.Objects {
			ch.Damaged = append(ch.Damaged, gateway.Damage{Name: d.Name, Detail: d.Detail, Newer: d.Newer, Footprint: d.Footprint})
		}
	}
	for _, d := range diff {
		if d.Resource == nil {
			ch.Deletes = append(ch.Deletes, d.Name)
		} else {
			ch.Updates = append(ch.Updates, gateway.FromResource(d.Resource))
		}
	}
	return ch, err
}

// WaitServing implements api.Core.
func (c *Core) WaitServing(ctx context.Context, revision int64, send func(*pb.ServingReport) error) error {
	if revision == 0 {
		revision = c.Snapshot().Revision()
	}
	if err := c.written(ctx, revision); err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var last *pb.ServingReport
	tell := func(r *pb.ServingReport) {
		if last != nil && proto.Equal(last, r) {
			return // nothing is said twice
		}
		last = r
		if err := send(r); err != nil {
			cancel(err)
		}
	}
	_, err := c.fleet.Wait(ctx, revision, func(r ledger.Report) {
		if !r.Complete { // the rest is said below, with the functions
			tell(fleet.Report(r))
		}
	})
	if err != nil {
		return cmp.Or(context.Cause(ctx), err)
	}
	whole := func(functions []*pb.ProxyProblem) {
		rep := c.reportNow(revision)
		rep.Problems = slices.Concat(rep.Problems, unattached(c.Snapshot(), nil), unproxied(c.Snapshot(), c.fleet.Proxies()), functions)
		tell(rep)
	}
	// The proxies serve it; whether functions do is seen now.
	whole(c.runners.waitReady(ctx, nil, c.functions(), whole))
	return context.Cause(ctx)
}

// written is an error for a revision that is not in the store, which would be waited
// for in vain. One that this replica has not followed to yet may be there.
func (c *Core) written(ctx context.Context, revision int64) error {
	if revision >= 1 && revision <= c.Snapshot().Revision() {
		return nil
	}
	head, err := c.store.Head(ctx)
	if err != nil {
		return service.StoreError(err)
	}
	if revision < 1 || revision > head.Number {
		return status.Errorf(codes.OutOfRange, "revision %d does not exist; the newest is %d", revision, head.Number)
	}
	return nil
}

// functions are all functions of the head.
func (c *Core) functions() []*pb.Function {
	var out []*pb.Function
	for _, o := range c.Snapshot().List(gateway.KindFunctions, "") {
		out = append(out, o.(*pb.Function))
	}
	return out
}

// waitTimeout is how long a write waits to be served.
func waitTimeout(o *pb.WriteOptions) time.Duration {
	if t := o.GetWaitTimeout(); t != nil {
		return t.AsDuration()
	}
	return 15 * time.Second
}

// wait returns who serves a revision once everybody does, or when ctx ends.
func (c *Core) wait(ctx context.Context, revision int64) *pb.ServingReport {
	rep, err := c.fleet.Wait(ctx, revision, func(ledger.Report) {})
	if err != nil && !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, context.Canceled) {
		c.log.Warn("waiting for the proxies failed", "revision", revision, "error", err)
	}
	return fleet.Report(rep)
}
