package lambda

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"go.opentelemetry.io/otel/trace/noop"

	"github.com/penstock-gateway/penstock/functions/instance"
	"github.com/penstock-gateway/penstock/functions/sandbox"
)

// runtimeClient is the runtime's side, as a runtime in another language would be
// written.
type runtimeClient struct {
	t    *testing.T
	base string
}

func (c runtimeClient) do(method, path, body string, header ...string) (*http.Response, string) {
	c.t.Helper()
	r, err := http.NewRequestWithContext(c.t.Context(), method, c.base+path, strings.NewReader(body))
	if err != nil {
		c.t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		c.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		c.t.Fatal(err)
	}
	return resp, string(b)
}

func newContract(t *testing.T) (instance.Contract, runtimeClient) {
	t.Helper()
	c, err := New(Options{Handler: "app.h", Python: "python3", MaxPayload: 1000, Project: "p"})(instance.Host{
		Function: "projects/p/functions/f", Name: "f", ID: "f-1", Dir: t.TempDir(), Logger: slog.New(slog.DiscardHandler), OutputOf: func(string) {},
		Network: &sandbox.Place{},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c, runtimeClient{t, "http://" + c.Command().Env["AWS_LAMBDA_RUNTIME_API"] + "/2018-06-01/runtime/"}
}

// serve is the shim's side of one request.
func serve(t *testing.T, c instance.Contract) (*httptest.ResponseRecorder, chan error) {
	t.Helper()
	w, done := httptest.NewRecorder(), make(chan error, 1)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	inv := instance.NewInvocation("id-1", time.Now().Add(time.Minute), noop.NewTracerProvider().Tracer(""))
	go func() { done <- c.Serve(w, httptest.NewRequestWithContext(ctx, "GET", "/", nil), inv) }()
	return w, done
}

func TestRuntimeAPI(t *testing.T) {
	c, rt := newContract(t)
	w, done := serve(t, c)
	resp, event := rt.do("GET", "invocation/next", "")
	if resp.StatusCode != 200 || resp.Header.Get("Lambda-Runtime-Aws-Request-Id") != "id-1" || resp.Header.Get("Content-Type") != "application/json" || !strings.Contains(event, `"version":"2.0"`) {
		t.Fatalf("%d %v %s", resp.StatusCode, resp.Header, event)
	}
	if arn := resp.Header.Get("Lambda-Runtime-Invoked-Function-Arn"); arn != "arn:aws:lambda:us-east-1:000000000000:function:f" {
		t.Errorf("ARN %q", arn)
	}
	if err := c.WaitReady(t.Context()); err != nil {
		t.Error(err)
	}
	for _, path := range []string{"invocation/other/response", "invocation/other/error"} {
		if resp, body := rt.do("POST", path, `"x"`); resp.StatusCode != 400 || !strings.Contains(body, "InvalidRequestID") {
			t.Errorf("%s: %d %s", path, resp.StatusCode, body)
		}
	}
	if resp, body := rt.do("POST", "invocation/id-1/response", `"hello"`); resp.StatusCode != 202 {
		t.Errorf("%d %s", resp.StatusCode, body)
	}
	if err := <-done; err != nil || w.Code != 200 || w.Body.String() != "hello" {
		t.Errorf("%v %d %s", err, w.Code, w.Body)
	}
	if resp, _ := rt.do("POST", "invocation/id-1/response", `"twice"`); resp.StatusCode != 400 {
		t.Errorf("a second answer: %d", resp.StatusCode)
	}
	if resp, _ := rt.do("GET", "nothing", ""); resp.StatusCode != 404 {
		t.Errorf("an unknown path: %d", resp.StatusCode)
	}
}

func TestInitError(t *testing.T) {
	c, rt := newContract(t)
	if resp, _ := rt.do("POST", "init/error", `{"errorMessage":"no such module","errorType":"Runtime.ImportModuleError","stackTrace":[]}`); resp.StatusCode != 202 {
		t.Errorf("%d", resp.StatusCode)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel() // the process has ended, too
	if err := c.WaitReady(ctx); err == nil || !strings.Contains(err.Error(), "Runtime.ImportModuleError: no such module") {
		t.Errorf("%v", err)
	}
	c, _ = newContract(t)
	if err := c.WaitReady(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}

// TestNoAnswer: a runtime that asks for the next event has failed the last one.
func TestNoAnswer(t *testing.T) {
	c, rt := newContract(t)
	_, done := serve(t, c)
	rt.do("GET", "invocation/next", "")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() {
		r, _ := http.NewRequestWithContext(ctx, "GET", rt.base+"invocation/next", nil)
		if resp, err := http.DefaultClient.Do(r); err == nil {
			resp.Body.Close()
		}
	}()
	var f *instance.Failed
	if err := <-done; !errors.As(err, &f) || !strings.Contains(f.Detail, "without an answer") {
		t.Errorf("%v", err)
	}
}

func TestRubbishError(t *testing.T) {
	c, rt := newContract(t)
	_, done := serve(t, c)
	rt.do("GET", "invocation/next", "")
	if resp, _ := rt.do("POST", "invocation/id-1/error", "not JSON", "Lambda-Runtime-Function-Error-Type", "Custom"); resp.StatusCode != 202 {
		t.Errorf("%d", resp.StatusCode)
	}
	var f *instance.Failed
	if err := <-done; !errors.As(err, &f) || !strings.Contains(f.Detail, "Custom: an error that cannot be read") || string(f.Body) != `{"message":"Internal Server Error"}` {
		t.Errorf("%v", err)
	}
}

func TestStream(t *testing.T) {
	const plain = "application/octet-stream"
	prelude := func(s string) string { return s + strings.Repeat("\x00", 8) }
	for name, c := range map[string]struct {
		contentType, mode, body string
		status                  int
		header                  [2]string
		want, failure           string
	}{
		"prelude":         {integrationResponse, "", prelude(`{"statusCode":201,"headers":{"x-a":"b"}}`) + "body", 201, [2]string{"X-A", "b"}, "body", ""},
		"empty prelude":   {integrationResponse, "", prelude("") + "body", 200, [2]string{"Content-Type", plain}, "body", ""},
		"zeros in body":   {integrationResponse, "", prelude("{}") + "a" + strings.Repeat("\x00", 9), 200, [2]string{}, "a" + strings.Repeat("\x00", 9), ""},
		"no prelude":      {"text/event-stream", "streaming", "data: 1\n\n", 200, [2]string{"Content-Type", "text/event-stream"}, "data: 1\n\n", ""},
		"cut prelude":     {integrationResponse, "", `{"statusCode":200`, 0, [2]string{}, "", "ended in its prelude"},
		"bad prelude":     {integrationResponse, "", prelude("{]"), 0, [2]string{}, "", "a streamed answer"},
		"bad status":      {integrationResponse, "", prelude(`{"statusCode":1}`), 0, [2]string{}, "", "statusCode is 1"},
		"endless prelude": {integrationResponse, "", strings.Repeat("x", maxPrelude+10), 0, [2]string{}, "", "longer than"},
	} {
		t.Run(name, func(t *testing.T) {
			con, rt := newContract(t)
			w, done := serve(t, con)
			rt.do("GET", "invocation/next", "")
			posted := make(chan int, 1)
			go func() {
				resp, _ := rt.do("POST", "invocation/id-1/response", c.body, "Content-Type", c.contentType, "Lambda-Runtime-Function-Response-Mode", c.mode)
				posted <- resp.StatusCode
			}()
			err := <-done
			<-posted
			if c.failure != "" {
				var f *instance.Failed
				if !errors.As(err, &f) || !strings.Contains(f.Detail, c.failure) {
					t.Errorf("%v, want %q", err, c.failure)
				}
				return
			}
			if err != nil || w.Code != c.status || w.Body.String() != c.want || (c.header[0] != "" && w.Header().Get(c.header[0]) != c.header[1]) {
				t.Errorf("%v %d %v %q", err, w.Code, w.Header(), w.Body)
			}
		})
	}
}

func TestCheck(t *testing.T) {
	for _, h := range []string{"", "app", ".h", "app."} {
		if err := Check(Options{Handler: h}, t.TempDir()); err == nil || !strings.Contains(err.Error(), fmt.Sprintf("%q", h)) {
			t.Errorf("handler %q: %v", h, err)
		}
	}
	if err := Check(Options{Handler: "a/b.c.h"}, t.TempDir()); err != nil {
		t.Error(err)
	}
}

// FuzzPrelude: reading a prelude never panics and never takes bytes of the body.
func FuzzPrelude(f *testing.F) {
	f.Add([]byte("{}\x00\x00\x00\x00\x00\x00\x00\x00body"))
	f.Fuzz(func(t *testing.T, b []byte) {
		at := bytes.Index(b, make([]byte, 8))
		r := bytes.NewReader(b)
		p, err := readPrelude(bufio.NewReader(r))
		if (at >= 0) != (err == nil) || (err == nil && !bytes.Equal(p, b[:at])) {
			t.Errorf("%q: %q, %v", b, p, err)
		}
	})
}
