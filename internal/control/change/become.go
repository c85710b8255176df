package change

import (
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/penstock-gateway/penstock/gateway"
	"github.com/penstock-gateway/penstock/gateway/source/api"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// Become is the write that gives the head the content of another state; message is what
// its revision says unless options have their own.
func Become(head, target *gateway.Snapshot, o *pb.WriteOptions, caller, message string) (*api.Write, error) {
	// A rollback is a write of the old content: it passes the same checks, and
	// what Envoy or the model learned to refuse since does not come back.
	w := &api.Write{Options: o, Caller: caller, Source: sourceRollback}
	if o.GetMessage() == "" {
		w.Options = proto.Clone(orEmpty(o)).(*pb.WriteOptions)
		w.Options.Message = message
	}
	w.ExpectedRevision = head.Revision()
	if err := damagedTarget(head, target); err != nil {
		return nil, err
	}
	for _, name := range head.DamagedNames() {
		if target.Get(name) == nil && !target.Damaged(name) {
			w.Mutations = append(w.Mutations, api.Mutation{Mode: api.Delete, Name: name})
		}
	}
	for o := range head.All() {
		if head.Damaged(o.GetName()) {
			continue
		}
		if _, version := o.(*pb.FunctionVersion); !version && target.Get(o.GetName()) == nil {
			w.Mutations = append(w.Mutations, api.Mutation{Mode: api.Delete, Name: o.GetName()})
		}
	}
	for old := range target.All() {
		if target.Damaged(old.GetName()) {
			continue // as it is in the head
		}
		if now := head.Get(old.GetName()); now != nil && now.GetMetadata().GetEtag() == old.GetMetadata().GetEtag() {
			continue
		}
		// A version never changes; one that is gone comes back, for traffic may name it.
		if _, version := old.(*pb.FunctionVersion); version && head.Get(old.GetName()) != nil && !head.Damaged(old.GetName()) {
			continue
		}
		w.Mutations = append(w.Mutations, api.Mutation{Mode: api.Upsert, Name: old.GetName(), Object: old})
	}
	return w, nil
}

// damagedTarget refuses to go back to a revision of which objects are damaged that the
// head has whole, or has not.
func damagedTarget(head, target *gateway.Snapshot) error {
	var bad []string
	for _, name := range target.DamagedNames() {
		if !head.Damaged(name) {
			bad = append(bad, name)
		}
	}
	if len(bad) == 0 {
		return nil
	}
	return status.Errorf(codes.DataLoss, "revision %d cannot be restored: %s (choose another revision, or apply what you want)", target.Revision(), Damaged(bad))
}

// Damaged says of some objects that they are damaged.
func Damaged(names []string) string {
	verb := " are"
	if len(names) == 1 {
		verb = " is"
	}
	return strings.Join(names, ", ") + verb + " damaged in the store"
}

func orEmpty(o *pb.WriteOptions) *pb.WriteOptions {
	if o == nil {
		return &pb.WriteOptions{}
	}
	return o
}
