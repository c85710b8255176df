package store_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/penstock-gateway/penstock/store"
)

// TestSealKeyExpected: the file of the key is made for a new store only; where one was
// expected none is made.
func TestSealKeyExpected(t *testing.T) {
	t.Parallel()
	for _, b := range backends {
		t.Run(b.name, func(t *testing.T) {
			o := b.options(t)
			o.Logger, o.SealKey, o.SealKeyFile = quiet, nil, filepath.Join(t.TempDir(), "seal.key")
			s, err := store.Open(t.Context(), o)
			if err != nil {
				t.Fatal(err)
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			good, err := os.ReadFile(o.SealKeyFile)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.Remove(o.SealKeyFile); err != nil {
				t.Fatal(err)
			}
			_, err = store.Open(t.Context(), o)
			if !errors.Is(err, store.ErrSealKey) || !strings.Contains(err.Error(), o.SealKeyFile) || !strings.Contains(err.Error(), "No key was made") {
				t.Errorf("without its key: %v", err)
			}
			if _, err := os.Lstat(o.SealKeyFile); !os.IsNotExist(err) {
				t.Errorf("a key was made where one was expected: %v", err)
			}
			if err := os.WriteFile(o.SealKeyFile, good, 0o600); err != nil {
				t.Fatal(err)
			}
			if s, err = store.Open(t.Context(), o); err != nil {
				t.Fatal(err)
			}
			s.Close()
		})
	}
}

// TestPin has many pin a value at once: one wins, and all see it.
func TestPin(t *testing.T) {
	t.Parallel()
	for _, b := range backends {
		t.Run(b.name, func(t *testing.T) {
			s := open(t, b.options(t))
			if got, err := s.Pin(t.Context(), "a", ""); got != "" || err != nil {
				t.Errorf("nothing pinned: %q, %v", got, err)
			}
			var wg sync.WaitGroup
			seen := make([]string, 8)
			for i := range seen {
				wg.Go(func() {
					var err error
					if seen[i], err = s.Pin(t.Context(), "a", fmt.Sprint(i)); err != nil {
						t.Error(err)
					}
				})
			}
			wg.Wait()
			for _, v := range seen {
				if v == "" || v != seen[0] {
					t.Fatalf("pinned %q and %q", v, seen[0])
				}
			}
			if err := s.Repin(t.Context(), "a", "other", "new"); err == nil {
				t.Error("replaced a value that was not there")
			}
			if err := s.Repin(t.Context(), "a", seen[0], "new"); err != nil {
				t.Error(err)
			}
			if got, err := s.Pin(t.Context(), "a", "x"); got != "new" || err != nil {
				t.Errorf("replaced: %q, %v", got, err)
			}
			if _, err := s.Pin(t.Context(), "", "x"); !errors.Is(err, store.ErrInvalid) {
				t.Errorf("no name: %v", err)
			}
		})
	}
}
