package compile

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
	"strings"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/penstock-gateway/penstock/gateway"
	"github.com/penstock-gateway/penstock/xds"
)

// Form is what one match of a rule is compiled to for a host, whatever stands
// beside it there. It is immutable.
type Form struct {
	// Hash tells forms apart.
	Hash   string
	routes []*routev3.Route
	part   *part // nil when nothing is needed
}

func newForm(routes []*routev3.Route, p *part) *Form {
	sum := sha256.New()
	for _, r := range routes {
		b := mustMarshal(r)
		sum.Write(binary.BigEndian.AppendUint64(nil, uint64(len(b))))
		sum.Write(b)
	}
	return &Form{Hash: hex.EncodeToString(sum.Sum(nil)[:12]), routes: routes, part: p}
}

// Contains reports whether a text is part of the form, for those who have the words
// of a refusal and wonder which form is meant.
func (f *Form) Contains(text string) bool {
	return slices.ContainsFunc(f.routes, func(r *routev3.Route) bool { return strings.Contains(string(mustMarshal(r)), text) })
}

// Hold keeps one form out of a host, because proxies refuse it.
type Hold struct {
	// Form is the hash of the form that is held. What the match is compiled to after
	// a change is another one, and not held.
	Form string
	// Instead is served in its place; nil: it is answered with 503.
	Instead *Form
	// Out and Wide are for when Instead is nil, and not even its match is accepted. Out
	// leaves it out: for what was not there before. Wide answers 503 for every path
	// that begins as its match may, so that no request for it falls to another part.
	Out, Wide bool
}

// Holds are those of one host, by the names of parts. They are immutable; the
// compiler tells them apart by the pointer.
type Holds map[string]Hold

// HostKey names a host of a listener in Input.Holds. gateway is the full name.
func HostKey(gateway, listener, hostname string) string {
	return gateway + " " + listener + " " + hostname
}

func hostKey(h *gateway.Host) string {
	return HostKey(h.Gateway.GetName(), h.Listener.GetName(), h.Hostname)
}

// heldOtherwise are the names of the hosts of a listener, whose keys begin with
// prefix, that have other holds than before.
func heldOtherwise(before, now map[string]*Holds, prefix string) (hostnames []string) {
	for key, h := range now {
		if name, ok := strings.CutPrefix(key, prefix); ok && before[key] != h {
			hostnames = append(hostnames, name)
		}
	}
	for key := range before {
		if name, ok := strings.CutPrefix(key, prefix); ok && now[key] == nil {
			hostnames = append(hostnames, name)
		}
	}
	slices.Sort(hostnames)
	return hostnames
}

// hold puts in the place of a form that is held what is to stand there.
func (c *hostCompiler) hold(e *gateway.Entry, routes []*routev3.Route, p *part) ([]*routev3.Route, *part) {
	if c.holds == nil {
		return routes, p
	}
	h, ok := (*c.holds)[routeName(e)]
	if !ok || newForm(routes, p).Hash != h.Form {
		return routes, p
	}
	switch {
	case h.Instead != nil:
		out := make([]*routev3.Route, len(h.Instead.routes))
		for i, r := range h.Instead.routes {
			out[i] = proto.CloneOf(r)
		}
		return out, h.Instead.part
	case h.Out:
		return nil, nil
	case h.Wide:
		return []*routev3.Route{c.wide(e, routes)}, nil
	}
	routes, err := c.unservable(e, refusedByProxies)
	if err != nil {
		return nil, nil // the form that is held was no better
	}
	return routes, nil
}

// wide answers 503 for every path that one of the routes may match.
func (c *hostCompiler) wide(e *gateway.Entry, routes []*routev3.Route) *routev3.Route {
	return &routev3.Route{
		Name:                 routeName(e),
		Match:                &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: prefixOf(routes)}},
		Action:               unavailable(e, refusedByProxies),
		TypedPerFilterConfig: c.opened(),
	}
}

// prefixOf is how every path begins that one of some routes may match.
func prefixOf(routes []*routev3.Route) string {
	prefix := pathPrefix(routes[0].GetMatch())
	for _, r := range routes[1:] {
		prefix = commonPrefix(prefix, pathPrefix(r.GetMatch()))
	}
	return cmp.Or(prefix, "/")
}

// Prefix is how every path begins that the form may match: what Hold.Wide answers.
func (f *Form) Prefix() string { return prefixOf(f.routes) }

const refusedByProxies = "proxies refuse it, see its status"

// Guards reports whether requests that the form matches are kept from what is behind: it
// asks for authentication, refuses them, or sends them elsewhere.
func (f *Form) Guards() bool {
	return f.part != nil && len(f.part.providers) > 0 || slices.ContainsFunc(f.routes, func(r *routev3.Route) bool {
		return r.GetDirectResponse().GetStatus() >= 400 || r.GetRedirect() != nil
	})
}

// Covers reports whether the form matches just what another one does, and guards it if
// that does.
func (f *Form) Covers(old *Form) bool {
	return f != nil && (f.Guards() || !old.Guards()) &&
		slices.EqualFunc(f.routes, old.routes, func(a, b *routev3.Route) bool { return proto.Equal(a.GetMatch(), b.GetMatch()) })
}

// Laxer reports whether the form, in the place of another one, would let requests through
// that the other keeps from what is behind it, or that it asks for another proof.
func (f *Form) Laxer(than *Form) bool {
	if than == nil || !than.Guards() {
		return false
	}
	for _, r := range f.routes {
		if r.GetRedirect() != nil || r.GetDirectResponse().GetStatus() >= 400 {
			continue // nothing is behind it
		}
		if !slices.ContainsFunc(than.routes, func(t *routev3.Route) bool { return sameProof(r, t) }) {
			return true
		}
	}
	return false
}

// sameProof reports whether two routes let the same requests through to something: all
// filters that protect are told the same.
func sameProof(a, b *routev3.Route) bool {
	if b.GetRedirect() != nil || b.GetDirectResponse().GetStatus() >= 400 {
		return false
	}
	proof := func(r *routev3.Route) map[string]*anypb.Any {
		m := maps.Clone(r.GetTypedPerFilterConfig())
		maps.DeleteFunc(m, func(name string, _ *anypb.Any) bool { return !chain().protects(name) })
		return m
	}
	return maps.EqualFunc(proof(a), proof(b), func(x, y *anypb.Any) bool { return proto.Equal(x, y) })
}

// Part is one match of a rule in a RouteConfiguration: the smallest thing that can
// be held back.
type Part struct {
	// Name is the same for a match in all hosts of a RouteConfiguration.
	Name string
	// Object is the full name of its route, and Field the path in it.
	Object, Field string
	// Hosts are the keys of the hosts that it is in, with its form in each.
	Hosts map[string]*Form
}

// Parts are the parts of a RouteConfiguration of a view as a snapshot has them, in the
// order that proxies try them. Of hosts that the snapshot does not have there are
// none.
func Parts(s *gateway.Snapshot, v View, rc *xds.Resource) ([]Part, error) {
	m := &routev3.RouteConfiguration{}
	if err := rc.Body.UnmarshalTo(m); err != nil {
		return nil, fmt.Errorf("route configuration %s: %w", rc.Name, err)
	}
	names := map[string]bool{}
	for _, vh := range m.GetVirtualHosts() {
		names[vh.GetName()] = true
	}
	var out []Part
	at := map[string]int{}
	for _, gw := range v.gateways(s) {
		for _, l := range gw.GetListeners() {
			// Names of listeners have no slash.
			if name := listenerName(gw.GetName(), l.GetName()); rc.Name != name && !strings.HasPrefix(rc.Name, name+"/") {
				continue
			}
			for _, h := range s.Hosts(gw.GetName(), l.GetName()) {
				if !names[h.Hostname] {
					continue
				}
				c := newHostCompiler(v.Project, s, h)
				for _, e := range h.Entries {
					f := c.form(e)
					if f == nil {
						continue
					}
					name := routeName(e)
					i, known := at[name]
					if !known {
						i = len(out)
						at[name] = i
						out = append(out, Part{Name: name, Object: e.Route.GetName(), Field: fieldOf(e), Hosts: map[string]*Form{}})
					}
					out[i].Hosts[hostKey(h)] = f
				}
			}
		}
	}
	return out, nil
}

// form is what an entry is compiled to; nil when it is left out.
func (c *hostCompiler) form(e *gateway.Entry) *Form {
	routes, p, err := c.entry(e)
	if err != nil {
		p = nil
		routes, err = c.unservable(e, cannotBeCompiled)
	}
	if err != nil {
		return nil
	}
	return newForm(routes, p)
}
