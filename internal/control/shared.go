package control

import (
	"context"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/proto"

	"github.com/penstock-gateway/penstock/xds"
)

// sharedPrefix is where the store's run-time state keeps, for each view, what its
// hosts share (extension configurations) as proxies may still have it, from before
// a change until all have followed. A control plane that ends in between would
// otherwise come back without it, and send proxies the new filter before the routes
// that fit it: 403 for good tokens meanwhile.
const sharedPrefix = "shared/"

// remembering is how long a publication waits for the store.
const remembering = 2 * time.Second

// remember saves what the hosts of a view share, with what is kept of before, ahead of
// its being sent: whenever this control plane ends, proxies have no more than that.
func (c *Core) remember(view string, g *xds.Generation) {
	out := &discoveryv3.DeltaDiscoveryResponse{}
	for _, name := range g.Names(xds.ExtensionConfig) {
		r := g.Get(xds.ExtensionConfig, name)
		out.Resources = append(out.Resources, &discoveryv3.Resource{Name: name, Version: r.Version, Resource: r.Body})
	}
	b, err := proto.Marshal(out)
	if err == nil {
		ctx, cancel := context.WithTimeout(context.Background(), remembering)
		defer cancel()
		err = c.store.PutState(ctx, sharedPrefix+view, b)
	}
	if err != nil {
		c.log.Warn("cannot save what proxies have; a restart in this moment may refuse good tokens for a moment", "view", view, "error", err)
	}
}

// remembered is what remember saved, as a generation that holds nothing else; nil
// when nothing is under way.
func (c *Core) remembered(view string) *xds.Generation {
	ctx, cancel := context.WithTimeout(context.Background(), remembering)
	defer cancel()
	state, err := c.store.State(ctx, sharedPrefix+view)
	b, found := state[sharedPrefix+view]
	if err != nil || !found {
		return nil
	}
	saved := &discoveryv3.DeltaDiscoveryResponse{}
	if err := proto.Unmarshal(b, saved); err != nil {
		c.log.Warn("cannot read what proxies have", "view", view, "error", err)
		return nil
	}
	out := &xds.Generation{}
	for _, r := range saved.GetResources() {
		out.Set(&xds.Resource{Type: xds.ExtensionConfig, Name: r.GetName(), Version: r.GetVersion(), Body: r.GetResource()})
	}
	return out
}

// forget ends what remember began.
func (c *Core) forget(ctx context.Context, view string) {
	ctx, cancel := context.WithTimeout(ctx, remembering)
	defer cancel()
	if err := c.store.DeleteState(ctx, sharedPrefix+view); err != nil && ctx.Err() == nil {
		c.log.Warn("cannot delete what proxies had", "view", view, "error", err)
	}
}
