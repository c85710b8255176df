// Package jwt compiles JSON Web Token authentication to Envoy's jwt_authn filter
// and to the guard that demands its proof.
//
// One filter, always enabled, holds every provider of a view; it comes by ECDS, so
// a new key or issuer is never a change of a listener. A route names a
// requirement: the union of what gateway, route and rule ask for. The filter
// leaves the payload of each token it verified in the dynamic metadata, and the
// guard (an RBAC filter before the router, deny by default) passes a request only
// when what stands there is right: Guard says what it compares again.
package jwt

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"slices"
	"strconv"
	"strings"
	"time"

	jwtv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/jwt_authn/v3"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/penstock-gateway/penstock/gateway"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// MetadataNamespace is where Envoy's filter writes the payloads of verified
// tokens, each under the name of its provider.
const MetadataNamespace = "envoy.filters.http.jwt_authn"

// TokenHeader is the header that the token comes in. A route with providers must
// remove it before the backend, which has no business with the token.
const TokenHeader = "authorization"

const (
	// DefaultClockSkew is the difference of clocks that is forgiven to a token.
	DefaultClockSkew = 30 * time.Second
	// DefaultMaxLifetime is the longest time from now to a token's expiry.
	DefaultMaxLifetime = 24 * time.Hour
)

// Provider is one way to verify a token, with what one policy makes of it.
// Policies that verify alike have providers of the same name.
type Provider struct {
	// Name is "jwt-" and a hash of what the verification depends on. It is also the
	// key of the payload in the metadata. A key set that comes from a Secret counts
	// by the Secret's name, so new keys change no route.
	Name string
	// Policy is as written.
	Policy *pb.JwtAuthentication
	// Secret is the full name of the Secret with the keys; "" for inline keys.
	Secret string
	// Consumers are the full names of Policy.Consumers.
	Consumers []string
	// Owner is the full name of the object that the policy is written on.
	Owner string
}

// Providers resolves the authentication of a rule, outermost first. project is
// that of policies without a source.
func Providers(policies []gateway.Sourced[*pb.JwtAuthentication], project string) []*Provider {
	var out []*Provider
	for _, s := range policies {
		p := &Provider{Policy: s.Value}
		in := project
		if s.Source.Object != nil {
			p.Owner = s.Source.Object.GetName()
			if owner, _, _, err := gateway.KindOf(p.Owner); err == nil {
				in = owner
			}
		}
		if ref := s.Value.GetJwksSecret(); ref != "" {
			p.Secret = gateway.Resolve(in, gateway.KindSecrets, ref)
		}
		for _, c := range s.Value.GetConsumers() {
			p.Consumers = append(p.Consumers, gateway.Resolve(in, gateway.KindConsumers, c))
		}
		p.Name = "jwt-" + p.hash()
		out = append(out, p)
	}
	return out
}

// headerName is the key of the token's own header in the metadata.
func (p *Provider) headerName() string { return p.Name + "-header" }

// hash covers all that Config depends on, but the content of a Secret.
func (p *Provider) hash() string {
	var b strings.Builder
	field := func(s string) { b.WriteString(strconv.Itoa(len(s)) + ":" + s) }
	// With what the guard of a route relies on, the name changes, so that no route meets
	// a provider that leaves less.
	field("2")
	field(p.Policy.GetIssuer())
	for _, a := range slices.Sorted(slices.Values(p.Policy.GetAudiences())) {
		field(a)
	}
	field(p.Secret)
	field(p.Policy.GetJwks())
	for _, c := range p.Policy.GetClaimHeaders() {
		field(c.GetClaim() + "=" + c.GetHeader())
	}
	field(strconv.FormatUint(uint64(p.clockSkew()), 10))
	field(p.maxLifetime().String())
	return short(b.String())
}

func short(s string) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:8])
}

// clockSkew is in whole seconds, rounded up. Envoy reads 0 as its default of 60
// s, so none at all is 1 s.
func (p *Provider) clockSkew() uint32 {
	d := DefaultClockSkew
	if s := p.Policy.GetClockSkew(); s != nil {
		d = s.AsDuration()
	}
	return uint32(max(1, (d+time.Second-1)/time.Second))
}

func (p *Provider) maxLifetime() time.Duration {
	if l := p.Policy.GetMaxLifetime(); l != nil {
		return l.AsDuration()
	}
	return DefaultMaxLifetime
}

// ClaimHeaders returns the headers that the providers set, sorted. Whatever a
// client sends under such a name must never reach a backend, on any route.
func ClaimHeaders(providers []*Provider) []string {
	var names []string
	for _, p := range providers {
		for _, c := range p.Policy.GetClaimHeaders() {
			names = append(names, c.GetHeader())
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// Requirement is what a route demands of the filter.
type Requirement struct {
	// Name is the key in the filter's requirement_map; "" when nothing is demanded.
	Name  string
	Value *jwtv3.JwtRequirement
}

// Require is the union of what the providers ask for: all must hold.
func Require(providers []*Provider) Requirement {
	if len(providers) == 0 {
		return Requirement{}
	}
	var id strings.Builder
	all := make([]*jwtv3.JwtRequirement, 0, len(providers))
	for _, p := range providers {
		one := &jwtv3.JwtRequirement{RequiresType: &jwtv3.JwtRequirement_ProviderName{ProviderName: p.Name}}
		id.WriteString(p.Name)
		if p.Policy.GetOptional() {
			// A request without a token passes; a bad token does not.
			id.WriteString("?")
			one = &jwtv3.JwtRequirement{RequiresType: &jwtv3.JwtRequirement_RequiresAny{RequiresAny: &jwtv3.JwtRequirementOrList{
				Requirements: []*jwtv3.JwtRequirement{one, {RequiresType: &jwtv3.JwtRequirement_AllowMissing{AllowMissing: &emptypb.Empty{}}}},
			}}}
		}
		id.WriteString("&")
		all = append(all, one)
	}
	r := Requirement{Name: "require-" + short(id.String()), Value: all[0]}
	if len(all) > 1 {
		r.Value = &jwtv3.JwtRequirement{RequiresType: &jwtv3.JwtRequirement_RequiresAll{
			RequiresAll: &jwtv3.JwtRequirementAndList{Requirements: all},
		}}
	}
	return r
}

// PerRoute is the entry of a route for the filter: the requirement or, with
// none, the native opt-out. FilterConfig.disabled is never used for it: it is a
// bypass when a request changes its route.
func PerRoute(r Requirement) *jwtv3.PerRouteConfig {
	if r.Name == "" {
		return &jwtv3.PerRouteConfig{RequirementSpecifier: &jwtv3.PerRouteConfig_Disabled{Disabled: true}}
	}
	return &jwtv3.PerRouteConfig{RequirementSpecifier: &jwtv3.PerRouteConfig_RequirementName{RequirementName: r.Name}}
}

// compare orders providers by what decides the filter's configuration.
func compare(a, b *Provider) int {
	return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Owner, b.Owner))
}
