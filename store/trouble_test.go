package store_test

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/penstock-gateway/penstock/store"
	"github.com/penstock-gateway/penstock/store/storetest"
)

// TestBrokenFiles damages files of the embedded etcd: a start fails with an error
// that names the directory, it neither hangs nor ends the process.
func TestBrokenFiles(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ name, glob string }{
		{"database", "etcd/member/snap/db"},
		{"log", "etcd/member/wal/0000000000000000-*.wal"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			s := openEmbedded(t, dir)
			if _, err := s.Commit(t.Context(), 0, storetest.Routes(0, 100, "a"), store.Info{}); err != nil {
				t.Fatal(err)
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			files, err := filepath.Glob(filepath.Join(dir, c.glob))
			if err != nil || len(files) != 1 {
				t.Fatal(files, err)
			}
			f, err := os.OpenFile(files[0], os.O_WRONLY, 0)
			if err != nil {
				t.Fatal(err)
			}
			_, err = f.WriteAt([]byte(strings.Repeat("damage", 3000)), 0)
			if err := errors.Join(err, f.Close()); err != nil {
				t.Fatal(err)
			}
			_, err = store.Open(t.Context(), store.Options{DataDir: dir, Logger: quiet})
			if err == nil || !strings.Contains(err.Error(), dir) || !strings.Contains(err.Error(), "does not start") {
				t.Errorf("error: %v", err)
			}
		})
	}
}

// TestShortLog cuts the log off below what the database has: the start says at once
// what is missing.
func TestShortLog(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := openEmbedded(t, dir)
	for i := range 20 {
		if _, err := s.Commit(t.Context(), int64(i), storetest.Routes(0, 1, fmt.Sprint(i)), store.Info{}); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(dir, "etcd/member/wal/*.wal"))
	if err != nil || len(files) != 1 {
		t.Fatal(files, err)
	}
	whole, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	used := len(bytes.TrimRight(whole, "\x00"))
	if err := os.Truncate(files[0], int64(used/2)); err != nil {
		t.Fatal(err)
	}
	_, err = store.Open(t.Context(), store.Options{DataDir: dir, Logger: quiet})
	if err == nil || !strings.Contains(err.Error(), "are missing; the log was cut off") || !strings.Contains(err.Error(), dir) {
		t.Errorf("a log that was cut off: %v", err)
	}
	if err := os.WriteFile(files[0], whole, 0o600); err != nil {
		t.Fatal(err)
	}
	if head, err := openEmbedded(t, dir).Head(t.Context()); err != nil || head.Number != 20 {
		t.Errorf("the whole log again: %+v, %v", head, err)
	}
}

// serverEnv makes the test binary serve etcd from the directory it names, on the
// address in the file "address" there.
const serverEnv = "PENSTOCK_STORE_SERVER"

// serveForever is that server: it writes the address it listens on to stdout.
func serveForever(dir string) {
	fail := func(err error) {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	e := etcdServer{dir: dir}
	addr, err := os.ReadFile(filepath.Join(dir, "address"))
	if err != nil {
		fail(err)
	}
	if err := e.serve(string(addr)); err != nil {
		fail(err)
	}
	fmt.Println(e.server.Clients[0].Addr())
	select {}
}

// startServer starts such a server and returns its address and what kills it.
func startServer(t *testing.T, dir, addr string) (string, func()) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, "address"), []byte(addr), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), serverEnv+"="+dir)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	kill := sync.OnceFunc(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	t.Cleanup(kill)
	lines := bufio.NewScanner(out)
	if !lines.Scan() {
		t.Fatal("etcd did not start")
	}
	return lines.Text(), kill
}

// TestEtcdKilled kills an external etcd under a store and starts it again: calls fail
// within the request timeout meanwhile, nothing is lost, and a watch goes on.
func TestEtcdKilled(t *testing.T) {
	t.Parallel()
	e := etcdServer{dir: t.TempDir()}
	if err := e.certificates(); err != nil {
		t.Fatal(err)
	}
	addr, kill := startServer(t, e.dir, "127.0.0.1:0")
	s := open(t, store.Options{Endpoints: []string{"https://" + addr}, TLS: e.client, RequestTimeout: 2 * time.Second})
	if _, err := s.Commit(t.Context(), 0, storetest.Routes(0, 1, "a"), store.Info{}); err != nil {
		t.Fatal(err)
	}
	watch := s.Watch(t.Context(), 0)
	if r := <-watch; r.Number != 1 {
		t.Fatalf("watch: %+v", r)
	}
	kill()
	if _, err := s.Commit(t.Context(), 1, storetest.Routes(0, 1, "b"), store.Info{}); err == nil || !strings.Contains(err.Error(), addr) {
		t.Errorf("commit without etcd: %v", err)
	}
	startServer(t, e.dir, addr)
	for base := int64(1); base < 3; {
		rev, err := s.Commit(t.Context(), base, storetest.Routes(int(base), 1, "c"), store.Info{RequestID: fmt.Sprint(base)})
		if err != nil {
			t.Log(err) // until it is connected again
			continue
		}
		base = rev.Number
	}
	for n := int64(2); n <= 3; n++ {
		if r := <-watch; r.Number != n {
			t.Fatalf("watch: %d, want %d", r.Number, n)
		}
	}
}
