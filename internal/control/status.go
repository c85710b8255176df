package control

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/penstock-gateway/penstock/gateway"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
	"github.com/penstock-gateway/penstock/internal/control/change"
	"github.com/penstock-gateway/penstock/internal/control/fleet"
	"github.com/penstock-gateway/penstock/store"
	"github.com/penstock-gateway/penstock/xds/compile"
	"github.com/penstock-gateway/penstock/xds/ledger"
)

// Annotator implements api.Core.
func (c *Core) Annotator() func(gateway.Object) gateway.Object {
	// Looked at once for all objects of a list.
	proxies, problems := c.fleet.Proxies(), map[string][]gateway.Problem{}
	for _, p := range c.problems() {
		problems[p.Object] = append(problems[p.Object], p)
	}
	return func(o gateway.Object) gateway.Object {
		out := proto.Clone(o).(gateway.Object)
		change.Redact(out.ProtoReflect())
		st := &pb.Status{Conditions: c.conditions(o, problems[o.GetName()], proxies)}
		m := out.ProtoReflect()
		if f := m.Descriptor().Fields().ByName("status"); f != nil {
			m.Set(f, protoreflect.ValueOfMessage(st.ProtoReflect()))
		}
		return out
	}
}

// conditions says whether an object is in force as written.
func (c *Core) conditions(o gateway.Object, problems []gateway.Problem, proxies []ledger.ProxyStatus) []*pb.Condition {
	var out []*pb.Condition
	for _, p := range problems {
		msg := p.Message
		if p.Field != "" {
			msg = p.Field + ": " + msg
		}
		reason := "Problem"
		switch p.Reason {
		case gateway.ReasonQuarantined:
			reason = "Quarantined"
		case gateway.ReasonDamaged:
			reason = "Damaged"
		case gateway.ReasonModel:
		}
		out = append(out, &pb.Condition{Type: "Accepted", Reason: reason, Message: msg})
	}
	if f, ok := o.(*pb.Function); ok {
		out = append(out, c.runners.condition(f))
		if back := rolledBack(f); back != nil {
			out = append(out, back)
		}
	}
	if r, ok := o.(*pb.Route); ok {
		if why := c.Snapshot().Unattached(r); why != "" {
			return append(out, &pb.Condition{Type: "Serving", Reason: "NotAttached", Message: why})
		}
	}
	return append(out, serving(o.GetName(), proxies))
}

// serving is the condition "serving on 11 of 12" of an object.
func serving(name string, proxies []ledger.ProxyStatus) *pb.Condition {
	cond := &pb.Condition{Type: "Serving", Ok: true, Reason: "Acknowledged"}
	n := 0
	for _, p := range proxies {
		bad := slices.IndexFunc(p.Problems, func(q ledger.Problem) bool { return slices.Contains(q.Owners, name) })
		switch {
		case bad < 0:
			n++
		case p.Problems[bad].State == ledger.Refused:
			cond.Ok, cond.Reason = false, "Refused"
			cond.Message = fmt.Sprintf("; %s refused %s: %s", p.Name, p.Problems[bad].Ref, p.Problems[bad].Detail)
		case p.Problems[bad].State == ledger.Quarantined:
			cond.Ok, cond.Reason = false, "Quarantined"
			cond.Message = fmt.Sprintf("; %s: %s", p.Problems[bad].Ref, p.Problems[bad].Detail)
		case cond.Reason == "Acknowledged":
			cond.Ok, cond.Reason = false, "Pending"
		}
	}
	if len(proxies) == 0 {
		return &pb.Condition{Type: "Serving", Reason: "NoProxy", Message: "no proxy is connected"}
	}
	cond.Message = fmt.Sprintf("serving on %d of %d proxies%s", n, len(proxies), cond.Message)
	return cond
}

// problems is everything that is not served as written: from the model and from
// the compilers.
func (c *Core) problems() []gateway.Problem {
	all := slices.Clone(c.Snapshot().Problems())
	c.compiling.Lock()
	defer c.compiling.Unlock()
	for _, v := range c.views {
		all = append(all, v.problems...)
	}
	return change.Unique(slices.Concat(all, c.salvage.Problems(), c.refused.Problems(), c.gate.problems()))
}

// Proxies implements api.Core.
func (c *Core) Proxies() []*pb.Proxy { return c.fleet.List() }

// Status implements api.Core.
func (c *Core) Status(context.Context) (*pb.GetStatusResponse, error) {
	s := c.Snapshot()
	out := &pb.GetStatusResponse{
		Version: c.version, Resources: map[string]int32{},
		Instances: c.Instances(""), Runners: c.runners.connected(), LostRunners: c.runners.lostRunners(),
		Serving: c.reportNow(s.Revision()),
	}
	out.Serving.Problems = append(out.Serving.Problems, unproxied(s, c.fleet.Proxies())...)
	out.RunnerCount = int32(len(out.Runners))
	for _, k := range gateway.Collections() {
		if n := len(s.Listed(k, "")); n > 0 {
			out.Resources[k] = int32(n)
		}
	}
	for _, p := range append(c.problems(), s.UnattachedRoutes(nil)...) {
		out.Problems = append(out.Problems, &pb.ObjectProblem{Object: p.Object, Field: p.Field, Message: p.Message})
	}
	if since, err := c.store.Refusing(); err != nil {
		out.Problems = append(out.Problems, refusing(since, err))
	}
	for _, f := range c.functions() {
		if p := c.runners.notReady(f); p != nil && p.GetState() != stateStarting {
			out.Problems = append(out.Problems, &pb.ObjectProblem{Object: p.GetObject(), Message: p.GetDetail()})
		}
	}
	slices.SortStableFunc(out.Problems, func(a, b *pb.ObjectProblem) int { return strings.Compare(a.GetObject(), b.GetObject()) })
	return out, nil
}

// refusing says that no changes are taken.
func refusing(since time.Time, err error) *pb.ObjectProblem {
	return &pb.ObjectProblem{Object: "store", Message: fmt.Sprintf("refusing writes: %v (since %s); what is served stays", err, since.UTC().Format(time.RFC3339))}
}

// reportNow is the serving report of a revision without waiting.
func (c *Core) reportNow(revision int64) *pb.ServingReport {
	now, cancel := context.WithCancel(context.Background())
	cancel()
	rep, _ := c.fleet.Wait(now, revision, nil)
	return fleet.Report(rep)
}

func revision(r store.Revision) *pb.Revision {
	return &pb.Revision{
		Number: r.Number, Root: r.Root, CreateTime: timestamppb.New(r.Time), Author: r.Author,
		Message: r.Message, Resources: int32(r.Resources), Changes: int32(r.Changes), Damage: r.Damaged,
	}
}

// Instances implements api.Core.
func (c *Core) Instances(function string) []*pb.Instance { return c.runners.instances(function) }

// Layout implements api.Core.
func (c *Core) Layout(gateway, listener, hostname string) string {
	return compile.HostLayout(c.Snapshot(), c.settings, gateway, listener, hostname)
}
