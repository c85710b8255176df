// Package cors says which pages of other origins may call, and compiles that to Envoy's cors
// filter.
package cors

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/penstock-gateway/penstock/gateway"
	"github.com/penstock-gateway/penstock/gateway/policy/headers"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// Policy says which pages of other origins may call. Levels are never joined: an origin of
// one with the credentials of another would let in who was never meant.
var Policy = &gateway.Policy[*pb.CorsPolicy]{
	Name: "cors", Merge: gateway.Nearest, Normalize: normalize, Check: check, Warn: warn, WarnEntry: warnEntry,
	Preflights: func(v gateway.Value[*pb.CorsPolicy]) bool { return inForce(v) != nil }, Explain: explain,
}

// inForce is the policy in force; nil for none.
func inForce(v gateway.Value[*pb.CorsPolicy]) *pb.CorsPolicy {
	if v.Merged == nil || v.Merged.GetDisabled() {
		return nil
	}
	return v.Merged
}

// anyMethods are those of a rule for all methods.
var anyMethods = []string{"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"}

// methods are those that pages may use for an entry.
func methods(e *gateway.Entry, p *pb.CorsPolicy) []string {
	switch {
	case len(p.GetAllowMethods()) > 0:
		return p.GetAllowMethods()
	case e.Preflight:
		return asked(e)
	case len(e.Match.GetMethods()) > 0:
		return slices.DeleteFunc(slices.Clone(e.Match.GetMethods()), func(m string) bool { return m == "OPTIONS" })
	}
	return anyMethods
}

// asked are the methods of the rule of an entry for preflights.
func asked(e *gateway.Entry) []string {
	return e.Rule.GetMatches()[e.MatchIndex].GetMethods()
}

// responseHeaders are those by which a response says what pages may do with it. Only the
// policy may: those of backends are removed.
var responseHeaders = []string{
	"access-control-allow-origin", "access-control-allow-credentials", "access-control-expose-headers",
	"access-control-allow-methods", "access-control-allow-headers", "access-control-max-age",
}

func normalize(p *pb.CorsPolicy) {
	for i, o := range p.GetAllowOrigins() {
		p.AllowOrigins[i] = strings.ToLower(strings.TrimSpace(o))
	}
	for i, m := range p.GetAllowMethods() {
		p.AllowMethods[i] = strings.ToUpper(strings.TrimSpace(m))
	}
	for _, names := range [][]string{p.GetAllowHeaders(), p.GetExposeHeaders()} {
		for i, n := range names {
			names[i] = gateway.HeaderName(n)
		}
	}
}

func check(c *gateway.Check, p *pb.CorsPolicy) {
	if p.GetDisabled() {
		if len(p.GetAllowOrigins())+len(p.GetAllowOriginRegexes())+len(p.GetAllowMethods())+len(p.GetAllowHeaders())+len(p.GetExposeHeaders()) > 0 ||
			p.GetMaxAge() != nil || p.GetAllowCredentials() {
			c.Add("disabled", "switches CORS off, but other fields say what is allowed; remove it or them")
		}
		return
	}
	if len(p.GetAllowOrigins())+len(p.GetAllowOriginRegexes()) == 0 {
		c.Add("allow_origins", "names no origin, so no page may call; name origins, or set disabled to switch off what a gateway or route around it says")
	}
	for i, o := range p.GetAllowOrigins() {
		field := fmt.Sprintf("allow_origins[%d]", i)
		switch why := badOrigin(o); {
		case c.Has(field):
		case why != "":
			c.Add(field, "%q %s", o, why)
		case o == "*" && p.GetAllowCredentials():
			c.Add(field, "is every origin, so with allow_credentials any page in the world could act as your users; name the origins, or remove allow_credentials")
		}
	}
	for i, r := range p.GetAllowOriginRegexes() {
		if field := fmt.Sprintf("allow_origin_regexes[%d]", i); !c.Has(field) {
			if why := badRegex(r, p.GetAllowCredentials()); why != "" {
				c.Add(field, "%q %s", r, why)
			}
		}
	}
	for _, list := range []struct {
		field string
		of    []string
	}{{"allow_methods", p.GetAllowMethods()}, {"allow_headers", p.GetAllowHeaders()}, {"expose_headers", p.GetExposeHeaders()}} {
		if i := slices.Index(list.of, "*"); i >= 0 && len(list.of) > 1 {
			c.Add(fmt.Sprintf("%s[%d]", list.field, i), "is \"*\" beside other values; leave it alone, or remove it")
		}
	}
	if p.GetAllowCredentials() && slices.Contains(p.GetExposeHeaders(), "*") {
		c.Add("expose_headers", "browsers take \"*\" for the name of a header in requests with credentials; name the headers")
	}
	if d := p.GetMaxAge(); d.AsDuration()%time.Second != 0 && !c.Has("max_age") {
		c.Add("max_age", "must be a whole number of seconds, got %v", d.AsDuration())
	}
	checkHeaders(c)
}

// checkHeaders refuses header changes of the same level that the policy would undo.
func checkHeaders(c *gateway.Check) {
	for _, h := range setBy(c.Policies().GetHeaders()) {
		c.Add("", "and headers.response of the same policies both say %s; remove it there", h)
	}
}

// setBy are the headers of the policy that a change of headers makes.
func setBy(h *pb.HeadersPolicy) []string {
	var out []string
	for _, one := range slices.Concat(h.GetResponse().GetSet(), h.GetResponse().GetAdd()) {
		if slices.Contains(responseHeaders, one.GetName()) {
			out = append(out, one.GetName())
		}
	}
	return out
}

func warn(c *gateway.Check, p *pb.CorsPolicy) {
	for i, r := range p.GetAllowOriginRegexes() {
		for _, why := range looseRegex(r) {
			c.Add(fmt.Sprintf("allow_origin_regexes[%d]", i), "%q %s", r, why)
		}
	}
	for i, o := range p.GetAllowOrigins() {
		if p.GetAllowCredentials() && strings.HasPrefix(o, "http://") && !local(o) {
			c.Add(fmt.Sprintf("allow_origins[%d]", i), "%q is not encrypted: whoever is on the way to it can make its pages, which may then act as your users", o)
		}
	}
}

// warnEntry finds what the policy cannot do for an entry, or undoes.
func warnEntry(e *gateway.Entry, v gateway.Value[*pb.CorsPolicy]) []gateway.Problem {
	if inForce(v) == nil {
		return nil
	}
	var out []gateway.Problem
	add := func(format string, args ...any) {
		out = append(out, gateway.Problem{
			Object: e.Route.GetName(), Origin: e.Route.GetMetadata().GetOrigin(), Field: fmt.Sprintf("rules[%d]", e.RuleIndex), Message: fmt.Sprintf(format, args...),
		})
	}
	if e.Rule.GetForward() == nil {
		if strings.HasPrefix(v.Levels[0].Source.Path, "rules[") {
			add("policies.cors holds for forwarded requests only, and this rule answers by itself: pages of other origins cannot read what it says")
		}
		return out
	}
	for _, h := range e.NotInPreflights() {
		add("cors: no preflight tells of the header %s, by which this rule is matched, so preflights go to the rule after it; give that the same cors", h)
	}
	for _, level := range headers.Policy.Of(e.Policies).Levels {
		for _, h := range setBy(level.Value) {
			add("cors: header %s, which %s of %s sets, is replaced by what the policy says; remove it there", h, level.Source.Path, level.Source.Object.GetName())
		}
	}
	return out
}
