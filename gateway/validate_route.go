package gateway

import (
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

func (c *checker) route(r *pb.Route) {
	c.hostNames("hostnames", r.GetHostnames())
	rules := r.GetRules()
	c.duplicates("rule name", namesOf(indexed(rules), func(i int) string { return RuleName(rules[i], i) }), elements("rules[%d].name"))
	c.policies("policies", OnRoute, r.GetPolicies())
	seen := map[string]string{}
	for i, rule := range rules {
		path := fmt.Sprintf("rules[%d]", i)
		for j, m := range rule.GetMatches() {
			c.match(fmt.Sprintf("%s.matches[%d]", path, j), m)
		}
		c.sameMatches(seen, path, rule)
		c.action(path, r, rule)
		c.policies(path+".policies", OnRule, rule.GetPolicies())
		c.limitedAnswer(path, r, rule)
	}
}

// limitedAnswer refuses limits on answers that the proxy gives itself: Envoy's rate
// limit filter does not ask for redirects and direct responses (seen with 1.40).
func (c *checker) limitedAnswer(path string, r *pb.Route, rule *pb.RouteRule) {
	if rule.GetForward() != nil {
		return
	}
	const why = "limits hold for forwarded requests only, and %s answers by itself: put the limits on the rules that forward"
	switch {
	case rule.GetPolicies().GetRateLimit() != nil:
		c.add(path+".policies.rate_limit", why, "this rule")
	case r.GetPolicies().GetRateLimit() != nil:
		c.add("policies.rate_limit", why, path)
	}
}

// indexed is 0, 1, 2, … for a list.
func indexed[T any](list []T) []int {
	out := make([]int, len(list))
	for i := range out {
		out[i] = i
	}
	return out
}

// hostNames checks what the pattern of host names cannot: their length (RFC 1035:
// 253), and that the edge takes such a host.
func (c *checker) hostNames(path string, hosts []string) {
	for i, h := range hosts {
		field := fmt.Sprintf("%s[%d]", path, i)
		if len(h) > 253 {
			c.add(field, "is %d characters long; host names have at most 253", len(h))
		}
		if c.has(field) || h == "" || h == "*" {
			continue
		}
		if _, _, err := CanonicalHost(strings.Replace(h, "*", "a", 1)); err != nil {
			c.add(field, "%q can never match: a host whose last label is a number is an IPv4 address, with four numbers from 0 to 255", h)
		}
	}
}

// sameMatches reports matches of one route that look for the same: the second can
// never serve. seen maps what a match looks for to the field that holds it.
func (c *checker) sameMatches(seen map[string]string, path string, rule *pb.RouteRule) {
	matches := rule.GetMatches()
	if len(matches) == 0 {
		matches = []*pb.RouteMatch{{}}
	}
	for j, m := range matches {
		field := fmt.Sprintf("%s.matches[%d]", path, j)
		if len(rule.GetMatches()) == 0 {
			field = path
		}
		// Deterministic within one process, which is all that is needed.
		key, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
		if err != nil {
			continue // invalid UTF-8: no decoder lets it pass
		}
		if first, ok := seen[string(key)]; ok {
			c.add(field, "matches the same as %s, which always comes first; remove one", first)
			continue
		}
		seen[string(key)] = field
	}
}

func (c *checker) regex(field, pattern string) {
	if c.has(field) {
		return
	}
	if err := checkRegex(pattern); err != nil {
		c.add(field, "%v", err)
	}
}

func (c *checker) action(path string, r *pb.Route, rule *pb.RouteRule) {
	switch a := rule.GetAction().(type) {
	case *pb.RouteRule_Forward:
		c.forward(path, rule, a.Forward)
	case *pb.RouteRule_Redirect:
		c.redirect(path+".redirect", r, rule, a.Redirect)
	case *pb.RouteRule_DirectResponse:
		if s := a.DirectResponse.GetStatus(); (s == 204 || s == 205 || s == 304) && a.DirectResponse.GetBody() != "" {
			c.add(path+".direct_response.body", "a response with status %d has no body (RFC 9110); take it away or choose another status", s)
		}
	}
}

func (c *checker) forward(path string, rule *pb.RouteRule, f *pb.Forward) {
	field := path + ".forward"
	sum, names := uint64(0), make([]string, len(f.GetBackends()))
	for i, b := range f.GetBackends() {
		sum += uint64(b.GetWeight())
		names[i] = Resolve(projectOf(c.object.GetName()), KindBackends, b.GetBackend())
		if b.GetSubset() != "" {
			names[i] += " subset " + b.GetSubset()
		}
		if b.GetPort() != 0 {
			names[i] += fmt.Sprintf(" port %d", b.GetPort())
		}
	}
	if len(f.GetBackends()) > 1 && sum == 0 {
		c.add(field+".backends", "all weights are 0, so no backend would get anything; give at least one a weight (several backends have no default)")
	}
	c.duplicates("backend", names, elements(field+".backends[%d].backend"))
	if h := f.GetHostRewrite(); h != "" && !isAuthority(h) {
		c.add(field+".host_rewrite", "%q is not a host name, with or without a port", h)
	}
	c.prefixRewrite(field+".prefix_rewrite", rule, f.GetPrefixRewrite())
}

// prefixRewrite checks what a matched prefix is replaced by; "" for nothing.
func (c *checker) prefixRewrite(field string, rule *pb.RouteRule, to string) {
	if to == "" {
		return
	}
	if !strings.HasPrefix(to, "/") || strings.ContainsAny(to, "?#;\\") || !printable(to) {
		c.add(field, "%q is not a path: it starts with / and has no ?, #, ; or \\", to)
	} else if normal, err := NormalizePath(to); err != nil || normal != to || to == "//" {
		c.add(field, "%q is not normalized: write it without //, dot segments and characters that must be percent-encoded", to)
	}
	matches := rule.GetMatches()
	if len(matches) == 0 {
		c.add(field, "replaces what a path match found, but the rule has no match; add path: {prefix: /}")
	}
	for i, m := range matches {
		switch m.GetPath().GetMatch().(type) {
		case nil:
			c.add(field, "replaces what a path match found, but matches[%d] has no path; add path: {prefix: /}", i)
		case *pb.PathMatch_Regex:
			c.add(field, "cannot be used with matches[%d].path.regex, which has no prefix to replace; match by prefix or exact", i)
		}
	}
}

// redirect checks the target, and that it is not a request which the same rule
// answers in the same way again.
func (c *checker) redirect(field string, r *pb.Route, rule *pb.RouteRule, d *pb.Redirect) {
	if h := d.GetHost(); h != "" && !isHost(h) {
		c.add(field+".host", "%q is not a host name; the port has a field of its own", h)
	}
	if p := d.GetPath(); p != "" && (p[0] != '/' || !printable(p) || strings.ContainsAny(p, "#\\")) {
		c.add(field+".path", "%q is not a path: it starts with /, is ASCII and has no # or \\", p)
	}
	c.prefixRewrite(field+".prefix_rewrite", rule, d.GetPrefixRewrite())
	if d.GetPath() != "" && d.GetPrefixRewrite() != "" {
		c.add(field+".prefix_rewrite", "replaces a part of the path, and path all of it; set one of them")
	}
	if d.GetScheme() != "" || d.GetPort() != 0 {
		return
	}
	if d.GetHost() != "" && !slices.Contains(r.GetHostnames(), d.GetHost()) {
		return
	}
	loop := d.GetPath() == "" && d.GetPrefixRewrite() == "" || rewritesItself(rule, d.GetPrefixRewrite())
	for _, m := range rule.GetMatches() {
		exact, ok := m.GetPath().GetMatch().(*pb.PathMatch_Exact)
		if ok && (exact.Exact == d.GetPath() || m.GetPath().GetIgnoreCase() && strings.EqualFold(exact.Exact, d.GetPath())) {
			loop = true
		}
	}
	if loop {
		c.add(field, "is a cycle: it leads to the request that this rule answers; set a scheme, another host or another path")
	}
}

// rewritesItself reports whether a rule matches what it makes of a path by putting to in
// the place of what it matched.
func rewritesItself(rule *pb.RouteRule, to string) bool {
	if !strings.HasPrefix(to, "/") {
		return false
	}
	for _, m := range rule.GetMatches() {
		results := []string{to}
		switch k := m.GetPath().GetMatch().(type) {
		case *pb.PathMatch_Prefix:
			results = append(results, RewritePrefix(m.GetPath(), strings.TrimSuffix(k.Prefix, "/")+"/x", to))
		case *pb.PathMatch_TextPrefix:
			results = append(results, RewritePrefix(m.GetPath(), k.TextPrefix+"x", to))
		}
		for _, other := range rule.GetMatches() {
			if slices.ContainsFunc(results, func(path string) bool { return pathMismatch(other.GetPath(), path) == "" }) {
				return true
			}
		}
	}
	return false
}

var hostPattern = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?(\.[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?)*$`)

func isHost(h string) bool {
	if len(h) <= 253 && hostPattern.MatchString(h) {
		return true
	}
	if a, err := netip.ParseAddr(strings.Trim(h, "[]")); err == nil {
		return a.Zone() == "" && (a.Is4() || h == "["+a.String()+"]")
	}
	return false
}

// isAuthority takes a host with or without a port.
func isAuthority(a string) bool {
	if isHost(a) {
		return true
	}
	i := strings.LastIndexByte(a, ':')
	return i > 0 && isHost(a[:i]) && isPort(a[i+1:])
}

func isPort(p string) bool {
	n := 0
	for _, r := range p {
		if r < '0' || r > '9' || n > 65535 {
			return false
		}
		n = n*10 + int(r-'0')
	}
	return n >= 1 && n <= 65535
}

func ascii(s string) bool { return !strings.ContainsFunc(s, func(r rune) bool { return r > 0x7f }) }

// printable reports whether a text is visible ASCII.
func printable(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r >= 0x7f })
}
