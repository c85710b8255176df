package delivery_test

import (
	"fmt"
	"net/http"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"google.golang.org/protobuf/types/known/durationpb"

	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"

	"github.com/penstock-gateway/penstock/internal/envoytest"
	"github.com/penstock-gateway/penstock/xds"
	"github.com/penstock-gateway/penstock/xds/delivery"
	"github.com/penstock-gateway/penstock/xds/ledger"
)

// These tests run the real Envoy.

const view = "default/-"

// startEnvoy starts a proxy of view and waits until it serves a revision.
func startEnvoy(t *testing.T, p *plane, name string, revision int64) *envoytest.Envoy {
	t.Helper()
	e := envoytest.Start(t, envoytest.Options{Config: p.config("-", name)})
	eventually(t, name+" to serve the first revision", func() bool {
		s, ok := p.proxy(name)
		return ok && s.Revision >= revision
	})
	e.WaitLive(t)
	return e
}

// mustGet asks a gateway and fails the test unless the backend answers.
func mustGet(t *testing.T, port int, host, want string) {
	t.Helper()
	c := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	if body, err := get(c, port, host); err != nil || body != want {
		t.Fatalf("%s: got %q, %v, want %q", host, body, err, want)
	}
}

// TestEnvoyChanges goes through the changes that Envoy would answer with a stall
// or with lost requests if the ledger did not do more than send what changed. The
// fetch timeouts are off, so a stall would be for ever.
func TestEnvoyChanges(t *testing.T) {
	p := newPlane(t, delivery.Options{})
	port := envoytest.FreePort(t)
	never := durationpb.New(0)
	g := newGeneration(t, 1)
	g.listener("l", port, func(h *hcmv3.HttpConnectionManager) {
		h.GetScopedRoutes().GetScopedRds().ScopedRdsConfigSource.InitialFetchTimeout = never
	})
	g.cluster("c-a", backend(t, "a"))
	g.cluster("c-b", backend(t, "b"))
	g.host("a.test", "c-a")
	p.server.Update(view, g.Generation)
	startEnvoy(t, p, "edge", 1)
	mustGet(t, port, "a.test", "a")

	apply := func(what string) {
		t.Helper()
		p.server.Update(view, g.Generation)
		if rep := p.wait(g.Revision); rep.Serving != 1 || len(rep.Problems) > 0 {
			t.Fatalf("%s: %+v", what, rep)
		}
		mustGet(t, port, "a.test", "a")
	}
	g = g.next()
	g.clusterOnly("c-a", 2*time.Second)
	apply("cluster changed, endpoints not")

	g = g.next()
	g.listener("l", port, func(h *hcmv3.HttpConnectionManager) { h.ServerName = "other" })
	apply("listener changed")

	g = g.next()
	g.listener("l", port, func(h *hcmv3.HttpConnectionManager) {
		h.ServerName = "third"
		h.GetScopedRoutes().GetScopedRds().ScopedRdsConfigSource.InitialFetchTimeout = durationpb.New(time.Hour)
	})
	apply("source of scopes changed")
	eventually(t, "the new listener to serve", func() bool {
		res, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/", port))
		if err != nil {
			return false
		}
		defer res.Body.Close()
		return res.Header.Get("server") == "third"
	})
	mustGet(t, port, "a.test", "a")

	g = g.next()
	g.host("b.test", "c-b")
	apply("host added")
	mustGet(t, port, "b.test", "b")

	g = g.next()
	g.Delete(xds.Scope, "b.test")
	g.Delete(xds.Route, "b.test")
	g.Delete(xds.Cluster, "c-b")
	g.Delete(xds.Endpoint, "c-b")
	apply("host removed")
	if _, err := get(http.DefaultClient, port, "b.test"); err == nil || err.Error() != "status 404: " {
		t.Errorf("the removed host answers %v, want 404", err)
	}
	eventually(t, "its cluster to be removed", func() bool {
		s, _ := p.proxy("edge")
		return s.Resources[xds.Cluster] == 1 && s.Resources[xds.Route] == 1
	})
}

// TestEnvoyGoneWhileWarming removes clusters right after they were added. Envoy
// must not be left warming them: it would acknowledge no other cluster.
func TestEnvoyGoneWhileWarming(t *testing.T) {
	p := newPlane(t, delivery.Options{})
	port := envoytest.FreePort(t)
	up := backend(t, "a")
	g := newGeneration(t, 1)
	g.listener("l", port, nil)
	g.cluster("a", up)
	g.host("a.test", "a")
	p.server.Update(view, g.Generation)
	startEnvoy(t, p, "edge", 1)
	for i := range 20 {
		name := fmt.Sprint("short-lived-", i)
		g = g.next()
		g.cluster(name, up)
		sent := p.server.Stats().Types[xds.Cluster].Sent
		p.server.Update(view, g.Generation)
		if i%2 == 0 { // else the two may be merged
			eventually(t, "the cluster to be sent", func() bool {
				return p.server.Stats().Types[xds.Cluster].Sent > sent
			})
		}
		g = g.next()
		g.Delete(xds.Cluster, name)
		g.Delete(xds.Endpoint, name)
		p.server.Update(view, g.Generation)
	}
	g = g.next()
	g.cluster("b", up)
	g.host("b.test", "b")
	p.server.Update(view, g.Generation)
	if rep := p.wait(g.Revision); rep.Serving != 1 {
		t.Errorf("report %+v", rep)
	}
	mustGet(t, port, "b.test", "a")
	eventually(t, "the short-lived clusters to be removed", func() bool {
		s, _ := p.proxy("edge")
		return s.Resources[xds.Cluster] == 2
	})
}

// TestEnvoyUnderLoad moves hosts between clusters, each change with a new cluster
// and the old one gone, while clients ask. Nothing may fail.
func TestEnvoyUnderLoad(t *testing.T) {
	p := newPlane(t, delivery.Options{Grace: 30 * time.Millisecond})
	port := envoytest.FreePort(t)
	up := backend(t, "ok")
	const hosts = 3
	host := func(i int) string { return fmt.Sprintf("h%d.test", i%hosts) }
	g := newGeneration(t, 1)
	g.listener("l", port, nil)
	for i := range hosts {
		g.cluster(fmt.Sprint("c", i), up)
		g.host(host(i), fmt.Sprint("c", i))
	}
	p.server.Update(view, g.Generation)
	startEnvoy(t, p, "edge", 1)

	var asked, failed atomic.Int64
	var once sync.Once
	stop := make(chan struct{})
	var clients sync.WaitGroup
	for n := range 4 {
		clients.Go(func() {
			c := &http.Client{Transport: &http.Transport{}}
			defer c.CloseIdleConnections()
			for {
				select {
				case <-stop:
					return
				default:
				}
				asked.Add(1)
				if _, err := get(c, port, host(n)); err != nil {
					failed.Add(1)
					once.Do(func() { t.Errorf("first failure: %v", err) })
				}
			}
		})
	}
	const changes = 60
	for i := range changes {
		g = g.next()
		old, next := fmt.Sprint("c", i), fmt.Sprint("c", i+hosts)
		g.Delete(xds.Cluster, old)
		g.Delete(xds.Endpoint, old)
		g.cluster(next, up)
		g.host(host(i), next)
		p.server.Update(view, g.Generation)
		if i%3 > 0 { // every third change comes while the one before is under way
			p.wait(g.Revision)
		}
	}
	p.wait(g.Revision)
	eventually(t, "the old clusters to be removed", func() bool {
		s, _ := p.proxy("edge")
		return s.Resources[xds.Cluster] == hosts
	})
	close(stop)
	clients.Wait()
	t.Logf("%d requests over %d changes, %d failed", asked.Load(), changes, failed.Load())
	if asked.Load() == 0 {
		t.Error("no request was made")
	}
}

// TestEnvoyRestart: a control plane that comes back with the same configuration
// sends nothing, and Envoy serves meanwhile.
func TestEnvoyRestart(t *testing.T) {
	p := newPlane(t, delivery.Options{})
	port := envoytest.FreePort(t)
	g := newGeneration(t, 1)
	g.listener("l", port, nil)
	for i := range 20 {
		g.cluster(fmt.Sprint("c", i), backend(t, fmt.Sprint("b", i)))
		g.host(fmt.Sprintf("h%d.test", i), fmt.Sprint("c", i))
	}
	p.server.Update(view, g.Generation)
	startEnvoy(t, p, "edge", 1)

	p.stop()
	mustGet(t, port, "h7.test", "b7")
	p.start()
	p.server.Update(view, g.Generation)
	eventually(t, "the proxy to come back", func() bool {
		s, ok := p.proxy("edge")
		return ok && s.Revision == 1 && s.Resources[xds.Route] == 20
	})
	if n := p.sent(); n != 0 {
		t.Errorf("%d resources were sent again: %+v", n, p.server.Stats())
	}
	g = g.next()
	g.route("h7.test", "c8", nil)
	p.server.Update(view, g.Generation)
	p.wait(2)
	mustGet(t, port, "h7.test", "b8")
	if n := p.sent(); n != 1 {
		t.Errorf("%d resources were sent for one change", n)
	}
}

// TestEnvoyRefuses: one bad route among many changed ones is found and named; the
// others are applied and the bad one keeps its version before.
func TestEnvoyRefuses(t *testing.T) {
	p := newPlane(t, delivery.Options{})
	port := envoytest.FreePort(t)
	const n = 64
	host := func(i int) string { return fmt.Sprintf("h%02d.test", i) }
	g := newGeneration(t, 1)
	g.listener("l", port, nil)
	for _, b := range []string{"old", "new"} {
		g.cluster(b, backend(t, b))
	}
	for i := range n {
		g.host(host(i), "old")
	}
	p.server.Update(view, g.Generation)
	startEnvoy(t, p, "edge", 1)

	g = g.next()
	for i := range n {
		g.route(host(i), "new", nil)
	}
	const bad = 41
	badRegex := func(r *routev3.Route) {
		r.Match.PathSpecifier = &routev3.RouteMatch_SafeRegex{SafeRegex: &matcherv3.RegexMatcher{Regex: "("}}
	}
	g.route(host(bad), "new", badRegex)
	p.server.Update(view, g.Generation)
	rep := p.wait(2)
	if rep.Serving != 0 || len(rep.Problems) != 1 {
		t.Fatalf("report %+v, want one refusal", rep)
	}
	got := rep.Problems[0]
	if got.State != ledger.Refused || got.Ref != (xds.Ref{Type: xds.Route, Name: host(bad)}) || got.Detail == "" ||
		len(got.Owners) != 1 || got.Owners[0] != "objects/"+host(bad) {
		t.Errorf("problem %+v", got)
	}
	for i := range n {
		want := "new"
		if i == bad {
			want = "old"
		}
		mustGet(t, port, host(i), want)
	}

	// The next revision is served in spite of the old refusal, and nothing refused
	// is sent again.
	sent := p.sent()
	g = g.next()
	g.route(host(1), "old", nil)
	p.server.Update(view, g.Generation)
	if rep := p.wait(3); rep.Serving != 1 {
		t.Errorf("report of an unrelated change %+v", rep)
	}
	if got := p.sent() - sent; got != 1 {
		t.Errorf("%d resources were sent for one change", got)
	}

	// Mended, it is served.
	g = g.next()
	g.route(host(bad), "new", nil)
	p.server.Update(view, g.Generation)
	if rep := p.wait(4); rep.Serving != 1 || len(rep.Problems) > 0 {
		t.Errorf("report after mending %+v", rep)
	}
	mustGet(t, port, host(bad), "new")
	if s, _ := p.proxy("edge"); s.State != ledger.Serving || s.Revision != 4 {
		t.Errorf("state after mending %+v", s)
	}
}

// TestEnvoySilent: a stopped process is silent, and the other proxy's change is
// served; when it goes on, it catches up.
func TestEnvoySilent(t *testing.T) {
	p := newPlane(t, delivery.Options{SilentAfter: 200 * time.Millisecond})
	ports := []int{envoytest.FreePort(t), envoytest.FreePort(t)}
	views := []string{"default/g0", "default/g1"}
	var gens []generation
	var envoys []*envoytest.Envoy
	for i, v := range views {
		g := newGeneration(t, 1)
		g.listener("l", ports[i], nil)
		g.cluster("a", backend(t, "a"))
		g.cluster("b", backend(t, "b"))
		g.host("h.test", "a")
		p.server.Update(v, g.Generation)
		gens = append(gens, g)
		name := fmt.Sprint("edge", i)
		e := envoytest.Start(t, envoytest.Options{Config: p.config(fmt.Sprint("g", i), name)})
		eventually(t, name, func() bool { s, ok := p.proxy(name); return ok && s.Revision == 1 })
		envoys = append(envoys, e)
	}
	signal := func(s syscall.Signal) {
		t.Helper()
		if err := syscall.Kill(envoys[1].Pid(), s); err != nil {
			t.Fatal(err)
		}
	}
	signal(syscall.SIGSTOP)
	defer func() { _ = syscall.Kill(envoys[1].Pid(), syscall.SIGCONT) }()
	for i, v := range views {
		gens[i] = gens[i].next()
		gens[i].route("h.test", "b", nil)
		p.server.Update(v, gens[i].Generation)
	}
	rep := p.wait(2)
	if !rep.Complete || rep.Serving != 1 || rep.Total != 2 || len(rep.Problems) != 1 ||
		rep.Problems[0].State != ledger.Silent || rep.Problems[0].Proxy != "edge1" {
		t.Fatalf("report %+v, want edge0 serving and edge1 silent", rep)
	}
	mustGet(t, ports[0], "h.test", "b")
	if s, _ := p.proxy("edge1"); s.State != ledger.Silent {
		t.Errorf("state %q, want silent", s.State)
	}
	signal(syscall.SIGCONT)
	eventually(t, "the stopped proxy to catch up", func() bool { s, _ := p.proxy("edge1"); return s.Revision == 2 })
	mustGet(t, ports[1], "h.test", "b")
}
