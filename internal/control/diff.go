package control

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/genproto/googleapis/api/annotations"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/penstock-gateway/penstock/gateway"
	"github.com/penstock-gateway/penstock/gateway/policies"
	"github.com/penstock-gateway/penstock/gateway/source/api"
	"github.com/penstock-gateway/penstock/gateway/source/file/strict"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
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
	return &pb.DiffResponse{Changes: p.report, Warnings: p.warnings, ProxyChanges: c.proxyChanges(head, p.next, (*view).same)}, nil
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
		out.Changes = append(out.Changes, changeOf(before.Get(ch.Name), gateway.FromResource(ch.Resource)))
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

// become makes a new revision with the content of another state; message is what it says
// unless options have their own.
func (c *Core) become(ctx context.Context, target *gateway.Snapshot, o *pb.WriteOptions, caller, message string) (*api.Outcome, error) {
	// A rollback is a write of the old content: it passes the same checks, and
	// what Envoy or the model learned to refuse since does not come back.
	w := &api.Write{Options: o, Caller: caller, Source: sourceRollback}
	if o.GetMessage() == "" {
		w.Options = proto.Clone(orEmpty(o)).(*pb.WriteOptions)
		w.Options.Message = message
	}
	head := c.Snapshot()
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
	return c.Write(ctx, w)
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
	return status.Errorf(codes.DataLoss, "revision %d cannot be restored: %s damaged in the store (choose another revision, or apply what you want)", target.Revision(), isAre(bad))
}

func isAre(names []string) string {
	if len(names) == 1 {
		return names[0] + " is"
	}
	return strings.Join(names, ", ") + " are"
}

func orEmpty(o *pb.WriteOptions) *pb.WriteOptions {
	if o == nil {
		return &pb.WriteOptions{}
	}
	return o
}

// changeOf describes the change from old to o; either may be nil.
func changeOf(old, o gateway.Object) *pb.Change {
	switch {
	case isNil(o):
		return &pb.Change{Name: old.GetName(), Type: pb.ChangeType_CHANGE_TYPE_DELETE}
	case isNil(old):
		return &pb.Change{Name: o.GetName(), Type: pb.ChangeType_CHANGE_TYPE_CREATE, Etag: o.GetMetadata().GetEtag()}
	}
	ch := &pb.Change{Name: o.GetName(), Type: pb.ChangeType_CHANGE_TYPE_UPDATE, Etag: o.GetMetadata().GetEtag()}
	compare("", old.ProtoReflect(), o.ProtoReflect(), &ch.Fields)
	return ch
}

func isNil(o gateway.Object) bool { return o == nil || !o.ProtoReflect().IsValid() }

// skipped fields are written by the server and would only be noise in a diff.
var skipped = map[protoreflect.Name]bool{"uid": true, "etag": true, "create_time": true, "update_time": true, "origin": true, "status": true}

// compare appends a row for each field that differs, going into messages and
// into lists of equal length, so that a row names the smallest thing that changed.
func compare(path string, a, b protoreflect.Message, rows *[]*pb.FieldChange) {
	fields := b.Descriptor().Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		inA, inB := a.Has(f), b.Has(f)
		if skipped[f.Name()] || !inA && !inB {
			continue
		}
		at := string(f.Name())
		if path != "" {
			at = path + "." + at
		}
		va, vb := a.Get(f), b.Get(f)
		switch {
		case f.Message() != nil && !f.IsList() && !f.IsMap() && inA && inB && !wellKnown(f.Message()):
			compare(at, va.Message(), vb.Message(), rows)
		case f.Message() != nil && f.IsList() && va.List().Len() == vb.List().Len():
			la, lb := va.List(), vb.List()
			for j := range lb.Len() {
				compare(at+"["+strconv.Itoa(j)+"]", la.Get(j).Message(), lb.Get(j).Message(), rows)
			}
		case inA == inB && va.Equal(vb):
		case f.IsMap() && hidden(f):
			*rows = append(*rows, hiddenKeys(at, va.Map(), vb.Map())...)
		default:
			*rows = append(*rows, &pb.FieldChange{Path: at, Before: jsonOf(a, f), After: jsonOf(b, f)})
		}
	}
}

// hiddenKeys are the keys of a map with hidden values under which the two differ.
func hiddenKeys(at string, a, b protoreflect.Map) []*pb.FieldChange {
	keys := map[string]protoreflect.MapKey{}
	for _, m := range []protoreflect.Map{a, b} {
		m.Range(func(k protoreflect.MapKey, _ protoreflect.Value) bool { keys[k.String()] = k; return true })
	}
	shown := func(m protoreflect.Map, k protoreflect.MapKey) string {
		if !m.Has(k) {
			return ""
		}
		return strconv.Quote(gateway.HiddenValue)
	}
	var out []*pb.FieldChange
	for _, name := range slices.Sorted(maps.Keys(keys)) {
		k := keys[name]
		if a.Has(k) != b.Has(k) || !a.Get(k).Equal(b.Get(k)) {
			out = append(out, &pb.FieldChange{Path: fmt.Sprintf("%s[%q]", at, name), Before: shown(a, k), After: shown(b, k)})
		}
	}
	return out
}

func wellKnown(d protoreflect.MessageDescriptor) bool {
	return d.ParentFile().Package() == "google.protobuf"
}

// jsonOf renders one field as JSON; key material is never shown.
func jsonOf(m protoreflect.Message, f protoreflect.FieldDescriptor) string {
	if !m.Has(f) {
		return ""
	}
	if hidden(f) {
		return strconv.Quote(gateway.HiddenValue)
	}
	only := m.New()
	only.Set(f, m.Get(f))
	redact(only)
	b, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(only.Interface())
	if err != nil {
		return fmt.Sprintf("%q", err.Error())
	}
	// {"name": value} -> value
	text := strings.TrimSpace(string(b))
	_, value, _ := strings.Cut(strings.TrimSuffix(text, "}"), ":")
	return strings.TrimSpace(value)
}

// hidden tells the fields whose values are never shown.
func hidden(f protoreflect.FieldDescriptor) bool {
	return strict.Behaves(f, annotations.FieldBehavior_INPUT_ONLY)
}

// redact takes what is hidden out of a message of ours, which may hold a Secret or be
// one. Of a map the keys stay.
func redact(m protoreflect.Message) {
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case hidden(f) && f.IsMap() && f.MapValue().Kind() == protoreflect.StringKind:
			v.Map().Range(func(k protoreflect.MapKey, _ protoreflect.Value) bool {
				v.Map().Set(k, protoreflect.ValueOfString(gateway.HiddenValue))
				return true
			})
		case hidden(f):
			m.Clear(f)
		case f.IsMap() && f.MapValue().Message() != nil:
			v.Map().Range(func(_ protoreflect.MapKey, v protoreflect.Value) bool {
				redact(v.Message())
				return true
			})
		case f.IsMap() || f.Message() == nil:
		case f.IsList():
			for i := range v.List().Len() {
				redact(v.List().Get(i).Message())
			}
		default:
			redact(v.Message())
		}
		return true
	})
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

// Watch implements api.Core.
func (c *Core) Watch(ctx context.Context, from int64, kinds []string, send func(*pb.WatchResponse) error) error {
	for _, k := range kinds {
		if !slices.Contains(collections, k) {
			return status.Errorf(codes.InvalidArgument, "kinds: %q is none of %s", k, strings.Join(collections, ", "))
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
				if o := gateway.FromResource(d.Resource); isNil(o) {
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

var collections = []string{"gateways", "routes", "backends", "functions", "consumers", "secrets", gateway.KindFunctionVersions}
