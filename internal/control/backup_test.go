package control

import (
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
	"github.com/penstock-gateway/penstock/internal/backup"
	"github.com/penstock-gateway/penstock/internal/envoytest"
	"github.com/penstock-gateway/penstock/store"
)

// backupOf takes a backup over the API.
func backupOf(t *testing.T, p *plane, history bool) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "b.backup")
	err := backup.WriteFile(file, func(emit backup.Emit) error {
		stream, err := pb.NewBackupServiceClient(p.conn).Backup(t.Context(), &pb.BackupRequest{History: history})
		if err != nil {
			return err
		}
		return ReceiveEntries(func() (*pb.BackupEntry, error) {
			r, err := stream.Recv()
			return r.GetEntry(), err
		}, emit)
	})
	if err != nil {
		t.Fatal(err)
	}
	return file
}

// restoreInto sends a backup; change, if set, gets each entry and returns what is sent.
func restoreInto(t *testing.T, p *plane, file string, change func(name string, data []byte) []byte) (*pb.RestoreResponse, error) {
	t.Helper()
	stream, err := pb.NewBackupServiceClient(p.conn).Restore(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	err = backup.EachEntry(file, func(name string, size int64, data io.Reader) error {
		b, err := io.ReadAll(data)
		if err != nil {
			return err
		}
		if change != nil {
			b = change(name, b)
		}
		return SendEntry(name, int64(len(b)), strings.NewReader(string(b)), func(e *pb.BackupEntry) error { return stream.Send(&pb.RestoreRequest{Entry: e}) })
	})
	if err != nil && !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
	return stream.CloseAndRecv()
}

// TestBackupServes: a fresh control plane with a restored data folder serves what the one
// before did, through the real Envoy.
func TestBackupServes(t *testing.T) {
	dir := t.TempDir()
	p := start(t, dir)
	port := envoytest.FreePort(t)
	p.apply(t, strings.NewReplacer("PORT", fmt.Sprint(port), "BACKEND", fmt.Sprint(whoAsks(t))).Replace(damageable))
	want := map[string]string{"a.test/": "401 ", "b.test/": `200 you are ""`, "c.test/": `200 you are ""`}
	before := proxyOf(t, p, dir, "before", nil)
	check := func() {
		t.Helper()
		for url, answer := range want {
			var status int
			code, body, _ := strings.Cut(answer, " ")
			if _, err := fmt.Sscan(code, &status); err != nil {
				t.Fatal(err)
			}
			answersAs(t, port, url, status, body)
		}
	}
	check()
	file := backupOf(t, p, false)
	revision := p.core.Snapshot().Revision()
	p.stop()
	before.Kill()

	// The keys of this plane are not in files below one folder, as those of a command are.
	fresh := t.TempDir()
	st := openStoreWith(t, store.Options{DataDir: filepath.Join(fresh, "etcd")})
	contents, err := backup.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := st.Import(t.Context(), contents.Export()); err != nil {
		t.Fatal(err)
	}
	p = serve(t, st, fresh)
	if got := p.core.Snapshot().Revision(); got != revision {
		t.Errorf("revision %d, not %d", got, revision)
	}
	proxyOf(t, p, fresh, "after", nil)
	check()
}

// TestRestoreAsRevision: a running control plane goes back to a backup, and a backup that is
// not whole changes nothing.
func TestRestoreAsRevision(t *testing.T) {
	dir := t.TempDir()
	p := start(t, dir)
	route := func(name, body string) string {
		return strings.ReplaceAll(routeOf(name, answerRule("a", "prefix: /"+name, body)), "HOSTS", "")
	}
	secret := "---\nkind: Secret\nname: db\ndata: {url: %s}\n"
	p.apply(t, route("one", "old")+route("two", "old")+fmt.Sprintf(secret, "first"))
	file := backupOf(t, p, true)
	p.apply(t, route("one", "new")+route("three", "new")+fmt.Sprintf(secret, "second"), "projects/default/routes/two")
	before := p.core.Snapshot()

	for what, change := range map[string]func(string, []byte) []byte{
		"an altered object": func(n string, b []byte) []byte {
			if strings.HasPrefix(n, "objects/") {
				b[len(b)-1] ^= 1
			}
			return b
		},
		"an altered sum": func(n string, b []byte) []byte {
			if n == backup.SumName {
				b[0] ^= 1
			}
			return b
		},
	} {
		_, err := restoreInto(t, p, file, change)
		wantCode(t, what, err, codes.InvalidArgument, "nothing was changed")
	}
	stream, err := pb.NewBackupServiceClient(p.conn).Restore(t.Context())
	if err == nil {
		_, err = stream.CloseAndRecv()
	}
	wantCode(t, "nothing", err, codes.InvalidArgument, "not a backup")
	if p.core.Snapshot() != before {
		t.Error("a refused backup changed something")
	}

	r, err := restoreInto(t, p, file, nil)
	if err != nil || len(r.GetChanges()) != 4 {
		t.Fatal(r, err)
	}
	s := p.core.Snapshot()
	if s.Get("projects/default/routes/three") != nil || s.Get("projects/default/routes/two") == nil || s.Get("projects/default/secrets/db").(*pb.Secret).GetData()["url"] != "first" {
		t.Error("it is not as in the backup")
	}
	revs, err := pb.NewConfigServiceClient(p.conn).ListRevisions(t.Context(), &pb.ListRevisionsRequest{})
	if err != nil || !strings.Contains(revs.GetRevisions()[0].GetMessage(), "restore of a backup of revision 1") {
		t.Error(revs, err)
	}

	// Secrets that were sealed with another key are nobody's.
	other := t.TempDir()
	st, err := store.Open(t.Context(), store.Options{DataDir: filepath.Join(other, "etcd"), Prefix: "/test", SealKey: []byte(strings.Repeat("k", 32))})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { st.Close() })
	q := serve(t, st, other)
	_, err = restoreInto(t, q, file, nil)
	wantCode(t, "another seal key", err, codes.InvalidArgument, "seal key")
	if n := q.core.Snapshot().Len(); n > 0 {
		t.Errorf("%d objects", n)
	}
}
