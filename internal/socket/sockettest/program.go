// Package sockettest lets tests try a socket as another user of the machine.
package sockettest

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

// Program returns the path of a copy of this test binary that every user may run: the
// binary itself is in a folder that other users may not enter.
func Program(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "other-user-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(dir, "program")
	if err := errors.Join(os.WriteFile(program, self, 0o755), os.Chmod(dir, 0o755)); err != nil {
		t.Fatal(err)
	}
	return program
}
