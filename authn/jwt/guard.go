package jwt

import (
	"slices"

	rbacconfigv3 "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/rbac/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// The policies of a guard. Envoy tries them in the order of their names and names the
// one that refuses in the details of its answer, by which the answer gets its status:
// a token that is not good is 401, one of somebody else 403.
const (
	// BadToken also begins the names of those with a condition, each for a provider.
	BadToken    = "bad-token"
	issuedLater = BadToken + "-issued-later-"
	fraction    = BadToken + "-fraction-"
	notListed   = "not-listed"
)

// Guard is the entry of a route for the guard: what refuses a request, or the native
// opt-out when there is nothing to prove. consumer returns a consumer by its full
// name, nil when there is none.
//
// The verifier of Envoy looks for strings where it should compare them, so what a
// request relies on is compared again here, exactly, with what the filter left in the
// metadata: that each provider left its proof, the audience, the header that the
// token came in, and each claim that becomes a header or a key. Whatever is missing is
// a refusal.
func Guard(providers []*Provider, consumer func(name string) *pb.Consumer) *rbacv3.RBACPerRoute {
	if len(providers) == 0 {
		return &rbacv3.RBACPerRoute{}
	}
	var bad, foreign []*rbacconfigv3.Permission
	policies := map[string]*rbacconfigv3.Policy{}
	for _, p := range providers {
		bad = append(bad, p.whenSent(p.bad()))
		policies[issuedLater+p.Name] = &rbacconfigv3.Policy{
			Permissions: []*rbacconfigv3.Permission{p.claim("iat", present())}, Principals: anybody(), Condition: p.issuedLater(),
		}
		if f := p.fraction(); f != nil {
			policies[fraction+p.Name] = f
		}
		if len(p.Policy.GetConsumers()) > 0 {
			foreign = append(foreign, p.whenSent(not(p.listed(consumer))))
		}
	}
	policies[BadToken] = &rbacconfigv3.Policy{Permissions: bad, Principals: anybody()}
	if len(foreign) > 0 {
		policies[notListed] = &rbacconfigv3.Policy{Permissions: foreign, Principals: anybody()}
	}
	return &rbacv3.RBACPerRoute{Rbac: &rbacv3.RBAC{Rules: &rbacconfigv3.RBAC{Action: rbacconfigv3.RBAC_DENY, Policies: policies}}}
}

func anybody() []*rbacconfigv3.Principal {
	return []*rbacconfigv3.Principal{{Identifier: &rbacconfigv3.Principal_Any{Any: true}}}
}

// whenSent bounds a refusal to requests that bring something, where none is needed.
func (p *Provider) whenSent(refusal *rbacconfigv3.Permission) *rbacconfigv3.Permission {
	if p.Policy.GetOptional() {
		return and(header(TokenHeader, nil), refusal)
	}
	return refusal
}

const (
	// maxTime is the year 2096 in seconds. Envoy's computation of the lifetime that a
	// token has left overflows at 2^63, and takes the token for a short-lived one.
	maxTime = 4e9
	// credentials is the whole value of the header: one token in the compact form
	// (RFC 6750, section 2.1; RFC 7515, section 7.1). The scheme is case-insensitive
	// (RFC 9110, section 11.1). Envoy finds a token anywhere in the header.
	credentials = `(?i:bearer) +[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+`
	// unclean is a text that cannot be a header as it is: with control characters, which
	// end the connection to the backend, or blanks around it, which the backend takes
	// away, so that " root" would become "root" (RFC 9110, section 5.5).
	unclean = `(?s:.*[\x00-\x1f\x7f].*| .*|.* )`
)

// bad matches a request whose token must not be believed, or that has none.
func (p *Provider) bad() *rbacconfigv3.Permission {
	good := []*rbacconfigv3.Permission{
		p.claim("iss", exact(p.Policy.GetIssuer())),
		p.claim("aud", p.audience()),
		p.claim("exp", between(0, maxTime)),
		header(TokenHeader, &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_SafeRegex{SafeRegex: &matcherv3.RegexMatcher{Regex: credentials}}}),
		// The header of the token is there, and asks for nothing that a verifier has to
		// understand (RFC 7515, section 4.1.11).
		p.at(present(), p.headerName(), "alg"),
		not(p.at(present(), p.headerName(), "crit")),
	}
	wrong := []*rbacconfigv3.Permission{not(and(good...))}
	wrong = append(wrong, and(p.claim("iat", present()), not(p.claim("iat", between(0, maxTime)))))
	wrong = append(wrong, p.claim("sub", matching(unclean)))
	for _, c := range p.Policy.GetClaimHeaders() {
		wrong = append(wrong, p.wrong(c.GetClaim())...)
	}
	return or(wrong...)
}

// audience matches the claim aud, a text or a list of texts (RFC 7519, section 4.1.3).
func (p *Provider) audience() *matcherv3.ValueMatcher {
	var one []*matcherv3.ValueMatcher
	for _, a := range slices.Sorted(slices.Values(p.Policy.GetAudiences())) {
		one = append(one, exact(a))
	}
	listed := &matcherv3.ValueMatcher{MatchPattern: &matcherv3.ValueMatcher_ListMatch{ListMatch: &matcherv3.ListMatcher{
		MatchPattern: &matcherv3.ListMatcher_OneOf{OneOf: anyOf(one...)},
	}}}
	return anyOf(append(one, listed)...)
}

// listed matches the subjects of the consumers that this issuer knows; nothing when
// there are none.
func (p *Provider) listed(consumer func(string) *pb.Consumer) *rbacconfigv3.Permission {
	var subjects []string
	for _, name := range p.Consumers {
		if c := consumer(name); c != nil && c.GetJwt().GetIssuer() == p.Policy.GetIssuer() {
			subjects = append(subjects, c.GetJwt().GetSubject())
		}
	}
	slices.Sort(subjects)
	var one []*matcherv3.ValueMatcher
	for _, s := range slices.Compact(subjects) {
		one = append(one, exact(s))
	}
	if len(one) == 0 {
		return not(&rbacconfigv3.Permission{Rule: &rbacconfigv3.Permission_Any{Any: true}})
	}
	return p.claim("sub", anyOf(one...))
}
