package compile

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strconv"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	luav3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/lua/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/penstock-gateway/penstock/authn/jwt"
	"github.com/penstock-gateway/penstock/gateway"
	"github.com/penstock-gateway/penstock/gateway/policy/retry"
	"github.com/penstock-gateway/penstock/gateway/policy/timeout"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
	"github.com/penstock-gateway/penstock/xds"
	"github.com/penstock-gateway/penstock/xds/policy"
)

// unit is one compiled host: the smallest part that is made anew. It is
// immutable and does not depend on the layout.
type unit struct {
	name string
	// vhost is what compileHost makes; seal turns it into raw, its bytes, or err.
	vhost *routev3.VirtualHost
	raw   []byte
	err   error

	host         *gateway.Host
	providers    []*jwt.Provider
	requirements []jwt.Requirement
	targets      []target
	refs         []xds.Ref
	owners       []string
	problems     []gateway.Problem
	// uses are the filters that are off by default and that its routes have an entry for,
	// as bits in the order of named.off.
	uses uint64
	// consumers are those that were looked up, with what was found, nil included.
	consumers map[string]*pb.Consumer
	// refused are the clusters of targets that proxies refuse.
	refused []string
	// made is what the entries were compiled to, nil when it is not kept, and share
	// what their routes share: see reuse.go.
	made  []made
	share share
}

// fits reports whether the same clusters are refused as when the unit was made.
func (u *unit) fits(refused func(target) bool) bool {
	if refused == nil && len(u.refused) == 0 {
		return true
	}
	for _, t := range u.targets {
		if (refused != nil && refused(t)) != slices.Contains(u.refused, t.cluster) {
			return false
		}
	}
	return true
}

// hostCompiler makes a unit.
type hostCompiler struct {
	project string
	host    *gateway.Host
	s       *gateway.Snapshot
	u       *unit
	holds   *Holds            // nil for none
	refused func(target) bool // may be nil
}

func newHostCompiler(project string, s *gateway.Snapshot, h *gateway.Host) *hostCompiler {
	return &hostCompiler{project: project, host: h, s: s, u: &unit{consumers: map[string]*pb.Consumer{}}}
}

func compileHost(s *gateway.Snapshot, h *gateway.Host, holds *Holds, refused func(target) bool) *unit {
	project, _ := projectAndID(h.Gateway.GetName())
	c := newHostCompiler(project, s, h)
	c.holds, c.refused = holds, refused
	o := newObserver(project)
	var all []*routev3.Route
	for _, e := range h.Entries {
		routes, p, err := c.entry(e)
		if err != nil {
			// What Envoy would refuse is refused here, and answered as what it is: never
			// left out, for the request would fall to another entry.
			c.u.problems = append(c.u.problems, gateway.Problem{
				Object: e.Route.GetName(), Field: fieldOf(e), Message: err.Error(), Origin: e.Route.GetMetadata().GetOrigin(),
			})
			p = nil
			routes, err = c.unservable(e, cannotBeCompiled)
		}
		if err != nil {
			continue // not even its match is valid
		}
		if routes, p = c.hold(e, routes, p); p != nil {
			c.keep(p)
		}
		m := made{entry: e, part: p}
		for _, r := range routes {
			m.traits = append(m.traits, o.trait(r))
		}
		c.u.add(m)
		all = append(all, routes...)
		c.u.owners = append(c.u.owners, e.Route.GetName())
	}
	c.u.observe(project)
	for _, r := range all {
		c.u.share.take(r)
	}
	vhost := newVirtualHost(h, c.u.share, project)
	vhost.Routes = append(all, vhost.Routes...)
	c.layOut(vhost)
	c.u.vhost = vhost
	c.keepMade()
	slices.Sort(c.u.owners)
	c.u.owners = slices.Compact(c.u.owners)
	return c.u
}

// newVirtualHost is a host with nothing but what its routes share, and its last route.
func newVirtualHost(h *gateway.Host, s share, project string) *routev3.VirtualHost {
	name := cmp.Or(h.Hostname, anyHost)
	last := newHostCompiler(project, nil, nil).noRoute()
	inherit(last, s.entries)
	return &routev3.VirtualHost{
		Name: name, Domains: []string{name}, Routes: []*routev3.Route{last},
		TypedPerFilterConfig: s.entries, RetryPolicy: s.retry,
		// Instances answer a request whose time is over instead of beginning it again.
		IncludeIsTimeoutRetryHeader: true,
	}
}

// layOut makes a tree of the routes of a host, when there are so many that a list
// would cost requests more.
func (c *hostCompiler) layOut(vhost *routev3.VirtualHost) {
	plan := trees.plan(vhost.Routes)
	if plan == nil {
		return
	}
	for _, r := range vhost.Routes {
		if chain().check(c.project, vhost.TypedPerFilterConfig, r.TypedPerFilterConfig) != nil {
			return // checkRoutes, which does not look into trees, will say it of the list
		}
	}
	p := &packer{}
	if m := tree(p, vhost.Routes, plan); p.Err() == nil {
		vhost.Matcher, vhost.Routes = m, nil
	}
}

// fieldOf is the path of a rule in its route.
func fieldOf(e *gateway.Entry) string {
	if i := slices.Index(e.Route.GetRules(), e.Rule); i >= 0 {
		return fmt.Sprintf("rules[%d]", i)
	}
	return "rules"
}

func routeName(e *gateway.Entry) string {
	name := e.Route.GetName() + "/" + e.RuleName + "/" + strconv.Itoa(e.MatchIndex)
	if e.Preflight {
		name += "-preflight"
	}
	return name
}

// part is what is gathered while an entry is compiled, and kept when that
// succeeded.
type part struct {
	packer
	providers   []*jwt.Provider
	requirement jwt.Requirement
	targets     []gateway.Target
	refs        []xds.Ref // that policies need
	dropPort    bool      // from Location
	refused     []string  // clusters of targets
	consumers   []string  // that were looked up
}

// entry compiles one entry to Envoy routes, with what they need.
func (c *hostCompiler) entry(e *gateway.Entry) ([]*routev3.Route, *part, error) {
	p := &part{}
	asked := &policy.Route{Entry: e, Project: c.project, Consumer: func(name string) *pb.Consumer {
		p.consumers = append(p.consumers, name)
		return c.consumer(name)
	}}
	if err := chain().route(asked); err != nil {
		return nil, nil, err
	}
	compiled := jwt.Of(asked)
	p.packer, p.providers, p.requirement, p.refs = asked.Packer, compiled.Providers, compiled.Requirement, asked.Refs
	routes, err := c.actions(p, e)
	if err != nil {
		return nil, nil, err
	}
	if p.dropPort {
		asked.Entries[filterDropPort] = p.Pack(&luav3.LuaPerRoute{Override: &luav3.LuaPerRoute_Name{Name: dropPortSource}})
	}
	for _, r := range routes {
		r.Name = routeName(e)
		for _, policy := range slices.Backward(chain().policies) {
			if policy.Apply != nil {
				policy.Apply(asked, r)
			}
		}
		r.TypedPerFilterConfig = asked.Entries
		p.Check(r)
		if err := chain().check(c.project, r.TypedPerFilterConfig); err != nil {
			return nil, nil, err
		}
	}
	if err := p.Err(); err != nil {
		return nil, nil, err
	}
	return routes, p, nil
}

// keep notes what the routes of an entry need.
func (c *hostCompiler) keep(p *part) {
	u := c.u
	u.providers = append(u.providers, p.providers...)
	if p.requirement.Name != "" {
		u.requirements = append(u.requirements, p.requirement)
	}
	u.refs = append(u.refs, p.refs...)
	for _, t := range p.targets {
		if n := len(u.targets); n > 0 && u.targets[n-1].Target == t && len(p.refused)+len(u.refused) == 0 {
			continue // a host names the same backend in many routes
		}
		name := clusterName(t)
		u.targets = append(u.targets, target{t, name})
		if slices.Contains(p.refused, name) {
			u.refused = append(u.refused, name)
			continue
		}
		u.refs = append(u.refs, xds.Ref{Type: xds.Cluster, Name: name})
	}
}

func (c *hostCompiler) consumer(name string) *pb.Consumer {
	found, _ := c.s.Get(name).(*pb.Consumer)
	c.u.consumers[name] = found
	return found
}

const cannotBeCompiled = "cannot be compiled"

// unservable answers 503 for an entry that could not be compiled, or that proxies
// refuse. Nothing is behind it, so nothing has to be protected.
func (c *hostCompiler) unservable(e *gateway.Entry, why string) ([]*routev3.Route, error) {
	p := &packer{}
	var out []*routev3.Route
	for _, v := range pathVariants(e.Match.GetPath(), "") {
		r := &routev3.Route{Name: routeName(e), Match: v.match, Action: unavailable(e, why), TypedPerFilterConfig: c.opened()}
		conditions(r.Match, e.Match, slices.Sorted(slices.Values(e.Match.GetMethods())))
		p.Check(r)
		out = append(out, r)
	}
	return out, p.Err()
}

// opened are the entries of a route that nothing protects.
func (c *hostCompiler) opened() map[string]*anypb.Any {
	return chain().offs(c.project, chain().in(c.project).denies)
}

// noRoute is the last route of every host: without it a request that no entry
// matches would get the 401 of the filters' deny default.
func (c *hostCompiler) noRoute() *routev3.Route {
	return &routev3.Route{
		Name:                 noRouteName,
		Match:                &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: "/"}},
		Action:               directResponse(gateway.NoRoute.Status, ""),
		TypedPerFilterConfig: c.opened(),
	}
}

func unavailable(e *gateway.Entry, why string) *routev3.Route_DirectResponse {
	d := directResponse(gateway.RouteBroken.Status, fmt.Sprintf("%s (%s): %s", e.Route.GetName(), e.RuleName, why))
	d.DirectResponse.BodyFormat = problemOf(gateway.RouteBroken, structpb.NewNumberValue(float64(gateway.RouteBroken.Status)))
	return d
}

func directResponse(status uint32, body string) *routev3.Route_DirectResponse {
	d := &routev3.DirectResponseAction{Status: status}
	if body != "" {
		d.Body = &corev3.DataSource{Specifier: &corev3.DataSource_InlineString{InlineString: body}}
	}
	return &routev3.Route_DirectResponse{DirectResponse: d}
}

// actions compiles match and action of an entry.
func (c *hostCompiler) actions(p *part, e *gateway.Entry) ([]*routev3.Route, error) {
	if e.Problem != "" {
		return simple(e, "", unavailable(e, e.Problem)), nil
	}
	switch a := e.Rule.GetAction().(type) {
	case *pb.RouteRule_Redirect:
		r, drop, err := redirect(a.Redirect, c.host)
		if drop {
			p.dropPort = true
		}
		return simple(e, a.Redirect.GetPrefixRewrite(), r), err
	case *pb.RouteRule_DirectResponse:
		d := directResponse(a.DirectResponse.GetStatus(), a.DirectResponse.GetBody())
		if e.Preflight { // an answer of the gateway's own
			d.DirectResponse.BodyFormat = problemOf(gateway.Forbidden, structpb.NewNumberValue(float64(gateway.Forbidden.Status)))
		}
		return simple(e, "", d), nil
	case *pb.RouteRule_Forward:
		return c.forward(p, e, a.Forward)
	}
	return nil, fmt.Errorf("rule %s has no action: give it forward, redirect or direct_response", e.RuleName)
}

// simple is one Envoy route with an action that does not depend on the method. rewrite is
// what a redirect puts in the place of the matched prefix.
func simple(e *gateway.Entry, rewrite string, action any) []*routev3.Route {
	var out []*routev3.Route
	for _, v := range pathVariants(e.Match.GetPath(), rewrite) {
		r := &routev3.Route{Match: v.match}
		conditions(r.Match, e.Match, slices.Sorted(slices.Values(e.Match.GetMethods())))
		switch a := action.(type) {
		case *routev3.Route_DirectResponse:
			r.Action = a
		case *routev3.Route_Redirect:
			r.Action = redirectWith(a, v.rewrite)
		}
		out = append(out, r)
	}
	return out
}

// redirectWith is a redirect that puts rewrite, unless it is "", in the place of what the
// route matches.
func redirectWith(a *routev3.Route_Redirect, rewrite string) *routev3.Route_Redirect {
	if rewrite == "" {
		return a
	}
	out := proto.Clone(a.Redirect).(*routev3.RedirectAction)
	out.PathRewriteSpecifier = &routev3.RedirectAction_PrefixRewrite{PrefixRewrite: rewrite}
	return &routev3.Route_Redirect{Redirect: out}
}

var redirectCodes = map[uint32]routev3.RedirectAction_RedirectResponseCode{
	301: routev3.RedirectAction_MOVED_PERMANENTLY,
	302: routev3.RedirectAction_FOUND,
	303: routev3.RedirectAction_SEE_OTHER,
	307: routev3.RedirectAction_TEMPORARY_REDIRECT,
	308: routev3.RedirectAction_PERMANENT_REDIRECT,
}

// redirect compiles a redirect. drop tells that the port has to go from its Location,
// which Envoy cannot do by itself: it keeps the port of the request or names another.
func redirect(r *pb.Redirect, h *gateway.Host) (action *routev3.Route_Redirect, drop bool, err error) {
	code, ok := redirectCodes[cmp.Or(r.GetStatus(), gateway.DefaultRedirectStatus)]
	if !ok {
		return nil, false, fmt.Errorf("redirect.status %d is none of 301, 302, 303, 307, 308", r.GetStatus())
	}
	to := gateway.RedirectTo(r, h.Listener, h.Hostname)
	a := &routev3.RedirectAction{HostRedirect: to.Host, PortRedirect: to.Port, ResponseCode: code}
	if s := r.GetScheme(); s != "" {
		a.SchemeRewriteSpecifier = &routev3.RedirectAction_SchemeRedirect{SchemeRedirect: s}
	}
	if path := r.GetPath(); path != "" {
		a.PathRewriteSpecifier = &routev3.RedirectAction_PathRedirect{PathRedirect: path}
	}
	return &routev3.Route_Redirect{Redirect: a}, to.DropPort, nil
}

// forward is one Envoy route for each class of methods whose retries differ by more
// than what the filter retryOn does.
func (c *hostCompiler) forward(p *part, e *gateway.Entry, f *pb.Forward) ([]*routev3.Route, error) {
	base, err := forwardAction(p, e, f, c.refused)
	if err != nil {
		return nil, err
	}
	if base == nil {
		return simple(e, "", unavailable(e, "proxies refuse its backend, see the status of that")), nil
	}
	behind := retryTargets(timeout.Policy.Of(e.Policies).Merged, p.targets)
	retries := retry.Policy.Of(e.Policies).Merged
	idempotent, other := retry.Policies(retries, behind)
	methods, rest, all := byMethod(e.Match.GetMethods())
	type class struct {
		methods []string
		retry   *routev3.RetryPolicy
	}
	var classes []class
	one, reset, ok := retry.Merge(idempotent, other)
	switch {
	case ok:
		classes = []class{{slices.Sorted(slices.Values(e.Match.GetMethods())), one}}
	case all:
		classes = []class{{methods, idempotent}, {nil, other}}
	default:
		if len(methods) > 0 {
			classes = append(classes, class{methods, idempotent})
		}
		if len(rest) > 0 {
			classes = append(classes, class{rest, other})
		}
	}
	var out []*routev3.Route
	for _, k := range classes {
		for _, v := range pathVariants(e.Match.GetPath(), f.GetPrefixRewrite()) {
			a := proto.CloneOf(base)
			a.PrefixRewrite = v.rewrite
			a.RetryPolicy = k.retry
			conditions(v.match, e.Match, k.methods)
			r := &routev3.Route{Match: v.match, Action: &routev3.Route_Route{Route: a}}
			if !reset {
				r.RequestHeadersToRemove = []string{retry.OnHeader}
			}
			if retry.Repeats(retries) && behind.Functions {
				r.RequestHeadersToAdd = append(r.RequestHeadersToAdd, set(retry.RepeatHeader, "1").GetAppend())
			}
			out = append(out, r)
		}
	}
	return out, nil
}

// forwardAction is all of the action that does not depend on path and method; nil
// when every backend is refused by proxies. If it is some of several, the others
// get their requests.
func forwardAction(p *part, e *gateway.Entry, f *pb.Forward, refused func(target) bool) (*routev3.RouteAction, error) {
	targets := e.Receivers()
	a := &routev3.RouteAction{}
	for _, p := range chain().policies {
		if p.Action != nil {
			p.Action(e, a)
		}
	}
	if host := f.GetHostRewrite(); host != "" {
		a.HostRewriteSpecifier = &routev3.RouteAction_HostRewriteLiteral{HostRewriteLiteral: host}
		a.AppendXForwardedHost = true
	}
	p.targets = targets
	if refused != nil {
		targets = slices.DeleteFunc(slices.Clone(targets), func(t gateway.Target) bool {
			bad := refused(target{t, clusterName(t)})
			if bad {
				p.refused = append(p.refused, clusterName(t))
			}
			return bad
		})
	}
	if len(targets) == 0 && len(p.refused) > 0 {
		return nil, nil
	}
	switch len(targets) {
	case 0:
		return nil, fmt.Errorf("no backend has a weight: give one of them a weight above 0")
	case 1:
		a.ClusterSpecifier = &routev3.RouteAction_Cluster{Cluster: clusterName(targets[0])}
	default:
		w := &routev3.WeightedCluster{}
		for _, t := range targets {
			w.Clusters = append(w.Clusters, &routev3.WeightedCluster_ClusterWeight{Name: clusterName(t), Weight: wrapperspb.UInt32(t.Weight)})
		}
		a.ClusterSpecifier = &routev3.RouteAction_WeightedClusters{WeightedClusters: w}
	}
	return a, nil
}

// inherit takes out of a route the entries that its host has, the same.
func inherit(r *routev3.Route, host map[string]*anypb.Any) {
	maps.DeleteFunc(r.TypedPerFilterConfig, func(name string, entry *anypb.Any) bool {
		return host[name] != nil && sameAny(host[name], entry)
	})
}
