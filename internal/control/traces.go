package control

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/penstock-gateway/penstock/gateway/source/api"
	"github.com/penstock-gateway/penstock/internal/socket"
)

// NewTraces makes the pages below /traces/, which pass questions on to the query API of
// a Jaeger. That asks nobody who he is; the guard in front of these pages does. from is
// unix:/PATH, or an address that begins with http:// or https://.
func NewTraces(from string) (http.Handler, error) {
	t := &tracesPages{base: "http://jaeger", client: &http.Client{
		Timeout: tracesTimeout,
		// What a redirect names is not what was asked for.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
	if path, ok := socket.Of(from); ok {
		t.client.Transport = &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", path)
		}}
		return t, socket.Check(from)
	}
	u, err := url.Parse(from)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.RawQuery != "" || u.User != nil {
		return nil, fmt.Errorf("%q is neither unix:/PATH nor http://HOST:PORT", from)
	}
	t.base = strings.TrimSuffix(from, "/")
	return t, nil
}

// tracesTimeout bounds one question.
const tracesTimeout = 30 * time.Second

// traces answers 404 where no Jaeger is known.
func traces(known http.Handler) http.Handler {
	if known != nil {
		return known
	}
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		api.WriteProblem(w, http.StatusNotFound, codes.NotFound, "this control plane knows no Jaeger whose traces it could show: start it with --traces-from")
	})
}

type tracesPages struct {
	client *http.Client
	base   string
}

// tracesAPI are the questions that are passed on: none of them changes anything.
var tracesAPI = regexp.MustCompile(`^/api/(services(/[^/]+/operations)?|operations|dependencies|traces(/[0-9A-Fa-f]{1,32})?)$`)

// ServeHTTP implements http.Handler. Only the path and the query of a request are passed
// on, neither its headers nor its credential.
func (t *tracesPages) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	path := strings.TrimPrefix(r.URL.EscapedPath(), "/traces")
	switch {
	case !tracesAPI.MatchString(path):
		api.WriteProblem(w, http.StatusNotFound, codes.NotFound, "below /traces/ is Jaeger's query API: /traces/api/services, /traces/api/traces?service=NAME, /traces/api/traces/ID")
		return
	case r.Method != http.MethodGet:
		w.Header().Set("Allow", http.MethodGet)
		api.WriteProblem(w, http.StatusMethodNotAllowed, codes.Unimplemented, "traces can be read only")
		return
	}
	if r.URL.RawQuery != "" {
		path += "?" + r.URL.RawQuery
	}
	q, err := http.NewRequestWithContext(r.Context(), http.MethodGet, t.base+path, nil)
	if err != nil {
		api.WriteProblem(w, http.StatusBadRequest, codes.InvalidArgument, err.Error())
		return
	}
	resp, err := t.client.Do(q)
	if err != nil {
		api.WriteProblem(w, http.StatusServiceUnavailable, codes.Unavailable, "Jaeger does not answer: under `penstock up` it joins when its build is done, and `penstock status` says so")
		return
	}
	defer resp.Body.Close()
	// Whatever it says: what spans hold comes from callers, and no browser may take it
	// for a page.
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(resp.StatusCode)
	_, _ = io.Copy(w, resp.Body)
}
