package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/penstock-gateway/penstock/internal/envoytest"
	"github.com/penstock-gateway/penstock/internal/pki"
)

// remote is a control plane in a process of its own, that asks for TLS.
type remote struct {
	dataDir, api, http string
}

func startRemote(t *testing.T, more ...string) *remote {
	t.Helper()
	port := func() string { return "127.0.0.1:" + itoa(envoytest.FreePort(t)) }
	r := &remote{dataDir: t.TempDir(), api: port(), http: port()}
	cmd := penstock(t.Context(), append([]string{"control", "--data-dir", r.dataDir, "--api-tls", "--dev-issuer", "--api-listen", r.api, "--http-listen", r.http, "--xds-listen", port()}, more...)...)
	out, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(os.Interrupt)
		_ = cmd.Wait()
	})
	var seen bytes.Buffer
	b := make([]byte, 4096)
	for !strings.Contains(seen.String(), "control plane is ready") {
		n, err := out.Read(b)
		seen.Write(b[:n])
		if err != nil {
			t.Fatalf("the control plane ended: %s", &seen)
		}
	}
	go func() { _, _ = bytes.NewBuffer(nil).ReadFrom(out) }()
	return r
}

// laptop runs a command as somebody else's machine would: with a home of its own.
func (r *remote) laptop(t *testing.T, home string, env []string, args ...string) (string, error) {
	t.Helper()
	cmd := penstock(t.Context(), args...)
	cmd.Env = append(cmd.Env, "XDG_RUNTIME_DIR="+home, "PENSTOCK_CONTEXTS_FILE="+filepath.Join(home, "contexts.yaml"))
	cmd.Env = append(cmd.Env, env...)
	cmd.Dir = home
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// owner runs a command on the machine of the control plane.
func (r *remote) owner(t *testing.T, args ...string) string {
	t.Helper()
	cmd := penstock(t.Context(), append(args, "--data-dir", r.dataDir)...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %v %s%s", args, err, out, &stderr)
	}
	return strings.TrimSpace(string(out))
}

func itoa(n int) string { b, _ := json.Marshal(n); return string(b) }

// TestRemote: a pipeline and a laptop work with a control plane elsewhere, over TLS,
// with nothing but a token; nobody else does.
func TestRemote(t *testing.T) {
	r := startRemote(t)
	token := r.owner(t, "access", "token", "create", "ci", "--role", "editor", "--project", "*")
	home := t.TempDir()
	server := "PENSTOCK_SERVER=https://" + r.api
	route := filepath.Join(home, "route.yaml")
	if err := os.WriteFile(route, []byte("kind: Route\nname: a\nrules:\n- matches: [{path: {prefix: /a}}]\n  direct_response: {status: 200}\n"), 0o600); err != nil {
		t.Fatal(err)
	}

	// A pipeline: by the environment alone, and by a file.
	if out, err := r.laptop(t, home, []string{server, "PENSTOCK_TOKEN=" + token}, "apply", "-f", route, "--wait=false"); err != nil || !strings.Contains(out, "routes/a") {
		t.Fatalf("apply: %v %s", err, out)
	}
	file := filepath.Join(home, "token")
	if err := os.WriteFile(file, []byte(token+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := r.laptop(t, home, []string{server, "PENSTOCK_TOKEN_FILE=" + file}, "history"); err != nil || !strings.Contains(out, "token:ci") {
		t.Errorf("history: %v %s", err, out)
	}
	if err := os.Chmod(file, 0o644); err != nil {
		t.Fatal(err)
	}
	out, err := r.laptop(t, home, []string{server, "PENSTOCK_TOKEN_FILE=" + file}, "history")
	wantError(t, asError(err, out), "open to others", "chmod 600")

	// A laptop: a context, kept in a private file.
	if out, err := r.laptop(t, home, []string{"PENSTOCK_TOKEN=" + token}, "login", "--server", "https://"+r.api, "--http", r.http, "--name", "prod"); err != nil || !strings.Contains(out, "as token:ci") {
		t.Fatalf("login: %v %s", err, out)
	}
	if info, err := os.Stat(filepath.Join(home, "contexts.yaml")); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("contexts: %v %v", info.Mode(), err)
	}
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"get", "route", "a"}, "path:"}, {[]string{"quarantine", "list"}, "OBJECT"}, {[]string{"access", "whoami"}, "token:ci, by the token"},
		{[]string{"context", "ls"}, "prod"}, {[]string{"context", "show"}, "(not shown)"}, {[]string{"history", "--context", "prod"}, "token:ci"},
	} {
		if out, err := r.laptop(t, home, nil, c.args...); err != nil || !strings.Contains(out, c.want) || strings.Contains(out, token) {
			t.Errorf("%v: %v %s", c.args, err, out)
		}
	}
	if out, err := r.laptop(t, home, nil, "access", "can-i", "create", "secrets"); err == nil || !strings.Contains(out, "no: token:ci may not create secrets") {
		t.Errorf("can-i: %v %s", err, out)
	}
	if out, err := r.laptop(t, home, nil, "debug", "dump"); err == nil || !strings.Contains(out, "may not read debug") {
		t.Errorf("debug dump: %v %s", err, out)
	}
	if out, err := r.laptop(t, home, nil, "token", "--subject", "alice"); err == nil || !strings.Contains(out, "token:ci may not mint dev-tokens in all projects") {
		t.Errorf("token as an editor: %v %s", err, out)
	}
	minter := r.owner(t, "access", "token", "create", "minter", "--role", "admin", "--project", "*")
	jwt, err := r.laptop(t, home, []string{server, "PENSTOCK_TOKEN=" + minter}, "token", "--subject", "alice", "--claim", "plan=gold")
	if err != nil || strings.Count(jwt, ".") != 2 || strings.ContainsAny(strings.TrimSpace(jwt), " \n") {
		t.Errorf("token as an administrator: %v %s", err, jwt)
	}
	if out := r.owner(t, "audit", "ls", "-o", "json"); !strings.Contains(out, `sub=\"alice\"`) || strings.Contains(out, strings.TrimSpace(jwt)) {
		t.Errorf("the audit log does not say for whom a token was signed: %s", out)
	}

	// Others.
	out, err = r.laptop(t, t.TempDir(), []string{server}, "history")
	wantError(t, asError(err, out), "is not trusted", "PENSTOCK_CA_FILE")
	out, err = r.laptop(t, t.TempDir(), []string{server, "PENSTOCK_CA_FILE=" + filepath.Join(r.dataDir, "pki", "ca.crt")}, "history")
	wantError(t, asError(err, out), "does not know who you are", "penstock login")
	wrong := "pst1_" + strings.TrimPrefix(pinOfAnother(t), "psj1_")
	out, err = r.laptop(t, t.TempDir(), []string{server, "PENSTOCK_TOKEN=" + wrong}, "history")
	wantError(t, asError(err, out), "certificate authority is not the one of the token")
	// Without a scheme.
	out, err = r.laptop(t, t.TempDir(), []string{"PENSTOCK_SERVER=" + r.api}, "status")
	wantError(t, asError(err, out), r.api+" speaks TLS: name it with https://, as in https://"+r.api)
	if out, err := r.laptop(t, t.TempDir(), []string{"PENSTOCK_SERVER=" + r.api, "PENSTOCK_TOKEN=" + token}, "history"); err != nil {
		t.Error(out, err)
	}
	out, err = r.laptop(t, t.TempDir(), []string{"PENSTOCK_SERVER=http://192.0.2.1:7400", "PENSTOCK_TOKEN=" + token}, "history")
	wantError(t, asError(err, out), "without TLS")

	// A token that was revoked is told so, at once.
	r.owner(t, "access", "token", "revoke", "ci")
	out, err = r.laptop(t, home, nil, "history")
	wantError(t, asError(err, out), "revoked")
	if out := r.owner(t, "audit", "verify"); !strings.Contains(out, "as they were written") {
		t.Error(out)
	}
	auditOffline(t, r)
}

// auditOffline exports the audit log, and checks it and its folder where no control plane is.
func auditOffline(t *testing.T, r *remote) {
	t.Helper()
	var log struct {
		Records []struct{ Hash string }
	}
	out := r.owner(t, "audit", "ls", "-o", "json", "--limit", "1000")
	if err := json.Unmarshal([]byte(out), &log); err != nil || len(log.Records) < 2 {
		t.Fatal(out, err)
	}
	file := filepath.Join(t.TempDir(), "audit.json")
	if err := os.WriteFile(file, []byte(out), 0o600); err != nil {
		t.Fatal(err)
	}
	page := r.owner(t, "audit", "ls", "--limit", "1")
	_, hint, ok := strings.Cut(page, "older ones: penstock ")
	if !ok {
		t.Fatalf("no word of older records: %s", page)
	}
	if older := r.owner(t, strings.Fields(hint)...); strings.Contains(older, strings.Split(page, "\n")[1]) || strings.Count(older, "\n") < 2 {
		t.Errorf("older ones than\n%sare\n%s", page, older)
	}
	away := []string{"PENSTOCK_SERVER=127.0.0.1:1"}
	hash := log.Records[1].Hash
	got, err := r.laptop(t, t.TempDir(), away, "audit", "verify", file, filepath.Join(r.dataDir, "access", "audit"), "--hash", hash)
	if err != nil || strings.Count(got, "are as they were written") != 2 {
		t.Error(got, err)
	}
	got, err = r.laptop(t, t.TempDir(), away, "audit", "verify", file, "--hash", strings.Repeat("0", 64))
	wantError(t, asError(err, got), "no record has the hash")
	if err := os.WriteFile(file, []byte(strings.ReplaceAll(out, "token:ci", "token:xx")), 0o600); err != nil {
		t.Fatal(err)
	}
	got, err = r.laptop(t, t.TempDir(), away, "audit", "verify", file)
	wantError(t, asError(err, got), "the audit log was changed: record", "its hash is not that of its content")
}

func pinOfAnother(t *testing.T) string {
	t.Helper()
	ca, err := pki.OpenCA(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return ca.NewJoinToken().String()
}

func asError(err error, out string) error {
	if err == nil {
		return nil
	}
	return &exec.Error{Name: "penstock", Err: errorText(out)}
}

type errorText string

func (e errorText) Error() string { return string(e) }

// TestCertificates: over TLS a certificate of a person is a credential, those of
// proxies, runners and the control plane itself are not.
func TestCertificates(t *testing.T) {
	r := startRemote(t)
	ca, err := pki.OpenCA(filepath.Join(r.dataDir, "pki"))
	if err != nil {
		t.Fatal(err)
	}
	status := func(id string) int {
		t.Helper()
		cert, key, err := ca.Issue(pki.Request{SPIFFE: id})
		if err != nil {
			t.Fatal(err)
		}
		pair, err := tls.X509KeyPair(cert, key)
		if err != nil {
			t.Fatal(err)
		}
		client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{pair}}}}
		defer client.CloseIdleConnections()
		req, err := http.NewRequestWithContext(context.WithoutCancel(t.Context()), http.MethodGet, "https://"+r.http+"/v1/projects/default/routes", nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		return resp.StatusCode
	}
	if code := status(pki.UserID("bob")); code != http.StatusForbidden {
		t.Errorf("bob without a role: %d", code)
	}
	r.owner(t, "access", "grant", "user:bob", "viewer")
	if code := status(pki.UserID("bob")); code != http.StatusOK {
		t.Errorf("bob with a role: %d", code)
	}
	home, files := t.TempDir(), filepath.Join(t.TempDir(), "carol")
	r.owner(t, "access", "certificate", "carol", "--out", files)
	if out, err := r.laptop(t, home, nil, "login", "--server", "https://"+r.api, "--name", "prod", "--ca", filepath.Join(files, "ca.crt"),
		"--cert", filepath.Join(files, "carol.crt"), "--key", filepath.Join(files, "carol.key")); err != nil || !strings.Contains(out, "as user:carol") {
		t.Fatalf("login: %v %s", err, out)
	}
	if out, err := r.laptop(t, home, nil, "list", "routes"); err == nil || !strings.Contains(out, "user:carol may not read routes") {
		t.Errorf("without a role: %v %s", err, out)
	}
	cert, err := pki.ReadCertificate(filepath.Join(files, "carol.crt"))
	if err != nil {
		t.Fatal(err)
	}
	r.owner(t, "proxy", "revoke", "--serial", pki.Serial(cert))
	out, err := r.laptop(t, home, nil, "access", "whoami")
	wantError(t, asError(err, out), "certificate was revoked")
	for _, id := range []string{
		pki.ProxyID("default", "-", "bob"), "spiffe://" + pki.TrustDomain + "/runner/local", "spiffe://" + pki.TrustDomain + "/control",
		"spiffe://" + pki.TrustDomain + "/user/bob/x", "spiffe://" + pki.TrustDomain + "/limiter/bob",
	} {
		if code := status(id); code != http.StatusUnauthorized && code != http.StatusTooManyRequests {
			t.Errorf("%s: %d", id, code)
		}
	}
}
