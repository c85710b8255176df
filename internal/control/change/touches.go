package change

import (
	"context"

	"google.golang.org/protobuf/proto"

	"github.com/penstock-gateway/penstock/gateway"
	"github.com/penstock-gateway/penstock/gateway/source/api"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
	"github.com/penstock-gateway/penstock/internal/control/service"
)

// touches are the objects that a write is about, for the check of who may do that.
func (pl *Planner) touches(head *gateway.Snapshot, w *api.Write, mutations []api.Mutation) []api.Touch {
	out := make([]api.Touch, 0, len(mutations))
	named := map[string]gateway.Object{}
	for _, m := range mutations {
		named[m.Name] = m.Object
	}
	for _, m := range mutations {
		if _, version := m.Object.(*pb.FunctionVersion); version {
			continue // counts with its function, which alone gives it requests
		}
		t := api.Touch{Name: m.Name, Old: head.Get(m.Name), New: m.Object, Pruned: m.Pruned, Look: w.Look}
		t.Unchanged = pl.unchanged(w, m, t.Old, head.Damaged(m.Name))
		if f, ok := m.Object.(*pb.Function); ok {
			for _, tr := range f.GetTraffic() {
				if v := versionSpec(head, named, m.Name, tr.GetVersion()); v != nil {
					t.Versions = append(t.Versions, v)
				}
			}
		}
		out = append(out, t)
	}
	return out
}

// unchanged is how to find out whether a write leaves an object as it is; nil where that
// changes nothing about the rights that it needs. Whoever could learn so what a Secret
// holds may guess; and a function is more than its object: versions and a relaxed isolation.
func (pl *Planner) unchanged(w *api.Write, m api.Mutation, old gateway.Object, damaged bool) func() bool {
	switch m.Object.(type) {
	case nil, *pb.Secret, *pb.Function, *pb.FunctionVersion:
		return nil
	}
	if old == nil || damaged {
		return nil
	}
	return func() bool {
		next := proto.Clone(m.Object).(gateway.Object)
		pl.stamp(next, old, w)
		return next.GetMetadata().GetEtag() == old.GetMetadata().GetEtag()
	}
}

// versionSpec is what a version of a function runs, as it is or comes with the write.
func versionSpec(head *gateway.Snapshot, named map[string]gateway.Object, function string, number int64) *pb.Function {
	if number == 0 {
		return nil
	}
	name := gateway.VersionOf(function, number)
	if v, ok := named[name].(*pb.FunctionVersion); ok {
		return v.GetSpec()
	}
	v, _ := head.Get(name).(*pb.FunctionVersion)
	return v.GetSpec()
}

// Note notes for the audit log what a write that is stored changed.
func (p *Plan) Note(ctx context.Context, before *gateway.Snapshot) {
	etag := func(o gateway.Object) string {
		if o == nil {
			return ""
		}
		return o.GetMetadata().GetEtag()
	}
	for _, ch := range p.Changes {
		service.NoteChange(ctx, ch.Name, etag(before.Get(ch.Name)), etag(p.Next.Get(ch.Name)))
	}
}
