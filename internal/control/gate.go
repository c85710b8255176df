package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"slices"
	"sync"
	"time"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"

	"github.com/penstock-gateway/penstock/gateway"
	"github.com/penstock-gateway/penstock/internal/control/quarantine"
	"github.com/penstock-gateway/penstock/internal/shadow"
	"github.com/penstock-gateway/penstock/internal/signal"
	"github.com/penstock-gateway/penstock/xds"
	"github.com/penstock-gateway/penstock/xds/compile"
	"github.com/penstock-gateway/penstock/xds/delivery"
	"github.com/penstock-gateway/penstock/xds/ledger"
)

// ShadowOptions configure the shadow gate.
type ShadowOptions struct {
	// Envoy is the path of the binary, of the fleet's build.
	Envoy string
	// Limit is how long the shadow may take for one response; 0: shadow.DefaultLimit.
	Limit time.Duration
	// Closed holds changes back when the shadow cannot run; else they reach the
	// proxies untried.
	Closed bool
	// Change is shadow.Options.Change.
	Change func(*bootstrapv3.Bootstrap)
}

// gateRetry is how soon a shadow that cannot run is tried again.
const gateRetry = 5 * time.Second

// gate has each generation of a view tried by a shadow before the proxies get it.
// Endpoints and certificates of what they have are never kept waiting.
type gate struct {
	core *Core
	log  *slog.Logger
	opt  ShadowOptions
	ctx  context.Context
	end  context.CancelFunc
	done sync.WaitGroup

	mu    sync.Mutex
	views map[string]*gated
}

// gated is one view.
type gated struct {
	name   string
	shadow *shadow.Shadow
	wake   signal.Wake
	// busy is taken for a Try and what follows from it.
	busy sync.Mutex

	// Guarded by gate.mu: next waits for the shadow, passed is what it let through,
	// given what the proxies may have: passed with newer endpoints.
	next, passed, given *xds.Generation
	err                 error
}

func newGate(c *Core, o *ShadowOptions) *gate {
	if o == nil {
		return nil
	}
	g := &gate{core: c, log: c.log.With("part", "gate"), opt: *o, views: map[string]*gated{}}
	g.ctx, g.end = context.WithCancel(context.Background())
	return g
}

// deliver gives the proxies of a view a generation, when the shadow has tried it.
func (c *Core) deliver(view string, g *xds.Generation) {
	if v, err := compile.ParseView(view); c.gate == nil || err != nil || v.GRPC {
		// Clients without a proxy are not Envoys, and nothing that Envoy says is about them.
		c.delivery.Update(view, c.refused.Published(view, g))
		return
	}
	c.gate.offer(view, g)
}

// offer takes in a generation. The newest one counts.
func (g *gate) offer(name string, next *xds.Generation) {
	g.mu.Lock()
	defer g.mu.Unlock()
	v := g.views[name]
	if v == nil {
		v = &gated{name: name, wake: signal.NewWake(), shadow: shadow.New(shadow.Options{
			Envoy: g.opt.Envoy, Logger: g.log.With("view", name), Limit: g.opt.Limit, Change: g.opt.Change,
		})}
		g.views[name] = v
		g.done.Go(func() { g.run(v) })
	}
	v.next = next
	if ahead := unheld(v.given, next); ahead != nil {
		v.given = ahead
		g.core.delivery.Update(name, g.core.refused.Published(name, ahead))
	}
	v.wake.Set()
}

// unheld is what proxies may have, with the endpoints and certificates of next for
// what is there; nil when that is not a change.
func unheld(given, next *xds.Generation) *xds.Generation {
	if given == nil {
		return nil
	}
	out, changed := given.Clone(), false
	for _, ref := range next.Since(given) {
		if ref.Type != xds.Endpoint && ref.Type != xds.Secret {
			continue
		}
		old, r := given.Get(ref.Type, ref.Name), next.Get(ref.Type, ref.Name)
		// Of a cluster that changes, too, the endpoints wait with it.
		if old != nil && r != nil && r.Version != old.Version && sameCluster(given, next, ref.Type, ref.Name) {
			out.Set(r)
			changed = true
		}
	}
	if !changed {
		return nil
	}
	return out
}

func sameCluster(a, b *xds.Generation, t xds.Type, name string) bool {
	if t != xds.Endpoint {
		return true
	}
	x, y := a.Get(xds.Cluster, name), b.Get(xds.Cluster, name)
	return x != nil && y != nil && x.Version == y.Version
}

// run tries what is offered for a view.
func (g *gate) run(v *gated) {
	defer v.shadow.Close()
	var again <-chan time.Time
	for {
		select {
		case <-g.ctx.Done():
			return
		case <-v.wake:
		case <-again:
		}
		again = nil
		if !g.pass(v, nil) {
			again = time.After(gateRetry)
		}
	}
}

// pass tries the newest generation and gives it to the proxies. It returns false
// when the shadow cannot run. skip is what is tried although it is in quarantine.
func (g *gate) pass(v *gated, skip quarantine.Match) bool {
	v.busy.Lock()
	defer v.busy.Unlock()
	g.mu.Lock()
	next, before := v.next, v.passed
	g.mu.Unlock()
	verdicts, err := v.shadow.Try(g.ctx, next, g.core.refused.Ledger(v.name, skip))
	if g.ctx.Err() != nil {
		return true
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if (err == nil) != (v.err == nil) {
		if err == nil {
			g.log.Info("the shadow Envoy runs again: changes are tried before proxies get them", "view", v.name)
		} else {
			g.log.Error("the shadow Envoy cannot run", "view", v.name, "then", g.without(), "error", err)
		}
	}
	if v.err = err; err != nil && g.opt.Closed {
		return false
	}
	if err == nil {
		for _, w := range verdicts {
			g.core.refused.Refused(refusalOf(v.name, w, next, before, v.shadow.State().Envoy))
		}
		v.passed = next
	}
	v.given = next
	g.core.delivery.Update(v.name, g.core.refused.Published(v.name, next))
	return err == nil
}

// without says what happens to changes without a shadow.
func (g *gate) without() string {
	if g.opt.Closed {
		return "changes are held back until it can (fail closed)"
	}
	return "changes reach the proxies untried until it can (fail open)"
}

// refusalOf is a verdict as if a proxy had refused the resource.
func refusalOf(view string, w shadow.Verdict, next, before *xds.Generation, envoy string) delivery.Refusal {
	r := delivery.Refusal{
		Proxy: delivery.Identity{Proxy: "shadow", View: view}, Envoy: envoy, View: view,
		Culprit: ledger.Culprit{Resource: next.Get(w.Ref.Type, w.Ref.Name)}, Detail: w.Detail,
	}
	if good := before.Get(w.Ref.Type, w.Ref.Name); good != nil && good.Version != w.Version {
		r.Good, r.GoodRevision = good, before.Revision
	}
	return r
}

// retry tries again, before the proxies get it, what is in quarantine. It tells
// what of it passed.
func (g *gate) retry(match quarantine.Match) quarantine.Match {
	if g == nil {
		return match
	}
	g.mu.Lock()
	views := slices.Collect(maps.Values(g.views))
	g.mu.Unlock()
	begin := g.core.now()
	held := map[string]bool{}
	for _, v := range views {
		held[v.name] = !g.pass(v, match) && g.opt.Closed
	}
	return func(e *quarantine.Entry) bool {
		return match(e) && !held[e.View] && e.Refused[len(e.Refused)-1].Time.Before(begin)
	}
}

// problems say loudly that the gate does not work.
func (g *gate) problems() []gateway.Problem {
	if g == nil {
		return nil
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	var out []gateway.Problem
	for _, v := range g.views {
		if at := v.shadow.State().Envoy; at != "" {
			for _, p := range g.core.delivery.Proxies() {
				if p.View == v.name && p.Version != "" && p.Version != at {
					out = append(out, gateway.Problem{Message: fmt.Sprintf(
						"shadow gate: proxy %s runs Envoy %s and the shadow runs %s: what one takes the other may refuse; give --shadow-envoy the proxies' build", p.Name, p.Version, at)})
				}
			}
		}
		if v.err != nil {
			out = append(out, gateway.Problem{Message: "shadow gate: view " + v.name + ": " + v.err.Error() + "; " + g.without()})
		}
	}
	return out
}

func (g *gate) close() {
	if g != nil {
		g.end()
		g.done.Wait()
	}
}

// shadowPage adds /debug/shadow: how the shadow of each view is.
func (c *Core) shadowPage(mux *http.ServeMux) {
	mux.HandleFunc("GET /debug/shadow", func(w http.ResponseWriter, _ *http.Request) {
		if c.gate == nil {
			http.Error(w, "no shadow gate: start the control plane with --shadow-envoy", http.StatusNotFound)
			return
		}
		c.gate.mu.Lock()
		all := map[string]shadow.State{}
		for name, v := range c.gate.views {
			all[name] = v.shadow.State()
		}
		c.gate.mu.Unlock()
		w.Header().Set("content-type", "application/json")
		if err := json.NewEncoder(w).Encode(all); err != nil && !errors.Is(err, context.Canceled) {
			c.log.Debug("the state of the shadow was not read to its end", "error", err)
		}
	})
}
