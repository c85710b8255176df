package connect

import (
	"context"
	"net"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"

	"github.com/penstock-gateway/penstock/internal/access"
	"github.com/penstock-gateway/penstock/internal/pki"
)

// listening is a gRPC server, and the authorization that each call came with.
func listening(t *testing.T, opts ...grpc.ServerOption) (address string, got chan []string) {
	t.Helper()
	got = make(chan []string, 10)
	s := grpc.NewServer(append(opts, grpc.UnaryInterceptor(func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
		got <- metadata.ValueFromIncomingContext(ctx, "authorization")
		return next(ctx, req)
	}))...)
	healthpb.RegisterHealthServer(s, health.NewServer())
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = s.Serve(l) }() // ends with Stop
	t.Cleanup(s.Stop)
	return l.Addr().String(), got
}

// TestScheme: without a scheme a token is sent by TLS only, to the control plane that it
// pins; a server that speaks the other protocol is named, with what to say in its place.
func TestScheme(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	for _, name := range []string{"PENSTOCK_DATA_DIR", "PENSTOCK_SERVER", "PENSTOCK_CONTEXT", "PENSTOCK_TOKEN", "PENSTOCK_TOKEN_FILE", "PENSTOCK_CA_FILE", "PENSTOCK_CERT_FILE", "PENSTOCK_KEY_FILE"} {
		t.Setenv(name, "")
	}
	t.Setenv("XDG_RUNTIME_DIR", dir)
	ca, err := pki.OpenCA(filepath.Join(dir, "pki"))
	if err != nil {
		t.Fatal(err)
	}
	cert, key, err := ca.EnsureFiles(dir, "control", pki.Request{SPIFFE: controlSPIFFE, IPs: []net.IP{net.IPv4(127, 0, 0, 1)}})
	if err != nil {
		t.Fatal(err)
	}
	config, err := pki.JoinServerTLS(cert, key, ca.CertFile())
	if err != nil {
		t.Fatal(err)
	}
	token := access.FormatToken(access.NewToken(ca.Hash()))
	plain, gotPlain := listening(t)
	secure, gotSecure := listening(t, grpc.Creds(credentials.NewTLS(config)))
	for _, c := range []struct {
		server, token string
		got           chan []string // nil: nothing arrives
		want          string        // of the error; "": none
	}{
		{plain, "", gotPlain, ""},
		{"http://" + plain, token, gotPlain, ""},
		{plain, token, nil, plain + " does not speak TLS, and a credential is sent without it only to a server of this machine that is named with http://, as in http://" + plain + " ("},
		{"https://" + plain, token, nil, plain + " does not speak TLS"},
		{secure, token, gotSecure, ""},
		{"https://" + secure, token, gotSecure, ""},
		{secure, "", nil, secure + " speaks TLS: name it with https://, as in https://" + secure + " ("},
	} {
		t.Setenv("PENSTOCK_TOKEN", c.token)
		target, err := Find(Where{Server: c.server})
		if err != nil {
			t.Fatalf("%s: %v", c.server, err)
		}
		conn, err := target.Dial()
		if err != nil {
			t.Fatal(err)
		}
		_, err = healthpb.NewHealthClient(conn).Check(t.Context(), &healthpb.HealthCheckRequest{})
		conn.Close()
		if (err == nil) != (c.want == "") || err != nil && !strings.HasPrefix(WrongScheme(err.Error()), c.want) {
			t.Errorf("%s, with a token %v: %v, want %q", c.server, c.token != "", err, c.want)
		}
		if c.got == nil {
			continue
		}
		want := ""
		if c.token != "" {
			want = "Bearer " + c.token
		}
		if got := strings.Join(<-c.got, ","); got != want {
			t.Errorf("%s: authorization %q, want %q", c.server, got, want)
		}
	}
	if len(gotPlain)+len(gotSecure) > 0 {
		t.Error("more calls have arrived")
	}
	// A context is called in the same way.
	x := &Context{Server: plain, Token: token}
	target, err := x.Target()
	if err != nil || target.TLS == nil {
		t.Errorf("a context with a token: %+v, %v", target, err)
	}
}

// TestWrongScheme: no other error is taken for one of these.
func TestWrongScheme(t *testing.T) {
	for _, text := range []string{"", "it speaks TLS: name it with https://, as in https://", "a:1 speaks TLS: name it with https://, as in https://b:2", "connection error"} {
		if got := WrongScheme(text); got != "" {
			t.Errorf("%q: %q", text, got)
		}
	}
}
