package control

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/penstock-gateway/penstock/gateway"
	"github.com/penstock-gateway/penstock/gateway/policies"
	"github.com/penstock-gateway/penstock/gateway/source/api"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
	"github.com/penstock-gateway/penstock/internal/control/change"
	"github.com/penstock-gateway/penstock/internal/control/service"
	"github.com/penstock-gateway/penstock/xds"
	"github.com/penstock-gateway/penstock/xds/compile"
)

// Diff implements api.Core.
func (c *Core) Diff(ctx context.Context, w *api.Write) (*pb.DiffResponse, error) {
	head := c.Snapshot()
	p, err := c.plan(ctx, w)
	if err != nil {
		return nil, err
	}
	return &pb.DiffResponse{Changes: p.Report, Warnings: p.Warnings, ProxyChanges: c.proxyChanges(head, p.Next, (*view).same)}, nil
}

// DiffRevisions implements api.Core.
func (c *Core) DiffRevisions(ctx context.Context, from, to int64) (*pb.DiffResponse, error) {
	if to == 0 {
		to = c.Snapshot().Revision()
	}
	before, err := c.at(ctx, from)
	if err != nil {
		return nil, err
	}
	changes, err := c.store.Diff(ctx, from, to)
	all, err := toChanges(changes, err)
	if err != nil {
		return nil, service.StoreError(err)
	}
	out := &pb.DiffResponse{}
	for _, ch := range changes {
		out.Changes = append(out.Changes, change.Of(before.Get(ch.Name), gateway.FromResource(ch.Resource)))
	}
	for _, d := range all.Damaged {
		out.Changes = append(out.Changes, &pb.Change{Name: d.Name, Type: pb.ChangeType_CHANGE_TYPE_UPDATE})
	}
	after := policies.Model().Build(before, to, all)
	// The compilers of the views keep what they made of the head; a state that was
	// built from the store shares nothing with it and would only empty their caches.
	out.ProxyChanges = c.proxyChanges(before, after, func(*view) *compile.Compiler { return compile.New(c.settings) })
	return out, nil
}

// at is the snapshot of a stored revision.
func (c *Core) at(ctx context.Context, revision int64) (*gateway.Snapshot, error) {
	if s := c.Snapshot(); s.Revision() == revision {
		return s, nil
	}
	whole, err := c.whole(ctx, revision)
	if err != nil {
		return nil, service.StoreError(err)
	}
	return policies.Model().Build(nil, revision, whole), nil
}

// Rollback implements api.Core.
func (c *Core) Rollback(ctx context.Context, r *pb.RollbackRequest, caller string) (*api.Outcome, error) {
	o := r.GetOptions()
	if err := checkOptions(o); err != nil {
		return nil, err
	}
	target, err := c.at(ctx, r.GetRevision())
	if err != nil {
		return nil, err
	}
	return c.become(ctx, target, o, caller, fmt.Sprintf("rollback to revision %d", r.GetRevision()))
}

// same is the compiler of a view, for states that share most with the head.
func (v *view) same() *compile.Compiler { return v.compiler }

// proxyChanges says which Envoy resources differ between two states, over all
// views.
func (c *Core) proxyChanges(before, after *gateway.Snapshot, with func(*view) *compile.Compiler) []*pb.ProxyChange {
	c.compiling.Lock()
	defer c.compiling.Unlock()
	found := map[xds.Ref]*pb.ProxyChange{}
	for _, v := range c.views {
		compiler := with(v)
		a, _ := compiler.Compile(c.input(before, v))
		b, _ := compiler.Compile(c.input(after, v))
		for _, r := range differing(a, b) {
			old, now := a.Get(r.Type, r.Name), b.Get(r.Type, r.Name)
			ch := &pb.ProxyChange{Type: r.Type.Short(), Resource: r.Name, Change: pb.ChangeType_CHANGE_TYPE_UPDATE}
			switch {
			case old == nil:
				ch.Change = pb.ChangeType_CHANGE_TYPE_CREATE
			case now == nil:
				ch.Change = pb.ChangeType_CHANGE_TYPE_DELETE
			}
			// Envoy drains the connections of a listener that changes or goes.
			ch.Drains = r.Type == xds.Listener && old != nil
			ch.OnDemand = now != nil && now.Lazy
			found[r] = ch
		}
	}
	out := make([]*pb.ProxyChange, 0, len(found))
	for _, ch := range found {
		out = append(out, ch)
	}
	slices.SortFunc(out, func(a, b *pb.ProxyChange) int {
		return strings.Compare(a.GetType()+" "+a.GetResource(), b.GetType()+" "+b.GetResource())
	})
	return out
}

// differing returns the resources of which a and b hold different versions.
func differing(a, b *xds.Generation) []xds.Ref {
	return slices.DeleteFunc(b.Since(a), func(ref xds.Ref) bool {
		x, y := a.Get(ref.Type, ref.Name), b.Get(ref.Type, ref.Name)
		return x != nil && y != nil && x.Version == y.Version
	})
}

// become makes a new revision with the content of another state; see change.Become.
func (c *Core) become(ctx context.Context, target *gateway.Snapshot, o *pb.WriteOptions, caller, message string) (*api.Outcome, error) {
	w, err := change.Become(c.Snapshot(), target, o, caller, message)
	if err != nil {
		return nil, err
	}
	return c.Write(ctx, w)
}

// Revisions implements api.Core.
func (c *Core) Revisions(ctx context.Context, before int64, limit int) ([]*pb.Revision, error) {
	revs, err := c.store.List(ctx, before, limit)
	if err != nil {
		return nil, service.StoreError(err)
	}
	out := make([]*pb.Revision, 0, len(revs))
	for _, r := range revs {
		out = append(out, revision(r))
	}
	return out, nil
}

// History implements api.Core.
func (c *Core) History(ctx context.Context, object string, before int64, limit int) ([]*pb.Revision, int64, error) {
	editions, next, err := c.store.History(ctx, object, before, limit)
	if err != nil {
		return nil, 0, service.StoreError(err)
	}
	out := make([]*pb.Revision, 0, len(editions))
	for _, e := range editions {
		r := revision(e.Revision)
		r.ObjectChange = &pb.Change{Name: object}
		if e.Damaged != "" {
			r.Damage = e.Damaged
		} else if !e.Oldest {
			r.ObjectChange = change.Of(gateway.FromResource(e.Before), gateway.FromResource(e.After))
		}
		out = append(out, r)
	}
	return out, next, nil
}

// Watch implements api.Core.
func (c *Core) Watch(ctx context.Context, from int64, kinds []string, send func(*pb.WatchResponse) error) error {
	for _, k := range kinds {
		if gateway.KindFor(k) == nil {
			return status.Errorf(codes.InvalidArgument, "kinds: %q is none of %s", k, strings.Join(gateway.Collections(), ", "))
		}
	}
	who := api.CallerOf(ctx)
	wants := func(name string) bool {
		_, collection, _, err := gateway.KindOf(name)
		return err == nil && (len(kinds) == 0 || slices.Contains(kinds, collection)) && who.MayRead(name)
	}
	for {
		wake := c.heads.Next()
		s := c.Snapshot()
		if from > s.Revision() {
			return status.Errorf(codes.OutOfRange, "from_revision is %d, but the head is %d", from, s.Revision())
		}
		out, annotate := &pb.WatchResponse{Revision: s.Revision()}, c.Annotator()
		switch {
		case from == 0:
			for o := range s.All() {
				if wants(o.GetName()) {
					out.Updates = append(out.Updates, gateway.ToResource(annotate(o)))
				}
			}
		case from < s.Revision():
			diff, err := c.store.Diff(ctx, from, s.Revision())
			if err != nil {
				return service.StoreError(err)
			}
			for _, d := range diff {
				if !wants(d.Name) {
					continue
				}
				if o := gateway.FromResource(d.Resource); o == nil {
					out.Deletes = append(out.Deletes, d.Name)
				} else {
					out.Updates = append(out.Updates, gateway.ToResource(annotate(o)))
				}
			}
		}
		out.Bookmark = len(out.Updates)+len(out.Deletes) == 0
		if err := send(out); err != nil {
			return err
		}
		// From here on nothing is "the whole state", even when the head is 0.
		if from = s.Revision(); from == 0 {
			from = -1
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-wake:
		}
	}
}
