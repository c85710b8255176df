package main

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
	"github.com/penstock-gateway/penstock/store"
	"github.com/penstock-gateway/penstock/store/storetest"
)

// TestStoreRepair: what check and repair advise about a lost resource works.
func TestStoreRepair(t *testing.T) {
	dir := t.TempDir()
	o := store.Options{DataDir: filepath.Join(dir, "whole"), MaintenanceInterval: -1, Logger: slog.New(slog.DiscardHandler)}
	st, err := store.Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	for i, v := range []string{"a", "b"} {
		if _, err := st.Commit(t.Context(), int64(i), storetest.Routes(0, 3, v), store.Info{}); err != nil {
			t.Fatal(err)
		}
	}
	if err := st.Close(); err != nil {
		t.Fatal(err)
	}
	lost := storetest.RouteName(1)
	storetest.DamageResource(t, o.DataDir, func(r *pb.Resource) bool {
		return r.GetRoute().GetName() == lost && storetest.Value(r) == "b"
	})
	// The log still has it, and a store that is made anew from the database alone has it not.
	if err := os.RemoveAll(filepath.Join(o.DataDir, "etcd", "member", "wal")); err != nil {
		t.Fatal(err)
	}
	if _, err := store.Rebuild(t.Context(), o, o.DataDir, filepath.Join(dir, "etcd")); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"check"}, 3, lost},
		{[]string{"repair"}, 3, "--restore " + lost + " --from REVISION"},
		{[]string{"repair", "--restore", lost, "--from", "2"}, 1, "revision 2 has no " + lost},
		{[]string{"repair", "--restore", lost, "--from", "1"}, 0, "only the history needs it"},
		{[]string{"repair", "--delete", lost}, 0, "repair: delete " + lost},
		{[]string{"repair", "--rollback", "1"}, 0, "revision 5"},
	} {
		cmd := penstock(t.Context(), append(append([]string{"store"}, c.args...), "--data-dir", dir)...)
		out, _ := cmd.CombinedOutput()
		if code := cmd.ProcessState.ExitCode(); code != c.code || !strings.Contains(string(out), c.want) {
			t.Errorf("%v: exit code %d, want %d and %q:\n%s", c.args, code, c.code, c.want, out)
		}
	}
	if kept, err := filepath.Glob(filepath.Join(dir, "etcd.before-repair-*")); err != nil || len(kept) < 4 {
		t.Errorf("copies: %v, %v", kept, err)
	}
}

// TestStoreCheckWithoutKey: a store whose key is missing is not called damaged: what can be
// said is, and which file is to be brought back.
func TestStoreCheckWithoutKey(t *testing.T) {
	dir := t.TempDir()
	key := filepath.Join(dir, "seal.key")
	st, err := store.Open(t.Context(), store.Options{DataDir: filepath.Join(dir, "etcd"), SealKeyFile: key, MaintenanceInterval: -1, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	secret := &pb.Resource{Kind: &pb.Resource_Secret{Secret: &pb.Secret{Name: "projects/default/secrets/s", Value: &pb.Secret_Jwks{Jwks: "{}"}}}}
	_, err = st.Commit(t.Context(), 0, []store.Change{{Name: secret.GetSecret().GetName(), Resource: secret}}, store.Info{})
	if err := errors.Join(err, st.Close(), os.Remove(key)); err != nil {
		t.Fatal(err)
	}
	cmd := penstock(t.Context(), "store", "check", "--data-dir", dir)
	out, _ := cmd.CombinedOutput()
	if code := cmd.ProcessState.ExitCode(); code != 1 || !strings.Contains(string(out), "are whole") || !strings.Contains(string(out), "bring back "+key) || strings.Contains(string(out), "damaged") {
		t.Errorf("exit code %d:\n%s", code, out)
	}
}

// TestBackupPage runs the commands of docs/backup.md one after another: a control plane that
// was restored from its backup serves what the one before did.
func TestBackupPage(t *testing.T) {
	in, run := exampleEnv(t)
	must := func(command string) string {
		t.Helper()
		out, err := run(command)
		if err != nil {
			t.Fatalf("%s: %v\n%s", command, err, out)
		}
		return out
	}
	serves := func() {
		t.Helper()
		await(t, func() error { _, err := run("curl -sSf http://127.0.0.1:8080/kept | grep -q safe"); return err })
	}
	must("penstock up -d --config examples/support-desk --functions-root examples/support-desk/functions")
	must(`printf 'kind: Route\nname: kept\nrules: [{matches: [{path: {exact: /kept}}], direct_response: {status: 200, body: safe}}]\n' | penstock apply -f -`)
	serves()
	commands := pageCommands(t, "backup.md")
	if len(commands) < 6 {
		t.Fatal(commands)
	}
	for _, command := range commands {
		if strings.HasPrefix(command, "penstock up ") {
			must("penstock down")
			command += " -d --config examples/support-desk --functions-root examples/support-desk/functions"
		}
		out := must(command)
		if strings.Contains(command, "--with-keys") && !strings.Contains(out, "whoever reads it has all secrets") {
			t.Errorf("%s: %s", command, out)
		}
		if strings.HasPrefix(command, "penstock up ") {
			serves()
		}
	}
	serves()
	if info, err := os.Stat(filepath.Join(filepath.Dir(in.dataDir), "penstock-with-keys.backup")); err != nil || info.Mode().Perm() != 0o600 {
		t.Error(info, err)
	}
	if out, err := run("penstock restore README.md --into ./other"); err == nil || !strings.Contains(out, "nothing was restored") {
		t.Errorf("another file: %v %s", err, out)
	}
}
