// Package change says what a write does to the configuration: which objects it changes,
// how, and whether it may. Everything here follows from the head and the write: nothing
// is stored, compiled for proxies or waited for, and there are no locks.
package change

import (
	"context"
	"slices"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/penstock-gateway/penstock/gateway"
	"github.com/penstock-gateway/penstock/gateway/policies"
	"github.com/penstock-gateway/penstock/gateway/source/api"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
	"github.com/penstock-gateway/penstock/store"
)

// Params are what a Planner needs.
type Params struct {
	// Now is the time that is written into objects.
	Now func() time.Time
	// Missing are the problems of functions whose uploaded code is not here.
	Missing func([]gateway.Object) []gateway.Problem
}

// Planner plans writes.
type Planner struct{ Params }

// New returns a Planner.
func New(p Params) *Planner { return &Planner{p} }

// Plan is a write that was checked against a head and would be the next revision.
type Plan struct {
	// Next is the head with the write; the head itself when nothing changes.
	Next *gateway.Snapshot
	// Changes are for the store, and Report for whoever writes.
	Changes []store.Change
	Report  []*pb.Change
	// Warnings are of all objects that were written, changed or not.
	Warnings []*pb.Warning
	// written are the names of the objects that get new content.
	written map[string]bool
}

// Writes reports whether the write gives an object new content.
func (p *Plan) Writes(name string) bool { return p.written[name] }

// Deleted are the names of the objects that the write takes away.
func (p *Plan) Deleted() (names []string) {
	for _, c := range p.Changes {
		if c.Resource == nil {
			names = append(names, c.Name)
		}
	}
	return names
}

// Outcome is what a caller is told of a write that made a revision, or changed nothing.
func (p *Plan) Outcome(revision int64, changed bool) *api.Outcome {
	return &api.Outcome{
		Result:  &pb.WriteResult{Revision: revision, Changed: changed, Warnings: p.Warnings},
		Changes: p.Report, Snapshot: p.Next,
	}
}

// Plan checks a write against the head and builds what it would lead to. It
// reports every problem of every object at once. Whether it may be done is asked of the
// Caller of ctx. Errors are gRPC statuses.
func (pl *Planner) Plan(ctx context.Context, head *gateway.Snapshot, w *api.Write) (*Plan, error) {
	if w.ExpectedRevision != 0 && w.ExpectedRevision != head.Revision() {
		return nil, status.Errorf(codes.Aborted, "expected_revision is %d, but the head is %d: read again and retry", w.ExpectedRevision, head.Revision())
	}
	mutations, err := withPrunes(head, w)
	if err != nil {
		return nil, err
	}
	// Before anything else is said of what is there.
	if err := api.CallerOf(ctx).MayChange(pl.touches(head, w, mutations)); err != nil {
		return nil, err
	}
	p := &Plan{Next: head, written: map[string]bool{}}
	var ch gateway.Changes
	var problems []gateway.Problem
	for _, m := range mutations {
		old := head.Get(m.Name)
		damaged := head.Damaged(m.Name)
		if damaged {
			old = nil // what is left of it is not what somebody wrote
			if err := damagedPrecondition(m); err != nil {
				return nil, err
			}
		} else if err := precondition(m, old); err != nil {
			return nil, err
		}
		if m.Mode == api.Delete {
			ch.Deletes = append(ch.Deletes, m.Name)
			p.Changes = append(p.Changes, store.Change{Name: m.Name})
			p.Report = append(p.Report, &pb.Change{Name: m.Name, Type: pb.ChangeType_CHANGE_TYPE_DELETE})
			continue
		}
		pl.stamp(m.Object, old, w)
		p.Warnings = append(p.Warnings, rolledBackWarning(m.Object, old)...)
		if _, version := m.Object.(*pb.FunctionVersion); !version { // its spec was one part of a function that was checked
			problems = append(problems, policies.Model().Validate(m.Object)...)
			p.Warnings = append(p.Warnings, gateway.AsWarnings(policies.Model().Warnings(m.Object))...)
		}
		if old != nil && old.GetMetadata().GetEtag() == m.Object.GetMetadata().GetEtag() {
			continue
		}
		ch.Updates = append(ch.Updates, m.Object)
		p.Changes = append(p.Changes, store.Change{Name: m.Name, Resource: gateway.ToResource(m.Object)})
		p.Report = append(p.Report, Of(old, m.Object))
		if damaged {
			p.Report[len(p.Report)-1].Type = pb.ChangeType_CHANGE_TYPE_UPDATE
		}
	}
	if len(problems) > 0 {
		return nil, Invalid(problems)
	}
	pl.keepVersions(head, w, p, &ch)
	if len(p.Changes) == 0 {
		return p, nil
	}
	p.Next = policies.Model().Build(head, head.Revision()+1, ch)
	var written []string
	for _, o := range ch.Updates {
		written = append(written, o.GetName())
		p.written[o.GetName()] = true
	}
	p.Warnings = append(p.Warnings, gateway.AsWarnings(slices.Concat(p.Next.Neighbours(written), p.Next.PolicyWarnings(written), p.Next.UnattachedRoutes(written), p.Next.Detached(head, slices.Concat(written, ch.Deletes))))...)
	return p, pl.check(head, p, ch)
}

// check refuses a next state whose references do not hold. Whether the compiler can turn
// it into what Envoy takes is not asked here.
func (pl *Planner) check(head *gateway.Snapshot, p *Plan, ch gateway.Changes) error {
	next := p.Next
	for _, name := range ch.Deletes {
		for _, r := range head.Dependents(name) {
			if next.Get(r) != nil && !p.Writes(r) {
				return status.Errorf(codes.FailedPrecondition, "%s cannot be deleted: %s refers to it (change or delete that first, or in the same Apply)", name, r)
			}
		}
	}
	var check []string
	for n := range p.written {
		check = append(check, n)
		// A change of an object (a subset that is gone, say) can break those that
		// refer to it.
		check = append(check, next.Dependents(n)...)
	}
	// A change of a listener can leave a route without requests that it matches.
	before := map[string]bool{}
	for _, p := range head.Problems() {
		before[p.Object] = true
	}
	for _, p := range next.Problems() {
		if !before[p.Object] {
			check = append(check, p.Object)
		}
	}
	slices.Sort(check)
	var problems []gateway.Problem
	if check = slices.Compact(check); len(check) > 0 {
		problems = next.Check(check...)
	}
	problems = append(problems, pl.Missing(ch.Updates)...)
	if len(problems) > 0 {
		return Invalid(problems)
	}
	return nil
}

// withPrunes normalises the mutations of a write, refuses duplicates and adds
// the deletions of a prune set.
func withPrunes(head *gateway.Snapshot, w *api.Write) ([]api.Mutation, error) {
	out := make([]api.Mutation, 0, len(w.Mutations))
	seen := make(map[string]bool, len(w.Mutations))
	for _, m := range w.Mutations {
		_, kind, _, err := gateway.KindOf(m.Name)
		if err != nil {
			return nil, status.Errorf(codes.InvalidArgument, "name %q: %v", m.Name, err)
		}
		if why := gateway.KindFor(kind).WrittenBy; why != "" && w.Source != sourceRollback {
			return nil, status.Errorf(codes.InvalidArgument, "%s: %s", m.Name, why)
		}
		if seen[m.Name] {
			return nil, status.Errorf(codes.InvalidArgument, "%s is named twice in one write", m.Name)
		}
		seen[m.Name] = true
		if m.Object != nil {
			// A plan may be made several times; each works on its own copy.
			m.Object = proto.Clone(m.Object).(gateway.Object)
			policies.Model().Normalize(m.Object)
			if w.PruneSet != "" {
				Annotate(m.Object, pruneSetAnnotation, w.PruneSet)
			}
		}
		out = append(out, m)
	}
	if w.PruneSet == "" {
		return out, nil
	}
	for o := range head.All() {
		if o.GetMetadata().GetAnnotations()[pruneSetAnnotation] == w.PruneSet && !seen[o.GetName()] {
			out = append(out, api.Mutation{Mode: api.Delete, Name: o.GetName(), Pruned: true})
		}
	}
	return out, nil
}

func precondition(m api.Mutation, old gateway.Object) error {
	switch {
	case m.Mode == api.Create && old != nil:
		return status.Errorf(codes.AlreadyExists, "%s exists already (etag %s)", m.Name, old.GetMetadata().GetEtag())
	case (m.Mode == api.Update || m.Mode == api.Delete) && old == nil:
		return status.Errorf(codes.NotFound, "%s does not exist", m.Name)
	case m.Etag != "" && old == nil:
		return status.Errorf(codes.Aborted, "%s was deleted: the etag %s is not current", m.Name, m.Etag)
	case m.Etag != "" && m.Etag != old.GetMetadata().GetEtag():
		return status.Errorf(codes.Aborted, "%s was changed by somebody else: etag is %s, not %s: read it again and retry", m.Name, old.GetMetadata().GetEtag(), m.Etag)
	}
	return nil
}

// damagedPrecondition is precondition for an object that is damaged in the store: it may
// be replaced or deleted by whoever does not insist on what it was.
func damagedPrecondition(m api.Mutation) error {
	if m.Etag == "" {
		return nil
	}
	return status.Errorf(codes.Aborted, "%s is damaged in the store, so its etag is not known: write it again without etag", m.Name)
}
