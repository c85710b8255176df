package gateway

import (
	"slices"
	"strings"
)

// HeaderName is the form in which the name of a header is stored and compared.
func HeaderName(h string) string { return strings.ToLower(strings.TrimSpace(h)) }

// unchangeable headers belong to the connection or are made by the proxy (RFC 9110,
// section 7.6.1): changing them breaks framing or routing.
var unchangeable = []string{
	"host", "content-length", "transfer-encoding", "connection", "keep-alive", "proxy-connection",
	"proxy-authenticate", "proxy-authorization", "te", "trailer", "upgrade",
}

// reserved prefixes are Envoy's and our own: the proxies act on them.
var reserved = []string{"x-envoy-", "x-penstock-"}

// Unchangeable says why a header may not be changed by a policy; "" when it may.
func Unchangeable(name string) string {
	if strings.HasPrefix(name, ":") {
		return "is a pseudo header; use hostnames, host_rewrite, prefix_rewrite or methods"
	}
	if slices.Contains(unchangeable, name) {
		if name == "host" {
			return "may not be changed here; use forward.host_rewrite"
		}
		return "belongs to the connection and may not be changed"
	}
	for _, r := range reserved {
		if strings.HasPrefix(name, r) {
			return "is reserved: the proxies themselves use headers that start with " + r
		}
	}
	return ""
}
