package explain

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/net/http/httpguts"

	"github.com/penstock-gateway/penstock/gateway"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// parse turns the request into what the edge would see.
func (x *explainer) parse(req *pb.ExplainRequest) error {
	scheme, rest, ok := strings.Cut(req.GetUrl(), "://")
	x.scheme = strings.ToLower(scheme)
	if !ok || x.scheme != "http" && x.scheme != "https" {
		return fmt.Errorf("%q is not an absolute URL: write it as http://host:port/path", req.GetUrl())
	}
	// Everything is taken as it would be sent: net/url decodes, and refuses what the
	// edge has a reason of its own for.
	rest, _, _ = strings.Cut(rest, "#")
	rest, x.request.Query, x.hasQuery = strings.Cut(rest, "?")
	x.rawPath = "/"
	if i := strings.IndexByte(rest, '/'); i >= 0 {
		rest, x.rawPath = rest[:i], rest[i:]
	}
	authority := rest[strings.LastIndexByte(rest, '@')+1:]
	x.request.Method = cmp.Or(req.GetMethod(), http.MethodGet)
	x.request.Headers = map[string][]string{}
	for _, k := range slices.Sorted(maps.Keys(req.GetHeaders())) {
		x.line(k, req.GetHeaders()[k])
	}
	for _, l := range req.GetHeaderLines() {
		name, value, ok := strings.Cut(l, ":")
		if !ok {
			return fmt.Errorf("header line %q: write it as name: value", l)
		}
		x.line(name, value)
	}
	x.authority(authority)
	return nil
}

// authority takes the host and port of the URL, to which the client connects, and the Host,
// which is the same unless a header says another.
func (x *explainer) authority(url string) {
	host, port, err := gateway.CanonicalHost(url)
	if err != nil {
		if _, digits, ok := cutLast(url, ":"); ok {
			n, _ := strconv.ParseUint(digits, 10, 16)
			port = uint32(n)
		}
	}
	x.port = cmp.Or(port, gateway.SchemePort(x.scheme))
	if x.serverName = host; isAddress(host) {
		x.serverName = ""
	}
	// A client leaves out the port that the scheme has anyway.
	if x.hostPort = port; port == gateway.SchemePort(x.scheme) {
		x.hostPort = 0
	}
	if hosts := x.request.Headers["host"]; len(hosts) > 0 {
		url = hosts[0]
		host, x.hostPort, err = gateway.CanonicalHost(url)
		delete(x.request.Headers, "host")
	}
	x.request.Host = host
	x.hostSize = len(url)
	x.noAuthority = strings.ContainsFunc(url, func(r rune) bool { return !strings.ContainsRune(authorityCharacters, r) })
	x.badHost, _ = errors.AsType[*gateway.EdgeError](err)
}

// authorityCharacters are all that Envoy lets pass in a Host before it looks at the path (RFC
// 3986, section 3.2).
const authorityCharacters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~%!$&'()*+,;=:[]@"

func cutLast(s, sep string) (before, after string, found bool) {
	if i := strings.LastIndex(s, sep); i >= 0 {
		return s[:i], s[i+len(sep):], true
	}
	return s, "", false
}

// line takes one header line.
func (x *explainer) line(name, value string) {
	name, value = strings.ToLower(name), strings.Trim(value, " \t")
	x.request.Headers[name] = append(x.request.Headers[name], value)
}

// edge is the answer of the proxy before any route is looked at; nil when it passes. What
// Envoy refuses by itself comes first, then the policies of the edge filter by their names.
func (x *explainer) edge(e gateway.Edge) *pb.ExplainOutcome {
	for name, values := range x.request.Headers {
		if !httpguts.ValidHeaderFieldName(name) || slices.ContainsFunc(values, func(v string) bool { return !httpguts.ValidHeaderFieldValue(v) }) {
			return answered(byEdge, gateway.BadProtocol, "HTTP has no header line %q", name)
		}
	}
	method := x.request.Method
	if unread := x.unread(method); unread != nil {
		return unread
	}
	many, big := x.tooMuch(e)
	if big != nil && x.size > int(e.MaxHeadersKiB+gateway.HeadersRoomKiB)<<10 {
		return big // Envoy reads no further
	}
	first, is := errors.AsType[*gateway.EdgeError](e.RefusedFirst(x.rawPath))
	switch {
	case is && first.Answer == gateway.BadProtocol:
		return refused(first)
	case x.badHost != nil && x.noAuthority:
		return refused(x.badHost)
	case is:
		return refused(first)
	}
	if other := x.upgrade(); other != "" {
		return answered(byEdge, gateway.BadUpgrade, "the header upgrade asks for %q", other)
	}
	path, err := e.NormalizePath(x.rawPath)
	bad, _ := errors.AsType[*gateway.EdgeError](err)
	switch {
	case x.badHost != nil && x.badHost.Answer == gateway.BadHost:
		return refused(x.badHost)
	case method == http.MethodTrace || method == http.MethodConnect:
		return answered(byEdge, gateway.BadMethod, "the edge refuses %s", method)
	case !goodMethod(method):
		return answered(byEdge, gateway.BadMethod, "the edge refuses the method %q; methods are written in capital letters", method)
	case bad != nil:
		return refused(bad)
	}
	x.request.Path = path
	switch {
	case big != nil && many == nil: // of both, the number is said alone
		return big
	case x.badHost != nil:
		return refused(x.badHost)
	case many != nil:
		return many
	}
	if refusal := x.misdirected(e); refusal != nil {
		return refusal
	}
	if refusal := x.headers(e); refusal != nil {
		return refusal
	}
	x.normalized(e)
	// Envoy says of every request how it came, unless a trusted proxy has.
	if e.Scheme != "" || len(x.request.Headers["x-forwarded-proto"]) == 0 {
		x.request.Headers["x-forwarded-proto"] = []string{x.scheme}
	}
	return nil
}

// normalized notes that rules and backends get another path than the one that was sent.
func (x *explainer) normalized(e gateway.Edge) {
	keep := e
	keep.KeepRepeated = true
	kept, err := keep.NormalizePath(x.rawPath)
	switch {
	case x.request.Path == x.rawPath:
	case err == nil && kept != x.request.Path:
		x.changed("rules and the backend get the path %s: repeated slashes become one; edge.repeated_slashes of the listener can keep them", x.request.Path)
	default:
		x.changed("rules and the backend get the path %s, its normal form (RFC 3986, section 6.2.2)", x.request.Path)
	}
}

// upgrade is the protocol that an HTTP/1.1 client wants to go on with and that the proxy does
// not know; "". HTTP/2 without TLS (h2c) it ignores.
func (x *explainer) upgrade() string {
	asks := slices.ContainsFunc(x.request.Headers["connection"], func(v string) bool {
		return slices.ContainsFunc(strings.Split(v, ","), func(t string) bool { return strings.EqualFold(strings.TrimSpace(t), "upgrade") })
	})
	to := strings.Join(x.request.Headers["upgrade"], ",")
	if !asks || to == "" || strings.EqualFold(to, "websocket") || strings.EqualFold(to, "h2c") {
		return ""
	}
	return to
}

// misdirected is the answer of a listener with several certificates to a request for another
// host than the one that its connection was made for; nil for all else.
func (x *explainer) misdirected(e gateway.Edge) *pb.ExplainOutcome {
	host := x.request.Host
	if !e.StrictSNI || host == x.serverName || x.serverName == "" && isAddress(host) {
		return nil
	}
	made := fmt.Sprintf("for %q", x.serverName)
	if x.serverName == "" {
		made = "without the name of a host, because the URL has an address"
	}
	return answered(byEdge, gateway.Misdirected, "the TLS connection is made %s, and the request is for host %q: the listener has several certificates, and serves the host only that the connection is for", made, host)
}

// isAddress reports whether a canonical host is an IP address, of which TLS sends no name
// (RFC 6066, section 3).
func isAddress(host string) bool {
	_, err := netip.ParseAddr(strings.Trim(host, "[]"))
	return err == nil
}

func goodMethod(m string) bool {
	return m != http.MethodTrace && m != http.MethodConnect && !strings.ContainsFunc(m, func(r rune) bool { return (r < 'A' || r > 'Z') && r != '-' && r != '_' })
}

// unread is the answer to a method that Envoy does not read from HTTP/1.1, which clients
// speak where there is no TLS.
func (x *explainer) unread(method string) *pb.ExplainOutcome {
	if x.scheme == "https" || slices.Contains(gateway.HTTP1Methods(), method) || slices.Contains(furtherMethods, method) {
		return nil
	}
	return answered(byEdge, gateway.BadProtocol, "HTTP/1.1 carries no method %q here; over HTTP/2 the edge and the routes decide", method)
}

// furtherMethods are those that Envoy reads from HTTP/1.1 beside gateway.HTTP1Methods.
var furtherMethods = []string{http.MethodTrace, http.MethodConnect}

// tooMuch are the answers to headers that are too many, and too large. Envoy counts names,
// and those that stand for the first line, too.
func (x *explainer) tooMuch(e gateway.Edge) (many, big *pb.ExplainOutcome) {
	firstLine := 3 // method, path and host
	if x.scheme == "https" {
		firstLine++ // and scheme, over HTTP/2
	}
	n, size := firstLine, len(":method:path:authority")+len(x.request.Method)+len(x.rawPath)+len(x.request.Query)+x.hostSize
	if x.hasQuery {
		size++
	}
	for name, values := range x.request.Headers {
		if strings.Contains(name, "_") && e.Underscores == pb.HeaderUnderscores_HEADER_UNDERSCORES_DROP ||
			strings.HasPrefix(name, "x-penstock-") || strings.HasPrefix(name, "x-envoy-") {
			continue // gone before
		}
		n++
		for _, v := range values {
			size += len(name) + len(v)
		}
	}
	if n > int(e.MaxHeaders) {
		many = answered(byEdge, gateway.TooManyHeaders, "%d headers with the %d of the first line, and the listener takes %d", n, firstLine, e.MaxHeaders)
	}
	if size > int(e.MaxHeadersKiB)<<10 {
		big = answered(byEdge, gateway.HeadersTooBig, "%d bytes of headers, and the listener takes %d KiB", size, e.MaxHeadersKiB)
	}
	x.size = size
	return many, big
}

// headers changes the headers as the edge does, and says why it refuses them.
func (x *explainer) headers(e gateway.Edge) *pb.ExplainOutcome {
	for _, name := range slices.Sorted(maps.Keys(x.request.Headers)) {
		switch {
		case !strings.Contains(name, "_") || e.Underscores == pb.HeaderUnderscores_HEADER_UNDERSCORES_ALLOW:
		case e.Underscores == pb.HeaderUnderscores_HEADER_UNDERSCORES_REFUSE:
			return answered(byEdge, gateway.BadHeaderName, "the edge refuses header names with _ (%s)", name)
		default:
			x.changed("%s is dropped: the edge removes headers with _ in their name", name)
			delete(x.request.Headers, name)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(x.request.Headers)) {
		if why := e.Removed(name); why != "" {
			x.changed("%s: %s", name, why)
			delete(x.request.Headers, name)
		}
	}
	return nil
}

// changed notes what the edge does to the request.
func (x *explainer) changed(format string, args ...any) {
	x.edgeRows = append(x.edgeRows, fmt.Sprintf(format, args...))
}
