package gateway

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// Request is what a route may look at, as it is after the edge accepted it.
type Request struct {
	// Method in upper case.
	Method string
	// Host in lower case, without port and trailing dot.
	Host string
	// Path as NormalizePath returns it, without the query.
	Path string
	// Query as sent, without "?".
	Query string
	// Headers by lower-case name, one element for each line.
	Headers map[string][]string
}

// Matches reports whether the entry serves a request of its host, if no entry before
// it does.
func (e *Entry) Matches(r *Request) bool { return Mismatch(e.Match, r) == "" }

// Mismatch says in words which part of a match a request fails, or "" when it
// matches. It means what Envoy 1.40 was seen to do with the compiled route:
// of parameters the first of a name counts, compared as QueryRegex says; of several
// lines of a header any may match; an inverted match takes an absent header as
// empty; regular expressions work on bytes and must match the whole text.
func Mismatch(m *pb.RouteMatch, r *Request) string {
	if reason := pathMismatch(m.GetPath(), r.Path); reason != "" {
		return reason
	}
	if len(m.GetMethods()) > 0 && !slices.Contains(m.GetMethods(), r.Method) {
		return fmt.Sprintf("method %s is not %s", r.Method, strings.Join(m.GetMethods(), " or "))
	}
	for _, h := range m.GetHeaders() {
		if reason := headerMismatch(h, r); reason != "" {
			return reason
		}
	}
	for _, q := range m.GetQuery() {
		if reason := queryMismatch(q, r); reason != "" {
			return reason
		}
	}
	return ""
}

func pathMismatch(p *pb.PathMatch, path string) string {
	if p.GetMatch() == nil {
		return ""
	}
	var ok bool
	fold := func(s string) string { return s }
	if p.GetIgnoreCase() {
		fold = lower
	}
	switch m := p.GetMatch().(type) {
	case *pb.PathMatch_Exact:
		ok = fold(path) == fold(m.Exact)
	case *pb.PathMatch_Prefix:
		prefix := strings.TrimRight(fold(m.Prefix), "/")
		rest, has := strings.CutPrefix(fold(path), prefix)
		ok = has && (rest == "" || rest[0] == '/')
	case *pb.PathMatch_TextPrefix:
		ok = strings.HasPrefix(fold(path), fold(m.TextPrefix))
	case *pb.PathMatch_Regex:
		ok = matchRegex(m.Regex, path)
	}
	if ok {
		return ""
	}
	return fmt.Sprintf("%s does not match %q", DescribePath(p), path)
}

// lower is ASCII only, as Envoy folds paths.
func lower(s string) string {
	return strings.Map(func(r rune) rune {
		if 'A' <= r && r <= 'Z' {
			return r + 'a' - 'A'
		}
		return r
	}, s)
}

func headerMismatch(h *pb.HeaderMatch, r *Request) string {
	values := r.Headers[h.GetName()]
	if h.GetName() == "host" {
		values = []string{r.Host}
	}
	var ok bool
	if p, is := h.GetValue().GetMatch().(*pb.StringMatch_Present); is {
		ok = (len(values) > 0) == p.Present
	} else {
		look := values
		if len(look) == 0 && h.GetInvert() {
			look = []string{""}
		}
		value := h.GetValue()
		if h.GetName() == "host" {
			value = inAnyCase(value)
		}
		ok = slices.ContainsFunc(look, func(v string) bool { return matchString(value, v) })
	}
	if ok != h.GetInvert() {
		return ""
	}
	return describeMiss("header "+h.GetName(), values, h.GetValue(), h.GetInvert())
}

// inAnyCase is a match of a host, which has no case (RFC 9110, section 4.2.3), as a match of
// one in lower case.
func inAnyCase(m *pb.StringMatch) *pb.StringMatch {
	switch k := m.GetMatch().(type) {
	case *pb.StringMatch_Exact:
		return &pb.StringMatch{Match: &pb.StringMatch_Exact{Exact: strings.ToLower(k.Exact)}}
	case *pb.StringMatch_Prefix:
		return &pb.StringMatch{Match: &pb.StringMatch_Prefix{Prefix: strings.ToLower(k.Prefix)}}
	case *pb.StringMatch_Suffix:
		return &pb.StringMatch{Match: &pb.StringMatch_Suffix{Suffix: strings.ToLower(k.Suffix)}}
	case *pb.StringMatch_Regex:
		return &pb.StringMatch{Match: &pb.StringMatch_Regex{Regex: "(?i:" + k.Regex + ")"}}
	}
	return m
}

// HostRegex is the expression that a match of the end of the header "host" becomes
// in Envoy, where the header may have capital letters and end with a port: matches are
// written without one. It is "" for every other match, and for a text too long for an
// expression, which then matches requests without a port only.
func HostRegex(h *pb.HeaderMatch) string {
	if h.GetName() != "host" {
		return ""
	}
	var pattern string
	switch k := h.GetValue().GetMatch().(type) {
	case *pb.StringMatch_Exact:
		pattern = regexp.QuoteMeta(k.Exact)
	case *pb.StringMatch_Suffix:
		pattern = ".*" + regexp.QuoteMeta(k.Suffix)
	case *pb.StringMatch_Regex:
		pattern = k.Regex
	default:
		return ""
	}
	if pattern = "(?i:" + pattern + ")(?::[0-9]+)?"; checkRegex(pattern) != nil {
		return ""
	}
	return pattern
}

// RewritePrefix puts to in the place of what a match found of a path that it matches: the
// prefix, or all of it for an exact match. The rest of the path stays.
func RewritePrefix(p *pb.PathMatch, path, to string) string {
	switch m := p.GetMatch().(type) {
	case *pb.PathMatch_TextPrefix:
		return to + path[len(m.TextPrefix):]
	case *pb.PathMatch_Prefix:
		if rest := path[len(strings.TrimSuffix(m.Prefix, "/")):]; rest != "" {
			return strings.TrimSuffix(to, "/") + rest
		}
	}
	return to
}

// SchemePort is the port that a URL of a scheme has when it names none.
func SchemePort(scheme string) uint32 {
	if scheme == "https" {
		return 443
	}
	return 80
}

// RedirectAuthority is what a redirect says of host and port.
type RedirectAuthority struct {
	// Host is the host of the target; "" for that of the request.
	Host string
	// Port is the port of the target. 0: none with a Host, else that of the request.
	Port uint32
	// DropPort tells that the target has the host of the request without its port,
	// because it is the default of the target's scheme. Port is then that default.
	DropPort bool
}

// RedirectTo returns where a redirect of a listener leads, for requests of a hostname,
// which is "" or a wildcard when they have different hosts. A URL never names the
// default port of its scheme (RFC 9110, section 4.2.3), whether the redirect names it or
// means it by naming a scheme alone.
func RedirectTo(r *pb.Redirect, l *pb.Listener, hostname string) RedirectAuthority {
	scheme := r.GetScheme()
	if scheme == "" && l.GetTrustedHops() == 0 { // else a proxy before us says what it is
		scheme = "http"
		if l.GetProtocol() == pb.ListenerProtocol_LISTENER_PROTOCOL_HTTPS {
			scheme = "https"
		}
	}
	port := r.GetPort()
	if port == 0 && r.GetHost() == "" && r.GetScheme() != "" {
		port = SchemePort(r.GetScheme())
	}
	byDefault := port != 0 && scheme != "" && port == SchemePort(scheme)
	switch {
	case !byDefault:
		return RedirectAuthority{Host: r.GetHost(), Port: port}
	case r.GetHost() != "":
		return RedirectAuthority{Host: r.GetHost()}
	case hostname != "" && !strings.HasPrefix(hostname, "*"):
		return RedirectAuthority{Host: hostname}
	}
	return RedirectAuthority{Port: port, DropPort: true}
}

func queryMismatch(q *pb.QueryMatch, r *Request) string {
	value, has := queryValue(r.Query, q.GetName())
	var values []string
	if has {
		values = []string{value}
	}
	ok := has && matchString(q.GetValue(), value)
	if pattern := QueryRegex(q.GetValue()); pattern != "" {
		ok = has && matchRegex(pattern, value)
	}
	if p, is := q.GetValue().GetMatch().(*pb.StringMatch_Present); is {
		ok = has == p.Present
	}
	if ok {
		return ""
	}
	return describeMiss("query parameter "+q.GetName(), values, q.GetValue(), false)
}

// queryValue is the value of the first parameter of a name, undecoded.
func queryValue(query, name string) (value string, ok bool) {
	for part := range strings.SplitSeq(query, "&") {
		if k, v, _ := strings.Cut(part, "="); k == name && part != "" {
			return v, true
		}
	}
	return "", false
}

// matchString compares one value that is there.
func matchString(m *pb.StringMatch, value string) bool {
	switch k := m.GetMatch().(type) {
	case *pb.StringMatch_Exact:
		return value == k.Exact
	case *pb.StringMatch_Prefix:
		return strings.HasPrefix(value, k.Prefix)
	case *pb.StringMatch_Suffix:
		return strings.HasSuffix(value, k.Suffix)
	case *pb.StringMatch_Regex:
		return matchRegex(k.Regex, value)
	}
	return false
}

func describeMiss(what string, values []string, m *pb.StringMatch, invert bool) string {
	want := describeString(m)
	if invert {
		want = "not " + want
	}
	if len(values) == 0 {
		return fmt.Sprintf("%s is absent, want %s", what, want)
	}
	quoted := make([]string, len(values))
	for i, v := range values {
		quoted[i] = fmt.Sprintf("%q", v)
	}
	return fmt.Sprintf("%s is %s, want %s", what, strings.Join(quoted, " and "), want)
}

func describeString(m *pb.StringMatch) string {
	switch k := m.GetMatch().(type) {
	case *pb.StringMatch_Exact:
		return fmt.Sprintf("exact %q", k.Exact)
	case *pb.StringMatch_Prefix:
		return fmt.Sprintf("prefix %q", k.Prefix)
	case *pb.StringMatch_Suffix:
		return fmt.Sprintf("suffix %q", k.Suffix)
	case *pb.StringMatch_Regex:
		return fmt.Sprintf("regex %q", k.Regex)
	case *pb.StringMatch_Present:
		if k.Present {
			return "any value"
		}
		return "none"
	}
	return "nothing (the match is empty)"
}

// DescribePath says a path match in words: `path prefix "/a"`.
func DescribePath(p *pb.PathMatch) string {
	var text string
	switch m := p.GetMatch().(type) {
	case *pb.PathMatch_Exact:
		text = fmt.Sprintf("path exact %q", m.Exact)
	case *pb.PathMatch_Prefix:
		text = fmt.Sprintf("path prefix %q", m.Prefix)
	case *pb.PathMatch_TextPrefix:
		text = fmt.Sprintf("path text prefix %q", m.TextPrefix)
	case *pb.PathMatch_Regex:
		text = fmt.Sprintf("path regex %q", m.Regex)
	default:
		return "every path"
	}
	if p.GetIgnoreCase() {
		text += " (ignoring case)"
	}
	return text
}

// DescribeMatch says a match in words.
func DescribeMatch(m *pb.RouteMatch) string {
	var parts []string
	if m.GetPath().GetMatch() != nil {
		parts = append(parts, DescribePath(m.GetPath()))
	}
	if len(m.GetMethods()) > 0 {
		parts = append(parts, "method "+strings.Join(m.GetMethods(), " or "))
	}
	for _, h := range m.GetHeaders() {
		not := ""
		if h.GetInvert() {
			not = "not "
		}
		parts = append(parts, "header "+h.GetName()+" "+not+describeString(h.GetValue()))
	}
	for _, q := range m.GetQuery() {
		parts = append(parts, "query parameter "+q.GetName()+" "+describeString(q.GetValue()))
	}
	if len(parts) == 0 {
		return "every request"
	}
	return strings.Join(parts, ", ")
}

// Host returns the host of a listener that serves a host name: the exact one, else
// the longest wildcard that covers it, else "*"; nil when there is none. The name
// is lower case, without port and trailing dot.
func (s *Snapshot) Host(gateway, listener, hostname string) *Host {
	if s == nil {
		return nil
	}
	g := s.states.Get(gateway)
	if g == nil {
		return nil
	}
	for _, l := range g.listeners {
		if l.listener.GetName() != listener {
			continue
		}
		if h := l.hosts.Get(hostname); h != nil && !strings.HasPrefix(hostname, "*") {
			return h
		}
		// From the left, so that the longest suffix comes first. A wildcard stands
		// for at least one character.
		for i := 1; i < len(hostname); i++ {
			if hostname[i] == '.' {
				if h := l.hosts.Get("*" + hostname[i:]); h != nil {
					return h
				}
			}
		}
		return l.hosts.Get("*")
	}
	return nil
}

// Find returns the entry that serves a request of this host, or nil.
func (h *Host) Find(r *Request) *Entry {
	for _, e := range h.Entries {
		if e.Matches(r) {
			return e
		}
	}
	return nil
}
