package control

import (
	"net/http"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
	"github.com/penstock-gateway/penstock/internal/access"
	"github.com/penstock-gateway/penstock/internal/access/connect"
	"github.com/penstock-gateway/penstock/internal/access/oidc"
	"github.com/penstock-gateway/penstock/internal/access/oidc/oidctest"
)

// withIssuer serves with a declared issuer.
func withIssuer(t *testing.T) (*plane, *oidctest.Issuer, oidctest.Key) {
	t.Helper()
	key := oidctest.NewKey(t, "1")
	i := oidctest.Start(t, key)
	v, err := oidc.New(oidc.Options{Issuer: i.URL, Audiences: []string{oidctest.Audience}, CAFile: i.CAFile, GroupsClaim: "groups"})
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	return serveFor(t, openStore(t, dir), dir, nil, access.Options{Issuer: v}), i, key
}

func bearing(t *testing.T, p *plane, token string) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient(p.addr.API.String(), grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithPerRPCCredentials(connect.Bearer(token)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// TestOIDC: a caller of the declared issuer may do what its name and its groups are
// bound to, and nothing else.
func TestOIDC(t *testing.T) {
	p, i, key := withIssuer(t)
	token := func(change func(map[string]any)) string { return oidctest.Sign(t, key, nil, i.Claims("bob", change)) }
	grouped := func(groups ...string) string { return token(func(c map[string]any) { c["groups"] = groups }) }
	list := func(token, project string) error {
		_, err := pb.NewRouteServiceClient(bearing(t, p, token)).ListRoutes(t.Context(), &pb.ListRoutesRequest{Parent: "projects/" + project})
		return err
	}
	owner := pb.NewAccessServiceClient(p.conn)
	bind := func(subject, role, project string) {
		t.Helper()
		if _, err := owner.CreateBinding(t.Context(), &pb.CreateBindingRequest{Binding: &pb.Binding{Subject: subject, Grant: &pb.Grant{Role: role, Project: project}}}); err != nil {
			t.Fatal(err)
		}
	}
	me := "oidc:" + i.URL + "#bob"
	who, err := pb.NewAccessServiceClient(bearing(t, p, token(nil))).WhoAmI(t.Context(), &pb.WhoAmIRequest{})
	if err != nil || who.GetIdentity() != me || who.GetVia() != "OpenID Connect" || len(who.GetGrants()) != 0 || who.GetExpireTime() == nil {
		t.Errorf("WhoAmI: %v, %v", who, err)
	}
	// Bindings of others whose names look alike.
	for _, s := range []string{"user:bob", "token:bob", "group:bob", "oidc:https://idp.example.com#bob", "oidc:" + i.URL + "#bobby", "group:ops2"} {
		bind(s, access.RoleAdmin, "*")
	}
	wantCode(t, "without a binding", list(grouped("user:bob", "ops", me), "default"), codes.PermissionDenied, me)
	bind("group:Domain Admins", access.RoleViewer, "default")
	bind(me, access.RoleViewer, "shop")
	for what, x := range map[string]struct {
		token, project string
		ok             bool
	}{
		"by group": {grouped("x", "Domain Admins"), "default", true}, "by name": {token(nil), "shop", true},
		"by group, another project": {grouped("Domain Admins"), "pay", false}, "without the group": {grouped("domain admins"), "default", false},
	} {
		if err := list(x.token, x.project); (err == nil) != x.ok {
			t.Errorf("%s: %v", what, err)
		}
		code := statusOf(t, p, http.MethodGet, "/v1/projects/"+x.project+"/routes", "", map[string][]string{"Authorization": {"Bearer " + x.token}})
		if want := map[bool]int{true: 200, false: 403}[x.ok]; code != want {
			t.Errorf("%s, over REST: %d, want %d", what, code, want)
		}
	}
	// Who holds little cannot give more.
	_, err = pb.NewAccessServiceClient(bearing(t, p, grouped("Domain Admins"))).CreateBinding(t.Context(), &pb.CreateBindingRequest{
		Binding: &pb.Binding{Subject: me, Grant: &pb.Grant{Role: access.RoleAdmin, Project: "default"}}})
	wantCode(t, "a viewer makes itself an administrator", err, codes.PermissionDenied, "access")
	expired := token(func(c map[string]any) { c["exp"] = time.Now().Unix() - 1 })
	wantCode(t, "expired", list(expired, "shop"), codes.Unauthenticated, "expired")
	if code := statusOf(t, p, http.MethodGet, "/v1/status", "", map[string][]string{"Authorization": {"Bearer " + expired}}); code != http.StatusUnauthorized {
		t.Errorf("expired, over REST: %d", code)
	}
	// The other credentials hold beside the issuer.
	if _, err := owner.WhoAmI(t.Context(), &pb.WhoAmIRequest{}); err != nil {
		t.Error(err)
	}
	for what, wrong := range wrongCredentials(t, p) {
		if code := statusOf(t, p, http.MethodGet, "/v1/status", "", map[string][]string{"Authorization": wrong}); code != http.StatusUnauthorized && code != http.StatusTooManyRequests {
			t.Errorf("credential %s: %d", what, code)
		}
	}
	record, err := owner.ListAudit(t.Context(), &pb.ListAuditRequest{Identity: me, Verdict: "refused"})
	if err != nil || len(record.GetRecords()) == 0 || record.GetRecords()[0].GetVia() != "OpenID Connect" {
		t.Errorf("audit: %v, %v", record, err)
	}
}

// TestOIDCExpires: a stream ends when its token does.
func TestOIDCExpires(t *testing.T) {
	p, i, key := withIssuer(t)
	if _, err := pb.NewAccessServiceClient(p.conn).CreateBinding(t.Context(), &pb.CreateBindingRequest{
		Binding: &pb.Binding{Subject: "oidc:" + i.URL + "#bob", Grant: &pb.Grant{Role: access.RoleViewer, Project: "*"}}}); err != nil {
		t.Fatal(err)
	}
	conn := bearing(t, p, oidctest.Sign(t, key, nil, i.Claims("bob", func(c map[string]any) { c["exp"] = time.Now().Unix() + 3 })))
	w, err := pb.NewConfigServiceClient(conn).Watch(t.Context(), &pb.WatchRequest{})
	for err == nil {
		_, err = w.Recv()
	}
	wantCode(t, "after the end of the token", err, codes.Unauthenticated, "expired")
}

// TestOIDCDown: while the issuer cannot be reached its callers are told so, and all
// others are served.
func TestOIDCDown(t *testing.T) {
	key := oidctest.NewKey(t, "1")
	i := oidctest.Start(t, key)
	i.Answer(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusBadGateway) })
	v, err := oidc.New(oidc.Options{Issuer: i.URL, Audiences: []string{oidctest.Audience}, CAFile: i.CAFile})
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	p := serveFor(t, openStore(t, dir), dir, nil, access.Options{Issuer: v})
	token := oidctest.Sign(t, key, nil, i.Claims("bob", nil))
	_, err = pb.NewAccessServiceClient(bearing(t, p, token)).WhoAmI(t.Context(), &pb.WhoAmIRequest{})
	wantCode(t, "the issuer is down", err, codes.Unavailable, "502")
	if code := statusOf(t, p, http.MethodGet, "/v1/status", "", map[string][]string{"Authorization": {"Bearer " + token}}); code != http.StatusServiceUnavailable {
		t.Errorf("over REST: %d", code)
	}
	if _, err := pb.NewAccessServiceClient(p.conn).WhoAmI(t.Context(), &pb.WhoAmIRequest{}); err != nil {
		t.Error(err)
	}
}
