package policy

import (
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/penstock-gateway/penstock/gateway"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
	"github.com/penstock-gateway/penstock/xds"
)

// Identity says where proxies have the identity of the caller, as it was proved.
type Identity struct {
	// Namespace and Payload are the path in the dynamic metadata to an object with the
	// members iss and sub. An empty Payload: nobody asks who calls.
	Namespace, Payload string
}

// Route is one entry that is compiled: what policies are told of it, and what they ask for.
type Route struct {
	Entry *gateway.Entry
	// Project is the id of the project.
	Project string
	// Consumer returns a consumer by its full name, nil when there is none.
	Consumer func(name string) *pb.Consumer
	// Packer checks what policies make of the entry.
	Packer

	// Identity is the caller's; a policy that asks who calls sets it, the first one wins.
	Identity Identity
	// Entries are those of filters, by name.
	Entries map[string]*anypb.Any
	// Refs are what the routes need.
	Refs []xds.Ref

	changes []gateway.Sourced[*pb.HeadersPolicy]
	memo    map[any]any
}

// Set gives the routes an entry for a filter of the policy.
func (r *Route) Set(f *Filter, entry Message) { r.Entries[f.NameIn(r.Project)] = r.Pack(entry) }

// Need names a resource that the routes cannot be served without.
func (r *Route) Need(t xds.Type, name string) { r.Refs = append(r.Refs, xds.Ref{Type: t, Name: name}) }

// ChangeHeaders changes headers before the changes of users, who may so set them again.
func (r *Route) ChangeHeaders(h *pb.HeadersPolicy) {
	r.changes = append(r.changes, gateway.Sourced[*pb.HeadersPolicy]{Value: h})
}

// HeaderChanges are those of ChangeHeaders.
func (r *Route) HeaderChanges() []gateway.Sourced[*pb.HeadersPolicy] { return r.changes }

// Identify tells where the identity of the caller is, unless another policy has.
func (r *Route) Identify(i Identity) {
	if r.Identity == (Identity{}) {
		r.Identity = i
	}
}

// Memo is what a policy keeps of the entry between its functions, made once. The key is
// something of its own.
func Memo[T any](r *Route, key any, create func() T) T {
	if v, ok := r.memo[key]; ok {
		return v.(T)
	}
	if r.memo == nil {
		r.memo = map[any]any{}
	}
	v := create()
	r.memo[key] = v
	return v
}
