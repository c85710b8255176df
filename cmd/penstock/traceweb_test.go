package main

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// TestTraceWeb: the page is for everybody and has nothing in it; traces are for who has
// the secret of the link, by the name of the page alone.
func TestTraceWeb(t *testing.T) {
	asked := ""
	web := &tracesWeb{secret: "s3cret", host: "127.0.0.1:9", get: func(_ context.Context, path string) (*http.Response, error) {
		asked = path
		if strings.HasSuffix(path, "/0") {
			return nil, &refusedCall{status: http.StatusForbidden, text: "no right"}
		}
		return &http.Response{StatusCode: http.StatusOK, Body: io.NopCloser(strings.NewReader(`{"data":["spans"]}`))}, nil
	}}
	const right = "Bearer s3cret"
	for _, test := range []struct {
		what, method, host, path, authorization string
		code                                    int
		passed                                  string
	}{
		{"the page", "GET", "127.0.0.1:9", "/", "", 200, ""},
		{"the page of a trace", "GET", "127.0.0.1:9", "/trace/0af7", "", 200, ""},
		{"traces", "GET", "127.0.0.1:9", "/api/traces?service=a", right, 200, "/api/traces?service=a"},
		{"traces that the caller may not read", "GET", "127.0.0.1:9", "/api/traces/0", right, 403, "/api/traces/0"},
		{"no secret", "GET", "127.0.0.1:9", "/api/services", "", 401, ""},
		{"a wrong secret", "GET", "127.0.0.1:9", "/api/services", "Bearer s3cre", 401, ""},
		{"the secret in the query", "GET", "127.0.0.1:9", "/api/services?secret=s3cret", "", 401, ""},
		{"another name (DNS rebinding)", "GET", "evil.example:9", "/api/services", right, 421, ""},
		{"another name, the page", "GET", "localhost:9", "/", "", 421, ""},
		{"a form", "POST", "127.0.0.1:9", "/api/services", right, 405, ""},
	} {
		asked = ""
		w, r := httptest.NewRecorder(), httptest.NewRequestWithContext(t.Context(), test.method, test.path, nil)
		r.Host = test.host
		if test.authorization != "" {
			r.Header.Set("Authorization", test.authorization)
		}
		web.ServeHTTP(w, r)
		if w.Code != test.code || asked != test.passed {
			t.Errorf("%s: %d, asked %q; want %d, %q", test.what, w.Code, asked, test.code, test.passed)
		}
		if strings.Contains(w.Body.String(), "spans\"]") != (test.code == 200 && test.passed != "") || strings.Contains(w.Body.String(), "s3cret") {
			t.Errorf("%s: %s", test.what, w.Body.String())
		}
		if h := w.Header(); h.Get("Access-Control-Allow-Origin") != "" || !strings.Contains(h.Get("Content-Security-Policy"), "frame-ancestors 'none'") {
			t.Errorf("%s: %v", test.what, h)
		}
	}
}

func TestTraceWebAddress(t *testing.T) {
	for address, ok := range map[string]bool{
		"127.0.0.1:0": true, "localhost:1": true, "[::1]:0": true,
		"0.0.0.0:0": false, ":0": false, "192.0.2.1:0": false, "127.0.0.1": false,
	} {
		if _, err := loopbackAddress(address); (err == nil) != ok {
			t.Errorf("%s: %v", address, err)
		}
	}
}
