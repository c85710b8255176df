// Package istio translates the corsPolicy of a VirtualService.
package istio

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	"google.golang.org/protobuf/reflect/protoreflect"
	networking "istio.io/api/networking/v1alpha3"

	"github.com/penstock-gateway/penstock/gateway/source/kubernetes/istio/part"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// Fields are the fields of Istio's CorsPolicy that are translated.
var Fields = []protoreflect.Name{"allow_origin", "allow_origins", "allow_methods", "allow_headers", "expose_headers", "max_age", "allow_credentials", "unmatched_preflights"}

// Translate makes the policy; nil when there is none. Preflights of other origins are never
// forwarded, which Istio does unless it is told not to.
func Translate(at part.Part, c *networking.CorsPolicy) *pb.CorsPolicy {
	if c == nil {
		return nil
	}
	out := &pb.CorsPolicy{
		AllowMethods:  part.Unique(c.GetAllowMethods()),
		AllowHeaders:  names(c.GetAllowHeaders()),
		ExposeHeaders: names(c.GetExposeHeaders()),
		MaxAge:        c.GetMaxAge(), AllowCredentials: c.GetAllowCredentials().GetValue(),
	}
	old := c.GetAllowOrigin() //nolint:staticcheck // files of before Istio 1.6 have it, and it means what it meant
	for _, o := range old {
		out.AllowOrigins = append(out.AllowOrigins, strings.ToLower(o))
	}
	for i, m := range c.GetAllowOrigins() {
		origin(at, fmt.Sprintf("allowOrigins[%d]", i), m, out)
	}
	out.AllowOrigins, out.AllowOriginRegexes = part.Unique(out.GetAllowOrigins()), part.Unique(out.GetAllowOriginRegexes())
	if c.GetUnmatchedPreflights() == networking.CorsPolicy_FORWARD {
		at.Refuse("unmatchedPreflights", "IGNORE, or leave it out", "FORWARD is not supported: preflights never reach a backend")
	}
	if len(out.GetAllowOrigins())+len(out.GetAllowOriginRegexes()) == 0 && len(c.GetAllowOrigins()) == 0 {
		at.Refuse("", "name allowOrigins", "allows no origin")
	}
	from := "allowOrigins"
	if len(old) > 0 {
		from = "allowOrigin"
	}
	for to, from := range map[string]string{
		"": "", "allow_origins": from, "allow_origin_regexes": from, "allow_methods": "allowMethods", "allow_headers": "allowHeaders",
		"expose_headers": "exposeHeaders", "max_age": "maxAge", "allow_credentials": "allowCredentials",
	} {
		at.Place(to, from)
	}
	for i := range out.GetAllowOrigins() {
		at.Place(fmt.Sprintf("allow_origins[%d]", i), from)
	}
	for i := range out.GetAllowOriginRegexes() {
		at.Place(fmt.Sprintf("allow_origin_regexes[%d]", i), from)
	}
	return out
}

// names are header names in lower case, each once.
func names(list []string) []string {
	out := slices.Clone(list)
	for i, n := range out {
		out[i] = strings.ToLower(n)
	}
	return part.Unique(out)
}

// origin adds what a match of Istio's allows. A prefix is an expression, so that a warning tells
// of one that lets in hosts that begin like it.
func origin(at part.Part, field string, m *networking.StringMatch, out *pb.CorsPolicy) {
	switch k := m.GetMatchType().(type) {
	case *networking.StringMatch_Exact:
		out.AllowOrigins = append(out.AllowOrigins, strings.ToLower(k.Exact))
	case *networking.StringMatch_Regex:
		if k.Regex == ".*" || k.Regex == "*" {
			out.AllowOrigins = append(out.AllowOrigins, "*")
			return
		}
		out.AllowOriginRegexes = append(out.AllowOriginRegexes, k.Regex)
	case *networking.StringMatch_Prefix:
		if !strings.Contains(k.Prefix, "://") {
			at.Refuse(field+".prefix", "write exact, or regex", "%q is not the beginning of an origin: scheme, host and port", k.Prefix)
			return
		}
		out.AllowOriginRegexes = append(out.AllowOriginRegexes, regexp.QuoteMeta(strings.ToLower(k.Prefix))+".*")
	default:
		at.Refuse(field, "write exact, prefix or regex", "matches nothing")
	}
}
