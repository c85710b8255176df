package jwt

import (
	"math"
	"strings"

	rbacconfigv3 "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	exprv1alpha1 "google.golang.org/genproto/googleapis/api/expr/v1alpha1"
)

// claim matches a top-level claim of the payload that the provider left.
func (p *Provider) claim(name string, value *matcherv3.ValueMatcher) *rbacconfigv3.Permission {
	return p.at(value, p.Name, name)
}

// at matches what is at a path in the metadata of the filter.
func (p *Provider) at(value *matcherv3.ValueMatcher, keys ...string) *rbacconfigv3.Permission {
	var path []*matcherv3.MetadataMatcher_PathSegment
	for _, key := range keys {
		path = append(path, &matcherv3.MetadataMatcher_PathSegment{Segment: &matcherv3.MetadataMatcher_PathSegment_Key{Key: key}})
	}
	return &rbacconfigv3.Permission{Rule: &rbacconfigv3.Permission_SourcedMetadata{SourcedMetadata: &rbacconfigv3.SourcedMetadata{
		MetadataSource:  rbacconfigv3.MetadataSource_DYNAMIC,
		MetadataMatcher: &matcherv3.MetadataMatcher{Filter: MetadataNamespace, Path: path, Value: value},
	}}}
}

// maxInteger is the greatest integer that a JSON number holds exactly everywhere
// (RFC 8259, section 6): Envoy keeps numbers as IEEE 754 doubles.
const maxInteger = 1<<53 - 1

// wrong matches a claim whose header would not be what the token says.
func (p *Provider) wrong(claim string) []*rbacconfigv3.Permission {
	path := append([]string{p.Name}, strings.Split(claim, ".")...)
	out := []*rbacconfigv3.Permission{
		p.at(matching(unclean), path...),
		// Envoy writes six decimals after a number below zero.
		p.at(between(math.Inf(-1), 0), path...),
		p.at(between(maxInteger+1, math.Inf(1)), path...),
	}
	if literal(claim) {
		// Under the name as a whole it is copied by the route, which can copy text only.
		at := func(v *matcherv3.ValueMatcher) *rbacconfigv3.Permission { return p.at(v, p.Name, claim) }
		out = append(out, at(matching(unclean)), and(at(present()), not(at(matching(`(?s:.*)`)))))
	}
	return out
}

// header matches a request header; nil: that it is there.
func header(name string, value *matcherv3.StringMatcher) *rbacconfigv3.Permission {
	h := &routev3.HeaderMatcher{Name: name, HeaderMatchSpecifier: &routev3.HeaderMatcher_PresentMatch{PresentMatch: true}}
	if value != nil {
		h.HeaderMatchSpecifier = &routev3.HeaderMatcher_StringMatch{StringMatch: value}
	}
	return &rbacconfigv3.Permission{Rule: &rbacconfigv3.Permission_Header{Header: h}}
}

func exact(s string) *matcherv3.ValueMatcher {
	return &matcherv3.ValueMatcher{MatchPattern: &matcherv3.ValueMatcher_StringMatch{
		StringMatch: &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Exact{Exact: s}},
	}}
}

// matching matches a text as a whole.
func matching(regex string) *matcherv3.ValueMatcher {
	return &matcherv3.ValueMatcher{MatchPattern: &matcherv3.ValueMatcher_StringMatch{
		StringMatch: &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_SafeRegex{SafeRegex: &matcherv3.RegexMatcher{Regex: regex}}},
	}}
}

func anyOf(values ...*matcherv3.ValueMatcher) *matcherv3.ValueMatcher {
	if len(values) == 1 {
		return values[0]
	}
	return &matcherv3.ValueMatcher{MatchPattern: &matcherv3.ValueMatcher_OrMatch{OrMatch: &matcherv3.OrMatcher{ValueMatchers: values}}}
}

// between matches a number from start to below end.
func between(start, end float64) *matcherv3.ValueMatcher {
	return &matcherv3.ValueMatcher{MatchPattern: &matcherv3.ValueMatcher_DoubleMatch{DoubleMatch: &matcherv3.DoubleMatcher{
		MatchPattern: &matcherv3.DoubleMatcher_Range{Range: &typev3.DoubleRange{Start: start, End: end}},
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
	if len(rules) == 1 {
		return rules[0]
	}
	return &rbacconfigv3.Permission{Rule: &rbacconfigv3.Permission_OrRules{OrRules: &rbacconfigv3.Permission_Set{Rules: rules}}}
}

func not(rule *rbacconfigv3.Permission) *rbacconfigv3.Permission {
	return &rbacconfigv3.Permission{Rule: &rbacconfigv3.Permission_NotRule{NotRule: rule}}
}

// fraction is the policy that refuses claims with a fraction, whose last digits Envoy
// drops; nil when no claim becomes a header.
func (p *Provider) fraction() *rbacconfigv3.Policy {
	policy := &rbacconfigv3.Policy{Principals: anybody()}
	for _, c := range p.Policy.GetClaimHeaders() {
		path := append([]string{p.Name}, strings.Split(c.GetClaim(), ".")...)
		policy.Permissions = append(policy.Permissions, p.at(between(0, maxInteger+1), path...))
		value := metadataExpr(path...)
		// The integer is below the number. A claim that is not a number is an error, which
		// another that is one outweighs.
		below := call("_<_", call("double", call("int", value)), value)
		if policy.Condition == nil {
			policy.Condition = below
		} else {
			policy.Condition = call("_||_", policy.Condition, below)
		}
	}
	if policy.Condition == nil {
		return nil
	}
	return policy
}

// issuedLater is the condition, in CEL, that iat is later than now and the skew:
//
//	int(metadata.filter_metadata[…][provider]["iat"]) > int(request.time) + skew
//
// It belongs to a token whose iat is there and in range, for a condition that fails
// is one that does not hold.
func (p *Provider) issuedLater() *exprv1alpha1.Expr {
	skew := constant(&exprv1alpha1.Constant{ConstantKind: &exprv1alpha1.Constant_Int64Value{Int64Value: int64(p.clockSkew())}})
	return call("_>_", call("int", metadataExpr(p.Name, "iat")), call("_+_", call("int", field(name("request"), "time")), skew))
}

// metadataExpr is what is at a path in the metadata of the filter.
func metadataExpr(path ...string) *exprv1alpha1.Expr {
	at := field(name("metadata"), "filter_metadata")
	for _, key := range append([]string{MetadataNamespace}, path...) {
		at = call("_[_]", at, constant(&exprv1alpha1.Constant{ConstantKind: &exprv1alpha1.Constant_StringValue{StringValue: key}}))
	}
	return at
}

func call(f string, args ...*exprv1alpha1.Expr) *exprv1alpha1.Expr {
	return &exprv1alpha1.Expr{ExprKind: &exprv1alpha1.Expr_CallExpr{CallExpr: &exprv1alpha1.Expr_Call{Function: f, Args: args}}}
}

func name(n string) *exprv1alpha1.Expr {
	return &exprv1alpha1.Expr{ExprKind: &exprv1alpha1.Expr_IdentExpr{IdentExpr: &exprv1alpha1.Expr_Ident{Name: n}}}
}

func field(of *exprv1alpha1.Expr, f string) *exprv1alpha1.Expr {
	return &exprv1alpha1.Expr{ExprKind: &exprv1alpha1.Expr_SelectExpr{SelectExpr: &exprv1alpha1.Expr_Select{Operand: of, Field: f}}}
}

func constant(c *exprv1alpha1.Constant) *exprv1alpha1.Expr {
	return &exprv1alpha1.Expr{ExprKind: &exprv1alpha1.Expr_ConstExpr{ConstExpr: c}}
}
