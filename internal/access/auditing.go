package access

import (
	"context"
	"slices"
	"sync"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
	"github.com/penstock-gateway/penstock/internal/access/audit"
)

// Verdicts of audit records.
const (
	verdictAllowed = "allowed"
	verdictRefused = "refused"
	verdictFailed  = "failed"
)

// note gathers what a call changes, for its audit record.
type note struct {
	mu      sync.Mutex
	objects []audit.Object
}

// maxObjects bounds the objects of one record; the store's history has all.
const maxObjects = 1000

func (n *note) changed(name, before, after string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(n.objects) < maxObjects {
		n.objects = append(n.objects, audit.Object{Name: name, Before: before, After: after})
	}
}

type noteKey struct{}

// noteChange notes a change that a method of this package made.
func noteChange(ctx context.Context, name, before, after string) {
	if n, ok := ctx.Value(noteKey{}).(*note); ok {
		n.changed(name, before, after)
	}
}

// empty reports whether nothing was changed.
func (n *note) empty() bool {
	if n == nil {
		return true
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	return len(n.objects) == 0
}

// record writes a record. What a known caller is refused is recorded ten times at
// once and then once a second, so that nobody pushes the rest out of the log; see also
// changedNothing.
func (s *Service) record(id *Identity, action, verdict, reason string, n *note) error {
	r := audit.Record{Identity: id.Name, Via: id.Via, From: id.From, Action: action, Verdict: verdict, Reason: reason}
	if verdict == verdictRefused && !s.refusals.allowed(id.Name) {
		return nil
	}
	if n != nil {
		n.mu.Lock()
		r.Objects = slices.Clone(n.objects)
		n.mu.Unlock()
	}
	err := s.audit.Append(r)
	if err != nil {
		s.log.Error("an audit record is lost", "error", err, "identity", r.Identity, "action", action, "verdict", verdict)
	}
	return err
}

// refusedCaller records somebody who is not known.
func (s *Service) refusedCaller(p presented, action string, why error) {
	who := &Identity{From: source(p)}
	_ = s.record(who, action, verdictRefused, status.Convert(why).Message(), nil)
}

// began refuses a call that changes something while the log cannot be written.
func (s *Service) began(r rule) error {
	if !r.writes {
		return nil
	}
	if err := s.audit.Ready(); err != nil {
		return status.Errorf(codes.Unavailable, "nothing may be changed while it cannot be recorded: %v", err)
	}
	return nil
}

// changedNothing reports whether a call left everything as it was: whoever may make it
// can make any number of those. After an error that may have come later, such as
// UNAVAILABLE, it is not known.
func changedNothing(r rule, n *note, err error) bool {
	if !n.empty() {
		return false
	}
	switch status.Code(err) {
	case codes.OK:
		return r.noted
	case codes.InvalidArgument, codes.NotFound, codes.AlreadyExists, codes.FailedPrecondition, codes.Aborted, codes.OutOfRange, codes.Unimplemented, codes.ResourceExhausted:
		return true
	}
	return false
}

// ended records a call that changes something, with its outcome. Calls that changed
// nothing are recorded as refusals are: ten at once and then one a second.
func (s *Service) ended(id *Identity, r rule, action string, n *note, err error) {
	code := status.Code(err)
	if r.writes && code != codes.PermissionDenied && changedNothing(r, n, err) && !s.refusals.allowed("nothing changed by "+id.Name) {
		return
	}
	switch {
	case code == codes.PermissionDenied:
		_ = s.record(id, action, verdictRefused, status.Convert(err).Message(), n)
	case !r.writes:
	case err != nil:
		// The message may quote what was sent.
		_ = s.record(id, action, verdictFailed, code.String(), n)
	default:
		_ = s.record(id, action, verdictAllowed, "", n)
	}
}

// ListAudit implements pb.AccessServiceServer.
func (v *Server) ListAudit(_ context.Context, r *pb.ListAuditRequest) (*pb.ListAuditResponse, error) {
	if err := validate(r); err != nil {
		return nil, err
	}
	limit := int(r.GetLimit())
	if limit <= 0 {
		limit = 100
	}
	all, err := v.s.audit.List(min(limit, 1000), func(a *audit.Record) bool {
		return (r.GetBefore() == 0 || a.Number < r.GetBefore()) && (r.GetIdentity() == "" || r.GetIdentity() == a.Identity) && (r.GetVerdict() == "" || r.GetVerdict() == a.Verdict)
	})
	if err != nil {
		return nil, status.Errorf(codes.Internal, "audit log: %v", err)
	}
	out := &pb.ListAuditResponse{}
	for _, a := range all {
		m := &pb.AuditRecord{
			Number: a.Number, Time: timestamppb.New(a.Time), Identity: a.Identity, Via: a.Via, From: a.From, Action: a.Action,
			Verdict: a.Verdict, Reason: a.Reason, Previous: a.Previous, Hash: a.Hash,
		}
		for _, o := range a.Objects {
			m.Objects = append(m.Objects, &pb.AuditObject{Name: o.Name, Before: o.Before, After: o.After})
		}
		out.Records = append(out.Records, m)
	}
	return out, nil
}

// VerifyAudit implements pb.AccessServiceServer.
func (v *Server) VerifyAudit(ctx context.Context, _ *pb.VerifyAuditRequest) (*pb.VerifyAuditResponse, error) {
	r, err := v.s.audit.Verify(ctx)
	if err != nil {
		return nil, status.Errorf(codes.Unavailable, "audit log: %v", err)
	}
	return &pb.VerifyAuditResponse{Ok: r.Broken == 0, First: r.First, Last: r.Last, Broken: r.Broken, Problem: r.Problem}, nil
}
