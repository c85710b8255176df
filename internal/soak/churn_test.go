package soak

import (
	"crypto/tls"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
	"github.com/penstock-gateway/penstock/internal/envoytest"
)

// size is how much a test does.
type size struct {
	changes  int
	every    time.Duration // pace of each of the 8 connections
	requests int64         // at least between two changes
	restarts int
}

func sizeOf() size {
	if os.Getenv("PENSTOCK_SOAK") == "1" {
		changes := 1000
		if n, err := strconv.Atoi(os.Getenv("PENSTOCK_SOAK_CHANGES")); err == nil {
			changes = n
		}
		return size{changes: changes, every: 8 * time.Millisecond, requests: 50, restarts: 50}
	}
	return size{changes: 100, every: 20 * time.Millisecond, requests: 20, restarts: 10}
}

// seeded returns the source of a run's choices and prints its seed.
func seeded(t *testing.T) *rand.Rand {
	t.Helper()
	seed := rand.Uint64()
	if s := os.Getenv("PENSTOCK_SOAK_SEED"); s != "" {
		var err error
		if seed, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatalf("PENSTOCK_SOAK_SEED: %v", err)
		}
	}
	t.Logf("PENSTOCK_SOAK_SEED=%d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}

// temporary is a route that comes, changes and goes.
type temporary struct {
	id, gateway, hosts, host, path string
	backend, policies, kind, mark  string
	servers                        []string
}

func (r *temporary) yaml() string {
	return routeYAML(r.id, r.gateway, r.hosts, []string{r.path}, r.backend, r.policies)
}

// churn makes changes and checks each.
type churn struct {
	*world
	rand   *rand.Rand
	number int
	routes []*temporary
	probes map[string]*client // by gateway
	// valid are the keys in the secret besides keys[0].
	valid int
	// extra is the port of the listener that comes and goes, 0 without.
	extra int
	// policies is the number of the last policy that no other is like.
	policies int
	count    map[string]int
}

// TestChurn makes seeded changes of every kind while clients call: no request
// fails or is answered by the wrong backend, what an Apply has acknowledged is in
// force, and neither connections nor open streams are cut.
func TestChurn(t *testing.T) {
	size := sizeOf()
	c := &churn{rand: seeded(t), world: newWorld(t, size.every, restless), valid: 1, policies: 100, count: map[string]int{}}
	c.probes = map[string]*client{"edge": newClient("http", c.edge, false), "wide": newClient("http", c.wide, false)}
	for _, p := range c.probes {
		p.getOnly = true
		t.Cleanup(p.http.CloseIdleConnections)
	}
	kinds := []struct {
		name   string
		weight int
		change func(*testing.T)
	}{
		{"route added", 4, c.addRoute}, {"route changed", 4, c.changeRoute}, {"route removed", 3, c.removeRoute},
		{"backend switched", 5, c.switchBackend}, {"several at once", 2, c.burst}, {"several in a row", 2, c.hurry},
		{"host overridden", 2, c.overrideHost}, {"authentication in a hurry", 2, c.hurryAuthentication},
		{"authentication by several", 2, c.manyAuthentications}, {"crowd changed", 1, c.changeCrowd}, {"authentication changed", 3, c.changeAuthentication}, {"endpoints changed", 3, c.changeEndpoints}, {"policy changed", 4, c.changePolicy},
		{"gateway policy changed", 2, c.changeGateway},
		{"keys changed", 2, c.changeKeys}, {"certificate changed", 1, c.changeCertificate}, {"listener added or removed", 1, c.changeListener},
	}
	total := 0
	for _, k := range kinds {
		total += k.weight
	}
	for c.number = 1; c.number <= size.changes && !t.Failed(); c.number++ {
		n := c.rand.IntN(total)
		i := slices.IndexFunc(kinds, func(k struct {
			name   string
			weight int
			change func(*testing.T)
		}) bool {
			n -= k.weight
			return n < 0
		})
		c.count[kinds[i].name]++
		kinds[i].change(t)
		if t.Failed() {
			t.Logf("the failure was seen in or before change %d: %s", c.number, kinds[i].name)
		}
		c.ping(t)
		c.load.pass(t, size.requests)
	}
	c.load.end(t)
	var used []string
	for _, r := range c.routes {
		used = append(used, r.backend)
	}
	c.noLeaks(t, used...)
	t.Logf("%d changes: %v", c.number-1, c.count)
	for gw, p := range c.probes {
		p.kept(t, "the probes of "+gw)
	}
	if n := c.envoy.Stat(t, "listener_manager.listener_modified"); n != 0 {
		t.Errorf("%d listeners were modified, want none", n)
	}
}

// anyTarget is a backend that exists, with its servers.
func (c *churn) anyTarget() (string, []string) {
	m := c.moving[c.rand.IntN(len(c.moving))]
	return m.backend, m.answer("").servers
}

func (c *churn) addRoute(t *testing.T) {
	r := &temporary{id: fmt.Sprintf("temp-%d", c.number), path: fmt.Sprintf("/temp-%d", c.number)}
	switch c.rand.IntN(6) {
	case 0: // on a host that clients call
		r.gateway, r.host = "edge", fmt.Sprintf("s%d.test", c.rand.IntN(hostsOfEdge))
		r.hosts = r.host
	case 1: // a host is added
		r.gateway, r.host = "edge", fmt.Sprintf("h%d.test", c.number)
		r.hosts = r.host
	case 5: // under a wildcard
		r.gateway, r.host = "edge", fmt.Sprintf("x%d.apps.test", c.number)
		r.hosts = r.host
	case 2:
		r.gateway, r.hosts, r.host = "wide", "'*'", "nobody.test"
	case 3:
		r.gateway, r.host = "wide", fmt.Sprintf("h%d.test", c.number)
		r.hosts = r.host
	case 4:
		r.gateway, r.hosts, r.host = "wide", fmt.Sprintf("'*.w%d.test'", c.number), fmt.Sprintf("x.w%d.test", c.number)
	}
	c.decide(r)
	c.apply(t, r.yaml())
	c.routes = append(c.routes, r)
	c.check(t, r)
}

// decide chooses backend and policies of a temporary route.
func (c *churn) decide(r *temporary) {
	r.backend, r.servers = c.anyTarget()
	r.mark, r.kind = "", []string{"open", "marked", "jwt", "limit", "member", "stranger"}[c.rand.IntN(6)]
	switch r.kind {
	case "open":
		r.policies = fmt.Sprintf("timeout: {request: %ds}, retry: {idempotent: {attempts: %d}}", 1+c.rand.IntN(20), 1+c.rand.IntN(5))
	case "marked":
		r.mark = fmt.Sprintf("t%d", c.number)
		r.policies = fmt.Sprintf("headers: {request: {set: [{name: x-some, value: thing}]}, response: {set: [{name: x-mark, value: %s}]}}", r.mark)
	case "jwt":
		r.policies = jwtPolicy(c.rand.IntN(3), "")
	case "member":
		r.policies = jwtPolicy(c.rand.IntN(3), "consumers: [alice]")
	case "stranger":
		r.policies = jwtPolicy(c.rand.IntN(3), "consumers: [bob]")
	case "limit":
		r.policies = fmt.Sprintf("rate_limit: {limits: [{name: l%d, requests: 1, window: 3600s, key: SHARED}]}", c.number)
	}
}

// check checks a temporary route after its change has been acknowledged.
func (c *churn) check(t *testing.T, r *temporary) {
	t.Helper()
	switch r.kind {
	case "stranger":
		c.expect(t, r, "", 401)
		c.expect(t, r, c.token(t, 0), 403)
	case "jwt", "member":
		c.expect(t, r, "", 401)
		c.expect(t, r, c.token(t, 0), 200)
		c.expect(t, r, c.token(t, c.valid), 200)
	case "limit":
		c.expect(t, r, "", 200)
		// A limiter that has no processor for a moment lets requests pass.
		waitFor(t, "the limit of "+r.id, func() bool {
			got, err := c.probes[r.gateway].do(r.host, r.path, "")
			return err == nil && got.status == 429
		})
	default:
		c.expect(t, r, "", 200)
	}
}

func (c *churn) expect(t *testing.T, r *temporary, token string, status int) {
	t.Helper()
	p := c.probes[r.gateway]
	got, err := p.do(r.host, r.path, token)
	if err != nil {
		t.Fatalf("change %d: %s %s%s: %v", c.number, r.id, r.host, r.path, err)
	}
	if status != 200 {
		if got.status != status {
			t.Errorf("change %d: %s (%s) %s%s: %d %q, want %d", c.number, r.id, r.kind, r.host, r.path, got.status, got.body, status)
		}
		return
	}
	server, err := p.server(r.path, got)
	if err != nil || !slices.Contains(r.servers, server) || got.header.Get("X-Mark") != r.mark {
		t.Errorf("change %d: %s (%s) %s%s: by %q with mark %q, want %v with %q: %v",
			c.number, r.id, r.kind, r.host, r.path, server, got.header.Get("X-Mark"), r.servers, r.mark, err)
	}
}

func (c *churn) changeRoute(t *testing.T) {
	if len(c.routes) == 0 {
		c.addRoute(t)
		return
	}
	r := c.routes[c.rand.IntN(len(c.routes))]
	c.decide(r)
	c.apply(t, r.yaml())
	c.check(t, r)
}

func (c *churn) removeRoute(t *testing.T) {
	if len(c.routes) == 0 {
		c.addRoute(t)
		return
	}
	i := c.rand.IntN(len(c.routes))
	r := c.routes[i]
	c.apply(t, "", "routes/"+r.id)
	c.routes = slices.Delete(c.routes, i, i+1)
	c.expect(t, r, "", 404)
}

// switchBackend gives a route that is called a new backend and removes the old
// one in the same Apply. Temporary routes that used it go along.
func (c *churn) switchBackend(t *testing.T) {
	m := c.moving[c.rand.IntN(len(c.moving))]
	old := m.backend
	c.backend++
	m.backend, m.servers = fmt.Sprintf("b%d", c.backend), c.someServers()
	docs := []string{c.backendYAML(m.backend, m.protocol(), m.servers...), m.route()}
	var touched []*temporary
	for _, r := range c.routes {
		if r.backend == old {
			r.backend, r.servers = m.backend, m.answer("").servers
			docs = append(docs, r.yaml())
			touched = append(touched, r)
		}
	}
	m.begin(m.answer(m.last().mark))
	c.apply(t, strings.Join(docs, "\n---\n"), "backends/"+old)
	m.settle()
	for _, r := range touched {
		if r.kind == "open" || r.kind == "marked" {
			c.expect(t, r, "", 200)
		}
	}
}

// burst switches backends of several routes by Applies at the same time.
func (c *churn) burst(t *testing.T) {
	var wg sync.WaitGroup
	var errs [3]error
	for i, n := range c.rand.Perm(len(c.moving))[:len(errs)] {
		m := c.moving[n]
		// The backend before stays: temporary routes may use it.
		c.backend++
		m.backend, m.servers = fmt.Sprintf("b%d", c.backend), c.someServers()
		yaml := resources(t, c.backendYAML(m.backend, m.protocol(), m.servers...)+"---\n"+m.route())
		m.begin(m.answer(m.last().mark))
		wg.Go(func() {
			if errs[i] = c.try(t.Context(), yaml); errs[i] == nil {
				m.settle()
			}
		})
	}
	wg.Wait()
	if err := errors.Join(errs[:]...); err != nil {
		t.Fatalf("change %d: %v", c.number, err)
	}
}

// hurry switches the backend of a route several times without waiting, so that
// the proxy may never be sent what is between, and waits for the last one only.
func (c *churn) hurry(t *testing.T) {
	m := c.moving[c.rand.IntN(len(c.moving))]
	var deletes []string
	for range 1 + c.rand.IntN(5) {
		c.backend++
		m.backend, m.servers = fmt.Sprintf("b%d", c.backend), c.someServers()
		m.begin(m.answer(m.last().mark))
		if _, err := c.config.Apply(t.Context(), &pb.ApplyRequest{
			Resources: resources(t, c.backendYAML(m.backend, m.protocol(), m.servers...)+"---\n"+m.route()), Deletes: deletes,
			Options: &pb.WriteOptions{Wait: pb.WaitMode_WAIT_MODE_NONE},
		}); err != nil {
			t.Fatalf("change %d: %v", c.number, err)
		}
		deletes = []string{"projects/default/backends/" + m.backend}
	}
	old := m.backend
	c.backend++
	m.backend, m.servers = fmt.Sprintf("b%d", c.backend), c.someServers()
	m.begin(m.answer(m.last().mark))
	c.apply(t, c.backendYAML(m.backend, m.protocol(), m.servers...)+"---\n"+m.route(), "backends/"+old)
	m.settle()
}

// overrideHost gives a host under a wildcard a route of its own for a while.
func (c *churn) overrideHost(t *testing.T) {
	m, was := c.apps, c.apps.last()
	server := c.rand.IntN(len(c.ups))
	c.backend++
	id := fmt.Sprintf("b%d", c.backend)
	m.begin(answer{servers: []string{fmt.Sprintf("u%d", server)}})
	c.apply(t, c.backendYAML(id, "", server)+"---\n"+routeYAML("override", "edge", m.host, m.paths, id, ""))
	m.settle()
	c.load.pass(t, 20)
	m.begin(was)
	c.apply(t, "", "routes/override", "backends/"+id)
	m.settle()
}

// changeAuthentication asks for a token in other ways, or not at all, while
// callers that have one call.
func (c *churn) changeAuthentication(t *testing.T) {
	c.guarded.policies = ""
	if n := c.rand.IntN(4); n > 0 {
		c.guarded.policies = jwtPolicy(n, []string{"", "consumers: [alice]", "optional: true"}[c.rand.IntN(3)])
	}
	c.apply(t, c.guarded.route())
}

// someServers are one to three upstreams.
func (c *churn) someServers() []int {
	return c.rand.Perm(len(c.ups))[:1+c.rand.IntN(3)]
}

// changeEndpoints changes the addresses of a backend that is called.
func (c *churn) changeEndpoints(t *testing.T) {
	m := c.moving[c.rand.IntN(len(c.moving))]
	m.servers = c.someServers()
	for _, r := range c.routes {
		if r.backend == m.backend {
			r.servers = m.answer("").servers
		}
	}
	m.begin(m.answer(m.last().mark))
	c.apply(t, c.backendYAML(m.backend, m.protocol(), m.servers...))
	m.settle()
}

// changePolicy changes policies of a route that is called and has open streams.
func (c *churn) changePolicy(t *testing.T) {
	m := c.moving[c.rand.IntN(len(c.moving))]
	mark := fmt.Sprintf("m%d", c.number)
	limit := ""
	if c.rand.IntN(2) == 0 {
		limit = fmt.Sprintf(", rate_limit: {limits: [{name: l%d, requests: 1000000000, window: 1s, key: SHARED}]}", c.number)
	}
	m.policies = fmt.Sprintf("timeout: {request: %ds, idle: %ds}, retry: {idempotent: {attempts: %d}}, headers: {request: {set: [{name: x-some, value: thing}]}, response: {set: [{name: x-mark, value: %s}]}}%s",
		5+c.rand.IntN(20), 60+c.rand.IntN(60), 1+c.rand.IntN(5), mark, limit)
	m.begin(m.answer(mark))
	c.apply(t, m.route())
	m.settle()
}

// changeKeys replaces the second key of the key set, under the load of a route
// that checks tokens of the first one.
func (c *churn) changeKeys(t *testing.T) {
	old := c.valid
	c.valid = 1 + old%(len(c.keys)-1)
	c.apply(t, c.keySet(t, 0, c.valid))
	r := &temporary{id: "locked-edge", gateway: "edge", kind: "jwt", host: "s0.test", path: "/locked", servers: []string{"u0"}}
	c.expect(t, r, c.token(t, c.valid), 200)
	c.expect(t, r, c.token(t, old), 401)
}

func (c *churn) changeCertificate(t *testing.T) {
	yaml := c.certificate(t)
	c.apply(t, yaml)
	conn, err := tls.Dial("tcp", c.wideTLS, &tls.Config{InsecureSkipVerify: true})
	if err != nil {
		t.Fatalf("change %d: %v", c.number, err)
	}
	defer conn.Close()
	serial := conn.ConnectionState().PeerCertificates[0].SerialNumber
	if want := serialOf(t, yaml); serial.Cmp(want) != 0 {
		t.Errorf("change %d: the listener shows certificate %x, want %x", c.number, serial, want)
	}
}

// changeGateway changes a policy of all routes of a gateway, which is not a change of
// its listeners.
func (c *churn) changeGateway(t *testing.T) {
	c.apply(t, c.gateway("wide", fmt.Sprintf("{headers: {response: {set: [{name: x-gateway, value: g%d}]}}}", c.number)))
	got, err := c.probes["wide"].do("nobody.test", "/fixed", "")
	if want := fmt.Sprintf("g%d", c.number); err != nil || got.status != 200 || got.header.Get("X-Gateway") != want {
		t.Errorf("change %d: %d with x-gateway %q, want 200 with %q: %v", c.number, got.status, got.header.Get("X-Gateway"), want, err)
	}
}

// changeListener opens a listener of its own, or closes it: others are not drained.
func (c *churn) changeListener(t *testing.T) {
	if c.extra != 0 {
		c.extra = 0
		c.apply(t, "", "routes/extra", "gateways/extra")
		return
	}
	c.extra = envoytest.FreePort(t)
	c.apply(t, fmt.Sprintf("kind: Gateway\nname: extra\nlisteners: [{name: http, address: 127.0.0.1, port: %d}]\n---\n%s",
		c.extra, routeYAML("extra", "extra", "extra.test", []string{"/"}, "still", "")))
	p := newClient("http", net.JoinHostPort("127.0.0.1", strconv.Itoa(c.extra)), false)
	defer p.http.CloseIdleConnections()
	got, err := p.do("extra.test", "/extra", "")
	if err == nil {
		_, err = p.server("/extra", got)
	}
	if err != nil {
		t.Errorf("change %d: the new listener: %v", c.number, err)
	}
}
