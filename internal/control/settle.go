package control

import (
	"cmp"
	"context"
	"slices"
	"time"

	"github.com/penstock-gateway/penstock/xds"
	"github.com/penstock-gateway/penstock/xds/ledger"
)

const (
	// settleAfter is after how long it is looked again whether all proxies have
	// followed, when one did not.
	settleAfter = 5 * time.Second
	// settleTries is how often settle lets a newer revision go first.
	settleTries = 20
	// settleHold bounds for how long it lets none go first after that.
	settleHold = time.Second
)

// settle publishes again when the proxies are there, without what was only for
// the way there (see compile.Input.Previous). While a proxy is not, it stays: its
// routes may name a requirement of a filter that is gone for all others.
func (c *Core) settle(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-c.unsettled:
		}
		for try := 0; !c.settled(ctx, try >= settleTries); try++ {
			if ctx.Err() != nil {
				return
			}
		}
	}
}

// settled reports whether it could publish without what was for the way. It does
// when every proxy has followed to the newest revision. With hold newer ones wait
// meanwhile, but not the endpoints of functions.
func (c *Core) settled(ctx context.Context, hold bool) bool {
	c.compiling.Lock()
	wait := c.settleFrom.Sub(c.now())
	c.compiling.Unlock()
	if wait > 0 { // proxies that have not come back after a restart have what was before it
		sleep(ctx, wait)
		return false
	}
	revision := c.Snapshot().Revision()
	if !c.followed(ctx, revision, settleAfter) {
		sleep(ctx, settleAfter)
		return false
	}
	if hold {
		revision = c.freeze()
		defer c.thaw()
		if !c.followed(ctx, revision, settleHold) {
			return false
		}
	}
	c.compiling.Lock()
	defer c.compiling.Unlock()
	s := cmp.Or(c.frozen, c.Snapshot())
	if s.Revision() != revision {
		return false
	}
	for _, v := range c.views {
		if v.held {
			continue // it has not been sent; once it is, settle is woken again
		}
		g, problems := v.compiler.Compile(c.input(s, v))
		v.problems = problems
		c.give(v, s, g)
		v.kept = nil
	}
	c.unkept.Set()
	return true
}

// freeze has the snapshot of now published until thaw, and returns its revision.
func (c *Core) freeze() int64 {
	c.compiling.Lock()
	defer c.compiling.Unlock()
	c.frozen = c.Snapshot()
	c.publishLocked(c.frozen)
	return c.frozen.Revision()
}

func (c *Core) thaw() {
	c.compiling.Lock()
	defer c.compiling.Unlock()
	frozen := c.frozen
	c.frozen = nil
	if now := c.Snapshot(); now != frozen {
		c.publishLocked(now)
	}
}

// followed waits until every proxy has a revision, or is silent. It is false when
// one does not get there in time, or refused routes and so has those before.
func (c *Core) followed(ctx context.Context, revision int64, patience time.Duration) bool {
	wait, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	signals, stop := c.delivery.Follow()
	defer stop()
	rep, err := c.delivery.Wait(wait, revision, nil)
	// Routes change within a revision, too: for instances, and for what proxies refuse.
	for err == nil && c.delivery.Awaited(xds.Route) {
		select {
		case <-signals:
		case <-wait.Done():
			err = wait.Err()
		}
	}
	if err != nil {
		if ctx.Err() == nil {
			c.log.Info("a proxy is slow to follow", "revision", revision, "error", err)
		}
		return false
	}
	return !slices.ContainsFunc(rep.Problems, func(p ledger.Problem) bool {
		return p.Ref.Type == xds.Route && (p.State == ledger.Refused || p.State == ledger.Held)
	})
}

// sleep waits for a time, or until ctx ends.
func sleep(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}
