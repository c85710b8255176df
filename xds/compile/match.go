package compile

import (
	"regexp"
	"slices"
	"strings"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/penstock-gateway/penstock/gateway"
	"github.com/penstock-gateway/penstock/gateway/policy/retry"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// pathVariant is one way to match a path with what replaces the matched part. A
// rewrite of a prefix to "/" takes two: "/a" becomes "/" and "/a/b" becomes "/b".
type pathVariant struct {
	match   *routev3.RouteMatch
	rewrite string // "" for none
}

// pathVariants compiles a path match. rewrite is the entry's prefix_rewrite.
func pathVariants(p *pb.PathMatch, rewrite string) []pathVariant {
	exactPath := func(s string) *routev3.RouteMatch {
		return &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Path{Path: s}}
	}
	prefix := func(s string) *routev3.RouteMatch {
		return &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: s}}
	}
	var out []pathVariant
	switch m := p.GetMatch().(type) {
	case *pb.PathMatch_Exact:
		out = []pathVariant{{exactPath(m.Exact), rewrite}}
	case *pb.PathMatch_Regex:
		out = []pathVariant{{&routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_SafeRegex{SafeRegex: &matcherv3.RegexMatcher{Regex: m.Regex}}}, rewrite}}
	case *pb.PathMatch_TextPrefix:
		out = []pathVariant{{prefix(m.TextPrefix), rewrite}}
	case *pb.PathMatch_Prefix:
		out = prefixVariants(m.Prefix, rewrite)
	default:
		out = prefixVariants("/", rewrite)
	}
	if p.GetIgnoreCase() {
		for _, v := range out {
			if v.match.GetSafeRegex() == nil {
				v.match.CaseSensitive = wrapperspb.Bool(false)
			}
		}
	}
	return out
}

// prefixVariants matches the path itself and everything below it.
func prefixVariants(path, rewrite string) []pathVariant {
	prefix := func(s, rewrite string) pathVariant {
		return pathVariant{&routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: s}}, rewrite}
	}
	if strings.HasSuffix(path, "/") {
		// The slash is part of what is replaced, so the replacement ends with one.
		if rewrite != "" && !strings.HasSuffix(rewrite, "/") {
			rewrite += "/"
		}
		return []pathVariant{prefix(path, rewrite)}
	}
	if strings.HasSuffix(rewrite, "/") {
		return []pathVariant{
			{&routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Path{Path: path}}, rewrite},
			prefix(path+"/", rewrite),
		}
	}
	return []pathVariant{{&routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_PathSeparatedPrefix{PathSeparatedPrefix: path}}, rewrite}}
}

// conditions adds all of a match but its path to m. methods are those of the
// Envoy route, which may be a part of those of the match.
func conditions(m *routev3.RouteMatch, match *pb.RouteMatch, methods []string) {
	if len(methods) > 0 {
		m.Headers = append(m.Headers, methodMatcher(methods))
	}
	for _, h := range match.GetHeaders() {
		m.Headers = append(m.Headers, headerMatcher(h))
	}
	for _, q := range match.GetQuery() {
		out := &routev3.QueryParameterMatcher{Name: q.GetName()}
		s := stringMatcher(q.GetValue())
		if pattern := gateway.QueryRegex(q.GetValue()); pattern != "" {
			s = regex(pattern)
		}
		if s != nil {
			out.QueryParameterMatchSpecifier = &routev3.QueryParameterMatcher_StringMatch{StringMatch: s}
		} else {
			out.QueryParameterMatchSpecifier = &routev3.QueryParameterMatcher_PresentMatch{PresentMatch: q.GetValue().GetPresent()}
		}
		m.QueryParameters = append(m.QueryParameters, out)
	}
}

func methodMatcher(methods []string) *routev3.HeaderMatcher {
	s := exact(methods[0])
	if len(methods) > 1 {
		quoted := make([]string, 0, len(methods))
		for _, m := range methods {
			quoted = append(quoted, regexp.QuoteMeta(m))
		}
		s = regex(strings.Join(quoted, "|"))
	}
	return &routev3.HeaderMatcher{Name: ":method", HeaderMatchSpecifier: &routev3.HeaderMatcher_StringMatch{StringMatch: s}}
}

func headerMatcher(h *pb.HeaderMatch) *routev3.HeaderMatcher {
	out := &routev3.HeaderMatcher{Name: h.GetName(), InvertMatch: h.GetInvert()}
	s := stringMatcher(h.GetValue())
	if pattern := gateway.HostRegex(h); pattern != "" {
		s = regex(pattern)
	} else if h.GetName() == "host" && s != nil && s.GetSafeRegex() == nil {
		s.IgnoreCase = true
	}
	if s != nil {
		out.HeaderMatchSpecifier = &routev3.HeaderMatcher_StringMatch{StringMatch: s}
		// Envoy never matches a header that is not there, inverted or not.
		out.TreatMissingHeaderAsEmpty = h.GetInvert()
	} else {
		out.HeaderMatchSpecifier = &routev3.HeaderMatcher_PresentMatch{PresentMatch: h.GetValue().GetPresent()}
	}
	return out
}

// stringMatcher compiles a StringMatch; nil when it asks for presence only.
func stringMatcher(m *pb.StringMatch) *matcherv3.StringMatcher {
	switch v := m.GetMatch().(type) {
	case *pb.StringMatch_Exact:
		return exact(v.Exact)
	case *pb.StringMatch_Prefix:
		return &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Prefix{Prefix: v.Prefix}}
	case *pb.StringMatch_Suffix:
		return &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Suffix{Suffix: v.Suffix}}
	case *pb.StringMatch_Regex:
		return regex(v.Regex)
	}
	return nil
}

// byMethod splits the methods of a match into idempotent and other ones. The
// idempotent ones are never empty for a match of all methods; all tells that the
// others are whatever is left.
func byMethod(methods []string) (idempotent, other []string, all bool) {
	if len(methods) == 0 {
		return retry.IdempotentMethods(), nil, true
	}
	for _, m := range slices.Sorted(slices.Values(methods)) {
		if slices.Contains(retry.IdempotentMethods(), m) {
			idempotent = append(idempotent, m)
		} else {
			other = append(other, m)
		}
	}
	return idempotent, other, false
}
