package store_test

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"go.etcd.io/etcd/client/v3"

	"github.com/penstock-gateway/penstock/store"
	"github.com/penstock-gateway/penstock/store/storetest"
)

func TestSealKeyFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "new", "seal.key")
	var wg sync.WaitGroup
	keys := make([][]byte, 8)
	for i := range keys {
		wg.Go(func() {
			key, err := store.LoadOrCreateSealKey(file)
			if err != nil {
				t.Error(err)
			}
			keys[i] = key
		})
	}
	wg.Wait()
	for _, key := range keys {
		if len(key) != store.SealKeyBytes || !bytes.Equal(key, keys[0]) {
			t.Fatalf("keys %x and %x", key, keys[0])
		}
	}
	info, err := os.Stat(file)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	if left, _ := filepath.Glob(filepath.Join(filepath.Dir(file), ".*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	for name, content := range map[string]string{"short": "c2hvcnQ=", "text": "not base64!", "empty": ""} {
		file := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := store.LoadOrCreateSealKey(file); !errors.Is(err, store.ErrSealKey) || !strings.Contains(err.Error(), file) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestSealed looks for the text of a private key in all files of etcd.
func TestSealed(t *testing.T) {
	t.Parallel()
	const canary = "CANARY-THAT-MUST-NOT-BE-FOUND"
	dir := t.TempDir()
	s := openEmbedded(t, dir)
	secret := storetest.Certificate("tls", canary)
	plain := storetest.Routes(0, 1, "PLAIN-TEXT")
	if _, err := s.Commit(t.Context(), 0, append(plain, secret), store.Info{RequestID: "r"}); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	found := map[string]bool{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		for _, text := range []string{canary, "PLAIN-TEXT"} {
			found[text] = found[text] || bytes.Contains(data, []byte(text))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if found[canary] || !found["PLAIN-TEXT"] {
		t.Errorf("found in the files: %v", found)
	}
	if _, err := store.Open(t.Context(), store.Options{DataDir: dir, SealKey: bytes.Repeat([]byte{1}, 32), Logger: quiet}); !errors.Is(err, store.ErrSealKey) || !strings.Contains(err.Error(), "was sealed with key") {
		t.Errorf("another key: %v", err)
	}
	if s := openEmbedded(t, dir); s != nil {
		list, err := s.Load(t.Context(), 1)
		if err != nil || len(list) != 2 || list[1].GetSecret().GetCertificate().GetPrivateKey() != canary {
			t.Errorf("the right key: %v %v", list, err)
		}
	}
}

func TestSealKeyProblems(t *testing.T) {
	t.Parallel()
	for _, b := range backends {
		t.Run(b.name, func(t *testing.T) {
			o := b.options(t)
			o.Logger = quiet
			o.SealKey = []byte("short")
			if _, err := store.Open(t.Context(), o); !errors.Is(err, store.ErrSealKey) {
				t.Errorf("short key: %v", err)
			}
			o.SealKey = sealKey
			s, err := store.Open(t.Context(), o)
			if err != nil {
				t.Fatal(err)
			}
			secret := storetest.Certificate("tls", "private")
			if _, err := s.Commit(t.Context(), 0, append(storetest.Routes(0, 1, "a"), secret), store.Info{}); err != nil {
				t.Fatal(err)
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			o.SealKey = bytes.Repeat([]byte{2}, store.SealKeyBytes)
			if _, err := store.Open(t.Context(), o); !errors.Is(err, store.ErrSealKey) {
				t.Errorf("another key: %v", err)
			}
			o.SealKey = nil
			if s, err = store.Open(t.Context(), o); err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			list, err := s.Load(t.Context(), 1)
			if !errors.Is(err, store.ErrSealKey) || !strings.Contains(err.Error(), secret.Name) || len(list) != 1 {
				t.Errorf("load without a key: %v, %v", list, err)
			}
			_, err = s.Commit(t.Context(), 1, []store.Change{storetest.Certificate("new", "private")}, store.Info{})
			if !errors.Is(err, store.ErrSealKey) || !strings.Contains(err.Error(), "secrets/new") {
				t.Errorf("commit without a key: %v", err)
			}
		})
	}
}

// objects returns the stored objects that begin with a kind, by key.
func objects(t *testing.T, o store.Options, s store.Store, kind byte) map[string]string {
	t.Helper()
	prefix := o.Prefix
	if prefix == "" {
		prefix = "/penstock"
	}
	resp, err := store.Client(s).Get(t.Context(), prefix+"/o/", clientv3.WithPrefix())
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for _, kv := range resp.Kvs {
		if kv.Value[0] == kind {
			out[string(kv.Key)] = string(kv.Value)
		}
	}
	return out
}

func TestDamage(t *testing.T) {
	t.Parallel()
	for _, b := range backends {
		t.Run(b.name, func(t *testing.T) {
			o := b.options(t)
			o.KeepDamage = true
			s := open(t, o)
			secret := storetest.Certificate("tls", "private")
			changes := append(storetest.Routes(0, 2, "a"), secret)
			if _, err := s.Commit(t.Context(), 0, changes, store.Info{}); err != nil {
				t.Fatal(err)
			}
			damage := func(key, value string) {
				t.Helper()
				if _, err := store.Client(s).Put(t.Context(), key, value); err != nil {
					t.Fatal(err)
				}
			}
			for _, c := range []struct {
				what   string
				kind   byte
				damage func(string) string
			}{
				{"flipped bit", 'R', func(v string) string { return v[:5] + string([]byte{v[5] ^ 1}) + v[6:] }},
				{"cut off", 'R', func(v string) string { return v[:10] }},
				{"empty", 'R', func(string) string { return "" }},
				{"of another kind", 'R', func(v string) string { return "B" + v[1:] }},
				{"flipped bit in a secret", 'S', func(v string) string { return v[:len(v)-1] + string([]byte{v[len(v)-1] ^ 1}) }},
			} {
				var name string
				for key, value := range objects(t, o, s, c.kind) {
					damage(key, c.damage(value))
					list, err := s.Load(t.Context(), 1)
					bad, ok := errors.AsType[*store.CorruptError](err)
					if !ok || !strings.HasSuffix(key, bad.Hash) || len(list) != 2 {
						t.Fatalf("%s: %d resources, error %v", c.what, len(list), err)
					}
					name = bad.Name
					break
				}
				if name == "" {
					t.Fatalf("%s: no object found", c.what)
				}
				// Writing the same again mends it.
				for _, ch := range changes {
					if ch.Name != name {
						continue
					}
					head, err := s.Head(t.Context())
					if err != nil {
						t.Fatal(err)
					}
					rev, err := s.Commit(t.Context(), head.Number, []store.Change{ch}, store.Info{})
					if err != nil {
						t.Fatal(err)
					}
					if list, err := s.Load(t.Context(), rev.Number); err != nil || len(list) != 3 {
						t.Errorf("%s, written again: %d resources, %v", c.what, len(list), err)
					}
				}
			}
		})
	}
}

// TestDamagedTree opens the store anew, so that nothing is in memory.
func TestDamagedTree(t *testing.T) {
	t.Parallel()
	for kind, want := range map[byte]string{'N': "root of revision 2", 'G': "group ", 'B': "bucket "} {
		o := external.options(t)
		s := open(t, o)
		if _, err := s.Commit(t.Context(), 0, storetest.Routes(0, 5, "a"), store.Info{}); err != nil {
			t.Fatal(err)
		}
		good := objects(t, o, s, kind)
		if _, err := s.Commit(t.Context(), 1, storetest.Routes(0, 1, "b"), store.Info{}); err != nil {
			t.Fatal(err)
		}
		for key := range objects(t, o, s, kind) {
			if _, ok := good[key]; ok {
				continue
			}
			if _, err := store.Client(s).Put(t.Context(), key, "damaged"); err != nil {
				t.Fatal(err)
			}
		}
		again := open(t, o)
		_, err := again.Load(t.Context(), 2)
		if bad, ok := errors.AsType[*store.CorruptError](err); !ok || !strings.HasPrefix(bad.Name, want) {
			t.Errorf("%c: %v", kind, err)
		}
		if _, err := again.Commit(t.Context(), 2, storetest.Routes(0, 1, "c"), store.Info{}); err == nil {
			t.Errorf("%c: a commit on a damaged tree", kind)
		}
		if _, err := store.Collect(t.Context(), again); err == nil || !strings.Contains(err.Error(), "nothing was removed") {
			t.Errorf("%c: collection of a damaged tree: %v", kind, err)
		}
		if rev, err := again.Rollback(t.Context(), 2, 1, store.Info{}); err != nil || rev.Number != 3 {
			t.Errorf("%c: rollback of a damaged tree: %+v %v", kind, rev, err)
		}
		if list, err := again.Load(t.Context(), 3); err != nil || len(list) != 5 {
			t.Errorf("%c: after rollback %d resources, %v", kind, len(list), err)
		}
	}
}
