package store_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/penstock-gateway/penstock/store"
	"github.com/penstock-gateway/penstock/store/storetest"
)

// checkable is a closed store with two revisions, a secret, a pin and run-time state.
func checkable(t *testing.T) store.Options {
	t.Helper()
	o := store.Options{DataDir: t.TempDir(), SealKey: sealKey, MaintenanceInterval: -1, Logger: quiet, Prefix: "/test"}
	s := open(t, o)
	for i, v := range []string{"a", "b"} {
		if _, err := s.Commit(t.Context(), int64(i), append(storetest.Routes(0, 20*(i+1), v), storetest.Certificate("tls", "x")), store.Info{}); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.PutState(t.Context(), "token", []byte("t")); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Pin(t.Context(), "ca", "authority"); err != nil {
		t.Fatal(err)
	}
	closeStore(t, s)
	return o
}

func check(t *testing.T, o store.Options) *store.Report {
	t.Helper()
	r, err := store.Check(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// TestCheckWhole: a store that is whole has no findings, one in use is left alone.
func TestCheckWhole(t *testing.T) {
	t.Parallel()
	o := checkable(t)
	if r := check(t, o); len(r.Findings) > 0 || r.Revisions != 2 || r.Head.Number != 2 {
		t.Errorf("%+v", r)
	}
	open(t, o)
	if _, err := store.Check(t.Context(), o); !errors.Is(err, store.ErrInUse) {
		t.Error(err)
	}
	if _, err := store.Check(t.Context(), store.Options{DataDir: t.TempDir()}); err == nil || !strings.Contains(err.Error(), "there is no store") {
		t.Error(err)
	}
}

// TestCheckContent: each kind of damage of what is stored is found once, with the revisions
// that it is part of, and mended from the log.
func TestCheckContent(t *testing.T) {
	t.Parallel()
	for what, c := range map[string]struct {
		damage func(key string, v []byte) []byte
		want   int
	}{
		"objects": {func(_ string, v []byte) []byte {
			if v[0] == 'R' {
				return v[:len(v)-1]
			}
			return nil
		}, 60},
		"roots": {func(_ string, v []byte) []byte {
			if v[0] == 'N' {
				return v[:len(v)-1]
			}
			return nil
		}, 2},
		"a record": {func(key string, v []byte) []byte {
			if strings.HasSuffix(key, "/r/0000000000000000001") {
				digit := byte('0')
				if v[len(v)-3] == digit {
					digit = '1'
				}
				return append(v[:len(v)-3:len(v)-3], digit, '"', '}')
			}
			return nil
		}, 1},
	} {
		o := checkable(t)
		if storetest.Damage(t, o.DataDir, c.damage) == 0 {
			t.Fatalf("%s: nothing damaged", what)
		}
		r := check(t, o)
		if len(r.Findings) != c.want {
			t.Errorf("%s: %d findings, want %d: %+v", what, len(r.Findings), c.want, r.Findings)
		}
		left, err := store.Mend(t.Context(), o)
		if err != nil || what != "a record" && len(left.Findings) > 0 {
			t.Errorf("%s: left %+v, %v", what, left, err)
		}
		if r := check(t, o); len(r.Findings) != len(left.Findings) {
			t.Errorf("%s: after mending %+v", what, r.Findings)
		}
	}
}

// TestRebuild: of a database with a damaged page, or a log that was cut off, everything that
// can be read is in the new store, and the old one is as it was.
func TestRebuild(t *testing.T) {
	t.Parallel()
	for what, c := range map[string]struct {
		glob   string
		damage func([]byte)
		state  bool
	}{
		"a page": {"etcd/member/snap/db", func(b []byte) {
			// Every page with resources that is not one of the first.
			for at := 4096 * 4; at < len(b); at += 4096 {
				if strings.Contains(string(b[at:at+4096]), "/test/o/") {
					b[at+8] = 0x77
					return
				}
			}
			panic("no page")
		}, false},
		"the log": {"etcd/member/wal/*.wal", func(b []byte) { clear(b[2000:]) }, true},
	} {
		o := checkable(t)
		names, err := filepath.Glob(filepath.Join(o.DataDir, c.glob))
		if err != nil || len(names) != 1 {
			t.Fatal(names, err)
		}
		data, err := os.ReadFile(names[0])
		if err != nil {
			t.Fatal(err)
		}
		c.damage(data)
		if err := os.WriteFile(names[0], data, 0o600); err != nil {
			t.Fatal(err)
		}
		if r := check(t, o); len(r.Findings) == 0 || !r.Findings[0].Structure {
			t.Fatalf("%s: %+v", what, r)
		}
		if _, err := store.Open(t.Context(), o); err == nil || !strings.Contains(err.Error(), store.HowToRepair) && !strings.Contains(err.Error(), "penstock store repair") {
			t.Errorf("%s: a start says %v", what, err)
		}
		into := filepath.Join(t.TempDir(), "new")
		got, err := store.Rebuild(t.Context(), o, o.DataDir, into)
		if err != nil || got.StateLost == c.state {
			t.Fatalf("%s: %+v, %v", what, got, err)
		}
		o.DataDir = into
		if r := check(t, o); len(r.Findings) > 0 || r.Head.Number != 2 {
			t.Errorf("%s: %+v", what, r)
		}
		s := open(t, o)
		if list, err := s.Load(t.Context(), 2); err != nil || len(list) != 41 {
			t.Errorf("%s: %d resources, %v", what, len(list), err)
		}
		state, err := s.State(t.Context(), "")
		if err != nil || (len(state) == 1) != c.state {
			t.Errorf("%s: state %v, %v", what, state, err)
		}
		if pin, err := s.Pin(t.Context(), "ca", ""); err != nil || pin != "authority" {
			t.Errorf("%s: pin %q, %v", what, pin, err)
		}
		if rev, err := s.Commit(t.Context(), 2, storetest.Routes(0, 1, "c"), store.Info{}); err != nil || rev.Number != 3 {
			t.Errorf("%s: %+v, %v", what, rev, err)
		}
	}
}
