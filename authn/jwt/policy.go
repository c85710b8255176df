package jwt

import (
	"fmt"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	"github.com/penstock-gateway/penstock/gateway"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// Policy says who may call: what each level asks for must hold.
var Policy = &gateway.Policy[*pb.AuthenticationPolicy]{
	Name: "authentication", Merge: gateway.Union, Same: same,
	Normalize: normalize, Check: check, Warn: warn, References: references, Explain: explain, Owns: owns, Owning: owning,
}

// InForce are the tokens that are asked for, outermost first.
func InForce(e *gateway.Effective) []gateway.Sourced[*pb.JwtAuthentication] {
	return tokens(Policy.Of(e).Levels)
}

func tokens(levels []gateway.Sourced[*pb.AuthenticationPolicy]) []gateway.Sourced[*pb.JwtAuthentication] {
	var out []gateway.Sourced[*pb.JwtAuthentication]
	for _, level := range levels {
		if j := level.Value.GetJwt(); j != nil {
			out = append(out, gateway.Sourced[*pb.JwtAuthentication]{Source: level.Source, Value: j})
		}
	}
	return out
}

// same reports whether two levels ask for the same token, with names in full.
func same(a, b gateway.Sourced[*pb.AuthenticationPolicy]) bool {
	return proto.Equal(resolved(a), resolved(b))
}

// resolved is an authentication with full names, for comparing.
func resolved(a gateway.Sourced[*pb.AuthenticationPolicy]) *pb.AuthenticationPolicy {
	c := proto.CloneOf(a.Value)
	j := c.GetJwt()
	if k, ok := j.GetKeys().(*pb.JwtAuthentication_JwksSecret); ok {
		k.JwksSecret = a.Source.Resolve(gateway.KindSecrets, k.JwksSecret)
	}
	for i, n := range j.GetConsumers() {
		j.Consumers[i] = a.Source.Resolve(gateway.KindConsumers, n)
	}
	slices.Sort(j.GetConsumers())
	slices.Sort(j.GetAudiences())
	return c
}

func normalize(p *pb.AuthenticationPolicy) {
	for _, c := range p.GetJwt().GetClaimHeaders() {
		c.Header = gateway.HeaderName(c.GetHeader())
	}
}

// owns are the headers that are made from claims, which backends believe.
func owns(p *pb.AuthenticationPolicy) []string {
	var out []string
	for _, h := range p.GetJwt().GetClaimHeaders() {
		out = append(out, h.GetHeader())
	}
	return out
}

func owning(headers []string) *pb.AuthenticationPolicy {
	j := &pb.JwtAuthentication{}
	for _, name := range headers {
		j.ClaimHeaders = append(j.ClaimHeaders, &pb.ClaimHeader{Header: name})
	}
	return &pb.AuthenticationPolicy{Jwt: j}
}

func references(p *pb.AuthenticationPolicy) []gateway.Reference {
	j := p.GetJwt()
	var out []gateway.Reference
	if s, ok := j.GetKeys().(*pb.JwtAuthentication_JwksSecret); ok {
		out = append(out, gateway.Reference{Field: "jwt.jwks_secret", Text: s.JwksSecret, Kind: gateway.KindSecrets, Holds: "jwks"})
	}
	for i, c := range j.GetConsumers() {
		out = append(out, gateway.Reference{Field: fmt.Sprintf("jwt.consumers[%d]", i), Text: c, Kind: gateway.KindConsumers, Fits: func(o gateway.Object) string {
			if issuer := o.(*pb.Consumer).GetJwt().GetIssuer(); issuer != j.GetIssuer() {
				return fmt.Sprintf("is known by tokens of issuer %q, but this asks for tokens of %q, so it could never pass", issuer, j.GetIssuer())
			}
			return ""
		}})
	}
	return out
}

func warn(c *gateway.Check, p *pb.AuthenticationPolicy) {
	if k, ok := p.GetJwt().GetKeys().(*pb.JwtAuthentication_Jwks); ok {
		c.IgnoredKeys("jwt.jwks", k.Jwks)
	}
}

func check(c *gateway.Check, p *pb.AuthenticationPolicy) {
	j := p.GetJwt()
	if j == nil {
		c.Add("", "asks for nothing; set jwt or take it away")
		return
	}
	if k, ok := j.GetKeys().(*pb.JwtAuthentication_Jwks); ok && !c.Has("jwt.jwks") {
		c.KeySet("jwt.jwks", k.Jwks)
	}
	for i, h := range j.GetClaimHeaders() {
		at := fmt.Sprintf("jwt.claim_headers[%d]", i)
		name := h.GetHeader()
		switch {
		case c.Has(at + ".header"):
		case gateway.Unchangeable(name) != "":
			c.Add(at+".header", "%q %s", name, gateway.Unchangeable(name))
		case strings.HasPrefix(name, "x-forwarded-") || name == "x-request-id" || name == "x-trace-id" || name == "x-real-ip":
			c.Add(at+".header", "%q is set by the proxies for every request; choose another name", name)
		}
		if !c.Has(at + ".claim") {
			checkClaim(c, at+".claim", h.GetClaim())
		}
	}
	c.Duplicates("header", gateway.NamesOf(j.GetClaimHeaders(), (*pb.ClaimHeader).GetHeader), gateway.Elements("jwt.claim_headers[%d].header"))
	c.Duplicates("consumer", gateway.NamesOf(j.GetConsumers(), func(n string) string { return c.Resolve(gateway.KindConsumers, n) }), gateway.Elements("jwt.consumers[%d]"))
	if j.GetOptional() && len(j.GetConsumers()) > 0 {
		c.Add("jwt.optional", "lets requests without a token pass, but consumers says who alone may pass; remove one")
	}
	// Envoy takes whole seconds for both.
	if d := j.GetClockSkew(); d.GetNanos() != 0 && !c.Has("jwt.clock_skew") {
		c.Add("jwt.clock_skew", "%v is not a whole number of seconds; round it", d.AsDuration())
	}
	if d := j.GetMaxLifetime(); d.GetNanos() != 0 && !c.Has("jwt.max_lifetime") {
		c.Add("jwt.max_lifetime", "%v is not a whole number of seconds; round it", d.AsDuration())
	}
}

// checkClaim checks the name of a claim. One with dots is looked for by an expression, too,
// as the name of a single claim.
func checkClaim(c *gateway.Check, field, claim string) {
	switch {
	case strings.ContainsFunc(claim, func(r rune) bool { return r < ' ' || r == 0x7f }):
		c.Add(field, "%q holds a control character", claim)
	case !strings.Contains(claim, "."):
	case strings.ContainsAny(claim, "'\\%()"):
		c.Add(field, "%q: the name of a claim with dots must not hold ', \\, %%, ( or )", claim)
	case slices.Contains(strings.Split(claim, "."), "") && !strings.Contains(claim, ":"):
		c.Add(field, "%q has an empty part; write a claim, or the claims that lead to it with dots between", claim)
	}
}
