package jwt

import (
	"slices"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	rbacconfigv3 "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	headermutationv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/header_mutation/v3"
	jwtv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/jwt_authn/v3"

	"github.com/penstock-gateway/penstock/gateway"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
	"github.com/penstock-gateway/penstock/xds"
	"github.com/penstock-gateway/penstock/xds/policy"
)

// Proxies is authentication in proxies: the filter that verifies, before it one that takes
// away what only it may say, and its proof for the guard.
var Proxies = &policy.Policy{
	Model: Policy, Filters: []policy.Filter{Claims, Verify}, Route: route, Apply: copyClaims,
	GRPC: func(*gateway.Effective) string { return "check tokens (authentication)" },
}

// Claims removes headers that some policy of the project makes from claims: they never come
// from a client, on no route.
var Claims = policy.Filter{
	Name: "claims", Stage: policy.Authenticate, Mode: policy.Always, Source: policy.Awaited,
	Config: func(*policy.Packer) policy.Message { return &headermutationv3.HeaderMutation{} },
}

// Verify verifies tokens.
var Verify = policy.Filter{
	Name: "jwt", Stage: policy.Authenticate, Mode: policy.Denies, Source: policy.Discovered, AtHost: true,
	Config: func(*policy.Packer) policy.Message { return Deny() },
	Entry:  &jwtv3.PerRouteConfig{}, Off: PerRoute(Requirement{}), Proof: proof,
}

// Compiled is what the filter Verify has to know for an entry.
type Compiled struct {
	Providers   []*Provider
	Requirement Requirement
}

// Of is what the filter has to know for an entry.
func Of(r *policy.Route) Compiled {
	return policy.Memo(r, Policy, func() Compiled {
		providers := Providers(InForce(r.Entry.Policies), r.Project)
		return Compiled{providers, Require(providers)}
	})
}

func route(r *policy.Route) error {
	c := Of(r)
	if len(c.Providers) == 0 {
		return nil
	}
	r.Set(&Verify, PerRoute(c.Requirement))
	r.Need(xds.ExtensionConfig, Verify.NameIn(r.Project))
	r.Need(xds.ExtensionConfig, Claims.NameIn(r.Project))
	r.Identify(policy.Identity{Namespace: MetadataNamespace, Payload: c.Providers[0].Name})
	// The token of a client goes first, so that a policy may still set credentials for the
	// backend.
	r.ChangeHeaders(&pb.HeadersPolicy{Request: &pb.HeaderChange{Remove: []string{TokenHeader}}})
	return nil
}

func proof(r *policy.Route) map[string]*rbacconfigv3.Policy {
	return Guard(Of(r).Providers, r.Consumer).GetRbac().GetRules().GetPolicies()
}

// copyClaims copies the claims that Envoy's filter cannot, before the changes of policies,
// and not where one of them takes the place of the header.
func copyClaims(r *policy.Route, out *routev3.Route) {
	var claims []*corev3.HeaderValueOption
	for _, h := range LiteralClaims(Of(r).Providers) {
		if !slices.Contains(out.RequestHeadersToRemove, h.GetHeader().GetKey()) {
			claims = append(claims, h)
		}
	}
	out.RequestHeadersToAdd = append(claims, out.RequestHeadersToAdd...)
}
