package gateway

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// Warnings returns what is valid in an object, normalized before, but may not be meant.
// A warning stops no write; it is part of its result.
func (m *Model) Warnings(o Object) []Problem {
	if o == nil || !o.ProtoReflect().IsValid() {
		return nil
	}
	c := &checker{model: m, object: o}
	c.policyWarnings(o)
	c.credentialWarnings(o)
	kindOfObject(o).warn(c, o)
	return c.problems
}

// HTTP1Methods are the methods that Envoy reads from HTTP/1.1, as far as routes can match
// them. It answers 400 to others; HTTP/2 carries any.
func HTTP1Methods() []string {
	return strings.Fields(`ACL BIND CHECKOUT COPY DELETE GET HEAD LINK LOCK MERGE MKACTIVITY MKCALENDAR MKCOL MOVE NOTIFY
		OPTIONS PATCH POST PROPFIND PROPPATCH PURGE PUT REBIND REPORT SEARCH SOURCE SUBSCRIBE UNBIND UNLINK UNLOCK UNSUBSCRIBE`)
}

func (c *checker) matchWarnings(path string, m *pb.RouteMatch) {
	for field, text := range map[string]string{"exact": m.GetPath().GetExact(), "prefix": m.GetPath().GetPrefix(), "text_prefix": m.GetPath().GetTextPrefix()} {
		if before, _, ok := strings.Cut(text, "*"); ok {
			below := "/" + strings.Trim(before[:strings.LastIndex(before, "/")+1], "/") // the whole segments before it
			c.add(path+".path."+field, "the * in %q is a character of the path, not a wildcard; prefix: %s matches whatever is below %[2]s", text, below)
		}
	}
	for i, method := range m.GetMethods() {
		if !slices.Contains(HTTP1Methods(), method) && method != "TRACE" && method != "CONNECT" {
			c.add(fmt.Sprintf("%s.methods[%d]", path, i), "%s reaches the route over HTTP/2 only: proxies answer 400 to it over HTTP/1.1", method)
		}
	}
	for i, q := range m.GetQuery() {
		if longQuery(q.GetValue()) {
			c.add(fmt.Sprintf("%s.query[%d].value", path, i), "is too long to be compared decoded, so it matches only as it is written here")
		}
	}
	for i, h := range m.GetHeaders() {
		at := fmt.Sprintf("%s.headers[%d]", path, i)
		_, _, possible := headerValues.meets(h.GetValue())
		switch why := loosest.Removed(h.GetName()); {
		case why != "":
			c.add(at, "is satisfied by every request, as if it were not there: %s", why)
		case h.GetInvert() && !possible:
			c.add(at, "is satisfied by every request, as if it were not there: no header has that value, which holds control characters or blanks around it")
		}
	}
}

// readingWarning warns of a path that only listeners let through which keep what backends
// may read in several ways, when its rule does not serve its other reading: such requests
// are refused.
func (c *checker) readingWarning(field string, rule *pb.RouteRule, p *pb.PathMatch) {
	text := p.GetExact() + p.GetPrefix() + p.GetTextPrefix()
	reading, ok := loosest.Reading(text)
	if !ok || reading == text {
		return
	}
	for _, m := range rule.GetMatches() {
		if pathMismatch(m.GetPath(), reading) == "" {
			return
		}
	}
	c.add(field, "%q can be read as %q, too, and a request is served only when the same rule serves both; match %q in this rule as well", text, reading, reading)
}

// PolicyWarnings returns what policies in force may not mean, with what is behind them, such
// as a route that gives up before its function does. names are the objects that were
// written; of functions, the routes that lead to them are looked at. Hosts with very many
// entries are not.
func (s *Snapshot) PolicyWarnings(names []string) []Problem {
	routes := map[string]bool{}
	for _, name := range names {
		routes[name] = true
		if _, ok := s.Get(name).(*pb.Function); ok {
			for _, r := range s.Dependents(name) {
				routes[r] = true
			}
		}
	}
	var out []Problem
	seen := map[string]bool{}
	for _, name := range slices.Sorted(maps.Keys(routes)) {
		s.eachHost(name, func(h *Host, r *pb.Route) {
			if len(h.written) > maxNeighbours {
				return
			}
			for _, e := range h.written {
				if e.Route != r {
					continue
				}
				for _, p := range s.model.entryWarnings(e) {
					if key := p.Field + p.Message; !seen[name+key] {
						seen[name+key] = true
						out = append(out, p)
					}
				}
			}
		})
	}
	return out
}

func (m *Model) entryWarnings(e *Entry) []Problem {
	var out []Problem
	for _, p := range m.policies {
		out = append(out, p.warnEntry(e)...)
	}
	return out
}
