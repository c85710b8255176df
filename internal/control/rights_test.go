package control

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/penstock-gateway/penstock/gateway"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
	"github.com/penstock-gateway/penstock/internal/access/connect"
	"github.com/penstock-gateway/penstock/internal/archive"
)

// as returns a connection with a new token that has roles, "role@project".
func as(t *testing.T, p *plane, name string, grants ...string) *grpc.ClientConn {
	t.Helper()
	tok := &pb.Token{Name: name}
	for _, g := range grants {
		role, project, _ := strings.Cut(g, "@")
		tok.Grants = append(tok.Grants, &pb.Grant{Role: role, Project: project})
	}
	r, err := pb.NewAccessServiceClient(p.conn).CreateToken(t.Context(), &pb.CreateTokenRequest{Token: tok})
	if err != nil {
		t.Fatal(err)
	}
	conn, err := grpc.NewClient(p.addr.API.String(), grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithPerRPCCredentials(connect.Bearer(r.GetSecret())))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

func ofProject(project, id string) *pb.Resource {
	r := direct(id, "/"+id, "x")
	r.Name = "projects/" + project + "/routes/" + id
	return resource(r)
}

func deployed(name string, change func(*pb.Function)) *pb.Resource {
	f := &pb.Function{Name: name, Source: "hello", Contract: &pb.Function_Server{Server: &pb.ServerContract{Command: []string{"./hello"}}}}
	if change != nil {
		change(f)
	}
	return &pb.Resource{Kind: &pb.Resource_Function{Function: f}}
}

var noWait = &pb.WriteOptions{Wait: pb.WaitMode_WAIT_MODE_NONE}

func apply(t *testing.T, conn *grpc.ClientConn, resources ...*pb.Resource) error {
	t.Helper()
	_, err := pb.NewConfigServiceClient(conn).Apply(t.Context(), &pb.ApplyRequest{Resources: resources, Options: noWait})
	return err
}

// wantRefused checks that a refusal names every right that lacks.
func wantRefused(t *testing.T, what string, err error, lacking ...string) {
	t.Helper()
	if status.Code(err) != codes.PermissionDenied {
		t.Errorf("%s: %v, want it to be refused", what, err)
	}
	for _, l := range lacking {
		if !strings.Contains(fmt.Sprint(err), l) {
			t.Errorf("%s: %v does not name %q", what, err, l)
		}
	}
}

// TestDeployerStaysInFunctions: what a deployer could turn into more is a right of
// its own, whichever way it is tried.
func TestDeployerStaysInFunctions(t *testing.T) {
	p := start(t, t.TempDir())
	const name = "projects/default/functions/f"
	d := as(t, p, "ci", "deployer@default")
	secret := &pb.Resource{Kind: &pb.Resource_Secret{Secret: &pb.Secret{Name: "projects/default/secrets/db", Value: &pb.Secret_Jwks{Jwks: `{"keys":[]}`}}}}
	if err := apply(t, d, deployed(name, nil)); err != nil {
		t.Fatal(err)
	}
	if err := apply(t, d, deployed(name, func(f *pb.Function) { f.Scale = &pb.Scale{Max: 3} })); err != nil {
		t.Errorf("scale: %v", err)
	}
	level := func(l pb.IsolationLevel) func(*pb.Function) {
		return func(f *pb.Function) { f.Isolation = &pb.Isolation{Level: l} }
	}
	wantRefused(t, "less apart", apply(t, d, deployed(name, level(pb.IsolationLevel_ISOLATION_LEVEL_NONE))), "relax isolation")
	wantRefused(t, "new and less apart", apply(t, d, deployed(name+"2", level(pb.IsolationLevel_ISOLATION_LEVEL_NONE))), "relax isolation")
	wantRefused(t, "writable folders", apply(t, d, deployed(name, func(f *pb.Function) { f.Isolation = &pb.Isolation{Writable: []string{"/etc"}} })), "relax isolation")
	for what, i := range map[string]*pb.Isolation{
		"the machine's network": {Network: pb.NetworkAccess_NETWORK_ACCESS_HOST}, "a service of the machine": {NetworkAllow: []string{"127.0.0.1:5432"}},
	} {
		wantRefused(t, what, apply(t, d, deployed(name, func(f *pb.Function) { f.Isolation = i })), "relax isolation")
	}
	wantRefused(t, "the value of a secret", apply(t, d, deployed(name, func(f *pb.Function) {
		f.EnvSecrets = map[string]*pb.SecretKey{"DB": {Secret: "db", Key: "url"}}
	})), "use secrets")
	wantRefused(t, "all at once", apply(t, d, secret, ofProject("default", "r"), ofProject("other", "r"), deployed("projects/other/functions/f", nil)),
		"secrets", "routes in the project default", "routes in the project other", "functions in the project other")
	wantRefused(t, "only a try", func() error {
		_, err := pb.NewConfigServiceClient(d).Apply(t.Context(), &pb.ApplyRequest{Resources: []*pb.Resource{secret}, Options: &pb.WriteOptions{ValidateOnly: true}})
		return err
	}(), "create secrets")
	_, err := pb.NewConfigServiceClient(d).Apply(t.Context(), &pb.ApplyRequest{Deletes: []string{name}, Options: noWait})
	wantRefused(t, "delete", err, "delete functions")

	// A route in the same file needs a right when it is new or changes, and none as it is.
	wantRefused(t, "a new route", apply(t, d, deployed(name, nil), ofProject("default", "r")), "create routes")
	kept := &pb.Resource{Kind: &pb.Resource_Secret{Secret: &pb.Secret{Name: "projects/default/secrets/kept", Data: map[string]string{"url": "x"}}}}
	if err := apply(t, p.conn, ofProject("default", "r"), kept); err != nil {
		t.Fatal(err)
	}
	if err := apply(t, d, deployed(name, func(f *pb.Function) { f.Scale = &pb.Scale{Max: 4} }), ofProject("default", "r")); err != nil {
		t.Errorf("a route as it is: %v", err)
	}
	changed := ofProject("default", "r")
	changed.GetRoute().Hostnames = []string{"other.test"}
	wantRefused(t, "another route", apply(t, d, changed), "update routes")
	wantRefused(t, "a secret as it is", apply(t, d, kept), "update secrets")

	// The owner lets a function run less apart: whoever changes its code could do the same.
	if err := apply(t, p.conn, deployed(name, level(pb.IsolationLevel_ISOLATION_LEVEL_NONE))); err != nil {
		t.Fatal(err)
	}
	wantRefused(t, "other code of it", apply(t, d, deployed(name, func(f *pb.Function) { level(pb.IsolationLevel_ISOLATION_LEVEL_NONE)(f); f.Source = "evil" })), "relax isolation")
	if err := apply(t, p.conn, deployed(name, nil)); err != nil {
		t.Fatal(err)
	}
	// Versions of that time are still there.
	versions := p.core.Snapshot().Versions(name)
	i := slices.IndexFunc(versions, func(v *pb.FunctionVersion) bool {
		return v.GetSpec().GetIsolation().GetLevel() == pb.IsolationLevel_ISOLATION_LEVEL_NONE
	})
	if i < 0 {
		t.Fatalf("no version with the level NONE in %v", versions)
	}
	wantRefused(t, "back to such a version", apply(t, d, deployed(name, func(f *pb.Function) {
		f.Traffic = []*pb.Traffic{{Version: versions[i].GetNumber(), Weight: 100}}
	})), "relax isolation")
	// What became of a function is for whoever deploys it to see, and nothing else is.
	history := func(object string) (int, error) {
		l, err := pb.NewConfigServiceClient(d).ListRevisions(t.Context(), &pb.ListRevisionsRequest{Object: object})
		return len(l.GetRevisions()), err
	}
	if n, err := history(name); err != nil || n < 4 {
		t.Errorf("the history of his function: %d revisions, %v", n, err)
	}
	for what, object := range map[string]string{
		"of a gateway": "projects/default/gateways/g", "of a secret": "projects/default/secrets/db", "of another project": "projects/other/functions/f", "of everything": "",
	} {
		_, err := history(object)
		wantRefused(t, "the history "+what, err, "may not")
	}
	// A client cannot call itself a part of the control plane.
	_, err = pb.NewConfigServiceClient(d).Rollback(t.Context(), &pb.RollbackRequest{Revision: 1, Options: noWait})
	wantRefused(t, "rollback", err, "rollback configuration")
}

// TestProjectsAreApart: who has rights in one project sees and changes nothing of
// another, by lists, watches, status, differences, prunes and rollbacks.
func TestProjectsAreApart(t *testing.T) {
	dir := t.TempDir()
	p := start(t, dir)
	e := as(t, p, "shop", "editor@shop")
	runner, _ := connectRunner(t, p, filepath.Join(dir, "pki"), "spiffe://penstock.local/runner/canary", "canary")
	if _, err := runner.Recv(); err != nil {
		t.Fatal(err)
	}
	config := pb.NewConfigServiceClient(e)
	if err := apply(t, p.conn, ofProject("shop", "a"), ofProject("bank", "canary")); err != nil {
		t.Fatal(err)
	}
	if _, err := pb.NewConfigServiceClient(p.conn).Apply(t.Context(), &pb.ApplyRequest{Resources: []*pb.Resource{ofProject("bank", "canary2")}, PruneSet: "set", Options: noWait}); err != nil {
		t.Fatal(err)
	}
	var shown []string
	list, err := pb.NewRouteServiceClient(e).ListRoutes(t.Context(), &pb.ListRoutesRequest{Parent: "projects/-", PageSize: 1})
	shown = append(shown, fmt.Sprint(list, err))
	if len(list.GetRoutes()) != 1 || list.GetNextPageToken() != "" {
		t.Errorf("list: %v %v", list, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	watch, err := config.Watch(ctx, &pb.WatchRequest{})
	if err != nil {
		t.Fatal(err)
	}
	first, err := watch.Recv()
	shown = append(shown, fmt.Sprint(first, err))
	st, err := pb.NewProxyServiceClient(e).GetStatus(t.Context(), &pb.GetStatusRequest{})
	shown = append(shown, fmt.Sprint(st, err))
	if st.GetRunnerCount() != 1 {
		t.Errorf("%d runners are connected, want 1", st.GetRunnerCount())
	}
	diff, err := config.Diff(t.Context(), &pb.DiffRequest{FromRevision: 1})
	shown = append(shown, fmt.Sprint(diff, err))
	if all := strings.Join(shown, "\n"); strings.Contains(all, "canary") || !strings.Contains(all, "routes/a") {
		t.Errorf("shown: %s", all)
	}
	_, err = pb.NewRouteServiceClient(e).GetRoute(t.Context(), &pb.GetRouteRequest{Name: "projects/bank/routes/canary"})
	wantRefused(t, "get", err, "project bank")
	_, err = config.Diff(t.Context(), &pb.DiffRequest{Apply: &pb.ApplyRequest{Deletes: []string{"projects/bank/routes/canary"}}})
	wantRefused(t, "diff of another project", err, "read routes in the project bank")
	_, err = config.Apply(t.Context(), &pb.ApplyRequest{PruneSet: "set", Resources: []*pb.Resource{ofProject("shop", "a")}, Options: noWait})
	wantRefused(t, "a prune", err, "delete routes in the project bank", "prune configuration in the project bank")
	_, err = config.Rollback(t.Context(), &pb.RollbackRequest{Revision: 1, Options: noWait})
	wantRefused(t, "a rollback", err, "routes in the project bank")
	if err := apply(t, e, ofProject("shop", "b")); err != nil {
		t.Errorf("in its own project: %v", err)
	}
	if revs, err := p.core.Revisions(t.Context(), 0, 1); err != nil || revs[0].GetAuthor() != "token:shop" {
		t.Errorf("author: %v %v", revs, err)
	}
}

// TestNobodyGivesMoreThanHeHas: by tokens, bindings and roles.
func TestNobodyGivesMoreThanHeHas(t *testing.T) {
	p := start(t, t.TempDir())
	a := pb.NewAccessServiceClient(as(t, p, "lead", "admin@shop"))
	owner := pb.NewAccessServiceClient(p.conn)
	ctx := t.Context()
	token := func(c pb.AccessServiceClient, name, role, project string) error {
		_, err := c.CreateToken(ctx, &pb.CreateTokenRequest{Token: &pb.Token{Name: name, Grants: []*pb.Grant{{Role: role, Project: project}}}})
		return err
	}
	bind := func(c pb.AccessServiceClient, who, role, project string) error {
		_, err := c.CreateBinding(ctx, &pb.CreateBindingRequest{Binding: &pb.Binding{Subject: who, Grant: &pb.Grant{Role: role, Project: project}}})
		return err
	}
	if err := token(a, "x", "editor", "shop"); err != nil {
		t.Error(err)
	}
	wantRefused(t, "a token for all projects", token(a, "y", "viewer", "*"), "all projects")
	wantRefused(t, "a token for another project", token(a, "y", "viewer", "bank"), "bank")
	wantRefused(t, "more for itself", bind(a, "token:lead", "admin", "*"), "all projects")
	_, err := a.SetRole(ctx, &pb.SetRoleRequest{Role: &pb.Role{Name: "mine", Permissions: []*pb.Permissions{{Verbs: []string{"*"}, Kinds: []string{"*"}}}}})
	wantRefused(t, "a role", err, "update access")
	// What is bound to the name of a token comes with it.
	if err := bind(owner, "token:ghost", "admin", "*"); err != nil {
		t.Fatal(err)
	}
	wantRefused(t, "a name with more rights", token(a, "ghost", "viewer", "shop"), "all projects")
	// Somebody who may manage access, but holds little else.
	if _, err := owner.SetRole(ctx, &pb.SetRoleRequest{Role: &pb.Role{Name: "clerk", Permissions: []*pb.Permissions{
		{Verbs: []string{"create", "update", "read", "delete"}, Kinds: []string{"access"}}, {Verbs: []string{"read"}, Kinds: []string{"routes"}},
	}}}); err != nil {
		t.Fatal(err)
	}
	clerk := pb.NewAccessServiceClient(as(t, p, "clerk", "clerk@*"))
	wantRefused(t, "a clerk makes an admin", bind(clerk, "user:bob", "admin", "*"), "relax isolation", "create secrets")
	_, err = clerk.SetRole(ctx, &pb.SetRoleRequest{Role: &pb.Role{Name: "clerk", Permissions: []*pb.Permissions{{Verbs: []string{"*"}, Kinds: []string{"*"}}}}})
	wantRefused(t, "a clerk widens its own role", err, "does not hold")
	_, err = owner.SetRole(ctx, &pb.SetRoleRequest{Role: &pb.Role{Name: "typo", Permissions: []*pb.Permissions{{Verbs: []string{"raed"}, Kinds: []string{"route", "routes"}}}}})
	if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "raed") || !strings.Contains(err.Error(), `"route"`) {
		t.Errorf("a role with typing errors: %v", err)
	}
	_, err = owner.SetRole(ctx, &pb.SetRoleRequest{Role: &pb.Role{Name: "viewer"}})
	wantCode(t, "a built-in role", err, codes.FailedPrecondition, "built in")
	_, err = owner.DeleteRole(ctx, &pb.DeleteRoleRequest{Name: "clerk"})
	wantCode(t, "a role in use", err, codes.FailedPrecondition, "token:clerk")
}

// TestRevokedTokenEndsStreams: revoking a token ends what it is used for just now,
// and so does taking away its right.
func TestRevokedTokenEndsStreams(t *testing.T) {
	p := start(t, t.TempDir())
	owner := pb.NewAccessServiceClient(p.conn)
	conn := as(t, p, "w", "viewer@*")
	watch, err := pb.NewConfigServiceClient(conn).Watch(t.Context(), &pb.WatchRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := watch.Recv(); err != nil {
		t.Fatal(err)
	}
	if _, err := owner.RevokeToken(t.Context(), &pb.RevokeTokenRequest{Name: "w"}); err != nil {
		t.Fatal(err)
	}
	_, err = watch.Recv()
	wantCode(t, "the open watch", err, codes.Unauthenticated, "revoked")
	_, err = pb.NewProxyServiceClient(conn).GetStatus(t.Context(), &pb.GetStatusRequest{})
	wantCode(t, "a new call", err, codes.Unauthenticated, "not known")
}

// TestAudit: writes have what they changed, refusals their reason, and no record
// holds a secret; another caller without the right cannot read them.
func TestAudit(t *testing.T) {
	p := start(t, t.TempDir())
	const canary = "c4n4ry"
	ci := as(t, p, "ci", "editor@*")
	if err := apply(t, ci, ofProject("default", "a")); err != nil {
		t.Fatal(err)
	}
	if err := apply(t, p.conn, gateway.ToResource(secretData("k", map[string]string{"a": canary}))); err != nil {
		t.Fatal(err)
	}
	secret := gateway.ToResource(secretData("l", map[string]string{"a": canary}))
	wantRefused(t, "a secret", apply(t, ci, secret), "create secrets")
	stranger, err := grpc.NewClient(p.addr.API.String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer stranger.Close()
	if err := apply(t, stranger, secret); status.Code(err) != codes.Unauthenticated {
		t.Error(err)
	}
	a := pb.NewAccessServiceClient(p.conn)
	got, err := a.ListAudit(t.Context(), &pb.ListAuditRequest{})
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for _, r := range got.GetRecords() {
		line := fmt.Sprintf("%s %s %s %s", r.GetIdentity(), r.GetAction()[strings.LastIndexByte(r.GetAction(), '/')+1:], r.GetVerdict(), r.GetFrom())
		for _, o := range r.GetObjects() {
			line += fmt.Sprintf(" %s:%t>%t", o.GetName(), o.GetBefore() != "", o.GetAfter() != "")
		}
		lines = append(lines, line)
	}
	all := strings.Join(lines, "\n")
	for _, want := range []string{
		"CreateToken allowed", "access/token/ci:false>true", "token:ci Apply allowed 127.0.0.1", "projects/default/routes/a:false>true",
		"projects/default/secrets/k:false>true", "token:ci Apply refused", "\n Apply refused this machine",
	} {
		if !strings.Contains(all, want) {
			t.Errorf("no record has %q:\n%s", want, all)
		}
	}
	if strings.Contains(fmt.Sprint(got), canary) || strings.Contains(fmt.Sprint(got), "pst1_") {
		t.Errorf("a record holds a secret: %v", got)
	}
	if v, err := a.VerifyAudit(t.Context(), &pb.VerifyAuditRequest{}); err != nil || !v.GetOk() {
		t.Errorf("verify: %v %v", v, err)
	}
	_, err = pb.NewAccessServiceClient(ci).ListAudit(t.Context(), &pb.ListAuditRequest{})
	wantRefused(t, "the log, for an editor", err, "read audit")
}

// TestMintIsARightOfItsOwn: only who may mint development tokens gets one, whatever
// else he may do; each is in the audit log, with its hash and not its text.
func TestMintIsARightOfItsOwn(t *testing.T) {
	p := start(t, t.TempDir())
	mint := func(conn *grpc.ClientConn) (*pb.MintDevTokenResponse, error) {
		return pb.NewDevTokenServiceClient(conn).MintDevToken(t.Context(), &pb.MintDevTokenRequest{Subject: "alice"})
	}
	for name, grant := range map[string]string{"ed": "editor@*", "dep": "deployer@*", "view": "viewer@*", "project": "admin@default"} {
		conn := as(t, p, name, grant)
		_, err := mint(conn)
		wantRefused(t, grant, err, "mint dev-tokens in all projects")
		if _, err := pb.NewDevTokenServiceClient(conn).GetDevIssuer(t.Context(), &pb.GetDevIssuerRequest{}); err != nil {
			t.Errorf("%s, public keys: %v", grant, err)
		}
	}
	if _, err := pb.NewAccessServiceClient(p.conn).SetRole(t.Context(), &pb.SetRoleRequest{Role: &pb.Role{Name: "minter", Permissions: []*pb.Permissions{{Verbs: []string{"mint"}, Kinds: []string{"dev-tokens"}}}}}); err != nil {
		t.Fatal(err)
	}
	r, err := mint(as(t, p, "tester", "minter@*"))
	if err != nil {
		t.Fatal(err)
	}
	log, err := pb.NewAccessServiceClient(p.conn).ListAudit(t.Context(), &pb.ListAuditRequest{Limit: 1000})
	if err != nil {
		t.Fatal(err)
	}
	verdicts := map[string]string{}
	for _, a := range log.GetRecords() {
		if a.GetAction() != pb.DevTokenService_MintDevToken_FullMethodName {
			continue
		}
		verdicts[a.GetIdentity()] = a.GetVerdict()
		if a.GetVerdict() == "allowed" && (len(a.GetObjects()) != 1 || !strings.Contains(a.GetObjects()[0].GetName(), `sub="alice"`) || a.GetObjects()[0].GetAfter() == "") {
			t.Errorf("the record %v does not say what was signed", a)
		}
		if strings.Contains(a.String(), r.GetToken()) {
			t.Errorf("the record %v holds the token", a)
		}
	}
	if verdicts["token:tester"] != "allowed" || verdicts["token:ed"] != "refused" || verdicts["token:project"] != "refused" {
		t.Errorf("verdicts %v", verdicts)
	}
}

// TestAuditIsNotPushedOut: calls that change nothing, which everybody known may make,
// push nobody's records out of the log, however many there are.
func TestAuditIsNotPushedOut(t *testing.T) {
	p := start(t, t.TempDir())
	viewer := as(t, p, "looks", "viewer@*")
	bad := resource(direct("r", "/r", "x"))
	bad.GetRoute().Name = "not a name"
	const calls = 100
	for range calls {
		if err := apply(t, viewer); err != nil {
			t.Fatal(err)
		}
		if err := apply(t, viewer, bad); err == nil {
			t.Fatal("it was taken")
		}
	}
	audit := pb.NewAccessServiceClient(p.conn)
	r, err := audit.ListAudit(t.Context(), &pb.ListAuditRequest{Identity: "token:looks", Limit: 1000})
	if err != nil {
		t.Fatal(err)
	}
	if n := len(r.GetRecords()); n == 0 || n > calls/2 {
		t.Errorf("%d records of %d calls that changed nothing", n, 2*calls)
	}
	// What changes something is recorded each time, and so is who fails with an outcome
	// that is not known.
	editor := as(t, p, "writes", "editor@default")
	for i := range 20 {
		if err := apply(t, editor, resource(direct(fmt.Sprint("r", i), "/r", "x"))); err != nil {
			t.Fatal(err)
		}
	}
	if r, err = audit.ListAudit(t.Context(), &pb.ListAuditRequest{Identity: "token:writes", Limit: 1000}); err != nil || len(r.GetRecords()) != 20 {
		t.Errorf("%d records of 20 changes, %v", len(r.GetRecords()), err)
	}
	// Page by page, from the newest on.
	var paged []int64
	for before := int64(0); ; before = paged[0] {
		page, err := audit.ListAudit(t.Context(), &pb.ListAuditRequest{Identity: "token:writes", Limit: 7, Before: before})
		if err != nil {
			t.Fatal(err)
		}
		if len(page.GetRecords()) == 0 {
			break
		}
		var numbers []int64
		for _, a := range page.GetRecords() {
			numbers = append(numbers, a.GetNumber())
		}
		paged = append(numbers, paged...)
	}
	var whole []int64
	for _, a := range r.GetRecords() {
		whole = append(whole, a.GetNumber())
	}
	if !slices.Equal(paged, whole) {
		t.Errorf("in pages: %v, at once: %v", paged, whole)
	}
	if _, err := audit.ListAudit(t.Context(), &pb.ListAuditRequest{Before: -1}); status.Code(err) != codes.InvalidArgument {
		t.Errorf("a page before a negative number: %v", err)
	}
}

// TestAuditNotesWhatIsDone: what succeeds and changes nothing is recorded as rarely as what
// is refused, whichever call it is, and what changes something each time, with its name.
func TestAuditNotesWhatIsDone(t *testing.T) {
	p := start(t, t.TempDir())
	conn := as(t, p, "ops", "admin@*")
	const id = "spiffe://penstock.local/proxy/default/-/edge"
	code := zipOf(t, "app.py")
	digest, err := archive.Digest(bytes.NewReader(code))
	if err != nil {
		t.Fatal(err)
	}
	role := &pb.SetRoleRequest{Role: &pb.Role{Name: "looks", Permissions: []*pb.Permissions{{Verbs: []string{"read"}, Kinds: []string{"routes"}}}}}
	proxies := pb.NewProxyAdmissionServiceClient(conn)
	allow := func() error {
		_, err := proxies.AllowProxy(t.Context(), &pb.AllowProxyRequest{Subject: &pb.AllowProxyRequest_Identity{Identity: id}})
		return err
	}
	calls := []struct {
		do    func() error
		notes []string // of the first time
	}{
		{func() error {
			_, err := (&plane{conn: conn}).upload(t, digest, code)
			return err
		}, []string{"packages/" + digest}},
		{func() error { return apply(t, conn, resource(direct("r", "/r", "x"))) }, []string{"projects/default/routes/r"}},
		{func() error {
			_, err := pb.NewRouteServiceClient(conn).UpdateRoute(t.Context(), &pb.UpdateRouteRequest{Route: direct("r", "/r", "x"), Options: noWait})
			return err
		}, nil},
		{func() error { _, err := pb.NewAccessServiceClient(conn).SetRole(t.Context(), role); return err }, []string{"access/role/looks"}},
		{func() error {
			_, err := proxies.CreateJoinToken(t.Context(), &pb.CreateJoinTokenRequest{Project: "default", Gateway: "-", Name: "edge"})
			return err
		}, []string{"join-token " + id}},
		{func() error {
			_, err := proxies.RevokeProxy(t.Context(), &pb.RevokeProxyRequest{Subject: &pb.RevokeProxyRequest_Identity{Identity: id}})
			return err
		}, []string{"revoked/identity/" + id}},
		{allow, []string{"revoked/identity/" + id}},
	}
	var want []string
	for _, c := range calls {
		if err := c.do(); err != nil {
			t.Fatal(err)
		}
		want = append(want, c.notes...)
	}
	const again = 50
	for range again {
		for _, i := range []int{0, 1, 2, 3, 6} {
			if err := calls[i].do(); err != nil {
				t.Fatal(err)
			}
		}
	}
	r, err := pb.NewAccessServiceClient(p.conn).ListAudit(t.Context(), &pb.ListAuditRequest{Identity: "token:ops", Limit: 1000})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, a := range r.GetRecords() {
		for _, o := range a.GetObjects() {
			got = append(got, o.GetName())
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("noted are %q, want %q", got, want)
	}
	if n := len(r.GetRecords()) - len(want); n == 0 || n > 2*again {
		t.Errorf("%d records of %d calls that changed nothing", n, 5*again)
	}
}

// TestAuditIsBounded: somebody whom nobody knows fills the log neither with long paths, nor
// forges lines of it, by either front.
func TestAuditIsBounded(t *testing.T) {
	p := start(t, t.TempDir())
	long := "/debug/%1b%5b2J%0a9%20allowed/" + strings.Repeat("x", 100_000)
	if got := statusOf(t, p, http.MethodGet, long, "", nil); got != http.StatusUnauthorized {
		t.Errorf("status %d", got)
	}
	conn, err := grpc.NewClient(p.addr.API.String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.Invoke(t.Context(), "/"+strings.Repeat("y", 100_000)+"/Do", &pb.WhoAmIRequest{}, &pb.WhoAmIResponse{}); status.Code(err) != codes.Unauthenticated {
		t.Errorf("gRPC: %.200v", err)
	}
	r, err := pb.NewAccessServiceClient(p.conn).ListAudit(t.Context(), &pb.ListAuditRequest{Verdict: "refused"})
	if err != nil || len(r.GetRecords()) != 2 {
		t.Fatalf("%d records, %v", len(r.GetRecords()), err)
	}
	for _, a := range r.GetRecords() {
		if action := a.GetAction(); len(action) > 2000 || strings.ContainsAny(action, "\x1b\n") {
			t.Errorf("an action of %d bytes: %.100q", len(action), action)
		}
	}
}
