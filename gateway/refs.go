package gateway

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
	"github.com/penstock-gateway/penstock/internal/suggest"
)

// reference is one mention of another object.
type reference struct {
	// field that mentions it.
	field string
	// text as written, name in full.
	text, name string
	// kinds that may stand there.
	kinds []string
	// subset of a backend, or "".
	subset string
	// port of the backend's endpoints, or 0.
	port uint32
	// holds and fits are those of Reference.
	holds string
	fits  func(Object) string
	// key of a secret with data, or "".
	key string
}

// references lists every mention of other objects in o, in order of fields.
func (m *Model) references(o Object) []reference {
	project := projectOf(o.GetName())
	var out []reference
	switch v := o.(type) {
	case *pb.Gateway:
		for i, l := range v.GetListeners() {
			for j, c := range l.GetTls().GetCertificates() {
				out = append(out, refTo(fmt.Sprintf("listeners[%d].tls.certificates[%d]", i, j), project, c, KindSecrets))
			}
		}
		out = append(out, m.policyReferences(project, "policies", v.GetPolicies())...)
	case *pb.Function:
		for i, t := range v.GetTraffic() {
			if t.GetVersion() != 0 {
				out = append(out, refTo(fmt.Sprintf("traffic[%d].version", i), project, VersionOf(v.GetName(), t.GetVersion()), KindFunctionVersions))
			}
		}
		out = append(out, secretReferences(project, "env_secrets", v)...)
	case *pb.FunctionVersion:
		out = append(out, secretReferences(project, "spec.env_secrets", v.GetSpec())...)
	case *pb.Route:
		for i, g := range v.GetGateways() {
			out = append(out, refTo(fmt.Sprintf("gateways[%d]", i), project, g, KindGateways))
		}
		out = append(out, m.policyReferences(project, "policies", v.GetPolicies())...)
		for i, r := range v.GetRules() {
			for j, b := range r.GetForward().GetBackends() {
				ref := refTo(fmt.Sprintf("rules[%d].forward.backends[%d].backend", i, j), project, b.GetBackend(), KindBackends, KindFunctions)
				ref.subset, ref.port = b.GetSubset(), b.GetPort()
				out = append(out, ref)
			}
			out = append(out, m.policyReferences(project, fmt.Sprintf("rules[%d].policies", i), r.GetPolicies())...)
		}
	}
	return out
}

func secretReferences(project, path string, f *pb.Function) []reference {
	var out []reference
	for _, variable := range slices.Sorted(maps.Keys(f.GetEnvSecrets())) {
		k := f.GetEnvSecrets()[variable]
		ref := refTo(fmt.Sprintf("%s[%q].secret", path, variable), project, k.GetSecret(), KindSecrets)
		ref.key = k.GetKey()
		out = append(out, ref)
	}
	return out
}

func refTo(field, project, text string, kinds ...string) reference {
	return reference{field: field, text: text, name: Resolve(project, kinds[0], text), kinds: kinds}
}

// malformed says what is wrong with the text of a reference, whatever exists.
func (r reference) malformed(from Object) string {
	project, kind, _, err := KindOf(r.name)
	switch {
	case err != nil:
		return fmt.Sprintf("%q: %v", r.text, err)
	case !slices.Contains(r.kinds, kind):
		return fmt.Sprintf("%q is a %s; expected the name of a %s", r.text, singular[kind], r.wants())
	case project != projectOf(from.GetName()):
		return fmt.Sprintf("%q is in another project; a reference may not leave project %s", r.text, projectOf(from.GetName()))
	}
	return ""
}

func (r reference) wants() string {
	var out []string
	for _, k := range r.kinds {
		out = append(out, singular[k])
	}
	return strings.Join(out, " or ")
}

// target finds what a reference means. Exactly one of the object and the problem
// is set.
func (s *Snapshot) target(from Object, r reference) (Object, string) {
	if m := r.malformed(from); m != "" {
		return nil, m
	}
	o := s.Get(r.name)
	if s.damaged[r.name] != nil {
		return nil, r.name + " is damaged in the store"
	}
	if o == nil {
		if strings.HasPrefix(r.field, "traffic[") {
			return nil, fmt.Sprintf("the function has no such version: it has %s", s.versionNumbers(from.GetName()))
		}
		return nil, fmt.Sprintf("%s does not exist; create it, in the same apply if you like, or change the reference", r.name)
	}
	switch v := o.(type) {
	case *pb.Backend:
		if r.subset != "" && !slices.ContainsFunc(v.GetSubsets(), func(x *pb.Subset) bool { return x.GetName() == r.subset }) {
			return nil, fmt.Sprintf("%s has no subset %q; it has %s", r.name, r.subset, subsetNames(v))
		}
		if m := portProblem(v, r); m != "" {
			return nil, m
		}
	case *pb.Function:
		if r.port != 0 {
			return nil, fmt.Sprintf("%s is a function, which has no port to choose; leave port out", r.name)
		}
		if r.subset != "" && tagged(v, r.subset) == nil {
			return nil, fmt.Sprintf("%s has no subset %q: a subset of a function is a tag of its traffic, and it has %s", r.name, r.subset, tagNames(v))
		}
	case *pb.Secret:
		want, field := secretKind(r)
		if got := secretValue(v); got != "" && want != got {
			return nil, fmt.Sprintf("%s is a secret with %s; %s needs one with %s", r.name, got, field, want)
		}
		if _, ok := v.GetData()[r.key]; r.key != "" && len(v.GetData()) > 0 && !ok {
			return nil, fmt.Sprintf("%s has no key %q in its data%s", r.name, r.key, hint(r.key, slices.Sorted(maps.Keys(v.GetData()))))
		}
	}
	return o, ""
}

// portProblem says that no endpoint of a backend, or of the subset that is referred to, has
// the port that a reference asks for; "" when one does.
func portProblem(b *pb.Backend, r reference) string {
	if r.port == 0 || b.GetDns() != nil && b.GetDns().GetPort() == r.port {
		return ""
	}
	t := Target{Backend: b, Subset: r.subset, Port: r.port}
	if b.GetDns() == nil && len(t.StaticEndpoints()) > 0 {
		return ""
	}
	t.Port = 0
	ports := []uint32{b.GetDns().GetPort()}
	if b.GetDns() == nil {
		ports = nil
		for _, e := range t.StaticEndpoints() {
			ports = append(ports, e.GetPort())
		}
	}
	slices.Sort(ports)
	return fmt.Sprintf("%s has no endpoint with port %d; it has %v", r.name, r.port, slices.Compact(ports))
}

func subsetNames(b *pb.Backend) string {
	var names []string
	for _, s := range b.GetSubsets() {
		names = append(names, s.GetName())
	}
	if len(names) == 0 {
		return "none"
	}
	return strings.Join(names, ", ")
}

// secretKind is what a secret must hold for the field that names it.
func secretKind(r reference) (want, last string) {
	switch {
	case r.key != "":
		return "data", "env_secrets"
	case r.holds != "":
		return r.holds, r.field[strings.LastIndexByte(r.field, '.')+1:]
	}
	return "certificate", "tls.certificates"
}

// secretValue is what a secret holds; "" when its value is not known, as in a read.
func secretValue(s *pb.Secret) string {
	switch {
	case s.GetCertificate() != nil:
		return "certificate"
	case len(s.GetData()) > 0:
		return "data"
	case s.GetValue() != nil:
		return "jwks"
	}
	return ""
}

// maxNearby bounds the objects that a name is compared with: an apply may hold very
// many references to what does not exist.
const maxNearby = 200

// nearby suggests an object of the same project and kind for a reference to one that
// does not exist.
func (s *Snapshot) nearby(name string) string {
	project, kind, id, err := KindOf(name)
	if err != nil || s.Get(name) != nil {
		return ""
	}
	all := s.List(kind, project)
	if len(all) > maxNearby {
		return ""
	}
	var ids []string
	for _, o := range all {
		_, _, other, _ := KindOf(o.GetName())
		ids = append(ids, other)
	}
	if h := hint(id, ids); strings.Contains(h, "did you mean") {
		return h
	}
	return ""
}

// hint is a suggestion as the end of a sentence.
func hint(name string, names []string) string {
	if h := suggest.Name(name, names); h != "" {
		return "; " + h
	}
	return ""
}

// identityKey stands in the reverse references for what a consumer is recognised
// by, so that two consumers with one identity find each other.
func identityKey(c *pb.Consumer) string {
	return fmt.Sprintf("identity:%s:%q:%q", projectOf(c.GetName()), c.GetJwt().GetIssuer(), c.GetJwt().GetSubject())
}

// refersTo lists the names and keys that o depends on, sorted.
func (m *Model) refersTo(o Object) []string {
	if o == nil {
		return nil
	}
	var out []string
	for _, r := range m.references(o) {
		out = append(out, r.name)
	}
	if c, ok := o.(*pb.Consumer); ok {
		out = append(out, identityKey(c))
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// checkObject finds what is wrong between an object and the others.
func (s *Snapshot) checkObject(o Object) []Problem {
	var out []Problem
	add := func(field, message string) {
		out = append(out, Problem{Object: o.GetName(), Field: field, Message: message, Origin: o.GetMetadata().GetOrigin()})
	}
	if _, version := o.(*pb.FunctionVersion); version {
		return nil // it may outlive what it needs, unless it gets requests: see checkVersions
	}
	for _, r := range s.model.references(o) {
		target, m := s.target(o, r)
		if target != nil && r.fits != nil {
			if why := r.fits(target); why != "" {
				add(r.field, r.name+" "+why) // the policy is stricter than meant, never wider: entries stay
			}
		}
		if m != "" {
			field := r.field
			if r.subset != "" && strings.Contains(m, "subset") {
				field = strings.TrimSuffix(field, ".backend") + ".subset"
			} else if r.port != 0 && strings.Contains(m, " port ") {
				field = strings.TrimSuffix(field, ".backend") + ".port"
			}
			add(field, m)
			out[len(out)-1].target = r.name
		}
	}
	if f, ok := o.(*pb.Function); ok {
		out = append(out, s.checkVersions(f)...)
	}
	if r, ok := o.(*pb.Route); ok {
		out = append(out, s.unserved(r)...)
	}
	if c, ok := o.(*pb.Consumer); ok && c.GetJwt() != nil {
		for _, other := range s.referring(identityKey(c)) {
			if other != c.GetName() {
				add("jwt", fmt.Sprintf("%s has the same issuer and subject, so nobody could tell the two apart; change one", other))
			}
		}
	}
	return out
}

// checkVersions finds what the versions that get requests need and is not there.
func (s *Snapshot) checkVersions(f *pb.Function) []Problem {
	var out []Problem
	for i, t := range f.GetTraffic() {
		v, _ := s.Get(VersionOf(f.GetName(), t.GetVersion())).(*pb.FunctionVersion)
		if v == nil {
			continue
		}
		for _, r := range s.model.references(v) {
			if _, m := s.target(v, r); m != "" {
				out = append(out, Problem{
					target: r.name, Object: f.GetName(), Field: fmt.Sprintf("traffic[%d].version", i), Origin: f.GetMetadata().GetOrigin(),
					Message: fmt.Sprintf("version %d has %s: %s", t.GetVersion(), strings.TrimSuffix(strings.TrimPrefix(r.field, "spec."), ".secret"), m),
				})
			}
		}
	}
	return out
}

// Dependents are the objects that need an object to be as it is: those that refer to
// it, with the functions whose traffic names a version in the place of that version.
func (s *Snapshot) Dependents(name string) []string {
	var out []string
	for _, r := range s.referring(name) {
		if kindOf(r) == KindFunctionVersions {
			out = append(out, s.referring(r)...)
		} else {
			out = append(out, r)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}
