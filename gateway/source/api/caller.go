package api

import "context"

// Caller is who makes a call, as the guard in front of the API found out.
type Caller struct {
	// Name is the author of what it writes.
	Name string
}

type callerKey struct{}

// WithCaller returns a context of a call by c.
func WithCaller(ctx context.Context, c *Caller) context.Context {
	return context.WithValue(ctx, callerKey{}, c)
}

// CallerName is the author of what is written in a call: "unknown" when no guard
// stood in front of it.
func CallerName(ctx context.Context) string {
	if c, ok := ctx.Value(callerKey{}).(*Caller); ok && c.Name != "" {
		return c.Name
	}
	return "unknown"
}
