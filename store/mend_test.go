package store_test

import (
	"errors"
	"slices"
	"strings"
	"testing"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
	"github.com/penstock-gateway/penstock/store"
	"github.com/penstock-gateway/penstock/store/storetest"
)

// TestMendedFromTheLog: content that is lost in the database and still in the log is put
// back, of resources and of what lists them.
func TestMendedFromTheLog(t *testing.T) {
	t.Parallel()
	for _, kind := range []byte{'R', 'B', 'G', 'N'} {
		o := store.Options{DataDir: t.TempDir(), MaintenanceInterval: -1}
		s := open(t, o)
		if _, err := s.Commit(t.Context(), 0, storetest.Routes(0, 5, "a"), store.Info{}); err != nil {
			t.Fatal(err)
		}
		closeStore(t, s)
		wiped := storetest.Damage(t, o.DataDir, func(_ string, v []byte) []byte {
			if v[0] != kind {
				return nil
			}
			return make([]byte, len(v))
		})
		if wiped == 0 {
			t.Fatalf("%c: nothing to damage", kind)
		}
		looking := o
		looking.KeepDamage = true
		s = open(t, looking)
		if _, err := s.Load(t.Context(), 1); err == nil {
			t.Errorf("%c: damage was not seen", kind)
		}
		closeStore(t, s)
		s = open(t, o)
		if list, err := s.Load(t.Context(), 1); err != nil || len(list) != 5 || storetest.Value(list[3]) != "a" {
			t.Errorf("%c: %d resources, %v", kind, len(list), err)
		}
		closeStore(t, s)
		s = open(t, looking)
		if _, err := s.Load(t.Context(), 1); err != nil {
			t.Errorf("%c: it was not written back: %v", kind, err)
		}
	}
}

// TestMendedBit: one changed bit is found without any other copy.
func TestMendedBit(t *testing.T) {
	t.Parallel()
	o := external.options(t)
	s := open(t, o)
	if _, err := s.Commit(t.Context(), 0, storetest.Routes(0, 3, "a"), store.Info{}); err != nil {
		t.Fatal(err)
	}
	for key := range keys(t, o, s) {
		if !strings.HasPrefix(key, o.Prefix+"/o/") {
			continue
		}
		value := valueOf(t, s, key)
		bad := []byte(value)
		bad[len(bad)/2] ^= 4
		if _, err := store.Client(s).Put(t.Context(), key, string(bad)); err != nil {
			t.Fatal(err)
		}
	}
	again := open(t, o)
	if list, err := again.Load(t.Context(), 1); err != nil || len(list) != 3 {
		t.Errorf("%d resources, %v", len(list), err)
	}
}

// TestDamagedRecords: the record of the head has a second copy, and that of an older
// revision costs nothing but itself.
func TestDamagedRecords(t *testing.T) {
	t.Parallel()
	for what, c := range map[string]struct {
		key     string
		damaged int64 // revision whose record is lost for good
	}{"head": {"/head", 0}, "newest": {"/r/0000000000000000003", 0}, "older": {"/r/0000000000000000002", 2}} {
		o := external.options(t)
		s := open(t, o)
		for i, v := range []string{"a", "b", "c"} {
			if _, err := s.Commit(t.Context(), int64(i), storetest.Routes(0, 2, v), store.Info{Author: "somebody"}); err != nil {
				t.Fatal(err)
			}
		}
		was := valueOf(t, s, o.Prefix+c.key)
		if _, err := store.Client(s).Put(t.Context(), o.Prefix+c.key, strings.Replace(was, "somebody", "somebodx", 1)); err != nil {
			t.Fatal(err)
		}
		s = open(t, o)
		if head, err := s.Head(t.Context()); err != nil || head.Number != 3 || head.Author != "somebody" {
			t.Errorf("%s: head %+v %v", what, head, err)
		}
		if list, err := s.Load(t.Context(), 3); err != nil || len(list) != 2 || storetest.Value(list[0]) != "c" {
			t.Errorf("%s: %v %v", what, list, err)
		}
		revs, err := s.List(t.Context(), 0, 0)
		if err != nil || len(revs) != 3 {
			t.Fatal(revs, err)
		}
		bad := slices.IndexFunc(revs, func(r store.Revision) bool { return r.Damaged != "" })
		if bad < 0 != (c.damaged == 0) || bad >= 0 && revs[bad].Number != c.damaged {
			t.Errorf("%s: history %+v", what, revs)
		}
		if rev, err := s.Commit(t.Context(), 3, storetest.Routes(0, 1, "d"), store.Info{}); err != nil || rev.Number != 4 {
			t.Errorf("%s: commit %+v %v", what, rev, err)
		}
		followed := s.Watch(t.Context(), 0)
		for _, want := range []int64{1, 2, 3, 4} {
			if want == c.damaged {
				continue
			}
			if r := <-followed; r.Number != want || r.Damaged != "" {
				t.Errorf("%s: watch sent %+v, not %d", what, r, want)
			}
		}
	}
}

// TestFootprints: what has to be known of a resource comes back with its damage, and what
// is too large for that is left out.
func TestFootprints(t *testing.T) {
	t.Parallel()
	o := store.Options{DataDir: t.TempDir(), KeepDamage: true, MaintenanceInterval: -1}
	o.Footprint = func(r *pb.Resource) []byte {
		return []byte(strings.Repeat("f", map[string]int{storetest.RouteName(0): 1, storetest.RouteName(1): store.MaxFootprintBytes, storetest.RouteName(2): store.MaxFootprintBytes + 1}[r.GetRoute().GetName()]))
	}
	s := open(t, o)
	if _, err := s.Commit(t.Context(), 0, storetest.Routes(0, 3, "a"), store.Info{}); err != nil {
		t.Fatal(err)
	}
	closeStore(t, s)
	storetest.DamageResource(t, o.DataDir, func(*pb.Resource) bool { return true })
	s = open(t, o)
	_, err := s.Load(t.Context(), 1)
	damage, ok := errors.AsType[*store.DamageError](err)
	if !ok || len(damage.Objects) != 3 {
		t.Fatal(err)
	}
	for i, want := range []int{1, store.MaxFootprintBytes, 0} {
		if got := len(damage.Objects[i].Footprint); got != want {
			t.Errorf("%s: a footprint of %d bytes, want %d", damage.Objects[i].Name, got, want)
		}
	}
}

func closeStore(t *testing.T, s store.Store) {
	t.Helper()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

func valueOf(t *testing.T, s store.Store, key string) string {
	t.Helper()
	r, err := store.Client(s).Get(t.Context(), key)
	if err != nil || len(r.Kvs) != 1 {
		t.Fatal(key, r, err)
	}
	return string(r.Kvs[0].Value)
}
