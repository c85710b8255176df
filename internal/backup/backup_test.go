package backup

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
	"github.com/penstock-gateway/penstock/internal/pki"
	"github.com/penstock-gateway/penstock/store"
	"github.com/penstock-gateway/penstock/store/storetest"
)

// source is a data folder with three revisions, a secret, a package, roles and a token.
func source(t *testing.T) (dir string, st store.Store) {
	t.Helper()
	dir = t.TempDir()
	st, err := store.Open(t.Context(), store.Options{DataDir: filepath.Join(dir, "etcd"), SealKeyFile: filepath.Join(dir, sealKeyFile), MaintenanceInterval: -1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { st.Close() })
	code := []byte("PK code")
	sum := sha256.Sum256(code)
	digest := hex.EncodeToString(sum[:])
	function := store.Change{Name: "projects/default/functions/f", Resource: &pb.Resource{Kind: &pb.Resource_Function{Function: &pb.Function{
		Name: "projects/default/functions/f", Source: "sha256:" + digest,
	}}}}
	for i, v := range []string{"a", "b", "c"} {
		if _, err := st.Commit(t.Context(), int64(i), append(storetest.Routes(0, 40, v), storetest.Certificate("tls", v), function), store.Info{Author: "ann", Message: v}); err != nil {
			t.Fatal(err)
		}
	}
	for key, value := range map[string]string{"access/role/r": "role", "access/token/t": "hash of a token", "revoked/x": "1", "runners/r": "run-time state"} {
		if err := st.PutState(t.Context(), key, []byte(value)); err != nil {
			t.Fatal(err)
		}
	}
	ca, err := pki.OpenCA(filepath.Join(dir, "pki"))
	if err != nil {
		t.Fatal(err)
	}
	hash := ca.Hash()
	if _, err := st.Pin(t.Context(), CAPin, hex.EncodeToString(hash[:])); err != nil {
		t.Fatal(err)
	}
	if err := SavePackage(filepath.Join(dir, "packages"), digest, bytes.NewReader(code)); err != nil {
		t.Fatal(err)
	}
	return dir, st
}

// file takes a backup.
func file(t *testing.T, dir string, st store.Store, history, keys bool) string {
	t.Helper()
	out := filepath.Join(t.TempDir(), "b.backup")
	from := Source{Store: st, PackagesDir: filepath.Join(dir, "packages"), Version: "test", History: history}
	err := WriteFile(out, func(emit Emit) error {
		if err := from.Take(t.Context(), emit); err != nil || !keys {
			return err
		}
		for _, name := range KeyFiles {
			data, err := os.ReadFile(filepath.Join(dir, name))
			if err == nil {
				err = emit(KeyName+name, int64(len(data)), bytes.NewReader(data))
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(out); err != nil || info.Mode().Perm() != 0o600 {
		t.Fatal(info.Mode(), err)
	}
	return out
}

// TestRoundTrip: what is restored is what was backed up, down to the hash of the tree.
func TestRoundTrip(t *testing.T) {
	dir, st := source(t)
	want, err := st.Head(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, history := range []bool{false, true} {
		into := filepath.Join(t.TempDir(), "restored")
		if _, err := RestoreFile(t.Context(), file(t, dir, st, history, true), Target{Dir: into}); err != nil {
			t.Fatal(err)
		}
		again, err := store.Open(t.Context(), store.Options{DataDir: filepath.Join(into, "etcd"), SealKeyFile: filepath.Join(into, sealKeyFile)})
		if err != nil {
			t.Fatal(err)
		}
		defer again.Close()
		if head, err := again.Head(t.Context()); err != nil || head.Root != want.Root || head.Number != 3 || head.Author != "ann" || !head.Time.Equal(want.Time) {
			t.Errorf("head %+v, want %+v (%v)", head, want, err)
		}
		list, err := again.Load(t.Context(), 3)
		if err != nil || len(list) != 42 {
			t.Errorf("%d resources, %v", len(list), err)
		}
		revs, err := again.List(t.Context(), 0, 0)
		if err != nil || len(revs) != map[bool]int{false: 1, true: 3}[history] {
			t.Errorf("history %v: %d revisions, %v", history, len(revs), err)
		}
		state, err := again.State(t.Context(), "")
		if err != nil || len(state) != 2 || string(state["access/role/r"]) != "role" || string(state["revoked/x"]) != "1" {
			t.Errorf("state %v, %v", state, err)
		}
		if files, err := filepath.Glob(filepath.Join(into, "packages", "*.zip")); err != nil || len(files) != 1 {
			t.Errorf("packages %v, %v", files, err)
		}
		if _, err := again.Commit(t.Context(), 3, storetest.Routes(0, 1, "d"), store.Info{}); err != nil {
			t.Error(err)
		}
	}
}

// TestKeys: a backup without keys needs those of the control plane, and says so.
func TestKeys(t *testing.T) {
	dir, st := source(t)
	plain := file(t, dir, st, false, false)
	raw, err := os.ReadFile(filepath.Join(dir, sealKeyFile))
	if err != nil {
		t.Fatal(err)
	}
	contents, err := ReadFile(plain)
	if err != nil || len(contents.Keys) > 0 {
		t.Fatal(contents.Keys, err)
	}
	for h, o := range contents.Objects {
		if bytes.Contains(o, raw) || bytes.Contains(o, []byte("PRIVATE KEY")) {
			t.Errorf("object %s holds a key", h)
		}
	}
	other, _ := source(t)
	for what, c := range map[string]struct {
		target Target
		want   string
	}{
		"nothing":        {Target{}, "--seal-key-file"},
		"no authority":   {Target{SealKeyFile: filepath.Join(dir, sealKeyFile)}, "--new-ca"},
		"another key":    {Target{SealKeyFile: filepath.Join(other, sealKeyFile), NewCA: true}, "name the right file with --seal-key-file"},
		"another CA":     {Target{SealKeyFile: filepath.Join(dir, sealKeyFile), PKIDir: filepath.Join(other, "pki")}, "--pki-dir"},
		"both":           {Target{SealKeyFile: filepath.Join(dir, sealKeyFile), PKIDir: filepath.Join(dir, "pki")}, ""},
		"a new CA":       {Target{SealKeyFile: filepath.Join(dir, sealKeyFile), NewCA: true}, ""},
		"no such folder": {Target{SealKeyFile: filepath.Join(dir, "none"), NewCA: true}, "no such file"},
	} {
		c.target.Dir = filepath.Join(t.TempDir(), "restored")
		_, err := RestoreFile(t.Context(), plain, c.target)
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", what, err, c.want)
		}
		if left, _ := filepath.Glob(filepath.Dir(c.target.Dir) + "/*"); err != nil && len(left) > 0 {
			t.Errorf("%s: a refused restore leaves %v", what, left)
		}
	}
	full := t.TempDir()
	if err := os.WriteFile(filepath.Join(full, "x"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := RestoreFile(t.Context(), plain, Target{Dir: full}); err == nil || !strings.Contains(err.Error(), "not empty") {
		t.Error(err)
	}
}

// TestBadFiles: a file that is not a whole backup is refused, wherever it is changed.
func TestBadFiles(t *testing.T) {
	dir, st := source(t)
	good, err := os.ReadFile(file(t, dir, st, true, true))
	if err != nil {
		t.Fatal(err)
	}
	bad := filepath.Join(t.TempDir(), "bad")
	refuse := func(what string, data []byte) {
		t.Helper()
		if err := os.WriteFile(bad, data, 0o600); err != nil {
			t.Fatal(err)
		}
		into := filepath.Join(t.TempDir(), "restored")
		if _, err := RestoreFile(t.Context(), bad, Target{Dir: into}); err == nil {
			t.Errorf("%s: restored", what)
		}
		if left, _ := filepath.Glob(filepath.Dir(into) + "/*"); len(left) > 0 {
			t.Errorf("%s: %v is left", what, left)
		}
	}
	refuse("empty", nil)
	refuse("text", []byte("kind: Route\n"))
	refuse("another tar", packed(t, map[string]string{"a": "b"}))
	refuse("twice", append(bytes.Clone(good), good...))
	refuse("with a tail", append(bytes.Clone(good), "tail"...))
	content, err := unpacked(good)
	if err != nil {
		t.Fatal(err)
	}
	rnd := rand.New(rand.NewPCG(1, 2))
	for range 60 {
		cut := rnd.IntN(len(good))
		refuse(fmt.Sprint("cut at ", cut), good[:cut])
		at, bit := 10+rnd.IntN(len(good)-10), rnd.IntN(8) // the head of a gzip has a time
		flipped := bytes.Clone(good)
		flipped[at] ^= 1 << bit
		if data, err := unpacked(flipped); err == nil && bytes.Equal(data, content) {
			continue // one of the bits that fill the last byte of the compressed data
		}
		refuse(fmt.Sprintf("bit %d of byte %d", bit, at), flipped)
	}
}

// unpacked is what a gzip file holds, and whether it is whole.
func unpacked(b []byte) (data []byte, err error) {
	r, err := gzip.NewReader(bytes.NewReader(b))
	if err != nil {
		return nil, err
	}
	return io.ReadAll(r)
}

// TestForgedFiles: whoever repairs the checksums cannot put something else into a backup.
func TestForgedFiles(t *testing.T) {
	dir, st := source(t)
	good := file(t, dir, st, false, true)
	forge := func(change func(name string, data []byte) (string, []byte)) string {
		out := filepath.Join(t.TempDir(), "forged")
		err := WriteFile(out, func(emit Emit) error {
			return EachEntry(good, func(name string, size int64, r io.Reader) error {
				data, err := io.ReadAll(r)
				if name, data = change(name, data); err != nil || name == SumName || name == "" {
					return err
				}
				return emit(name, int64(len(data)), bytes.NewReader(data))
			})
		})
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	for what, c := range map[string]struct {
		change func(string, []byte) (string, []byte)
		want   string
	}{
		"an object": {func(n string, d []byte) (string, []byte) {
			if strings.HasPrefix(n, objectName) {
				d = append(d, 'x')
			}
			return n, d
		}, "is damaged"},
		"an object that is missing": {func(n string, d []byte) (string, []byte) {
			if strings.HasPrefix(n, objectName) && d[0] == 'R' {
				return "", nil
			}
			return n, d
		}, "it is missing"},
		"a revision": {func(n string, d []byte) (string, []byte) {
			return n, bytes.Replace(d, []byte(`"author":"ann"`), []byte(`"author":"bob"`), 1)
		}, "checksum"},
		"a token": {func(n string, d []byte) (string, []byte) {
			return strings.Replace(n, "access/role/r", "access/token/r", 1), d
		}, "does not belong"},
		"a way out": {func(n string, d []byte) (string, []byte) {
			return strings.Replace(n, "keys/seal.key", "keys/../../evil", 1), d
		}, "does not belong"},
		"a package": {func(n string, d []byte) (string, []byte) {
			return n, bytes.Replace(d, []byte("PK code"), []byte("PK evil"), 1)
		}, "is damaged"},
		"a later format": {func(n string, d []byte) (string, []byte) {
			return n, bytes.Replace(d, []byte(`"format": 1`), []byte(`"format": 2`), 1)
		}, "format 2"},
	} {
		if _, err := RestoreFile(t.Context(), forge(c.change), Target{Dir: filepath.Join(t.TempDir(), "r")}); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", what, err, c.want)
		}
	}
}

func packed(t *testing.T, entries map[string]string) []byte {
	t.Helper()
	var b bytes.Buffer
	zip := gzip.NewWriter(&b)
	out := tar.NewWriter(zip)
	for name, data := range entries {
		if err := out.WriteHeader(&tar.Header{Name: name, Size: int64(len(data))}); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(out, data); err != nil {
			t.Fatal(err)
		}
	}
	if err := out.Close(); err != nil {
		t.Fatal(err)
	}
	if err := zip.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}
