package main

import (
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/penstock-gateway/penstock/internal/backup"
)

// bundleText is all that a support bundle holds, by name.
func bundleText(t *testing.T, name string) map[string]string {
	t.Helper()
	parts := map[string]string{}
	err := backup.EachEntry(name, func(name string, _ int64, r io.Reader) error {
		b, err := io.ReadAll(r)
		parts[strings.TrimPrefix(name, "penstock-support/")] = string(b)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return parts
}

// TestSupport: a bundle of a product that runs, with a function that prints its
// environment and ends, holds what helps and no canary; without a control plane it holds
// what is on the machine.
func TestSupport(t *testing.T) {
	in, run := exampleEnv(t)
	dir := filepath.Dir(in.dataDir)
	if err := os.MkdirAll(filepath.Join(dir, "functions", "leaks"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		filepath.Join("functions", "leaks", "app.py"): "import os, sys\nprint('canary-printed', os.environ['PLAIN'], os.environ['SEALED'], flush=True)\nraise Exception('it has ' + os.environ['SEALED'])\n",
		"all.yaml": `kind: Secret
name: sealed
data: {value: canary-secret}
---
kind: Function
name: leaks
server: {command: [python3, app.py, --password=canary-argument]}
source: leaks
env: {PLAIN: canary-environment}
env_secrets: {SEALED: {secret: sealed, key: value}}
scale: {min: 1}
---
kind: Route
name: answers
rules:
- matches: [{path: {exact: /answers}, headers: [{name: x-key, value: {exact: canary-match}}]}]
  direct_response: {status: 200, body: canary-body}
policies: {headers: {request: {set: [{name: authorization, value: Bearer canary-header}]}}}
`,
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	// The functions of the example are not in this folder: their problems are shown, too.
	if out, err := run("penstock up -d --config examples/support-desk --functions-root functions"); err != nil {
		t.Fatalf("up: %v\n%s", err, out)
	}
	out, err := run("penstock apply -f all.yaml --wait=false -m 'with token=canary-message'")
	if err != nil && !strings.Contains(out, "revision") {
		t.Fatalf("apply: %v\n%s", err, out)
	}
	await(t, func() error { // the function has ended, and said why
		_, err := run("penstock fn logs leaks | grep -q canary-printed && penstock status | grep leaks | grep -qi backoff")
		return err
	})
	out, err = run("penstock support full.tar.gz")
	if err != nil || !strings.Contains(out, "configuration/routes.yaml") || strings.Contains(out, "left out:") {
		t.Errorf("support: %v\n%s", err, out)
	}
	if info, err := os.Stat(filepath.Join(dir, "full.tar.gz")); err != nil || info.Mode().Perm() != 0o600 {
		t.Error(info, err)
	}
	parts := bundleText(t, filepath.Join(dir, "full.tar.gz"))
	for name, text := range parts {
		if at := strings.Index(text, "canary"); at >= 0 {
			t.Errorf("%s holds a canary: …%.200s", name, text[max(0, at-100):])
		}
	}
	for name, want := range map[string]string{
		"configuration/functions.yaml": "PLAIN: (hidden)", "configuration/routes.yaml": "/answers", "status.yaml": "leaks", "proxies.yaml": "edge-1",
		"history.yaml": "number: 2", "up.json": "envoy", "up.log": "msg", "host.json": "kernel", "files.txt": "seal.key", "functions.yaml": "isolation",
		"warnings.json": "looks like a credential", "version.json": "envoy", "contents.txt": "quarantine.json",
	} {
		if !strings.Contains(parts[name], want) {
			t.Errorf("%s does not hold %q: %.1500s", name, want, parts[name])
		}
	}
	if out, err := run("penstock support full.tar.gz"); err == nil || !strings.Contains(out, "full.tar.gz exists") {
		t.Errorf("over a file: %v %s", err, out)
	}
	if out, err := run("penstock down"); err != nil {
		t.Fatalf("down: %v\n%s", err, out)
	}
	out, err = run("penstock support half.tar.gz")
	if err != nil || !strings.Contains(out, "left out:") || !strings.Contains(out, "does not answer") {
		t.Errorf("without a control plane: %v\n%s", err, out)
	}
	parts = bundleText(t, filepath.Join(dir, "half.tar.gz"))
	if parts["host.json"] == "" || parts["up.log"] == "" || !strings.Contains(parts["contents.txt"], "left out") {
		t.Errorf("without a control plane: %v", parts)
	}
	for name, text := range parts {
		if strings.Contains(text, "canary") {
			t.Errorf("without a control plane %s holds a canary", name)
		}
	}
}
