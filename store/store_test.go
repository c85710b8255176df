package store_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"go.etcd.io/etcd/client/v3"

	"github.com/penstock-gateway/penstock/store"
	"github.com/penstock-gateway/penstock/store/storetest"
)

func TestOpenProblems(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	refusing, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	refusing.Close() // nobody answers there now
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	withoutCert := external.options(t)
	withoutCert.TLS = withoutCert.TLS.Clone()
	withoutCert.TLS.Certificates = nil
	for _, c := range []struct {
		name string
		o    store.Options
		want string
	}{
		{"nothing", store.Options{}, "neither a data directory nor etcd endpoints"},
		{"keep", store.Options{DataDir: "x", KeepRevisions: 1}, "must be 2 or more"},
		{"not a directory", store.Options{DataDir: file}, file},
		{"nobody there", store.Options{Endpoints: []string{refusing.Addr().String()}}, refusing.Addr().String()},
		{"silent", store.Options{Endpoints: []string{silent.Addr().String()}}, "did not answer within"},
		{"silent, with TLS", store.Options{Endpoints: []string{"https://" + silent.Addr().String()}, TLS: withoutCert.TLS}, "did not answer within"},
		{"bad endpoint", store.Options{Endpoints: []string{"://"}}, "://"},
		{"no client certificate", withoutCert, withoutCert.Endpoints[0]},
	} {
		c.o.Logger = quiet
		c.o.RequestTimeout = 300 * time.Millisecond
		s, err := store.Open(t.Context(), c.o)
		if err == nil {
			s.Close()
			t.Errorf("%s: opened", c.name)
		} else if !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: error %q does not say %q", c.name, err, c.want)
		}
	}
}

func TestInUse(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := openEmbedded(t, dir)
	_, err := store.Open(t.Context(), store.Options{DataDir: dir, Logger: quiet})
	if !errors.Is(err, store.ErrInUse) || !strings.Contains(err.Error(), dir) || !strings.Contains(err.Error(), strconv.Itoa(os.Getpid())) {
		t.Errorf("second store in one directory: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	openEmbedded(t, dir)
}

// TestNoPort looks at the sockets of this process before and after.
func TestNoPort(t *testing.T) {
	before := listeners(t)
	s := openEmbedded(t, t.TempDir())
	if _, err := s.Head(t.Context()); err != nil {
		t.Fatal(err)
	}
	for l := range listeners(t) {
		if !before[l] {
			t.Errorf("embedded etcd listens: %s", l)
		}
	}
}

// listeners are the listening sockets of this process.
func listeners(t *testing.T) map[string]bool {
	t.Helper()
	ours := map[string]bool{}
	fds, err := filepath.Glob("/proc/self/fd/*")
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		if link, err := os.Readlink(fd); err == nil && strings.HasPrefix(link, "socket:[") {
			ours[strings.Trim(link, "socket:[]")] = true
		}
	}
	out := map[string]bool{}
	for _, table := range []struct {
		file         string
		state, inode int
		listening    string
	}{{"tcp", 3, 9, "0A"}, {"tcp6", 3, 9, "0A"}, {"unix", 3, 6, "00010000"}} {
		data, err := os.ReadFile("/proc/self/net/" + table.file)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(data)) {
			f := strings.Fields(line)
			if len(f) > table.inode && f[table.state] == table.listening && ours[f[table.inode]] {
				out[table.file+" "+strings.TrimSpace(line)] = true
			}
		}
	}
	return out
}

// TestReplicas is two control planes on one external etcd.
func TestReplicas(t *testing.T) {
	t.Parallel()
	o := external.options(t)
	a, b := open(t, o), open(t, o)
	watch := b.Watch(t.Context(), 0)
	storetest.Conflict(t, a, b)
	head, err := b.Head(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for n := int64(1); n <= head.Number; n++ {
		if r := <-watch; r.Number != n {
			t.Fatalf("watch: %d, want %d", r.Number, n)
		}
	}
}

func TestCollect(t *testing.T) {
	t.Parallel()
	for _, b := range backends {
		t.Run(b.name, func(t *testing.T) {
			o := b.options(t)
			o.KeepRevisions, o.MaintenanceInterval = 3, -1
			s := open(t, o)
			ctx := t.Context()
			collect := func() store.Collected {
				t.Helper()
				c, err := store.Collect(ctx, s)
				if err != nil {
					t.Fatal(err)
				}
				return c
			}
			if c := collect(); c != (store.Collected{}) {
				t.Errorf("of an empty store: %+v", c)
			}
			for i := range int64(10) {
				changes := storetest.Routes(int(i), 300, fmt.Sprint("v", i))
				if _, err := s.Commit(ctx, i, append(changes, storetest.Certificate("tls", fmt.Sprint(i))), store.Info{RequestID: fmt.Sprint(i)}); err != nil {
					t.Fatal(err)
				}
			}
			before := len(objects(t, o, s, 'R'))
			c := collect()
			if after := len(objects(t, o, s, 'R')); c.Revisions != 7 || after >= before || after != 307+2*300 {
				t.Errorf("collected %+v; %d route objects, then %d", c, before, after)
			}
			if c := collect(); c != (store.Collected{}) {
				t.Errorf("again: %+v", c)
			}
			for n := int64(8); n <= 10; n++ {
				if list, err := s.Load(ctx, n); err != nil || len(list) != 300+int(n) {
					t.Errorf("revision %d: %d resources, %v", n, len(list), err)
				}
			}
			_, err := s.Load(ctx, 7)
			if !errors.Is(err, store.ErrNotFound) {
				t.Errorf("load of a collected revision: %v", err)
			}
			if _, err := s.Rollback(ctx, 10, 7, store.Info{}); !errors.Is(err, store.ErrNotFound) {
				t.Errorf("rollback to a collected revision: %v", err)
			}
			if _, ok, err := s.ByRequest(ctx, "2"); ok || err != nil {
				t.Errorf("request of a collected revision: %v %v", ok, err)
			}
			if r, err := s.Rollback(ctx, 10, 8, store.Info{}); err != nil || r.Number != 11 {
				t.Errorf("rollback: %+v %v", r, err)
			}
			if r := <-s.Watch(ctx, 0); r.Number != 8 {
				t.Errorf("watch from the beginning starts with %d, want the oldest kept", r.Number)
			}
		})
	}
}

// TestCollectBesideCommits collects all the time while large commits, which store
// objects ahead of their flip, go back and forth between contents: nothing that a
// kept revision needs is ever removed.
func TestCollectBesideCommits(t *testing.T) {
	t.Parallel()
	o := external.options(t)
	o.KeepRevisions, o.MaintenanceInterval = 2, -1
	s := open(t, o)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for range 2 { // two other control planes
		other := open(t, o)
		wg.Go(func() {
			for ctx.Err() == nil {
				if _, err := store.Collect(t.Context(), other); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	for i := range int64(12) {
		for {
			_, err := s.Commit(t.Context(), i, storetest.Routes(0, 400, fmt.Sprint("v", i%3)), store.Info{})
			if err != nil && strings.Contains(err.Error(), "overtaken") {
				continue
			}
			if err != nil {
				t.Fatal(err)
			}
			break
		}
		if list, err := s.Load(t.Context(), i+1); err != nil || len(list) != 400 {
			t.Fatalf("revision %d: %d resources, %v", i+1, len(list), err)
		}
	}
	cancel()
	wg.Wait()
	if list, err := open(t, o).Load(t.Context(), 12); err != nil || len(list) != 400 {
		t.Fatalf("%d resources, %v", len(list), err)
	}
}

func TestMaintenance(t *testing.T) {
	t.Parallel()
	o := store.Options{DataDir: t.TempDir(), KeepRevisions: 2, MaintenanceInterval: 20 * time.Millisecond}
	s := open(t, o)
	for i := range int64(8) {
		if _, err := s.Commit(t.Context(), i, storetest.Routes(0, 1, fmt.Sprint("v", i)), store.Info{}); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for {
		revs, err := s.List(ctx, 0, 0)
		if err != nil {
			t.Fatal(err)
		}
		if len(revs) == 2 {
			return
		}
	}
}

// TestLeaseGone revokes the lease that request ids are written under.
func TestLeaseGone(t *testing.T) {
	t.Parallel()
	s := open(t, external.options(t))
	for i := range int64(2) {
		if _, err := s.Commit(t.Context(), i, storetest.Routes(0, 1, fmt.Sprint("v", i)), store.Info{RequestID: fmt.Sprint(i)}); err != nil {
			t.Fatal(err)
		}
		leases, err := store.Client(s).Leases(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, l := range leases.Leases {
			ttl, err := store.Client(s).TimeToLive(t.Context(), l.ID)
			if err != nil {
				t.Fatal(err)
			}
			if ttl.GrantedTTL < 3600 {
				t.Errorf("granted for %d s", ttl.GrantedTTL)
			}
			if _, err := store.Client(s).Revoke(t.Context(), l.ID); err != nil {
				t.Fatal(err)
			}
		}
		if _, ok, err := s.ByRequest(t.Context(), fmt.Sprint(i)); ok || err != nil {
			t.Errorf("request id without its lease: %v %v", ok, err)
		}
	}
}

// TestWatchCompacted compacts etcd under watches, one of them not read meanwhile.
func TestWatchCompacted(t *testing.T) {
	t.Parallel()
	s := openEmbedded(t, t.TempDir())
	fast, slow := s.Watch(t.Context(), 0), s.Watch(t.Context(), 0)
	const n = 60
	for i := range int64(n) {
		if _, err := s.Commit(t.Context(), i, storetest.Routes(0, 1, fmt.Sprint("v", i)), store.Info{}); err != nil {
			t.Fatal(err)
		}
		resp, err := store.Client(s).Get(t.Context(), "x")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := store.Client(s).Compact(t.Context(), resp.Header.Revision, clientv3.WithCompactPhysical()); err != nil {
			t.Fatal(err)
		}
		if r := <-fast; r.Number != i+1 {
			t.Fatalf("got %d, want %d", r.Number, i+1)
		}
	}
	for i := range int64(n) {
		if r := <-slow; r.Number != i+1 {
			t.Fatalf("got %d, want %d", r.Number, i+1)
		}
	}
}

// TestWritesLittle counts what one change among many writes: its object, its bucket,
// its group, the root, the revision record and the head, in one transaction.
func TestWritesLittle(t *testing.T) {
	t.Parallel()
	o := external.options(t)
	s := open(t, o)
	if _, err := s.Commit(t.Context(), 0, storetest.Routes(0, 1000, "a"), store.Info{}); err != nil {
		t.Fatal(err)
	}
	before := keys(t, o, s)
	again := storetest.Routes(0, 1000, "a")
	again[7] = storetest.Routes(7, 1, "b")[0]
	if _, err := s.Commit(t.Context(), 1, again, store.Info{}); err != nil {
		t.Fatal(err)
	}
	kinds := map[string]int{}
	revisions := map[int64]bool{}
	for key, mod := range keys(t, o, s) {
		if before[key] != mod {
			kinds[strings.Split(key, "/")[2]]++
			revisions[mod] = true
		}
	}
	if fmt.Sprint(kinds) != "map[head:1 o:4 r:1]" || len(revisions) != 1 {
		t.Errorf("written: %v in %d transactions", kinds, len(revisions))
	}
}

// keys are the keys of a store with their modification revisions.
func keys(t *testing.T, o store.Options, s store.Store) map[string]int64 {
	t.Helper()
	resp, err := store.Client(s).Get(t.Context(), o.Prefix+"/", clientv3.WithPrefix(), clientv3.WithKeysOnly())
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]int64{}
	for _, kv := range resp.Kvs {
		out[string(kv.Key)] = kv.ModRevision
	}
	return out
}

// TestDiffReadsWhatDiffers damages everything that both revisions share.
func TestDiffReadsWhatDiffers(t *testing.T) {
	t.Parallel()
	o := external.options(t)
	s := open(t, o)
	if _, err := s.Commit(t.Context(), 0, storetest.Routes(0, 500, "a"), store.Info{}); err != nil {
		t.Fatal(err)
	}
	shared := keys(t, o, s)
	if _, err := s.Commit(t.Context(), 1, storetest.Routes(9, 1, "b"), store.Info{}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Commit(t.Context(), 2, storetest.Routes(9, 1, "c"), store.Info{}); err != nil {
		t.Fatal(err)
	}
	for key := range shared {
		if strings.HasPrefix(key, o.Prefix+"/o/") {
			if _, err := store.Client(s).Put(t.Context(), key, "damaged"); err != nil {
				t.Fatal(err)
			}
		}
	}
	fresh := open(t, o)
	if d, err := fresh.Diff(t.Context(), 2, 3); err != nil || len(d) != 1 || storetest.Value(d[0].Resource) != "c" {
		t.Errorf("diff: %v, %v", d, err)
	}
	if _, err := fresh.Load(t.Context(), 3); err == nil {
		t.Error("nothing was damaged")
	}
}

// TestBudget rewrites everything in each commit: history is cut short before it
// fills the disk, and the head stays.
func TestBudget(t *testing.T) {
	t.Parallel()
	s := open(t, store.Options{DataDir: t.TempDir(), MaintenanceInterval: -1})
	for i := range int64(16) {
		if _, err := s.Commit(t.Context(), i, storetest.Routes(0, 300, fmt.Sprint("v", i)), store.Info{}); err != nil {
			t.Fatal(err)
		}
	}
	full := store.InUse(s)
	store.SetBudget(s, 2*full)
	if err := store.Tidy(t.Context(), s, true); err != nil {
		t.Fatal(err)
	}
	if revs, err := s.List(t.Context(), 0, 0); err != nil || len(revs) != 16 {
		t.Errorf("within budget %d revisions are kept (%v)", len(revs), err)
	}
	full = store.InUse(s)
	store.SetBudget(s, full*2/3)
	if err := store.Tidy(t.Context(), s, false); err != nil {
		t.Fatal(err)
	}
	revs, err := s.List(t.Context(), 0, 0)
	if err != nil || len(revs) >= 16 || len(revs) <= 2 || store.InUse(s) > full*2/3 {
		t.Errorf("%d revisions, %d bytes of %d (%v)", len(revs), store.InUse(s), full, err)
	}
	if list, err := s.Load(t.Context(), 16); err != nil || len(list) != 300 {
		t.Errorf("head: %d resources, %v", len(list), err)
	}
}
