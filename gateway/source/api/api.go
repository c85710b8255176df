// Package api is the front door for programs: the gRPC services of
// proto/penstock/v1 and, through grpc-gateway, their REST form. It holds no state:
// every read and write goes to a Core.
//
// The typed methods of a kind (GetRoute, ListRoutes, …) follow AIP-131 to 135 and
// have one generic implementation for all kinds (kinds.go).
package api

import (
	"context"

	"google.golang.org/grpc"

	"github.com/penstock-gateway/penstock/gateway"
	"github.com/penstock-gateway/penstock/gateway/explain"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// Mode says what a Mutation expects to find.
type Mode int

// The modes of a Mutation.
const (
	// Upsert creates or replaces.
	Upsert Mode = iota
	// Create fails with ALREADY_EXISTS when the object is there.
	Create
	// Update fails with NOT_FOUND when it is not.
	Update
	// Delete removes it; NOT_FOUND when it is not there.
	Delete
)

// Mutation is one object of a write.
type Mutation struct {
	Mode Mode
	// Name is the full name.
	Name string
	// Object is the new content; nil for Delete. The Core takes it over.
	Object gateway.Object
	// Etag, when set, must be the current one, else the write is ABORTED.
	Etag string
	// Pruned: nobody named it; it goes because the prune set no longer holds it.
	Pruned bool
}

// Write is a set of mutations that make one revision, or none.
type Write struct {
	Mutations []Mutation
	// PruneSet, when set, deletes every object of that set that no mutation names
	// and puts the named ones into it.
	PruneSet string
	// ExpectedRevision, when not 0, must be the head.
	ExpectedRevision int64
	Options          *pb.WriteOptions
	// Caller is who writes, for the history and the origin of objects. What it may
	// change is checked by the Caller of the context.
	Caller string
	// Look: nothing is to be written; the caller must be allowed to see what would
	// change, not to change it.
	Look bool
	// Source is the front door, for the origin of objects that name none.
	Source string
}

// Outcome is what a Write did.
type Outcome struct {
	Result  *pb.WriteResult
	Changes []*pb.Change
	// Snapshot holds the objects as stored (or as they would be).
	Snapshot *gateway.Snapshot
}

// Core is what the API needs of the control plane.
type Core interface {
	// Snapshot is the newest state that this replica has.
	Snapshot() *gateway.Snapshot
	// Write does a write. Its errors are gRPC statuses.
	Write(ctx context.Context, w *Write) (*Outcome, error)
	// Rollback makes a new revision with the content of an old one.
	Rollback(ctx context.Context, r *pb.RollbackRequest, caller string) (*Outcome, error)
	// Diff says what a Write would do, to the model and to the proxies.
	Diff(ctx context.Context, w *Write) (*pb.DiffResponse, error)
	// DiffRevisions compares two stored revisions; to 0 is the head.
	DiffRevisions(ctx context.Context, from, to int64) (*pb.DiffResponse, error)
	// Revisions returns history, newest first, below before (0: from the head).
	Revisions(ctx context.Context, before int64, limit int) ([]*pb.Revision, error)
	// History returns the part of it that changed one object, with what changed; next is
	// before for the rest, 0 when there is none.
	History(ctx context.Context, object string, before int64, limit int) (revisions []*pb.Revision, next int64, err error)
	// Watch calls send for everything after from, until ctx ends or send fails.
	Watch(ctx context.Context, from int64, kinds []string, send func(*pb.WatchResponse) error) error
	// WaitServing calls send with progress until every proxy serves revision.
	WaitServing(ctx context.Context, revision int64, send func(*pb.ServingReport) error) error
	// Annotator returns a function that copies an object, with its status as it is
	// now filled in and what may not leave the control plane taken out.
	Annotator() func(gateway.Object) gateway.Object
	// Proxies returns the connected proxies by name.
	Proxies() []*pb.Proxy
	// Status returns the state of the whole.
	Status(ctx context.Context) (*pb.GetStatusResponse, error)
	// Layout tells how a host of a listener is laid out in xDS, for Explain.
	Layout(gateway, listener, hostname string) string
	// Known is what Explain takes from the control plane beside the configuration.
	Known() *explain.Known
}

// Register adds all configuration services to a gRPC server.
func Register(s grpc.ServiceRegistrar, core Core) {
	registerKinds(s, core)
	pb.RegisterConfigServiceServer(s, &configService{core: core})
	pb.RegisterProxyServiceServer(s, &proxyService{core: core})
	pb.RegisterExplainServiceServer(s, &explainService{core: core})
}
