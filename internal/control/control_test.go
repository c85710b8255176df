package control

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.opentelemetry.io/otel/trace/noop"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/penstock-gateway/penstock/gateway/policies"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
	"github.com/penstock-gateway/penstock/internal/access"
	"github.com/penstock-gateway/penstock/internal/access/accesstest"
	"github.com/penstock-gateway/penstock/internal/access/connect"
	"github.com/penstock-gateway/penstock/internal/devissuer"
	"github.com/penstock-gateway/penstock/internal/pki"
	"github.com/penstock-gateway/penstock/store"
	"github.com/penstock-gateway/penstock/xds/delivery"
)

// plane is a served Core on an embedded store.
type plane struct {
	core *Core
	addr Addresses
	conn *grpc.ClientConn
	stop func()
	// owner is the data folder with the owner's credential.
	owner string
	guard *access.Service
}

func start(t *testing.T, dir string) *plane {
	t.Helper()
	return serve(t, openStore(t, dir), dir)
}

func openStore(t testing.TB, dir string) store.Store {
	t.Helper()
	return openStoreWith(t, store.Options{DataDir: filepath.Join(dir, "etcd")})
}

func openStoreWith(t testing.TB, o store.Options) store.Store {
	t.Helper()
	o.Prefix, o.SealKey, o.Footprint, o.Logger = "/test", make([]byte, 32), policies.Model().Footprint, slog.New(slog.NewTextHandler(io.Discard, nil))
	st, err := store.Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { st.Close() })
	return st
}

func serve(t testing.TB, st store.Store, dir string) *plane {
	t.Helper()
	return serveWith(t, st, dir, nil)
}

func serveWith(t testing.TB, st store.Store, dir string, shadow *ShadowOptions) *plane {
	t.Helper()
	return serveFor(t, st, dir, shadow, access.Options{})
}

// serveFor serves with options of the guard.
func serveFor(t testing.TB, st store.Store, dir string, shadow *ShadowOptions, guard access.Options) *plane {
	t.Helper()
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	ca, err := pki.OpenCA(filepath.Join(dir, "pki"))
	if err != nil {
		t.Fatal(err)
	}
	core, err := New(t.Context(), Options{
		Store: st, Logger: log, Version: "test", CA: ca, Shadow: shadow, PackagesDir: filepath.Join(dir, "packages"),
		Authenticate: func(ctx context.Context) (delivery.Identity, error) {
			id, err := pki.PeerSPIFFE(ctx)
			if err != nil {
				return delivery.Identity{}, err
			}
			project, gateway, name, err := pki.ParseProxyID(id)
			return delivery.Identity{Proxy: name, SPIFFE: id, View: project + "/" + gateway}, err
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	cert, key, err := ca.EnsureFiles(filepath.Join(dir, "pki"), "control", pki.Request{
		SPIFFE: "spiffe://" + pki.TrustDomain + "/control", IPs: []net.IP{net.IPv4(127, 0, 0, 1)},
	})
	if err != nil {
		t.Fatal(err)
	}
	tlsConfig, err := pki.JoinServerTLS(cert, key, filepath.Join(dir, "pki", "ca.crt"))
	if err != nil {
		t.Fatal(err)
	}
	dev, err := devissuer.Open(t.Context(), st)
	if err != nil {
		t.Fatal(err)
	}
	p := &plane{core: core, owner: t.TempDir()}
	if guard.Store == nil {
		guard.Store = accesstest.NewState()
	} else {
		p.owner = dir
	}
	guard.Dir = connect.Dir(p.owner)
	p.guard = accesstest.OpenWith(t, guard)
	ctx, cancel := context.WithCancel(t.Context())
	served, ready := make(chan error, 1), make(chan struct{})
	go func() {
		served <- core.Serve(ctx, ServeOptions{
			Access: p.guard, API: "127.0.0.1:0", HTTP: "127.0.0.1:0", XDS: "127.0.0.1:0", TLS: tlsConfig, Logger: log,
			TracerProvider: noop.NewTracerProvider(), DevIssuer: dev,
			Ready: func(a Addresses) { p.addr = a; close(ready) },
		})
	}()
	select {
	case <-ready:
	case err := <-served:
		t.Fatal(err)
	}
	p.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-served; err != nil {
			t.Error(err)
		}
		core.Close()
	})
	t.Cleanup(p.stop)
	if p.conn, err = grpc.NewClient(p.addr.API.String(), grpc.WithTransportCredentials(insecure.NewCredentials()), connect.Owner(p.owner),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage), grpc.MaxCallSendMsgSize(maxMessage))); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.conn.Close() })
	return p
}

func direct(id, path, body string) *pb.Route {
	return &pb.Route{
		Name: "projects/default/routes/" + id,
		Rules: []*pb.RouteRule{{
			Matches: []*pb.RouteMatch{{Path: &pb.PathMatch{Match: &pb.PathMatch_Prefix{Prefix: path}}}},
			Action:  &pb.RouteRule_DirectResponse{DirectResponse: &pb.DirectResponse{Status: 200, Body: body}},
		}},
	}
}

func resource(r *pb.Route) *pb.Resource { return &pb.Resource{Kind: &pb.Resource_Route{Route: r}} }

func wantCode(t *testing.T, what string, err error, code codes.Code, text string) {
	t.Helper()
	if status.Code(err) != code || !strings.Contains(fmt.Sprint(err), text) {
		t.Errorf("%s: %v, want %s with %q", what, err, code, text)
	}
}

func TestStandardMethods(t *testing.T) {
	ctx := t.Context()
	p := start(t, t.TempDir())
	c := pb.NewRouteServiceClient(p.conn)
	const parent = "projects/default"

	created, err := c.CreateRoute(ctx, &pb.CreateRouteRequest{Parent: parent, RouteId: "a", Route: &pb.Route{Rules: direct("a", "/a", "x").Rules}})
	if err != nil {
		t.Fatal(err)
	}
	a := created.GetRoute()
	if a.GetName() != parent+"/routes/a" || a.GetMetadata().GetUid() == "" || a.GetMetadata().GetEtag() == "" || created.GetResult().GetRevision() != 1 {
		t.Errorf("created: %v", created)
	}
	_, err = c.CreateRoute(ctx, &pb.CreateRouteRequest{Parent: parent, Route: direct("a", "/a", "x")})
	wantCode(t, "create again", err, codes.AlreadyExists, "routes/a")
	_, err = c.CreateRoute(ctx, &pb.CreateRouteRequest{Parent: "projects/other", Route: direct("b", "/b", "x")})
	wantCode(t, "create in another project", err, codes.InvalidArgument, "projects/other")
	_, err = c.GetRoute(ctx, &pb.GetRouteRequest{Name: parent + "/routes/nobody"})
	wantCode(t, "get what is not there", err, codes.NotFound, "nobody")
	_, err = c.GetRoute(ctx, &pb.GetRouteRequest{Name: parent + "/backends/a"})
	wantCode(t, "get of another kind", err, codes.InvalidArgument, "routes")

	changed := proto.CloneOf(a)
	changed.Rules[0].GetDirectResponse().Body = "y"
	updated, err := c.UpdateRoute(ctx, &pb.UpdateRouteRequest{Route: changed})
	if err != nil {
		t.Fatal(err)
	}
	if u := updated.GetRoute().GetMetadata(); u.GetUid() != a.GetMetadata().GetUid() || u.GetEtag() == a.GetMetadata().GetEtag() {
		t.Errorf("update changed the uid or kept the etag: %v", u)
	}
	_, err = c.UpdateRoute(ctx, &pb.UpdateRouteRequest{Route: changed})
	wantCode(t, "update with an old etag", err, codes.Aborted, "etag")
	same, err := c.UpdateRoute(ctx, &pb.UpdateRouteRequest{Route: updated.GetRoute()})
	if err != nil || same.GetResult().GetChanged() || same.GetResult().GetRevision() != 2 {
		t.Errorf("an update without a change: %v, %v", same.GetResult(), err)
	}
	_, err = c.UpdateRoute(ctx, &pb.UpdateRouteRequest{Route: direct("new", "/new", "x")})
	wantCode(t, "update what is not there", err, codes.NotFound, "new")
	if _, err = c.UpdateRoute(ctx, &pb.UpdateRouteRequest{Route: direct("new", "/new", "x"), AllowMissing: true}); err != nil {
		t.Error(err)
	}
	_, err = c.DeleteRoute(ctx, &pb.DeleteRouteRequest{Name: parent + "/routes/new", Etag: "old"})
	wantCode(t, "delete with an old etag", err, codes.Aborted, "etag")
	if _, err = c.DeleteRoute(ctx, &pb.DeleteRouteRequest{Name: parent + "/routes/new"}); err != nil {
		t.Error(err)
	}
	checkPages(t, c, parent)
}

func checkPages(t *testing.T, c pb.RouteServiceClient, parent string) {
	t.Helper()
	for i := range 5 {
		if _, err := c.CreateRoute(t.Context(), &pb.CreateRouteRequest{Parent: parent, Route: direct(fmt.Sprintf("page-%d", i), "/p", "x")}); err != nil {
			t.Fatal(err)
		}
	}
	var names []string
	for token := ""; ; {
		l, err := c.ListRoutes(t.Context(), &pb.ListRoutesRequest{Parent: parent, PageSize: 2, PageToken: token})
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range l.GetRoutes() {
			names = append(names, strings.TrimPrefix(r.GetName(), parent+"/routes/"))
		}
		if token = l.GetNextPageToken(); token == "" {
			break
		}
	}
	if got := strings.Join(names, " "); got != "a page-0 page-1 page-2 page-3 page-4" {
		t.Errorf("pages: %s", got)
	}
	for _, token := range []string{"!", "zzz"} {
		_, err := c.ListRoutes(t.Context(), &pb.ListRoutesRequest{Parent: parent, PageToken: token})
		wantCode(t, "a page token of somebody else", err, codes.InvalidArgument, "page_token")
	}
	_, err := c.ListRoutes(t.Context(), &pb.ListRoutesRequest{Parent: "projects/.."})
	wantCode(t, "no project", err, codes.InvalidArgument, "parent")
}

// TestTwoWriters: two writers with the same etag, one wins; the other gets
// ABORTED with the etag that is current.
func TestTwoWriters(t *testing.T) {
	dir := t.TempDir()
	p := start(t, dir)
	q := serve(t, p.core.store, t.TempDir()) // another replica on the same store
	c, d := pb.NewRouteServiceClient(p.conn), pb.NewRouteServiceClient(q.conn)
	created, err := c.CreateRoute(t.Context(), &pb.CreateRouteRequest{Parent: "projects/default", Route: direct("a", "/a", "0")})
	if err != nil {
		t.Fatal(err)
	}
	route := created.GetRoute()
	for round := range 20 {
		var wg sync.WaitGroup
		var errs [2]error
		var got [2]*pb.UpdateRouteResponse
		for w, client := range []pb.RouteServiceClient{c, d} {
			mine := proto.CloneOf(route)
			mine.Rules[0].GetDirectResponse().Body = fmt.Sprintf("%d by %d", round, w)
			wg.Go(func() {
				got[w], errs[w] = client.UpdateRoute(t.Context(), &pb.UpdateRouteRequest{Route: mine})
			})
		}
		wg.Wait()
		winner := 0
		if errs[0] != nil {
			winner = 1
		}
		if errs[winner] != nil {
			t.Fatalf("round %d: nobody won: %v", round, errs)
		}
		wantCode(t, "the other", errs[1-winner], codes.Aborted, got[winner].GetRoute().GetMetadata().GetEtag())
		route = got[winner].GetRoute()
	}
}

func TestApply(t *testing.T) {
	ctx := t.Context()
	p := start(t, t.TempDir())
	c := pb.NewConfigServiceClient(p.conn)

	first, err := c.Apply(ctx, &pb.ApplyRequest{PruneSet: "shop", Resources: []*pb.Resource{resource(direct("a", "/a", "1")), resource(direct("b", "/b", "1"))}})
	if err != nil || first.GetResult().GetRevision() != 1 || len(first.GetChanges()) != 2 {
		t.Fatalf("apply: %v %v", first, err)
	}
	second, err := c.Apply(ctx, &pb.ApplyRequest{PruneSet: "shop", Resources: []*pb.Resource{resource(direct("a", "/a", "2"))}, Options: &pb.WriteOptions{RequestId: "one"}})
	if err != nil || len(second.GetChanges()) != 2 || second.GetChanges()[1].GetType() != pb.ChangeType_CHANGE_TYPE_DELETE {
		t.Fatalf("apply with prune: %v %v", second, err)
	}
	if f := second.GetChanges()[0].GetFields(); len(f) != 1 || f[0].GetPath() != "rules[0].direct_response.body" || f[0].GetBefore() != `"1"` || f[0].GetAfter() != `"2"` {
		t.Errorf("fields: %v", f)
	}
	again, err := c.Apply(ctx, &pb.ApplyRequest{Resources: []*pb.Resource{resource(direct("z", "/z", "2"))}, Options: &pb.WriteOptions{RequestId: "one"}})
	if err != nil || again.GetResult().GetRevision() != second.GetResult().GetRevision() || len(again.GetChanges()) != 2 {
		t.Errorf("a repeated request id: %v %v, want what the first did", again, err)
	}
	_, err = c.Apply(ctx, &pb.ApplyRequest{ExpectedRevision: 1, Resources: []*pb.Resource{resource(direct("c", "/c", "1"))}})
	wantCode(t, "an old expected revision", err, codes.Aborted, "head is 2")
	_, err = c.Apply(ctx, &pb.ApplyRequest{Resources: []*pb.Resource{resource(direct("c", "/c", "1")), resource(direct("c", "/c", "2"))}})
	wantCode(t, "one name twice", err, codes.InvalidArgument, "twice")
	_, err = c.Apply(ctx, &pb.ApplyRequest{PruneSet: "shop"})
	wantCode(t, "a prune of nothing read", err, codes.InvalidArgument, "allow_empty")
	all, err := c.Apply(ctx, &pb.ApplyRequest{PruneSet: "shop", AllowEmpty: true, Options: &pb.WriteOptions{ValidateOnly: true}})
	if err != nil || len(all.GetChanges()) != 1 {
		t.Errorf("a prune of nothing read that is meant: %v %v", all, err)
	}
	_, err = c.Diff(ctx, &pb.DiffRequest{Apply: &pb.ApplyRequest{PruneSet: "shop"}})
	wantCode(t, "the diff of a prune of nothing read", err, codes.InvalidArgument, "allow_empty")
	_, err = c.Apply(ctx, &pb.ApplyRequest{Resources: []*pb.Resource{{}}})
	wantCode(t, "a resource without a kind", err, codes.InvalidArgument, "resources[0]")

	bad := direct("bad", "/bad", "x")
	bad.Rules[0].Action = &pb.RouteRule_Forward{Forward: &pb.Forward{Backends: []*pb.WeightedBackend{{Backend: "nobody"}}}}
	_, err = c.Apply(ctx, &pb.ApplyRequest{Resources: []*pb.Resource{resource(direct("good", "/good", "x")), resource(bad)}})
	wantCode(t, "a missing reference", err, codes.InvalidArgument, "projects/default/backends/nobody")
	if p.core.Snapshot().Get("projects/default/routes/good") != nil {
		t.Error("a part of a refused apply is there")
	}
	dry, err := c.Apply(ctx, &pb.ApplyRequest{Resources: []*pb.Resource{resource(direct("good", "/good", "x"))}, Options: &pb.WriteOptions{ValidateOnly: true}})
	if err != nil || len(dry.GetChanges()) != 1 || p.core.Snapshot().Revision() != 2 {
		t.Errorf("validate only: %v %v", dry, err)
	}

	if _, err := c.Rollback(ctx, &pb.RollbackRequest{Revision: 1}); err != nil {
		t.Fatal(err)
	}
	if p.core.Snapshot().Get("projects/default/routes/b") == nil {
		t.Error("rollback did not bring routes/b back")
	}
	_, err = c.Rollback(ctx, &pb.RollbackRequest{Revision: 99})
	wantCode(t, "rollback to what never was", err, codes.NotFound, "99")
	h, err := c.ListRevisions(ctx, &pb.ListRevisionsRequest{PageSize: 2})
	if err != nil || len(h.GetRevisions()) != 2 || h.GetRevisions()[0].GetMessage() != "rollback to revision 1" || h.GetNextPageToken() == "" {
		t.Errorf("history: %v %v", h, err)
	}
	h, err = c.ListRevisions(ctx, &pb.ListRevisionsRequest{PageSize: 2, Object: "projects/default/routes/b"})
	if err != nil {
		t.Fatal(err)
	}
	var types []pb.ChangeType
	for _, r := range h.GetRevisions() {
		if r.GetObjectChange().GetName() != "projects/default/routes/b" {
			t.Errorf("a revision of something else: %v", r)
		}
		types = append(types, r.GetObjectChange().GetType())
	}
	if !slices.Equal(types, []pb.ChangeType{pb.ChangeType_CHANGE_TYPE_CREATE, pb.ChangeType_CHANGE_TYPE_DELETE}) || h.GetNextPageToken() != "2" {
		t.Errorf("history of an object: %v %q", types, h.GetNextPageToken())
	}
	_, err = c.ListRevisions(ctx, &pb.ListRevisionsRequest{Object: "routes/b"})
	wantCode(t, "the history of no full name", err, codes.InvalidArgument, "object: ")
}

// TestPortOfAnotherGateway: whichever name sorts first, a new gateway does not get
// a port that another one serves.
func TestPortOfAnotherGateway(t *testing.T) {
	p := start(t, t.TempDir())
	c := pb.NewConfigServiceClient(p.conn)
	gateway := func(id string) *pb.ApplyRequest {
		return &pb.ApplyRequest{Resources: []*pb.Resource{{Kind: &pb.Resource_Gateway{Gateway: &pb.Gateway{
			Name: "projects/default/gateways/" + id, Listeners: []*pb.Listener{{Name: "http", Address: "127.0.0.1", Port: 8080}},
		}}}}}
	}
	if _, err := c.Apply(t.Context(), gateway("edge")); err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{"a-first", "z-last"} {
		_, err := c.Apply(t.Context(), gateway(id))
		wantCode(t, id, err, codes.InvalidArgument, "127.0.0.1:8080")
	}
}

// TestListenerOfMatches: a listener may not stop to let through what a route asks for, and a
// change of it that takes nothing away is no matter of the route's.
func TestListenerOfMatches(t *testing.T) {
	p := start(t, t.TempDir())
	c := pb.NewConfigServiceClient(p.conn)
	gateway := func(keep pb.RepeatedSlashes, hosts ...string) *pb.Resource {
		return &pb.Resource{Kind: &pb.Resource_Gateway{Gateway: &pb.Gateway{
			Name: "projects/default/gateways/edge", Listeners: []*pb.Listener{{Name: "http", Address: "127.0.0.1", Port: 8080, Hostnames: hosts, Edge: &pb.EdgeProfile{RepeatedSlashes: keep}}},
		}}}
	}
	const keep, merge = pb.RepeatedSlashes_REPEATED_SLASHES_KEEP, pb.RepeatedSlashes_REPEATED_SLASHES_MERGE
	route := direct("r", "/a//b", "")
	_, err := c.Apply(t.Context(), &pb.ApplyRequest{Resources: []*pb.Resource{resource(route), gateway(merge)}})
	wantCode(t, "a listener that merges slashes", err, codes.InvalidArgument, "rules[0].matches[0].path.prefix")
	if _, err := c.Apply(t.Context(), &pb.ApplyRequest{Resources: []*pb.Resource{resource(route), gateway(keep)}}); err != nil {
		t.Fatal(err)
	}
	_, err = c.Apply(t.Context(), &pb.ApplyRequest{Resources: []*pb.Resource{gateway(merge)}})
	wantCode(t, "a listener that merges them from now on", err, codes.InvalidArgument, "projects/default/routes/r")
	if _, err := c.Apply(t.Context(), &pb.ApplyRequest{Resources: []*pb.Resource{gateway(keep, "a.test")}}); err != nil {
		t.Error(err)
	}
	if _, err := c.Apply(t.Context(), &pb.ApplyRequest{Resources: []*pb.Resource{gateway(merge)}, Deletes: []string{route.GetName()}}); err != nil {
		t.Errorf("without the route: %v", err)
	}
}

func TestReferencedCannotBeDeleted(t *testing.T) {
	p := start(t, t.TempDir())
	c := pb.NewConfigServiceClient(p.conn)
	backend := &pb.Backend{Name: "projects/default/backends/b", Target: &pb.Backend_Static{Static: &pb.StaticTarget{Endpoints: []*pb.Endpoint{{Address: "127.0.0.1", Port: 1}}}}}
	route := direct("r", "/r", "")
	route.Rules[0].Action = &pb.RouteRule_Forward{Forward: &pb.Forward{Backends: []*pb.WeightedBackend{{Backend: "b"}}}}
	if _, err := c.Apply(t.Context(), &pb.ApplyRequest{Resources: []*pb.Resource{resource(route), {Kind: &pb.Resource_Backend{Backend: backend}}}}); err != nil {
		t.Fatal(err)
	}
	_, err := c.Apply(t.Context(), &pb.ApplyRequest{Deletes: []string{backend.GetName()}})
	wantCode(t, "delete of what is referred to", err, codes.FailedPrecondition, route.GetName())
	if _, err := c.Apply(t.Context(), &pb.ApplyRequest{Deletes: []string{backend.GetName(), route.GetName()}}); err != nil {
		t.Errorf("both at once: %v", err)
	}
}

// TestTenThousand: 10,000 resources in one Apply, and the same again is not a change.
func TestTenThousand(t *testing.T) {
	p := start(t, t.TempDir())
	c := pb.NewConfigServiceClient(p.conn)
	req := &pb.ApplyRequest{}
	for i := range 10_000 {
		r := direct(fmt.Sprintf("r%d", i), fmt.Sprintf("/r%d", i), "x")
		r.Hostnames = []string{fmt.Sprintf("h%d.example.com", i/10)}
		req.Resources = append(req.Resources, resource(r))
	}
	resp, err := c.Apply(t.Context(), req)
	if err != nil || len(resp.GetChanges()) != 10_000 {
		t.Fatalf("%d changes, %v", len(resp.GetChanges()), err)
	}
	again, err := c.Apply(t.Context(), req)
	if err != nil || again.GetResult().GetChanged() || again.GetResult().GetRevision() != 1 {
		t.Errorf("again: %v %v", again.GetResult(), err)
	}
}

func TestRestart(t *testing.T) {
	p := start(t, t.TempDir())
	c := pb.NewConfigServiceClient(p.conn)
	if _, err := c.Apply(t.Context(), &pb.ApplyRequest{Resources: []*pb.Resource{resource(direct("a", "/a", "1"))}}); err != nil {
		t.Fatal(err)
	}
	q := serve(t, p.core.store, t.TempDir())
	a, b := p.core.Snapshot(), q.core.Snapshot()
	if a.Revision() != b.Revision() || !proto.Equal(a.Get("projects/default/routes/a"), b.Get("projects/default/routes/a")) {
		t.Errorf("another replica has revision %d, want %d with the same content", b.Revision(), a.Revision())
	}
	// What one writes, the other follows.
	w, err := pb.NewConfigServiceClient(q.conn).Watch(t.Context(), &pb.WatchRequest{FromRevision: 1})
	if err != nil {
		t.Fatal(err)
	}
	if m, err := w.Recv(); err != nil || !m.GetBookmark() || m.GetRevision() != 1 {
		t.Fatalf("the first message of a watch that is up to date: %v %v", m, err)
	}
	if _, err := c.Apply(t.Context(), &pb.ApplyRequest{Resources: []*pb.Resource{resource(direct("b", "/b", "1"))}, Deletes: []string{"projects/default/routes/a"}}); err != nil {
		t.Fatal(err)
	}
	m, err := w.Recv()
	if err != nil || m.GetRevision() != 2 || len(m.GetUpdates()) != 1 || len(m.GetDeletes()) != 1 {
		t.Errorf("watch on the other replica: %v %v", m, err)
	}
}

func TestSecretsAreHidden(t *testing.T) {
	const canary = "canary-4711"
	p := start(t, t.TempDir())
	jwks := `{"keys":[{"kty":"EC","crv":"P-256","alg":"ES256","kid":"` + canary + `","x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU","y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"}]}`
	s := &pb.Secret{Name: "projects/default/secrets/s", Value: &pb.Secret_Jwks{Jwks: jwks}}
	c := pb.NewConfigServiceClient(p.conn)
	applied, err := c.Apply(t.Context(), &pb.ApplyRequest{Resources: []*pb.Resource{{Kind: &pb.Resource_Secret{Secret: s}}}})
	if err != nil {
		t.Fatal(err)
	}
	other := proto.CloneOf(s)
	other.Value = &pb.Secret_Jwks{Jwks: strings.Replace(jwks, canary, canary+"-b", 1)}
	changed, err := c.Diff(t.Context(), &pb.DiffRequest{Apply: &pb.ApplyRequest{Resources: []*pb.Resource{{Kind: &pb.Resource_Secret{Secret: other}}}}})
	if err != nil || len(changed.GetChanges()) != 1 {
		t.Fatalf("diff: %v %v", changed, err)
	}
	got, err := pb.NewSecretServiceClient(p.conn).GetSecret(t.Context(), &pb.GetSecretRequest{Name: s.GetName()})
	if err != nil {
		t.Fatal(err)
	}
	// What was read can be sent back: it means "as it was".
	back, err := pb.NewSecretServiceClient(p.conn).UpdateSecret(t.Context(), &pb.UpdateSecretRequest{Secret: got.GetSecret()})
	if err != nil || back.GetResult().GetChanged() {
		t.Errorf("a secret that is sent back as it was read: %v %v", back, err)
	}
	w, err := c.Watch(t.Context(), &pb.WatchRequest{})
	if err != nil {
		t.Fatal(err)
	}
	state, err := w.Recv()
	if err != nil {
		t.Fatal(err)
	}
	out := fmt.Sprint(applied, changed, got, state, httpGet(t, p, "/debug/dump?stage=model"), httpGet(t, p, "/debug/dump?stage=xds"))
	if strings.Contains(out, canary) {
		t.Errorf("key material is shown:\n%s", out)
	}
}

func httpPost(t *testing.T, p *plane, path string) (code int, body string) {
	t.Helper()
	return accesstest.Do(t, p.owner, http.MethodPost, "http://"+p.addr.HTTP.String()+path, nil)
}

func httpGet(t *testing.T, p *plane, path string) string {
	t.Helper()
	_, body := accesstest.Do(t, p.owner, http.MethodGet, "http://"+p.addr.HTTP.String()+path, nil)
	return body
}

func TestREST(t *testing.T) {
	p := start(t, t.TempDir())
	base := "http://" + p.addr.HTTP.String()
	do := func(method, path, body string, headers ...string) (int, string) {
		t.Helper()
		r, err := http.NewRequestWithContext(t.Context(), method, base+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		if body != "" {
			r.Header.Set("Content-Type", "application/json")
		}
		if err := connect.AsOwner(r, p.owner); err != nil {
			t.Fatal(err)
		}
		for i := 0; i < len(headers); i += 2 {
			if headers[i] == "Host" {
				r.Host = headers[i+1]
			}
			r.Header.Set(headers[i], headers[i+1])
		}
		resp, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, string(b)
	}
	const route = `{"rules":[{"matches":[{"path":{"prefix":"/a"}}],"direct_response":{"status":200,"body":"x"}}]}`
	code, body := do("POST", "/v1/projects/default/routes?route_id=a", route)
	var created struct {
		Route  struct{ Name string }
		Result struct{ Revision string }
	}
	if err := json.Unmarshal([]byte(body), &created); err != nil || code != 200 || created.Route.Name != "projects/default/routes/a" || created.Result.Revision != "1" {
		t.Errorf("create: %d %s", code, body)
	}
	for what, c := range map[string]struct {
		method, path, body string
		headers            []string
		code               int
		want               string
	}{
		"read":                     {"GET", "/v1/projects/default/routes/a", "", nil, 200, `"origin":{"source":"rest"`},
		"unknown field":            {"POST", "/v1/projects/default/routes?route_id=b", `{"rulez":[]}`, nil, 400, "rulez"},
		"wrong type":               {"POST", "/v1/projects/default/routes?route_id=b", `{"rules":7}`, nil, 400, "line 1:10"},
		"truncated":                {"POST", "/v1/projects/default/routes?route_id=b", `{"rules":[`, nil, 400, ""},
		"an unknown parameter":     {"POST", "/v1/projects/default/routes?route_id=b&options.validate_onl=true", route, nil, 400, "options.validate_onl"},
		"another site":             {"GET", "/v1/status", "", []string{"Sec-Fetch-Site", "cross-site"}, 403, "site"},
		"not there":                {"GET", "/v1/projects/default/routes/b", "", nil, 404, "routes/b"},
		"a page of another origin": {"POST", "/v1/projects/default/routes?route_id=b", route, []string{"Origin", "https://evil.example"}, 403, "origin"},
		"a name of somebody's DNS": {"GET", "/v1/status", "", []string{"Host", "evil.example"}, 403, "Host"},
		"ready":                    {"GET", "/readyz", "", nil, 200, "ok"},
		"live":                     {"GET", "/livez", "", nil, 200, "ok"},
		"an unknown stage":         {"GET", "/debug/dump?stage=x", "", nil, 400, "model"},
		"debug":                    {"GET", "/debug/", "", nil, 200, "pprof"},
	} {
		if code, body := do(c.method, c.path, c.body, c.headers...); code != c.code || !strings.Contains(body, c.want) {
			t.Errorf("%s: %d %s, want %d with %q", what, code, body, c.code, c.want)
		}
	}
}

func TestServeRefusesAddresses(t *testing.T) {
	p := start(t, t.TempDir())
	guard := accesstest.Open(t, t.TempDir())
	for what, c := range map[string]struct {
		o    ServeOptions
		want string
	}{
		"not loopback": {ServeOptions{Access: guard, API: "0.0.0.0:0", HTTP: "127.0.0.1:0", XDS: "127.0.0.1:0"}, "--api-listen"},
		"in use":       {ServeOptions{Access: guard, API: p.addr.API.String(), HTTP: "127.0.0.1:0", XDS: "127.0.0.1:0"}, p.addr.API.String()},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		if err := p.core.Serve(ctx, c.o); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", what, err, c.want)
		}
		cancel()
	}
}
