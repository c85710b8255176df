package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestBoundLog: the log and the one before stay below the size, and nothing of
// the newest lines is lost.
func TestBoundLog(t *testing.T) {
	path := filepath.Join(t.TempDir(), "up.log")
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	w := boundLog(f, path, 1000)
	line := strings.Repeat("x", 99) + "\n"
	for range 95 {
		if _, err := w.Write([]byte(line)); err != nil {
			t.Fatal(err)
		}
	}
	for name, want := range map[string]int{path: 500, path + ".1": 1000} {
		b, err := os.ReadFile(name)
		if err != nil || len(b) != want {
			t.Errorf("%s has %d bytes, want %d: %v", filepath.Base(name), len(b), want, err)
		}
	}
	var other bytes.Buffer
	if boundLog(&other, path, 1) != &other {
		t.Error("what is not a file is bounded")
	}
	if boundLog(f, filepath.Join(t.TempDir(), "up.log"), 1) != f {
		t.Error("another file is bounded")
	}
}
