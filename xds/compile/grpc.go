package compile

import (
	"cmp"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"

	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	routerv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"

	"github.com/penstock-gateway/penstock/gateway"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
	"github.com/penstock-gateway/penstock/xds"
)

// This file and those after it make the view of gRPC clients that speak xDS
// themselves and have no proxy (gRFC A27, A28): a channel to xds:///host takes the
// Listener resource of that name, which leads to routes, clusters and endpoints.
//
// Each exact host of the view's listeners that has a rule with an H2C backend is
// offered, as "host:port" and, once, as "host". Such a client runs no filter of
// ours, so a rule that asks for anything that it would not do (authentication,
// limits, changes of headers or paths) is answered UNAVAILABLE by the client
// itself, and is a problem of the route; it is never left out, for the request
// would fall to another rule.

// compileGRPC makes the resources of a view for gRPC clients.
func (v *view) compileGRPC() {
	hosts := map[string]*grpcHost{}
	offers := map[string][]*grpcHost{}
	for _, gw := range v.in.View.gateways(v.in.Snapshot) {
		for _, l := range gw.GetListeners() {
			for _, h := range v.in.Snapshot.Hosts(gw.GetName(), l.GetName()) {
				if h.Hostname == "" || h.Hostname[0] == '*' {
					continue // a channel has one host, and asks for it by name
				}
				name := listenerName(gw.GetName(), l.GetName()) + "/" + h.Hostname
				g := v.grpcHosts[name]
				if g == nil || g.host != h {
					g = newGRPCHost(name, h)
				}
				hosts[name] = g
				v.problems = append(v.problems, g.problems...)
				if g.routes != nil {
					v.out.set(g.routes)
					offers[h.Hostname] = append(offers[h.Hostname], g)
				}
			}
		}
	}
	v.grpcHosts = hosts
	v.grpcListeners(offers)
	v.prune(xds.Route, func(name string) bool { return hosts[name] != nil && hosts[name].routes != nil })
	v.grpcTargets(offers)
	v.dangling()
}

// prune removes what is not to be kept.
func (v *view) prune(t xds.Type, keep func(name string) bool) {
	for _, name := range v.out.g.Names(t) {
		if !keep(name) {
			v.out.remove(t, name)
		}
	}
}

// grpcListeners emits the Listener resources by which clients find hosts.
func (v *view) grpcListeners(offers map[string][]*grpcHost) {
	listeners := map[string]*grpcHost{}
	for hostname, all := range offers {
		// Beside an HTTPS listener the one for HTTP often only redirects.
		slices.SortFunc(all, func(a, b *grpcHost) int {
			return cmp.Or(-cmp.Compare(a.host.Listener.GetProtocol(), b.host.Listener.GetProtocol()),
				cmp.Compare(a.host.Listener.GetPort(), b.host.Listener.GetPort()), strings.Compare(a.name, b.name))
		})
		listeners[hostname] = all[0]
		for _, g := range all {
			name := net.JoinHostPort(hostname, strconv.FormatUint(uint64(g.host.Listener.GetPort()), 10))
			if listeners[name] == nil {
				listeners[name] = g
			}
		}
	}
	for name, g := range listeners {
		r, err := g.listener(name)
		if err != nil {
			v.problem(g.host.Gateway.GetName(), "", err.Error())
			delete(listeners, name)
			continue
		}
		v.out.set(r)
	}
	v.prune(xds.Listener, func(name string) bool { return listeners[name] != nil })
}

// grpcTargets emits the clusters that are routed to.
func (v *view) grpcTargets(offers map[string][]*grpcHost) {
	for _, all := range offers {
		for _, g := range all {
			for _, t := range g.targets {
				v.grpcTarget(t)
			}
		}
	}
	for name, st := range v.clusters {
		if st.run != v.run {
			v.out.remove(xds.Cluster, name)
			v.out.remove(xds.Endpoint, name)
			delete(v.clusters, name)
		}
	}
}

func (v *view) grpcTarget(t target) {
	st := v.clusters[t.cluster]
	if st != nil && st.run == v.run {
		return
	}
	if st == nil || !st.madeFrom(t) {
		var err error
		if st, err = newGRPCCluster(t); err != nil {
			v.problem(t.Name(), "", fmt.Sprintf("cluster %s, for gRPC clients without a proxy: %v", t.cluster, err))
			return
		}
		v.clusters[t.cluster] = st
	}
	st.run = v.run
	v.out.set(st.cluster)
	if st.endpoints != nil {
		v.out.set(st.endpoints)
	} else {
		v.out.remove(xds.Endpoint, t.cluster)
	}
}

// grpcHost is a host as it is offered to gRPC clients. It is immutable but for the
// listeners, and depends on the host only.
type grpcHost struct {
	name     string
	host     *gateway.Host
	routes   *xds.Resource // nil: nothing on this host is for gRPC
	targets  []target
	problems []gateway.Problem
	// listeners are the Listener resources that lead here, by name.
	listeners map[string]*xds.Resource
}

func newGRPCHost(name string, h *gateway.Host) *grpcHost {
	g := &grpcHost{name: name, host: h, listeners: map[string]*xds.Resource{}}
	if !slices.ContainsFunc(h.Entries, forGRPC) {
		return g
	}
	vhost := &routev3.VirtualHost{Name: h.Hostname, Domains: []string{anyHost}}
	var refs []xds.Ref
	var owners []string
	for _, e := range h.Entries {
		c := &grpcEntry{e: e}
		routes := c.routes()
		if len(routes) == 0 {
			continue
		}
		vhost.Routes = append(vhost.Routes, routes...)
		owners = append(owners, e.Route.GetName())
		if c.why != "" {
			g.problems = append(g.problems, gateway.Problem{
				Object: e.Route.GetName(), Field: fieldOf(e), Origin: e.Route.GetMetadata().GetOrigin(),
				Message: "gRPC clients without a proxy are answered UNAVAILABLE here: they cannot " + c.why + "; let them call through a gateway, or give them a rule without that",
			})
		}
		for _, t := range c.targets {
			g.targets = append(g.targets, target{t, clusterName(t)})
			refs = append(refs, xds.Ref{Type: xds.Cluster, Name: clusterName(t)})
		}
	}
	rc := &routev3.RouteConfiguration{Name: name, VirtualHosts: []*routev3.VirtualHost{vhost}}
	err := rc.ValidateAll()
	if err == nil {
		g.routes, err = xds.NewResource(xds.Route, name, rc, refs, owners)
	}
	if err != nil {
		g.targets = nil
		g.problems = append(g.problems, gateway.Problem{Object: h.Gateway.GetName(), Message: fmt.Sprintf("routes of %s for gRPC clients without a proxy: %v", h.Hostname, err)})
	}
	return g
}

// forGRPC reports whether an entry leads to something that speaks HTTP/2, as gRPC
// has to.
func forGRPC(e *gateway.Entry) bool { return slices.ContainsFunc(e.Backends, speaksH2C) }

func speaksH2C(t gateway.Target) bool {
	return t.Backend.GetProtocol() == pb.BackendProtocol_BACKEND_PROTOCOL_H2C
}

// listener is the Listener resource of a name that leads to the host. gRPC refuses
// it when there is a filter that it does not know, so the router is the only one.
func (g *grpcHost) listener(name string) (*xds.Resource, error) {
	if r := g.listeners[name]; r != nil {
		return r, nil
	}
	p := &packer{}
	m := &hcmv3.HttpConnectionManager{
		StatPrefix:     statPrefix(g.name),
		RouteSpecifier: &hcmv3.HttpConnectionManager_Rds{Rds: &hcmv3.Rds{ConfigSource: ads(), RouteConfigName: g.name}},
		HttpFilters: []*hcmv3.HttpFilter{{
			Name: filterRouter, ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: p.Pack(&routerv3.Router{})},
		}},
	}
	l := &listenerv3.Listener{Name: name, ApiListener: &listenerv3.ApiListener{ApiListener: p.Pack(m)}}
	p.Check(l)
	err := p.Err()
	var r *xds.Resource
	if err == nil {
		r, err = xds.NewResource(xds.Listener, name, l, []xds.Ref{{Type: xds.Route, Name: g.name}}, []string{g.host.Gateway.GetName()})
	}
	if err != nil {
		return nil, fmt.Errorf("listener %s for gRPC clients without a proxy: %w", name, err)
	}
	g.listeners[name] = r
	return r, nil
}
