package istio

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	networking "istio.io/api/networking/v1alpha3"

	cors "github.com/penstock-gateway/penstock/gateway/policy/cors/istio"
	"github.com/penstock-gateway/penstock/gateway/source/kubernetes/istio/part"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// virtualService makes a Route. It is false when there were problems.
func (t *translator) virtualService(v *serviceResource) (Object, bool) {
	before := len(t.errs)
	p := v.mapped()
	route := &pb.Route{
		Name:     "projects/" + t.options.Project + "/routes/" + id(v.namespace, v.meta.Name),
		Metadata: v.model(),
		// Istio takes the first rule that matches.
		RuleOrder: pb.RuleOrder_RULE_ORDER_AS_LISTED,
	}
	if len(v.Spec.Hosts) == 0 {
		t.refuse(&v.resource, "spec.hosts", "", "at least one host is needed")
	}
	for i, h := range v.Spec.Hosts {
		path := fmt.Sprintf("spec.hosts[%d]", i)
		if !validHost(h) {
			t.refuse(&v.resource, path, "such as shop.example.com, *.example.com or *", "%q is not a host", h)
		}
		host := strings.ToLower(qualify(v.namespace, h))
		if slices.Contains(route.Hostnames, host) {
			t.refuse(&v.resource, path, "", "host %s is there already", host)
			continue
		}
		p.set(fmt.Sprintf("hostnames[%d]", len(route.Hostnames)), path)
		route.Hostnames = append(route.Hostnames, host)
	}
	p.set("hostnames", "spec.hosts")
	route.Gateways = t.attached(v, route.Hostnames)
	p.set("gateways", "spec.gateways")
	p.set("rules", "spec.http")
	if len(v.Spec.Http) == 0 {
		t.refuse(&v.resource, "spec.http", "", "at least one route is needed")
	}
	names := map[string]bool{}
	for i, h := range v.Spec.Http {
		rule := t.rule(v, p, i, h)
		if rule.Name != "" && names[rule.Name] {
			// Istio lets names repeat; ours are part of generated names.
			rule.Name = fmt.Sprintf("%s-%d", strings.TrimRight(rule.Name[:min(len(rule.Name), 56)], "-"), i+1)
		}
		names[rule.Name] = true
		route.Rules = append(route.Rules, rule)
	}
	return Object{Object: route, Places: p.to}, len(t.errs) == before
}

// attached resolves spec.gateways.
func (t *translator) attached(v *serviceResource, hosts []string) []string {
	if len(v.Spec.Gateways) == 0 {
		t.refuse(&v.resource, "spec.gateways", "name a Gateway", `"mesh" (the default: every sidecar) is not supported yet`)
		return nil
	}
	var out []string
	for i, ref := range v.Spec.Gateways {
		path := fmt.Sprintf("spec.gateways[%d]", i)
		namespace, name, ok := strings.Cut(ref, "/")
		if !ok {
			namespace, name = v.namespace, ref
		}
		if namespace == "." {
			namespace = v.namespace
		}
		switch {
		case ref == "mesh":
			t.refuse(&v.resource, path, "name a Gateway", `"mesh" (every sidecar) is not supported yet`)
			continue
		case !namespaceRE.MatchString(namespace) || !nameRE.MatchString(name):
			t.refuse(&v.resource, path, `"name" or "namespace/name"`, "%q names no Gateway", ref)
			continue
		case slices.Contains(out, id(namespace, name)):
			t.refuse(&v.resource, path, "", "Gateway %s/%s is there already", namespace, name)
			continue
		}
		out = append(out, id(namespace, name))
		if g := t.gateways[namespace+"/"+name]; g != nil && len(hosts) > 0 {
			t.bound(v, path, g, hosts)
		}
	}
	return out
}

// part is what a policy's translation sees of a resource.
func (t *translator) part(v *serviceResource, p places, from, to string) part.Part {
	return part.Part{
		From: from, To: to, Link: p.set,
		Report: func(path, hint, format string, args ...any) { t.refuse(&v.resource, path, hint, format, args...) },
		Written: func(path string) bool {
			_, ok := v.places[path]
			return ok
		},
	}
}

var notInNames = regexp.MustCompile(`[^a-z0-9]+`)

// ruleName makes a rule's name of a route's, which may be any text in Istio.
func ruleName(s string) string {
	s = strings.Trim(notInNames.ReplaceAllString(strings.ToLower(s), "-"), "-")
	return strings.TrimRight(s[:min(len(s), 63)], "-")
}

// rule makes a rule of one entry of spec.http.
func (t *translator) rule(v *serviceResource, p places, i int, h *networking.HTTPRoute) *pb.RouteRule {
	from, to := fmt.Sprintf("spec.http[%d]", i), fmt.Sprintf("rules[%d]", i)
	p.set(to, from)
	p.set(to+".name", from+".name")
	rule := &pb.RouteRule{Name: ruleName(h.GetName())}
	for j, m := range h.GetMatch() {
		rule.Matches = append(rule.Matches, t.match(v, p, fmt.Sprintf("%s.match[%d]", from, j), fmt.Sprintf("%s.matches[%d]", to, j), m))
	}
	var actions []string
	if len(h.GetRoute()) > 0 {
		actions = append(actions, "route")
		rule.Action = &pb.RouteRule_Forward{Forward: t.forward(v, p, from, to+".forward", h)}
		rule.Policies = &pb.Policies{Timeout: t.timeout(h), Retry: t.retry(v, from, h)}
		p.set(to+".policies.timeout", from+".timeout")
		p.set(to+".policies.retry", from+".retries")
		t.retryPlaces(p, from, to)
	}
	if h.GetRedirect() != nil {
		actions = append(actions, "redirect")
		rule.Action = &pb.RouteRule_Redirect{Redirect: t.redirect(v, p, from+".redirect", to+".redirect", h.GetRedirect())}
	}
	if h.GetDirectResponse() != nil {
		actions = append(actions, "directResponse")
		rule.Action = &pb.RouteRule_DirectResponse{DirectResponse: t.direct(v, p, from+".directResponse", to+".direct_response", h.GetDirectResponse())}
	}
	if len(actions) != 1 {
		got := "none"
		if len(actions) > 0 {
			got = strings.Join(actions, " and ")
		}
		t.refuse(&v.resource, from, "", "needs one of route, redirect and directResponse, has %s", got)
		return rule
	}
	if actions[0] != "route" {
		for _, field := range []string{"timeout", "retries", "rewrite"} {
			if _, ok := v.places[from+"."+field]; ok {
				t.refuse(&v.resource, from+"."+field, "take it away", "has no effect beside %s", actions[0])
			}
		}
	}
	if c := cors.Translate(t.part(v, p, from+".corsPolicy", to+".policies.cors"), h.GetCorsPolicy()); c != nil {
		if rule.Policies == nil {
			rule.Policies = &pb.Policies{}
		}
		rule.Policies.Cors = c
	}
	if headers := t.headers(v, from+".headers", h.GetHeaders()); headers != nil {
		if rule.Policies == nil {
			rule.Policies = &pb.Policies{}
		}
		rule.Policies.Headers = headers
		p.set(to+".policies.headers", from+".headers")
		p.set(to+".policies.headers.request", from+".headers.request")
		p.set(to+".policies.headers.response", from+".headers.response")
	}
	return rule
}

// maxWeight is the largest weight of a WeightedBackend.
const maxWeight = 1_000_000

// forward translates the destinations and the rewrite.
func (t *translator) forward(v *serviceResource, p places, from, to string, h *networking.HTTPRoute) *pb.Forward {
	f := &pb.Forward{}
	total := int64(0)
	for k, d := range h.GetRoute() {
		path, out := fmt.Sprintf("%s.route[%d]", from, k), fmt.Sprintf("%s.backends[%d]", to, k)
		w := t.destination(v, path+".destination", d.GetDestination())
		if d.GetWeight() < 0 || d.GetWeight() > maxWeight {
			t.refuse(&v.resource, path+".weight", "", "%d is not from 0 to %d", d.GetWeight(), maxWeight)
		} else if len(h.GetRoute()) > 1 {
			// A single destination gets everything, whatever its weight.
			w.Weight = uint32(d.GetWeight())
		}
		total += int64(d.GetWeight())
		f.Backends = append(f.Backends, w)
		p.set(out, path)
		p.set(out+".backend", path+".destination.host")
		p.set(out+".subset", path+".destination.subset")
		p.set(out+".port", path+".destination.port")
		p.set(out+".weight", path+".weight")
	}
	if len(h.GetRoute()) > 1 && total == 0 {
		t.refuse(&v.resource, from+".route", "", "the weights add up to nothing")
	}
	f.PrefixRewrite, f.HostRewrite = h.GetRewrite().GetUri(), h.GetRewrite().GetAuthority()
	p.set(to+".prefix_rewrite", from+".rewrite.uri")
	p.set(to+".host_rewrite", from+".rewrite.authority")
	if h.GetRewrite() != nil && f.GetPrefixRewrite() == "" && f.GetHostRewrite() == "" {
		t.refuse(&v.resource, from+".rewrite", "", "needs uri or authority")
	}
	if f.GetPrefixRewrite() != "" && (len(h.GetMatch()) == 0 || slices.ContainsFunc(h.GetMatch(), func(m *networking.HTTPMatchRequest) bool {
		return m.GetUri().GetExact() == "" && m.GetUri().GetPrefix() == ""
	})) {
		t.refuse(&v.resource, from+".rewrite.uri", `"prefix: /" matches every path`, "is supported only where every match has uri.exact or uri.prefix")
	}
	return f
}

// destination resolves a host to a Backend.
func (t *translator) destination(v *serviceResource, path string, d *networking.Destination) *pb.WeightedBackend {
	name, b, ok := t.service(&v.resource, path+".host", d.GetHost())
	if !ok {
		return &pb.WeightedBackend{}
	}
	if n := d.GetPort().GetNumber(); d.GetPort() != nil && b != nil && !slices.Contains(ports(b.message), n) {
		t.refuse(&v.resource, path+".port", "", "is %d, but the endpoints of backend %s have %v", n, name, ports(b.message))
	}
	// What is not in the files is looked up among what is stored when they are applied.
	if s := d.GetSubset(); s != "" && !t.options.Incomplete && b != nil {
		if !slices.ContainsFunc(b.message.GetSubsets(), func(have *pb.Subset) bool { return have.GetName() == s }) {
			t.refuse(&v.resource, path+".subset", "a DestinationRule for the host must name it; Istio would answer 503", "no DestinationRule in the files that are read together gives %s a subset %q", d.GetHost(), s)
		}
	}
	return &pb.WeightedBackend{Backend: name, Subset: d.GetSubset(), Port: d.GetPort().GetNumber()}
}

// ports lists the different ports of a backend.
func ports(b *pb.Backend) []uint32 {
	if b.GetDns() != nil {
		return []uint32{b.GetDns().GetPort()}
	}
	var out []uint32
	for _, e := range b.GetStatic().GetEndpoints() {
		out = append(out, e.GetPort())
	}
	slices.Sort(out)
	return slices.Compact(out)
}

func (t *translator) redirect(v *serviceResource, p places, from, to string, r *networking.HTTPRedirect) *pb.Redirect {
	out := &pb.Redirect{Scheme: r.GetScheme(), Host: r.GetAuthority(), Path: r.GetUri(), Port: r.GetPort(), Status: r.GetRedirectCode()}
	if out.Status == 0 {
		// Istio's default; ours is 302.
		out.Status = 301
	}
	if !slices.Contains([]uint32{301, 302, 303, 307, 308}, out.Status) {
		t.refuse(&v.resource, from+".redirectCode", "", "%d is none of 301, 302, 303, 307 and 308", out.Status)
	}
	if r.GetDerivePort() != networking.HTTPRedirect_FROM_PROTOCOL_DEFAULT {
		t.refuse(&v.resource, from+".derivePort", "name the port", "%s is not supported yet", r.GetDerivePort())
	}
	for ours, theirs := range map[string]string{"scheme": "scheme", "host": "authority", "path": "uri", "port": "port", "status": "redirectCode"} {
		p.set(to+"."+ours, from+"."+theirs)
	}
	return out
}

func (t *translator) direct(v *serviceResource, p places, from, to string, d *networking.HTTPDirectResponse) *pb.DirectResponse {
	if d.GetStatus() < 200 || d.GetStatus() > 599 {
		t.refuse(&v.resource, from+".status", "", "%d is not from 200 to 599", d.GetStatus())
	}
	p.set(to+".status", from+".status")
	p.set(to+".body", from+".body")
	return &pb.DirectResponse{Status: d.GetStatus(), Body: d.GetBody().GetString_()}
}
