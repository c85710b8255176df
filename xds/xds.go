// Package xds holds the few types that the compiler (which makes Envoy
// resources), the ledger (which knows what each proxy has) and the delivery
// server (which sends them) share. It knows nothing of routes or policies.
package xds

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"iter"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/penstock-gateway/penstock/internal/cow"
)

// Type is an xDS resource type URL.
type Type string

// The resource types that Penstock serves.
const (
	Cluster         Type = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
	Endpoint        Type = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment"
	Listener        Type = "type.googleapis.com/envoy.config.listener.v3.Listener"
	Scope           Type = "type.googleapis.com/envoy.config.route.v3.ScopedRouteConfiguration"
	Route           Type = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration"
	Secret          Type = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"
	ExtensionConfig Type = "type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig"
)

// Short is the message name without its package: "RouteConfiguration".
func (t Type) Short() string {
	return string(t[strings.LastIndexByte(string(t), '.')+1:])
}

// Ref names a resource.
type Ref struct {
	Type Type
	Name string
}

func (r Ref) String() string { return r.Type.Short() + "/" + r.Name }

func (r Ref) compare(o Ref) int {
	return cmp.Or(strings.Compare(string(r.Type), string(o.Type)), strings.Compare(r.Name, o.Name))
}

// Resource is one Envoy resource, marshalled once. It is immutable.
type Resource struct {
	Type Type
	Name string
	// Version is a hash of Body, so it survives restarts of the control plane.
	Version string
	Body    *anypb.Any
	// Refs are the resources that a proxy must have acknowledged before it may
	// be sent this one (a RouteConfiguration's clusters).
	Refs []Ref
	// After are the scopes that a RouteConfiguration follows: a proxy that takes them gets
	// it when it has acknowledged each that may still be acknowledged. Unlike one of Refs,
	// a scope that cannot be sent, since something in it was refused, holds nothing back.
	// They follow from Body, and none of them leads to what refers to this resource.
	After []Ref
	// Lazy says that a proxy asks for what this refers to by name only when a
	// request needs it, and may never do so (on-demand scopes).
	Lazy bool
	// Owners are the full names of the objects it was made from, for status.
	Owners []string
}

// NewResource marshals m deterministically and derives the version from the
// bytes. refs and owners may be nil; both are sorted and made unique.
func NewResource(t Type, name string, m proto.Message, refs []Ref, owners []string) (*Resource, error) {
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("marshal %s %q: %w", t.Short(), name, err)
	}
	return NewRaw(t, name, b, refs, owners), nil
}

// NewRaw is NewResource of a message that is marshalled already. The bytes are kept.
func NewRaw(t Type, name string, body []byte, refs []Ref, owners []string) *Resource {
	sum := sha256.Sum256(body)
	refs = slices.Clone(refs)
	slices.SortFunc(refs, Ref.compare)
	owners = slices.Clone(owners)
	slices.Sort(owners)
	return &Resource{
		Type: t, Name: name, Version: hex.EncodeToString(sum[:12]),
		Body:   &anypb.Any{TypeUrl: string(t), Value: body},
		Refs:   slices.Clone(slices.Compact(refs)),
		Owners: slices.Clone(slices.Compact(owners)),
	}
}

// Generation is all resources that one view (what a group of proxies may see) is
// to have. A copy shares with the one that it was copied from what is not changed, so
// it costs what is changed, and so does finding what differs. It may be changed by
// whoever made it until it is given to somebody else; from then on it is immutable.
type Generation struct {
	// Revision of the configuration that it was compiled from. Endpoint changes
	// make new generations of the same revision.
	Revision int64

	types map[Type]*cow.Map[*Resource]
}

// Clone returns a generation of the same revision with the same resources, to be
// changed. A nil Generation is an empty one.
func (g *Generation) Clone() *Generation {
	out := &Generation{}
	if g != nil {
		out.Revision, out.types = g.Revision, make(map[Type]*cow.Map[*Resource], len(g.types))
		for t, all := range g.types {
			out.types[t] = all.Clone()
		}
	}
	return out
}

// Set puts a resource in, in place of one of the same name.
func (g *Generation) Set(r *Resource) {
	all := g.types[r.Type]
	if all == nil {
		if all = (&cow.Map[*Resource]{}); g.types == nil {
			g.types = map[Type]*cow.Map[*Resource]{}
		}
		g.types[r.Type] = all
	}
	all.Set(r.Name, r)
}

// Delete takes a resource out, if it is there.
func (g *Generation) Delete(t Type, name string) {
	if all := g.types[t]; all != nil {
		all.Delete(name)
	}
}

// Get returns a resource or nil.
func (g *Generation) Get(t Type, name string) *Resource { return g.of(t).Get(name) }

// Len is the number of resources of a type.
func (g *Generation) Len(t Type) int { return g.of(t).Len() }

// Types are the types that there are resources of, sorted.
func (g *Generation) Types() []Type {
	if g == nil {
		return nil
	}
	var out []Type
	for t, all := range g.types {
		if all.Len() > 0 {
			out = append(out, t)
		}
	}
	slices.Sort(out)
	return out
}

// All goes through the resources of a type, in no order.
func (g *Generation) All(t Type) iter.Seq[*Resource] {
	return func(yield func(*Resource) bool) {
		for _, r := range g.of(t).All() {
			if !yield(r) {
				return
			}
		}
	}
}

// Names returns the sorted names of a type.
func (g *Generation) Names(t Type) []string {
	out := make([]string, 0, g.Len(t))
	for name := range g.of(t).All() {
		out = append(out, name)
	}
	slices.Sort(out)
	return out
}

// Since names the resources that were set, replaced (if only by an equal one) or taken
// out since a generation before, which may be nil; sorted by type and name. The cost is
// that of what the two do not share.
func (g *Generation) Since(before *Generation) []Ref {
	var out []Ref
	of := func(t Type) {
		for _, name := range cow.Differing(before.of(t), g.of(t)) {
			out = append(out, Ref{Type: t, Name: name})
		}
	}
	if g != nil {
		for t := range g.types {
			of(t)
		}
	}
	if before != nil {
		for t := range before.types {
			if g.of(t) == nil {
				of(t)
			}
		}
	}
	slices.SortFunc(out, Ref.compare)
	return out
}

func (g *Generation) of(t Type) *cow.Map[*Resource] {
	if g == nil {
		return nil
	}
	return g.types[t]
}
