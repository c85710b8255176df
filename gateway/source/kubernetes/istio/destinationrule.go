package istio

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"
	networking "istio.io/api/networking/v1alpha3"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// destinationRule adds subsets, load balancing and the connect timeout to the
// Backend of its host.
func (t *translator) destinationRule(r *ruleResource) {
	name, b, ok := t.service(&r.resource, "spec.host", r.Spec.Host)
	if !ok {
		return
	}
	if b == nil {
		if !t.options.Incomplete {
			where := "the files that are read together hold no"
			if t.options.Stored != nil {
				where = "neither the files that are read together nor the store have a"
			}
			t.refuse(&r.resource, "spec.host", "a DestinationRule changes that Backend, whose endpoints Istio would take from Kubernetes",
				"%s \"kind: Backend\" with \"name: %s\"", where, name)
		}
		return
	}
	b.withdraw(r)
	t.trafficPolicy(r, b)
	t.subsets(r, b)
	b.record(r)
}

// RulesAnnotation says which fields of a Backend which DestinationRule has set, so that
// a rule that is applied again takes the place of what it was before, and of nothing else:
// "default/a=load_balancing subsets.v1 subsets.v2; default/b=subsets.v3".
const RulesAnnotation = Group + "/destination-rules"

// Fields of a Backend that a rule sets, as RulesAnnotation names them.
const (
	fieldLoadBalancing  = "load_balancing"
	fieldConnectTimeout = "connect_timeout"
	fieldSubset         = "subsets."
)

// rulesOf reads RulesAnnotation; what it cannot read it leaves out.
func rulesOf(b *pb.Backend) map[string][]string {
	out := map[string][]string{}
	for entry := range strings.SplitSeq(b.GetMetadata().GetAnnotations()[RulesAnnotation], ";") {
		if rule, fields, ok := strings.Cut(strings.TrimSpace(entry), "="); ok {
			out[rule] = strings.Fields(fields)
		}
	}
	return out
}

// withdraw takes away what a rule of this name has set before.
func (b *backend) withdraw(r *ruleResource) {
	if b.rules == nil {
		b.rules = rulesOf(b.message)
	}
	b.rule = r.namespace + "/" + r.Name
	before := b.rules[b.rule]
	if delete(b.rules, b.rule); len(before) == 0 {
		return
	}
	m := b.change()
	for _, field := range before {
		switch name, subset := strings.CutPrefix(field, fieldSubset); {
		case subset:
			m.Subsets = slices.DeleteFunc(m.Subsets, func(s *pb.Subset) bool { return s.GetName() == name })
		case field == fieldLoadBalancing:
			m.LoadBalancing = pb.LoadBalancing_LOAD_BALANCING_UNSPECIFIED
		case field == fieldConnectTimeout:
			m.ConnectTimeout = nil
		}
	}
}

// sets notes that the rule at hand has set a field.
func (b *backend) sets(field string) { b.rules[b.rule] = append(b.rules[b.rule], field) }

// record writes RulesAnnotation.
func (b *backend) record(r *ruleResource) {
	if !b.changed {
		return
	}
	if _, ok := b.places[""]; !ok {
		b.places[""] = r.doc.Place(r.doc.Root) // of a stored Backend nothing else was written
	}
	var entries []string
	for _, rule := range slices.Sorted(maps.Keys(b.rules)) {
		if fields := slices.Sorted(slices.Values(b.rules[rule])); len(fields) > 0 {
			entries = append(entries, rule+"="+strings.Join(fields, " "))
		}
	}
	if b.message.Metadata == nil {
		b.message.Metadata = &pb.Metadata{}
	}
	if b.message.Metadata.Annotations == nil {
		b.message.Metadata.Annotations = map[string]string{}
	}
	delete(b.message.Metadata.Annotations, RulesAnnotation)
	if len(entries) > 0 {
		b.message.Metadata.Annotations[RulesAnnotation] = strings.Join(entries, "; ")
	}
}

// trafficPolicy sets what holds for all endpoints. Of several rules for one host
// only the first one's would hold in Istio, by their age: that is refused.
func (t *translator) trafficPolicy(r *ruleResource, b *backend) {
	policy := r.Spec.GetTrafficPolicy()
	if policy == nil {
		return
	}
	if b.policy != nil {
		t.refuse(&r.resource, "spec.trafficPolicy", "keep one of them", "DestinationRule %s/%s has one for the same host", b.policy.namespace, b.policy.Name)
		return
	}
	b.policy = r
	if mode := policy.GetTls().GetMode(); policy.GetTls() != nil && mode != networking.ClientTLSSettings_DISABLE {
		t.refuse(&r.resource, "spec.trafficPolicy.tls.mode", "DISABLE, which is what endpoints get", "%s is not supported yet: requests go to endpoints without TLS", mode)
	}
	m := b.change()
	from := places{from: &r.resource, to: b.places}
	const simple = "spec.trafficPolicy.loadBalancer.simple"
	lb := pb.LoadBalancing_LOAD_BALANCING_UNSPECIFIED
	switch s := policy.GetLoadBalancer().GetSimple(); s {
	case networking.LoadBalancerSettings_UNSPECIFIED:
	case networking.LoadBalancerSettings_LEAST_REQUEST, networking.LoadBalancerSettings_LEAST_CONN: //nolint:staticcheck // the old name of LEAST_REQUEST
		lb = pb.LoadBalancing_LOAD_BALANCING_LEAST_REQUEST
	case networking.LoadBalancerSettings_ROUND_ROBIN:
		lb = pb.LoadBalancing_LOAD_BALANCING_ROUND_ROBIN
	case networking.LoadBalancerSettings_RANDOM:
		lb = pb.LoadBalancing_LOAD_BALANCING_RANDOM
	default:
		t.refuse(&r.resource, simple, "LEAST_REQUEST, ROUND_ROBIN or RANDOM", "%s is not supported yet", s)
	}
	if lb != pb.LoadBalancing_LOAD_BALANCING_UNSPECIFIED {
		if have := m.GetLoadBalancing(); have != pb.LoadBalancing_LOAD_BALANCING_UNSPECIFIED && have != lb {
			t.refuse(&r.resource, simple, "keep one of them", "the Backend has load_balancing %s", have)
		}
		if m.GetLoadBalancing() != lb {
			b.sets(fieldLoadBalancing)
		}
		m.LoadBalancing = lb
		from.set("load_balancing", simple)
	}
	if d := policy.GetConnectionPool().GetTcp().GetConnectTimeout(); d != nil {
		const timeout = "spec.trafficPolicy.connectionPool.tcp.connectTimeout"
		if have := m.GetConnectTimeout(); have != nil && !proto.Equal(have, d) {
			t.refuse(&r.resource, timeout, "keep one of them", "the Backend has connect_timeout %s", have.AsDuration())
		}
		if m.GetConnectTimeout() == nil {
			b.sets(fieldConnectTimeout)
		}
		m.ConnectTimeout = d
		from.set("connect_timeout", timeout)
	}
}

// subsets appends the rule's subsets; a name that is there already must mean the
// same.
func (t *translator) subsets(r *ruleResource, b *backend) {
	for i, s := range r.Spec.GetSubsets() {
		path := fmt.Sprintf("spec.subsets[%d]", i)
		if !labelRE.MatchString(s.GetName()) {
			t.refuse(&r.resource, path+".name", "lower-case letters, digits and dashes, at most 63", "%q cannot be the name of a subset", s.GetName())
			continue
		}
		if len(s.GetLabels()) == 0 {
			t.refuse(&r.resource, path+".labels", "leave the subset out of the routes that name it", "is empty: a subset of all endpoints is not supported yet")
			continue
		}
		m := b.change()
		if k := slices.IndexFunc(m.Subsets, func(have *pb.Subset) bool { return have.GetName() == s.GetName() }); k >= 0 {
			if !maps.Equal(m.Subsets[k].GetLabels(), s.GetLabels()) {
				t.refuse(&r.resource, path+".name", "keep one of them", "subset %q is there already with other labels", s.GetName())
			}
			continue
		}
		if m.GetDns() != nil {
			t.refuse(&r.resource, path+".labels", "", "the Backend is a DNS name, whose endpoints have no labels")
		}
		from := places{from: &r.resource, to: b.places}
		from.set(fmt.Sprintf("subsets[%d]", len(m.Subsets)), path)
		from.set(fmt.Sprintf("subsets[%d].name", len(m.Subsets)), path+".name")
		from.set(fmt.Sprintf("subsets[%d].labels", len(m.Subsets)), path+".labels")
		b.sets(fieldSubset + s.GetName())
		m.Subsets = append(m.Subsets, &pb.Subset{Name: s.GetName(), Labels: s.GetLabels()})
	}
}
