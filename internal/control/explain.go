package control

import (
	"cmp"
	"context"
	"slices"

	"github.com/penstock-gateway/penstock/gateway/explain"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
	"github.com/penstock-gateway/penstock/xds/compile"
)

// Known implements api.Core.
func (c *Core) Known() *explain.Known {
	k := &explain.Known{Function: c.runners.way, Now: c.now()}
	k.Refused, k.Served = c.refusedParts(context.Background())
	return k
}

// way is how requests reach a deployment: by the endpoints that proxies have of it, see
// endpoints, with what runners say of those, or what they answer when nothing is heard of
// the runners.
func (r *runners) way(name string) explain.Function {
	if endpoints := r.endpoints(name); len(endpoints) > 0 && !r.anyLive(endpoints) {
		return explain.Function{
			Instances: r.instances(name), Lost: cmp.Or(r.gone(name), "unknown: its runner is gone"),
			Answers: probeAll(context.Background(), endpoints),
		}
	}
	connected := len(r.connected()) > 0
	f := explain.Function{Instances: r.instances(name)}
	problem := r.problems()[name]
	r.mu.Lock()
	defer r.mu.Unlock()
	refusing := false
	for _, k := range r.live() {
		for _, s := range k.state.GetFunctions() {
			if s.GetFunction() == name && reachable(s.GetActivatorAddress(), s.GetActivatorPort()) {
				refusing = refusing || s.GetRefusing()
				f.Activator = f.Activator || !s.GetRefusing()
				if s.GetTrouble() != "" {
					f.Trouble = s.GetTrouble()
				}
			}
		}
	}
	ready := slices.ContainsFunc(f.Instances, func(i *pb.Instance) bool { return i.GetState() == pb.InstanceState_INSTANCE_STATE_READY })
	switch {
	case !r.relied(name) && r.standIn(name) != "":
		f.StandIn = r.standIn(name)
	case r.serves(name):
	case refusing:
	case len(f.Instances) > 0 && !ready:
		f.Nowhere = "its instances are not ready yet"
	case connected:
		f.Nowhere = "no instance runs yet"
	default:
		f.Nowhere = "no runner is connected"
	}
	if f.Nowhere != "" && problem != "" {
		f.Nowhere = problem
	}
	return f
}

// anyLive reports whether a runner that is heard of has one of some endpoints.
func (r *runners) anyLive(endpoints []compile.Endpoint) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, k := range r.live() {
		for _, own := range []map[string][]compile.Endpoint{k.serve, k.refuse} {
			for _, list := range own {
				if slices.ContainsFunc(list, func(e compile.Endpoint) bool { return slices.Contains(endpoints, e) }) {
					return true
				}
			}
		}
	}
	return false
}
