package istio

import (
	"cmp"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	networking "istio.io/api/networking/v1alpha3"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

var (
	// methods is a method or several, as people write them in a regex.
	methodsRE = regexp.MustCompile(`^\^?\(?(\?:)?([A-Z]+(?:\|[A-Z]+)*)\)?\$?$`)
	tokenRE   = regexp.MustCompile("^[-!#$%&'*+.^_`|~0-9a-z]{1,256}$")
)

// ignoredHeaders are keys that Istio ignores in match.headers.
var ignoredHeaders = []string{"uri", "scheme", "method", "authority"}

// match translates one match: all that it names must hold.
func (t *translator) match(v *serviceResource, p places, from, to string, m *networking.HTTPMatchRequest) *pb.RouteMatch {
	out := &pb.RouteMatch{}
	p.set(to, from)
	p.set(to+".path", from+".uri")
	if m.GetUri() != nil {
		out.Path = t.path(v, from, m)
	} else if m.GetIgnoreUriCase() {
		t.refuse(&v.resource, from+".ignoreUriCase", "", "has no effect without uri")
	}
	if m.GetMethod() != nil {
		out.Methods = t.methods(v, from+".method", m.GetMethod())
		p.set(to+".methods", from+".method")
	}
	headers := func(field string, matches map[string]*networking.StringMatch, invert bool) {
		for _, name := range byName(matches) {
			path := fmt.Sprintf("%s.%s[%q]", from, field, name)
			lower := strings.ToLower(name)
			switch {
			case strings.HasPrefix(name, "@request.auth"):
				t.refuse(&v.resource, path, "", "matching on claims is not supported yet")
				continue
			case slices.Contains(ignoredHeaders, lower):
				t.refuse(&v.resource, path, "use the field of that name", "Istio ignores header %q here", name)
				continue
			case !tokenRE.MatchString(lower):
				t.refuse(&v.resource, path, "", "%q is not a header name", name)
				continue
			}
			p.set(fmt.Sprintf("%s.headers[%d]", to, len(out.Headers)), path)
			out.Headers = append(out.Headers, &pb.HeaderMatch{Name: lower, Value: text(matches[name]), Invert: invert})
		}
	}
	headers("headers", m.GetHeaders(), false)
	headers("withoutHeaders", m.GetWithoutHeaders(), true)
	for _, name := range slices.Sorted(maps.Keys(m.GetQueryParams())) {
		p.set(fmt.Sprintf("%s.query[%d]", to, len(out.Query)), fmt.Sprintf("%s.queryParams[%q]", from, name))
		out.Query = append(out.Query, &pb.QueryMatch{Name: name, Value: text(m.GetQueryParams()[name])})
	}
	return out
}

// path translates uri. Istio's prefix is of characters, not of path segments.
func (t *translator) path(v *serviceResource, from string, m *networking.HTTPMatchRequest) *pb.PathMatch {
	out := &pb.PathMatch{IgnoreCase: m.GetIgnoreUriCase()}
	switch u := m.GetUri().GetMatchType().(type) {
	case *networking.StringMatch_Exact:
		out.Match = &pb.PathMatch_Exact{Exact: u.Exact}
	case *networking.StringMatch_Prefix:
		if u.Prefix == "" {
			return nil // every path, as in Istio
		}
		out.Match = &pb.PathMatch_TextPrefix{TextPrefix: u.Prefix}
	case *networking.StringMatch_Regex:
		out.Match = &pb.PathMatch_Regex{Regex: u.Regex}
		if m.GetIgnoreUriCase() {
			t.refuse(&v.resource, from+".ignoreUriCase", "begin the regex with (?i)", "has no effect on a regex")
		}
		return out
	default:
		t.refuse(&v.resource, from+".uri", "", "needs one of exact, prefix and regex")
		return out
	}
	if s := m.GetUri().GetExact() + m.GetUri().GetPrefix(); !strings.HasPrefix(s, "/") {
		t.refuse(&v.resource, from+".uri", "", "%q does not begin with /: it matches no request", s)
	}
	return out
}

// methods takes one method, or several in a regex of plain alternatives.
func (t *translator) methods(v *serviceResource, path string, m *networking.StringMatch) []string {
	switch u := m.GetMatchType().(type) {
	case *networking.StringMatch_Exact:
		if regexp.MustCompile(`^[A-Z]{1,32}$`).MatchString(u.Exact) {
			return []string{u.Exact}
		}
		t.refuse(&v.resource, path, "", "%q is not a method in upper case", u.Exact)
		return nil
	case *networking.StringMatch_Regex:
		if found := methodsRE.FindStringSubmatch(u.Regex); found != nil && balanced(u.Regex) {
			return unique(strings.Split(found[2], "|"))
		}
	}
	t.refuse(&v.resource, path, `exact: GET, or regex: "GET|HEAD"`, "is supported only as exact, or as a regex of alternatives")
	return nil
}

// balanced refuses "(GET" and "^GET|POST$", whose anchors bind to one side only.
func balanced(re string) bool {
	if strings.Contains(re, "(") != strings.Contains(re, ")") || (strings.Contains(re, "?:") && !strings.Contains(re, "(")) {
		return false
	}
	return !strings.Contains(re, "|") || strings.Contains(re, "(") || strings.Trim(re, "^$") == re
}

// text translates a StringMatch of a header or query parameter. An empty one, and
// the regex "*", ask only that there is a value (Istio's route.go,
// canBeConvertedToPresentMatch).
func text(m *networking.StringMatch) *pb.StringMatch {
	switch u := m.GetMatchType().(type) {
	case *networking.StringMatch_Exact:
		return &pb.StringMatch{Match: &pb.StringMatch_Exact{Exact: u.Exact}}
	case *networking.StringMatch_Prefix:
		if u.Prefix != "" {
			return &pb.StringMatch{Match: &pb.StringMatch_Prefix{Prefix: u.Prefix}}
		}
	case *networking.StringMatch_Regex:
		if u.Regex != "*" {
			return &pb.StringMatch{Match: &pb.StringMatch_Regex{Regex: u.Regex}}
		}
	}
	return &pb.StringMatch{Match: &pb.StringMatch_Present{Present: true}}
}

// byName sorts header names without regard to case.
func byName[V any](m map[string]V) []string {
	return slices.SortedFunc(maps.Keys(m), func(a, b string) int {
		return cmp.Or(cmp.Compare(strings.ToLower(a), strings.ToLower(b)), cmp.Compare(a, b))
	})
}
