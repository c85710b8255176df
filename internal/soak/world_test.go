package soak

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"maps"
	"math/big"
	"net"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	jose "github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"

	"github.com/penstock-gateway/penstock/internal/envoytest"
	"github.com/penstock-gateway/penstock/internal/pki"
)

// world is what is configured and called.
type world struct {
	*plane
	ups  []*upstream
	load *load
	// edge has exact hosts only: a RouteConfiguration per host. wide serves any
	// host: one table, in the clear and over TLS.
	edge, wide, wideTLS string
	ports               []int // of these three
	// fixed never change. moving change their backend and their policies.
	fixed, moving []*moving
	apps, guarded *moving // of these
	longs         []*long

	keys    []*ecdsa.PrivateKey // signing keys that there may be; keys[0] is always valid
	backend int                 // number of the last backend made
}

// moving is a route that is changed while it is called.
type moving struct {
	target
	id, gateway string
	hosts       string // of the route, in YAML
	paths       []string
	backend     string
	h2          bool
	servers     []int
	policies    string
}

const hostsOfEdge = 4

func newWorld(t *testing.T, every time.Duration, options ...func(*plane)) *world {
	t.Helper()
	w := &world{plane: newPlane(t, options...), ups: newUpstreams(t, 6), load: &load{}}
	for range 4 {
		k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		w.keys = append(w.keys, k)
	}
	w.ports = []int{envoytest.FreePort(t), envoytest.FreePort(t), envoytest.FreePort(t)}
	at := func(i int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(w.ports[i])) }
	w.edge, w.wide, w.wideTLS = at(0), at(1), at(2)
	docs := []string{
		w.gateway("edge", "{}"), w.gateway("wide", "{}"), w.certificate(t), w.keySet(t, 0, 1), w.backendYAML("still", "", 0),
		"kind: Consumer\nname: alice\njwt: {issuer: \"https://issuer.test\", subject: alice}",
		"kind: Consumer\nname: bob\njwt: {issuer: \"https://issuer.test\", subject: bob}",
	}
	add := func(list *[]*moving, m *moving, host string) {
		m.target.name, m.host, m.path = m.id, host, m.paths[0]
		m.begin(answer{servers: []string{"u0"}})
		m.servers = []int{0}
		if m.backend == "" {
			w.backend++
			m.backend = fmt.Sprintf("b%d", w.backend)
			docs = append(docs, w.backendYAML(m.backend, m.protocol(), 0))
		}
		docs = append(docs, m.route())
		*list = append(*list, m)
	}
	for i := range hostsOfEdge {
		host := fmt.Sprintf("s%d.test", i)
		add(&w.fixed, &moving{id: fmt.Sprintf("fixed-%d", i), gateway: "edge", hosts: host, paths: []string{"/fixed"}, backend: "still"}, host)
		add(&w.moving, &moving{id: fmt.Sprintf("moving-%d", i), gateway: "edge", hosts: host, paths: []string{"/moving", "/ws"}}, host)
	}
	add(&w.moving, &moving{id: "grpc", gateway: "edge", hosts: "s1.test", paths: []string{"/grpc"}, h2: true}, "s1.test")
	add(&w.fixed, &moving{id: "fixed-any", gateway: "wide", hosts: "'*'", paths: []string{"/fixed"}, backend: "still"}, "whoever.test")
	add(&w.moving, &moving{id: "moving-any", gateway: "wide", hosts: "'*'", paths: []string{"/moving", "/ws"}}, "whoever.test")
	// A wildcard with exact hosts under it, and a host that is called in capitals.
	w.apps = &moving{id: "apps", gateway: "edge", hosts: "'*.apps.test'", paths: []string{"/moving"}}
	add(&w.moving, w.apps, "a.apps.test")
	add(&w.fixed, &moving{id: "capitals", gateway: "edge", hosts: "c.test", paths: []string{"/capitals"}, backend: "still"}, "C.Test")
	// One whose callers have a token, whether it asks for it or not.
	w.guarded = &moving{id: "guarded", gateway: "edge", hosts: "s2.test", paths: []string{"/guarded"}, backend: "still"}
	add(&w.fixed, w.guarded, "s2.test")
	w.guarded.token = w.token(t, 0)
	// One that asks for a token all the time, while keys come and go.
	for i, gw := range []string{"edge", "wide"} {
		host := []string{"s0.test", "locked.test"}[i]
		add(&w.fixed, &moving{id: "locked-" + gw, gateway: gw, hosts: host, paths: []string{"/locked"}, backend: "still", policies: jwtPolicy(0, "")}, host)
		w.fixed[len(w.fixed)-1].token = w.token(t, 0)
	}
	docs = append(docs, w.crowd(t)...)
	w.apply(t, strings.Join(docs, "\n---\n"))
	w.envoy.WaitLive(t)
	w.startLoad(t, every)
	w.longs = append(w.longs, openWebSocket(t, w.edge, "s0.test", "/ws"), openWebSocket(t, w.wide, "any.test", "/ws"), openStream(t, w.edge, "s1.test", "/grpc"))
	return w
}

// startLoad opens 8 connections and calls the routes of their gateways.
func (w *world) startLoad(t *testing.T, every time.Duration) {
	t.Helper()
	for range 3 {
		w.load.clients = append(w.load.clients, newClient("http", w.edge, false))
	}
	w.load.clients = append(w.load.clients, newClient("http", w.edge, true),
		newClient("http", w.wide, false), newClient("http", w.wide, true), newClient("https", w.wideTLS, false), newClient("https", w.wideTLS, false))
	w.load.run(t, every, func(i int) (out []*target) {
		gw := "edge"
		if i >= 4 {
			gw = "wide"
		}
		for _, m := range append(append([]*moving{}, w.fixed...), w.moving...) {
			if m.gateway == gw {
				out = append(out, &m.target)
			}
		}
		return out
	})
}

// noLeaks waits until Envoy has the clusters of the backends in use and no others.
func (w *world) noLeaks(t *testing.T, more ...string) {
	t.Helper()
	want := map[string]bool{"limiter": true, "the control plane": true, "the local cluster": true}
	for _, b := range more {
		want[b] = true
	}
	for _, m := range append(append([]*moving{}, w.fixed...), w.moving...) {
		want[m.backend] = true
	}
	waitFor(t, fmt.Sprintf("Envoy to have the %d clusters in use: %v", len(want), slices.Sorted(maps.Keys(want))), func() bool {
		return w.envoy.Stat(t, "cluster_manager.active_clusters") == uint64(len(want))
	})
}

// gateway is one of the two gateways, with policies.
func (w *world) gateway(id, policies string) string {
	if id == "edge" {
		return fmt.Sprintf("kind: Gateway\nname: edge\nlisteners: [{name: http, address: 127.0.0.1, port: %d}]\npolicies: %s", w.ports[0], policies)
	}
	return fmt.Sprintf("kind: Gateway\nname: wide\nlisteners:\n- {name: http, address: 127.0.0.1, port: %d}\n"+
		"- {name: https, address: 127.0.0.1, port: %d, protocol: HTTPS, tls: {certificates: [cert]}}\npolicies: %s", w.ports[1], w.ports[2], policies)
}

func (w *world) ping(t *testing.T) {
	t.Helper()
	for _, l := range w.longs {
		l.ping(t)
	}
}

func (m *moving) protocol() string {
	if m.h2 {
		return "H2C"
	}
	return ""
}

// route is the route as it is to be now.
func (m *moving) route() string {
	return routeYAML(m.id, m.gateway, m.hosts, m.paths, m.backend, m.policies)
}

// answer is what it is to answer now.
func (m *moving) answer(mark string) answer {
	var a answer
	for _, s := range m.servers {
		a.servers = append(a.servers, fmt.Sprintf("u%d", s))
	}
	a.mark = mark
	return a
}

func routeYAML(id, gw, hosts string, paths []string, backend, policies string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "kind: Route\nname: %s\ngateways: [%s]\nhostnames: [%s]\nrules:\n", id, gw, hosts)
	for i, p := range paths {
		fmt.Fprintf(&b, "- {name: r%d, matches: [{path: {prefix: %s}}], forward: {backends: [{backend: %s}]}}\n", i, p, backend)
	}
	if policies != "" {
		fmt.Fprintf(&b, "policies: {%s}\n", policies)
	}
	return b.String()
}

func (w *world) backendYAML(id, protocol string, servers ...int) string {
	var e []string
	for _, s := range servers {
		e = append(e, fmt.Sprintf("{address: 127.0.0.1, port: %d}", w.ups[s].port))
	}
	out := fmt.Sprintf("kind: Backend\nname: %s\nstatic: {endpoints: [%s]}\n", id, strings.Join(e, ", "))
	if protocol != "" {
		out += "protocol: " + protocol + "\n"
	}
	return out
}

// jwtPolicy asks for a token. Policies with another n are another provider.
func jwtPolicy(n int, more string) string {
	return fmt.Sprintf(`authentication: {jwt: {issuer: "https://issuer.test", audiences: [app, "app-%d"], jwks_secret: keys, claim_headers: [{claim: sub, header: x-user}], %s}}`, n, more)
}

// keySet is the secret with some of the keys.
func (w *world) keySet(t *testing.T, keys ...int) string {
	t.Helper()
	var set jose.JSONWebKeySet
	for _, k := range keys {
		set.Keys = append(set.Keys, jose.JSONWebKey{Key: w.keys[k].Public(), KeyID: fmt.Sprint(k), Algorithm: "ES256", Use: "sig"})
	}
	b, err := json.Marshal(set)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("kind: Secret\nname: keys\njwks: '%s'\n", b)
}

func (w *world) token(t *testing.T, key int) string {
	t.Helper()
	s, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: w.keys[key]}, (&jose.SignerOptions{}).WithHeader("kid", fmt.Sprint(key)))
	if err != nil {
		t.Fatal(err)
	}
	out, err := jwt.Signed(s).Claims(map[string]any{"iss": "https://issuer.test", "aud": "app", "sub": "alice", "exp": time.Now().Add(time.Hour).Unix()}).Serialize()
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// certificate is the secret of the HTTPS listener, each time another one.
func (w *world) certificate(t *testing.T) string {
	t.Helper()
	cert, key, err := w.ca.Issue(pki.Request{SPIFFE: "spiffe://" + pki.TrustDomain + "/edge", DNS: []string{"localhost"}, TTL: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	quote := func(pem []byte) string {
		b, _ := json.Marshal(string(pem))
		return string(b)
	}
	return fmt.Sprintf("kind: Secret\nname: cert\ncertificate: {chain: %s, private_key: %s}\n", quote(cert), quote(key))
}

// serialOf is the serial number of the certificate in a secret's YAML.
func serialOf(t *testing.T, yaml string) *big.Int {
	t.Helper()
	block, _ := pem.Decode([]byte(resources(t, yaml)[0].GetSecret().GetCertificate().GetChain()))
	if block == nil {
		t.Fatal("no PEM in the secret")
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return cert.SerialNumber
}
