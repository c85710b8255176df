package api

import (
	"context"
	"slices"
	"strconv"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/penstock-gateway/penstock/gateway"
	"github.com/penstock-gateway/penstock/gateway/explain"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

type configService struct {
	pb.UnimplementedConfigServiceServer
	core Core
}

// writeOf turns an ApplyRequest into a Write. All unset resources are reported.
func writeOf(ctx context.Context, r *pb.ApplyRequest) (*Write, error) {
	if r.GetPruneSet() != "" && len(r.GetResources()) == 0 && !r.GetAllowEmpty() {
		return nil, status.Errorf(codes.InvalidArgument, "prune_set: there are no resources, so the whole set %.128q would be deleted; allow_empty says that this is meant", r.GetPruneSet())
	}
	w := &Write{
		PruneSet: r.GetPruneSet(), ExpectedRevision: r.GetExpectedRevision(),
		Options: r.GetOptions(), Caller: CallerName(ctx), Source: source(ctx),
	}
	for i, res := range r.GetResources() {
		o := gateway.FromResource(res)
		if o == nil {
			return nil, status.Errorf(codes.InvalidArgument, "resources[%d]: names no kind; set exactly one of gateway, route, backend, function, consumer, secret", i)
		}
		w.Mutations = append(w.Mutations, Mutation{Mode: Upsert, Name: o.GetName(), Object: o, Etag: o.GetMetadata().GetEtag()})
	}
	for _, name := range r.GetDeletes() {
		w.Mutations = append(w.Mutations, Mutation{Mode: Delete, Name: name})
	}
	return w, nil
}

func (s *configService) Apply(ctx context.Context, r *pb.ApplyRequest) (*pb.ApplyResponse, error) {
	w, err := writeOf(ctx, r)
	if err != nil {
		return nil, err
	}
	out, err := s.core.Write(ctx, w)
	if err != nil {
		return nil, err
	}
	return &pb.ApplyResponse{Result: out.Result, Changes: out.Changes}, nil
}

func (s *configService) Diff(ctx context.Context, r *pb.DiffRequest) (*pb.DiffResponse, error) {
	if r.GetApply() == nil {
		if r.GetFromRevision() == 0 {
			return nil, status.Error(codes.InvalidArgument, "apply or from_revision must be set")
		}
		d, err := s.core.DiffRevisions(ctx, r.GetFromRevision(), r.GetToRevision())
		if err != nil {
			return nil, err
		}
		return SeenDiff(CallerOf(ctx), d), nil
	}
	w, err := writeOf(ctx, r.GetApply())
	if err != nil {
		return nil, err
	}
	w.Look = true
	return s.core.Diff(ctx, w)
}

func (s *configService) ListRevisions(ctx context.Context, r *pb.ListRevisionsRequest) (*pb.ListRevisionsResponse, error) {
	size := int(r.GetPageSize())
	if size <= 0 {
		size = 20
	}
	size = min(size, 1000)
	var before int64
	if t := r.GetPageToken(); t != "" {
		n, err := strconv.ParseInt(t, 10, 64)
		if err != nil || n < 1 {
			return nil, status.Error(codes.InvalidArgument, "page_token: is not one that this server gave")
		}
		before = n
	}
	if r.GetObject() != "" {
		return s.history(ctx, r.GetObject(), before, size)
	}
	revs, err := s.core.Revisions(ctx, before, size)
	if err != nil {
		return nil, err
	}
	out := &pb.ListRevisionsResponse{Revisions: revs}
	if n := len(revs); n == size && revs[n-1].GetNumber() > 1 {
		out.NextPageToken = strconv.FormatInt(revs[n-1].GetNumber(), 10)
	}
	return out, nil
}

// history is a page of the history of one object.
func (s *configService) history(ctx context.Context, object string, before int64, size int) (*pb.ListRevisionsResponse, error) {
	if _, _, _, err := gateway.KindOf(object); err != nil {
		return nil, status.Errorf(codes.InvalidArgument, "object: %v", err)
	}
	if !CallerOf(ctx).MayRead(object) {
		return nil, status.Errorf(codes.PermissionDenied, "object: you may not read %s", object)
	}
	revs, next, err := s.core.History(ctx, object, before, size)
	if err != nil {
		return nil, err
	}
	out := &pb.ListRevisionsResponse{Revisions: revs}
	if next > 0 {
		out.NextPageToken = strconv.FormatInt(next, 10)
	}
	return out, nil
}

func (s *configService) Rollback(ctx context.Context, r *pb.RollbackRequest) (*pb.RollbackResponse, error) {
	if r.GetRevision() < 1 {
		return nil, status.Error(codes.InvalidArgument, "revision: must be one of the history (see ListRevisions)")
	}
	out, err := s.core.Rollback(ctx, r, CallerName(ctx))
	if err != nil {
		return nil, err
	}
	return &pb.RollbackResponse{Result: out.Result, Changes: out.Changes}, nil
}

func (s *configService) Watch(r *pb.WatchRequest, stream grpc.ServerStreamingServer[pb.WatchResponse]) error {
	return s.core.Watch(stream.Context(), r.GetFromRevision(), r.GetKinds(), stream.Send)
}

func (s *configService) WaitServing(r *pb.WaitServingRequest, stream grpc.ServerStreamingServer[pb.WaitServingResponse]) error {
	return s.core.WaitServing(stream.Context(), r.GetRevision(), func(rep *pb.ServingReport) error {
		return stream.Send(&pb.WaitServingResponse{Report: seenReport(CallerOf(stream.Context()), rep)})
	})
}

type proxyService struct {
	pb.UnimplementedProxyServiceServer
	core Core
}

func (s *proxyService) ListProxies(ctx context.Context, _ *pb.ListProxiesRequest) (*pb.ListProxiesResponse, error) {
	return &pb.ListProxiesResponse{Proxies: seen(CallerOf(ctx), s.core.Proxies())}, nil
}

func (s *proxyService) GetStatus(ctx context.Context, _ *pb.GetStatusRequest) (*pb.GetStatusResponse, error) {
	st, err := s.core.Status(ctx)
	if err != nil {
		return nil, err
	}
	return seenStatus(CallerOf(ctx), st), nil
}

type explainService struct {
	pb.UnimplementedExplainServiceServer
	core Core
}

func (s *explainService) Explain(_ context.Context, r *pb.ExplainRequest) (*pb.ExplainResponse, error) {
	e := explain.Explain(s.core.Snapshot(), r, s.core.Known())
	if l := e.GetListener(); l != nil {
		l.Layout = s.core.Layout(l.GetGateway(), l.GetListener(), e.GetHost())
	}
	return e, nil
}

// sourceHeader lets our own clients say what they are: a label for the history,
// never a ground for a decision.
const sourceHeader = "x-penstock-source"

// sources are what a client may call itself. Others, "rollback" among them, are of
// the control plane, which treats its own writes otherwise.
var sources = []string{"cli", "rest", "up"}

func source(ctx context.Context) string {
	md, _ := metadata.FromIncomingContext(ctx)
	if v := md.Get(sourceHeader); len(v) > 0 && slices.Contains(sources, v[0]) {
		return v[0]
	}
	return "api"
}
