package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/penstock-gateway/penstock/internal/toolbox"
)

// pageCommands are the commands that a page of docs shows at a prompt.
func pageCommands(t *testing.T, page string) []string {
	t.Helper()
	root, err := toolbox.RepoRoot()
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(root, "docs", page))
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for line := range strings.Lines(string(text)) {
		if command, ok := strings.CutPrefix(line, "$ "); ok {
			out = append(out, strings.TrimSpace(command))
		}
	}
	return out
}

// TestBackupPage runs the commands of docs/backup.md one after another: a control plane that
// was restored from its backup serves what the one before did.
func TestBackupPage(t *testing.T) {
	in, run := exampleEnv(t)
	must := func(command string) string {
		t.Helper()
		out, err := run(command)
		if err != nil {
			t.Fatalf("%s: %v\n%s", command, err, out)
		}
		return out
	}
	serves := func() {
		t.Helper()
		await(t, func() error { _, err := run("curl -sSf http://127.0.0.1:8080/kept | grep -q safe"); return err })
	}
	must("penstock up -d --config examples/support-desk --functions-root examples/support-desk/functions")
	must(`printf 'kind: Route\nname: kept\nrules: [{matches: [{path: {exact: /kept}}], direct_response: {status: 200, body: safe}}]\n' | penstock apply -f -`)
	serves()
	t.Cleanup(func() { _, _ = run("penstock down --data-dir ./restored") })
	commands := pageCommands(t, "backup.md")
	if len(commands) < 6 {
		t.Fatal(commands)
	}
	for _, command := range commands {
		if strings.HasPrefix(command, "penstock up ") {
			must("penstock down")
			command += " -d --config examples/support-desk --functions-root examples/support-desk/functions"
		}
		out := must(command)
		if strings.Contains(command, "--with-keys") && !strings.Contains(out, "whoever reads it has all secrets") {
			t.Errorf("%s: %s", command, out)
		}
		if strings.HasPrefix(command, "penstock up ") {
			serves()
		}
	}
	serves()
	if info, err := os.Stat(filepath.Join(filepath.Dir(in.dataDir), "penstock-with-keys.backup")); err != nil || info.Mode().Perm() != 0o600 {
		t.Error(info, err)
	}
	if out, err := run("penstock restore README.md --into ./other"); err == nil || !strings.Contains(out, "nothing was restored") {
		t.Errorf("another file: %v %s", err, out)
	}
}
