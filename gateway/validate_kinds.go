package gateway

import (
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
	"github.com/penstock-gateway/penstock/scale"
)

func (c *checker) gateway(g *pb.Gateway) {
	listeners := g.GetListeners()
	c.duplicates("listener", namesOf(listeners, (*pb.Listener).GetName), elements("listeners[%d].name"))
	first := map[string]int{}
	for i, l := range listeners {
		at := fmt.Sprintf("listeners[%d]", i)
		c.hostNames(at+".hostnames", l.GetHostnames())
		https := l.GetProtocol() == pb.ListenerProtocol_LISTENER_PROTOCOL_HTTPS
		switch {
		case https && len(l.GetTls().GetCertificates()) == 0 && !c.has(at+".tls.certificates"):
			c.add(at+".tls", "an HTTPS listener needs tls.certificates: names of secrets of kind certificate")
		case !https && l.GetTls() != nil:
			c.add(at+".tls", "is for HTTPS listeners; set protocol: HTTPS or take tls away")
		}
		address := ListenerAddress(l)
		if a, err := netip.ParseAddr(address); err == nil {
			if a.Zone() != "" {
				c.add(at+".address", "%q: a zone is not supported", address)
			}
			if a.Is4In6() {
				c.add(at+".address", "%q cannot be bound; write %s", address, a.Unmap())
			}
			address = a.Unmap().String()
		}
		bind := net.JoinHostPort(address, fmt.Sprint(l.GetPort()))
		if j, ok := first[bind]; ok && l.GetPort() != 0 {
			c.add(at+".port", "%s is bound by listeners[%d] already; give one listener all the hostnames, or another port", bind, j)
		} else if !ok {
			first[bind] = i
		}
	}
	c.policies("policies", OnGateway, g.GetPolicies())
}

// ListenerAddress is the IP address that a listener binds.
func ListenerAddress(l *pb.Listener) string {
	if a := l.GetAddress(); a != "" {
		return a
	}
	return DefaultListenerAddress
}

func (c *checker) backend(b *pb.Backend) {
	if d := b.GetDns(); d != nil {
		if isIP(d.GetHostname()) && !c.has("dns.hostname") {
			c.add("dns.hostname", "%q is an IP address, which needs no DNS; use static", d.GetHostname())
		}
		if len(b.GetSubsets()) > 0 {
			c.add("subsets", "select endpoints by their labels, which the addresses of a DNS name do not have; use static endpoints, or a backend for each part")
		}
	}
	endpoints := b.GetStatic().GetEndpoints()
	c.duplicates("endpoint", namesOf(endpoints, func(e *pb.Endpoint) string {
		if e.GetAddress() == "" {
			return ""
		}
		return net.JoinHostPort(e.GetAddress(), fmt.Sprint(e.GetPort()))
	}), elements("static.endpoints[%d].address"))
	for i, e := range endpoints {
		field := fmt.Sprintf("static.endpoints[%d].address", i)
		a, err := netip.ParseAddr(e.GetAddress())
		switch {
		case err != nil || c.has(field):
		case a.Zone() != "":
			c.add(field, "%q: a zone is not supported", e.GetAddress())
		case a.IsUnspecified() || a.IsMulticast():
			c.add(field, "%s is not an address of a server; name the one that it listens on", a)
		}
	}
	c.subsets(b)
}

func (c *checker) subsets(b *pb.Backend) {
	c.duplicates("subset", namesOf(b.GetSubsets(), (*pb.Subset).GetName), elements("subsets[%d].name"))
	for i, s := range b.GetSubsets() {
		field := fmt.Sprintf("subsets[%d].labels", i)
		if len(s.GetLabels()) == 0 {
			c.add(field, "is empty; name the labels that the endpoints of %q carry", s.GetName())
			continue
		}
		if b.GetStatic() != nil && !slices.ContainsFunc(b.GetStatic().GetEndpoints(), func(e *pb.Endpoint) bool { return Carries(e, s) }) {
			c.add(field, "no endpoint carries all of %s; label one or take the subset away", labelText(s.GetLabels()))
		}
	}
}

// Carries reports whether an endpoint belongs to a subset.
func Carries(e *pb.Endpoint, s *pb.Subset) bool {
	for k, v := range s.GetLabels() {
		if got, ok := e.GetLabels()[k]; !ok || got != v {
			return false
		}
	}
	return true
}

func labelText(labels map[string]string) string {
	var out []string
	for _, k := range slices.Sorted(maps.Keys(labels)) {
		out = append(out, k+"="+labels[k])
	}
	return strings.Join(out, ", ")
}

// reservedEnv is set by the runner itself, as is all that begins with one of
// reservedEnvPrefixes.
var (
	reservedEnv         = []string{"PORT", "_HANDLER", "LAMBDA_TASK_ROOT", "_X_AMZN_TRACE_ID", "FUNCTION_TARGET", "FUNCTION_SIGNATURE_TYPE"}
	reservedEnvPrefixes = []string{"PENSTOCK_", "AWS_LAMBDA_", "FUNCTIONS_CUSTOMHANDLER_", "FUNCTIONS_HTTPWORKER_"}
)

func isReservedEnv(name string) bool {
	return slices.Contains(reservedEnv, name) ||
		slices.ContainsFunc(reservedEnvPrefixes, func(p string) bool { return strings.HasPrefix(name, p) })
}

func (c *checker) function(f *pb.Function) {
	c.source(f.GetSource())
	for _, k := range slices.Sorted(maps.Keys(f.GetEnv())) {
		field := fmt.Sprintf("env[%q]", k)
		if isReservedEnv(k) {
			c.add(field, "is set by the runner for each instance; remove it")
		}
		if strings.ContainsRune(f.GetEnv()[k], 0) {
			c.add(field, "holds a NUL, which no environment can")
		}
		if len(f.GetEnv()[k]) > maxVariable {
			c.add(field, "is %d bytes long; at most %d KiB are passed on", len(f.GetEnv()[k]), maxVariable>>10)
		}
	}
	for _, k := range slices.Sorted(maps.Keys(f.GetEnvSecrets())) {
		field := fmt.Sprintf("env_secrets[%q]", k)
		if isReservedEnv(k) {
			c.add(field, "is set by the runner for each instance; remove it")
		}
		if _, twice := f.GetEnv()[k]; twice {
			c.add(field, "is in env, too, so it has two values; remove one of them")
		}
	}
	c.traffic(f)
	c.scale(f)
	c.contract(f)
}

func (c *checker) scale(f *pb.Function) {
	if f.GetScale() == nil {
		return
	}
	if f.GetInstances() != 0 {
		c.add("instances", "is a fixed number, and scale lets it follow the load: remove one")
	}
	if _, err := scale.ConfigOf(f); err != nil {
		c.add("scale", "%s", strings.TrimPrefix(err.Error(), "scale: "))
	}
}
