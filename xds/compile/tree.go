package compile

import (
	"cmp"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"

	xdscorev3 "github.com/cncf/xds/go/xds/core/v3"
	xdsmatcherv3 "github.com/cncf/xds/go/xds/type/matcher/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
)

// Envoy tries the routes of a host one after another. From a certain number on they
// are laid out as a tree instead: a map of prefixes of the path, each with the list
// of those routes that can match a path that begins so. Envoy takes the longest
// prefix and tries the routes of its list, in the order of the whole list, each with
// all of its conditions. A list holds every route that could match, so whatever the
// routes ask for, the first that matches is the same as in the whole list.

// treeLimits say when a host is laid out as a tree, and how fine. The unit is the
// time that Envoy takes to pass by one route; decision 0006 has the measurements.
type treeLimits struct {
	// from is what a request may have to pass by in a list.
	from int
	// leaf is what it may have to pass by in a tree, where that can be had.
	leaf int
	// regex is what an expression costs, against a path or a prefix.
	regex int
	// gain is how many times less a tree must cost, and copies how many times as many
	// routes it may hold: else it stays a list.
	gain, copies int
}

var trees = treeLimits{from: 200, leaf: 96, regex: 10, gain: 2, copies: 2}

// branch is one prefix with the positions of its routes.
type branch struct {
	prefix string // "" for paths that no other branch is for
	routes []int
}

// leaning is a route as the tree sees it.
type leaning struct {
	// prefix is what every path begins with that the route can match.
	prefix   string
	position int
	cost     int
}

// plan returns the branches for routes, or nil when the list does as well: it is
// short, or so many routes could match any path that a tree saves little.
func (l treeLimits) plan(routes []*routev3.Route) []branch {
	total := 0
	for _, r := range routes {
		total += l.cost(r)
	}
	if total <= l.from {
		return nil
	}
	out := l.grow(routes)
	held, worst := 0, 0
	for _, b := range out {
		cost := 0
		for _, i := range b.routes {
			cost += l.cost(routes[i])
		}
		held += len(b.routes)
		worst = max(worst, cost)
	}
	if len(out) < 2 || l.gain*worst > total || held > l.copies*len(routes) {
		return nil
	}
	return out
}

func (l treeLimits) cost(r *routev3.Route) int {
	if r.GetMatch().GetSafeRegex() != nil {
		return l.regex
	}
	return 1
}

// grow returns the branches of routes.
func (l treeLimits) grow(routes []*routev3.Route) []branch {
	items := make([]leaning, len(routes))
	for i, r := range routes {
		items[i] = leaning{prefix: pathPrefix(r.GetMatch()), position: i, cost: l.cost(r)}
	}
	slices.SortStableFunc(items, func(a, b leaning) int { return strings.Compare(a.prefix, b.prefix) })
	b := &branches{leaf: l.leaf}
	b.grow("", items, nil)
	return b.out
}

type branches struct {
	leaf int
	out  []branch
}

// grow makes the branch of a prefix and those below it. items are the routes whose
// prefixes begin with it, sorted by them; above are the positions of those that may
// match any path that does.
func (b *branches) grow(prefix string, items []leaning, above []int) {
	n := 0
	for n < len(items) && len(items[n].prefix) == len(prefix) {
		n++
	}
	own, groups := items[:n], groupsOf(items[n:], len(prefix))
	// Small groups stay here, as long as there is room: each branch has a price.
	slices.SortStableFunc(groups, func(x, y []leaning) int { return cmp.Compare(costOf(x), costOf(y)) })
	here := slices.Clone(own)
	room := b.leaf - costOf(own)
	below := above
	for _, i := range own {
		below = append(below[:len(below):len(below)], i.position)
	}
	for _, g := range groups {
		if c := costOf(g); c <= room {
			room -= c
			here = append(here, g...)
			continue
		}
		room = 0
		b.grow(commonPrefix(g[0].prefix, g[len(g)-1].prefix), g, below)
	}
	at := branch{prefix: prefix, routes: slices.Clone(above)}
	for _, i := range here {
		at.routes = append(at.routes, i.position)
	}
	slices.Sort(at.routes)
	b.out = append(b.out, at)
}

// groupsOf splits sorted items by the byte of their prefixes at a position.
func groupsOf(items []leaning, at int) (out [][]leaning) {
	for start := 0; start < len(items); {
		end := start
		for end < len(items) && items[end].prefix[at] == items[start].prefix[at] {
			end++
		}
		out = append(out, items[start:end])
		start = end
	}
	return out
}

func costOf(items []leaning) (n int) {
	for _, i := range items {
		n += i.cost
	}
	return n
}

func commonPrefix(a, b string) string {
	n := 0
	for n < min(len(a), len(b)) && a[n] == b[n] {
		n++
	}
	return a[:n]
}

// pathPrefix is what every path begins with that a match can match. Queries are
// behind it.
func pathPrefix(m *routev3.RouteMatch) string {
	var p string
	switch s := m.GetPathSpecifier().(type) {
	case *routev3.RouteMatch_Path:
		p = s.Path
	case *routev3.RouteMatch_Prefix:
		p = s.Prefix
	case *routev3.RouteMatch_PathSeparatedPrefix:
		p = s.PathSeparatedPrefix
	case *routev3.RouteMatch_SafeRegex:
		// Envoy's expressions match the whole path, so this is where they begin.
		if re, err := regexp.Compile(s.SafeRegex.GetRegex()); err == nil {
			p, _ = re.LiteralPrefix()
		}
		// They work on bytes, and Go's on characters: \xc3 is another thing there.
		if i := strings.IndexFunc(p, func(r rune) bool { return r >= utf8.RuneSelf }); i >= 0 {
			p = p[:i]
		}
	}
	if c := m.GetCaseSensitive(); c != nil && !c.GetValue() {
		if i := strings.IndexFunc(p, func(r rune) bool { return 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' }); i >= 0 {
			p = p[:i]
		}
	}
	return p
}

// tree lays routes out by a plan.
func tree(p *packer, routes []*routev3.Route, plan []branch) *xdsmatcherv3.Matcher {
	byPrefix := map[string]*xdsmatcherv3.Matcher_OnMatch{}
	var rest *xdsmatcherv3.Matcher_OnMatch
	for _, b := range plan {
		if len(b.routes) == 0 {
			continue // no route can match such a path: none is found
		}
		list := &routev3.RouteList{}
		for _, i := range b.routes {
			list.Routes = append(list.Routes, routes[i])
		}
		on := &xdsmatcherv3.Matcher_OnMatch{OnMatch: &xdsmatcherv3.Matcher_OnMatch_Action{Action: &xdscorev3.TypedExtensionConfig{
			Name: "routes", TypedConfig: p.Pack(list),
		}}}
		if b.prefix == "" {
			rest = on
		} else {
			byPrefix[b.prefix] = on
		}
	}
	return &xdsmatcherv3.Matcher{
		OnNoMatch: rest,
		MatcherType: &xdsmatcherv3.Matcher_MatcherTree_{MatcherTree: &xdsmatcherv3.Matcher_MatcherTree{
			Input: &xdscorev3.TypedExtensionConfig{
				Name: "path", TypedConfig: p.Pack(&matcherv3.HttpRequestHeaderMatchInput{HeaderName: ":path"}),
			},
			TreeType: &xdsmatcherv3.Matcher_MatcherTree_PrefixMatchMap{
				PrefixMatchMap: &xdsmatcherv3.Matcher_MatcherTree_MatchMap{Map: byPrefix},
			},
		}},
	}
}
