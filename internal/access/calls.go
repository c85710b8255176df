package access

import (
	"context"
	"sync"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// errEnded ends the calls of a credential that is good no longer, or that may no
// longer do what it does.
var errEnded = status.Error(codes.Unauthenticated, "the credential was revoked or has expired, or its rights were taken away, while the call went on")

// calls are the streams under way.
type calls struct {
	mu   sync.Mutex
	open map[*openCall]struct{}
}

type openCall struct {
	id *Identity
	// allowed checks the rights of the call again.
	allowed func() bool
	cancel  context.CancelCauseFunc
}

// enter notes a stream; it is ended when recheck finds that it may not go on, or
// when the credential expires. The caller calls leave when it is over.
func (c *calls) enter(ctx context.Context, id *Identity, allowed func() bool) (_ context.Context, leave func()) {
	call := &openCall{id: id, allowed: allowed}
	ctx, call.cancel = context.WithCancelCause(ctx)
	stop := func() {}
	if !id.Expires.IsZero() {
		ctx, stop = context.WithDeadlineCause(ctx, id.Expires, errEnded)
	}
	c.mu.Lock()
	if c.open == nil {
		c.open = map[*openCall]struct{}{}
	}
	c.open[call] = struct{}{}
	c.mu.Unlock()
	return ctx, func() {
		c.mu.Lock()
		delete(c.open, call)
		c.mu.Unlock()
		stop()
		call.cancel(nil)
	}
}

// recheck ends the calls whose credential is no longer good.
func (c *calls) recheck(still func(*Identity) bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for call := range c.open {
		if !still(call.id) || !call.allowed() {
			call.cancel(errEnded)
		}
	}
}
