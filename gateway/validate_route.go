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
	c.policies("policies", r.GetPolicies())
	seen := map[string]string{}
	for i, rule := range rules {
		path := fmt.Sprintf("rules[%d]", i)
		for j, m := range rule.GetMatches() {
			c.match(fmt.Sprintf("%s.matches[%d]", path, j), m)
		}
		c.sameMatches(seen, path, rule)
		c.action(path, r, rule)
		c.policies(path+".policies", rule.GetPolicies())
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
			c.add(field, "matches the same as %s, which always comes first; take one away", first)
			continue
		}
		seen[string(key)] = field
	}
}

func (c *checker) match(path string, m *pb.RouteMatch) {
	if m.GetPath() != nil {
		c.pathMatch(path+".path", m.GetPath())
	}
	for i, method := range m.GetMethods() {
		if method == "TRACE" || method == "CONNECT" {
			c.add(fmt.Sprintf("%s.methods[%d]", path, i), "%s can never match: the edge refuses it", method)
		}
	}
	for i, h := range m.GetHeaders() {
		at := fmt.Sprintf("%s.headers[%d]", path, i)
		if why := Removed(h.GetName()); why != "" {
			c.add(at+".name", "%q can never match: %s", h.GetName(), why)
		}
		c.stringMatch(at+".value", h.GetValue())
		if !h.GetInvert() {
			c.canMatch(at+".value", h.GetValue(), headerValues, "a header holds no control characters and has no blanks around its value")
		}
	}
	c.duplicates("header", namesOf(m.GetHeaders(), func(h *pb.HeaderMatch) string {
		// Two matches of one header may well be meant: a prefix and not a value.
		if h.GetInvert() {
			return h.GetName() + " not " + describeString(h.GetValue())
		}
		return h.GetName() + " " + describeString(h.GetValue())
	}), elements(path+".headers[%d]"))
	for i, q := range m.GetQuery() {
		at := fmt.Sprintf("%s.query[%d]", path, i)
		if strings.ContainsAny(q.GetName(), "&=#") || !queryValues.possibleString("exact", q.GetName()) {
			c.add(at+".name", "%q can never match: parameters are compared as they stand in the URL, where & = # are written %%26 %%3D %%23, and blanks and what is not ASCII percent-encoded", q.GetName())
		}
		c.stringMatch(at+".value", q.GetValue())
		c.canMatch(at+".value", q.GetValue(), queryValues,
			"parameters are compared as they stand in the URL, where blanks, &, # and what is not ASCII are percent-encoded; write %20 for a blank, or regex: a(%20|[+])b")
	}
}

func (c *checker) pathMatch(path string, p *pb.PathMatch) {
	switch m := p.GetMatch().(type) {
	case *pb.PathMatch_Exact:
		c.pathText(path+".exact", m.Exact, "")
	case *pb.PathMatch_Prefix:
		c.pathText(path+".prefix", m.Prefix, "")
	case *pb.PathMatch_TextPrefix:
		// What follows belongs to the last segment: "/." may become "/.x".
		c.pathText(path+".text_prefix", m.TextPrefix, "x")
	case *pb.PathMatch_Regex:
		c.regex(path+".regex", m.Regex)
		if !ascii(m.Regex) && !c.has(path+".regex") {
			c.add(path+".regex", "%q can never match: paths are ASCII; write other characters percent-encoded, such as %%C3%%A9", m.Regex)
		}
		if p.GetIgnoreCase() {
			c.add(path+".ignore_case", "does not work with regex; begin the expression with (?i)")
		}
		c.regexOfPath(path+".regex", m.Regex)
	}
}

// regexOfPath refuses an expression that no normalized path can match, and says what it
// asks for where that can be told.
func (c *checker) regexOfPath(field, pattern string) {
	if c.has(field) || paths.possible(pattern) {
		return
	}
	why := "no path that was normalized looks like that: they begin with /, have no query, no //, no dot segments, no blanks and no escapes of letters and digits"
	for _, k := range []struct{ char, why string }{
		{"?", "it asks for ?, and a path ends before its query; match parameters with query"},
		{"#", "it asks for #, which no request has in its path"},
		{"//", "slashes are merged before; write one"},
		{" ", "a path has no blanks; write %20"},
	} {
		if strings.Contains(pattern, k.char) && !paths.possible(pattern) && paths.possible(strings.NewReplacer(`\`+k.char, "x", "["+k.char+"]", "x", k.char, "x").Replace(pattern)) {
			why = k.why
			break
		}
	}
	if re, err := regexp.Compile(pattern); err == nil {
		if literal, _ := re.LiteralPrefix(); literal != "" && literal[0] != '/' {
			why = "it matches the whole path, which starts with /"
		}
	}
	c.add(field, "%q can never match: %s", pattern, why)
}

// pathText checks that a request can have such a path once it was normalized.
func (c *checker) pathText(field, path, follow string) {
	if c.has(field) || !strings.HasPrefix(path, "/") {
		return
	}
	switch i := strings.IndexAny(path, "?#;"); {
	case i < 0:
	case path[i] == ';': // the edge's own reason says more
	default:
		c.add(field, "%q can never match: a path has no %q; match parameters with query", path, path[i])
		return
	}
	normal, err := NormalizePath(path + follow)
	switch {
	case !ascii(path):
		c.add(field, "%q can never match: paths are ASCII; write other characters percent-encoded, such as %%C3%%A9", path)
	case err != nil:
		c.add(field, "%q can never match: %s", path, err.(*EdgeError).Reason)
	case normal == path+follow && !strings.Contains(path, "//"):
	case strings.HasSuffix(normal, follow) && normal != path+follow:
		c.add(field, "%q can never match, because requests arrive normalized; write %q", path, strings.TrimSuffix(normal, follow))
	default:
		c.add(field, "%q can never match, because slashes are merged and dot segments resolved before", path)
	}
}

func (c *checker) stringMatch(path string, m *pb.StringMatch) {
	if k, ok := m.GetMatch().(*pb.StringMatch_Regex); ok {
		c.regex(path+".regex", k.Regex)
	}
}

// canMatch refuses a match of a text that no request can have.
func (c *checker) canMatch(path string, m *pb.StringMatch, l language, why string) {
	field, text, ok := "", "", true
	switch k := m.GetMatch().(type) {
	case *pb.StringMatch_Exact:
		field, text = ".exact", k.Exact
		ok = l.possibleString("exact", text)
	case *pb.StringMatch_Prefix:
		field, text = ".prefix", k.Prefix
		ok = l.possibleString("prefix", text)
	case *pb.StringMatch_Suffix:
		field, text = ".suffix", k.Suffix
		ok = l.possibleString("suffix", text)
	case *pb.StringMatch_Regex:
		field, text = ".regex", k.Regex
		ok = c.has(path+field) || l.possible(text)
	}
	if !ok && !c.has(path+field) {
		c.add(path+field, "%q can never match: %s", text, why)
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
	}
	if len(f.GetBackends()) > 1 && sum == 0 {
		c.add(field+".backends", "all weights are 0, so no backend would get anything; give at least one a weight (several backends have no default)")
	}
	c.duplicates("backend", names, elements(field+".backends[%d].backend"))
	if h := f.GetHostRewrite(); h != "" && !isAuthority(h) {
		c.add(field+".host_rewrite", "%q is no host name, with or without a port", h)
	}
	to := f.GetPrefixRewrite()
	if to == "" {
		return
	}
	field += ".prefix_rewrite"
	if !strings.HasPrefix(to, "/") || strings.ContainsAny(to, "?#;\\") || !printable(to) {
		c.add(field, "%q is no path: it starts with / and has no ?, #, ; or \\", to)
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
		c.add(field+".host", "%q is no host name; the port has a field of its own", h)
	}
	if p := d.GetPath(); p != "" && (p[0] != '/' || !printable(p) || strings.ContainsAny(p, "#\\")) {
		c.add(field+".path", "%q is no path: it starts with /, is ASCII and has no # or \\", p)
	}
	if d.GetScheme() != "" || d.GetPort() != 0 {
		return
	}
	if d.GetHost() != "" && !slices.Contains(r.GetHostnames(), d.GetHost()) {
		return
	}
	loop := d.GetPath() == ""
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

// printable tells whether a text is visible ASCII.
func printable(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r >= 0x7f })
}
