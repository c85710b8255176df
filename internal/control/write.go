package control

import (
	"context"
	"errors"
	"runtime/debug"
	"slices"
	"time"

	"buf.build/go/protovalidate"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/penstock-gateway/penstock/gateway"
	"github.com/penstock-gateway/penstock/gateway/source/api"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
	"github.com/penstock-gateway/penstock/internal/control/change"
	"github.com/penstock-gateway/penstock/internal/control/service"
	"github.com/penstock-gateway/penstock/store"
	"github.com/penstock-gateway/penstock/xds"
)

// manyChanges is a write after which memory is given back to the system.
const manyChanges = 1000

// Write implements api.Core.
func (c *Core) Write(ctx context.Context, w *api.Write) (*api.Outcome, error) {
	if err := checkOptions(w.Options); err != nil {
		return nil, err
	}
	out, err := c.writeInTurn(ctx, w)
	if err != nil {
		return nil, err
	}
	if !w.Options.GetValidateOnly() && w.Options.GetWait() != pb.WaitMode_WAIT_MODE_NONE {
		out.Result.Serving = c.waitServed(ctx, out, w)
	}
	return out, nil
}

// waitServed waits for the instances of the functions of a write, and for the
// proxies. Functions that the write leaves as they were count as much as those that
// it changes: a repeated write tells the state, as the first one did.
func (c *Core) waitServed(ctx context.Context, out *api.Outcome, w *api.Write) *pb.ServingReport {
	changed := change.ChangedFunctions(out)
	ctx, cancel := context.WithTimeout(ctx, waitTimeout(w.Options))
	defer cancel()
	problems := c.runners.waitReady(ctx, changed, change.NamedFunctions(out, w, changed), nil)
	c.waitEndpoints(ctx, changed)
	rep := c.wait(ctx, out.Result.GetRevision())
	named := make([]string, 0, len(w.Mutations))
	for _, m := range w.Mutations {
		named = append(named, m.Name)
	}
	rep.Problems = slices.Concat(rep.Problems, unattached(out.Snapshot, named), problems)
	return rep
}

// waitEndpoints waits until the proxies have the endpoints of some functions as they
// are now: that a proxy serves a revision says nothing of instances that have become
// ready since.
func (c *Core) waitEndpoints(ctx context.Context, functions []*pb.Function) {
	var refs []xds.Ref
	for _, f := range functions {
		for _, d := range c.Snapshot().Deployments(f) {
			refs = append(refs, xds.Ref{Type: xds.Endpoint, Name: d.GetName()})
		}
	}
	if len(refs) == 0 {
		return
	}
	c.publish(c.Snapshot()) // what is known may be on its way
	c.fleet.WaitCurrent(ctx, refs)
}

// writeInTurn is writeLocked after the writes before.
func (c *Core) writeInTurn(ctx context.Context, w *api.Write) (*api.Outcome, error) {
	queue, cancel := context.WithTimeout(ctx, writeQueue)
	defer cancel()
	if err := c.writing.take(queue); err != nil {
		if ctx.Err() != nil {
			return nil, service.StoreError(ctx.Err())
		}
		return nil, status.Errorf(codes.Unavailable, "writes before this one have waited for the store for %s: nothing was written", writeQueue)
	}
	defer c.writing.pass() // even when something panics
	return c.writeLocked(ctx, w)
}

// writeQueue bounds the wait for other writes, which are quick unless the store
// does not answer.
const writeQueue = 10 * time.Second

// turn is a mutex whose waiters can give up.
type turn chan struct{}

func (t turn) take(ctx context.Context) error {
	select {
	case t <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (t turn) pass() { <-t }

func checkOptions(o *pb.WriteOptions) error {
	if o == nil {
		return nil
	}
	if err := protovalidate.Validate(o); err != nil {
		return status.Errorf(codes.InvalidArgument, "options: %v", err)
	}
	return nil
}

// writeLocked plans and commits; when another replica was faster it plans again on
// the new head, so that only writes with a precondition can lose.
func (c *Core) writeLocked(ctx context.Context, w *api.Write) (*api.Outcome, error) {
	if id := w.Options.GetRequestId(); id != "" {
		if rev, found, err := c.store.ByRequest(ctx, id); err != nil {
			return nil, service.StoreError(err)
		} else if found {
			return c.replay(ctx, rev)
		}
	}
	for {
		plan, err := c.plan(ctx, w)
		if err != nil {
			// It may be so only for this replica, which has not followed another yet.
			if c.wasBehind(ctx) {
				continue
			}
			return nil, err
		}
		if w.Options.GetValidateOnly() || len(plan.Changes) == 0 {
			return plan.Outcome(c.Snapshot().Revision(), false), nil
		}
		rev, err := c.store.Commit(ctx, c.Snapshot().Revision(), plan.Changes, store.Info{
			Author: w.Caller, Message: message(w), RequestID: w.Options.GetRequestId(),
		})
		if conflict, lost := errors.AsType[*store.ConflictError](err); lost {
			if err := c.catchUp(ctx, conflict.Head); err != nil {
				return nil, service.StoreError(err)
			}
			continue
		}
		if err != nil {
			return nil, commitError(err)
		}
		plan.Note(ctx, c.Snapshot())
		c.install(plan.Next)
		c.served.gone(plan.Deleted())
		if len(plan.Changes) > manyChanges {
			// What a big write left behind would stay resident for minutes.
			c.background(func(context.Context) { debug.FreeOSMemory() })
		}
		return plan.Outcome(rev.Number, true), nil
	}
}

// plan checks a write against the head and builds what it would lead to, and has that
// compiled for proxies.
func (c *Core) plan(ctx context.Context, w *api.Write) (*change.Plan, error) {
	p, err := c.planner.Plan(ctx, c.Snapshot(), w)
	if err != nil || len(p.Changes) == 0 {
		return p, err
	}
	// Problems that were there before are not this write's fault; a new one is,
	// even of another object: a listener can take another gateway's port.
	before := c.compileProblems()
	problems := slices.DeleteFunc(c.tryCompile(p.Next), func(q gateway.Problem) bool {
		return !p.Writes(q.Object) && before[change.Key(q)]
	})
	if len(problems) > 0 {
		return nil, change.Invalid(problems)
	}
	return p, nil
}

// wasBehind reports whether the store has a newer revision than this replica, which has
// it then. Without an answer of the store, what this replica knows is what there is.
func (c *Core) wasBehind(ctx context.Context) bool {
	before := c.Snapshot().Revision()
	head, err := c.store.Head(ctx)
	return err == nil && head.Number > before && c.catchUp(ctx, head.Number) == nil && c.Snapshot().Revision() > before
}

func message(w *api.Write) string {
	if m := w.Options.GetMessage(); m != "" {
		return m
	}
	return w.Source
}

// replay answers a repeated request with what the first one did.
func (c *Core) replay(ctx context.Context, rev store.Revision) (*api.Outcome, error) {
	if err := c.catchUp(ctx, rev.Number); err != nil {
		return nil, service.StoreError(err)
	}
	out := &api.Outcome{Result: &pb.WriteResult{Revision: rev.Number, Changed: true}, Snapshot: c.Snapshot()}
	d, err := c.DiffRevisions(ctx, rev.Number-1, rev.Number)
	if err != nil {
		return nil, err
	}
	out.Changes = d.GetChanges()
	return out, nil
}

// compileProblems are the problems of what is published, by object, field and
// message.
func (c *Core) compileProblems() map[string]bool {
	c.compiling.Lock()
	defer c.compiling.Unlock()
	out := map[string]bool{}
	for _, v := range c.views {
		for _, p := range v.problems {
			out[change.Key(p)] = true
		}
	}
	return out
}

// tryCompile compiles a state that is not stored yet; what it finds is in the
// compilers' caches when the state is published.
func (c *Core) tryCompile(s *gateway.Snapshot) []gateway.Problem {
	c.compiling.Lock()
	defer c.compiling.Unlock()
	var all []gateway.Problem
	for _, v := range c.views {
		_, problems := c.compile(v, s)
		// What a gRPC client without a proxy cannot do is no reason to refuse a write.
		if !v.view.GRPC {
			all = append(all, problems...)
		}
	}
	return change.Unique(all)
}

// commitError is storeError for a write, which may have reached the store
// although no answer came back.
func commitError(err error) error {
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, store.ErrUncertain) {
		return status.Errorf(codes.Unavailable, "%v: the write may have happened all the same; repeat it, with the same request_id if it has one, or look at the history", err)
	}
	return service.StoreError(err)
}
