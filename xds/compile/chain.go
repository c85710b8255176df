package compile

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"sync"

	rbacconfigv3 "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	luav3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/lua/v3"
	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/rbac/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/penstock-gateway/penstock/gateway/policies"
	"github.com/penstock-gateway/penstock/xds"
	"github.com/penstock-gateway/penstock/xds/policy"
)

// table is what follows from the list of policies for all routes and listeners: which
// filters there are, in which order, and which entries a route may and must have.
type table struct {
	policies []*policy.Policy
	// filters are those of policies, with rbac and guard, in the order of the chain.
	// fallback and what else is the compiler's own is before them.
	filters []*policy.Filter
	// byName are filters that come with listeners and take entries, discovered the others.
	byName, discovered map[string]*entryOf
	// entries are all of these, in the order of the chain.
	entries []*entryOf
	// named are the names of filters by project, made once: every route asks for them.
	named sync.Map
}

// named are the names of the filters that take entries in a project, in the order of the
// chain.
type named struct {
	// atHost are those whose entries may stand at the host, off those that entries switch
	// on, and denies those that protect.
	atHost, off, denies []string
}

// entryOf is a filter that takes entries of routes.
type entryOf struct {
	*policy.Filter
	// typeURL is the type of the entries, off the entry that lets everything pass.
	typeURL string
	off     *anypb.Any // nil for some that are always on
}

// own are the filters of the compiler that take entries. The guard is before the limits and
// the router, and demands the proofs of the others; what may be refused without one is not here yet.
var own = []policy.Filter{
	{Name: filterFallback, Stage: policy.Edge, Mode: policy.Always, Entry: &routev3.FilterConfig{}},
	{
		Name: filterDropPort, Stage: policy.Edge, Mode: policy.Off, Entry: &luav3.LuaPerRoute{},
		Off: &luav3.LuaPerRoute{Override: &luav3.LuaPerRoute_Disabled{Disabled: true}}, Config: dropPort,
	},
	{
		Name: filterRBAC, Stage: policy.Authorize, Mode: policy.Denies, Entry: &rbacv3.RBACPerRoute{}, Off: &rbacv3.RBACPerRoute{}, AtHost: true,
		Config: func(*policy.Packer) policy.Message { return denyAll("rbac") },
	},
	{
		Name: filterGuard, Stage: policy.Guard, Mode: policy.Denies, Entry: &rbacv3.RBACPerRoute{}, Off: &rbacv3.RBACPerRoute{}, AtHost: true,
		Config: func(*policy.Packer) policy.Message { return denyAll("guard") },
	},
}

// chain is the table of all policies.
var chain = sync.OnceValue(func() *table { return newTable(policies.Proxies()) })

// newTable panics when a filter cannot be in a chain, or a policy is not what its filters
// are: a program with such a list would not protect what it promises to.
func newTable(list []*policy.Policy) *table {
	t := &table{policies: list, byName: map[string]*entryOf{}, discovered: map[string]*entryOf{}}
	seen := map[string]bool{}
	add := func(f *policy.Filter) {
		if seen[f.Name] {
			panic(fmt.Sprintf("filter %s is in the list twice", f.Name))
		}
		seen[f.Name] = true
		t.filters = append(t.filters, f)
	}
	for i := range own {
		add(&own[i])
	}
	for _, p := range list {
		for i := range p.Filters {
			if err := p.Filters[i].Check(); err != nil {
				panic(fmt.Sprintf("filter %s of policy %s %v", p.Filters[i].Name, p.Model.PolicyName(), err))
			}
			add(&p.Filters[i])
		}
	}
	slices.SortStableFunc(t.filters, func(a, b *policy.Filter) int { return cmp.Compare(a.Stage, b.Stage) })
	p := &packer{}
	for _, f := range t.filters {
		if f.Entry == nil {
			continue
		}
		e := &entryOf{Filter: f, typeURL: typeURL(f.Entry)}
		if f.Off != nil {
			e.off = p.Pack(f.Off)
		}
		t.entries = append(t.entries, e)
		if f.Source == policy.Listener {
			t.byName[f.Name] = e
		} else {
			t.discovered[f.Name] = e
		}
	}
	if err := p.Err(); err != nil {
		panic(fmt.Sprintf("the entries that let everything pass: %v", err))
	}
	return t
}

// filter is the filter of an entry; nil when no filter of the chain takes one of that name.
func (t *table) filter(project, name string) *entryOf {
	if e := t.byName[name]; e != nil {
		return e
	}
	if len(name) > len(project) && name[:len(project)] == project && name[len(project)] == '/' {
		return t.discovered[name[len(project)+1:]]
	}
	return nil
}

// needs are the resources that the chain names.
func (t *table) needs(project string) []xds.Ref {
	var out []xds.Ref
	for _, f := range t.filters {
		if f.Source != policy.Listener {
			out = append(out, xds.Ref{Type: xds.ExtensionConfig, Name: f.NameIn(project)})
		}
	}
	for _, f := range t.filters {
		for _, r := range f.Needs {
			if !slices.Contains(out, r) {
				out = append(out, r)
			}
		}
	}
	return out
}

// protects reports whether an entry is of a filter that protects, of whatever project.
func (t *table) protects(name string) bool {
	project, _, _ := strings.Cut(name, "/")
	f := t.filter(project, name)
	return f != nil && f.Mode == policy.Denies
}

// in is what the filters are called in a project.
func (t *table) in(project string) *named {
	if n, ok := t.named.Load(project); ok {
		return n.(*named)
	}
	n := &named{}
	for _, e := range t.entries {
		name := e.NameIn(project)
		if e.AtHost {
			n.atHost = append(n.atHost, name)
		}
		switch e.Mode {
		case policy.Off:
			n.off = append(n.off, name)
		case policy.Denies:
			n.denies = append(n.denies, name)
		}
	}
	t.named.Store(project, n)
	return n
}

// offs are the entries with which filters of some names let everything pass.
func (t *table) offs(project string, names []string) map[string]*anypb.Any {
	out := make(map[string]*anypb.Any, len(names))
	for _, name := range names {
		out[name] = t.filter(project, name).off
	}
	return out
}

// check reports entries that Envoy would ignore, and filters that protect for which none
// stands at any of the levels, outermost first.
func (t *table) check(project string, levels ...map[string]*anypb.Any) error {
	for _, level := range levels {
		for name, entry := range level {
			switch f := t.filter(project, name); {
			case f == nil:
				return fmt.Errorf("entry for %q, which is not a filter of the chain that takes entries", name)
			case f.Mode == policy.Off && sameAny(entry, switchedOff):
			case entry.GetTypeUrl() != f.typeURL:
				return fmt.Errorf("entry for %q has type %s, the filter takes %s", name, entry.GetTypeUrl(), f.typeURL)
			}
		}
	}
	for _, name := range t.in(project).denies {
		if !slices.ContainsFunc(levels, func(l map[string]*anypb.Any) bool { return l[name] != nil }) {
			return fmt.Errorf("no entry for the security filter %q", name)
		}
	}
	return nil
}

// route compiles what policies are for an entry. Filters that protect and that no policy
// in force uses are opened.
func (t *table) route(r *policy.Route) error {
	r.Entries = t.offs(r.Project, t.in(r.Project).denies)
	for _, p := range t.policies {
		if p.Route == nil {
			continue
		}
		if err := p.Route(r); err != nil {
			return err
		}
	}
	rules := map[string]*rbacconfigv3.Policy{}
	for _, p := range t.policies {
		for i := range p.Filters {
			if err := t.prove(r, p, &p.Filters[i], rules); err != nil {
				return err
			}
		}
	}
	if len(rules) > 0 {
		r.Entries[filterGuard] = r.Pack(&rbacv3.RBACPerRoute{Rbac: &rbacv3.RBAC{Rules: &rbacconfigv3.RBAC{Action: rbacconfigv3.RBAC_DENY, Policies: rules}}})
	}
	return nil
}

// prove adds the rules by which the guard demands the proof of a filter. A policy that is in
// force and leaves its filter open, or asks for no proof, is an error, not a way in.
func (t *table) prove(r *policy.Route, p *policy.Policy, f *policy.Filter, rules map[string]*rbacconfigv3.Policy) error {
	if f.Mode != policy.Denies {
		return nil
	}
	proof := f.Proof(r)
	for name, rule := range proof {
		if rules[name] != nil {
			return fmt.Errorf("two filters prove %q", name)
		}
		rules[name] = rule
	}
	for m := range r.Entry.Policies.InForce {
		name := f.NameIn(r.Project)
		if m == p.Model && (len(proof) == 0 || sameAny(r.Entries[name], t.filter(r.Project, name).off)) {
			return fmt.Errorf("%s is in force, but its filter %s is open", m.PolicyName(), name)
		}
	}
	return nil
}

func typeURL(m proto.Message) string {
	return "type.googleapis.com/" + string(m.ProtoReflect().Descriptor().FullName())
}
