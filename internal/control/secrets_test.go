package control

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

func secretData(id string, data map[string]string) *pb.Secret {
	return &pb.Secret{Name: "projects/default/secrets/" + id, Data: data}
}

func withSecret(f *pb.Function, variable, secret, key string) *pb.Function {
	f = proto.CloneOf(f)
	if f.EnvSecrets == nil {
		f.EnvSecrets = map[string]*pb.SecretKey{}
	}
	f.EnvSecrets[variable] = &pb.SecretKey{Secret: secret, Key: key}
	return f
}

// nextFunctions is the next message that brings functions.
func nextFunctions(t *testing.T, s pb.RunnerService_ConnectClient) *pb.ConnectResponse {
	t.Helper()
	for {
		m, err := s.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if !m.GetFunctionsUnchanged() {
			return m
		}
	}
}

func valuesOf(m *pb.ConnectResponse) string {
	var out []string
	for _, s := range m.GetSecrets() {
		out = append(out, fmt.Sprintf("%s %v", strings.TrimPrefix(s.GetFunction(), "projects/default/functions/"), s.GetEnv()))
	}
	return strings.Join(out, " ")
}

// TestEnvSecrets: values go to runners, and to nobody else; a changed one is sent, and
// a version that gets requests has the present one.
func TestEnvSecrets(t *testing.T) {
	dir := t.TempDir()
	p := start(t, dir)
	runner, _ := connectRunner(t, p, filepath.Join(dir, "pki"), runnerIdentity+"one", "one")
	nextFunctions(t, runner)

	p.mustPut(t, secretData("db", map[string]string{"url": "canary-one", "other": "canary-two"}))
	first := p.mustPut(t, withSecret(function("1"), "DB_URL", "db", "url"))
	m := nextFunctions(t, runner)
	if got, want := valuesOf(m), "f map[DB_URL:canary-one]"; got != want || m.GetRevision() != first {
		t.Fatalf("revision %d: the runner got %q, want %q", m.GetRevision(), got, want)
	}
	if strings.Contains(fmt.Sprint(m.GetFunctions()), "canary") {
		t.Error("a function itself holds the value")
	}

	p.mustPut(t, secretData("db", map[string]string{"url": "canary-three", "other": "canary-two"}))
	m = nextFunctions(t, runner)
	if got, want := valuesOf(m), "f map[DB_URL:canary-three]"; got != want {
		t.Errorf("after a change the runner got %q, want %q", got, want)
	}
	if got := p.versions(); len(got) != 1 {
		t.Errorf("a changed value made a version: %v", got)
	}

	// A value that the function does not use concerns no runner.
	p.mustPut(t, secretData("db", map[string]string{"url": "canary-three", "other": "canary-four"}))
	// A version that gets requests runs with the present value.
	p.mustPut(t, withSecret(function("2", &pb.Traffic{Version: first, Weight: 1}, &pb.Traffic{Weight: 1}), "DB_URL", "db", "other"))
	m = nextFunctions(t, runner)
	if got, want := valuesOf(m), fmt.Sprintf("f map[DB_URL:canary-four] f@%d map[DB_URL:canary-three]", first); got != want {
		t.Errorf("with two versions the runner got %q, want %q", got, want)
	}
}

// TestSecretReferences: what does not hold is refused, with what was meant.
func TestSecretReferences(t *testing.T) {
	p := start(t, t.TempDir())
	p.mustPut(t, secretData("database", map[string]string{"url": "v", "password": "v"}))
	for _, c := range []struct {
		what, secret, key, text string
	}{
		{"no such secret", "databse", "url", `secrets/databse does not exist; create it, in the same apply if you like, or change the reference; did you mean "database"?`},
		{"no such key", "database", "pasword", `secrets/database has no key "pasword" in its data; did you mean "password"?`},
		{"another project", "projects/other/secrets/database", "url", "in another project"},
		{"not a secret", "projects/default/routes/r", "url", "env_secrets"},
	} {
		_, err := p.put(t, withSecret(function("1"), "DB_URL", c.secret, c.key))
		wantCode(t, c.what, err, codes.InvalidArgument, c.text)
	}
	first := p.mustPut(t, withSecret(function("1"), "DB_URL", "database", "url"))
	_, err := p.put(t, secretData("database", map[string]string{"password": "v"}))
	wantCode(t, "a key that is used is removed", err, codes.InvalidArgument, `has no key "url"`)
	config := pb.NewConfigServiceClient(p.conn)
	remove := func() error {
		_, err := config.Apply(t.Context(), &pb.ApplyRequest{Deletes: []string{"projects/default/secrets/database"}, Options: &pb.WriteOptions{Wait: pb.WaitMode_WAIT_MODE_NONE}})
		return err
	}
	wantCode(t, "a secret that is used is deleted", remove(), codes.FailedPrecondition, testFunction)

	// A version that gets no requests holds nothing back, and gets none without it.
	second := p.mustPut(t, function("2", &pb.Traffic{Version: first, Weight: 1}))
	wantCode(t, "a secret that a version with requests uses is deleted", remove(), codes.FailedPrecondition, testFunction)
	p.mustPut(t, function("2", &pb.Traffic{Version: second, Weight: 1}))
	if err := remove(); err != nil {
		t.Fatal(err)
	}
	_, err = p.put(t, function("2", &pb.Traffic{Version: first, Weight: 1}))
	wantCode(t, "requests for a version whose secret is gone", err, codes.InvalidArgument, fmt.Sprintf(`traffic[0].version: version %d has env_secrets["DB_URL"]: projects/default/secrets/database does not exist`, first))
}

// TestSecretDataIsHidden: reads have the keys, with a mark that means "as it was" when
// it is written back, and that never becomes a value.
func TestSecretDataIsHidden(t *testing.T) {
	dir := t.TempDir()
	p := start(t, dir)
	secrets := pb.NewSecretServiceClient(p.conn)
	name := "projects/default/secrets/db"
	p.mustPut(t, secretData("db", map[string]string{"url": "canary-one", "user": "canary-two"}))
	read := func() *pb.Secret {
		t.Helper()
		got, err := secrets.GetSecret(t.Context(), &pb.GetSecretRequest{Name: name})
		if err != nil {
			t.Fatal(err)
		}
		return got.GetSecret()
	}
	s := read()
	if fmt.Sprint(s.GetData()) != "map[url:(hidden) user:(hidden)]" {
		t.Fatalf("a read has %v", s.GetData())
	}
	back, err := secrets.UpdateSecret(t.Context(), &pb.UpdateSecretRequest{Secret: s})
	if err != nil || back.GetResult().GetChanged() {
		t.Errorf("sent back as it was read: %v %v", back, err)
	}
	s = read()
	s.Data["user"] = "canary-three"
	if _, err := secrets.UpdateSecret(t.Context(), &pb.UpdateSecretRequest{Secret: s}); err != nil {
		t.Fatal(err)
	}
	if got := p.core.Snapshot().Get(name).(*pb.Secret).GetData(); fmt.Sprint(got) != "map[url:canary-one user:canary-three]" {
		t.Errorf("one value was changed, and there are %v", got)
	}
	s = read()
	s.Data["new"] = "(hidden)"
	_, err = secrets.UpdateSecret(t.Context(), &pb.UpdateSecretRequest{Secret: s})
	wantCode(t, "the mark as a new value", err, codes.InvalidArgument, `data["new"]: (hidden) is what reads show`)
	_, err = p.put(t, secretData("other", map[string]string{"url": "(hidden)"}))
	wantCode(t, "the mark in a new secret", err, codes.InvalidArgument, "write the value itself")

	d, err := pb.NewConfigServiceClient(p.conn).Diff(t.Context(), &pb.DiffRequest{FromRevision: 1, ToRevision: 2})
	if err != nil {
		t.Fatal(err)
	}
	if f := d.GetChanges()[0].GetFields(); len(f) != 1 || f[0].GetPath() != `data["user"]` || f[0].GetBefore() != `"(hidden)"` || f[0].GetAfter() != `"(hidden)"` {
		t.Errorf("the diff has %v", f)
	}
}

// TestSecretEtag: nobody learns a value by guessing it and comparing etags, and the
// same value keeps its etag.
func TestSecretEtag(t *testing.T) {
	tag := func(p *plane) string {
		return p.core.Snapshot().Get("projects/default/secrets/db").GetMetadata().GetEtag()
	}
	var tags []string
	for range 2 {
		p := start(t, t.TempDir())
		p.mustPut(t, secretData("db", map[string]string{"pin": "1234"}))
		one := tag(p)
		p.mustPut(t, secretData("db", map[string]string{"pin": "1234"}))
		if tag(p) != one || p.core.Snapshot().Revision() != 1 {
			t.Errorf("the same content again: etag %s, then %s, revision %d", one, tag(p), p.core.Snapshot().Revision())
		}
		p.mustPut(t, secretData("db", map[string]string{"pin": "1235"}))
		if tag(p) == one {
			t.Error("another content has the same etag")
		}
		tags = append(tags, one)
	}
	if tags[0] == tags[1] {
		t.Error("two control planes give one content the same etag: it is made of the content")
	}
}

// TestBadSecrets: all that is wrong is said at once, and no value with it.
func TestBadSecrets(t *testing.T) {
	p := start(t, t.TempDir())
	const canary = "canary-4711"
	big := strings.Repeat(canary, 3500)
	many := map[string]string{}
	for i := range 20 {
		many[fmt.Sprint("k", i)] = big[:31<<10]
	}
	f := function("1")
	f.Env["TWICE"] = "1"
	for _, v := range []string{"TWICE", "PORT", "AWS_LAMBDA_RUNTIME_API", "_HANDLER", "PENSTOCK_X"} {
		f = withSecret(f, v, "db", "url")
	}
	bad := func(o ...*pb.Secret) error {
		t.Helper()
		var err error
		for _, s := range o {
			_, err = p.put(t, s)
		}
		return err
	}
	for _, c := range []struct {
		what string
		err  error
		want []string
	}{
		{"values", bad(secretData("a", map[string]string{"empty": "", "nul": canary + "\x00", "big": big})), []string{`data["empty"]: is empty`, `data["nul"]: holds a NUL`, `data["big"]: is 38500 bytes long`}},
		{"all together", bad(secretData("a", many)), []string{"data: its values are 634880 bytes long together"}},
		{"a bad key", bad(secretData("a", map[string]string{"a b": canary})), []string{"data"}},
		{"a key with a dot", bad(secretData("a", map[string]string{"a.b/": canary})), []string{"data"}},
		{"nothing", bad(secretData("a", nil)), []string{"set exactly one of jwks, certificate, data"}},
		{"two", bad(&pb.Secret{Name: "projects/default/secrets/a", Data: map[string]string{"a": canary}, Value: &pb.Secret_Jwks{Jwks: canary}}), []string{"set exactly one of jwks, certificate, data"}},
		{"variables", func() error { _, err := p.put(t, f); return err }(), []string{
			`env_secrets["TWICE"]: is in env, too`, `env_secrets["PORT"]: is set by the runner`, `env_secrets["AWS_LAMBDA_RUNTIME_API"]: is set`, `env_secrets["_HANDLER"]: is set`, `env_secrets["PENSTOCK_X"]: is set`}},
	} {
		for _, w := range c.want {
			wantCode(t, c.what, c.err, codes.InvalidArgument, w)
		}
		if strings.Contains(fmt.Sprint(c.err), canary) {
			t.Errorf("%s: the error shows the value: %v", c.what, c.err)
		}
	}
}

// TestEveryReadHides looks for a value in all that the API says, in the debug pages
// and in the files of the store.
func TestEveryReadHides(t *testing.T) {
	const canary = "canary-5c1f-4711"
	dir := t.TempDir()
	st := openStore(t, dir)
	p := serve(t, st, dir)
	ctx := t.Context()
	var out bytes.Buffer
	note := func(m proto.Message, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintln(&out, m)
	}
	config, ops := pb.NewConfigServiceClient(p.conn), pb.NewFunctionOperationsServiceClient(p.conn)
	apply := func(o *pb.Secret, f *pb.Function) *pb.ApplyRequest {
		return &pb.ApplyRequest{Options: &pb.WriteOptions{Wait: pb.WaitMode_WAIT_MODE_NONE}, Resources: []*pb.Resource{{Kind: &pb.Resource_Secret{Secret: o}}, {Kind: &pb.Resource_Function{Function: f}}}}
	}
	for i := range 3 {
		s := secretData("db", map[string]string{"url": fmt.Sprint(canary, i)})
		r := apply(s, withSecret(function(fmt.Sprint(i)), "DB_URL", "db", "url"))
		d, err := config.Diff(ctx, &pb.DiffRequest{Apply: r})
		note(d, err)
		a, err := config.Apply(ctx, r)
		note(a, err)
	}
	dr, err := config.Diff(ctx, &pb.DiffRequest{FromRevision: 1, ToRevision: 3})
	note(dr, err)
	l, err := config.ListRevisions(ctx, &pb.ListRevisionsRequest{})
	note(l, err)
	df, err := ops.DescribeFunction(ctx, &pb.DescribeFunctionRequest{Name: testFunction})
	note(df, err)
	sl, err := pb.NewSecretServiceClient(p.conn).ListSecrets(ctx, &pb.ListSecretsRequest{Parent: "projects/default"})
	note(sl, err)
	fv, err := pb.NewFunctionVersionServiceClient(p.conn).ListFunctionVersions(ctx, &pb.ListFunctionVersionsRequest{Parent: "projects/default"})
	note(fv, err)
	w, err := config.Watch(ctx, &pb.WatchRequest{})
	if err != nil {
		t.Fatal(err)
	}
	m, err := w.Recv()
	note(m, err)
	rb, err := config.Rollback(ctx, &pb.RollbackRequest{Revision: 1, Options: &pb.WriteOptions{Wait: pb.WaitMode_WAIT_MODE_NONE}})
	note(rb, err)
	if got := p.core.Snapshot().SecretEnv(p.core.Snapshot().Get(testFunction).(*pb.Function))["DB_URL"]; got != canary+"0" {
		t.Errorf("after the rollback of the configuration the value is %q", got)
	}
	for _, path := range []string{"/debug/dump?stage=model", "/debug/dump?stage=xds", "/debug/dump?stage=proxies", "/debug/dump?stage=instances", "/metrics", "/v1/projects/default/secrets", "/v1/projects/default/secrets/db", "/v1/projects/default/functions/f", "/v1/revisions", "/v1/status"} {
		fmt.Fprintln(&out, httpGet(t, p, path))
	}
	if strings.Contains(out.String(), canary) {
		t.Errorf("the value is shown:\n%s", out.String())
	}
	p.stop()
	if err := st.Close(); err != nil {
		t.Fatal(err)
	}
	if found := filesWith(t, dir, canary); len(found) > 0 {
		t.Errorf("the value is in %v", found)
	}
}

// filesWith are the files below a folder that hold a text.
func filesWith(t *testing.T, dir, text string) (found []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(path)
		if bytes.Contains(b, []byte(text)) {
			found = append(found, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}
