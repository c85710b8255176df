package gateway

import (
	"cmp"
	"net/netip"
	"regexp"
	"slices"
	"strings"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// Defaults of an edge profile.
const (
	DefaultMaxHeaders    = 100
	DefaultMaxHeadersKiB = 60
	// HeadersRoomKiB is how many KiB of headers Envoy reads beyond what is served, so that
	// what is too large gets an answer in HTTP/2, too, and not a reset.
	HeadersRoomKiB = 64
)

// Edge is the edge profile of a listener with its defaults filled in. Its zero value
// refuses or merges whatever can be read in two ways.
type Edge struct {
	KeepSlashes, DecodeSlashes bool
	KeepSemicolons             bool
	KeepRepeated               bool
	Underscores                pb.HeaderUnderscores
	RequestIDs                 pb.ClientRequestIds
	MaxHeaders, MaxHeadersKiB  uint32
	// Scheme is what x-forwarded-proto says in every request: that of the connection.
	// "" where proxies in front of the gateway may say it, or it is not known.
	Scheme string
	// StrictSNI serves the host only that the TLS connection was made for: the listener
	// has several certificates, and which one a client saw follows from that name.
	StrictSNI bool
}

// EdgeOf is the edge profile of a listener.
func EdgeOf(l *pb.Listener) Edge {
	e := l.GetEdge()
	scheme := ""
	if l.GetTrustedHops() == 0 {
		scheme = "http"
		if l.GetProtocol() == pb.ListenerProtocol_LISTENER_PROTOCOL_HTTPS {
			scheme = "https"
		}
	}
	return Edge{
		Scheme:         scheme,
		StrictSNI:      len(l.GetTls().GetCertificates()) > 1,
		KeepSlashes:    e.GetEncodedSlashes() == pb.EncodedSlashes_ENCODED_SLASHES_KEEP,
		DecodeSlashes:  e.GetEncodedSlashes() == pb.EncodedSlashes_ENCODED_SLASHES_DECODE,
		KeepSemicolons: e.GetSemicolons() == pb.Semicolons_SEMICOLONS_KEEP,
		KeepRepeated:   e.GetRepeatedSlashes() == pb.RepeatedSlashes_REPEATED_SLASHES_KEEP,
		Underscores:    cmp.Or(e.GetHeaderUnderscores(), pb.HeaderUnderscores_HEADER_UNDERSCORES_DROP),
		RequestIDs:     cmp.Or(e.GetRequestIds(), pb.ClientRequestIds_CLIENT_REQUEST_IDS_KEEP),
		MaxHeaders:     cmp.Or(e.GetMaxHeaders(), DefaultMaxHeaders),
		MaxHeadersKiB:  cmp.Or(e.GetMaxHeadersKib(), DefaultMaxHeadersKiB),
	}
}

// ServerNames are the hosts of an HTTPS listener that a client must name one of in the TLS
// handshake (RFC 6066, section 3): a connection for another host, or for none, gets no
// certificate. nil where every connection gets one, because the listener serves any host, or
// one that is an IP address, of which clients send no name.
func ServerNames(l *pb.Listener) []string {
	if l.GetProtocol() != pb.ListenerProtocol_LISTENER_PROTOCOL_HTTPS {
		return nil
	}
	for _, h := range l.GetHostnames() {
		if _, err := netip.ParseAddr(h); err == nil || h == "*" {
			return nil
		}
	}
	return slices.Sorted(slices.Values(l.GetHostnames()))
}

// NamesServer reports whether one of the names is a host, or a wildcard for it.
func NamesServer(names []string, host string) bool {
	return slices.ContainsFunc(names, func(n string) bool {
		suffix, wildcard := strings.CutPrefix(n, "*")
		return n == host || wildcard && len(host) > len(suffix) && strings.HasSuffix(host, suffix)
	})
}

// Keeps reports whether paths are sent on that backends may read in several ways.
func (e Edge) Keeps() bool { return e.KeepSlashes || e.KeepSemicolons || e.KeepRepeated }

var (
	encodedSlash     = regexp.MustCompile(`%2[fF]|%5[cC]`)
	encodedSemicolon = regexp.MustCompile(`%3[bB]`)
	semicolons       = regexp.MustCompile(`;|%3[bB]`)
	parameters       = regexp.MustCompile(`;[^/]*`)
	repeatedSlashes  = regexp.MustCompile(`//+`)
	dotSegment       = regexp.MustCompile(`/\.\.?(/|$)`)
)

// Reading is the other path that a backend may take a normalized path for: with its
// encoded slashes or backslashes decoded, without the parameters of its segments, or
// with its slashes merged. ok is false when it has a dot segment, so that it leads
// out of where the path seems to be, and for a path with two of these kinds, which
// has too many readings. The compiler does the same in the proxy (readingScript).
func (e Edge) Reading(path string) (reading string, ok bool) {
	reading, kinds := path, 0
	if e.KeepSlashes {
		for _, codes := range [][2]string{{"%2f", "%2F"}, {"%5c", "%5C"}} {
			if p := strings.NewReplacer(codes[0], "/", codes[1], "/").Replace(path); p != path {
				reading, kinds = p, kinds+1
			}
		}
	}
	if e.KeepSemicolons {
		if p := parameters.ReplaceAllString(encodedSemicolon.ReplaceAllString(path, ";"), ""); p != path {
			reading, kinds = p, kinds+1
		}
	}
	if e.KeepRepeated && strings.Contains(path, "//") {
		kinds++
	}
	if kinds == 0 {
		return path, true
	}
	reading = repeatedSlashes.ReplaceAllString(reading, "/")
	return reading, kinds == 1 && !dotSegment.MatchString(reading)
}

// Ambiguous reports whether the edge refuses a request because its path could be
// read in a way that leads to another rule than found, or to none. r is as it was
// when found was found.
func (e Edge) Ambiguous(h *Host, r *Request, found *Entry) bool {
	reading, ok := e.Reading(r.Path)
	if reading == r.Path || !ok {
		return !ok
	}
	other := *r
	other.Path = reading
	x := h.Find(&other)
	return (x == nil) != (found == nil) || x != nil && (x.Route != found.Route || x.RuleName != found.RuleName)
}

// Removed says why no match sees a header as a client sent it, for headers of which
// that is so on every listener: the edge removes or replaces them. "" for others.
func Removed(header string) string {
	for _, prefix := range reserved {
		if strings.HasPrefix(header, prefix) {
			return "the edge removes headers that start with " + prefix
		}
	}
	if slices.Contains(ClientHeaders, header) {
		return "the edge removes it from every request, because only proxies in front of the gateway, or the gateway itself, may say it"
	}
	return ""
}

// Removed is Removed for a listener with this profile. A header whose name has "_" reaches
// routes when the listener allows it, unless a server would take it for one that the
// gateway vouches for.
func (e Edge) Removed(header string) string {
	why := Removed(header)
	if why != "" || !strings.Contains(header, "_") {
		return why
	}
	if e.Underscores != pb.HeaderUnderscores_HEADER_UNDERSCORES_ALLOW {
		return "the listener takes no headers with _ in their name; use -, or let edge.header_underscores of the listener allow them"
	}
	if twin := strings.ReplaceAll(header, "_", "-"); Removed(twin) != "" || slices.Contains(Vouched, twin) {
		return "the edge removes it, because servers take it for " + twin
	}
	return ""
}

// Vouched are the headers that Envoy or the edge sets anew in every request, for which no
// header with "_" may pass.
var Vouched = []string{"x-forwarded-for", "x-forwarded-proto", "x-request-id", "x-forwarded-client-cert"}

// ClientHeaders are removed from every request: what only proxies before the gateway
// or the gateway itself may say, and what makes a backend see another request than
// the one that was authorised. x-forwarded-for and -proto are Envoy's business.
// "proxy" becomes HTTP_PROXY in CGI, which HTTP clients obey (CVE-2016-5385). The last
// ones say who the user is, unsigned: applications, and handlers written for a cloud,
// believe them because a proxy that signs users in, or the cloud, takes them off what
// clients send (oauth2-proxy, Azure App Service, Google's IAP, AWS's load balancers).
var ClientHeaders = []string{
	"forwarded", "x-forwarded-host", "x-forwarded-uri", "x-forwarded-prefix", "x-forwarded-path", "x-forwarded-method",
	"x-forwarded-server", "x-forwarded-port", "x-forwarded-scheme", "x-forwarded-ssl", "x-original-forwarded-for", "front-end-https",
	"x-real-ip", "true-client-ip", "x-client-ip", "cf-connecting-ip", "x-cluster-client-ip", "x-host",
	"x-http-method-override", "x-http-method", "x-method-override",
	"x-original-url", "x-original-uri", "x-original-host", "x-original-method", "x-rewrite-url",
	"x-trace-id", "x-cold-start", "proxy",
	"remote-user", "x-remote-user", "x-remote-group", "x-forwarded-user", "x-forwarded-email", "x-forwarded-groups",
	"x-forwarded-preferred-username", "x-forwarded-access-token",
	"x-ms-client-principal", "x-ms-client-principal-id", "x-ms-client-principal-name", "x-ms-client-principal-idp",
	"x-goog-authenticated-user-email", "x-goog-authenticated-user-id", "x-amzn-oidc-identity", "x-amzn-oidc-accesstoken",
}
