package control

import (
	"context"
	"sync"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/proto"

	"github.com/penstock-gateway/penstock/gateway"
	"github.com/penstock-gateway/penstock/xds"
)

// sharedPrefix is where the store's run-time state keeps, for each view, what its
// hosts share (extension configurations) as proxies may still have it, from before
// a change until all have followed. A control plane that ends in between would
// otherwise come back without it, and send proxies the new filter before the routes
// that fit it: 403 for good tokens meanwhile.
const sharedPrefix = "shared/"

// remembering is how long a change of what hosts share waits for the store.
const remembering = 2 * time.Second

// sharing is a generation, and the snapshot that it was made from, of which the store
// keeps what hosts share.
type sharing struct {
	snapshot   *gateway.Snapshot
	generation *xds.Generation
}

func (s *sharing) covers(g *xds.Generation) bool { return s != nil && covers(s.generation, g) }

// shared reports whether what all hosts of a view share differs.
func shared(a, b *xds.Generation) bool { return a != nil && !covers(a, b) }

// covers reports whether a has what hosts share in b, in the same versions.
func covers(a, b *xds.Generation) bool {
	if a == nil {
		return false
	}
	for r := range b.All(xds.ExtensionConfig) {
		if old := a.Get(xds.ExtensionConfig, r.Name); old == nil || old.Version != r.Version {
			return false
		}
	}
	return true
}

// hold has what hosts share in a generation saved, with what is kept of before, ahead
// of its being sent: whenever this control plane ends, proxies have no more than the
// store knows of. Endpoints and certificates do not wait for that. The caller holds
// compiling.
func (c *Core) hold(v *view, s *gateway.Snapshot, g *xds.Generation) {
	if !v.kept.covers(g) {
		v.kept = &sharing{s, g}
		c.unkept.Set()
	}
	if ahead := unheld(v.published, g); ahead != nil {
		c.give(v, v.snapshot, ahead)
	}
}

// keepShared brings the store to what views want kept, and publishes what was held for
// that. A store that does not answer holds up a change for as long as remembering.
func (c *Core) keepShared(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-c.unkept:
		}
		wanted := map[*view]*sharing{}
		c.compiling.Lock()
		for _, v := range c.views {
			if v.kept != v.stored {
				wanted[v] = v.kept
			}
		}
		c.compiling.Unlock()
		var saving sync.WaitGroup
		for v, w := range wanted {
			saving.Go(func() {
				if w == nil {
					c.forget(ctx, v.name)
				} else {
					c.remember(ctx, v.name, w.generation)
				}
			})
		}
		saving.Wait()
		if ctx.Err() != nil {
			return
		}
		c.noteStored(wanted)
	}
}

// noteStored notes what the store has now, and publishes what was held for it: what was saved,
// even if there is something newer by now that has to wait in turn.
func (c *Core) noteStored(now map[*view]*sharing) {
	c.compiling.Lock()
	defer c.compiling.Unlock()
	held := false
	for v, w := range now {
		v.stored = w
		if v.kept != w {
			c.unkept.Set()
		}
		if !v.held {
			continue
		}
		held = true
		newer := v.snapshot == nil || w != nil && w.snapshot.Revision() > v.snapshot.Revision()
		if w == nil || !newer || c.frozen != nil {
			continue
		}
		if g, _ := c.compile(v, w.snapshot); w.covers(g) {
			c.give(v, w.snapshot, g)
			c.unsettled.Set()
		}
	}
	if held {
		c.publishLocked(c.Snapshot())
	}
}

// remember saves what the hosts of a view share.
func (c *Core) remember(ctx context.Context, view string, g *xds.Generation) {
	out := &discoveryv3.DeltaDiscoveryResponse{}
	for _, name := range g.Names(xds.ExtensionConfig) {
		r := g.Get(xds.ExtensionConfig, name)
		out.Resources = append(out.Resources, &discoveryv3.Resource{Name: name, Version: r.Version, Resource: r.Body})
	}
	b, err := proto.Marshal(out)
	if err == nil {
		limited, cancel := context.WithTimeout(ctx, remembering)
		defer cancel()
		err = c.store.PutState(limited, sharedPrefix+view, b)
	}
	if err != nil && ctx.Err() == nil {
		c.log.Warn("cannot save what proxies have; a restart in this moment may refuse good tokens for a moment", "view", view, "error", err)
	}
}

// remembered is what remember saved, as a generation that holds nothing else; nil
// when nothing is under way. stored is what the store may have, which is to be deleted
// in the end.
func (c *Core) remembered(view string) (before *xds.Generation, stored *sharing) {
	ctx, cancel := context.WithTimeout(context.Background(), remembering)
	defer cancel()
	state, err := c.store.State(ctx, sharedPrefix+view)
	if err != nil {
		c.log.Warn("cannot read what proxies have; good tokens may be refused for a moment", "view", view, "error", err)
		return nil, &sharing{generation: &xds.Generation{}}
	}
	b, found := state[sharedPrefix+view]
	if !found {
		return nil, nil
	}
	saved := &discoveryv3.DeltaDiscoveryResponse{}
	if err := proto.Unmarshal(b, saved); err != nil {
		c.log.Warn("cannot read what proxies have", "view", view, "error", err)
		return nil, &sharing{generation: &xds.Generation{}}
	}
	out := &xds.Generation{}
	for _, r := range saved.GetResources() {
		out.Set(&xds.Resource{Type: xds.ExtensionConfig, Name: r.GetName(), Version: r.GetVersion(), Body: r.GetResource()})
	}
	return out, &sharing{generation: out}
}

// forget ends what remember began.
func (c *Core) forget(ctx context.Context, view string) {
	limited, cancel := context.WithTimeout(ctx, remembering)
	defer cancel()
	if err := c.store.DeleteState(limited, sharedPrefix+view); err != nil && ctx.Err() == nil {
		c.log.Warn("cannot delete what proxies had", "view", view, "error", err)
	}
}
