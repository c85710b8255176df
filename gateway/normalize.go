package gateway

import (
	"strings"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// Normalize brings an object, in place, into the form in which it is stored and
// compared: host names and header names in lower case, without trailing dots;
// methods in upper case; a path prefix without its trailing slash (it matches the
// same); no white space around names. What it cannot make right it leaves for
// Validate. It comes before Validate and changes nothing the second time.
func (m *Model) Normalize(o Object) {
	kindOfObject(o).normalize(m, o)
}

// hostnames normalizes a list in place. "" is the same as "*".
func hostnames(list []string) []string {
	for i, h := range list {
		list[i] = anyHost(hostname(h))
	}
	return list
}

func hostname(h string) string {
	return strings.ToLower(strings.TrimSuffix(strings.TrimSpace(h), "."))
}

func (m *Model) normalizeRule(r *pb.RouteRule) {
	for _, match := range r.GetMatches() {
		normalizeMatch(match)
	}
	if f := r.GetForward(); f != nil {
		f.HostRewrite = hostname(f.GetHostRewrite())
	}
	if d := r.GetRedirect(); d != nil {
		d.Host, d.Scheme = hostname(d.GetHost()), strings.ToLower(d.GetScheme())
	}
	m.normalizePolicies(r.GetPolicies())
}

func normalizeMatch(m *pb.RouteMatch) {
	if p, ok := m.GetPath().GetMatch().(*pb.PathMatch_Prefix); ok && strings.Trim(p.Prefix, "/") != "" && !strings.HasSuffix(p.Prefix, "//") {
		// Validate refuses several slashes.
		p.Prefix = strings.TrimSuffix(p.Prefix, "/")
	}
	for i, method := range m.GetMethods() {
		m.Methods[i] = strings.ToUpper(strings.TrimSpace(method))
	}
	for _, h := range m.GetHeaders() {
		h.Name = HeaderName(h.GetName())
	}
}
