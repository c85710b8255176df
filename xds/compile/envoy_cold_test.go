package compile_test

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/penstock-gateway/penstock/internal/envoytest"
	"github.com/penstock-gateway/penstock/xds"
	"github.com/penstock-gateway/penstock/xds/ledger"
)

// testColdStreams: calls whose request does not end before the answer.
func testColdStreams(t *testing.T, r *rig) {
	all := newColdHosts(12)
	port := r.serve(t, gatewayOn+hosts(protected, all.names...)+`
---
kind: Backend
name: h2
protocol: H2C
static: UPSTREAM
---
kind: Route
name: grpc
hostnames: ["`+strings.Join(all.names, `", "`)+`"]
rules: [{name: all, matches: [{path: {prefix: /grpc}}], forward: {backends: [{backend: h2}]}}]
policies: {authentication: {jwt: {issuer: "https://issuer.test", audiences: [app], jwks_secret: keys}}}
`)
	token := "Bearer " + r.token(t, nil)
	for round := range 2 {
		all.used = 0
		if r.grpcReaches(t, port, all.next(), "") {
			t.Errorf("round %d: a gRPC call without a token reached the upstream", round)
		}
		if !r.grpcReaches(t, port, all.next(), token) {
			t.Errorf("round %d: a gRPC call with a token did not reach the upstream", round)
		}
		if round > 0 {
			continue // Envoy closes the connection of the next only after a second
		}
		before := r.upstream.count()
		for _, path := range []string{"/must", "/grpc"} {
			if status := extendedConnect(t, port, all.next(), path); status == "200" {
				t.Errorf("round %d: extended CONNECT to %s: %s", round, path, status)
			}
		}
		if r.upstream.count() != before {
			t.Errorf("round %d: extended CONNECT reached the upstream", round)
		}
	}
}

// grpcReaches opens a call of streams in both directions, sends one message, and
// reports whether the upstream saw it.
func (r *rig) grpcReaches(t *testing.T, port int, host, auth string) bool {
	t.Helper()
	p := new(http.Protocols)
	p.SetUnencryptedHTTP2(true)
	tr := &http.Transport{Protocols: p}
	defer tr.CloseIdleConnections()
	body, message := io.Pipe()
	defer message.Close()
	req, err := http.NewRequestWithContext(t.Context(), "POST", fmt.Sprintf("http://127.0.0.1:%d/grpc/call", port), body)
	if err != nil {
		t.Fatal(err)
	}
	req.Host = host
	req.Header.Set("content-type", "application/grpc")
	req.Header.Set("te", "trailers")
	if auth != "" {
		req.Header.Set("authorization", auth)
	}
	before := r.upstream.count()
	answered := make(chan bool, 1)
	go func() {
		res, err := tr.RoundTrip(req)
		if err == nil {
			res.Body.Close()
			if s := res.Header.Get("grpc-status"); auth == "" && (s == "" || s == "0") {
				t.Errorf("%s: refused with grpc-status %q, status %d", host, s, res.StatusCode)
			}
		}
		answered <- true
	}()
	go func() { _, _ = message.Write([]byte{0, 0, 0, 0, 1, 'x'}) }()
	reached := false
	poll(t, "an answer or the upstream", func() bool {
		reached = r.upstream.count() > before
		return reached || len(answered) > 0
	})
	if reached {
		return true // the answer comes when the request ends
	}
	<-answered
	return false
}

// extendedConnect asks for a WebSocket over HTTP/2 (RFC 8441) and returns the
// status, or "reset".
func extendedConnect(t *testing.T, port int, host, path string) string {
	t.Helper()
	c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(30 * time.Second))
	var block bytes.Buffer
	enc := hpack.NewEncoder(&block)
	for _, f := range [][2]string{{":method", "CONNECT"}, {":protocol", "websocket"}, {":scheme", "http"}, {":path", path}, {":authority", host}, {"sec-websocket-version", "13"}} {
		_ = enc.WriteField(hpack.HeaderField{Name: f[0], Value: f[1]})
	}
	if _, err := io.WriteString(c, http2.ClientPreface); err != nil {
		t.Fatal(err)
	}
	fr := http2.NewFramer(c, c)
	fr.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	_ = fr.WriteSettings()
	_ = fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block.Bytes(), EndHeaders: true})
	for {
		f, err := fr.ReadFrame()
		if err != nil {
			return "closed"
		}
		switch f := f.(type) {
		case *http2.SettingsFrame:
			if !f.IsAck() {
				_ = fr.WriteSettingsAck()
			}
		case *http2.MetaHeadersFrame:
			return f.PseudoValue("status")
		case *http2.RSTStreamFrame, *http2.GoAwayFrame:
			return "reset"
		}
	}
}

// change sends the last generation with one RouteConfiguration in place of its own,
// and without those that are named.
func (r *rig) change(with *xds.Resource, without ...string) {
	g := r.last.Clone()
	for _, name := range without {
		g.Delete(xds.Route, name)
	}
	if with != nil {
		g.Set(with)
	}
	r.server.Update(r.view.String(), g)
}

// withEager is the last generation with one scope that is not on demand.
func (r *rig) withEager(t *testing.T, name string) *xds.Generation {
	t.Helper()
	scope, old := &routev3.ScopedRouteConfiguration{}, r.last.Get(xds.Scope, name)
	if err := old.Body.UnmarshalTo(scope); err != nil {
		t.Fatal(err)
	}
	scope.OnDemand = false
	eager, err := xds.NewResource(xds.Scope, name, scope, old.Refs, old.Owners)
	if err != nil {
		t.Fatal(err)
	}
	g := r.last.Clone()
	g.Set(eager)
	return g
}

const coldYAML = `
---
kind: Route
name: all
hostnames: [get.test, post.test, whole.test, refused.test, changed.test, late.test, flip.test]
rules: [{name: all, forward: {backends: [{backend: up}]}}]
`

// testColdLost: the routes of a host never come, or the proxy refuses them.
func testColdLost(t *testing.T, r *rig) {
	port := r.serve(t, gatewayOn+coldYAML)
	const prefix = "default/edge/http/"
	r.change(nil, prefix+"get.test", prefix+"post.test", prefix+"whole.test")
	began := time.Now()
	var wg sync.WaitGroup
	for name, ask := range map[string]func(string) int{
		"get.test":   func(h string) int { return r.do(t, port, "GET", h+"/").status },
		"whole.test": func(h string) int { return r.do(t, port, "POST", h+"/", "Content-Length: 0").status },
		"post.test": func(h string) int {
			return r.incomplete(t, port, "POST / HTTP/1.1\r\nHost: "+h+"\r\nContent-Length: 50\r\n\r\nhello")
		},
	} {
		wg.Go(func() {
			if status := ask(name); status != 503 {
				t.Errorf("%s without routes: %d after %v", name, status, time.Since(began))
			}
		})
	}
	wg.Wait()
	// A request that waits is served when the routes come.
	asked := r.server.Stats().Types[xds.Route].Absent
	r.change(nil, prefix+"late.test")
	late := make(chan int, 1)
	go func() { late <- r.do(t, port, "GET", "late.test/").status }()
	poll(t, "the proxy to ask", func() bool { return r.server.Stats().Types[xds.Route].Absent > asked })
	r.server.Update(r.view.String(), r.last)
	if status := <-late; status != 200 {
		t.Errorf("routes that come late: %d", status)
	}
	// Also when the host becomes eager meanwhile.
	r.change(nil, prefix+"flip.test")
	asked = r.server.Stats().Types[xds.Route].Absent
	go func() { late <- r.do(t, port, "GET", "flip.test/").status }()
	poll(t, "the proxy to ask", func() bool { return r.server.Stats().Types[xds.Route].Absent > asked })
	r.server.Update(r.view.String(), r.withEager(t, prefix+"flip.test"))
	if status := <-late; status != 200 {
		t.Errorf("routes of a host that becomes eager: %d", status)
	}
	// The others go on, and these as soon as their routes are there.
	r.server.Update(r.view.String(), r.last)
	poll(t, "the routes to come", func() bool { return r.do(t, port, "GET", "get.test/").status == 200 })

	// Routes that Envoy refuses, of a host that nobody has loaded: it gets those
	// before.
	bad, err := xds.NewResource(xds.Route, prefix+"refused.test", &routev3.RouteConfiguration{
		Name: prefix + "refused.test", VirtualHosts: []*routev3.VirtualHost{{
			Name: "refused.test", Domains: []string{"refused.test"},
			TypedPerFilterConfig: map[string]*anypb.Any{"envoy.filters.http.router": {TypeUrl: "type.googleapis.com/not.there"}},
		}},
	}, nil, []string{"projects/default/routes/all"})
	if err != nil {
		t.Fatal(err)
	}
	r.change(bad)
	if a := r.do(t, port, "GET", "refused.test/"); a.status != 200 {
		t.Errorf("refused routes of a cold host: %d %s", a.status, a.body)
	}
	poll(t, "the refusal to be told", func() bool {
		return slices.ContainsFunc(r.server.Proxies()[0].Problems, func(p ledger.Problem) bool {
			return p.Ref.Name == prefix+"refused.test" && p.State == ledger.Refused
		})
	})
	r.server.Update(r.view.String(), r.last)
}

// testColdChanges: hosts become eager and lazy again, loaded ones and others; each
// is served after each change, and those that do not change all the time. (A request
// that waits for its routes in the very moment in which its host changes is lost in
// Envoy: docs/decisions/0005.)
func testColdChanges(t *testing.T, r *rig) {
	const n = 40
	port := envoytest.FreePort(t)
	apply := func(limited bool) {
		limit := ""
		if limited {
			limit = ", policies: {rate_limit: {limits: [{name: l, requests: 1000000, window: 1s}]}}"
		}
		yaml := gatewayOn + "\n---\nkind: Route\nname: steady\nhostnames: [steady.test]\nrules: [{name: all, forward: {backends: [{backend: up}]}}]\n"
		for i := range n {
			yaml += fmt.Sprintf("\n---\nkind: Route\nname: r%d\nhostnames: [h%d.test]\nrules: [{name: all, forward: {backends: [{backend: up}]}%s}]\n", i, i, limit)
		}
		eager := map[bool]int{false: -1, true: 0}[limited]
		r.setEager(eager)
		r.apply(t, r.objects(t, yaml, map[string]int{"PORT": port}))
		if lazy := r.last.Get(xds.Scope, "default/edge/http/h0.test").Lazy; lazy != (eager < 0) {
			t.Errorf("eager hosts %d, on demand %v", eager, lazy)
		}
	}
	apply(false)
	r.open(t, port)
	version := r.last.Get(xds.Listener, "default/edge/http").Version
	client := &http.Client{Transport: &http.Transport{}}
	defer client.CloseIdleConnections()
	get := func(host string) int {
		req, err := http.NewRequest("GET", fmt.Sprintf("http://127.0.0.1:%d/", port), nil)
		if err != nil {
			t.Error(err)
			return 0
		}
		req.Host = host
		res, err := client.Do(req)
		if err != nil {
			t.Errorf("%s: %v", host, err)
			return 0
		}
		_, _ = io.Copy(io.Discard, res.Body)
		res.Body.Close()
		return res.StatusCode
	}
	var stop atomic.Bool
	var wg sync.WaitGroup
	wg.Go(func() {
		for !stop.Load() {
			if status := get("steady.test"); status != 200 {
				t.Errorf("the host that stays: %d", status)
				return
			}
		}
	})
	for i := range 8 {
		apply(i%2 == 0)
		var round sync.WaitGroup
		for h := range n - 1 {
			round.Go(func() {
				if status := get(fmt.Sprintf("h%d.test", h)); status != 200 {
					t.Errorf("round %d, h%d.test: %d", i, h, status)
				}
			})
		}
		round.Wait()
	}
	stop.Store(true)
	wg.Wait()
	if got := r.last.Get(xds.Listener, "default/edge/http").Version; got != version {
		t.Error("the listener changed")
	}
	if a := r.do(t, port, "GET", fmt.Sprintf("H%d.TEST/", n-1)); a.status != 200 {
		t.Errorf("the host that was cold all the time, in capitals: %d", a.status)
	}
}

// testColdReconnect: another control plane with the same configuration sends
// nothing, to what is loaded or not; and cold hosts are answered while it starts.
func testColdReconnect(t *testing.T, r *rig) {
	port := r.serve(t, gatewayOn+coldYAML)
	const warm = "get.test"
	if a := r.do(t, port, "GET", warm+"/"); a.status != 200 {
		t.Fatalf("%d", a.status)
	}
	r.server.Close()
	r.grpc.Stop()
	if a := r.do(t, port, "GET", warm+"/"); a.status != 200 {
		t.Errorf("a loaded host without a control plane: %d", a.status)
	}
	cold := make(chan int, 1)
	go func() { cold <- r.do(t, port, "GET", "changed.test/").status }()
	r.listen()
	r.server.Update(r.view.String(), r.last)
	if status := <-cold; status != 200 {
		t.Errorf("a host that was asked for without a control plane: %d", status)
	}
	poll(t, "the proxy to serve", func() bool {
		p := r.server.Proxies()
		return len(p) == 1 && p[0].State == ledger.Serving
	})
	for typ, s := range r.server.Stats().Types {
		want := int64(0)
		if typ == xds.Route {
			want = 1 // the cold host's
		}
		if s.Sent != want {
			t.Errorf("%d %s were sent again, want %d", s.Sent, typ.Short(), want)
		}
	}
}
