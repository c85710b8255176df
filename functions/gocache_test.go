package functions

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

// TestGoSeeds: a cache begins with what there is, also when it has gone since it was found.
func TestGoSeeds(t *testing.T) {
	from, to := t.TempDir(), t.TempDir()
	file, finds := filepath.Join(from, "ab", "x-d"), 0
	made := func() {
		t.Helper()
		if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o700), os.WriteFile(file, []byte("library"), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	g := &goSeeds{find: func() ([]goSeed, error) {
		finds++
		made()
		return []goSeed{{file, "ab/x-d"}}, nil
	}}
	check := func(cache string, wantFinds int) {
		t.Helper()
		if err := g.plant(cache); err != nil {
			t.Fatal(err)
		}
		if b, err := os.ReadFile(filepath.Join(cache, "ab", "x-d")); string(b) != "library" || finds != wantFinds {
			t.Errorf("%q, %v; looked for %d times, want %d", b, err, finds, wantFinds)
		}
	}
	check(filepath.Join(to, "one"), 1)
	check(filepath.Join(to, "two"), 1)
	if err := os.RemoveAll(filepath.Dir(file)); err != nil { // `go clean -cache`, or days have passed
		t.Fatal(err)
	}
	check(filepath.Join(to, "three"), 2)
	g.find = func() ([]goSeed, error) { return []goSeed{{file + "-gone", "gone"}}, nil }
	g.found = nil
	if err := g.plant(filepath.Join(to, "four")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("what is never there: %v", err)
	}
}
