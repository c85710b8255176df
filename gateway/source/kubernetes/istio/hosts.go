package istio

import (
	"fmt"
	"regexp"
	"strings"

	"google.golang.org/protobuf/proto"

	"github.com/penstock-gateway/penstock/gateway/source/file/strict"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// clusterDomain is Istio's default domain of services.
const clusterDomain = "svc.cluster.local"

var (
	hostRE    = regexp.MustCompile(`^(\*|(\*\.)?[a-zA-Z0-9]([-a-zA-Z0-9]{0,61}[a-zA-Z0-9])?(\.[a-zA-Z0-9]([-a-zA-Z0-9]{0,61}[a-zA-Z0-9])?)*)$`)
	serviceRE = regexp.MustCompile(`^([a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?)\.([a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?)\.svc\.cluster\.local$`)
)

func validHost(h string) bool { return len(h) <= 253 && hostRE.MatchString(h) }

// qualify resolves a short name in a resource's namespace, as Istio does: only
// names without any dot are short.
func qualify(namespace, host string) string {
	if host == "*" || strings.Contains(host, ".") {
		return host
	}
	return host + "." + namespace + "." + clusterDomain
}

// splitHost splits a server's "namespace/host"; without a namespace it is "*".
func splitHost(h string) (namespace, host string) {
	namespace, host, ok := strings.Cut(h, "/")
	if !ok {
		return "*", h
	}
	return namespace, host
}

// intersects reports whether some host name matches both.
func intersects(a, b string) bool {
	return a == b || covers(a, b) || covers(b, a)
}

// covers reports whether a wildcard holds a host or a narrower wildcard.
func covers(wildcard, host string) bool {
	if wildcard == "*" {
		return true
	}
	return strings.HasPrefix(wildcard, "*.") && strings.HasSuffix(host, wildcard[1:]) && len(host) > len(wildcard)-1
}

// bound checks that a VirtualService's hosts may bind to a Gateway of the same
// load: Istio leaves hosts out that no server has, or has for other namespaces
// only, and then nothing answers.
func (t *translator) bound(v *serviceResource, path string, g *gatewayResource, hosts []string) {
	some := false
	for i, h := range hosts {
		matched, admitted := "", false
		for _, s := range g.Spec.Servers {
			if s.GetTls().GetHttpsRedirect() {
				continue
			}
			for _, entry := range s.GetHosts() {
				namespace, pattern := splitHost(entry)
				if !intersects(strings.ToLower(pattern), h) {
					continue
				}
				matched = entry
				admitted = admitted || namespace == "*" || namespace == v.namespace || (namespace == "." && g.namespace == v.namespace)
			}
		}
		some = some || matched != ""
		if matched != "" && !admitted {
			t.refuse(&v.resource, fmt.Sprintf("spec.hosts[%d]", i), "", "Gateway %s/%s has %q, which does not admit namespace %s", g.namespace, g.Name, matched, v.namespace)
		}
	}
	if !some {
		t.refuse(&v.resource, path, "Istio would bind nothing", "none of spec.hosts is a host of Gateway %s/%s (servers with httpsRedirect do not count)", g.namespace, g.Name)
	}
}

// backend is a Backend of the load, or of the store, with what DestinationRules add.
type backend struct {
	message *pb.Backend
	changed bool
	places  strict.Places
	// policy is the DestinationRule whose trafficPolicy holds.
	policy *ruleResource
	// rules are the fields that rules have set, by namespace/name, see RulesAnnotation; rule
	// is the one at hand.
	rules map[string][]string
	rule  string
}

// change returns a copy that may be changed.
func (b *backend) change() *pb.Backend {
	if !b.changed {
		b.message, b.changed, b.places = proto.Clone(b.message).(*pb.Backend), true, strict.Places{}
	}
	return b.message
}

// service returns the id of the Backend that stands for a service host, and the
// Backend itself when the load has it.
func (t *translator) service(r *resource, path, host string) (id string, b *backend, ok bool) {
	if host == "" {
		t.refuse(r, path, "", "is missing")
		return "", nil, false
	}
	m := serviceRE.FindStringSubmatch(qualify(r.namespace, strings.ToLower(host)))
	if m == nil {
		t.refuse(r, path, "write the name alone, or name.namespace."+clusterDomain, "%q is not a service of the cluster: hosts of ServiceEntries are not supported yet", host)
		return "", nil, false
	}
	if other := t.names[m[1]]; other != "" && other != m[0] {
		t.refuse(r, path, "Penstock tells services apart by their first label", "backend %q stands for %s already, it cannot stand for %s too", m[1], other, m[0])
		return "", nil, false
	}
	t.names[m[1]] = m[0]
	return m[1], t.backends[t.backendName(m[1])], true
}
