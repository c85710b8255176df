package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"io"
	"io/fs"
	"math/big"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/penstock-gateway/penstock/internal/access"
	"github.com/penstock-gateway/penstock/internal/envoytest"
)

// tellsHash answers the hash of its secret, and prints that it was called.
const tellsHash = `
import hashlib, http.server, os
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = hashlib.sha256(os.environ["DB_URL"].encode()).hexdigest().encode()
        print("called", flush=True)
        self.send_response(200); self.send_header("content-length", str(len(body))); self.end_headers()
        self.wfile.write(body)
    def log_message(self, *a): pass
http.server.HTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
`

// canaryKey is a certificate for a host, its key, and a line of the key's text.
func canaryKey(t *testing.T) (chain, key, line string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "canary.example"}, DNSNames: []string{"canary.example"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	b, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	key = string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: b}))
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})), key, strings.Split(key, "\n")[2]
}

func indented(text string) string {
	return "\n    " + strings.ReplaceAll(strings.TrimSpace(text), "\n", "\n    ") + "\n"
}

// TestCanary runs the whole product with a secret for a function and a certificate, and
// looks for their values in all that it says and keeps: commands, REST, dumps, metrics,
// Envoy's configuration and statistics, traces, logs, files, and all processes of the
// machine. They are in the environment of the instance, and nowhere else.
func TestCanary(t *testing.T) {
	value := "canary-" + rand.Text()
	chain, key, keyLine := canaryKey(t)
	canaries := map[string]string{"the value of env_secrets": value, "an older value": "older-" + value[7:], "the private key": keyLine}
	in := newInstallation(t)
	source := filepath.Join(t.TempDir(), "functions")
	config := filepath.Join(t.TempDir(), "config")
	https := envoytest.FreePort(t)
	port := in.flags.gateway[strings.LastIndexByte(in.flags.gateway, ':')+1:]
	for file, text := range map[string]string{
		filepath.Join(source, "db", "app.py"): tellsHash,
		filepath.Join(config, "all.yaml"): `kind: Secret
name: db
data: {url: ` + canaries["an older value"] + `}
---
kind: Secret
name: tls
certificate:
  chain: |` + indented(chain) + `  private_key: |` + indented(key) + `---
kind: Function
name: db
server: {command: [python3, app.py], build: [sh, -c, "env; env > built"]}
source: db
env_secrets: {DB_URL: {secret: db, key: url}}
---
kind: Route
name: db
rules:
- matches: [{path: {prefix: /db}}]
  forward: {backends: [{backend: functions/db}]}
`,
		filepath.Join(config, "later", "gateway.yaml"): `kind: Gateway
name: edge
listeners:
- {name: http, address: 127.0.0.1, port: ` + port + `, protocol: HTTP, hostnames: ["*"]}
- {name: https, address: 127.0.0.1, port: ` + fmt.Sprint(https) + `, protocol: HTTPS, hostnames: [canary.example], tls: {certificates: [tls]}}
---
kind: Secret
name: db
data: {url: ` + value + `}
`,
	} {
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	said := map[string]string{"up": in.up(t, "--config", filepath.Join(config, "all.yaml"), "--functions-root", source)}
	run := func(args ...string) {
		t.Helper()
		out, err := in.run(t, append(args, "--server", in.flags.api)...)
		if err != nil && args[0] != "diff" { // which says by its status that there is a difference
			t.Errorf("%v: %v\n%s", args, err, out)
		}
		said[strings.Join(args, " ")] = out
	}
	run("diff", "-f", filepath.Join(config, "later"))
	run("apply", "-f", filepath.Join(config, "later"))
	var traceID string
	await(t, func() error { // the instance with the newer value serves
		resp, err := http.Get("http://" + in.flags.gateway + "/db")
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		traceID = resp.Header.Get("x-trace-id")
		b, err := io.ReadAll(resp.Body)
		if sum := sha256.Sum256([]byte(value)); err != nil || string(b) != hex.EncodeToString(sum[:]) {
			return fmt.Errorf("the function answers %q: %w", b, err)
		}
		return nil
	})
	for _, command := range []string{
		"get secrets/db", "get secrets/db -o yaml", "get secrets/db -o json", "get secrets/tls -o yaml", "get functions/db -o yaml", "list secrets -o json", "list functions -o yaml",
		"list functions", "history", "history secret db", "history secrets/tls -o json", "history function db", "diff 1 2", "status", "status -o json", "proxies", "fn describe db", "fn describe db -o json", "fn logs db", "fn ls",
		"explain GET http://" + in.flags.gateway + "/db",
	} {
		run(strings.Fields(command)...)
	}
	bundle := filepath.Join(t.TempDir(), "support.tar.gz")
	run("support", bundle)
	for name, text := range bundleText(t, bundle) {
		said["support: "+name] = text
	}
	if out := said["fn describe db"]; !strings.Contains(out, "DB_URL from secret db, key url") {
		t.Errorf("fn describe does not say where the variable comes from:\n%s", out)
	}
	if out := said["get secrets/db -o yaml"]; !strings.Contains(out, "(hidden)") {
		t.Errorf("get does not show the mark:\n%s", out)
	}
	credential, err := os.ReadFile(filepath.Join(in.dataDir, "access", access.CredentialFile))
	if err != nil {
		t.Fatal(err)
	}
	in.look(t, said, "http://"+in.flags.http, http.DefaultClient, strings.TrimSpace(string(credential)), "/metrics", "/v1/projects/default/secrets/db",
		"/v1/projects/default/functions/db", "/v1/revisions", "/v1/status",
		"/debug/dump?stage=model", "/debug/dump?stage=xds&view=default/-", "/debug/dump?stage=proxies", "/debug/dump?stage=instances")
	if !strings.Contains(said["/debug/dump?stage=model"], "(hidden)") {
		t.Errorf("the dump is not what it should be: %.300s", said["/debug/dump?stage=model"])
	}
	admin := &http.Client{Transport: &http.Transport{DialContext: unixDialer(filepath.Join(runDir(in.dataDir), "envoy.sock")), DisableKeepAlives: true}}
	in.look(t, said, "http://envoy", admin, "", "/config_dump?include_eds", "/stats", "/certs", "/clusters", "/listeners", "/server_info")
	if !strings.Contains(said["/config_dump?include_eds"], "projects/default/functions/db") || !strings.Contains(said["/certs"], "canary.example") {
		t.Error("Envoy has neither the function nor the certificate")
	}
	await(t, func() error { // spans take a moment
		out, err := in.run(t, "trace", traceID, "--data-dir", in.dataDir)
		said["trace"] = out
		if err != nil || !strings.Contains(out, "db") {
			return fmt.Errorf("trace: %w: %s", err, out)
		}
		return nil
	})
	pid := 0
	for where, what := range canaries {
		for text, out := range said {
			if strings.Contains(out, what) {
				t.Errorf("%s is in what `%s` says:\n%.2000s", where, text, out)
			}
		}
		found := processesHolding(t, what)
		if where == "the value of env_secrets" {
			if len(found) != 1 || !strings.HasSuffix(found[0], "/environ") {
				t.Errorf("%s is in %v, want the environment of one process", where, found)
			}
			pid = len(found)
			continue
		}
		if len(found) > 0 {
			t.Errorf("%s is in %v", where, found)
		}
	}
	if pid == 0 {
		t.Error("no process has the value")
	}
	if out, err := in.run(t, "down", "--data-dir", in.dataDir); err != nil {
		t.Fatalf("down: %v\n%s", err, out)
	}
	in.compareFiles(t)
	files := 0
	err = filepath.WalkDir(in.dataDir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		files++
		b, err := os.ReadFile(path)
		for where, what := range canaries {
			if bytes.Contains(b, []byte(what)) {
				t.Errorf("%s is in %s", where, path)
			}
		}
		return err
	})
	if err != nil || files < 10 {
		t.Errorf("%d files: %v", files, err)
	}
}

// look notes what some pages of a server say.
func (in *installation) look(t *testing.T, said map[string]string, base string, client *http.Client, token string, paths ...string) {
	t.Helper()
	for _, path := range paths {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, base+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		if token != "" {
			req.Header.Set("Authorization", "Bearer "+token)
		}
		resp, err := client.Do(req)
		if err != nil {
			t.Errorf("%s: %v", path, err)
			continue
		}
		b, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || resp.StatusCode != http.StatusOK {
			t.Errorf("%s: %s %v: %.200s", path, resp.Status, err, b)
		}
		said[path] = string(b)
	}
}

// processesHolding are the command lines and environments of the machine's processes
// that hold a text.
func processesHolding(t *testing.T, text string) (found []string) {
	t.Helper()
	for _, pattern := range []string{"/proc/[0-9]*/cmdline", "/proc/[0-9]*/environ"} {
		names, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range names {
			if b, err := os.ReadFile(name); err == nil && bytes.Contains(b, []byte(text)) {
				found = append(found, name)
			}
		}
	}
	return found
}
