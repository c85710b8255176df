package pki

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
)

func openCA(t *testing.T, dir string) *CA {
	t.Helper()
	ca, err := OpenCA(dir)
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

func mode(t *testing.T, file string) os.FileMode {
	t.Helper()
	info, err := os.Stat(file)
	if err != nil {
		t.Fatal(err)
	}
	return info.Mode().Perm()
}

func TestOpenCA(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "ca")
	var all [8]*CA
	var wg sync.WaitGroup
	for i := range all {
		wg.Go(func() { all[i], _ = OpenCA(dir) })
	}
	wg.Wait()
	for _, ca := range all {
		if ca == nil || !ca.cert.Equal(all[0].cert) {
			t.Fatal("processes that make the CA at the same time have different ones")
		}
	}
	if m := mode(t, filepath.Join(dir, "ca.key")); m != 0o600 {
		t.Errorf("key has mode %o", m)
	}
	if m := mode(t, dir); m != 0o700 {
		t.Errorf("directory has mode %o", m)
	}
	c := all[0].cert
	if !c.IsCA || c.NotAfter.Before(time.Now().AddDate(9, 11, 0)) || c.PublicKey.(*ecdsa.PublicKey).Curve != elliptic.P256() {
		t.Errorf("certificate: CA %v, until %v", c.IsCA, c.NotAfter)
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 2 {
		t.Errorf("files left over: %v, %v", entries, err)
	}

	// A process that died between key and certificate.
	if err := os.Remove(all[0].CertFile()); err != nil {
		t.Fatal(err)
	}
	if again := openCA(t, dir); !samePublicKey(again.cert.PublicKey, all[0].key.Public()) {
		t.Error("the key was replaced")
	}
}

func TestOpenCABad(t *testing.T) {
	for name, tc := range map[string]struct{ file, content, want string }{
		"key is not PEM":         {"ca.key", "hello", `ca.key: no PEM block "PRIVATE KEY"`},
		"key is garbage":         {"ca.key", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", "ca.key: "},
		"certificate is not PEM": {"ca.crt", "", `ca.crt holds no PEM block "CERTIFICATE"`},
		"certificate of another key": {"ca.crt", func() string {
			return string(openCA(t, t.TempDir()).CertPEM())
		}(), "do not belong together"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			openCA(t, dir)
			if err := os.WriteFile(filepath.Join(dir, tc.file), []byte(tc.content), 0o600); err != nil {
				t.Fatal(err)
			}
			if _, err := OpenCA(dir); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want %q in it", err, tc.want)
			}
		})
	}
	if _, err := OpenCA("/dev/null/ca"); err == nil {
		t.Error("no error for a directory that cannot be made")
	}
	leaf := t.TempDir()
	ca := openCA(t, leaf)
	cert, key, err := ca.Issue(Request{SPIFFE: "spiffe://penstock.local/control"})
	if err != nil {
		t.Fatal(err)
	}
	mustWrite(t, ca.CertFile(), cert)
	mustWrite(t, filepath.Join(leaf, "ca.key"), key)
	if _, err := OpenCA(leaf); err == nil || !strings.Contains(err.Error(), "not the certificate of a CA") {
		t.Errorf("a leaf as the CA: %v", err)
	}
}

func TestIssue(t *testing.T) {
	ca := openCA(t, t.TempDir())
	certPEM, keyPEM, err := ca.Issue(Request{
		SPIFFE: ProxyID("default", "-", "edge"), DNS: []string{"localhost"}, IPs: []net.IP{net.IPv4(127, 0, 0, 1)},
	})
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(ca.cert)
	for _, name := range []string{"localhost", "127.0.0.1"} {
		if _, err := pair.Leaf.Verify(x509.VerifyOptions{Roots: pool, DNSName: name}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if life := time.Until(pair.Leaf.NotAfter); life < 89*24*time.Hour || life > 90*24*time.Hour {
		t.Errorf("life %v, want 90 days", life)
	}
	ca.now = func() time.Time { return ca.cert.NotAfter.Add(-time.Hour) }
	certPEM, _, err = ca.Issue(Request{SPIFFE: "spiffe://penstock.local/control"})
	if err != nil {
		t.Fatal(err)
	}
	if pair.Leaf.NotAfter.After(ca.cert.NotAfter) || len(certPEM) == 0 {
		t.Error("a leaf outlives the CA")
	}

	for _, bad := range []Request{
		{}, {SPIFFE: "spiffe://other/x"}, {SPIFFE: "spiffe://penstock.local/"}, {SPIFFE: "spiffe://penstock.local/a//b"},
		{SPIFFE: "spiffe://penstock.local/a/../b"}, {SPIFFE: "spiffe://penstock.local/a?b"}, {SPIFFE: "https://penstock.local/a"},
		{SPIFFE: "spiffe://penstock.local/control", TTL: -time.Second},
	} {
		if _, _, err := ca.Issue(bad); err == nil {
			t.Errorf("no error for %+v", bad)
		}
	}
}

func TestEnsureFiles(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "certs")
	ca := openCA(t, t.TempDir())
	r := Request{SPIFFE: "spiffe://penstock.local/control", DNS: []string{"localhost"}, TTL: 9 * time.Hour}
	ensure := func() string {
		t.Helper()
		cert, key, err := ca.EnsureFiles(dir, "control", r)
		if err != nil {
			t.Fatal(err)
		}
		if m := mode(t, key); m != 0o600 {
			t.Errorf("key has mode %o", m)
		}
		b, err := os.ReadFile(cert)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	first := ensure()
	if ensure() != first {
		t.Error("a fresh certificate was replaced")
	}
	start := time.Now()
	ca.now = func() time.Time { return start.Add(5 * time.Hour) }
	if ensure() != first {
		t.Error("a certificate with half of its life left was replaced")
	}
	ca.now = func() time.Time { return start.Add(7 * time.Hour) }
	second := ensure()
	if second == first {
		t.Error("a certificate with less than a third of its life left was kept")
	}
	changes := map[string]func(){
		"other names":    func() { r.DNS = []string{"other"} },
		"other address":  func() { r.IPs = []net.IP{net.IPv4(10, 0, 0, 1)} },
		"other identity": func() { r.SPIFFE = "spiffe://penstock.local/runner/a" },
		"other CA":       func() { now := ca.now; ca = openCA(t, t.TempDir()); ca.now = now },
		"broken file":    func() { mustWrite(t, filepath.Join(dir, "control.crt"), nil) },
		"other key": func() {
			b, err := newKeyPEM()
			if err != nil {
				t.Fatal(err)
			}
			mustWrite(t, filepath.Join(dir, "control.key"), b)
		},
	}
	for name, change := range changes {
		before := ensure()
		change()
		if ensure() == before {
			t.Errorf("%s: the certificate was kept", name)
		}
	}
	if _, _, err := ca.EnsureFiles("/dev/null", "x", r); err == nil {
		t.Error("no error for a directory that cannot be made")
	}
}

func TestKeepFresh(t *testing.T) {
	dir := t.TempDir()
	ca := openCA(t, t.TempDir())
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	r := Request{SPIFFE: "spiffe://penstock.local/control", TTL: 3 * time.Second}
	go func() {
		defer close(done)
		ca.KeepFresh(ctx, slog.New(slog.DiscardHandler), dir, "c", r)
	}()
	serials := map[string]bool{}
	for deadline := time.Now().Add(20 * time.Second); len(serials) < 2; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the certificate was not renewed")
		}
		if cert, err := readCert(filepath.Join(dir, "c.crt")); err == nil {
			serials[cert.SerialNumber.String()] = true
		}
	}
	cancel()
	<-done
}

// serve starts a gRPC server that tells callers their identity in the header.
func serve(t *testing.T, conf *tls.Config) string {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer(grpc.Creds(credentials.NewTLS(conf)), grpc.UnaryInterceptor(
		func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
			id, err := PeerSPIFFE(ctx)
			if err != nil {
				return nil, err
			}
			return nil, status.Error(codes.Aborted, id)
		}))
	healthpb.RegisterHealthServer(s, health.NewServer())
	go func() { _ = s.Serve(lis) }()
	t.Cleanup(s.Stop)
	return lis.Addr().String()
}

// whoami is what the server takes the client for.
func whoami(t *testing.T, addr string, conf *tls.Config) (string, error) {
	t.Helper()
	conn, err := grpc.NewClient("passthrough:///"+addr, grpc.WithTransportCredentials(credentials.NewTLS(conf)))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_, err = healthpb.NewHealthClient(conn).Check(t.Context(), &healthpb.HealthCheckRequest{})
	if status.Code(err) == codes.Aborted {
		return status.Convert(err).Message(), nil
	}
	return "", err
}

func TestTLS(t *testing.T) {
	dir := t.TempDir()
	ca := openCA(t, filepath.Join(dir, "ca"))
	server := Request{SPIFFE: "spiffe://penstock.local/control", DNS: []string{"localhost"}}
	cert, key, err := ca.EnsureFiles(dir, "control", server)
	if err != nil {
		t.Fatal(err)
	}
	conf, err := ServerTLS(cert, key, ca.CertFile())
	if err != nil {
		t.Fatal(err)
	}
	addr := serve(t, conf)

	edge := ProxyID("default", "-", "edge")
	ccert, ckey, err := ca.EnsureFiles(dir, "edge", Request{SPIFFE: edge})
	if err != nil {
		t.Fatal(err)
	}
	client, err := ClientTLS(ccert, ckey, ca.CertFile(), "localhost")
	if err != nil {
		t.Fatal(err)
	}
	if id, err := whoami(t, addr, client); err != nil || id != edge {
		t.Errorf("got %q, %v", id, err)
	}
	if _, err := whoami(t, addr, &tls.Config{RootCAs: client.RootCAs, ServerName: "localhost"}); err == nil {
		t.Error("a client without a certificate was served")
	}
	other := client.Clone()
	other.ServerName = "elsewhere"
	if _, err := whoami(t, addr, other); err == nil {
		t.Error("the client took a server of another name")
	}

	// Both ends take new files without a restart, and keep the last good ones
	// while the new ones are broken.
	if err := os.WriteFile(key, []byte("broken"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := whoami(t, addr, client); err != nil {
		t.Errorf("with a broken key file: %v", err)
	}
	server.DNS = []string{"renamed"}
	if _, _, err := ca.EnsureFiles(dir, "control", server); err != nil {
		t.Fatal(err)
	}
	if _, _, err := ca.EnsureFiles(dir, "edge", Request{SPIFFE: ProxyID("default", "-", "edge2")}); err != nil {
		t.Fatal(err)
	}
	client.ServerName = "renamed"
	if id, err := whoami(t, addr, client); err != nil || id != ProxyID("default", "-", "edge2") {
		t.Errorf("after the replacement: %q, %v", id, err)
	}

	missing, keyAlone := filepath.Join(dir, "missing"), filepath.Join(dir, "ca", "ca.key")
	for name, files := range map[string][3]string{
		"certificate": {missing, ckey, ca.CertFile()}, "key": {ccert, missing, ca.CertFile()},
		"CA": {ccert, ckey, missing}, "CA without certificate": {ccert, ckey, keyAlone}, "key of another": {ccert, key, ca.CertFile()},
	} {
		if _, err := ServerTLS(files[0], files[1], files[2]); err == nil {
			t.Errorf("server, %s: no error", name)
		}
		if _, err := ClientTLS(files[0], files[1], files[2], ""); err == nil {
			t.Errorf("client, %s: no error", name)
		}
	}
}

func TestPeerSPIFFE(t *testing.T) {
	leaf := func(uris ...string) tls.ConnectionState {
		c := &x509.Certificate{}
		for _, u := range uris {
			parsed, err := url.Parse(u)
			if err != nil {
				t.Fatal(err)
			}
			c.URIs = append(c.URIs, parsed)
		}
		return tls.ConnectionState{VerifiedChains: [][]*x509.Certificate{{c}}, PeerCertificates: []*x509.Certificate{c}}
	}
	unverified := leaf("spiffe://penstock.local/control")
	unverified.VerifiedChains = nil
	for name, tc := range map[string]struct {
		state tls.ConnectionState
		want  string
	}{
		"good":               {leaf("spiffe://penstock.local/control"), "spiffe://penstock.local/control"},
		"not verified":       {unverified, ""},
		"no URI":             {leaf(), ""},
		"two URIs":           {leaf("spiffe://penstock.local/a", "spiffe://penstock.local/b"), ""},
		"other trust domain": {leaf("spiffe://penstock.local.evil/control"), ""},
		"user in the URI":    {leaf("spiffe://a@penstock.local/control"), ""},
		"escaped":            {leaf("spiffe://penstock.local/proxy/a%2Fb"), ""},
	} {
		ctx := peer.NewContext(t.Context(), &peer.Peer{AuthInfo: credentials.TLSInfo{State: tc.state}})
		id, err := PeerSPIFFE(ctx)
		if id != tc.want || (err == nil) != (tc.want != "") || (err != nil && status.Code(err) != codes.Unauthenticated) {
			t.Errorf("%s: %q, %v", name, id, err)
		}
	}
	for _, ctx := range []context.Context{t.Context(), peer.NewContext(t.Context(), &peer.Peer{})} {
		if _, err := PeerSPIFFE(ctx); status.Code(err) != codes.Unauthenticated {
			t.Errorf("without TLS: %v", err)
		}
	}
}

func TestParseProxyID(t *testing.T) {
	project, gateway, name, err := ParseProxyID("spiffe://penstock.local/proxy/default/-/edge-1")
	if err != nil || project != "default" || gateway != "-" || name != "edge-1" {
		t.Error(project, gateway, name, err)
	}
	for _, bad := range []string{
		"", "spiffe://penstock.local/control", "spiffe://penstock.local/runner/a", "spiffe://penstock.local/proxy/a/b",
		"spiffe://penstock.local/proxy/a/b/c/d", "spiffe://penstock.local/proxy/a//c", "spiffe://penstock.local/proxy/a/b/",
		"spiffe://penstock.local/proxy/../b/c", "spiffe://penstock.local/proxy/a/b/c?x", "spiffe://penstock.local/proxy/a/b/c#x",
		"spiffe://evil/proxy/a/b/c", "spiffe://penstock.local:80/proxy/a/b/c", "spiffe://penstock.local/proxy/a/b/" + strings.Repeat("x", 200),
	} {
		if _, _, _, err := ParseProxyID(bad); err == nil {
			t.Errorf("%q: no error", bad)
		}
	}
}

func FuzzParseProxyID(f *testing.F) {
	f.Add("spiffe://penstock.local/proxy/default/-/edge-1")
	f.Add("spiffe://penstock.local/proxy/a/b/c%2f")
	f.Fuzz(func(t *testing.T, s string) {
		project, gateway, name, err := ParseProxyID(s)
		if err == nil && ProxyID(project, gateway, name) != s {
			t.Errorf("%q is read as %q", s, ProxyID(project, gateway, name))
		}
	})
}

func mustWrite(t *testing.T, file string, b []byte) {
	t.Helper()
	if err := os.WriteFile(file, b, 0o600); err != nil {
		t.Fatal(err)
	}
}
