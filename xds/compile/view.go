package compile

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	luav3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/lua/v3"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/penstock-gateway/penstock/authn/jwt"
	"github.com/penstock-gateway/penstock/gateway"
	"github.com/penstock-gateway/penstock/gateway/policy/ratelimit"
	"github.com/penstock-gateway/penstock/gateway/policy/retry"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
	"github.com/penstock-gateway/penstock/xds"
)

// maxDirectResponse is what a body of 4096 characters may take in UTF-8.
const maxDirectResponse = 4 * 4096

// view is one run of the compiler.
type view struct {
	c        *Compiler
	settings Settings
	in       Input
	out      *xds.Generation
	problems []gateway.Problem

	// The caches of the next run.
	hosts    map[*gateway.Host]*unit
	clusters map[clusterKey]*clusterUnit
	made     map[xds.Ref]madeOf

	units []*unit
}

func newView(c *Compiler, in Input) *view {
	return &view{
		c: c, settings: c.settings, in: in,
		out:      &xds.Generation{Revision: in.Snapshot.Revision(), Resources: map[xds.Type]map[string]*xds.Resource{}},
		hosts:    map[*gateway.Host]*unit{},
		clusters: map[clusterKey]*clusterUnit{},
		made:     map[xds.Ref]madeOf{},
	}
}

func (v *view) add(r *xds.Resource) {
	m := v.out.Resources[r.Type]
	if m == nil {
		m = map[string]*xds.Resource{}
		v.out.Resources[r.Type] = m
	}
	m[r.Name] = r
}

func (v *view) problem(object, field, message string) {
	p := gateway.Problem{Object: object, Field: field, Message: message}
	if o := v.in.Snapshot.Get(object); o != nil {
		p.Origin = o.GetMetadata().GetOrigin()
	}
	v.problems = append(v.problems, p)
}

func (v *view) sortedProblems() []gateway.Problem {
	slices.SortFunc(v.problems, func(a, b gateway.Problem) int {
		return cmp.Or(strings.Compare(a.Object, b.Object), strings.Compare(a.Field, b.Field), strings.Compare(a.Message, b.Message))
	})
	return slices.CompactFunc(v.problems, func(a, b gateway.Problem) bool {
		return a.Object == b.Object && a.Field == b.Field && a.Message == b.Message
	})
}

// compile fills the generation.
func (v *view) compile() {
	if len(v.c.internal) == 0 {
		v.c.internal = internalClusters(v.settings)
	}
	for _, r := range v.c.internal {
		v.add(r)
	}
	bound := map[string]string{}
	gateways := v.in.View.gateways(v.in.Snapshot)
	for _, gw := range gateways {
		for i, l := range gw.GetListeners() {
			v.serve(gw, i, l, bound)
		}
	}
	if len(gateways) > 0 {
		v.discoveredFilters()
	}
	v.dangling()
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

// serve emits one listener with its hosts. bound are the addresses that earlier
// listeners of the view have taken.
func (v *view) serve(gw *pb.Gateway, index int, l *pb.Listener, bound map[string]string) {
	field := fmt.Sprintf("listeners[%d]", index)
	address := fmt.Sprintf("%s:%d", addressOf(l), l.GetPort())
	if other := bound[address]; other != "" {
		v.problem(gw.GetName(), field+".port", fmt.Sprintf("%s is taken by %s already: choose another port, or put the hosts on that listener", address, other))
		return
	}
	bound[address] = gw.GetName() + " listener " + l.GetName()
	certificates := v.certificates(gw, index, l)
	if l.GetProtocol() == pb.ListenerProtocol_LISTENER_PROTOCOL_HTTPS && len(certificates) == 0 {
		v.problem(gw.GetName(), field+".tls.certificates", "an HTTPS listener without a certificate cannot be opened: name a secret that holds one")
		return
	}
	hosts := v.in.Snapshot.Hosts(gw.GetName(), l.GetName())
	lay := layoutOf(hosts)
	r, err := v.listener(gw, l, lay, certificates)
	if err != nil {
		v.problem(gw.GetName(), field, err.Error())
		return
	}
	v.add(r)
	name := listenerName(gw.GetName(), l.GetName())
	if lay.kind == LayoutTable {
		v.routes(name, gw, v.unitsOf(hosts), true)
		return
	}
	groups := map[string][]*gateway.Host{}
	for _, h := range hosts {
		scope := lay.scopeOf(h.Hostname)
		groups[scope] = append(groups[scope], h)
	}
	for scope, group := range groups {
		v.routes(name+"/"+scope, gw, v.unitsOf(group), false)
		v.scope(gw, name+"/"+scope)
	}
	v.mixedCaseRoutes(gw, name)
	v.scope(gw, name+"/"+mixedCase)
}

// unitsOf compiles hosts, from the cache where nothing changed, and emits the
// clusters that they need.
func (v *view) unitsOf(hosts []*gateway.Host) []*unit {
	out := make([]*unit, 0, len(hosts))
	for _, h := range hosts {
		u := v.c.hosts[h]
		if u == nil || !u.current(v.in.Snapshot) {
			u = compileHost(v.in.Snapshot, h)
		}
		v.hosts[h] = u
		v.problems = append(v.problems, u.problems...)
		for _, t := range u.targets {
			if err := v.target(t); err != nil {
				v.problem(t.Name(), "", err.Error())
			}
		}
		out = append(out, u)
	}
	v.units = append(v.units, out...)
	return out
}

// routes emits a RouteConfiguration of units.
func (v *view) routes(name string, gw *pb.Gateway, units []*unit, table bool) {
	ref := xds.Ref{Type: xds.Route, Name: name}
	if old := v.c.made[ref]; old.resource != nil && slices.Equal(old.units, units) {
		v.made[ref] = old
		v.add(old.resource)
		return
	}
	rc := &routev3.RouteConfiguration{
		Name:                           name,
		RequestHeadersToRemove:         []string{scopeHeader},
		ResponseHeadersToRemove:        []string{retry.RefusedHeader},
		MaxDirectResponseBodySizeBytes: wrapperspb.UInt32(maxDirectResponse),
	}
	var refs []xds.Ref
	var owners []string
	any := false
	for _, u := range units {
		rc.VirtualHosts = append(rc.VirtualHosts, u.vhost)
		refs = append(refs, u.refs...)
		owners = append(owners, u.owners...)
		any = any || u.vhost.Name == anyHost
	}
	if table && !any {
		project, _ := projectAndID(gw.GetName())
		rc.VirtualHosts = append(rc.VirtualHosts, emptyHost(project))
	}
	if len(owners) == 0 {
		owners = []string{gw.GetName()}
	}
	if r := v.routeResource(rc, refs, owners); r != nil {
		v.made[ref] = madeOf{units: units, resource: r}
	}
}

func (v *view) routeResource(rc *routev3.RouteConfiguration, refs []xds.Ref, owners []string) *xds.Resource {
	err := rc.ValidateAll()
	if err == nil {
		err = checkRoutes(v.in.View.Project, rc)
	}
	var r *xds.Resource
	if err == nil {
		r, err = xds.NewResource(xds.Route, rc.GetName(), rc, refs, owners)
	}
	if err != nil {
		v.problem(owners[0], "", fmt.Sprintf("route configuration %s: %v", rc.GetName(), err))
		return nil
	}
	v.add(r)
	return r
}

// emptyHost answers 404 for every host.
func emptyHost(project string) *routev3.VirtualHost {
	c := newHostCompiler(project, nil, nil)
	return &routev3.VirtualHost{Name: anyHost, Domains: []string{anyHost}, Routes: []*routev3.Route{c.noRoute()}}
}

// scope emits the scope of a RouteConfiguration; its key is its name.
func (v *view) scope(gw *pb.Gateway, name string) {
	ref := xds.Ref{Type: xds.Scope, Name: name}
	if old := v.c.made[ref]; old.resource != nil {
		v.made[ref] = old
		v.add(old.resource)
		return
	}
	s := &routev3.ScopedRouteConfiguration{
		Name: name, RouteConfigurationName: name,
		Key: &routev3.ScopedRouteConfiguration_Key{Fragments: []*routev3.ScopedRouteConfiguration_Key_Fragment{{
			Type: &routev3.ScopedRouteConfiguration_Key_Fragment_StringKey{StringKey: name},
		}}},
	}
	err := s.ValidateAll()
	var r *xds.Resource
	if err == nil {
		r, err = xds.NewResource(xds.Scope, name, s, []xds.Ref{{Type: xds.Route, Name: name}}, []string{gw.GetName()})
	}
	if err != nil {
		v.problem(gw.GetName(), "", fmt.Sprintf("scope %s: %v", name, err))
		return
	}
	v.made[ref] = madeOf{resource: r}
	v.add(r)
}

// mixedCaseRoutes emits where requests go whose host has capital letters: its one
// route switches the host-case filter on, which gives the request its real scope.
// The limit filters are switched on, too, for which filters a request has is
// decided before it changes its route.
func (v *view) mixedCaseRoutes(gw *pb.Gateway, listener string) {
	project, _ := projectAndID(gw.GetName())
	name := listener + "/" + mixedCase
	p := &packer{}
	c := newHostCompiler(project, nil, nil)
	route := c.noRoute()
	route.TypedPerFilterConfig[filterHostCase] = p.pack(&luav3.LuaPerRoute{Override: &luav3.LuaPerRoute_Name{Name: "host-case"}})
	route.TypedPerFilterConfig[filterLimitOpen] = p.pack(ratelimit.Off())
	route.TypedPerFilterConfig[filterLimitClosed] = p.pack(ratelimit.Off())
	rc := &routev3.RouteConfiguration{
		Name: name, RequestHeadersToRemove: []string{scopeHeader},
		VirtualHosts: []*routev3.VirtualHost{{Name: mixedCase, Domains: []string{anyHost}, Routes: []*routev3.Route{route}}},
	}
	v.routeResource(rc, nil, []string{gw.GetName()})
}

// discoveredFilters emits the filters that come by ECDS, with the providers and
// claim headers of all hosts of the view.
func (v *view) discoveredFilters() {
	project := v.in.View.Project
	var providers []*jwt.Provider
	var requirements []jwt.Requirement
	for _, u := range v.units {
		providers = append(providers, u.providers...)
		requirements = append(requirements, u.requirements...)
	}
	owners := []string{}
	for _, p := range providers {
		owners = append(owners, p.Owner)
		if p.Secret != "" {
			owners = append(owners, p.Secret)
		}
	}
	v.extension(jwtFilter(project), jwt.Filter(providers, requirements, v.keys), owners)
	v.extension(claimsFilter(project), stripClaims(v.claimHeaders(project, providers)), nil)
}

// claimHeaders are those of every policy in the project, also of gateways that are
// not in this view: they share backends.
func (v *view) claimHeaders(project string, providers []*jwt.Provider) []string {
	names := jwt.ClaimHeaders(providers)
	add := func(p *pb.Policies) {
		for _, h := range p.GetAuthentication().GetJwt().GetClaimHeaders() {
			names = append(names, h.GetHeader())
		}
	}
	for _, o := range v.in.Snapshot.List(gateway.KindGateways, project) {
		if g, ok := o.(*pb.Gateway); ok {
			add(g.GetPolicies())
		}
	}
	for _, o := range v.in.Snapshot.List(gateway.KindRoutes, project) {
		r, ok := o.(*pb.Route)
		if !ok {
			continue
		}
		add(r.GetPolicies())
		for _, rule := range r.GetRules() {
			add(rule.GetPolicies())
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// keys is the key set in a secret; "" when there is none.
func (v *view) keys(secret string) string {
	s, _ := v.in.Snapshot.Get(secret).(*pb.Secret)
	return s.GetJwks()
}

func (v *view) extension(name string, m validated, owners []string) {
	p := &packer{}
	t := &corev3.TypedExtensionConfig{Name: name, TypedConfig: p.pack(m)}
	p.check(t)
	err := p.err()
	var r *xds.Resource
	if err == nil {
		r, err = xds.NewResource(xds.ExtensionConfig, name, t, nil, owners)
	}
	if err != nil {
		owner := ""
		if len(owners) > 0 {
			owner = owners[0]
		}
		v.problem(owner, "policies.authentication.jwt", err.Error())
		return
	}
	v.add(r)
}

// checkRoutes is checkEntries for everything in a RouteConfiguration.
func checkRoutes(project string, rc *routev3.RouteConfiguration) error {
	for _, vh := range rc.GetVirtualHosts() {
		for _, r := range vh.GetRoutes() {
			if err := checkEntries(project, rc.GetTypedPerFilterConfig(), vh.GetTypedPerFilterConfig(), r.GetTypedPerFilterConfig()); err != nil {
				return fmt.Errorf("host %s, route %s: %w", vh.GetName(), r.GetName(), err)
			}
		}
	}
	return nil
}

// dangling reports references to resources that the generation does not have:
// Envoy acknowledges most of them, and then loses traffic.
func (v *view) dangling() {
	for t, resources := range v.out.Resources {
		for _, r := range resources {
			for _, ref := range r.Refs {
				if v.out.Get(ref.Type, ref.Name) != nil {
					continue
				}
				owner := ""
				if len(r.Owners) > 0 {
					owner = r.Owners[0]
				}
				v.problem(owner, "", fmt.Sprintf("%s %s refers to %s, which could not be made", t.Short(), r.Name, ref))
			}
		}
	}
}
