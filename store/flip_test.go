package store_test

import (
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
	"github.com/penstock-gateway/penstock/store"
	"github.com/penstock-gateway/penstock/store/storetest"
)

// TestFlippedBits flips one bit of the database or of the log, anywhere: a store then has
// the right content, or refuses to open with words that say what to do, or names what is
// lost. It never has wrong content, and never ends the process.
// PENSTOCK_FLIPS is how many bits, PENSTOCK_KILL_SEED makes the places.
func TestFlippedBits(t *testing.T) {
	t.Parallel()
	o := store.Options{DataDir: t.TempDir(), SealKey: sealKey, MaintenanceInterval: -1, Logger: quiet}
	s := open(t, o)
	for i, v := range []string{"a", "b"} {
		if _, err := s.Commit(t.Context(), int64(i), append(storetest.Routes(0, 60, v), storetest.Certificate("tls", v)), store.Info{}); err != nil {
			t.Fatal(err)
		}
	}
	good := o.DataDir
	want, err := s.Load(t.Context(), 2)
	if err != nil {
		t.Fatal(err)
	}
	closeStore(t, s)
	rnd := rand.New(rand.NewPCG(uint64(envInt(t, "PENSTOCK_KILL_SEED", 1)), 7))
	outcome := map[string]int{}
	for i := range envInt(t, "PENSTOCK_FLIPS", 30) {
		o.DataDir = filepath.Join(t.TempDir(), "copy")
		if err := os.CopyFS(o.DataDir, os.DirFS(good)); err != nil {
			t.Fatal(err)
		}
		glob := "etcd/member/snap/db"
		if i%3 == 2 {
			glob = "etcd/member/wal/*.wal"
		}
		flip(t, filepath.Join(o.DataDir, glob), rnd)
		outcome[judgeFlip(t, o, want)]++
		if err := os.RemoveAll(o.DataDir); err != nil {
			t.Fatal(err)
		}
	}
	t.Log(outcome)
}

// flip changes one bit of a file, where it has content.
func flip(t *testing.T, glob string, rnd *rand.Rand) {
	t.Helper()
	names, err := filepath.Glob(glob)
	if err != nil || len(names) == 0 {
		t.Fatal(glob, err)
	}
	data, err := os.ReadFile(names[0])
	if err != nil {
		t.Fatal(err)
	}
	at := rnd.IntN(len(data))
	for data[at] == 0 {
		at = rnd.IntN(len(data))
	}
	data[at] ^= 1 << rnd.IntN(8)
	if err := os.WriteFile(names[0], data, 0o600); err != nil {
		t.Fatal(err)
	}
}

// judgeFlip opens a store with a flipped bit and says what came of it.
func judgeFlip(t *testing.T, o store.Options, want []*pb.Resource) string {
	t.Helper()
	s, err := store.Open(t.Context(), o)
	if err != nil {
		if !strings.Contains(err.Error(), store.HowToRepair) && !errors.Is(err, store.ErrSealKey) && !strings.Contains(err.Error(), "penstock store repair") {
			t.Errorf("it refuses without saying what to do: %v", err)
		}
		return "refused"
	}
	defer s.Close()
	head, err := s.Head(t.Context())
	if err != nil || head.Number != 2 {
		t.Errorf("head %+v, %v", head, err)
		return "wrong"
	}
	got, err := s.Load(t.Context(), 2)
	if damage, ok := errors.AsType[*store.DamageError](err); ok && len(got)+len(damage.Objects) == len(want) {
		return "named"
	}
	if err != nil || len(got) != len(want) {
		t.Errorf("%d resources, %v", len(got), err)
		return "wrong"
	}
	for i := range got {
		if !proto.Equal(got[i], want[i]) {
			t.Errorf("wrong content: %v, not %v", got[i], want[i])
		}
	}
	return "right"
}
