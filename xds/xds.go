// Package xds holds the few types that the compiler (which makes Envoy
// resources), the ledger (which knows what each proxy has) and the delivery
// server (which sends them) share. It knows nothing of routes or policies.
package xds

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
	"strings"
	"weak"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
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
	slices.SortFunc(refs, func(a, b Ref) int {
		return cmp.Or(strings.Compare(string(a.Type), string(b.Type)), strings.Compare(a.Name, b.Name))
	})
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
// to have. It is immutable; generations share unchanged resources.
type Generation struct {
	// Revision of the configuration that it was compiled from. Endpoint changes
	// make new generations of the same revision.
	Revision  int64
	Resources map[Type]map[string]*Resource

	// Base and Changed are optional and spare the delivery a pass over all
	// resources: if Base is the generation that the view was updated with before
	// (weak.Make of it), Changed must name every resource that was added, replaced
	// or removed since then. Whenever Base is another one, all are compared.
	Base    weak.Pointer[Generation]
	Changed []Ref
}

// Get returns a resource or nil.
func (g *Generation) Get(t Type, name string) *Resource {
	if g == nil {
		return nil
	}
	return g.Resources[t][name]
}

// Names returns the sorted names of a type.
func (g *Generation) Names(t Type) []string {
	if g == nil {
		return nil
	}
	return slices.Sorted(maps.Keys(g.Resources[t]))
}
