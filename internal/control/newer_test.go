package control

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
	"github.com/penstock-gateway/penstock/internal/envoytest"
	"github.com/penstock-gateway/penstock/store"
)

// later sets a field in a message that this version does not have.
func later(m proto.Message) {
	m.ProtoReflect().SetUnknown(protowire.AppendVarint(protowire.AppendTag(nil, 20000, protowire.VarintType), 1))
}

// TestNewerReplica: a replica of a newer version writes a route with a policy that this one
// does not know, which may be what protects it: this one closes the route, says why, and
// serves the rest. A client of a newer version is refused such a write.
func TestNewerReplica(t *testing.T) {
	const name = "projects/default/routes/open"
	dir := t.TempDir()
	st := openStoreWith(t, store.Options{DataDir: filepath.Join(dir, "etcd")})
	p := serve(t, st, dir)
	port := envoytest.FreePort(t)
	p.apply(t, strings.NewReplacer("PORT", fmt.Sprint(port), "BACKEND", fmt.Sprint(whoAsks(t))).Replace(damageable))
	proxyOf(t, p, dir, "edge", nil)
	answersAs(t, port, "c.test/", 200, "you are")

	routes := pb.NewRouteServiceClient(p.conn)
	got, err := routes.GetRoute(t.Context(), &pb.GetRouteRequest{Name: name})
	if err != nil {
		t.Fatal(err)
	}
	route := proto.CloneOf(got.GetRoute())
	route.Status = nil
	route.Policies = &pb.Policies{}
	later(route.GetPolicies())
	_, err = routes.UpdateRoute(t.Context(), &pb.UpdateRouteRequest{Route: route})
	wantCode(t, "a write with a field of a newer version", err, codes.InvalidArgument, "policies.#20000")

	head, err := st.Head(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	resource := &pb.Resource{Kind: &pb.Resource_Route{Route: route}}
	if _, err := st.Commit(t.Context(), head.Number, []store.Change{{Name: name, Resource: resource}}, store.Info{Author: "newer"}); err != nil {
		t.Fatal(err)
	}
	answersAs(t, port, "c.test/", 503, "PK-ROUTE-BROKEN")
	answersAs(t, port, "b.test/", 200, "you are")
	if problem := damageOf(t, p, name).GetMessage(); !strings.HasPrefix(problem, "written by a newer version of Penstock") || !strings.Contains(problem, "route.policies.#20000") {
		t.Errorf("status: %s", problem)
	}
}
