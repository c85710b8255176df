package gateway

import (
	"fmt"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// Shadowed returns the matches that no request reaches on the hosts of some routes, because
// one before them takes all of theirs: a duplicate, or a wider one of rules that stand as
// they are listed. Only what can be told from the matches alone is found. A match is named
// once, with the first host.
func (s *Snapshot) Shadowed(routes []string) []Problem {
	var out []Problem
	seen, visited := map[string]bool{}, map[*Host]bool{}
	for _, name := range routes {
		s.eachHost(name, func(h *Host, _ *pb.Route) {
			if visited[h] {
				return
			}
			visited[h] = true
			for _, p := range shadowedIn(h) {
				if key := p.Object + p.Field; !seen[key] {
					seen[key] = true
					out = append(out, p)
				}
			}
		})
	}
	return out
}

// shadowedIn compares each entry with those before it that are the same, and with those
// that are listed: of others the more specific come first, and take not all of what the
// later ones match.
func shadowedIn(h *Host) []Problem {
	var out []Problem
	var listed []*Entry
	first := map[string]*Entry{}
	for _, e := range h.written {
		if e.First {
			continue
		}
		b, _ := proto.MarshalOptions{Deterministic: true}.Marshal(e.Match)
		by, what := first[string(b)], "has the same match and comes first, by name and position"
		if by == nil {
			first[string(b)] = e
			if i := slices.IndexFunc(listed, func(before *Entry) bool { return covers(before.Match, e.Match) }); i >= 0 {
				by, what = listed[i], "takes all of its requests"
			}
		}
		if asListed(e.Route) {
			listed = append(listed, e)
		}
		if by == nil {
			continue
		}
		out = append(out, Problem{
			Object: e.Route.GetName(), Origin: e.Route.GetMetadata().GetOrigin(),
			Field: fmt.Sprintf("rules[%d].matches[%d]", e.RuleIndex, e.MatchIndex),
			Message: fmt.Sprintf("no request reaches it on host %s: rule %s of %s%s %s; remove it, or narrow the other",
				h.Hostname, by.RuleName, by.Route.GetName(), at(by.Route), what),
		})
	}
	return out
}

// covers reports whether each request that b matches is matched by a, as far as that can
// be told without looking into expressions.
func covers(a, b *pb.RouteMatch) bool {
	if !coversPath(a.GetPath(), b.GetPath()) {
		return false
	}
	if m := a.GetMethods(); len(m) > 0 && (len(b.GetMethods()) == 0 || slices.ContainsFunc(b.GetMethods(), func(x string) bool { return !slices.Contains(m, x) })) {
		return false
	}
	for _, h := range a.GetHeaders() {
		if !slices.ContainsFunc(b.GetHeaders(), func(o *pb.HeaderMatch) bool { return proto.Equal(h, o) }) {
			return false
		}
	}
	for _, q := range a.GetQuery() {
		if !slices.ContainsFunc(b.GetQuery(), func(o *pb.QueryMatch) bool { return proto.Equal(q, o) }) {
			return false
		}
	}
	return true
}

func coversPath(a, b *pb.PathMatch) bool {
	if a.GetMatch() == nil || a.GetPrefix() == "/" || a.GetTextPrefix() == "/" || proto.Equal(a, b) {
		return true
	}
	if b.GetIgnoreCase() && !a.GetIgnoreCase() {
		return false
	}
	same := func(s string) string {
		if a.GetIgnoreCase() {
			return lower(s)
		}
		return s
	}
	var within string // every path that b matches begins with it
	switch m := b.GetMatch().(type) {
	case *pb.PathMatch_Exact:
		return pathMismatch(a, m.Exact) == ""
	case *pb.PathMatch_Prefix:
		if within = strings.TrimSuffix(m.Prefix, "/"); pathMismatch(a, m.Prefix) != "" {
			return false
		}
	case *pb.PathMatch_TextPrefix:
		within = m.TextPrefix
	default:
		return false
	}
	switch m := a.GetMatch().(type) {
	case *pb.PathMatch_Prefix:
		p := strings.TrimSuffix(m.Prefix, "/")
		return strings.HasPrefix(same(within)+"/", same(p)+"/") && (b.GetTextPrefix() == "" || len(within) > len(p))
	case *pb.PathMatch_TextPrefix:
		return strings.HasPrefix(same(within), same(m.TextPrefix))
	}
	return false
}
