package istio

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"regexp"
	"slices"
	"strings"

	networking "istio.io/api/networking/v1alpha3"

	"github.com/penstock-gateway/penstock/gateway/source/file/strict"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// SelectorAnnotation keeps a Gateway's selector, which chooses Pods; Penstock's
// proxies are chosen by the gateway in their certificate.
const SelectorAnnotation = Group + "/selector"

var (
	labelRE = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$`)
	idRE    = regexp.MustCompile(`^[a-z0-9]([-a-z0-9.]{0,61}[a-z0-9])?$`)
)

// listenerProtocols are the protocols of a server that are supported.
var listenerProtocols = map[string]pb.ListenerProtocol{
	"HTTP":  pb.ListenerProtocol_LISTENER_PROTOCOL_HTTP,
	"HTTP2": pb.ListenerProtocol_LISTENER_PROTOCOL_HTTP,
	"GRPC":  pb.ListenerProtocol_LISTENER_PROTOCOL_HTTP,
	"HTTPS": pb.ListenerProtocol_LISTENER_PROTOCOL_HTTPS,
}

// places maps the paths of an object to where its resource has them.
type places struct {
	from *resource
	to   strict.Places
}

func (r *resource) mapped() places {
	p := places{from: r, to: strict.Places{"": r.doc.Place(r.doc.Root)}}
	p.set("name", "metadata.name")
	p.set("metadata", "metadata")
	p.set("metadata.labels", "metadata.labels")
	p.set("metadata.annotations", "metadata.annotations")
	return p
}

// set says that what an object has at to was written at from.
func (p places) set(to, from string) {
	if at, ok := p.from.places.Find(from); ok {
		p.to[to] = at
	}
}

// gateway makes a Gateway of the servers. Servers with httpsRedirect become a
// second Gateway "….redirect" with one Route, because a Route serves all
// listeners of its Gateway.
func (t *translator) gateway(g *gatewayResource) []Object {
	before := len(t.errs)
	if len(g.Spec.Servers) == 0 {
		t.refuse(&g.resource, "spec.servers", "", "at least one server is needed")
		return nil
	}
	main := t.newListeners(g, id(g.namespace, g.meta.Name))
	redirect := t.newListeners(g, id(g.namespace, g.meta.Name+".redirect"))
	for i, s := range g.Spec.Servers {
		if s.GetTls().GetHttpsRedirect() {
			redirect.add(i, s)
		} else {
			main.add(i, s)
		}
	}
	for _, l := range main.gateway.GetListeners() {
		for _, other := range redirect.gateway.GetListeners() {
			if l.GetPort() == other.GetPort() && l.GetAddress() == other.GetAddress() {
				t.refuse(&g.resource, "spec.servers", "", "port %d: some of its servers have httpsRedirect and some have not", l.GetPort())
			}
		}
	}
	if len(t.errs) > before {
		return nil
	}
	var out []Object
	if len(main.gateway.GetListeners()) > 0 {
		out = append(out, Object{Object: main.gateway, Places: main.places.to})
	}
	if len(redirect.gateway.GetListeners()) > 0 {
		out = append(out, Object{Object: redirect.gateway, Places: redirect.places.to}, redirect.route())
	}
	return out
}

// listeners gathers the servers of one Gateway.
type listeners struct {
	t       *translator
	from    *gatewayResource
	gateway *pb.Gateway
	places  places
}

func (t *translator) newListeners(g *gatewayResource, id string) *listeners {
	md := g.model()
	if len(g.Spec.Selector) > 0 {
		var terms []string
		for _, k := range slices.Sorted(maps.Keys(g.Spec.Selector)) {
			terms = append(terms, k+"="+g.Spec.Selector[k])
		}
		md.Annotations[SelectorAnnotation] = strings.Join(terms, ",")
	}
	return &listeners{
		t: t, from: g, places: g.mapped(),
		gateway: &pb.Gateway{Name: "projects/" + t.options.Project + "/gateways/" + id, Metadata: md},
	}
}

// add translates one server. Servers of one port become one listener; their
// certificates are chosen by SNI, as in Istio.
func (l *listeners) add(i int, s *networking.Server) {
	t, r, path := l.t, &l.from.resource, fmt.Sprintf("spec.servers[%d]", i)
	if s.GetPort() == nil || s.GetPort().GetNumber() == 0 {
		t.refuse(r, path+".port", "", "number is missing")
		return
	}
	protocol, ok := listenerProtocols[strings.ToUpper(s.GetPort().GetProtocol())]
	if !ok {
		t.refuse(r, path+".port.protocol", "supported: GRPC, HTTP, HTTP2, HTTPS", "%q is not supported yet", s.GetPort().GetProtocol())
		return
	}
	name := cmp.Or(s.GetName(), s.GetPort().GetName())
	if !labelRE.MatchString(name) {
		where := path + ".port.name"
		if s.GetName() != "" {
			where = path + ".name"
		}
		t.refuse(r, where, "lower-case letters, digits and dashes, at most 63", "%q cannot be the name of a listener", name)
	}
	if _, err := netip.ParseAddr(s.GetBind()); s.GetBind() != "" && err != nil {
		t.refuse(r, path+".bind", "", "%q is not an IP address", s.GetBind())
	}
	hosts := l.hosts(s, path)
	certificates := l.certificates(s, path, protocol)
	for k, have := range l.gateway.Listeners {
		if have.GetPort() != s.GetPort().GetNumber() || have.GetAddress() != s.GetBind() {
			continue
		}
		if have.GetProtocol() != protocol {
			t.refuse(r, path+".port", "", "port %d has a server with another protocol", have.GetPort())
			return
		}
		have.Hostnames = unique(append(have.Hostnames, hosts...))
		if certificates != nil {
			have.Tls = &pb.ListenerTls{Certificates: unique(append(have.GetTls().GetCertificates(), certificates...))}
		}
		l.places.set(fmt.Sprintf("listeners[%d].hostnames", k), path+".hosts")
		return
	}
	listener := &pb.Listener{Name: name, Address: s.GetBind(), Port: s.GetPort().GetNumber(), Protocol: protocol, Hostnames: unique(hosts), Edge: edge()}
	if certificates != nil {
		listener.Tls = &pb.ListenerTls{Certificates: certificates}
	}
	to := fmt.Sprintf("listeners[%d]", len(l.gateway.Listeners))
	l.gateway.Listeners = append(l.gateway.Listeners, listener)
	l.places.set(to, path)
	l.places.set(to+".name", path+".port.name")
	l.places.set(to+".address", path+".bind")
	l.places.set(to+".port", path+".port.number")
	l.places.set(to+".protocol", path+".port.protocol")
	l.places.set(to+".hostnames", path+".hosts")
	l.places.set(to+".tls", path+".tls")
}

// hosts takes the namespaces off a server's hosts; boundTo heeds them.
func (l *listeners) hosts(s *networking.Server, path string) []string {
	if len(s.GetHosts()) == 0 {
		l.t.refuse(&l.from.resource, path+".hosts", `"*" stands for every host`, "at least one host is needed")
	}
	var out []string
	for i, h := range s.GetHosts() {
		_, name := splitHost(h)
		if !validHost(name) {
			l.t.refuse(&l.from.resource, fmt.Sprintf("%s.hosts[%d]", path, i), "such as shop.example.com, *.example.com or *", "%q is not a host", h)
		}
		out = append(out, strings.ToLower(name))
	}
	return out
}

// certificates checks a server's TLS settings and returns the Secrets' names.
func (l *listeners) certificates(s *networking.Server, path string, protocol pb.ListenerProtocol) []string {
	t, r := l.t, &l.from.resource
	path += ".tls"
	tls := s.GetTls()
	if protocol == pb.ListenerProtocol_LISTENER_PROTOCOL_HTTP {
		for _, field := range []string{"mode", "credentialName", "credentialNames"} {
			if _, ok := r.places[path+"."+field]; ok {
				t.refuse(r, path+"."+field, "protocol: HTTPS", "has no effect with protocol %s", s.GetPort().GetProtocol())
			}
		}
		return nil
	}
	if tls == nil {
		t.refuse(r, path, "tls: {mode: SIMPLE, credentialName: …}", "protocol HTTPS needs it")
		return nil
	}
	if tls.GetHttpsRedirect() {
		t.refuse(r, path+".httpsRedirect", "give it to the HTTP server", "has no meaning with protocol HTTPS")
	}
	if tls.GetMode() != networking.ServerTLSSettings_SIMPLE {
		t.refuse(r, path+".mode", "mode: SIMPLE", "%s is not supported yet", tls.GetMode())
		return nil
	}
	names := tls.GetCredentialNames()
	if tls.GetCredentialName() != "" {
		if len(names) > 0 {
			t.refuse(r, path+".credentialNames", "keep one of them", "credentialName and credentialNames exclude each other")
		}
		names = []string{tls.GetCredentialName()}
	}
	if len(names) == 0 {
		t.refuse(r, path+".credentialName", "the name of a Secret with a certificate", "is missing")
	}
	for _, n := range names {
		if !idRE.MatchString(n) {
			t.refuse(r, path+".credentialName", "", "%q cannot be the name of a Secret", n)
		}
	}
	return names
}

// route redirects everything of the listeners to https, as Envoy's require_tls
// does for Istio: 301, same host and path.
func (l *listeners) route() Object {
	name := strings.TrimPrefix(l.gateway.GetName(), "projects/"+l.t.options.Project+"/gateways/")
	r := &pb.Route{
		Name: "projects/" + l.t.options.Project + "/routes/" + name, Metadata: l.from.model(),
		Gateways: []string{name}, RuleOrder: pb.RuleOrder_RULE_ORDER_AS_LISTED,
		Rules: []*pb.RouteRule{{
			Name:   "https-redirect",
			Action: &pb.RouteRule_Redirect{Redirect: &pb.Redirect{Scheme: "https", Status: 301}},
		}},
	}
	for _, listener := range l.gateway.GetListeners() {
		r.Hostnames = unique(append(r.Hostnames, listener.GetHostnames()...))
	}
	return Object{Object: r, Places: l.places.to}
}

// unique drops repetitions and keeps the order.
func unique(all []string) []string {
	seen := map[string]bool{}
	return slices.DeleteFunc(slices.Clone(all), func(s string) bool {
		was := seen[s]
		seen[s] = true
		return was
	})
}

// edge is what a gateway of Istio does with paths and header names unless its mesh
// says otherwise (pathNormalization BASE): it keeps them.
func edge() *pb.EdgeProfile {
	return &pb.EdgeProfile{
		EncodedSlashes:    pb.EncodedSlashes_ENCODED_SLASHES_KEEP,
		Semicolons:        pb.Semicolons_SEMICOLONS_KEEP,
		RepeatedSlashes:   pb.RepeatedSlashes_REPEATED_SLASHES_KEEP,
		HeaderUnderscores: pb.HeaderUnderscores_HEADER_UNDERSCORES_ALLOW,
	}
}
