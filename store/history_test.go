package store_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/penstock-gateway/penstock/store"
	"github.com/penstock-gateway/penstock/store/storetest"
)

// TestHistoryOfKept: an object that is in the oldest revision that is kept may be older
// than that.
func TestHistoryOfKept(t *testing.T) {
	t.Parallel()
	s := open(t, store.Options{DataDir: t.TempDir(), KeepRevisions: 2, MaintenanceInterval: -1})
	for i := range int64(5) {
		if _, err := s.Commit(t.Context(), i, append(storetest.Routes(0, 1, "a"), storetest.Routes(1, 1, fmt.Sprint(i))...), store.Info{}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := store.Collect(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	for i, want := range []string{"4 true", "5 false, 4 true", ""} {
		editions, next, err := s.History(t.Context(), storetest.RouteName(i), 0, 10)
		if err != nil || next != 0 {
			t.Fatal(next, err)
		}
		var got []string
		for _, e := range editions {
			if e.Damaged != "" || e.After == nil || e.Oldest != (e.Before == nil) {
				t.Errorf("object %d: %+v", i, e)
			}
			got = append(got, fmt.Sprint(e.Revision.Number, " ", e.Oldest))
		}
		if strings.Join(got, ", ") != want {
			t.Errorf("object %d: %q, want %q", i, got, want)
		}
	}
}

// TestHistoryOfDamaged: what cannot be read is in the history, and said to be damaged.
func TestHistoryOfDamaged(t *testing.T) {
	t.Parallel()
	for _, kind := range []byte("RNGB") {
		o := store.Options{DataDir: t.TempDir(), MaintenanceInterval: -1, Logger: quiet}
		s := open(t, o)
		for i := range int64(3) {
			if _, err := s.Commit(t.Context(), i, storetest.Routes(0, 1, fmt.Sprint(i)), store.Info{}); err != nil {
				t.Fatal(err)
			}
		}
		closeStore(t, s)
		one := false
		storetest.Damage(t, o.DataDir, func(_ string, v []byte) []byte {
			if one || v[0] != kind {
				return nil
			}
			one = true
			return make([]byte, len(v))
		})
		if !one {
			t.Fatalf("%c: nothing to damage", kind)
		}
		o.KeepDamage = true
		editions, _, err := open(t, o).History(t.Context(), storetest.RouteName(0), 0, 10)
		if err != nil || len(editions) != 3 {
			t.Fatalf("%c: %d, %v", kind, len(editions), err)
		}
		damaged := 0
		for _, e := range editions {
			if e.Damaged != "" {
				damaged++
			}
		}
		if damaged == 0 || damaged == 3 {
			t.Errorf("%c: %d of 3 are damaged: %+v", kind, damaged, editions)
		}
	}
}
