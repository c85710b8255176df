package jwt

import (
	"maps"
	"regexp"
	"slices"
	"strings"
	"time"

	"cel.dev/cel-go/cel"
	rbacconfigv3 "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	exprv1alpha1 "google.golang.org/genproto/googleapis/api/expr/v1alpha1"
	"google.golang.org/protobuf/types/known/structpb"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// guarded is a request as the guard sees it. It evaluates the very messages that proxies
// get, as far as Guard uses their language.
type guarded struct {
	lines    []string // of TokenHeader
	metadata map[string]*structpb.Struct
	now      time.Time
}

// refusal is the name of the first policy that refuses the request; "" when none does.
func (g *guarded) refusal(rules *rbacconfigv3.RBAC) string {
	for _, name := range slices.Sorted(maps.Keys(rules.GetPolicies())) {
		p := rules.GetPolicies()[name]
		if slices.ContainsFunc(p.GetPermissions(), g.permits) && g.holds(p.GetCondition()) {
			return name
		}
	}
	return ""
}

// permits reports whether a request matches a permission.
func (g *guarded) permits(p *rbacconfigv3.Permission) bool {
	switch r := p.GetRule().(type) {
	case *rbacconfigv3.Permission_Any:
		return r.Any
	case *rbacconfigv3.Permission_AndRules:
		return !slices.ContainsFunc(r.AndRules.GetRules(), func(p *rbacconfigv3.Permission) bool { return !g.permits(p) })
	case *rbacconfigv3.Permission_OrRules:
		return slices.ContainsFunc(r.OrRules.GetRules(), g.permits)
	case *rbacconfigv3.Permission_NotRule:
		return !g.permits(r.NotRule)
	case *rbacconfigv3.Permission_Header: // TokenHeader, always
		if r.Header.GetStringMatch() == nil {
			return len(g.lines) > 0
		}
		return slices.ContainsFunc(g.lines, func(l string) bool { return matchText(r.Header.GetStringMatch(), l) })
	case *rbacconfigv3.Permission_SourcedMetadata:
		m := r.SourcedMetadata.GetMetadataMatcher()
		return matchValue(m.GetValue(), g.at(m.GetPath()))
	}
	return false
}

// at is the value at a path in the metadata of the filter; nil when there is none.
func (g *guarded) at(path []*matcherv3.MetadataMatcher_PathSegment) *structpb.Value {
	s := g.metadata[path[0].GetKey()]
	for i, segment := range path[1:] {
		v := s.GetFields()[segment.GetKey()]
		if i == len(path)-2 {
			return v
		}
		s = v.GetStructValue()
	}
	return nil
}

// matchValue compares as Envoy's ValueMatcher does; nothing matches what is not there.
func matchValue(m *matcherv3.ValueMatcher, v *structpb.Value) bool {
	if v == nil {
		return false
	}
	switch k := m.GetMatchPattern().(type) {
	case *matcherv3.ValueMatcher_StringMatch:
		return isString(v) && matchText(k.StringMatch, v.GetStringValue())
	case *matcherv3.ValueMatcher_DoubleMatch:
		r := k.DoubleMatch.GetRange()
		return isNumber(v) && r.GetStart() <= v.GetNumberValue() && v.GetNumberValue() < r.GetEnd()
	case *matcherv3.ValueMatcher_PresentMatch:
		return k.PresentMatch
	case *matcherv3.ValueMatcher_OrMatch:
		return slices.ContainsFunc(k.OrMatch.GetValueMatchers(), func(m *matcherv3.ValueMatcher) bool { return matchValue(m, v) })
	case *matcherv3.ValueMatcher_ListMatch:
		return slices.ContainsFunc(v.GetListValue().GetValues(), func(one *structpb.Value) bool { return matchValue(k.ListMatch.GetOneOf(), one) })
	}
	return false
}

func matchText(m *matcherv3.StringMatcher, s string) bool {
	if r := m.GetSafeRegex(); r != nil {
		re, err := regexp.Compile(`\A(?:` + r.GetRegex() + `)\z`)
		return err == nil && re.MatchString(s)
	}
	return s == m.GetExact()
}

// holds reports whether a condition in CEL holds; one that cannot be evaluated does not.
func (g *guarded) holds(condition *exprv1alpha1.Expr) bool {
	if condition == nil {
		return true
	}
	env, err := cel.NewEnv()
	if err != nil {
		return false
	}
	program, err := env.Program(cel.ParsedExprToAst(&exprv1alpha1.ParsedExpr{Expr: condition}))
	if err != nil {
		return false
	}
	metadata := map[string]any{}
	for name, s := range g.metadata {
		metadata[name] = s.AsMap()
	}
	out, _, err := program.Eval(map[string]any{
		"metadata": map[string]any{"filter_metadata": map[string]any{MetadataNamespace: metadata}},
		"request":  map[string]any{"time": g.now},
	})
	return err == nil && out.Value() == true
}

// culprit finds the provider whose part of the guard refuses a request, and says why.
func (g *guarded) culprit(providers []*Provider, consumer func(string) *pb.Consumer, policy string) (*Provider, string) {
	for _, p := range providers {
		switch policy {
		case issuedLater + p.Name:
			return p, "is issued later than now (iat)"
		case fraction + p.Name:
			return p, "has a claim with a fraction, which cannot be a header"
		case BadToken:
			if g.permits(p.whenSent(p.bad())) {
				return p, g.wrongIn(p)
			}
		case notListed:
			if len(p.Policy.GetConsumers()) > 0 && g.permits(p.whenSent(not(p.listed(consumer)))) {
				return p, "is of no consumer that the policy names: " + strings.Join(p.Consumers, ", ")
			}
		}
	}
	return nil, "is not valid here"
}

// wrongIn says what of a token the guard refuses.
func (g *guarded) wrongIn(p *Provider) string {
	payload := g.metadata[p.Name]
	switch {
	case payload == nil:
		return "is not one of issuer " + p.Policy.GetIssuer()
	case !g.permits(p.claim("aud", p.audience())):
		return "is not for audience " + strings.Join(p.Policy.GetAudiences(), " or ")
	case !slices.ContainsFunc(g.lines, regexp.MustCompile(`\A`+credentials+`\z`).MatchString):
		return "does not stand in the header as Authorization: Bearer TOKEN"
	case g.permits(p.at(present(), p.headerName(), "crit")):
		return "has the header crit, which is not supported"
	case g.permits(p.claim("sub", matching(unclean))):
		return "has a sub with control characters or blanks around it"
	}
	return "has a time or a claim that cannot be compared or sent on as it is"
}
