package main

import (
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/penstock-gateway/penstock/internal/toolbox"
)

// TestShort runs the benchmark in its short form; it judges no time. The short form of
// the churn is with the other tests.
func TestShort(t *testing.T) {
	root, err := toolbox.RepoRoot()
	if err != nil {
		t.Fatal(err)
	}
	bin := filepath.Join(t.TempDir(), "penstock")
	build := exec.CommandContext(t.Context(), "go", "build", "-o", bin, "./cmd/penstock")
	build.Dir = root
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	if err := run(t.Context(), options{bin: bin, out: filepath.Join(t.TempDir(), "functions.json"), steps: "warm,cold,many", short: true}); err != nil {
		t.Fatal(err)
	}
}
