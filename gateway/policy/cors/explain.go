package cors

import (
	"regexp"
	"slices"
	"strings"

	"github.com/penstock-gateway/penstock/gateway"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// explain tells whom the policy allows, and what the filter does to the request.
func explain(x *gateway.Explanation, v gateway.Value[*pb.CorsPolicy]) {
	if v.Merged == nil {
		return
	}
	from := v.Levels[0].Source
	p := inForce(v)
	switch {
	case p == nil:
		x.Row("cors", "off here: pages of other origins may not call", from)
		return
	case x.Entry.Rule.GetForward() == nil:
		x.Row("cors", describe(x.Entry, p)+"; without effect here, since no backend is behind this rule", from)
		return
	}
	text := describe(x.Entry, p)
	origin := strings.Join(x.Request.Headers["origin"], ",")
	allowed := allows(p, origin)
	switch {
	case origin == "":
		text += "; this request names no origin"
	case allowed:
		text += "; this request's origin " + origin + " is allowed"
	default:
		text += "; this request's origin " + origin + " is not allowed: a browser keeps the response from the page"
	}
	row := x.Row("cors", text, from)
	if !x.Forwards() || !gateway.IsPreflight(x.Request) {
		return
	}
	what := "the preflight is answered before authentication; the page may go on"
	if !allowed {
		what = "the preflight is answered without leave for the page, which may not go on"
	}
	out := gateway.CertainOutcome(pb.ExplainDecider_EXPLAIN_DECIDER_POLICY, 200, "200 OK: %s", what)
	out.Policy = row
	x.Answers(out)
}

func describe(e *gateway.Entry, p *pb.CorsPolicy) string {
	text := "pages of " + strings.Join(slices.Concat(p.GetAllowOrigins(), p.GetAllowOriginRegexes()), " or ") + " may call"
	if slices.Equal(p.GetAllowOrigins(), []string{"*"}) {
		text = "pages of every origin may call"
	}
	text += " with " + strings.Join(methods(e, p), ", ")
	if h := p.GetAllowHeaders(); len(h) > 0 {
		text += ", setting " + strings.Join(h, ", ")
	}
	if p.GetAllowCredentials() {
		text += ", with credentials"
	}
	if h := p.GetExposeHeaders(); len(h) > 0 {
		text += ", and read " + strings.Join(h, ", ")
	}
	if d := p.GetMaxAge(); d != nil {
		text += "; browsers remember that for " + gateway.ShortDuration(d.AsDuration())
	}
	return text
}

// allows reports whether pages of an origin may call.
func allows(p *pb.CorsPolicy, origin string) bool {
	if origin == "" {
		return false
	}
	matches := func(pattern string) bool {
		re, err := regexp.Compile(`\A(?:` + pattern + `)\z`)
		return err == nil && re.MatchString(origin)
	}
	return slices.ContainsFunc(p.GetAllowOrigins(), func(o string) bool {
		pattern, wild := wildcard(o)
		return o == "*" || o == origin || wild && matches(pattern)
	}) || slices.ContainsFunc(p.GetAllowOriginRegexes(), matches)
}
