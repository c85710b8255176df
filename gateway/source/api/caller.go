package api

import (
	"context"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/penstock-gateway/penstock/gateway"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// Caller is who makes a call, and what it may see and change, as the guard in front
// of the API found out.
type Caller struct {
	// Name is the author of what it writes.
	Name string
	// MayRead reports whether it may see an object.
	MayRead func(object string) bool
	// MayReadProject reports whether it may see a kind in a project ("*": in all).
	MayReadProject func(kind, project string) bool
	// MayChange returns an error that names every change that it may not make.
	MayChange func([]Touch) error
	// Changed, when set, is told of each object that the call changed: its etag
	// before and after, "" where it is not there.
	Changed func(object, before, after string)
}

// Touch is an object that a write would change.
type Touch struct {
	Name string
	// Old and New are what it is and would be; nil: it is not there.
	Old, New gateway.Object
	// Versions are the specs of the versions of a function that would get requests.
	Versions []*pb.Function
	// Pruned: nobody named it; it is deleted because its set no longer holds it.
	Pruned bool
	// Unchanged, when set, reports whether New says what Old says, so that the write
	// leaves the object as it is. It is worked out when it is asked.
	Unchanged func() bool
	// Look: nothing changes, but what it is is shown.
	Look bool
}

// System is the control plane itself, which may do all.
func System(name string) *Caller {
	return &Caller{
		Name: name, MayRead: func(string) bool { return true }, MayReadProject: func(string, string) bool { return true },
		MayChange: func([]Touch) error { return nil },
	}
}

type callerKey struct{}

// WithCaller returns a context of a call by c.
func WithCaller(ctx context.Context, c *Caller) context.Context {
	return context.WithValue(ctx, callerKey{}, c)
}

// nobody is for calls that no guard has seen: they see and change nothing.
var nobody = &Caller{
	Name: "unknown", MayRead: func(string) bool { return false }, MayReadProject: func(string, string) bool { return false },
	MayChange: func([]Touch) error {
		return status.Error(codes.PermissionDenied, "it is not known who makes this call, so it may change nothing")
	},
}

// CallerOf is who makes a call.
func CallerOf(ctx context.Context) *Caller {
	if c, ok := ctx.Value(callerKey{}).(*Caller); ok {
		return c
	}
	return nobody
}

// CallerName is the author of what is written in a call.
func CallerName(ctx context.Context) string { return CallerOf(ctx).Name }
