package jwt

import (
	"slices"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	jwtv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/jwt_authn/v3"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/penstock-gateway/penstock/gateway"
)

const (
	// never is the provider of requests that no route made a statement for. No
	// token satisfies it.
	never = "never"
	// nobodysKey is a P-256 public key whose private half nobody has: x is SHA-256
	// of "penstock: a key that nobody holds/0", y the even one of its two roots.
	// Envoy refuses a provider without a valid key.
	nobodysKey = `{"keys":[{"kty":"EC","crv":"P-256","alg":"ES256","use":"sig","kid":"never",` +
		`"x":"siQmanHyVjeh2HFBD6uDZ7LliQGrwEXTETiVNl_bsCE","y":"v2T5m84OdARVBGNp7LJF80gbfNZ3xs2KF-JC6SdDMjA"}]}`

	// cacheSize is how many verified tokens each worker remembers: verifying costs
	// more than proxying the request. maxToken is the longest that is kept.
	cacheSize = 1000
	maxToken  = 8192
)

// Deny is the configuration of the filter that no token satisfies, for the time
// before the real one is there.
func Deny() *jwtv3.JwtAuthentication { return Filter(nil, nil, nil) }

// Filter is the configuration of the filter with all providers and requirements.
// Providers of the same name are one. keys returns the key set in a Secret, ""
// when there is none: such a provider verifies nothing, and only the routes that
// ask for it are denied.
func Filter(providers []*Provider, requirements []Requirement, keys func(secret string) string) *jwtv3.JwtAuthentication {
	f := &jwtv3.JwtAuthentication{
		Providers: map[string]*jwtv3.JwtProvider{never: {
			Issuer: "penstock:never", RequireExpiration: true,
			JwksSourceSpecifier: local(nobodysKey),
			FromHeaders:         bearer(),
		}},
		// A route that says nothing is denied.
		Rules: []*jwtv3.RequirementRule{{
			Match: &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: "/"}},
			RequirementType: &jwtv3.RequirementRule_Requires{Requires: &jwtv3.JwtRequirement{
				RequiresType: &jwtv3.JwtRequirement_ProviderName{ProviderName: never},
			}},
		}},
		RequirementMap: map[string]*jwtv3.JwtRequirement{},
	}
	for _, p := range slices.SortedFunc(slices.Values(providers), compare) {
		if f.Providers[p.Name] == nil {
			f.Providers[p.Name] = p.config(keys)
		}
	}
	for _, r := range requirements {
		if r.Name != "" {
			f.RequirementMap[r.Name] = r.Value
		}
	}
	return f
}

func (p *Provider) config(keys func(secret string) string) *jwtv3.JwtProvider {
	set := gateway.VerificationKeys(p.Policy.GetJwks())
	if p.Secret != "" {
		set = keys(p.Secret)
	}
	if set == "" {
		set = nobodysKey
	}
	c := &jwtv3.JwtProvider{
		Issuer:              p.Policy.GetIssuer(),
		Audiences:           slices.Sorted(slices.Values(p.Policy.GetAudiences())),
		RequireExpiration:   true,
		MaxLifetime:         durationpb.New(p.maxLifetime()),
		ClockSkewSeconds:    p.clockSkew(),
		JwksSourceSpecifier: local(set),
		// Envoy's default also takes a token from the query, and passes it on there.
		FromHeaders: bearer(),
		// Else the first of two providers of a route takes the token away from the
		// second. The route removes it instead, see TokenHeader.
		Forward:           true,
		PayloadInMetadata: p.Name,
		HeaderInMetadata:  p.headerName(),
		JwtCacheConfig:    &jwtv3.JwtCacheConfig{JwtCacheSize: cacheSize, JwtMaxTokenSize: maxToken},
	}
	for _, h := range p.Policy.GetClaimHeaders() {
		c.ClaimToHeaders = append(c.ClaimToHeaders, &jwtv3.JwtClaimToHeader{HeaderName: h.GetHeader(), ClaimName: h.GetClaim()})
	}
	return c
}

// bearer takes the token from "Authorization: Bearer" (RFC 6750): what follows the first
// blank, whatever the scheme, because Envoy's prefix is case-sensitive and found
// anywhere in the header. The guard compares the whole header.
func bearer() []*jwtv3.JwtHeader {
	return []*jwtv3.JwtHeader{{Name: "Authorization", ValuePrefix: " "}}
}

func local(jwks string) *jwtv3.JwtProvider_LocalJwks {
	return &jwtv3.JwtProvider_LocalJwks{LocalJwks: &corev3.DataSource{Specifier: &corev3.DataSource_InlineString{InlineString: jwks}}}
}
