package jwt

import (
	"maps"
	"slices"

	jwtv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/jwt_authn/v3"
)

// maxRetained bounds the providers of an earlier configuration that are kept. It is
// far beyond what one change has: whatever is left out costs callers of routes that
// still name it a 403.
const maxRetained = 20_000

// Retain adds to f the providers and requirements that only the previous
// configuration has, and returns the headers that these providers set, sorted. A
// proxy gets the filter's configuration before the routes that use it, so for a
// moment it has routes that name requirements of the one before; without them it
// would answer 403 to good tokens.
func Retain(f, previous *jwtv3.JwtAuthentication) (claims []string) {
	kept := 0
	for _, name := range slices.Sorted(maps.Keys(previous.GetProviders())) {
		if f.GetProviders()[name] != nil || kept == maxRetained {
			continue
		}
		p := previous.GetProviders()[name]
		f.Providers[name] = p
		kept++
		for _, c := range p.GetClaimToHeaders() {
			claims = append(claims, c.GetHeaderName())
		}
	}
	for name, r := range previous.GetRequirementMap() {
		if f.GetRequirementMap()[name] == nil && known(f, r) {
			f.RequirementMap[name] = r
		}
	}
	slices.Sort(claims)
	return slices.Compact(claims)
}

// known reports whether f has every provider that a requirement names.
func known(f *jwtv3.JwtAuthentication, r *jwtv3.JwtRequirement) bool {
	all := func(rs []*jwtv3.JwtRequirement) bool {
		return !slices.ContainsFunc(rs, func(r *jwtv3.JwtRequirement) bool { return !known(f, r) })
	}
	switch t := r.GetRequiresType().(type) {
	case *jwtv3.JwtRequirement_ProviderName:
		return f.GetProviders()[t.ProviderName] != nil
	case *jwtv3.JwtRequirement_RequiresAny:
		return all(t.RequiresAny.GetRequirements())
	case *jwtv3.JwtRequirement_RequiresAll:
		return all(t.RequiresAll.GetRequirements())
	}
	return true
}
