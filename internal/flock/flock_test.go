package flock_test

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/penstock-gateway/penstock/internal/flock"
)

// TestClose: a lock is given back although somebody else has the open file, as a child has
// between fork and exec.
func TestClose(t *testing.T) {
	name := filepath.Join(t.TempDir(), "lock")
	open := func() *os.File {
		f, err := os.OpenFile(name, os.O_CREATE|os.O_RDWR, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	f, other := open(), open()
	defer other.Close()
	if err := flock.Take(f); err != nil {
		t.Fatal(err)
	}
	if err := flock.Take(other); !errors.Is(err, flock.ErrLocked) {
		t.Fatalf("taken twice: %v", err)
	}
	child, err := syscall.Dup(int(f.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(child)
	if err := flock.Close(f); err != nil {
		t.Fatal(err)
	}
	if err := flock.Take(other); err != nil {
		t.Errorf("after it was given back: %v", err)
	}
}
