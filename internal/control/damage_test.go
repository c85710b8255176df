package control

import (
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"

	"github.com/penstock-gateway/penstock/gateway"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
	"github.com/penstock-gateway/penstock/internal/envoytest"
	"github.com/penstock-gateway/penstock/store"
	"github.com/penstock-gateway/penstock/store/storetest"
)

// damageable is a configuration in which each object protects something that another one
// would open: hosts below a wildcard, a path of a host, a header that backends believe.
const damageable = `
kind: Gateway
name: g
listeners: [{name: http, address: 127.0.0.1, port: PORT}]
---
kind: Backend
name: echo
static: {endpoints: [{address: 127.0.0.1, port: BACKEND}]}
---
kind: Secret
name: keys
jwks: '{"keys":[{"kty":"EC","crv":"P-256","alg":"ES256","kid":"k","x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU","y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"}]}'
---
kind: Route
name: open
hostnames: ["*.test"]
rules: [{forward: {backends: [{backend: echo}]}}]
---
kind: Route
name: strict
hostnames: [a.test]
policies: {authentication: {jwt: {issuer: i, audiences: [a], jwks_secret: keys, claim_headers: [{claim: sub, header: x-who}]}}}
rules: [{forward: {backends: [{backend: echo}]}}]
---
kind: Route
name: wide
hostnames: [b.test]
rule_order: AS_LISTED
rules: [{forward: {backends: [{backend: echo}]}}]
---
kind: Route
name: admin
hostnames: [b.test]
rules: [{matches: [{path: {exact: /admin}}], direct_response: {status: 403, body: no}}]
`

// whoAsks is a backend that believes a header.
func whoAsks(t *testing.T) int {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprintf(w, "you are %q", r.Header.Get("x-who")) }))
	t.Cleanup(s.Close)
	return s.Listener.Addr().(*net.TCPAddr).Port
}

// answersAs asks an Envoy with a header that says who one is.
func answersAs(t *testing.T, port int, url string, status int, body string) {
	t.Helper()
	host, path, _ := strings.Cut(url, "/")
	last := ""
	defer func() {
		if t.Failed() {
			t.Logf("last answer of %s: %s", url, last)
		}
	}()
	until(t, fmt.Sprintf("%s to answer %d %q", url, status, body), func() bool {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, fmt.Sprintf("http://127.0.0.1:%d/%s", port, path), nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Host = host
		r.Header.Set("x-who", "root")
		resp, err := http.DefaultClient.Do(r)
		if err != nil {
			last = err.Error()
			return false
		}
		defer resp.Body.Close()
		text := make([]byte, 4096)
		n, _ := resp.Body.Read(text)
		last = fmt.Sprint(resp.StatusCode, " ", string(text[:n]))
		return resp.StatusCode == status && strings.Contains(last, body)
	})
}

// TestDamagedObjects: whichever object the store has lost, the control plane starts, serves
// the rest, opens nothing, says what is damaged, and takes it again.
func TestDamagedObjects(t *testing.T) {
	good := map[string]string{"a.test/": "401 ", "b.test/": `200 you are ""`, "c.test/": `200 you are ""`, "b.test/admin": `200 you are`}
	for object, want := range map[string]map[string]string{
		"routes/strict":  {"a.test/": "503 PK-ROUTE-BROKEN"},
		"routes/admin":   {"b.test/": "503 PK-ROUTE-BROKEN", "b.test/admin": "503 PK-ROUTE-BROKEN"},
		"routes/open":    {"c.test/": "503 PK-ROUTE-BROKEN"},
		"gateways/g":     {"a.test/": "401 ", "b.test/": "503 PK-ROUTE-BROKEN", "c.test/": "503 PK-ROUTE-BROKEN", "b.test/admin": "503 "},
		"secrets/keys":   {"a.test/": "401 "},
		"backends/echo":  {"a.test/": "401 ", "b.test/": "503 ", "c.test/": "503 ", "b.test/admin": "503 "},
		"no footprint/r": {"a.test/": "503 ", "b.test/": "503 ", "c.test/": "503 ", "b.test/admin": "503 "},
	} {
		t.Run(strings.ReplaceAll(object, "/", " "), func(t *testing.T) {
			name, dir := "projects/default/"+object, t.TempDir()
			o := store.Options{DataDir: filepath.Join(dir, "etcd"), KeepDamage: true}
			st := openStoreWith(t, o)
			if object == "no footprint/r" {
				// As an earlier build has written it.
				name = "projects/default/routes/strict"
				st = openStoreWithout(t, o, st)
			}
			p := serve(t, st, dir)
			port := envoytest.FreePort(t)
			yaml := strings.NewReplacer("PORT", fmt.Sprint(port), "BACKEND", fmt.Sprint(whoAsks(t))).Replace(damageable)
			p.apply(t, yaml)
			p.stop()
			if err := st.Close(); err != nil {
				t.Fatal(err)
			}
			storetest.DamageResource(t, o.DataDir, func(r *pb.Resource) bool {
				return r.GetSecret() != nil && strings.HasSuffix(name, "/keys") || gateway.FromResource(r) != nil && gateway.FromResource(r).GetName() == name
			})

			p = serve(t, openStoreWith(t, o), dir)
			proxyOf(t, p, dir, "edge", nil)
			for url, answer := range good {
				if w, ok := want[url]; ok {
					answer = w
				}
				var status int
				code, body, _ := strings.Cut(answer, " ")
				if _, err := fmt.Sscan(code, &status); err != nil {
					t.Fatal(err)
				}
				answersAs(t, port, url, status, body)
			}
			checkDamageIsTold(t, p, name)
			p.apply(t, yaml)
			for url, answer := range good {
				var status int
				code, body, _ := strings.Cut(answer, " ")
				if _, err := fmt.Sscan(code, &status); err != nil {
					t.Fatal(err)
				}
				answersAs(t, port, url, status, body)
			}
			st2, err := p.core.Status(t.Context())
			if err != nil || len(st2.GetProblems()) > 0 {
				t.Errorf("after it was written again: %v %v", st2.GetProblems(), err)
			}
		})
	}
}

// openStoreWithout opens a store anew that keeps no footprints.
func openStoreWithout(t *testing.T, o store.Options, st store.Store) store.Store {
	t.Helper()
	if err := st.Close(); err != nil {
		t.Fatal(err)
	}
	o.Prefix, o.SealKey = "/test", make([]byte, 32)
	st, err := store.Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { st.Close() })
	return st
}

// damageOf is what the status says of a damaged object.
func damageOf(t *testing.T, p *plane, name string) *pb.ObjectProblem {
	t.Helper()
	st, err := p.core.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, q := range st.GetProblems() {
		if q.GetObject() == name {
			return q
		}
	}
	t.Fatalf("%s is not named in %v", name, st.GetProblems())
	return nil
}

// checkDamageIsTold looks for a damaged object where people look.
func checkDamageIsTold(t *testing.T, p *plane, name string) {
	t.Helper()
	if got := damageOf(t, p, name); !strings.Contains(got.GetMessage(), "damaged in the store") || !strings.Contains(got.GetMessage(), "penstock apply") {
		t.Errorf("status: %v", got)
	}
	_, kind, _, err := gateway.KindOf(name)
	if err != nil {
		t.Fatal(err)
	}
	conditions := func(st *pb.Status) {
		t.Helper()
		if len(st.GetConditions()) == 0 || st.GetConditions()[0].GetReason() != "Damaged" {
			t.Errorf("conditions: %v", st.GetConditions())
		}
	}
	switch kind {
	case gateway.KindRoutes:
		r, err := pb.NewRouteServiceClient(p.conn).GetRoute(t.Context(), &pb.GetRouteRequest{Name: name})
		if err != nil {
			t.Fatal(err)
		}
		conditions(r.GetRoute().GetStatus())
	case gateway.KindBackends:
		r, err := pb.NewBackendServiceClient(p.conn).ListBackends(t.Context(), &pb.ListBackendsRequest{Parent: "projects/default"})
		if err != nil || len(r.GetBackends()) != 1 {
			t.Fatal(r, err)
		}
		conditions(r.GetBackends()[0].GetStatus())
		// What is left of it is nothing that could be applied.
		_, err = pb.NewBackendServiceClient(p.conn).UpdateBackend(t.Context(), &pb.UpdateBackendRequest{Backend: r.GetBackends()[0]})
		wantCode(t, "what is left, written again", err, codes.InvalidArgument, name)
	}
}

// TestDamagedAndDeleted: a damaged object can be deleted, and a rollback leaves it.
func TestDamagedAndDeleted(t *testing.T) {
	dir := t.TempDir()
	o := store.Options{DataDir: filepath.Join(dir, "etcd"), KeepDamage: true}
	st := openStoreWith(t, o)
	p := serve(t, st, dir)
	for _, name := range []string{"one", "two"} {
		p.apply(t, strings.ReplaceAll(routeOf(name, answerRule("a", "prefix: /"+name, "old")), "HOSTS", ""))
	}
	p.stop()
	if err := st.Close(); err != nil {
		t.Fatal(err)
	}
	storetest.DamageResource(t, o.DataDir, func(r *pb.Resource) bool { return strings.HasSuffix(r.GetRoute().GetName(), "/two") })
	p = serve(t, openStoreWith(t, o), dir)
	damageOf(t, p, "projects/default/routes/two")
	config := pb.NewConfigServiceClient(p.conn)
	if r, err := config.Rollback(t.Context(), &pb.RollbackRequest{Revision: 1}); err != nil || len(r.GetChanges()) != 1 {
		t.Fatal(r, err)
	}
	if got := p.core.Snapshot().DamagedNames(); len(got) > 0 {
		t.Error(got)
	}
	_, err := config.Rollback(t.Context(), &pb.RollbackRequest{Revision: 2})
	wantCode(t, "back to what is damaged", err, codes.DataLoss, "projects/default/routes/two is damaged")
	_, err = pb.NewRouteServiceClient(p.conn).DeleteRoute(t.Context(), &pb.DeleteRouteRequest{Name: "projects/default/routes/one"})
	if err != nil {
		t.Error(err)
	}
}
