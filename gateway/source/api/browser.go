package api

import (
	"mime"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"

	"google.golang.org/grpc/codes"
)

// Guarded refuses requests that a web page in the user's browser could have made:
// a Host that is not an address, localhost or one of hosts (DNS rebinding), an
// Origin other than the server's own, a form, and methods that are overridden. None
// of this is the lock, which is the credential: a browser may hold a client
// certificate and send it unasked.
func Guarded(next http.Handler, hosts ...string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if code, why := refused(r, hosts); code != 0 {
			rpc := codes.PermissionDenied
			if code != http.StatusForbidden {
				rpc = codes.InvalidArgument
			}
			WriteProblem(w, code, rpc, why)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// refused says why a request is; code 0: it is not.
func refused(r *http.Request, hosts []string) (code int, why string) {
	host, _, err := net.SplitHostPort(r.Host)
	if err != nil {
		host = strings.TrimSuffix(strings.TrimPrefix(r.Host, "["), "]")
	}
	if _, err := netip.ParseAddr(host); err != nil && !known(host, hosts) {
		return http.StatusForbidden, "the Host header must be an IP address, localhost or a name of this server's certificate: " +
			"another name could be pointed here by somebody else's DNS"
	}
	// Browsers say where a request comes from even where they send no Origin.
	if site := r.Header.Get("Sec-Fetch-Site"); site != "" && site != "same-origin" && site != "none" {
		return http.StatusForbidden, "requests from pages of another site are refused"
	}
	if o := r.Header.Get("Origin"); o != "" {
		if u, err := url.Parse(o); err != nil || u.Host != r.Host {
			return http.StatusForbidden, "requests from pages of another origin are refused"
		}
	}
	for _, h := range []string{"X-Http-Method-Override", "X-Http-Method", "X-Method-Override"} {
		if r.Header.Get(h) != "" {
			return http.StatusBadRequest, "the header " + h + " is refused: send the method itself"
		}
	}
	return badBody(r)
}

// badBody refuses bodies that are not JSON: a page may send forms and plain text to
// any address without asking.
func badBody(r *http.Request) (code int, why string) {
	types := r.Header.Values("Content-Type")
	if len(types) == 0 && r.ContentLength == 0 {
		return 0, ""
	}
	if len(types) == 1 {
		t, params, err := mime.ParseMediaType(types[0])
		charset, has := params["charset"]
		if err == nil && t == "application/json" && (!has || strings.EqualFold(charset, "utf-8")) {
			return 0, ""
		}
	}
	return http.StatusUnsupportedMediaType, "the body must be JSON, with the header \"content-type: application/json\""
}

func known(host string, hosts []string) bool {
	if strings.EqualFold(host, "localhost") {
		return true
	}
	for _, h := range hosts {
		if strings.EqualFold(host, h) {
			return true
		}
	}
	return false
}
