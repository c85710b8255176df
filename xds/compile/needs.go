package compile

import (
	"cmp"
	"slices"

	"github.com/penstock-gateway/penstock/authn/jwt"
)

// needs counts what the units of a view need beside their routes, so that what
// comes and what goes is known without going through all units.
type needs struct {
	targets map[string]*targetUse // by cluster
	// touched are the clusters of units that came or went, and of those that failed.
	touched map[string]bool
	// functions are the clusters of functions.
	functions    map[string]bool
	providers    map[providerKey]*providerUse
	requirements map[string]*requirementUse
	secrets      map[string]int // that providers take their keys from
	// filters tells that providers or requirements came or went.
	filters bool
}

type targetUse struct {
	target
	count int
}

// providerKey has all that the filter depends on: the name is a hash of the rest.
type providerKey struct{ name, owner, secret string }

type providerUse struct {
	*jwt.Provider
	count int
}

type requirementUse struct {
	jwt.Requirement
	count int
}

func newNeeds() needs {
	return needs{
		targets: map[string]*targetUse{}, touched: map[string]bool{}, functions: map[string]bool{},
		providers: map[providerKey]*providerUse{}, requirements: map[string]*requirementUse{}, secrets: map[string]int{},
	}
}

func keyOf(p *jwt.Provider) providerKey { return providerKey{p.Name, p.Owner, p.Secret} }

// keep counts a new unit. Where a target is another object than before, all units
// that need it are new: the last one tells which it is.
func (n *needs) keep(u *unit) {
	for _, t := range u.targets {
		use := n.targets[t.cluster]
		if use == nil {
			use = &targetUse{}
			n.targets[t.cluster] = use
		}
		use.target = t
		use.count++
		n.touched[t.cluster] = true
		if t.Function != nil {
			n.functions[t.cluster] = true
		} else {
			delete(n.functions, t.cluster)
		}
	}
	for _, p := range u.providers {
		use := n.providers[keyOf(p)]
		if use == nil {
			use = &providerUse{Provider: p}
			n.providers[keyOf(p)] = use
			n.secrets[p.Secret]++
			n.filters = true
		}
		use.count++
	}
	for _, r := range u.requirements {
		use := n.requirements[r.Name]
		if use == nil {
			use = &requirementUse{Requirement: r}
			n.requirements[r.Name] = use
			n.filters = true
		}
		use.count++
	}
}

// drop undoes keep.
func (n *needs) drop(u *unit) {
	for _, t := range u.targets {
		use := n.targets[t.cluster]
		use.count--
		n.touched[t.cluster] = true
		if use.count == 0 {
			delete(n.functions, t.cluster)
		}
	}
	for _, p := range u.providers {
		use := n.providers[keyOf(p)]
		if use.count--; use.count == 0 {
			delete(n.providers, keyOf(p))
			if n.secrets[p.Secret]--; n.secrets[p.Secret] == 0 {
				delete(n.secrets, p.Secret)
			}
			n.filters = true
		}
	}
	for _, r := range u.requirements {
		use := n.requirements[r.Name]
		if use.count--; use.count == 0 {
			delete(n.requirements, r.Name)
			n.filters = true
		}
	}
}

// filterParts are the providers and requirements, each once.
func (n *needs) filterParts() (providers []*jwt.Provider, requirements []jwt.Requirement) {
	for _, use := range n.providers {
		providers = append(providers, use.Provider)
	}
	for _, use := range n.requirements {
		requirements = append(requirements, use.Requirement)
	}
	return providers, requirements
}

// unique sorts what a unit needs and leaves each in it once, and no more memory than
// that takes: a host names the same backend in many routes.
func (u *unit) unique() {
	slices.SortFunc(u.targets, func(a, b target) int { return cmp.Compare(a.cluster, b.cluster) })
	u.targets = slices.Clone(slices.CompactFunc(u.targets, func(a, b target) bool { return a.cluster == b.cluster }))
	slices.SortFunc(u.providers, func(a, b *jwt.Provider) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Owner, b.Owner), cmp.Compare(a.Secret, b.Secret))
	})
	u.providers = slices.Clone(slices.CompactFunc(u.providers, func(a, b *jwt.Provider) bool { return keyOf(a) == keyOf(b) }))
	slices.SortFunc(u.requirements, func(a, b jwt.Requirement) int { return cmp.Compare(a.Name, b.Name) })
	u.requirements = slices.Clone(slices.CompactFunc(u.requirements, func(a, b jwt.Requirement) bool { return a.Name == b.Name }))
}
