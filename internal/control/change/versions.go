package change

import (
	"slices"

	"google.golang.org/protobuf/proto"

	"github.com/penstock-gateway/penstock/gateway"
	"github.com/penstock-gateway/penstock/gateway/source/api"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
	"github.com/penstock-gateway/penstock/internal/versioned"
	"github.com/penstock-gateway/penstock/store"
)

// sourceRollback is the source of writes that bring back an old revision. Only they
// may write versions of functions.
const sourceRollback = "rollback"

// VersionsKept is how many versions of a function are kept, beside those that get
// requests.
const VersionsKept = 10

// keepVersions adds to a plan the versions that its functions begin, and takes
// away those that nothing needs any more.
func (pl *Planner) keepVersions(head *gateway.Snapshot, w *api.Write, p *Plan, ch *gateway.Changes) {
	remove := func(v *pb.FunctionVersion) {
		ch.Deletes = append(ch.Deletes, v.GetName())
		p.Changes = append(p.Changes, store.Change{Name: v.GetName()})
	}
	for _, name := range slices.Clone(ch.Deletes) {
		if _, ok := head.Get(name).(*pb.Function); ok {
			for _, v := range head.Versions(name) {
				remove(v)
			}
		}
	}
	for _, o := range slices.Clone(ch.Updates) {
		f, ok := o.(*pb.Function)
		if !ok {
			continue
		}
		versions := head.Versions(f.GetName())
		for _, o := range ch.Updates { // by a rollback
			if v, ok := o.(*pb.FunctionVersion); ok && v.GetFunction() == f.GetName() {
				versions = append(versions, v)
			}
		}
		spec := versioned.Part(f)
		is := func(v *pb.FunctionVersion) bool { return proto.Equal(v.GetSpec(), spec) }
		if !slices.ContainsFunc(versions, is) {
			number := head.Revision() + 1
			v := &pb.FunctionVersion{
				Name: gateway.VersionOf(f.GetName(), number), Function: f.GetName(), Number: number, Spec: spec,
			}
			pl.stamp(v, nil, w)
			ch.Updates = append(ch.Updates, v)
			p.Changes = append(p.Changes, store.Change{Name: v.GetName(), Resource: gateway.ToResource(v)})
		}
		for i, v := range versions {
			used := slices.ContainsFunc(f.GetTraffic(), func(t *pb.Traffic) bool { return t.GetVersion() == v.GetNumber() })
			if i >= VersionsKept-1 && !used && !is(v) {
				remove(v)
			}
		}
	}
}
