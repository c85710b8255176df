package storetest

import (
	"path/filepath"
	"testing"

	"go.etcd.io/bbolt"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/protobuf/proto"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// Damage changes what the database of an embedded store holds, while nothing runs on it.
// change gets each value that was put, the oldest first, and returns what is there instead;
// nil: it stays. It returns how many were changed.
func Damage(t testing.TB, dataDir string, change func(key string, value []byte) []byte) int {
	t.Helper()
	db, err := bbolt.Open(filepath.Join(dataDir, "etcd", "member", "snap", "db"), 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	n := 0
	err = db.Update(func(tx *bbolt.Tx) error {
		b := tx.Bucket([]byte("key"))
		next := map[string][]byte{}
		err := b.ForEach(func(k, v []byte) error {
			var kv mvccpb.KeyValue
			if err := proto.Unmarshal(v, &kv); err != nil {
				return err
			}
			if value := change(string(kv.Key), kv.Value); value != nil {
				kv.Value = value
				data, err := proto.Marshal(&kv)
				if err != nil {
					return err
				}
				next[string(k)] = data
			}
			return nil
		})
		for k, v := range next {
			if err == nil {
				err = b.Put([]byte(k), v)
			}
		}
		n = len(next)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// DamageResource damages every stored content of a resource. A secret is known by being
// the only one.
func DamageResource(t testing.TB, dataDir string, is func(*pb.Resource) bool) {
	t.Helper()
	if Damage(t, dataDir, func(_ string, v []byte) []byte {
		r := &pb.Resource{}
		sealed := len(v) > 1 && v[0] == 'S'
		if sealed {
			r.Kind = &pb.Resource_Secret{Secret: &pb.Secret{}}
		} else if len(v) < 2 || v[0] != 'R' || proto.Unmarshal(v[1:], r) != nil {
			return nil
		}
		if !is(r) {
			return nil
		}
		out := append([]byte(nil), v...)
		for i := len(out) / 3; i < len(out)/3+8; i++ {
			out[i] ^= 0x55
		}
		return out
	}) == 0 {
		t.Fatal("there is no such resource")
	}
}
