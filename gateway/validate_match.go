package gateway

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// What a request can look like depends on the edge profile of its listener. Validate,
// which sees one object alone, refuses the matches that no profile lets match; Snapshot.Check
// those that none of the listeners does that the route attaches to.

// loosest is the profile under which every path and header can be seen that can be seen
// under any profile.
var loosest = Edge{KeepSlashes: true, KeepSemicolons: true, KeepRepeated: true, Underscores: pb.HeaderUnderscores_HEADER_UNDERSCORES_ALLOW}

// matchProblems are the matches of a route that no request satisfies on a listener with
// this profile.
func (e Edge) matchProblems(r *pb.Route) []Problem {
	c := &checker{object: r, edge: e}
	for i, rule := range r.GetRules() {
		for j, m := range rule.GetMatches() {
			at := fmt.Sprintf("rules[%d].matches[%d]", i, j)
			if m.GetPath() != nil {
				c.pathMatch(at+".path", m.GetPath())
			}
			for k, h := range m.GetHeaders() {
				c.headerSeen(fmt.Sprintf("%s.headers[%d]", at, k), h)
			}
		}
	}
	return c.problems
}

// edgesOf returns the different edge profiles of the listeners that serve a route. It is
// asked while a Snapshot is built, before there is what listenersOf walks over.
func (s *Snapshot) edgesOf(r *pb.Route) []Edge {
	var out []Edge
	for _, name := range s.gatewaysOf(nil, r.GetName()) {
		g, _ := s.Get(name).(*pb.Gateway)
		for _, l := range g.GetListeners() {
			if e := EdgeOf(l).ofMatches(); len(intersect(r.GetHostnames(), l.GetHostnames())) > 0 && !slices.Contains(out, e) {
				out = append(out, e)
			}
		}
	}
	return out
}

// ofMatches is the part of a profile that matches depend on.
func (e Edge) ofMatches() Edge {
	e.MaxHeaders, e.MaxHeadersKiB = 0, 0
	return e
}

// unserved are the matches of a route that no request satisfies on any listener that
// serves the route. What Validate refuses is left to it.
func (s *Snapshot) unserved(r *pb.Route) []Problem {
	// What the strictest profile lets match, all do, but for headers that each listener
	// sets in its own way.
	if len(Edge{}.matchProblems(r)) == 0 && !matchesHeader(r, forwardedProto) && !matchesHeader(r, requestID) {
		return nil
	}
	edges := s.edgesOf(r)
	if len(edges) == 0 {
		return nil // served nowhere yet
	}
	return unservedBy(r, edges)
}

// unservedBy are the matches of a route that no request satisfies on any listener with
// one of some edge profiles, but for what no profile lets match, which Validate refuses.
func unservedBy(r *pb.Route, edges []Edge) []Problem {
	always := loosest.matchProblems(r)
	out := edges[0].matchProblems(r)
	for _, e := range edges[1:] {
		here := e.matchProblems(r)
		out = slices.DeleteFunc(out, func(p Problem) bool { return !anyOf(here, p.Field) })
	}
	return slices.DeleteFunc(out, func(p Problem) bool { return anyOf(always, p.Field) })
}

// UnservedByDefault are the matches that no request satisfies on a listener with the
// default edge profile, of those of the named routes that no listener of the snapshot
// serves: files may hold a route alone, whose Gateway is elsewhere.
func (s *Snapshot) UnservedByDefault(routes []string) []Problem {
	var out []Problem
	for _, name := range routes {
		r, ok := s.Get(name).(*pb.Route)
		if !ok || len(s.edgesOf(r)) > 0 {
			continue
		}
		for _, p := range unservedBy(r, []Edge{{}}) {
			p.Message += "; where a Gateway's listener keeps such requests, give its file, too"
			out = append(out, p)
		}
	}
	return out
}

func anyOf(problems []Problem, field string) bool {
	return slices.ContainsFunc(problems, func(p Problem) bool { return p.Field == field })
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
		c.headerSeen(at, h)
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
		if QueryRegex(q.GetValue()) != "" {
			continue
		}
		why := "expressions are compared with values as they stand in the URL, where blanks, &, # and what is not ASCII are percent-encoded: a(%20|[+])b"
		if longQuery(q.GetValue()) {
			why = "it is too long to be compared decoded, and blanks, &, # and what is not ASCII are percent-encoded in a URL; write it so, or match a prefix"
		}
		c.canMatch(at+".value", q.GetValue(), queryValues, why)
	}
}

// headerSeen refuses a match of a header that no route sees, unless it is what an absent
// header satisfies.
func (c *checker) headerSeen(path string, h *pb.HeaderMatch) {
	if why := c.edge.Removed(h.GetName()); why != "" && headerMismatch(h, &Request{}) != "" && !c.has(path+".name") {
		c.add(path+".name", "%q can never match: %s", h.GetName(), why)
	}
	if h.GetInvert() {
		return
	}
	switch exact := h.GetValue().GetExact(); h.GetName() {
	case forwardedProto:
		if c.edge.Scheme != "" {
			c.canMatch(path+".value", h.GetValue(), only(c.edge.Scheme), "it is "+c.edge.Scheme+" in every request of such a listener, whatever clients say; trusted_hops of the listener makes it believe the proxies in front of it")
		}
	case requestID:
		if c.edge.RequestIDs == pb.ClientRequestIds_CLIENT_REQUEST_IDS_REPLACE && exact != "" {
			c.add(path+".value.exact", "%q can never match: the listener gives each request an id of its own (edge.request_ids)", exact)
			return
		}
		uuid := c.edge.RequestIDs == pb.ClientRequestIds_CLIENT_REQUEST_IDS_KEEP_UUID || c.edge.RequestIDs == pb.ClientRequestIds_CLIENT_REQUEST_IDS_REPLACE
		why := "an id that is not 1 to 128 letters, digits, - and _ is replaced before routes see it"
		if uuid {
			why = "ids are UUIDs on such a listener (edge.request_ids)"
		}
		c.canMatch(path+".value", h.GetValue(), requestIDs(uuid), why)
	}
}

// Headers that Envoy sets in requests that have none, or none that is believed.
const (
	forwardedProto = "x-forwarded-proto"
	requestID      = "x-request-id"
)

// matchesHeader reports whether a route matches on a header.
func matchesHeader(r *pb.Route, name string) bool {
	for _, rule := range r.GetRules() {
		for _, m := range rule.GetMatches() {
			if slices.ContainsFunc(m.GetHeaders(), func(h *pb.HeaderMatch) bool { return h.GetName() == name }) {
				return true
			}
		}
	}
	return false
}

func (c *checker) pathMatch(path string, p *pb.PathMatch) {
	switch m := p.GetMatch().(type) {
	case *pb.PathMatch_Exact:
		c.pathText(path+".exact", m.Exact, "")
	case *pb.PathMatch_Prefix:
		if strings.HasSuffix(m.Prefix, "//") {
			c.add(path+".prefix", "%q ends with several slashes, and a prefix is made of whole segments; write %q, or text_prefix", m.Prefix, strings.TrimRight(m.Prefix, "/")+"/")
		}
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
	paths := c.edge.paths()
	if c.has(field) || paths.possible(pattern) {
		return
	}
	why := "no path that was normalized looks like that: they begin with /, have no query, no //, no dot segments, no blanks and no escapes of letters and digits"
	for _, k := range []struct{ char, why string }{
		{"?", "it asks for ?, and a path ends before its query; match parameters with query"},
		{"#", "it asks for #, which no request has in its path"},
		{"//", "slashes are merged before; write one, or let edge.repeated_slashes of the listener keep them"},
		{" ", "a path has no blanks; write %20"},
		{";", "the listener refuses ; in a path; " + keepSemicolons},
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
	if i := strings.IndexAny(path, "?#"); i >= 0 {
		c.add(field, "%q can never match: a path has no %q; match parameters with query", path, path[i])
		return
	}
	normal, err := c.edge.NormalizePath(path + follow)
	repeated := strings.Contains(path, "//") && path+follow != "//" && !c.edge.KeepRepeated
	switch {
	case !ascii(path):
		c.add(field, "%q can never match: paths are ASCII; write other characters percent-encoded, such as %%C3%%A9", path)
	case err != nil:
		var reason *EdgeError
		errors.As(err, &reason)
		hint := ""
		if reason.Answer == BadSemicolon {
			hint = "; " + keepSemicolons
		}
		c.add(field, "%q can never match: %s%s", path, reason.Reason, hint)
	case normal == path+follow && !repeated:
		if _, ok := c.edge.Reading(normal); !ok {
			c.add(field, "%q can never match: it can be read in too many ways, or as a path with dot segments, so every listener refuses it (%s)", path, AmbiguousPath.Code)
		}
	case strings.HasSuffix(normal, follow) && normal != path+follow:
		hint := ""
		if repeated {
			hint = ", or let edge.repeated_slashes of the listener keep what is repeated"
		}
		c.add(field, "%q can never match, because requests arrive normalized; write %q%s", path, strings.TrimSuffix(normal, follow), hint)
	default:
		c.add(field, "%q can never match, because slashes are merged and dot segments resolved before", path)
	}
}

const keepSemicolons = "edge.semicolons of the listener can keep them"

func (c *checker) stringMatch(path string, m *pb.StringMatch) {
	if k, ok := m.GetMatch().(*pb.StringMatch_Regex); ok {
		c.regex(path+".regex", k.Regex)
	}
}

// canMatch refuses a match of a text that no request can have.
func (c *checker) canMatch(path string, m *pb.StringMatch, l language, why string) {
	field, text, ok := l.meets(m)
	if field = path + field; !ok && !c.has(field) {
		c.add(field, "%q can never match: %s", text, why)
	}
}
