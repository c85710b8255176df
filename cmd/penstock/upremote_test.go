package main

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/penstock-gateway/penstock/internal/envoytest"
	"github.com/penstock-gateway/penstock/internal/pki"
)

// TestUpRemote: `up --api-listen` beyond loopback serves with TLS only, and what it
// prints is enough for another machine to log in and work with the gateway.
func TestUpRemote(t *testing.T) {
	in := newInstallation(t)
	port := func() string { return itoa(envoytest.FreePort(t)) }
	api, rest := port(), port()
	// The name that clients use stands for the machine's own, which a test does not know.
	out := in.up(t, "--no-jaeger", "--api-listen", "0.0.0.0:"+api, "--http-listen", "0.0.0.0:"+rest, "--api-host", "127.0.0.2")
	hints := regexp.MustCompile(`(?m)^  (\S.*?)  # (here|there): `).FindAllStringSubmatch(out, -1)
	if len(hints) != 2 || !strings.Contains(out, "https://127.0.0.2:"+rest) || !strings.Contains(out, "127.0.0.2:"+api) {
		t.Fatalf("up says nothing of other machines:\n%s", out)
	}
	create := arguments(t, hints[0][1])
	var stderr bytes.Buffer
	cmd := penstock(t.Context(), create...)
	cmd.Stderr = &stderr
	token, err := cmd.Output()
	if err != nil {
		t.Fatalf("%q: %v %s", create, err, &stderr)
	}
	laptop := &remote{}
	home := t.TempDir()
	login := penstock(t.Context(), arguments(t, hints[1][1])...)
	login.Env = append(login.Env, "XDG_RUNTIME_DIR="+home, "PENSTOCK_CONTEXTS_FILE="+filepath.Join(home, "contexts.yaml"))
	login.Stdin, login.Dir = bytes.NewReader(token), home
	if said, err := login.CombinedOutput(); err != nil || !strings.Contains(string(said), "as token:laptop") {
		t.Fatalf("%q: %v %s", hints[1][1], err, said)
	}
	for _, c := range [][]string{
		{"list", "gateways"}, {"access", "whoami"}, {"debug", "dump", "--stage", "model"}, {"token", "--subject", "alice"}, {"status"},
	} {
		if said, err := laptop.laptop(t, home, nil, c...); err != nil {
			t.Errorf("%q from another machine: %v %s", c, err, said)
		}
	}
	// Without TLS nobody is talked to, whatever he knows.
	for _, url := range []string{"http://127.0.0.1:" + api + "/", "http://127.0.0.1:" + rest + "/v1/status", "http://127.0.0.1:" + rest + "/readyz"} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+strings.TrimSpace(string(token)))
		resp, err := http.DefaultClient.Do(req)
		if err == nil {
			resp.Body.Close()
		}
		if err == nil && resp.StatusCode != http.StatusBadRequest {
			t.Errorf("%s without TLS: %s", url, resp.Status)
		}
	}
	// Other clients know it by its certificate, and it by what it is called by.
	ca, err := os.ReadFile(filepath.Join(in.dataDir, "pki", "ca.crt"))
	if err != nil {
		t.Fatal(err)
	}
	roots := rootsOf(t, ca)
	for name, ok := range map[string]bool{"127.0.0.2": true, "localhost": true, "elsewhere.example": false} {
		conn, err := tls.Dial("tcp", "127.0.0.1:"+rest, &tls.Config{RootCAs: roots, ServerName: name})
		if err == nil {
			conn.Close()
		}
		if (err == nil) != ok {
			t.Errorf("known as %s: %v", name, err)
		}
	}
}

// arguments takes a printed command line of penstock apart.
func arguments(t *testing.T, line string) []string {
	t.Helper()
	words, err := splitWords(line)
	if err != nil || len(words) < 2 {
		t.Fatalf("%q: %v", line, err)
	}
	return words[1:]
}

// TestGivenCertificate: the API with a certificate of another authority, which clients
// name; a certificate without its key, or that others can read, is refused at the start.
func TestGivenCertificate(t *testing.T) {
	dir := t.TempDir()
	other, err := pki.OpenCA(filepath.Join(dir, "ca"))
	if err != nil {
		t.Fatal(err)
	}
	cert, key, err := other.EnsureFiles(dir, "given", pki.Request{SPIFFE: "spiffe://" + pki.TrustDomain + "/web", DNS: []string{"localhost"}, IPs: []net.IP{net.IPv4(127, 0, 0, 1)}})
	if err != nil {
		t.Fatal(err)
	}
	r := startRemote(t, "--api-cert", cert, "--api-key", key)
	token := r.owner(t, "access", "token", "create", "ci", "--role", "viewer", "--project", "*")
	server := "PENSTOCK_SERVER=https://" + r.api
	if out, err := r.laptop(t, t.TempDir(), []string{server, "PENSTOCK_TOKEN=" + token, "PENSTOCK_CA_FILE=" + other.CertFile()}, "history"); err != nil {
		t.Errorf("with the other authority: %v %s", err, out)
	}
	out, err := r.laptop(t, t.TempDir(), []string{server, "PENSTOCK_TOKEN=" + token}, "history")
	wantError(t, asError(err, out), "is not trusted")

	if err := os.Chmod(key, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct{ args, want []string }{
		{[]string{"--api-cert", cert}, []string{"--api-cert and --api-key go together"}},
		{[]string{"--api-key", key}, []string{"--api-cert and --api-key go together"}},
		{[]string{"--api-cert", cert, "--api-key", key}, []string{"--api-key", "open to others"}},
		{[]string{"--api-host", "a.example:7400", "--api-cert", cert}, []string{"--api-host", "without a port", "go together"}},
	} {
		for _, verb := range []string{"up", "control"} {
			said, err := penstock(t.Context(), slices.Concat([]string{verb, "--data-dir", filepath.Join(dir, verb)}, test.args)...).CombinedOutput()
			wantError(t, asError(err, string(said)), test.want...)
		}
	}
}

func rootsOf(t *testing.T, pem []byte) *x509.CertPool {
	t.Helper()
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		t.Fatal("no certificate")
	}
	return roots
}
