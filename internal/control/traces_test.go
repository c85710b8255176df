package control

import (
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// TestTraces: questions that change nothing are passed on, without the credential of who
// asks, and nothing else is.
func TestTraces(t *testing.T) {
	sock := filepath.Join(t.TempDir(), "q.sock")
	l, err := net.Listen("unix", sock)
	if err != nil {
		t.Fatal(err)
	}
	var asked *http.Request
	jaeger := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked = r
		w.Header().Set("Content-Type", "text/html")
		w.Header().Set("Set-Cookie", "a=b")
		if strings.HasSuffix(r.URL.Path, "/0") {
			w.WriteHeader(http.StatusNotFound)
		}
		_, _ = io.WriteString(w, `{"data":[]}`)
	})}
	go func() { _ = jaeger.Serve(l) }()
	t.Cleanup(func() { jaeger.Close() })
	pages, err := NewTraces("unix:" + sock)
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		method, path, passed string
		code                 int
	}{
		{"GET", "/traces/api/services", "/api/services", 200},
		{"GET", "/traces/api/services/penstock%2Fx/operations", "/api/services/penstock%2Fx/operations", 200},
		{"GET", "/traces/api/traces?service=a&limit=2", "/api/traces?service=a&limit=2", 200},
		{"GET", "/traces/api/traces/0af7651916cd43dd8448eb211c80319c", "/api/traces/0af7651916cd43dd8448eb211c80319c", 200},
		{"GET", "/traces/api/traces/0", "/api/traces/0", 404},
		{"GET", "/traces/api/traces/..", "", 404},
		{"GET", "/traces/api/traces/a%2F..%2Fx", "", 404},
		{"GET", "/traces/api/metrics/calls", "", 404},
		{"GET", "/traces/", "", 404},
		{"POST", "/traces/api/archive/1", "", 404},
		{"POST", "/traces/api/traces", "", 405},
	} {
		asked = nil
		w, r := httptest.NewRecorder(), httptest.NewRequestWithContext(t.Context(), test.method, test.path, nil)
		r.Header.Set("Authorization", "Bearer pst1_secret")
		r.Header.Set("Cookie", "c=d")
		pages.ServeHTTP(w, r)
		passed := ""
		if asked != nil {
			passed = asked.RequestURI
		}
		if w.Code != test.code || passed != test.passed {
			t.Errorf("%s %s: %d, passed on as %q; want %d, %q", test.method, test.path, w.Code, passed, test.code, test.passed)
		}
		if asked == nil {
			continue
		}
		if asked.Header.Get("Authorization")+asked.Header.Get("Cookie") != "" {
			t.Errorf("%s: Jaeger was sent %v", test.path, asked.Header)
		}
		if h := w.Header(); h.Get("Content-Type") != "application/json" || h.Get("X-Content-Type-Options") != "nosniff" || h.Get("Set-Cookie") != "" {
			t.Errorf("%s: answered with %v", test.path, h)
		}
	}
	jaeger.Close()
	w := httptest.NewRecorder()
	pages.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/traces/api/services", nil))
	if w.Code != http.StatusServiceUnavailable {
		t.Errorf("without Jaeger: %d", w.Code)
	}
}

func TestTracesFrom(t *testing.T) {
	for from, ok := range map[string]bool{
		"unix:/run/q.sock": true, "http://127.0.0.1:16686": true, "https://jaeger.example.com/base": true,
		"unix:q.sock": false, "127.0.0.1:16686": false, "file:///x": false, "http://u:p@h": false, "http://": false,
	} {
		if _, err := NewTraces(from); (err == nil) != ok {
			t.Errorf("%s: %v", from, err)
		}
	}
}

// TestTracesAreARightOfTheirOwn: spans are of all projects, so whoever reads them needs the
// right in all.
func TestTracesAreARightOfTheirOwn(t *testing.T) {
	p := start(t, t.TempDir())
	for grant, want := range map[string]int{
		"viewer@*": http.StatusNotFound, "admin@*": http.StatusNotFound, // no Jaeger is known
		"viewer@default": http.StatusForbidden, "admin@default": http.StatusForbidden, "deployer@*": http.StatusForbidden,
	} {
		role, project, _ := strings.Cut(grant, "@")
		r, err := pb.NewAccessServiceClient(p.conn).CreateToken(t.Context(), &pb.CreateTokenRequest{Token: &pb.Token{
			Name: role + "-" + strings.ReplaceAll(project, "*", "all"), Grants: []*pb.Grant{{Role: role, Project: project}},
		}})
		if err != nil {
			t.Fatal(err)
		}
		got := statusOf(t, p, http.MethodGet, "/traces/api/services", "", map[string][]string{"Authorization": {"Bearer " + r.GetSecret()}})
		if got != want {
			t.Errorf("%s: %d, want %d", grant, got, want)
		}
	}
}
