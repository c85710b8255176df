package keeper

import (
	"bytes"
	"errors"
	"fmt"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

const alice = "spiffe://penstock.local/proxy/default/edge/alice"

func recordsOf(bodies ...string) iter.Seq2[record, error] {
	return func(yield func(record, error) bool) {
		for i, b := range bodies {
			if !yield(record{kind: recordResources, time: time.Unix(int64(i), 0), body: []byte(b)}, nil) {
				return
			}
		}
	}
}

func bodies(records []record) (out []string) {
	for _, r := range records {
		out = append(out, string(r.body))
	}
	return out
}

// written is a file with some records, and its key.
func written(t *testing.T, texts ...string) (path string, key []byte) {
	t.Helper()
	path, key = filepath.Join(t.TempDir(), fileName), bytes.Repeat([]byte{7}, keySize)
	l, err := createLog(path, alice, key, recordsOf(texts[:1]...))
	if err != nil {
		t.Fatal(err)
	}
	for r, err := range recordsOf(texts[1:]...) {
		if err := errors.Join(err, l.append(r)); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(l.sync(), l.f.Close()); err != nil {
		t.Fatal(err)
	}
	return path, key
}

// TestFileAltered changes each byte of a file, cuts it off everywhere, repeats and
// swaps its records: it never opens as something that was not written.
func TestFileAltered(t *testing.T) {
	texts := []string{"first", "the second secret", "third"}
	path, key := written(t, texts...)
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(whole, []byte("secret")) {
		t.Error("the file has a resource in clear text")
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the file has mode %v, %v", info.Mode(), err)
	}
	read := func(b []byte) ([]string, error) {
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		r, err := readLog(path, alice, key)
		return bodies(r), err
	}
	if got, err := read(whole); err != nil || !slices.Equal(got, texts) {
		t.Fatalf("the file itself: %q, %v", got, err)
	}
	for i := range whole {
		for _, bit := range []byte{1, 0x80} {
			b := bytes.Clone(whole)
			b[i] ^= bit
			if got, err := read(b); err == nil {
				t.Errorf("byte %d changed: opens as %q", i, got)
			}
		}
	}
	head := len(header(alice, make([]byte, saltSize)))
	for n := head; n < len(whole); n++ {
		got, err := read(whole[:n])
		if err != nil || len(got) >= len(texts) || !slices.Equal(got, texts[:len(got)]) {
			t.Errorf("cut off at byte %d: %q, %v", n, got, err)
		}
	}
	for n := range head {
		if got, err := read(whole[:n]); err == nil {
			t.Errorf("cut off at byte %d of the header: opens as %q", n, got)
		}
	}
	frame := func(text string) int { return 4 + 16 + 9 + len(text) + 16 }
	second := head + frame(texts[0])
	third := second + frame(texts[1])
	for what, b := range map[string][]byte{
		"a record twice":     slices.Concat(whole[:third], whole[second:]),
		"a record left out":  slices.Concat(whole[:second], whole[third:]),
		"records in another": slices.Concat(whole[:second], whole[third:], whole[second:third]),
	} {
		if got, err := read(b); err == nil {
			t.Errorf("%s: opens as %q", what, got)
		}
	}
}

// TestFileForeign opens a file of another proxy, with another key, and files that are none.
func TestFileForeign(t *testing.T) {
	path, key := written(t, "one")
	if _, err := readLog(path, alice+"2", key); !errors.Is(err, errForeign) || !strings.Contains(err.Error(), alice+"2") {
		t.Errorf("of another proxy: %v", err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	// Its name alone is no help to who copies a file.
	if err := os.WriteFile(path, bytes.Replace(b, []byte("/alice"), []byte("/bobby"), 1), 0o600); err != nil {
		t.Fatal(err)
	}
	if r, err := readLog(path, strings.Replace(alice, "/alice", "/bobby", 1), key); err == nil {
		t.Errorf("renamed: %q", bodies(r))
	}
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := readLog(path, alice, bytes.Repeat([]byte{8}, keySize)); err == nil || !strings.Contains(err.Error(), keyName) {
		t.Errorf("another key: %v", err)
	}
	for _, text := range []string{"", "\n", magic, magic + "\n", "penstock kept configuration 2\n" + alice + "\n" + strings.Repeat("x", 100)} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := readLog(path, alice, key); err == nil {
			t.Errorf("%q opens", text)
		}
	}
	if r, err := readLog(filepath.Join(t.TempDir(), fileName), alice, key); err != nil || len(r) > 0 {
		t.Errorf("no file: %v, %v", r, err)
	}
}

// TestKey goes through what may be wrong with the key file.
func TestKey(t *testing.T) {
	dir := t.TempDir()
	key, lock, err := openKey(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := openKey(dir); err == nil || !strings.Contains(err.Error(), "is in use") {
		t.Errorf("a second process: %v", err)
	}
	lock.Close()
	again, lock, err := openKey(dir)
	if err != nil || !bytes.Equal(again, key) {
		t.Errorf("again: %v, %v", bytes.Equal(again, key), err)
	}
	lock.Close()
	path := filepath.Join(dir, keyName)
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, _, err := openKey(dir); err == nil || !strings.Contains(err.Error(), "chmod 600") {
		t.Errorf("open to others: %v", err)
	}
	if err := errors.Join(os.Chmod(path, 0o600), os.Truncate(path, 5)); err != nil {
		t.Fatal(err)
	}
	if _, _, err := openKey(dir); err == nil || !strings.Contains(err.Error(), fmt.Sprint(keySize)) {
		t.Errorf("too short: %v", err)
	}
}

// FuzzReadLog feeds any bytes behind a good header: no panic, and nothing is made up.
func FuzzReadLog(f *testing.F) {
	dir := f.TempDir()
	path, key := filepath.Join(dir, fileName), make([]byte, keySize)
	l, err := createLog(path, alice, key, recordsOf("one", "two"))
	if err != nil {
		f.Fatal(err)
	}
	l.f.Close()
	whole, err := os.ReadFile(path)
	if err != nil {
		f.Fatal(err)
	}
	head := len(header(alice, make([]byte, saltSize)))
	f.Add(whole[head:], head)
	f.Add([]byte{}, 3)
	f.Fuzz(func(t *testing.T, tail []byte, keep int) {
		file := filepath.Join(t.TempDir(), fileName)
		if err := os.WriteFile(file, slices.Concat(whole[:min(max(keep, 0), len(whole))], tail), 0o600); err != nil {
			t.Fatal(err)
		}
		r, err := readLog(file, alice, key)
		if got := bodies(r); err == nil && !slices.Equal(got, []string{"one", "two"}[:min(len(got), 2)]) {
			t.Errorf("opens as %q", got)
		}
	})
}
