package gateway

import (
	"fmt"
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
	return kindOfObject(o).references(m, projectOf(o.GetName()), o)
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
		return fmt.Sprintf("%q is a %s; expected the name of a %s", r.text, KindFor(kind).Singular, r.wants())
	case project != projectOf(from.GetName()):
		return fmt.Sprintf("%q is in another project; a reference may not leave project %s", r.text, projectOf(from.GetName()))
	}
	return ""
}

func (r reference) wants() string {
	var out []string
	for _, k := range r.kinds {
		out = append(out, KindFor(k).Singular)
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
	if why := kindOfObject(o).unfit(r, o); why != "" {
		return nil, why
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

// refersTo lists the names and keys that o depends on, sorted.
func (m *Model) refersTo(o Object) []string {
	if o == nil {
		return nil
	}
	var out []string
	for _, r := range m.references(o) {
		out = append(out, r.name)
	}
	out = append(out, kindOfObject(o).keys(o)...)
	slices.Sort(out)
	return slices.Compact(out)
}

// checkObject finds what is wrong between an object and the others.
func (s *Snapshot) checkObject(o Object) []Problem {
	var out []Problem
	add := func(field, message string) {
		out = append(out, Problem{Object: o.GetName(), Field: field, Message: message, Origin: o.GetMetadata().GetOrigin()})
	}
	k := kindOfObject(o)
	if k.outlivesTargets() {
		return nil
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
	return append(out, k.check(s, o)...)
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
