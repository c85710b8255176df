package gateway

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"sync"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// A preflight (Fetch, section 3.2.2) is an OPTIONS request by which a browser asks whether a
// page may send another request, which it describes: the method, and the names of headers.
// It is answered by the policy of the entry that would serve that request. Entries for
// OPTIONS get preflights as they are; each other one of a host where some policy answers
// preflights has an entry for them before it, so that none falls to an entry with a laxer
// policy.

// ahead is the entry for the preflights of another one, made when a host needs it, and kept
// so that compilers may cache by pointer.
type ahead struct {
	answers bool // a policy of the entry answers them
	own     bool // the entry gets them itself
	once    sync.Once
	entry   *Entry
}

// of is the entry for the preflights of e; nil when e gets them itself.
func (a *ahead) of(e *Entry) *Entry {
	if a == nil || a.own {
		return nil
	}
	a.once.Do(func() { a.entry = preflightOf(*e, a.answers) })
	return a.entry
}

// aheadOf is nil for an entry that gets preflights itself, or none.
func (m *Model) aheadOf(e *Entry) *ahead {
	answers := m.answersPreflights(e)
	if methods := e.Match.GetMethods(); len(methods) == 0 || slices.Contains(methods, "OPTIONS") {
		if !answers {
			return nil
		}
		return &ahead{answers: true, own: true}
	}
	if e.Rule.GetForward() == nil {
		return nil // nothing is done by what it answers
	}
	return &ahead{answers: answers}
}

// answersPreflights reports whether a policy in force answers preflights: proxies do so for
// what they forward.
func (m *Model) answersPreflights(e *Entry) bool {
	return e.Rule.GetForward() != nil && slices.ContainsFunc(m.policies, func(p boundPolicy) bool { return p.preflights(e.Policies) })
}

// answers counts the entries whose policies answer preflights.
func answers(entries []*Entry) (n int) {
	for _, e := range entries {
		if e.ahead != nil && e.ahead.answers {
			n++
		}
	}
	return n
}

// withPreflights puts the entries for preflights before those that they are of.
func withPreflights(entries []*Entry) []*Entry {
	out := make([]*Entry, 0, len(entries)+1)
	for _, e := range entries {
		if p := e.ahead.of(e); p != nil {
			out = append(out, p)
		}
		out = append(out, e)
	}
	return out
}

// preflightOf is the entry for the preflights of an entry. It keeps everything that protects
// the entry: what no policy answers has to get past that.
func preflightOf(e Entry, answers bool) *Entry {
	e.Preflight, e.ahead = true, nil
	e.Match = preflightMatch(e.Match)
	if !answers {
		e.Policies, e.Backends, e.Problem = &Effective{}, nil, ""
		e.Rule = &pb.RouteRule{Name: e.Rule.GetName(), Action: &pb.RouteRule_DirectResponse{DirectResponse: &pb.DirectResponse{
			Status: Forbidden.Status, Body: fmt.Sprintf("Rule %s of %s has no policy that answers preflights (cors).", e.RuleName, e.Route.GetName()),
		}}}
	}
	return &e
}

const (
	requestMethod  = "access-control-request-method"
	requestHeaders = "access-control-request-headers"
)

// IsPreflight reports whether a request is a preflight, as Envoy tells it.
func IsPreflight(r *Request) bool {
	return r.Method == "OPTIONS" && headerLine(r, "origin") != "" && headerLine(r, requestMethod) != ""
}

// headerLine is a header as Envoy has those that it joins.
func headerLine(r *Request, name string) string { return strings.Join(r.Headers[name], ",") }

// preflightMatch matches the preflights that ask about requests of a match.
func preflightMatch(m *pb.RouteMatch) *pb.RouteMatch {
	out := &pb.RouteMatch{Path: m.GetPath(), Query: m.GetQuery(), Methods: []string{"OPTIONS"}}
	text := func(name, pattern string) {
		out.Headers = append(out.Headers, &pb.HeaderMatch{Name: name, Value: &pb.StringMatch{Match: &pb.StringMatch_Regex{Regex: pattern}}})
	}
	text("origin", ".+")
	methods := make([]string, len(m.GetMethods()))
	for i, method := range m.GetMethods() {
		methods[i] = regexp.QuoteMeta(method)
	}
	text(requestMethod, strings.Join(methods, "|"))
	for _, h := range m.GetHeaders() {
		if p, is := h.GetValue().GetMatch().(*pb.StringMatch_Present); h.GetInvert() || is && !p.Present || sentWithPreflights(h.GetName()) {
			out.Headers = append(out.Headers, h)
		} else if asks := "(?i:(?:.*[ ,])?" + regexp.QuoteMeta(h.GetName()) + "(?:[ ,].*)?)"; checkRegex(asks) == nil {
			text(requestHeaders, asks) // its value is not known yet
		}
	}
	return out
}

// sentWithPreflights reports whether a preflight has a header as the request has that it asks
// about. Of the others it has the names, but for those that pages cannot set.
func sentWithPreflights(name string) bool {
	return strings.HasPrefix(name, "x-forwarded-") || slices.Contains([]string{"host", "origin", "user-agent", "via", "forwarded", "x-real-ip", "x-request-id"}, name)
}

// NotInPreflights names the headers that an entry is matched by and that no preflight tells
// of: they are set by browsers alone. Preflights go to the entry after it.
func (e *Entry) NotInPreflights() []string {
	var out []string
	for _, h := range e.Match.GetHeaders() {
		if slices.Contains([]string{"cookie", "accept", "accept-language", "accept-encoding", "referer"}, h.GetName()) || strings.HasPrefix(h.GetName(), "sec-") {
			out = append(out, h.GetName())
		}
	}
	return out
}
