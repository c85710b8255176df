package control

import (
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
	"github.com/penstock-gateway/penstock/internal/access"
	"github.com/penstock-gateway/penstock/internal/access/connect"
	"github.com/penstock-gateway/penstock/internal/pki"
	"github.com/penstock-gateway/penstock/store"
	"github.com/penstock-gateway/penstock/store/storetest"
)

// tokenOf makes a token and returns its text.
func tokenOf(t *testing.T, p *plane, name, role string) string {
	t.Helper()
	r, err := pb.NewAccessServiceClient(p.conn).CreateToken(t.Context(), &pb.CreateTokenRequest{Token: &pb.Token{Name: name, Grants: []*pb.Grant{{Role: role, Project: "*"}}}})
	if err != nil {
		t.Fatal(err)
	}
	return r.GetSecret()
}

// whoami is who a token is.
func (p *plane) whoami(t *testing.T, token string) (string, error) {
	t.Helper()
	conn, err := grpc.NewClient(p.addr.API.String(), grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithPerRPCCredentials(connect.Bearer(token)))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	r, err := pb.NewAccessServiceClient(conn).WhoAmI(t.Context(), &pb.WhoAmIRequest{})
	return r.GetIdentity(), err
}

// TestDamagedState damages what is stored of access and revocations while nothing runs: what
// is damaged gives nobody a right, what was revoked stays so, and the rest serves.
func TestDamagedState(t *testing.T) {
	bad, good := pki.ProxyID("default", "-", "bad"), pki.ProxyID("default", "-", "good")
	for what, c := range map[string]struct {
		damages func(key string) bool
		// The codes that those get who were not revoked; OK unless it is said.
		good, ops codes.Code
		// revokes tells that something else can be revoked.
		revokes bool
	}{
		"the revocation": {damages: func(key string) bool { return strings.HasSuffix(key, "/s/revoked/identity/"+bad) }, revokes: true},
		"a token":        {damages: func(key string) bool { return strings.HasSuffix(key, "/s/access/token/ops") }, ops: codes.Unauthenticated, revokes: true},
		"the list of revocations": {damages: func(key string) bool { return strings.Contains(key, "/i/revoked/") },
			good: codes.Unavailable},
		"the anchor of the audit log": {damages: func(key string) bool { return strings.Contains(key, "/s/audit/") }, revokes: true},
	} {
		t.Run(what, func(t *testing.T) {
			dir := t.TempDir()
			pkiDir := filepath.Join(dir, "pki")
			o := store.Options{DataDir: filepath.Join(dir, "etcd")}
			st := openStoreWith(t, o)
			p := serveFor(t, st, dir, nil, access.Options{Store: st})
			ops, other := tokenOf(t, p, "ops", "viewer"), tokenOf(t, p, "other", "viewer")
			revoke := func(id string) error {
				_, err := pb.NewProxyAdmissionServiceClient(p.conn).RevokeProxy(t.Context(), &pb.RevokeProxyRequest{Subject: &pb.RevokeProxyRequest_Identity{Identity: id}})
				return err
			}
			if err := revoke(bad); err != nil {
				t.Fatal(err)
			}
			p.stop()
			p.guard.Close()
			if err := st.Close(); err != nil {
				t.Fatal(err)
			}
			if storetest.Damage(t, o.DataDir, func(key string, v []byte) []byte {
				if !c.damages(key) || len(v) == 0 {
					return nil
				}
				return append(v[:len(v)-1:len(v)-1], v[len(v)-1]^1)
			}) == 0 {
				t.Fatal("nothing was damaged")
			}

			st = openStoreWith(t, o)
			p = serveFor(t, st, dir, nil, access.Options{Store: st})
			_, err := ads(t, p.dialAs(t, pkiDir, bad))
			wantCode(t, "who was revoked", err, codes.PermissionDenied, "revoked")
			if _, err := ads(t, p.dialAs(t, pkiDir, good)); status.Code(err) != c.good {
				t.Errorf("another proxy: %v, want %s", err, c.good)
			}
			if _, err := p.whoami(t, ops); status.Code(err) != c.ops {
				t.Errorf("the token ops: %v, want %s", err, c.ops)
			}
			if id, err := p.whoami(t, other); err != nil || id != "token:other" {
				t.Errorf("the other token: %s, %v", id, err)
			}
			if err := revoke(pki.ProxyID("default", "-", "third")); (err == nil) != c.revokes || err != nil && !strings.Contains(err.Error(), "penstock store repair") {
				t.Errorf("revoke: %v", err)
			}
			anchor := strings.Contains(what, "anchor")
			log, err := pb.NewAccessServiceClient(p.conn).ListAudit(t.Context(), &pb.ListAuditRequest{Verdict: "failed"})
			told := slices.ContainsFunc(log.GetRecords(), func(r *pb.AuditRecord) bool { return strings.Contains(r.GetReason(), "does not have the anchor") })
			if err != nil || told != anchor {
				t.Errorf("the audit log: %v, %v", log, err)
			}
			p.stop()
			p.guard.Close()
			if err := st.Close(); err != nil {
				t.Fatal(err)
			}

			o.Prefix, o.SealKey, o.Logger = "/test", make([]byte, 32), slog.New(slog.DiscardHandler)
			if r, err := store.Mend(t.Context(), o); err != nil || (len(r.Mended) == 0) != anchor {
				t.Fatalf("%+v, %v", r, err)
			}
			p = serve(t, openStoreWith(t, store.Options{DataDir: o.DataDir}), dir)
			_, err = ads(t, p.dialAs(t, pkiDir, bad))
			wantCode(t, "who was revoked, after a repair", err, codes.PermissionDenied, "revoked")
			if _, err := ads(t, p.dialAs(t, pkiDir, good)); err != nil {
				t.Errorf("another proxy, after a repair: %v", err)
			}
		})
	}
}
