package jwt

import (
	"slices"

	rbacconfigv3 "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/rbac/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// Guard is the entry of a route for the guard: the proof that each provider has
// to have left, or the native opt-out when there is nothing to prove. consumer
// returns a consumer by its full name, nil when there is none.
func Guard(providers []*Provider, consumer func(name string) *pb.Consumer) *rbacv3.RBACPerRoute {
	var all []*rbacconfigv3.Permission
	for _, p := range providers {
		all = append(all, p.proof(consumer))
	}
	if len(all) == 0 {
		return &rbacv3.RBACPerRoute{}
	}
	return &rbacv3.RBACPerRoute{Rbac: &rbacv3.RBAC{Rules: &rbacconfigv3.RBAC{
		Action: rbacconfigv3.RBAC_ALLOW,
		Policies: map[string]*rbacconfigv3.Policy{"proof": {
			Permissions: []*rbacconfigv3.Permission{and(all...)},
			Principals:  []*rbacconfigv3.Principal{{Identifier: &rbacconfigv3.Principal_Any{Any: true}}},
		}},
	}}}
}

// maxExpiry is the year 2096 in seconds. Envoy's computation of the lifetime that a
// token has left overflows at 2^63, and takes the token for a short-lived one.
const maxExpiry = 4e9

// proof is what must hold of a request that passed the provider.
func (p *Provider) proof(consumer func(string) *pb.Consumer) *rbacconfigv3.Permission {
	good := and(p.claim("iss", exact(p.Policy.GetIssuer())), p.claim("exp", below(maxExpiry)))
	if len(p.Policy.GetConsumers()) > 0 {
		subjects := p.subjects(consumer)
		if subjects == nil {
			// None of them can bring a token of this issuer.
			good = not(&rbacconfigv3.Permission{Rule: &rbacconfigv3.Permission_Any{Any: true}})
		} else {
			good = and(good, p.claim("sub", subjects))
		}
	}
	if p.Policy.GetOptional() {
		// Nobody may pass, somebody only with a good token, and when listed.
		return or(not(p.claim("iss", present())), good)
	}
	return good
}

// subjects matches the subjects of the consumers that this issuer knows; nil when
// there are none.
func (p *Provider) subjects(consumer func(string) *pb.Consumer) *matcherv3.ValueMatcher {
	var subjects []string
	for _, name := range p.Consumers {
		if c := consumer(name); c != nil && c.GetJwt().GetIssuer() == p.Policy.GetIssuer() {
			subjects = append(subjects, c.GetJwt().GetSubject())
		}
	}
	slices.Sort(subjects)
	subjects = slices.Compact(subjects)
	switch len(subjects) {
	case 0:
		return nil
	case 1:
		return exact(subjects[0])
	}
	any := &matcherv3.OrMatcher{}
	for _, s := range subjects {
		any.ValueMatchers = append(any.ValueMatchers, exact(s))
	}
	return &matcherv3.ValueMatcher{MatchPattern: &matcherv3.ValueMatcher_OrMatch{OrMatch: any}}
}

// claim matches a top-level claim of the payload that the provider left.
func (p *Provider) claim(name string, value *matcherv3.ValueMatcher) *rbacconfigv3.Permission {
	var path []*matcherv3.MetadataMatcher_PathSegment
	for _, key := range []string{p.Name, name} {
		path = append(path, &matcherv3.MetadataMatcher_PathSegment{Segment: &matcherv3.MetadataMatcher_PathSegment_Key{Key: key}})
	}
	return &rbacconfigv3.Permission{Rule: &rbacconfigv3.Permission_SourcedMetadata{SourcedMetadata: &rbacconfigv3.SourcedMetadata{
		MetadataSource:  rbacconfigv3.MetadataSource_DYNAMIC,
		MetadataMatcher: &matcherv3.MetadataMatcher{Filter: MetadataNamespace, Path: path, Value: value},
	}}}
}

func exact(s string) *matcherv3.ValueMatcher {
	return &matcherv3.ValueMatcher{MatchPattern: &matcherv3.ValueMatcher_StringMatch{
		StringMatch: &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Exact{Exact: s}},
	}}
}

func below(limit float64) *matcherv3.ValueMatcher {
	return &matcherv3.ValueMatcher{MatchPattern: &matcherv3.ValueMatcher_DoubleMatch{DoubleMatch: &matcherv3.DoubleMatcher{
		MatchPattern: &matcherv3.DoubleMatcher_Range{Range: &typev3.DoubleRange{Start: 0, End: limit}},
	}}}
}

func present() *matcherv3.ValueMatcher {
	return &matcherv3.ValueMatcher{MatchPattern: &matcherv3.ValueMatcher_PresentMatch{PresentMatch: true}}
}

func and(rules ...*rbacconfigv3.Permission) *rbacconfigv3.Permission {
	if len(rules) == 1 {
		return rules[0]
	}
	return &rbacconfigv3.Permission{Rule: &rbacconfigv3.Permission_AndRules{AndRules: &rbacconfigv3.Permission_Set{Rules: rules}}}
}

func or(rules ...*rbacconfigv3.Permission) *rbacconfigv3.Permission {
	return &rbacconfigv3.Permission{Rule: &rbacconfigv3.Permission_OrRules{OrRules: &rbacconfigv3.Permission_Set{Rules: rules}}}
}

func not(rule *rbacconfigv3.Permission) *rbacconfigv3.Permission {
	return &rbacconfigv3.Permission{Rule: &rbacconfigv3.Permission_NotRule{NotRule: rule}}
}
