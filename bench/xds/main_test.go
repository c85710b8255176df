package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/penstock-gateway/penstock/internal/toolbox"
)

// TestMain lets the test binary be the children of the benchmark, as its own
// binary is.
func TestMain(m *testing.M) {
	if asChild() {
		return
	}
	os.Exit(m.Run())
}

// TestShort runs the whole benchmark in its short form; it judges no time.
func TestShort(t *testing.T) {
	root, err := toolbox.RepoRoot()
	if err != nil {
		t.Fatal(err)
	}
	bin := filepath.Join(t.TempDir(), "penstock")
	build := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-o", bin, "./cmd/penstock")
	build.Dir = root
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	b, err := run(t.Context(), options{
		bin: bin, out: filepath.Join(t.TempDir(), "xds.json"), short: true, only: "changes,hosts,fanout",
	})
	if err != nil {
		t.Fatal(err)
	}
	// What has nothing to do with the speed of a machine must hold here too.
	for _, f := range b.report.Figures {
		if f.Target == "0" && f.Value != 0 {
			t.Errorf("%s: %v, want 0", f.Name, f.Value)
		}
	}
}
