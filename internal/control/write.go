package control

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"buf.build/go/protovalidate"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/protoadapt"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/penstock-gateway/penstock/gateway"
	"github.com/penstock-gateway/penstock/gateway/policies"
	"github.com/penstock-gateway/penstock/gateway/source/api"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
	"github.com/penstock-gateway/penstock/internal/control/service"
	"github.com/penstock-gateway/penstock/store"
)

// pruneSetAnnotation names the set that an object was applied with.
const pruneSetAnnotation = "penstock.dev/prune-set"

// manyChanges is a write after which memory is given back to the system.
const manyChanges = 1000

// maxViolations bounds the problems in one error, which travels in the trailers
// of a response.
const maxViolations = 50

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
	changed := changedFunctions(out)
	ctx, cancel := context.WithTimeout(ctx, waitTimeout(w.Options))
	defer cancel()
	problems := c.runners.waitReady(ctx, changed, namedFunctions(out, w, changed), nil)
	c.waitEndpoints(ctx, changed)
	rep := c.wait(ctx, out.Result.GetRevision())
	named := make([]string, 0, len(w.Mutations))
	for _, m := range w.Mutations {
		named = append(named, m.Name)
	}
	rep.Problems = slices.Concat(rep.Problems, unattached(out.Snapshot, named), problems)
	return rep
}

// changedFunctions are the functions whose instances a write replaces: those that it
// changed, and those that get a value of a secret that it changed.
func changedFunctions(out *api.Outcome) []*pb.Function {
	names := map[string]bool{}
	for _, ch := range out.Changes {
		names[ch.GetName()] = true
		if _, secret := out.Snapshot.Get(ch.GetName()).(*pb.Secret); secret {
			for _, n := range out.Snapshot.Dependents(ch.GetName()) {
				names[n] = true
			}
		}
	}
	var functions []*pb.Function
	for _, n := range slices.Sorted(maps.Keys(names)) {
		if f, ok := out.Snapshot.Get(n).(*pb.Function); ok {
			functions = append(functions, f)
		}
	}
	return functions
}

// namedFunctions are the functions that a write names beside those that it changed.
func namedFunctions(out *api.Outcome, w *api.Write, changed []*pb.Function) []*pb.Function {
	var functions []*pb.Function
	for _, m := range w.Mutations {
		f, ok := out.Snapshot.Get(m.Name).(*pb.Function)
		if ok && !slices.ContainsFunc(changed, func(c *pb.Function) bool { return c.GetName() == f.GetName() }) {
			functions = append(functions, f)
		}
	}
	return functions
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
		if w.Options.GetValidateOnly() || len(plan.changes) == 0 {
			return plan.outcome(c.Snapshot().Revision(), false), nil
		}
		rev, err := c.store.Commit(ctx, c.Snapshot().Revision(), plan.changes, store.Info{
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
		tellChanges(ctx, c.Snapshot(), plan)
		c.install(plan.next)
		if len(plan.changes) > manyChanges {
			// What a big write left behind would stay resident for minutes.
			c.background(func(context.Context) { debug.FreeOSMemory() })
		}
		return plan.outcome(rev.Number, true), nil
	}
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

// plan is a write that was checked and would be the next revision.
type plan struct {
	next    *gateway.Snapshot
	changes []store.Change
	report  []*pb.Change
	// warnings are of all objects that were written, changed or not.
	warnings []*pb.Warning
}

func (p *plan) outcome(revision int64, changed bool) *api.Outcome {
	return &api.Outcome{
		Result:  &pb.WriteResult{Revision: revision, Changed: changed, Warnings: p.warnings},
		Changes: p.report, Snapshot: p.next,
	}
}

// plan checks a write against the head and builds what it would lead to. It
// reports every problem of every object at once.
func (c *Core) plan(ctx context.Context, w *api.Write) (*plan, error) {
	head := c.Snapshot()
	if w.ExpectedRevision != 0 && w.ExpectedRevision != head.Revision() {
		return nil, status.Errorf(codes.Aborted, "expected_revision is %d, but the head is %d: read again and retry", w.ExpectedRevision, head.Revision())
	}
	mutations, err := withPrunes(head, w)
	if err != nil {
		return nil, err
	}
	// Before anything else is said of what is there.
	if err := api.CallerOf(ctx).MayChange(touches(head, w, mutations)); err != nil {
		return nil, err
	}
	p := &plan{}
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
			p.changes = append(p.changes, store.Change{Name: m.Name})
			p.report = append(p.report, &pb.Change{Name: m.Name, Type: pb.ChangeType_CHANGE_TYPE_DELETE})
			continue
		}
		c.stamp(m.Object, old, w)
		p.warnings = append(p.warnings, rolledBackWarning(m.Object, old)...)
		if _, version := m.Object.(*pb.FunctionVersion); !version { // its spec was one part of a function that was checked
			problems = append(problems, policies.Model().Validate(m.Object)...)
			p.warnings = append(p.warnings, gateway.AsWarnings(policies.Model().Warnings(m.Object))...)
		}
		if old != nil && old.GetMetadata().GetEtag() == m.Object.GetMetadata().GetEtag() {
			continue
		}
		ch.Updates = append(ch.Updates, m.Object)
		p.changes = append(p.changes, store.Change{Name: m.Name, Resource: gateway.ToResource(m.Object)})
		p.report = append(p.report, changeOf(old, m.Object))
		if damaged {
			p.report[len(p.report)-1].Type = pb.ChangeType_CHANGE_TYPE_UPDATE
		}
	}
	if len(problems) > 0 {
		return nil, invalid(problems)
	}
	c.keepVersions(head, w, p, &ch)
	if len(p.changes) == 0 {
		p.next = head
		return p, nil
	}
	p.next = policies.Model().Build(head, head.Revision()+1, ch)
	var written []string
	for _, o := range ch.Updates {
		written = append(written, o.GetName())
	}
	p.warnings = append(p.warnings, gateway.AsWarnings(slices.Concat(p.next.Neighbours(written), p.next.PolicyWarnings(written), p.next.UnattachedRoutes(written), p.next.Detached(head, slices.Concat(written, ch.Deletes))))...)
	return p, c.checkNext(head, p.next, ch)
}

// checkNext refuses a next state whose references do not hold or that the
// compiler cannot turn into what Envoy takes.
func (c *Core) checkNext(head, next *gateway.Snapshot, ch gateway.Changes) error {
	names := map[string]bool{}
	for _, o := range ch.Updates {
		names[o.GetName()] = true
	}
	for _, name := range ch.Deletes {
		for _, r := range head.Dependents(name) {
			if next.Get(r) != nil && !names[r] {
				return status.Errorf(codes.FailedPrecondition, "%s cannot be deleted: %s refers to it (change or delete that first, or in the same Apply)", name, r)
			}
		}
	}
	var check []string
	for n := range names {
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
	problems = append(problems, c.packages.missing(ch.Updates)...)
	if len(problems) == 0 {
		// Problems that were there before are not this write's fault; a new one is,
		// even of another object: a listener can take another gateway's port.
		before := c.compileProblems()
		for _, p := range c.tryCompile(next) {
			if names[p.Object] || !before[problemKey(p)] {
				problems = append(problems, p)
			}
		}
	}
	if len(problems) > 0 {
		return invalid(problems)
	}
	return nil
}

// compileProblems are the problems of what is published, by object, field and
// message.
func (c *Core) compileProblems() map[string]bool {
	c.compiling.Lock()
	defer c.compiling.Unlock()
	out := map[string]bool{}
	for _, v := range c.views {
		for _, p := range v.problems {
			out[problemKey(p)] = true
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
	return unique(all)
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
		if kind == gateway.KindFunctionVersions && w.Source != sourceRollback {
			return nil, status.Errorf(codes.InvalidArgument, "%s: versions are made by writes of their function and never change; which of them get requests is said by its traffic", m.Name)
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
				setAnnotation(m.Object, pruneSetAnnotation, w.PruneSet)
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

// stamp fills what the server writes: uid, times, origin, etag.
func (c *Core) stamp(o, old gateway.Object, w *api.Write) {
	md := metadataOf(o)
	clearStatus(o)
	now := timestamppb.New(c.now())
	md.Uid, md.CreateTime, md.UpdateTime = rand.Text(), now, now
	if old != nil {
		md.Uid, md.CreateTime = old.GetMetadata().GetUid(), old.GetMetadata().GetCreateTime()
		// A write without a set leaves the object in the set that it is in.
		if set := old.GetMetadata().GetAnnotations()[pruneSetAnnotation]; set != "" && w.PruneSet == "" {
			setAnnotation(o, pruneSetAnnotation, set)
		}
	}
	if md.GetOrigin().GetSource() == "" {
		md.Origin = &pb.Origin{Source: w.Source}
	}
	md.Origin.Caller = w.Caller
	keepHidden(o, old)
	if w.Source != sourceRollback {
		keepRollback(o, old)
	}
	md.Etag = etag(o, old)
}

// keepHidden lets a client send back a Secret that it read: the API never returns
// values, so an update without them, or with gateway.HiddenValue, means "as it was".
func keepHidden(o, old gateway.Object) {
	s, ok := o.(*pb.Secret)
	was, _ := old.(*pb.Secret)
	if !ok || was == nil {
		return
	}
	if s.GetValue() == nil && len(s.GetData()) == 0 && was.GetJwks() != "" {
		s.Value = &pb.Secret_Jwks{Jwks: was.GetJwks()}
	}
	if s.GetCertificate() != nil && s.GetCertificate().GetPrivateKey() == "" && was.GetCertificate().GetChain() == s.GetCertificate().GetChain() {
		s.GetCertificate().PrivateKey = was.GetCertificate().GetPrivateKey()
	}
	for key, value := range s.GetData() {
		if before, there := was.GetData()[key]; there && value == gateway.HiddenValue {
			s.Data[key] = before
		}
	}
}

func metadataOf(o gateway.Object) *pb.Metadata {
	if md := o.GetMetadata(); md != nil {
		return md
	}
	m := o.ProtoReflect()
	return m.Mutable(m.Descriptor().Fields().ByName("metadata")).Message().Interface().(*pb.Metadata)
}

func setAnnotation(o gateway.Object, key, value string) {
	md := metadataOf(o)
	if md.Annotations == nil {
		md.Annotations = map[string]string{}
	}
	md.Annotations[key] = value
}

func clearStatus(o gateway.Object) {
	m := o.ProtoReflect()
	if f := m.Descriptor().Fields().ByName("status"); f != nil {
		m.Clear(f)
	}
}

// etag is a hash of what the user wrote: neither times, uid nor origin change it, so that
// the same file is not a change wherever it lies and whoever applies it. It stays as long as
// the content, also when an earlier version of Penstock made it in another way. That
// of a secret is random: everybody who may read a secret's name sees the etag, and from a
// hash a short password could be guessed.
func etag(o, old gateway.Object) string {
	b := content(o)
	if old != nil {
		if tag := old.GetMetadata().GetEtag(); tag != "" && bytes.Equal(content(proto.Clone(old).(gateway.Object)), b) {
			return tag
		}
	}
	if _, secret := o.(*pb.Secret); secret {
		return strings.ToLower(rand.Text()[:20])
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:10])
}

// content is what the user wrote of an object, which is as before afterwards.
func content(o gateway.Object) []byte {
	clearStatus(o)
	md := metadataOf(o)
	uid, tag, created, updated, origin := md.Uid, md.Etag, md.CreateTime, md.UpdateTime, md.Origin
	md.Uid, md.Etag, md.CreateTime, md.UpdateTime, md.Origin = "", "", nil, nil, nil
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(o)
	md.Uid, md.Etag, md.CreateTime, md.UpdateTime, md.Origin = uid, tag, created, updated, origin
	if err != nil {
		panic(fmt.Sprintf("marshal %s: %v", o.GetName(), err)) // only invalid UTF-8, which decoding refused
	}
	return b
}

// invalid makes the error of a write with problems: BadRequest for any client,
// and one ObjectProblem each for ours, which knows where objects were written.
func invalid(problems []gateway.Problem) error {
	var lines []string
	bad := &errdetails.BadRequest{}
	details := []protoreflect.ProtoMessage{bad}
	for i, p := range problems {
		if i == maxViolations {
			lines = append(lines, fmt.Sprintf("and %d more", len(problems)-i))
			break
		}
		lines = append(lines, describe(p))
		bad.FieldViolations = append(bad.FieldViolations, &errdetails.BadRequest_FieldViolation{
			Field: p.Field, Description: p.Object + ": " + p.Message,
		})
		details = append(details, &pb.ObjectProblem{Object: p.Object, Field: p.Field, Message: p.Message})
	}
	st := status.New(codes.InvalidArgument, strings.Join(lines, "\n"))
	for _, d := range details {
		with, err := st.WithDetails(protoadapt.MessageV1Of(d))
		if err != nil {
			break
		}
		st = with
	}
	return st.Err()
}

func describe(p gateway.Problem) string {
	where := p.Object
	if o := p.Origin; o.GetFile() != "" {
		where = fmt.Sprintf("%s:%d: %s", o.GetFile(), o.GetLine(), p.Object)
	}
	if p.Field == "" {
		return where + ": " + p.Message
	}
	return where + ": " + p.Field + ": " + p.Message
}

// commitError is storeError for a write, which may have reached the store
// although no answer came back.
func commitError(err error) error {
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, store.ErrUncertain) {
		return status.Errorf(codes.Unavailable, "%v: the write may have happened all the same; repeat it, with the same request_id if it has one, or look at the history", err)
	}
	return service.StoreError(err)
}
