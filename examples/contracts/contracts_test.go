// Package contracts runs the example's functions, one for each contract, behind the
// real parts: the built binary, Envoy, and each contract's own runtime.
package contracts

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/penstock-gateway/penstock/internal/envoytest"
	"github.com/penstock-gateway/penstock/internal/toolbox"
)

// patience bounds the wait for builds and starts; the machine may be busy.
const patience = 2 * time.Minute

// up runs `penstock up` with the example until the test ends, and returns the
// address of the gateway.
func up(t *testing.T) (gateway string) {
	t.Helper()
	root, err := toolbox.RepoRoot()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	bin := filepath.Join(dir, "penstock")
	build(t, root, bin, "./cmd/penstock")
	example := filepath.Join(dir, "example")
	if err := os.CopyFS(example, os.DirFS(filepath.Join(root, "examples/contracts"))); err != nil {
		t.Fatal(err)
	}
	greeter := filepath.Join(example, "functions/greeter")
	build(t, greeter, "bootstrap", ".")
	// The same flags as the tests' own, so that the build cache serves both.
	file := filepath.Join(example, "config/functions.yaml")
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	b = bytes.Replace(b, []byte(`env: {CGO_ENABLED: "0"}`), []byte(`env: {CGO_ENABLED: "0", GOFLAGS: -trimpath -buildvcs=false}`), 1)
	if err := os.WriteFile(file, b, 0o600); err != nil {
		t.Fatal(err)
	}
	port := func() string { return fmt.Sprintf("127.0.0.1:%d", envoytest.FreePort(t)) }
	gateway, api := port(), port()
	run := func(ctx context.Context, args ...string) ([]byte, error) {
		c := exec.CommandContext(ctx, bin, args...)
		c.Dir, c.Env = root, append(os.Environ(), "PENSTOCK_SERVER="+api)
		return c.CombinedOutput()
	}
	data := filepath.Join(dir, "data")
	t.Cleanup(func() {
		out, err := run(context.Background(), "down", "--data-dir", data) // t.Context is done by now
		if err != nil && !strings.Contains(string(out), "not running") {
			t.Errorf("penstock down: %v\n%s", err, out)
		}
		if t.Failed() {
			log, _ := os.ReadFile(filepath.Join(data, "up.log"))
			t.Logf("up.log:\n%s", log[max(0, len(log)-30000):])
		}
	})
	out, err := run(t.Context(), "up", "-d", "--settings", os.DevNull, "--no-jaeger", "--data-dir", data, "--tools-dir", filepath.Join(root, ".tools"),
		"--config", filepath.Join(example, "config"), "--functions-root", filepath.Join(example, "functions"),
		"--gateway-listen", gateway, "--api-listen", api, "--http-listen", port(), "--xds-listen", port(), "--limiter-listen", port(), "--otlp-listen", port())
	if err != nil {
		t.Fatalf("penstock up -d: %v\n%s", err, out)
	}
	return gateway
}

func build(t *testing.T, dir, out, what string) {
	t.Helper()
	c := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-buildvcs=false", "-o", out, what)
	c.Dir, c.Env = dir, append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=")
	if b, err := c.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, b)
	}
}

// ask sends a request until the function behind it is there.
func ask(t *testing.T, method, url, body string, headers ...string) (int, string) {
	t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) {
		r, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		for i := 0; i < len(headers); i += 2 {
			r.Header.Set(headers[i], headers[i+1])
		}
		resp, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != http.StatusServiceUnavailable || time.Now().After(deadline) {
			return resp.StatusCode, string(b) + errorText(err)
		}
	}
}

func errorText(err error) string {
	if err == nil {
		return ""
	}
	return " " + err.Error()
}

func TestContracts(t *testing.T) {
	gateway := up(t)
	for _, c := range []struct {
		name, method, path, body string
		headers                  []string
		status                   int
		want                     string // a part of the answer
	}{
		{"Functions Framework, Python", "GET", "/hello?name=kettle", "", nil, 200, `"hello":"kettle"`},
		{"Functions Framework, Python, raises", "GET", "/hello?name=error", "", nil, 500, "request_id"},
		{"Functions Framework, Node.js, CloudEvent", "POST", "/events", `{"n":1}`,
			[]string{"ce-specversion", "1.0", "ce-type", "shop.order", "ce-source", "/shop", "ce-id", "1", "content-type", "application/json"}, 204, ""},
		{"Azure, custom handler", "POST", "/api/orders/7", "{}", nil, 200, `{"order": 7, "method": "POST"}`},
		{"Azure, no route", "POST", "/api/orders/seven", "{}", nil, 404, ""},
		{"Lambda, Go, REST API", "GET", "/greet/all?name=a&name=b", "", nil, 200, `{"greetings":["a","b"],"path":"/greet/all"}`},
	} {
		t.Run(c.name, func(t *testing.T) {
			status, body := ask(t, c.method, "http://"+gateway+c.path, c.body, c.headers...)
			if status != c.status || !strings.Contains(compact(body), compact(c.want)) {
				t.Errorf("%d %s, want %d %s", status, body, c.status, c.want)
			}
		})
	}
	t.Run("gRPC", func(t *testing.T) { callStock(t, gateway) })
}

func compact(s string) string {
	var b bytes.Buffer
	if json.Compact(&b, []byte(s)) != nil {
		return strings.ReplaceAll(s, " ", "")
	}
	return b.String()
}

// callStock makes each kind of call through Envoy and the shim.
func callStock(t *testing.T, gateway string) {
	conn, err := grpc.NewClient("passthrough:///"+gateway, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	var trailer metadata.MD
	var n wrapperspb.StringValue
	for deadline := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) {
		err = conn.Invoke(t.Context(), "/shop.v1.Stock/Get", wrapperspb.String("kettle"), &n, grpc.Trailer(&trailer))
		if status.Code(err) != codes.Unavailable || time.Now().After(deadline) {
			break
		}
	}
	if err != nil || n.GetValue() != "7" || strings.Join(trailer.Get("shelf"), "") != "3" {
		t.Errorf("Get: %v, %v, trailer %v", &n, err, trailer)
	}
	err = conn.Invoke(t.Context(), "/shop.v1.Stock/Get", wrapperspb.String("hose"), &n)
	if status.Code(err) != codes.NotFound || status.Convert(err).Message() != `no item "hose"` {
		t.Errorf("Get of nothing: %v", err)
	}

	watch, err := conn.NewStream(t.Context(), &grpc.StreamDesc{ServerStreams: true}, "/shop.v1.Stock/Watch")
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(watch.SendMsg(wrapperspb.String("kettle")), watch.CloseSend()); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"7", "6", "5"} {
		if err := watch.RecvMsg(&n); err != nil || n.GetValue() != want {
			t.Fatalf("Watch: %v, %v, want %s", &n, err, want)
		}
	}
	if err := watch.RecvMsg(&n); !errors.Is(err, io.EOF) {
		t.Errorf("Watch: %v at its end", err)
	}

	count, err := conn.NewStream(t.Context(), &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, "/shop.v1.Stock/Count")
	if err != nil {
		t.Fatal(err)
	}
	for _, item := range []string{"a", "b"} { // each answer before the next word
		if err := count.SendMsg(wrapperspb.String(item)); err != nil {
			t.Fatal(err)
		}
		if err := count.RecvMsg(&n); err != nil || n.GetValue() != item+": 7" {
			t.Fatalf("Count: %v, %v", &n, err)
		}
	}
	if err := count.CloseSend(); err != nil {
		t.Fatal(err)
	}
	if err := count.RecvMsg(&n); !errors.Is(err, io.EOF) {
		t.Errorf("Count: %v at its end", err)
	}
}
