package control

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.opentelemetry.io/otel/trace/noop"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
	"github.com/penstock-gateway/penstock/internal/access"
	"github.com/penstock-gateway/penstock/internal/access/accesstest"
	"github.com/penstock-gateway/penstock/internal/access/connect"
)

// wrongCredentials are what somebody without a good one may send as authorization.
func wrongCredentials(t *testing.T, p *plane) map[string][]string {
	t.Helper()
	good, err := connect.ReadToken(connect.CredentialFile(p.owner), nil)
	if err != nil {
		t.Fatal(err)
	}
	token, err := access.ParseToken(good)
	if err != nil {
		t.Fatal(err)
	}
	token.Secret[7] ^= 1
	return map[string][]string{
		"none": nil, "empty": {""}, "no scheme": {good}, "another scheme": {"Basic " + good}, "one bit wrong": {"Bearer " + access.FormatToken(token)},
		"cut": {"Bearer " + good[:len(good)-1]}, "given twice": {"Bearer " + good, "Bearer " + good},
		"a join token": {"Bearer psj1_" + strings.TrimPrefix(good, access.TokenPrefix)}, "a JWT without a signature": {"Bearer eyJhbGciOiJub25lIn0.eyJzdWIiOiJyb290In0."},
	}
}

// TestNothingWithoutCredential: every method of every service of the API port, and
// every page of the HTTP port, is closed to callers without a good credential.
func TestNothingWithoutCredential(t *testing.T) {
	p := start(t, t.TempDir())
	conn, err := grpc.NewClient(p.addr.API.String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	var methods []string
	for service, info := range p.core.apiServer(ServeOptions{Access: accesstest.Open(t, t.TempDir()), Logger: p.core.log, TracerProvider: noop.NewTracerProvider()}).GetServiceInfo() {
		for _, m := range info.Methods {
			methods = append(methods, "/"+service+"/"+m.Name)
		}
	}
	if len(methods) < 40 {
		t.Fatalf("only %d methods", len(methods))
	}
	for what, authorization := range wrongCredentials(t, p) {
		for _, m := range append(methods, "/penstock.v1.NoService/NoMethod") {
			ctx := metadata.AppendToOutgoingContext(t.Context(), "x-penstock-caller", "root", "x-penstock-inner", `x {"Name":"local:root","Owner":true}`)
			for _, a := range authorization {
				ctx = metadata.AppendToOutgoingContext(ctx, "authorization", a) //nolint:fatcontext // all of them go into one call
			}
			code := codeOf(ctx, conn, m)
			if m == "/grpc.health.v1.Health/Check" {
				if code != codes.OK {
					t.Errorf("%s, credential %s: %s, want health to be open", m, what, code)
				}
			} else if code != codes.Unauthenticated && code != codes.ResourceExhausted {
				t.Errorf("%s, credential %s: %s", m, what, code)
			}
		}
		for path, open := range map[string]bool{
			"/readyz": true, "/livez": true, "/healthz": true, "/": false, "/metrics": false, "/openapi.json": false, "/debug/": false, "/debug/pprof/": false,
			"/debug/dump?stage=model": false, "/debug/quarantine": false, "/debug/shadow": false, "/traces/api/services": false, "/v1/status": false, "/v1/../readyz": false, "/readyz/": false,
			"//readyz": false, "/readyz/../v1/status": false, "/%72eadyz/x": false,
		} {
			code := statusOf(t, p, http.MethodGet, path, "", map[string][]string{"Authorization": authorization})
			if (code == http.StatusOK) != open || !open && code != http.StatusUnauthorized && code != http.StatusTooManyRequests && code != http.StatusForbidden {
				t.Errorf("GET %s, credential %s: %d", path, what, code)
			}
		}
	}
	// However often others fail: who has a good credential gets in.
	if _, err := pb.NewProxyServiceClient(p.conn).GetStatus(t.Context(), &pb.GetStatusRequest{}); err != nil {
		t.Errorf("the owner, after all of this: %v", err)
	}
}

// codeOf makes a call with an empty message.
func codeOf(ctx context.Context, conn *grpc.ClientConn, method string) codes.Code {
	stream, err := conn.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, method)
	if err == nil {
		if err = stream.SendMsg(&pb.GetStatusRequest{}); err == nil || errors.Is(err, io.EOF) {
			_ = stream.CloseSend()
			err = stream.RecvMsg(&pb.GetStatusResponse{})
		}
	}
	return status.Code(err)
}

func statusOf(t *testing.T, p *plane, method, path, body string, headers map[string][]string) int {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, "http://"+p.addr.HTTP.String()+"/", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	r.URL.Opaque = path // as it is, dots and all
	for name, values := range headers {
		for _, v := range values {
			r.Header.Add(name, v)
		}
	}
	resp, err := http.DefaultTransport.RoundTrip(r)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	return resp.StatusCode
}

// TestFunctionCannotBecomeRoot: the calls by which a function took over the machine
// are refused, and with what a page or a form may add, too.
func TestFunctionCannotBecomeRoot(t *testing.T) {
	p := start(t, t.TempDir())
	const evil = `{"isolation":{"level":"ISOLATION_LEVEL_NONE"},"server":{"command":["sh","-c","id"]},"source":"evil"}`
	for _, call := range []struct{ method, path, body string }{
		{"POST", "/v1/projects/default/functions?function_id=esc", evil},
		{"POST", "/v1/projects/default/routes?route_id=esc", `{"rules":[{"matches":[{"path":{"exact":"/vault"}}],"forward":{"backends":[{"backend":"functions/esc"}]}}]}`},
		{"PUT", "/v1/projects/default/secrets/dev-issuer", `{"jwks":"{\"keys\":[]}"}`},
		{"GET", "/v1/projects/-/functions", ""}, {"DELETE", "/v1/projects/default/routes/x", ""},
	} {
		for what, headers := range map[string]map[string][]string{
			"as JSON": {"Content-Type": {"application/json"}}, "as a caller of its choice": {"Content-Type": {"application/json"}, "X-Penstock-Caller": {"root"}},
			"as metadata": {"Content-Type": {"application/json"}, "Grpc-Metadata-X-Penstock-Inner": {`x {"Owner":true}`}, "Grpc-Metadata-Authorization": {"Bearer x"}},
		} {
			if code := statusOf(t, p, call.method, call.path, call.body, headers); code != http.StatusUnauthorized && code != http.StatusTooManyRequests {
				t.Errorf("%s %s %s: %d", call.method, call.path, what, code)
			}
		}
	}
	if n := p.core.Snapshot().Len(); n != 0 {
		t.Errorf("%d resources were made", n)
	}
}

// TestRESTBodies: forms, other content types and overridden methods are refused, for
// the owner, too.
func TestRESTBodies(t *testing.T) {
	p := start(t, t.TempDir())
	r := httptest.NewRequest(http.MethodGet, "/", nil)
	if err := connect.AsOwner(r, p.owner); err != nil {
		t.Fatal(err)
	}
	auth := r.Header["Authorization"]
	const path, route = "/v1/projects/default/routes?route_id=a", `{"rules":[{"matches":[{"path":{"prefix":"/a"}}],"direct_response":{"status":200}}]}`
	for _, c := range []struct {
		method, path, body string
		headers            map[string][]string
		want               int
	}{
		{"POST", path, route, map[string][]string{"Content-Type": {"application/json; charset=utf-8"}}, 200},
		{"POST", path, route, nil, 415},
		{"POST", path, route, map[string][]string{"Content-Type": {"text/plain"}}, 415},
		{"POST", path, route, map[string][]string{"Content-Type": {"application/json", "text/plain"}}, 415},
		{"POST", path, route, map[string][]string{"Content-Type": {"application/json; charset=utf-16"}}, 415},
		{"POST", path, route, map[string][]string{"Content-Type": {"application/jsonx"}}, 415},
		{"POST", path, "route_id=a", map[string][]string{"Content-Type": {"application/x-www-form-urlencoded"}}, 415},
		{"POST", "/debug/quarantine/retry?all=true", "", map[string][]string{"Content-Type": {"multipart/form-data; boundary=x"}}, 415},
		{"POST", "/v1/projects/default/routes/a", "", map[string][]string{"X-Http-Method-Override": {"DELETE"}}, 400},
		{"GET", "/v1/projects/default/routes/a", "", map[string][]string{"X-Method-Override": {"DELETE"}}, 400},
		{"GET", "/openapi.json", "", nil, 200}, {"GET", "/v1/nothing", "", nil, 404}, {"GET", "/v1/projects/default/routes/a", "", nil, 200},
	} {
		headers := map[string][]string{"Authorization": auth}
		for k, v := range c.headers {
			headers[k] = v
		}
		if code := statusOf(t, p, c.method, c.path, c.body, headers); code != c.want {
			t.Errorf("%s %s %v: %d, want %d", c.method, c.path, c.headers, code, c.want)
		}
	}
}

// TestSockets: the sockets need no credential of their owner and are closed to
// others by their mode and folder.
func TestSockets(t *testing.T) {
	p := start(t, t.TempDir())
	target := &connect.Target{Socket: p.addr.APISocket.String(), RESTSocket: p.addr.RESTSocket.String()}
	conn, err := target.Dial()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := pb.NewProxyServiceClient(conn).GetStatus(t.Context(), &pb.GetStatusRequest{}); err != nil {
		t.Error(err)
	}
	client, base, err := target.Client()
	if err != nil {
		t.Fatal(err)
	}
	resp, err := client.Get(base + "/v1/status")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		t.Error(resp.Status)
	}
	for path, mode := range map[string]os.FileMode{
		target.Socket: 0o600, target.RESTSocket: 0o600, filepath.Dir(target.Socket): 0o700, connect.CredentialFile(p.owner): 0o600,
	} {
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != mode {
			t.Errorf("%s: %v %v, want %v", path, info.Mode(), err, mode)
		}
	}
}
