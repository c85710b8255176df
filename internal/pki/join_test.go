package pki

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

func TestJoinToken(t *testing.T) {
	ca := openCA(t, t.TempDir())
	a, b := ca.NewJoinToken(), ca.NewJoinToken()
	if a.Secret == b.Secret || a.CA != b.CA {
		t.Error("two tokens have the same secret or different authorities")
	}
	text := a.String()
	if got, err := ParseJoinToken(" " + text + "\n"); err != nil || got != a {
		t.Errorf("%v %v", got, err)
	}
	for i := range len(text) {
		for _, bad := range []string{text[:i], text[:i] + text[i+1:], text[:i] + "!" + text[i+1:], text[:i] + flip(text[i]) + text[i+1:]} {
			if _, err := ParseJoinToken(bad); err == nil {
				t.Fatalf("no error for %q instead of %q", bad, text)
			} else if len(bad) > 10 && strings.Contains(err.Error(), bad[5:]) {
				t.Fatalf("the error repeats the token: %v", err)
			}
		}
	}
}

func flip(c byte) string {
	if c == 'A' {
		return "B"
	}
	return "A"
}

func FuzzParseJoinToken(f *testing.F) {
	f.Add(JoinToken{}.String())
	f.Add("psj1_")
	f.Add("")
	f.Fuzz(func(t *testing.T, s string) {
		token, err := ParseJoinToken(s)
		if err == nil && token.String() != strings.TrimSpace(s) {
			t.Errorf("%q is read as %q", s, token)
		}
	})
}

func TestParseSerial(t *testing.T) {
	for in, want := range map[string]string{
		"0A:BC": "abc", "abc": "abc", " 00abc ": "abc", "1": "1",
		"": "", "0": "", "-1": "", "+1": "", "0x1": "", "g": "", "1_0": "", strings.Repeat("f", 43): "",
	} {
		got, err := ParseSerial(in)
		if got != want || (err == nil) != (want != "") {
			t.Errorf("%q: %q, %v, want %q", in, got, err, want)
		}
	}
}

// handshake connects a client to a server of the configuration.
func handshake(t *testing.T, server, client *tls.Config) error {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		if conn, err := l.Accept(); err == nil {
			_ = tls.Server(conn, server).HandshakeContext(t.Context())
			conn.Close()
		}
	})
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	conn, err := (&tls.Dialer{Config: client}).DialContext(ctx, "tcp", l.Addr().String())
	if err == nil {
		conn.Close()
	}
	return err
}

// TestJoinTLS: a client that knows only the hash of the CA knows a server of that
// CA, and no other.
func TestJoinTLS(t *testing.T) {
	const control = "spiffe://penstock.local/control"
	dir := t.TempDir()
	ca := openCA(t, dir)
	serve := func(ca *CA, spiffe string) *tls.Config {
		cert, key, err := ca.EnsureFiles(t.TempDir(), "s", Request{SPIFFE: spiffe})
		if err != nil {
			t.Fatal(err)
		}
		c, err := JoinServerTLS(cert, key, ca.CertFile())
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	token := ca.NewJoinToken()
	if err := handshake(t, serve(ca, control), JoinTLS(token, control)); err != nil {
		t.Error(err)
	}
	other := openCA(t, t.TempDir())
	if err := handshake(t, serve(other, control), JoinTLS(token, control)); !errors.Is(err, ErrPin) {
		t.Errorf("another CA: %v", err)
	}
	if err := handshake(t, serve(ca, ProxyID("default", "-", "a")), JoinTLS(token, control)); err == nil || !strings.Contains(err.Error(), "want "+control) {
		t.Errorf("another proxy of the same CA as the server: %v", err)
	}
	// A server of another CA that shows the pinned certificate as well.
	mixed := serve(other, control)
	forClient := mixed.GetConfigForClient
	mixed.GetConfigForClient = func(h *tls.ClientHelloInfo) (*tls.Config, error) {
		c, err := forClient(h)
		c.Certificates[0].Certificate = append(c.Certificates[0].Certificate, ca.cert.Raw)
		return c, err
	}
	if err := handshake(t, mixed, JoinTLS(token, control)); err == nil {
		t.Error("a server that shows the pinned certificate without being of it")
	}

	// With a certificate the same server is known by its id.
	files := t.TempDir()
	cert, key, err := ca.EnsureFiles(files, "p", Request{SPIFFE: ProxyID("default", "-", "a")})
	if err != nil {
		t.Fatal(err)
	}
	client, err := ProxyTLS(cert, key, ca.CertFile(), control)
	if err != nil {
		t.Fatal(err)
	}
	if err := handshake(t, serve(ca, control), client); err != nil {
		t.Error(err)
	}
	if err := handshake(t, serve(other, control), client); err == nil {
		t.Error("a server of another CA")
	}
}

func TestSignRequest(t *testing.T) {
	ca := openCA(t, t.TempDir())
	id := ProxyID("default", "-", "a")
	csr, key, err := NewRequest(id)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := ca.SignRequest(csr, Request{SPIFFE: id, TTL: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := ParsePair(cert, key, ca.CertPEM(), time.Now())
	if err != nil || leaf.URIs[0].String() != id || leaf.IsCA {
		t.Errorf("%v %v", leaf, err)
	}
	if _, err := ca.SignRequest(csr, Request{SPIFFE: ProxyID("default", "-", "b")}); err == nil {
		t.Error("no error for another identity")
	}
	_, otherKey, err := NewRequest(id)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ParsePair(cert, otherKey, ca.CertPEM(), time.Now()); err == nil {
		t.Error("no error for another key")
	}
	if _, err := ParsePair(cert, key, openCA(t, t.TempDir()).CertPEM(), time.Now()); err == nil {
		t.Error("no error for another CA")
	}
	if _, err := ParsePair(cert, key, ca.CertPEM(), time.Now().Add(2*time.Hour)); err == nil {
		t.Error("no error for an expired certificate")
	}
	if _, _, err := NewRequest("spiffe://elsewhere/x"); err == nil {
		t.Error("no error for an id of another trust domain")
	}
}

// TestReplaceSet: readers see all old or all new files, and old folders go.
func TestReplaceSet(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "p")
	write := func(v string) {
		t.Helper()
		if err := ReplaceSet(dir, map[string][]byte{"p.crt": []byte(v), "p.key": []byte(v)}); err != nil {
			t.Fatal(err)
		}
	}
	write("0")
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			gen, err := filepath.EvalSymlinks(filepath.Join(dir, "current"))
			if err != nil {
				t.Error(err)
				return
			}
			a, errA := os.ReadFile(filepath.Join(gen, "p.crt"))
			b, errB := os.ReadFile(filepath.Join(gen, "p.key"))
			if errA == nil && errB == nil && string(a) != string(b) {
				t.Errorf("saw %q with %q", a, b)
			}
		}
	})
	for i := range 30 {
		write(strings.Repeat("x", i))
	}
	close(stop)
	wg.Wait()
	sets, err := filepath.Glob(filepath.Join(dir, "set-*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, g := range sets {
		if err := os.Chtimes(g, time.Time{}, time.Now().Add(-time.Hour)); err != nil {
			t.Fatal(err)
		}
	}
	write("last")
	if b, err := os.ReadFile(filepath.Join(dir, "p.key")); err != nil || string(b) != "last" {
		t.Errorf("%q %v", b, err)
	}
	if m := mode(t, filepath.Join(dir, "p.key")); m != 0o600 {
		t.Errorf("key has mode %o", m)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	// current, the two names, and two folders.
	if len(names) != 5 || slices.ContainsFunc(names, func(n string) bool { return strings.HasPrefix(n, ".") }) {
		t.Errorf("left: %v", names)
	}

	// Files of an earlier way are replaced; a folder in the way is an error that
	// names it.
	plain := t.TempDir()
	if err := os.WriteFile(filepath.Join(plain, "p.crt"), []byte("plain"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := ReplaceSet(plain, map[string][]byte{"p.crt": []byte("set")}); err != nil {
		t.Error(err)
	}
	blocked := t.TempDir()
	if err := os.Mkdir(filepath.Join(blocked, "current"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := ReplaceSet(blocked, map[string][]byte{"p.crt": nil}); err == nil || !strings.Contains(err.Error(), "current") {
		t.Errorf("a folder named current: %v", err)
	}
	if err := ReplaceSet("/dev/null/x", nil); err == nil {
		t.Error("no error for a folder that cannot be made")
	}
}
