package compile

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	jwtv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/jwt_authn/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"

	"github.com/penstock-gateway/penstock/authn/jwt"
	"github.com/penstock-gateway/penstock/gateway"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
	"github.com/penstock-gateway/penstock/xds"
	"github.com/penstock-gateway/penstock/xds/policy"
)

// view is one run of the compiler: it brings the compiler's state from the input
// of the run before to this one's.
type view struct {
	*state
	settings Settings
	in       Input
	out      *editor
	// changed are the names of the objects that differ from the run before, sorted.
	changed  []string
	problems []gateway.Problem
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

// compile makes the resources.
func (v *view) compile() {
	for _, r := range v.internal {
		v.out.set(r)
	}
	bound := map[netip.AddrPort]string{}
	served := map[string]bool{}
	gateways := v.in.View.gateways(v.in.Snapshot)
	for _, gw := range gateways {
		for i, l := range gw.GetListeners() {
			if v.serve(gw, i, l, bound) {
				served[listenerName(gw.GetName(), l.GetName())] = true
			}
		}
	}
	for name, st := range v.listeners {
		if !served[name] {
			st.remove(v)
			delete(v.listeners, name)
		}
	}
	v.removeSecrets()
	v.targets()
	v.discoveredFilters(len(gateways) > 0)
	v.dangling()
}

// serve brings one listener and its hosts up to date. bound are the addresses that
// earlier listeners of the view have taken. It reports whether the listener is open.
func (v *view) serve(gw *pb.Gateway, index int, l *pb.Listener, bound map[netip.AddrPort]string) bool {
	field := fmt.Sprintf("listeners[%d]", index)
	if !v.bind(gw, field, l, bound) {
		return false
	}
	certificates := v.certificates(gw, index, l)
	if l.GetProtocol() == pb.ListenerProtocol_LISTENER_PROTOCOL_HTTPS && len(certificates) == 0 {
		v.problem(gw.GetName(), field+".tls.certificates", "an HTTPS listener without a certificate cannot be opened: name a secret that holds one")
		return false
	}
	name := listenerName(gw.GetName(), l.GetName())
	st := v.listeners[name]
	if st == nil {
		st = newListenerState(name)
		v.listeners[name] = st
	}
	if err := st.update(v, gw, l, certificates); err != nil {
		v.problem(gw.GetName(), field, err.Error())
		return false
	}
	for _, u := range st.hosts.troubled {
		v.problems = append(v.problems, u.problems...)
	}
	for _, g := range st.failed {
		v.problem(g.owner, "", g.err.Error())
	}
	return true
}

// bind takes the address of a listener, and reports whether it is free: neither it nor
// all addresses of the machine with that port are those of an earlier one. Sockets of
// listeners are shared with nobody, so the second could not be opened; and Envoy 1.40
// ends by a segmentation fault when it learns of the two in one update.
func (v *view) bind(gw *pb.Gateway, field string, l *pb.Listener, bound map[netip.AddrPort]string) bool {
	address, err := netip.ParseAddr(addressOf(l))
	if err != nil {
		v.problem(gw.GetName(), field+".address", err.Error())
		return false
	}
	here := netip.AddrPortFrom(address.Unmap(), uint16(l.GetPort()))
	for _, there := range slices.SortedFunc(maps.Keys(bound), netip.AddrPort.Compare) {
		other := bound[there]
		sameFamily := here.Addr().Is4() == there.Addr().Is4()
		if here == there || sameFamily && here.Port() == there.Port() && (here.Addr().IsUnspecified() || there.Addr().IsUnspecified()) {
			if here != there {
				other += " on " + there.Addr().String()
			}
			v.problem(gw.GetName(), field+".port", fmt.Sprintf("%s is taken by %s already: choose another port, or put the hosts on that listener", here, other))
			return false
		}
	}
	bound[here] = gw.GetName() + " listener " + l.GetName()
	return true
}

// certificates are the full names of the secrets of a listener that hold a
// certificate; problems name the others.
func (v *view) certificates(gw *pb.Gateway, index int, l *pb.Listener) []string {
	if l.GetProtocol() != pb.ListenerProtocol_LISTENER_PROTOCOL_HTTPS {
		return nil
	}
	var out []string
	for i, ref := range l.GetTls().GetCertificates() {
		name := gateway.Resolve(v.in.View.Project, gateway.KindSecrets, ref)
		s, _ := v.in.Snapshot.Get(name).(*pb.Secret)
		if s.GetCertificate() == nil {
			v.problem(gw.GetName(), fmt.Sprintf("listeners[%d].tls.certificates[%d]", index, i), name+" is not a secret with a certificate: create it, or name another")
			continue
		}
		if v.secret(s) {
			out = append(out, name)
		}
	}
	return out
}

// secretState is a secret that was sent.
type secretState struct {
	secret   *pb.Secret
	resource *xds.Resource
	run      int
}

// secret emits the certificate of a secret.
func (v *view) secret(s *pb.Secret) bool {
	st := v.secrets[s.GetName()]
	if st == nil || st.secret != s {
		inline := func(text string) *corev3.DataSource {
			return &corev3.DataSource{Specifier: &corev3.DataSource_InlineString{InlineString: text}}
		}
		out := &tlsv3.Secret{Name: s.GetName(), Type: &tlsv3.Secret_TlsCertificate{TlsCertificate: &tlsv3.TlsCertificate{
			CertificateChain: inline(s.GetCertificate().GetChain()), PrivateKey: inline(s.GetCertificate().GetPrivateKey()),
		}}}
		err := out.ValidateAll()
		var r *xds.Resource
		if err == nil {
			r, err = xds.NewResource(xds.Secret, s.GetName(), out, nil, []string{s.GetName()})
		}
		if err != nil {
			v.problem(s.GetName(), "certificate", err.Error())
			return false
		}
		st = &secretState{secret: s, resource: r}
		v.secrets[s.GetName()] = st
	}
	st.run = v.run
	v.out.set(st.resource)
	return true
}

func (v *view) removeSecrets() {
	for name, st := range v.secrets {
		if st.run != v.run {
			v.out.remove(xds.Secret, name)
			delete(v.secrets, name)
		}
	}
}

// targets emits the clusters that the units need now and did not need, or need
// otherwise, and removes those that none needs any more. The instances of functions
// are looked at each time.
func (v *view) targets() {
	for name := range v.needs.touched {
		delete(v.needs.touched, name)
		use := v.needs.targets[name]
		if use.count == 0 {
			delete(v.needs.targets, name)
			v.removeCluster(name)
			continue
		}
		v.target(use.target)
	}
	for name := range v.needs.functions {
		if st := v.clusters[name]; st != nil && st.run != v.run {
			v.target(v.needs.targets[name].target)
		}
	}
}

func (v *view) removeCluster(name string) {
	v.out.remove(xds.Cluster, name)
	v.out.remove(xds.Endpoint, name)
	delete(v.clusters, name)
}

// target brings the cluster of a target up to date.
func (v *view) target(t target) {
	st := v.clusters[t.cluster]
	if st == nil || !st.madeFrom(t) {
		var err error
		if st, err = newCluster(t); err != nil {
			v.problem(t.Name(), "", fmt.Sprintf("cluster %s: %v", t.cluster, err))
			v.removeCluster(t.cluster)
			v.needs.touched[t.cluster] = true // said again as long as it is so
			return
		}
		v.clusters[t.cluster] = st
	}
	st.run = v.run
	if t.Function != nil {
		var instances []Endpoint
		if v.in.Instances != nil {
			instances = v.in.Instances(t.cluster)
		}
		if err := st.serve(t.cluster, instances); err != nil {
			v.problem(t.cluster, "", fmt.Sprintf("instances: %v", err))
		}
	}
	v.out.set(st.cluster)
	if st.endpoints != nil {
		v.out.set(st.endpoints)
	} else {
		v.out.remove(xds.Endpoint, t.cluster)
	}
}

// filterState is what the filters that come by ECDS were made of.
type filterState struct {
	made bool
	// previous is the resource of Input.Previous.
	previous *xds.Resource
	// lostClaims are those of objects that are damaged.
	lostClaims []string
	// claims are the claim headers that the policies of an object set, in a view that
	// does not have all gateways.
	claims map[string][]string
}

// refused reports whether proxies refuse the cluster of a target, or its endpoints; nil
// when nothing is refused. It may be called by several goroutines at once.
func (v *view) refused() func(target) bool {
	if len(v.in.Refused) == 0 {
		return nil
	}
	return func(t target) bool {
		clusters, endpoints := v.in.Refused[xds.Ref{Type: xds.Cluster, Name: t.cluster}], v.in.Refused[xds.Ref{Type: xds.Endpoint, Name: t.cluster}]
		if len(clusters)+len(endpoints) == 0 {
			return false
		}
		st, err := newCluster(t)
		if err != nil {
			return false
		}
		if t.Function != nil && v.in.Instances != nil && st.serve(t.cluster, v.in.Instances(t.cluster)) != nil {
			return false
		}
		return slices.Contains(clusters, st.cluster.Version) || st.endpoints != nil && slices.Contains(endpoints, st.endpoints.Version)
	}
}

// discoveredFilters emits the filters that come by ECDS, with the providers and
// claim headers of all hosts of the view, when something of that changed.
func (v *view) discoveredFilters(wanted bool) {
	project := v.in.View.Project
	if !wanted {
		v.filters.made = false
		v.out.remove(xds.ExtensionConfig, jwtFilter(project))
		v.out.remove(xds.ExtensionConfig, claimsFilter(project))
		return
	}
	previous := v.in.Previous.Get(xds.ExtensionConfig, jwtFilter(project))
	same := v.filters.made && v.filters.previous == previous && !v.needs.filters && !v.keysChanged()
	if v.takeClaims() || !same {
		v.filters.made = v.makeFilters(previous)
	}
	v.filters.previous, v.needs.filters = previous, false
}

// makeFilters reports whether both could be made.
func (v *view) makeFilters(previous *xds.Resource) bool {
	project := v.in.View.Project
	providers, requirements := v.needs.filterParts()
	var owners []string
	for _, p := range providers {
		owners = append(owners, p.Owner)
		if p.Secret != "" {
			owners = append(owners, p.Secret)
		}
	}
	filter := jwt.Filter(providers, requirements, v.keys)
	claims := append(v.claimHeaders(providers), jwt.Retain(filter, filterIn(previous))...)
	slices.Sort(claims)
	ok := v.extension(jwtFilter(project), filter, owners)
	return v.extension(claimsFilter(project), stripClaims(slices.Compact(claims)), nil) && ok
}

// filterIn is the configuration in a resource; nil for none.
func filterIn(r *xds.Resource) *jwtv3.JwtAuthentication {
	if r == nil {
		return nil
	}
	t, f := &corev3.TypedExtensionConfig{}, &jwtv3.JwtAuthentication{}
	if r.Body.UnmarshalTo(t) != nil || t.GetTypedConfig().UnmarshalTo(f) != nil {
		return nil
	}
	return f
}

// keysChanged reports whether a secret changed that a provider takes its keys from.
func (v *view) keysChanged() bool {
	return slices.ContainsFunc(v.changed, func(name string) bool { return v.needs.secrets[name] > 0 })
}

// takeClaims notes the claim headers of the objects that changed, and reports whether
// there are others now: see claimHeaders.
func (v *view) takeClaims() (differ bool) {
	lost := v.in.Snapshot.DamagedHeaders(v.in.View.Project)
	differ = !slices.Equal(lost, v.filters.lostClaims)
	v.filters.lostClaims = lost
	if v.in.View.Gateway == AllGateways {
		return differ
	}
	for _, name := range v.changed {
		var headers []string
		if project, _ := projectAndID(name); project == v.in.View.Project {
			headers = v.in.Snapshot.OwnedHeaders(name)
		}
		differ = differ || !slices.Equal(headers, v.filters.claims[name])
		if len(headers) > 0 {
			v.filters.claims[name] = headers
		} else {
			delete(v.filters.claims, name)
		}
	}
	return differ
}

// claimHeaders are those of the view's providers and, when there may be others,
// of every policy in the project, damaged ones included: gateways share backends.
func (v *view) claimHeaders(providers []*jwt.Provider) []string {
	names := append(jwt.ClaimHeaders(providers), v.filters.lostClaims...)
	for _, headers := range v.filters.claims {
		names = append(names, headers...)
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// keys is the usable part of the key set in a secret; "" when there is none.
func (v *view) keys(secret string) string {
	s, _ := v.in.Snapshot.Get(secret).(*pb.Secret)
	return gateway.VerificationKeys(s.GetJwks())
}

// extension emits an extension configuration, or a problem.
func (v *view) extension(name string, m policy.Message, owners []string) bool {
	p := &packer{}
	t := &corev3.TypedExtensionConfig{Name: name, TypedConfig: p.Pack(m)}
	p.Check(t)
	err := p.Err()
	var r *xds.Resource
	if err == nil {
		r, err = xds.NewResource(xds.ExtensionConfig, name, t, nil, owners)
	}
	if err != nil {
		owner := ""
		if len(owners) > 0 {
			owner = slices.Min(owners)
		}
		v.problem(owner, "policies.authentication.jwt", err.Error())
		return false
	}
	v.out.set(r)
	return true
}

// dangling reports references of new resources to resources that the generation
// does not have: Envoy acknowledges most of them, and then loses traffic.
func (v *view) dangling() {
	for _, r := range v.out.changed {
		for _, ref := range r.Refs {
			if v.out.g.Get(ref.Type, ref.Name) != nil {
				continue
			}
			owner := ""
			if len(r.Owners) > 0 {
				owner = r.Owners[0]
			}
			v.problem(owner, "", fmt.Sprintf("%s %s refers to %s, which could not be made", r.Type.Short(), r.Name, ref))
		}
	}
}
