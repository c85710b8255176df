package compile

import (
	"errors"
	"fmt"
	"slices"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/penstock-gateway/penstock/gateway"
	"github.com/penstock-gateway/penstock/gateway/policy/retry"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
	"github.com/penstock-gateway/penstock/xds"
)

// state is what the last run of a Compiler made, with what it was made of. It
// holds nothing that a fresh run would not make: it only tells what can be kept.
type state struct {
	view View
	run  int
	// snapshot is what the last run compiled.
	snapshot  *gateway.Snapshot
	last      *xds.Generation
	internal  []*xds.Resource
	listeners map[string]*listenerState
	clusters  map[string]*clusterState
	secrets   map[string]*secretState
	// holds are those of the last run.
	holds   map[string]*Holds
	needs   needs
	filters filterState
	// grpcHosts are the hosts of a view for gRPC clients.
	grpcHosts map[string]*grpcHost
}

func newState(v View, s Settings) *state {
	return &state{
		view: v, last: &xds.Generation{}, internal: internalClusters(s),
		listeners: map[string]*listenerState{}, clusters: map[string]*clusterState{}, secrets: map[string]*secretState{},
		needs: newNeeds(), filters: filterState{claims: map[string][]string{}},
	}
}

func internalClusters(s Settings) []*xds.Resource {
	clusters := map[string][]Endpoint{limiterCluster: s.Limiters}
	if s.tracing() {
		clusters[otlpCluster] = []Endpoint{s.OTLP}
	}
	var out []*xds.Resource
	for name, endpoints := range clusters {
		r, err := internalCluster(name, endpoints)
		if err != nil {
			panic(fmt.Sprintf("compile: settings: cluster %s: %v", name, err))
		}
		out = append(out, r)
	}
	return out
}

// editor makes a generation out of the one before.
type editor struct {
	last, g *xds.Generation
	// changed are what was set.
	changed []*xds.Resource
}

// edit begins a generation with the resources of last.
func edit(last *xds.Generation, revision int64) *editor {
	g := last.Clone()
	g.Revision = revision
	return &editor{last: last, g: g}
}

// set puts a resource in, and returns what is there then: one that does not differ
// from what was there is dropped.
func (e *editor) set(r *xds.Resource) *xds.Resource {
	if old := e.g.Get(r.Type, r.Name); old != nil && alike(old, r) {
		return old
	}
	// It may have been removed in this run.
	if old := e.last.Get(r.Type, r.Name); old != nil && alike(old, r) {
		r = old
	}
	e.g.Set(r)
	e.changed = append(e.changed, r)
	return r
}

func alike(a, b *xds.Resource) bool {
	return a == b || a.Version == b.Version && slices.Equal(a.Refs, b.Refs) && slices.Equal(a.After, b.After) && slices.Equal(a.Owners, b.Owners)
}

func (e *editor) remove(t xds.Type, name string) { e.g.Delete(t, name) }

// listenerState is one open listener.
type listenerState struct {
	name         string
	gateway      *pb.Gateway
	listener     *pb.Listener
	certificates []string
	share        uint64 // of the hosts that are eager; see eagerShare
	hosts        hostSet
	// groups are the RouteConfigurations by scope.
	groups map[string]*group
	failed map[string]*group
}

func newListenerState(name string) *listenerState {
	return &listenerState{name: name, hosts: newHostSet(), groups: map[string]*group{}}
}

// group is one RouteConfiguration and the scopes that lead to it.
type group struct {
	scopes []string
	owner  string
	err    error
}

func (st *listenerState) remove(v *view) {
	v.out.remove(xds.Listener, st.name)
	for scope := range st.groups {
		st.removeGroup(v.out, scope)
	}
	st.removeShards(v.out)
	for _, u := range st.hosts.units {
		v.needs.drop(u)
	}
}

func (st *listenerState) removeGroup(out *editor, scope string) {
	for _, s := range st.groups[scope].scopes {
		out.remove(xds.Scope, s)
	}
	out.remove(xds.Route, st.routeName(scope))
	delete(st.groups, scope)
	delete(st.failed, scope)
}

// routeName is the name of the RouteConfiguration of a scope.
func (st *listenerState) routeName(scope string) string {
	return st.name + "/" + scope
}

// update brings the listener to the view's snapshot.
func (st *listenerState) update(v *view, gw *pb.Gateway, l *pb.Listener, certificates []string) error {
	first := st.gateway == nil
	hosts := st.takeHosts(v, gw, l, first)
	if first || st.gateway != gw || st.listener != l || !slices.Equal(st.certificates, certificates) {
		r, err := v.listener(gw, l, certificates)
		if err != nil {
			return err
		}
		v.out.set(r)
	}
	changed := map[string]bool{}
	share := eagerShare(len(st.hosts.units), v.settings.EagerHosts)
	if share != st.share {
		for scope := range st.groups {
			if eagerByName(scope, share) != eagerByName(scope, st.share) {
				changed[scope] = true
			}
		}
	}
	st.gateway, st.listener, st.certificates, st.share = gw, l, certificates, share
	if first {
		changed[anyHost] = true
	}
	for _, name := range hosts {
		changed[scopeOf(name)] = true
	}
	st.regroup(v, changed)
	return st.shards(v, first)
}

// regroup emits the RouteConfigurations of the scopes that changed.
func (st *listenerState) regroup(v *view, changed map[string]bool) {
	for scope := range changed {
		units := st.hosts.of(scope)
		rc, scopes := routeConfiguration(st.routeName(scope)), []string{scope}
		switch {
		case scope == anyHost:
			if st.hosts.units[anyHost] == nil && st.hosts.units[""] == nil {
				// An unknown host gets 404, not the 401 of the filters' default.
				rc.VirtualHosts = append(rc.VirtualHosts, emptyHost(v.in.View.Project))
			}
			// Earlier releases had a scope for each wildcard, and a connection of their
			// listener that ends slowly still asks for it.
			for _, u := range units {
				if u.name != anyHost {
					scopes = append(scopes, u.name)
				}
			}
		case len(units) == 0:
			if st.groups[scope] != nil {
				st.removeGroup(v.out, scope)
			}
			continue
		default:
			rc.TypedPerFilterConfig = unused(v.in.View.Project, units[0].uses)
		}
		st.routes(v, scope, rc, units, scopes)
	}
}

// maxDirectResponse is what a body of 4096 characters may take in UTF-8.
const maxDirectResponse = 4 * 4096

func routeConfiguration(name string) *routev3.RouteConfiguration {
	return &routev3.RouteConfiguration{
		Name:                           name,
		RequestHeadersToRemove:         []string{scopeHeader},
		ResponseHeadersToRemove:        []string{retry.RefusedHeader},
		MaxDirectResponseBodySizeBytes: wrapperspb.UInt32(maxDirectResponse),
		IgnorePortInHostMatching:       true,
	}
}

// routes emits a RouteConfiguration of units and the hosts that are in it already,
// and the scopes of hosts that lead to it.
func (st *listenerState) routes(v *view, scope string, rc *routev3.RouteConfiguration, units []*unit, scopes []string) {
	var refs []xds.Ref
	var owners []string
	for _, u := range units {
		refs = append(refs, u.refs...)
		owners = append(owners, u.owners...)
	}
	if len(owners) == 0 {
		owners = []string{st.gateway.GetName()}
	}
	g := &group{owner: owners[0]}
	for _, s := range scopes {
		g.scopes = append(g.scopes, st.name+"/"+s)
	}
	onDemand := st.onDemand(scope)
	if g.err = emitRoutes(v, rc, units, refs, owners); g.err == nil {
		for _, name := range g.scopes {
			g.err = errors.Join(g.err, emitScope(v, name, rc.GetName(), st.gateway.GetName(), onDemand))
		}
	}
	if old := st.groups[scope]; old != nil {
		for _, name := range old.scopes {
			if !slices.Contains(g.scopes, name) {
				v.out.remove(xds.Scope, name)
			}
		}
	}
	st.groups[scope] = g
	delete(st.failed, scope)
	if g.err != nil {
		v.out.remove(xds.Route, rc.GetName())
		for _, name := range g.scopes {
			v.out.remove(xds.Scope, name)
		}
		if st.failed == nil {
			st.failed = map[string]*group{}
		}
		st.failed[scope] = g
	}
}

func emitRoutes(v *view, rc *routev3.RouteConfiguration, units []*unit, refs []xds.Ref, owners []string) error {
	name := rc.GetName()
	err := rc.ValidateAll()
	if err == nil {
		err = checkRoutes(v.in.View.Project, rc)
	}
	for _, u := range units {
		if err == nil {
			err = u.err
		}
	}
	var body []byte
	var ends []int
	if err == nil {
		body, ends, err = assemble(rc, units)
	}
	if err != nil {
		return fmt.Errorf("route configuration %s: %w", name, err)
	}
	r := v.out.set(xds.NewRaw(xds.Route, name, body, refs, owners))
	for i, u := range units {
		// The unit needs no bytes of its own any more.
		u.raw = r.Body.Value[ends[i]-len(u.raw) : ends[i] : ends[i]]
	}
	return nil
}

// emitScope emits a scope, whose key is its name, that leads to routes. With
// onDemand a proxy asks for them at the first request.
func emitScope(v *view, name, routes, owner string, onDemand bool) error {
	refs, owners := []xds.Ref{{Type: xds.Route, Name: routes}}, []string{owner}
	// All that a scope is made of is its name and what is compared here.
	if old := v.out.g.Get(xds.Scope, name); old != nil && old.Lazy == onDemand && slices.Equal(old.Refs, refs) && slices.Equal(old.Owners, owners) {
		return nil
	}
	s := &routev3.ScopedRouteConfiguration{
		Name: name, RouteConfigurationName: routes, OnDemand: onDemand,
		Key: &routev3.ScopedRouteConfiguration_Key{Fragments: []*routev3.ScopedRouteConfiguration_Key_Fragment{{
			Type: &routev3.ScopedRouteConfiguration_Key_Fragment_StringKey{StringKey: name},
		}}},
	}
	err := s.ValidateAll()
	var r *xds.Resource
	if err == nil {
		r, err = xds.NewResource(xds.Scope, name, s, refs, owners)
	}
	if err == nil {
		r.Lazy = onDemand
	}
	if err != nil {
		return fmt.Errorf("scope %s: %w", name, err)
	}
	v.out.set(r)
	return nil
}

// emptyHost answers 404 for every host.
func emptyHost(project string) *routev3.VirtualHost {
	c := newHostCompiler(project, nil, nil)
	return &routev3.VirtualHost{Name: anyHost, Domains: []string{anyHost}, Routes: []*routev3.Route{c.noRoute()}}
}

// checkRoutes is table.check for everything in a RouteConfiguration.
func checkRoutes(project string, rc *routev3.RouteConfiguration) error {
	for _, vh := range rc.GetVirtualHosts() {
		for _, r := range vh.GetRoutes() {
			if err := chain().check(project, rc.GetTypedPerFilterConfig(), vh.GetTypedPerFilterConfig(), r.GetTypedPerFilterConfig()); err != nil {
				return fmt.Errorf("host %s, route %s: %w", vh.GetName(), r.GetName(), err)
			}
		}
	}
	return nil
}
