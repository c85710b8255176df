package main

import (
	"bytes"
	"encoding/hex"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
	"github.com/penstock-gateway/penstock/internal/pki"
	"github.com/penstock-gateway/penstock/store"
)

// TestAuthority opens the authority of one store from folders that hold it, lost it or
// have another: what is not the store's is refused, and nothing is made in its place.
func TestAuthority(t *testing.T) {
	var lines bytes.Buffer
	log := slog.New(slog.NewTextHandler(&lines, nil))
	st, err := store.Open(t.Context(), store.Options{DataDir: t.TempDir(), Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	dir := filepath.Join(t.TempDir(), "pki")
	open := func(dir, replace string) (string, error) {
		ca, err := openAuthority(t.Context(), st, dir, replace, log)
		if err != nil {
			return "", err
		}
		h := ca.Hash()
		return hex.EncodeToString(h[:]), nil
	}
	first, err := open(dir, "")
	if err != nil {
		t.Fatal(err)
	}
	again, err := open(dir, "")
	if err != nil || again != first {
		t.Errorf("opened again: %s, %v", again, err)
	}
	foreign := t.TempDir()
	if _, err := pki.OpenCA(foreign); err != nil {
		t.Fatal(err)
	}
	mistyped := filepath.Join(t.TempDir(), "pkii")
	wantError := func(what, dir, replace string, want ...string) {
		t.Helper()
		_, err := open(dir, replace)
		if err == nil {
			t.Fatalf("%s: no error", what)
		}
		for _, w := range append(want, first, "--replace-ca "+first) {
			if !strings.Contains(err.Error(), w) {
				t.Errorf("%s: %v, want %q in it", what, err, w)
			}
		}
	}
	wantError("no such folder", mistyped, "", mistyped, "none was made")
	wantError("an empty folder", t.TempDir(), "", "none was made")
	wantError("another authority", foreign, "", foreign, "another certificate authority")
	wantError("another hash to be replaced", mistyped, strings.Repeat("0", 64), "none was made")
	if _, err := os.Stat(mistyped); !os.IsNotExist(err) {
		t.Errorf("the mistyped folder was made: %v", err)
	}
	key := filepath.Join(dir, "ca.key")
	if err := os.Rename(key, key+".away"); err != nil {
		t.Fatal(err)
	}
	wantError("no key", dir, "", key)
	if _, err := os.Stat(key); !os.IsNotExist(err) {
		t.Errorf("a key was made where one was expected: %v", err)
	}
	if err := os.Rename(key+".away", key); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(dir, "ca.crt")); err != nil {
		t.Fatal(err)
	}
	wantError("no certificate", dir, "", "ca.crt")

	if err := st.PutState(t.Context(), "replicas/gone", []byte("x")); err != nil {
		t.Fatal(err)
	}
	second, err := open(mistyped, first)
	if err != nil || second == first {
		t.Fatalf("replaced: %s, %v", second, err)
	}
	if !strings.Contains(lines.String(), "must join again") {
		t.Errorf("the replacement is not logged: %s", &lines)
	}
	if left, err := st.State(t.Context(), "replicas/"); err != nil || len(left) > 0 {
		t.Errorf("proxies of the earlier authority are still counted: %v, %v", left, err)
	}
	// The flag that stays in a unit file does nothing from now on.
	if again, err := open(mistyped, first); err != nil || again != second {
		t.Errorf("the flag once more: %s, %v", again, err)
	}
	if err := os.RemoveAll(mistyped); err != nil {
		t.Fatal(err)
	}
	if _, err := open(mistyped, first); err == nil || !strings.Contains(err.Error(), second) {
		t.Errorf("the flag once more, and the new one is lost: %v", err)
	}
}

// TestAuthorityOfOldStore is a store that was filled before stores knew the authority.
func TestAuthorityOfOldStore(t *testing.T) {
	log := slog.New(slog.DiscardHandler)
	st, err := store.Open(t.Context(), store.Options{DataDir: t.TempDir(), Logger: log})
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	b := &pb.Backend{Name: "projects/default/backends/b"}
	if _, err := st.Commit(t.Context(), 0, []store.Change{{Name: b.Name, Resource: &pb.Resource{Kind: &pb.Resource_Backend{Backend: b}}}}, store.Info{}); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "pki")
	if _, err := openAuthority(t.Context(), st, dir, "", log); err == nil || !strings.Contains(err.Error(), "--replace-ca unknown") {
		t.Errorf("lost: %v", err)
	}
	if _, err := pki.OpenCA(dir); err != nil { // restored
		t.Fatal(err)
	}
	if _, err := openAuthority(t.Context(), st, dir, "", log); err != nil {
		t.Fatal(err)
	}
	if pinned, err := st.Pin(t.Context(), caPin, ""); err != nil || len(pinned) != 64 {
		t.Errorf("not remembered: %q, %v", pinned, err)
	}
}

// TestUpLostKeys starts `up` without its authority: it refuses and makes none; the command
// that it prints works. Without the seal key see TestUpWithoutControl.
func TestUpLostKeys(t *testing.T) {
	in := newInstallation(t)
	in.up(t, "--no-jaeger")
	if out, err := in.run(t, "down", "--data-dir", in.dataDir); err != nil {
		t.Fatal(err, out)
	}
	lost := filepath.Join(in.dataDir, "pki")
	if err := os.Rename(lost, lost+".away"); err != nil {
		t.Fatal(err)
	}
	out, err := in.run(t, append([]string{"up", "--no-jaeger"}, in.args...)...)
	if err == nil || !strings.Contains(out, lost) || !strings.Contains(out, "in its place") {
		t.Errorf("without %s: %v: %s", lost, err, out)
	}
	if _, err := os.Lstat(lost); !os.IsNotExist(err) {
		t.Errorf("%s was made where it was expected", lost)
	}
	_, after, ok := strings.Cut(out, "--replace-ca ")
	if !ok {
		t.Fatal(out)
	}
	in.up(t, "--no-jaeger", "--replace-ca", strings.Fields(after)[0])
	if out, err := in.run(t, "status", "--data-dir", in.dataDir); err != nil || !strings.Contains(out, "1 of 1") {
		t.Errorf("status: %v: %s", err, out)
	}
}
