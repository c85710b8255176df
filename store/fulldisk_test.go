package store_test

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/penstock-gateway/penstock/store"
	"github.com/penstock-gateway/penstock/store/storetest"
)

// ownMounts runs a test again in a mount namespace of its own, where it may mount a
// small file system, as root and as an ordinary user. It reports whether this is it.
func ownMounts(t *testing.T) bool {
	t.Helper()
	const env = "PENSTOCK_STORE_MOUNTS"
	if os.Getenv(env) == t.Name() {
		return true
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), env+"="+t.Name())
	id := func(n int) []syscall.SysProcIDMap { return []syscall.SysProcIDMap{{HostID: n, Size: 1}} }
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS, UidMappings: id(os.Getuid()), GidMappings: id(os.Getgid()),
	}
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "--- PASS: "+t.Name()) {
		t.Fatalf("%v\n%s", err, out)
	}
	return false
}

// smallDisk mounts a file system of so many MiB.
func smallDisk(t *testing.T, size string) string {
	t.Helper()
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size="+size); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// fill takes all space that is left; empty gives it back.
func fill(t *testing.T, disk string) (empty func()) {
	t.Helper()
	f, err := os.Create(filepath.Join(disk, "filler"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := io.Copy(f, zeros{}); !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("the disk is not full: %v", err)
	}
	return func() {
		if err := os.Remove(f.Name()); err != nil {
			t.Fatal(err)
		}
	}
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { clear(b); return len(b), nil }

// TestFullDisk fills the disk under a store that is written to: it refuses changes and
// says why, serves reads, goes on when there is space again, starts on a full disk, and
// has every acknowledged commit after a kill.
func TestFullDisk(t *testing.T) {
	if !ownMounts(t) {
		return
	}
	disk := smallDisk(t, "128m")
	dir := filepath.Join(disk, "data")
	acked := killedChild(t, dir, 10, time.Millisecond)
	last := checkAfterKill(t, dir, acked, int64(len(acked)))

	s := openEmbedded(t, dir)
	refused := make(chan error, 1)
	began := make(chan struct{})
	go func() {
		for n := 0; ; n++ {
			rev, err := s.Commit(t.Context(), last, storetest.Routes(0, fewRoutes+n%100, fmt.Sprint("full ", n)), store.Info{Message: "full"})
			if err != nil {
				refused <- err
				return
			}
			last = rev.Number
			if n == 5 {
				close(began)
			}
		}
	}()
	<-began
	empty := fill(t, disk)
	err := <-refused
	wantNoSpace(t, "a commit while the disk is full", err)
	since, err := s.Refusing()
	wantNoSpace(t, "what the store says of itself", err)
	if again, _ := s.Refusing(); since.IsZero() || !again.Equal(since) {
		t.Errorf("refusing since %s, then since %s", since, again)
	}
	if list, err := s.Load(t.Context(), last); err != nil || len(list) == 0 {
		t.Errorf("reading while the disk is full: %d, %v", len(list), err)
	}
	if err := s.PutState(t.Context(), "small", []byte("x")); err != nil {
		t.Errorf("a little run-time state is refused: %v", err)
	}
	for range 100 { // but no more than fits
		if err = s.PutState(t.Context(), "large", make([]byte, 100<<10)); err != nil {
			break
		}
	}
	wantNoSpace(t, "much run-time state", err)
	empty()
	rev, err := s.Commit(t.Context(), last, storetest.Routes(0, 1, "again"), store.Info{})
	if err != nil {
		t.Fatalf("a commit after there is space again: %v", err)
	}
	last = rev.Number
	if _, err := s.Refusing(); err != nil {
		t.Errorf("still refusing: %v", err)
	}

	empty = fill(t, disk)
	if err := s.Close(); err != nil { // which writes the rest to the database
		t.Fatal(err)
	}
	again := openEmbedded(t, dir) // on a full disk
	if head, err := again.Head(t.Context()); err != nil || head.Number != last {
		t.Errorf("started on a full disk: %+v, %v, want %d", head, err, last)
	}
	_, err = again.Commit(t.Context(), last, storetest.Routes(0, 1, "no"), store.Info{})
	wantNoSpace(t, "a commit after a start on a full disk", err)
	if err := again.Close(); err != nil {
		t.Fatal(err)
	}
	// A new store does not fit at all.
	_, err = store.Open(t.Context(), store.Options{DataDir: filepath.Join(disk, "new"), Logger: quiet})
	wantNoSpace(t, "a new store on a full disk", err)
	empty()
	if s = openEmbedded(t, dir); s != nil {
		if head, err := s.Head(t.Context()); err != nil || head.Number != last {
			t.Errorf("head %+v, %v, want %d", head, err, last)
		}
		if _, err := s.Load(t.Context(), last); err != nil {
			t.Error(err)
		}
	}
}

func wantNoSpace(t *testing.T, what string, err error) {
	t.Helper()
	if !errors.Is(err, store.ErrNoSpace) || !strings.Contains(err.Error(), "no space left") || strings.Contains(err.Error(), "damaged: ") {
		t.Errorf("%s: %v", what, err)
	}
}

// TestReadOnlyDisk and files that this user may not read are named as such.
func TestReadOnlyDisk(t *testing.T) {
	if !ownMounts(t) {
		return
	}
	disk := smallDisk(t, "128m")
	dir := filepath.Join(disk, "data")
	s := openEmbedded(t, dir)
	if _, err := s.Commit(t.Context(), 0, storetest.Routes(0, 1, "a"), store.Info{}); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("", disk, "", syscall.MS_REMOUNT|syscall.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	_, err := store.Open(t.Context(), store.Options{DataDir: dir, Logger: quiet})
	if !errors.Is(err, syscall.EROFS) || !strings.Contains(err.Error(), "mount it writable") || strings.Contains(err.Error(), "are damaged") {
		t.Errorf("read-only: %v", err)
	}
	if err := syscall.Mount("", disk, "", syscall.MS_REMOUNT, ""); err != nil {
		t.Fatal(err)
	}
	openEmbedded(t, dir)
}
