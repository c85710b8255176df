package main

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/penstock-gateway/penstock/xds/keeper"
)

// statusOf is the status of a GET of the gateway; 0: no answer.
func (in *installation) statusOf(t *testing.T, path string) int {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+in.flags.gateway+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	res, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(req)
	if err != nil {
		return 0
	}
	res.Body.Close()
	return res.StatusCode
}

const keptRoutes = `kind: Route
name: open
gateways: [edge]
rules: [{matches: [{path: {prefix: /open}}], direct_response: {status: 200, body: "ok"}}]
---
kind: Route
name: guarded
gateways: [edge]
rules: [{matches: [{path: {prefix: /guarded}}], direct_response: {status: 200, body: "ok"}}]
policies: {authentication: {jwt: {issuer: "https://penstock.local/dev", audiences: [penstock], jwks_secret: dev-issuer}}}
`

// TestUpWithoutControl starts `up` when its control plane cannot: the gateway serves what it
// served before, says so with its age and the reason, and goes over when that is mended.
func TestUpWithoutControl(t *testing.T) {
	in := newInstallation(t)
	file := filepath.Join(t.TempDir(), "routes.yaml")
	if err := os.WriteFile(file, []byte(keptRoutes), 0o600); err != nil {
		t.Fatal(err)
	}
	in.args = append(in.args, "--no-jaeger", "--config", file)
	in.up(t)
	serves := func(when string) {
		t.Helper()
		if got := [3]int{in.statusOf(t, "/open"), in.statusOf(t, "/guarded"), in.statusOf(t, "/none")}; got != [3]int{200, 401, 404} {
			t.Errorf("%s: got %v, want 200, 401, 404", when, got)
		}
	}
	serves("with its control plane")
	if out, err := in.run(t, "down", "--data-dir", in.dataDir); err != nil {
		t.Fatal(err, out)
	}

	key := filepath.Join(in.dataDir, "seal.key")
	if err := os.Rename(key, key+".away"); err != nil {
		t.Fatal(err)
	}
	out, err := in.run(t, append([]string{"up", "-d"}, in.args...)...)
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 3 {
		t.Fatalf("up -d: %v, want exit code 3: %s", err, out)
	}
	for _, want := range []string{"without its control plane: edge-1 serves its configuration of ", " ago from disk", key, "in its place"} {
		if !strings.Contains(out, want) {
			t.Errorf("up does not say %q: %s", want, out)
		}
	}
	if _, err := os.Lstat(key); !os.IsNotExist(err) {
		t.Errorf("%s was made where it was expected", key)
	}
	serves("without its control plane")
	for _, command := range []string{"status", "proxies"} {
		out, err := in.run(t, command, "--data-dir", in.dataDir)
		if err == nil || !strings.Contains(out, "edge-1 serves its configuration of ") || !strings.Contains(out, "connection refused") {
			t.Errorf("%s: %v: %s", command, err, out)
		}
	}

	if err := os.Rename(key+".away", key); err != nil {
		t.Fatal(err)
	}
	await(t, func() error {
		s := in.state(t)
		if s.Alone != "" || s.Configuration == nil || s.Configuration.Source != keeper.ControlPlane {
			return fmt.Errorf("the state is %+v", s)
		}
		return nil
	})
	serves("with its control plane again")
	if out, err := in.run(t, "status", "--data-dir", in.dataDir); err != nil || !strings.Contains(out, "1 of 1") || strings.Contains(out, "from disk") {
		t.Errorf("status: %v: %s", err, out)
	}
}
