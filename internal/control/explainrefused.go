package control

import (
	"context"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	"github.com/penstock-gateway/penstock/gateway"
	"github.com/penstock-gateway/penstock/gateway/explain"
	"github.com/penstock-gateway/penstock/gateway/policies"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
	"github.com/penstock-gateway/penstock/store"
	"github.com/penstock-gateway/penstock/xds"
)

// refusedParts are what proxies refuse of the head, and the head with what they serve in
// its place; nil when that changes nothing of it.
func (c *Core) refusedParts(ctx context.Context) (all []explain.Refusal, served *gateway.Snapshot) {
	head := c.Snapshot()
	changed := map[string]gateway.Object{} // by name
	for _, q := range c.refused.Standings() {
		r := explain.Refusal{Object: q.Object, Detail: q.Detail, Revision: q.Revision}
		if q.Resource.Type == xds.Listener {
			r.Field = q.Resource.Name[strings.LastIndexByte(q.Resource.Name, '/')+1:]
		}
		switch {
		case q.Good && c.asBefore(ctx, head, changed, r):
			r.Instead = explain.Before
		case !q.Good && slices.Contains([]xds.Type{xds.Cluster, xds.Endpoint, xds.Listener}, q.Resource.Type):
			r.Instead = explain.Nothing
		}
		all = append(all, r)
	}
	for _, p := range c.salvage.Standings() {
		r := explain.Refusal{Object: p.Object, Field: p.Field, Detail: p.Detail}
		switch {
		case p.Closed:
			r.Instead, r.Prefix = explain.Nothing, p.Prefix
		case p.Out:
			if leftOut(head, changed, r) {
				r.Instead = explain.Nothing
			}
		case p.Before:
			r.Revision = p.Revision
			if c.asBefore(ctx, head, changed, r) {
				r.Instead = explain.Before
			}
		}
		all = append(all, r)
	}
	for _, name := range c.salvage.Unclear() { // PROJECT/GATEWAY/LISTENER, and a host
		if parts := strings.SplitN(name, "/", 4); len(parts) > 2 {
			all = append(all, explain.Refusal{Object: gateway.Resolve(parts[0], gateway.KindGateways, parts[1]), Field: parts[2], Detail: "its routes, and it is not known which of them it means"})
		}
	}
	if len(changed) == 0 {
		return all, nil
	}
	var ch gateway.Changes
	for _, o := range changed {
		ch.Updates = append(ch.Updates, o)
	}
	return all, policies.Model().Build(head, head.Revision(), ch)
}

// nowhere is a path that no request has: clients send no fragments.
const nowhere = "/#"

// leftOut adds to changed a route with the refused rule matching nothing. It reports false
// when the rule has other matches.
func leftOut(head *gateway.Snapshot, changed map[string]gateway.Object, r explain.Refusal) bool {
	route, _ := changed[r.Object].(*pb.Route)
	if route == nil {
		route, _ = head.Get(r.Object).(*pb.Route)
	}
	i, ok := explain.RuleAt(route, r.Field)
	if !ok || len(route.GetRules()[i].GetMatches()) > 1 {
		return false
	}
	out := proto.CloneOf(route)
	out.Rules[i].Matches = []*pb.RouteMatch{{Path: &pb.PathMatch{Match: &pb.PathMatch_Exact{Exact: nowhere}}}}
	changed[r.Object] = out
	return true
}

// asBefore adds to changed the object of a refusal with the refused part as the revision
// has it that proxies serve. It reports false when that cannot be told.
func (c *Core) asBefore(ctx context.Context, head *gateway.Snapshot, changed map[string]gateway.Object, r explain.Refusal) bool {
	now := changed[r.Object]
	if now == nil {
		now = head.Get(r.Object)
	}
	if now == nil || r.Revision == 0 {
		return false
	}
	editions, _, err := c.store.History(ctx, r.Object, r.Revision+1, 1)
	if err != nil || len(editions) == 0 || editions[0].Damaged != "" || editions[0].After == nil {
		return false
	}
	was, err := toChanges([]store.Change{{Name: r.Object, Resource: editions[0].After}}, nil)
	if err != nil || len(was.Updates) != 1 {
		return false
	}
	mixed := mix(now, was.Updates[0], r.Field)
	if mixed != nil {
		changed[r.Object] = mixed
	}
	return mixed != nil
}

// mix is an object with a part of it as it was before; nil when it cannot be told which
// part that is, or when what it stands for is more than the object.
func mix(now, was gateway.Object, field string) gateway.Object {
	switch now := now.(type) {
	case *pb.Backend:
		return was
	case *pb.Gateway:
		out := proto.CloneOf(now)
		old := was.(*pb.Gateway)
		of := func(g *pb.Gateway) int {
			return slices.IndexFunc(g.GetListeners(), func(l *pb.Listener) bool { return l.GetName() == field })
		}
		i, j := of(out), of(old)
		if i < 0 || j < 0 || !proto.Equal(now.GetPolicies(), old.GetPolicies()) {
			return nil
		}
		out.Listeners[i] = old.GetListeners()[j]
		return out
	case *pb.Route:
		out := proto.CloneOf(now)
		old := was.(*pb.Route)
		// A part is one match, so that of a rule with several it may not be all.
		i, ok := explain.RuleAt(out, field)
		if !ok || len(old.GetRules()) != len(out.GetRules()) ||
			max(len(out.GetRules()[i].GetMatches()), len(old.GetRules()[i].GetMatches())) > 1 ||
			gateway.RuleName(out.GetRules()[i], i) != gateway.RuleName(old.GetRules()[i], i) || !proto.Equal(out.GetPolicies(), old.GetPolicies()) {
			return nil
		}
		out.Rules[i] = old.GetRules()[i]
		return out
	}
	return nil
}
