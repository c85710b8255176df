package gateway

import (
	"cmp"
	"strings"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// compareEntries is the order of the entries of one host. It is total: two
// different entries never compare equal, so the order does not depend on how a
// Snapshot came about.
//
// What is First stands first. Then come routes that are AS_LISTED, by name, each in the order written. The
// others follow, the most specific match first, as RuleOrder in route.proto says.
func compareEntries(a, b *Entry) int {
	if a.First != b.First {
		return bit(b.First) - bit(a.First)
	}
	la, lb := asListed(a.Route), asListed(b.Route)
	switch {
	case la && !lb:
		return -1
	case lb && !la:
		return 1
	case !la:
		if c := compareSpecificity(a.Match, b.Match); c != 0 {
			return c
		}
	}
	return cmp.Or(
		strings.Compare(a.Route.GetName(), b.Route.GetName()),
		cmp.Compare(a.RuleIndex, b.RuleIndex),
		cmp.Compare(a.MatchIndex, b.MatchIndex),
	)
}

func asListed(r *pb.Route) bool { return r.GetRuleOrder() == pb.RuleOrder_RULE_ORDER_AS_LISTED }

// compareSpecificity is negative when a is more specific than b.
func compareSpecificity(a, b *pb.RouteMatch) int {
	ka, ta, na := pathRank(a.GetPath())
	kb, tb, nb := pathRank(b.GetPath())
	return cmp.Or(
		cmp.Compare(ka, kb),
		cmp.Compare(nb, na),
		cmp.Compare(bit(len(b.GetMethods()) > 0), bit(len(a.GetMethods()) > 0)),
		cmp.Compare(len(b.GetHeaders()), len(a.GetHeaders())),
		cmp.Compare(len(b.GetQuery()), len(a.GetQuery())),
		// Of two prefixes of one length "/a" below its slash is the narrower.
		cmp.Compare(ta, tb),
	)
}

func bit(b bool) int {
	if b {
		return 1
	}
	return 0
}

// pathRank sorts kinds of path matches: exact before regex before prefix. No path
// is the prefix "/", which matches the same. text tells a prefix of characters.
func pathRank(p *pb.PathMatch) (kind, text, length int) {
	switch m := p.GetMatch().(type) {
	case *pb.PathMatch_Exact:
		return 0, 0, len(m.Exact)
	case *pb.PathMatch_Regex:
		return 1, 0, len(m.Regex)
	case *pb.PathMatch_Prefix:
		return 2, 0, len(m.Prefix)
	case *pb.PathMatch_TextPrefix:
		return 2, 1, len(m.TextPrefix)
	}
	return 2, 0, 1
}

// MoreSpecific reports whether a match comes before another because of what it
// matches, as RULE_ORDER_MOST_SPECIFIC orders them.
func MoreSpecific(a, b *pb.RouteMatch) bool { return compareSpecificity(a, b) < 0 }
