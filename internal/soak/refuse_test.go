package soak

import (
	"crypto/elliptic"
	"fmt"
	"math/big"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/penstock-gateway/penstock/gateway"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
	"github.com/penstock-gateway/penstock/internal/envoytest"
)

// fate is what happens to what a user applies.
type fate int

const (
	// refused by the API, with the object and this field named.
	refused fate = iota
	// served by Envoy, all of it.
	served
	// nacked: only the machine can tell that it does not work. Envoy refuses it, and
	// the answer names the object.
	nacked
	// either: refused or served, but never nacked or dropped.
	either
)

type input struct {
	name  string
	yaml  string
	fate  fate
	field string // of refused
}

// TestOneBadAmongMany applies what Envoy refuses, or takes and then serves
// nothing, together with a good route, while clients call: either the API refuses
// it all and says what and where, or everything else is served.
func TestOneBadAmongMany(t *testing.T) {
	w := newWorld(t, sizeOf().every)
	probe := newClient("http", w.edge, false)
	probe.getOnly = true
	t.Cleanup(probe.http.CloseIdleConnections)
	for _, in := range inputs(t) {
		t.Run(in.name, func(t *testing.T) { w.one(t, probe, in) })
	}
	w.ping(t)
	w.load.pass(t, 50)
	w.load.end(t)
}

// one applies an input among good objects and takes them away again.
func (w *world) one(t *testing.T, probe *client, in input) {
	port := envoytest.FreePort(t)
	yaml := strings.NewReplacer("PORT", strconv.Itoa(port), "TAKEN", w.edge[strings.LastIndexByte(w.edge, ':')+1:]).Replace(in.yaml)
	good := []string{routeYAML("good-a", "edge", "good.test", []string{"/good"}, "good", ""), w.backendYAML("good", "", 3)}
	all := append(resources(t, good[0]), append(resources(t, yaml), resources(t, good[1])...)...)
	before := w.core.Snapshot().Revision()
	r, err := w.config.Apply(t.Context(), &pb.ApplyRequest{Resources: all, Options: &pb.WriteOptions{WaitTimeout: durationpb.New(patience)}})
	if err != nil {
		w.wasRefused(t, in, err, before)
		return
	}
	serving := r.GetResult().GetServing()
	switch {
	case in.fate == refused:
		t.Errorf("was taken, want it refused at %s; serving: %v", in.field, serving)
	case in.fate == nacked && !slices.ContainsFunc(serving.GetProblems(), func(p *pb.ProxyProblem) bool {
		return strings.HasSuffix(p.GetObject(), "bad") && p.GetDetail() != ""
	}):
		t.Errorf("the answer does not name the object: %v", serving)
	case in.fate != nacked && (len(serving.GetProblems()) > 0 || !serving.GetComplete() || serving.GetServing() != 1):
		t.Errorf("was taken but Envoy does not serve it: %v", serving)
	case in.fate == nacked:
		t.Logf("%v", serving.GetProblems())
	}
	got, err := probe.do("good.test", "/good", "")
	if err == nil {
		_, err = probe.server("/good", got)
	}
	if err != nil {
		t.Errorf("the good route beside it: %v", err)
	}
	var deletes []string
	for _, o := range all {
		deletes = append(deletes, strings.TrimPrefix(gateway.FromResource(o).GetName(), "projects/default/"))
	}
	if err := w.try(t.Context(), nil, deletes...); err != nil {
		t.Errorf("taken away: %v", err)
	}
}

// wasRefused checks the error of an Apply, and that nothing of it is there.
func (w *world) wasRefused(t *testing.T, in input, err error, before int64) {
	t.Helper()
	text := status.Convert(err).Message()
	if in.fate == served || in.fate == nacked {
		t.Errorf("was refused: %s", text)
	}
	if c := status.Code(err); c != codes.InvalidArgument {
		t.Errorf("was refused with %s, want InvalidArgument: %s", c, text)
	}
	object := false
	for _, d := range status.Convert(err).Details() {
		p, ok := d.(*pb.ObjectProblem)
		object = object || ok && strings.HasSuffix(p.GetObject(), "bad") && strings.Contains(p.GetField(), in.field) && p.GetMessage() != ""
	}
	if !object {
		t.Errorf("the error names no object bad with field %q: %s", in.field, text)
	}
	if r := w.core.Snapshot().Revision(); r != before {
		t.Errorf("revision %d was made, want none of it", r)
	}
	t.Logf("%s", text)
}

func inputs(t *testing.T) []input {
	return slices.Concat(badRoutes(), badPolicies(), badBackends(), badListeners(), badCertificates(material{t}), badKeys(material{t}))
}

const direct = "direct_response: {status: 200}"

func badRoutes() []input {
	regex := func(r string) string { return matched(fmt.Sprintf("{path: {regex: '%s'}}", r)) }
	return []input{
		{"regex that is none", regex("/a(b"), refused, "rules[0].matches[0].path.regex"},
		{"regex with look-ahead", regex("/a(?=b)"), refused, "path.regex"},
		{"regex with a back reference", regex(`/(a)\1`), refused, "path.regex"},
		{"regex of 1000 steps", regex("/(a|b|c|d){250}"), refused, "path.regex"},
		{"regex with too many repeats", regex("/a{1001}"), refused, "path.regex"},
		{"regex at the bound", regex("/" + strings.Repeat("a", 90)), either, "path.regex"},
		{"regex with a unicode class", regex(`/\p{Greek}+`), either, "path.regex"},
		{"regex with a named group", regex(`/(?P<x>a)`), either, "path.regex"},
		{"regex with the other named group", regex(`/(?<x>a)`), either, "path.regex"},
		{"regex with quoted text", regex(`/\Qa.b\E`), either, "path.regex"},
		{"regex with any byte", regex(`/\C`), either, "path.regex"},
		{"regex with a possessive", regex(`/a++`), refused, "path.regex"},
		{"regex with flags", regex(`(?is-m:/a.b)`), either, "path.regex"},
		{"regex with nested repeats", regex(`/((a{2}){2}){2}`), either, "path.regex"},
		{"header regex that is none", matched("{headers: [{name: x-a, value: {regex: '['}}]}"), refused, "headers[0].value.regex"},
		{"query regex that is none", matched("{query: [{name: a, value: {regex: '*'}}]}"), refused, "query[0].value.regex"},
		{"path that cannot be", matched("{path: {prefix: /a;b}}"), refused, "path.prefix"},
		{"the same match twice", matched("{path: {exact: /a}}, {path: {exact: /a}}"), refused, "matches[1]"},
		{"many headers", matched("{headers: [" + strings.Repeat("{name: x-a, value: {present: true}}, ", 1) + "{name: x-b, value: {suffix: b}}, {name: x-c, value: {exact: ''}, invert: true}]}"), served, ""},
		{"pseudo header", matched("{headers: [{name: ':path', value: {exact: /a}}]}"), refused, "headers[0].name"},
		{"a backend that is not there", bad("forward: {backends: [{backend: nobody}]}"), refused, "rules[0].forward.backends[0]"},
		{"a function that is not there", bad("forward: {backends: [{backend: functions/nobody}]}"), refused, "rules[0].forward.backends[0]"},
		{"a subset that is not there", bad("forward: {backends: [{backend: still, subset: nobody}]}"), refused, "rules[0].forward.backends[0]"},
		{"a gateway that is not there", strings.Replace(bad(direct), "[edge]", "[nobody]", 1), refused, "gateways[0]"},
		{"weights that are all 0", bad("forward: {backends: [{backend: still}, {backend: good}]}"), refused, "rules[0].forward.backends"},
		{"one weight that is 0", bad("forward: {backends: [{backend: still, weight: 3}, {backend: good}]}"), served, ""},
		{"large weights", bad("forward: {backends: [{backend: still, weight: 1000000}, {backend: good, weight: 1000000}]}"), served, ""},
		{"two rewrites", bad("forward: {backends: [{backend: still}], prefix_rewrite: /x, host_rewrite: a.test}"), served, ""},
		{"a rewrite with a new line", bad(`forward: {backends: [{backend: still}], prefix_rewrite: "/x\ny"}`), refused, "forward.prefix_rewrite"},
		{"a host with a new line", bad(`forward: {backends: [{backend: still}], host_rewrite: "a\nb"}`), refused, "forward.host_rewrite"},
		{"a redirect with a new line", bad(`redirect: {path: "/x\r\nset-cookie: a"}`), refused, "redirect.path"},
		{"a redirect with a format", bad(`redirect: {path: "/%REQ(x)%/%FOO%", host: other.test}`), either, "redirect.path"},
		{"a redirect to itself", bad("redirect: {status: 301}"), refused, "redirect"},
		{"a body with a format", bad(`direct_response: {status: 200, body: "%FOO% %REQ(x)% \u0001 é"}`), served, ""},
		{"a long body", bad(`direct_response: {status: 200, body: "` + strings.Repeat("€", 4096) + `"}`), served, ""},
		{"a status that has no body", bad("direct_response: {status: 204, body: x}"), refused, "direct_response.body"},
		{"a long host", strings.Replace(bad(direct), "bad.test", strings.Repeat(strings.Repeat("a", 60)+".", 4)+"test", 1), either, "hostnames[0]"},
		{"hosts that are the same", strings.Replace(bad(direct), "bad.test", "bad.test, BAD.test., bad.test", 1), either, "hostnames"},
		{"a host with a port", strings.Replace(bad(direct), "bad.test", "'bad.test:80'", 1), refused, "hostnames[0]"},
		{"a wildcard in the middle", strings.Replace(bad(direct), "bad.test", "'a.*.test'", 1), refused, "hostnames[0]"},
		{"no action", "kind: Route\nname: bad\ngateways: [edge]\nhostnames: [bad.test]\nrules: [{name: a}]\n", refused, "rules[0]"},
		{"rule names twice", "kind: Route\nname: bad\ngateways: [edge]\nhostnames: [bad.test]\nrules: [{name: a, direct_response: {status: 200}}, {name: a, matches: [{path: {prefix: /x}}], direct_response: {status: 200}}]\n", refused, "rules[1].name"},
	}
}

func badPolicies() []input {
	jwt := func(s string) string { return policy("authentication: {jwt: {" + s + "}}") }
	return []input{
		{"a header with a new line", policy(`headers: {request: {set: [{name: x-a, value: "a\nb"}]}}`), refused, "headers.request.set[0].value"},
		{"a header with a format", policy(`headers: {request: {set: [{name: x-a, value: "%FOO% %REQ(x)% 100%"}]}, response: {add: [{name: x-a, value: "%%"}]}}`), served, ""},
		{"a header beyond ASCII", policy(`headers: {request: {set: [{name: x-a, value: "é€"}]}}`), either, "headers.request.set[0].value"},
		{"an empty header", policy(`headers: {request: {set: [{name: x-a, value: ""}]}}`), either, "headers.request.set[0]"},
		{"a header of 8 KiB", policy(`headers: {request: {set: [{name: x-a, value: "` + strings.Repeat("%", 8192) + `"}]}}`), served, ""},
		{"the host header", policy(`headers: {request: {set: [{name: host, value: a}]}}`), refused, "headers.request.set[0].name"},
		{"removal of the host header", policy(`headers: {request: {remove: [host]}}`), refused, "headers.request.remove[0]"},
		{"removal of a pseudo header", policy(`headers: {request: {remove: [":path"]}}`), refused, "headers.request.remove[0]"},
		{"content-length", policy(`headers: {request: {set: [{name: content-length, value: "3"}]}}`), refused, "headers.request.set[0].name"},
		{"transfer-encoding", policy(`headers: {response: {add: [{name: transfer-encoding, value: chunked}]}}`), refused, "headers.response.add[0].name"},
		{"a negative timeout", policy("timeout: {request: -1s}"), refused, "timeout.request"},
		{"a timeout below a millisecond", policy("timeout: {request: 0.0005s}"), refused, "timeout.request"},
		{"no timeouts", policy("timeout: {request: 0s, idle: 0s}"), served, ""},
		{"a try that is longer than all", policy("timeout: {request: 1s}, retry: {idempotent: {per_try_timeout: 2s}}"), refused, "retry.idempotent.per_try_timeout"},
		{"a status that is none", policy("retry: {idempotent: {status_codes: [999]}}"), refused, "retry.idempotent.status_codes[0]"},
		{"all that retries can be", policy("retry: {idempotent: {attempts: 10, on: [CONNECT_FAILURE, REFUSED_STREAM, RESET_BEFORE_REQUEST, RESET, 5XX, GATEWAY_ERROR, RETRIABLE_4XX, GRPC_UNAVAILABLE, GRPC_CANCELLED], status_codes: [400, 599], per_try_timeout: 0.001s}, other: {attempts: 0}}"), served, ""},
		{"a window of nothing", policy("rate_limit: {limits: [{name: a, requests: 1, window: 0s}]}"), refused, "rate_limit.limits[0].window"},
		{"limits twice", policy("rate_limit: {limits: [{name: a, requests: 1, window: 1s}, {name: a, requests: 2, window: 1s}]}"), refused, "rate_limit.limits[1].name"},
		{"eight limits", policy("rate_limit: {limits: [" + strings.TrimSuffix(eight(), ", ") + "]}"), served, ""},
		{"a key set that is none", jwt("issuer: i, audiences: [a], jwks: nonsense"), refused, "authentication.jwt.jwks"},
		{"no keys", jwt(`issuer: i, audiences: [a], jwks: '{"keys":[]}'`), refused, "authentication.jwt.jwks"},
		{"a key set that is not there", jwt("issuer: i, audiences: [a], jwks_secret: nobody"), refused, "authentication.jwt.jwks_secret"},
		{"a certificate for a key set", jwt("issuer: i, audiences: [a], jwks_secret: cert"), refused, "authentication.jwt.jwks_secret"},
		{"a consumer that is not there", jwt("issuer: i, audiences: [a], jwks_secret: keys, consumers: [nobody]"), refused, "authentication.jwt.consumers[0]"},
		{"claims in one header", jwt("issuer: i, audiences: [a], jwks_secret: keys, claim_headers: [{claim: a, header: x-a}, {claim: b, header: x-a}]"), refused, "claim_headers[1].header"},
		{"a claim in a header of ours", jwt("issuer: i, audiences: [a], jwks_secret: keys, claim_headers: [{claim: a, header: x-forwarded-for}]"), refused, "claim_headers[0].header"},
		{"a claim with empty parts", jwt("issuer: i, audiences: [a], jwks_secret: keys, claim_headers: [{claim: a..b, header: x-a}]"), refused, "claim_headers[0].claim"},
		{"an issuer of odd characters", jwt(`issuer: "a b\té%\"", audiences: ["\n", "é"], jwks_secret: keys`), either, "authentication.jwt"},
	}
}

func eight() string {
	var b strings.Builder
	for i := range 8 {
		fmt.Fprintf(&b, "{name: l%d, requests: %d, window: 31622400s, algorithm: FIXED_WINDOW, key: ADDRESS, on_failure: CLOSED}, ", i, 1_000_000_000)
	}
	return b.String()
}

func badBackends() []input {
	static := func(s string) string { return backendOf("static: {endpoints: [" + s + "]}") }
	return []input{
		{"no endpoint", static(""), refused, "static.endpoints"},
		{"a host name as address", static("{address: a.test, port: 1}"), refused, "static.endpoints[0].address"},
		{"port 0", static("{address: 127.0.0.1, port: 0}"), refused, "static.endpoints[0].port"},
		{"port 70000", static("{address: 127.0.0.1, port: 70000}"), refused, "static.endpoints[0].port"},
		{"the unspecified address", static("{address: 0.0.0.0, port: 1}"), refused, "static.endpoints[0].address"},
		{"multicast", static("{address: 224.0.0.1, port: 1}"), refused, "static.endpoints[0].address"},
		{"a zone", static("{address: 'fe80::1%lo', port: 1}"), refused, "static.endpoints[0].address"},
		{"IPv6", static("{address: '::1', port: 1}, {address: '0:0:0:0:0:0:0:1', port: 2}"), served, ""},
		{"IPv4 in IPv6", static("{address: '::ffff:127.0.0.1', port: 1}"), either, "static.endpoints[0].address"},
		{"broadcast", static("{address: 255.255.255.255, port: 1}"), either, "static.endpoints[0].address"},
		{"an address with zeros", static("{address: 127.000.0.1, port: 1}"), refused, "static.endpoints[0].address"},
		{"an endpoint twice", static("{address: 127.0.0.1, port: 1}, {address: 127.0.0.1, port: 1}"), either, "static.endpoints[1]"},
		{"large weights of endpoints", static("{address: 127.0.0.1, port: 1, weight: 1000}, {address: 127.0.0.1, port: 2, weight: 1}"), served, ""},
		{"a name that does not resolve", backendOf("dns: {hostname: nobody.invalid, port: 1}"), served, ""},
		{"an address as a name", backendOf("dns: {hostname: 127.0.0.1, port: 1}"), refused, "dns.hostname"},
		{"a name that is none", backendOf("dns: {hostname: -a.test, port: 1}"), refused, "dns.hostname"},
		{"a subset without endpoints", backendOf("static: {endpoints: [{address: 127.0.0.1, port: 1}]}\nsubsets: [{name: a, labels: {v: '1'}}]"), refused, "subsets[0]"},
		{"subsets twice", backendOf("static: {endpoints: [{address: 127.0.0.1, port: 1, labels: {v: '1'}}]}\nsubsets: [{name: a, labels: {v: '1'}}, {name: a, labels: {v: '1'}}]"), refused, "subsets[1].name"},
		{"subsets of a name", backendOf("dns: {hostname: a.test, port: 1}\nsubsets: [{name: a, labels: {v: '1'}}]"), refused, "subsets"},
		{"no time to connect", backendOf("static: {endpoints: [{address: 127.0.0.1, port: 1}]}\nconnect_timeout: 0s"), refused, "connect_timeout"},
		{"a negative time to connect", backendOf("static: {endpoints: [{address: 127.0.0.1, port: 1}]}\nconnect_timeout: -1s"), refused, "connect_timeout"},
	}
}

func badListeners() []input {
	gw := func(l string) string {
		return "kind: Gateway\nname: bad\nlisteners: [" + l + "]\n---\nkind: Route\nname: bad\ngateways: [bad]\nrules: [{direct_response: {status: 200}}]\n"
	}
	return []input{
		{"an address of another machine", gw("{name: http, address: 192.0.2.1, port: PORT}"), nacked, ""},
		{"IPv4 in IPv6 to listen on", gw("{name: http, address: '::ffff:127.0.0.1', port: PORT}"), refused, "listeners[0].address"},
		{"a host name to listen on", gw("{name: http, address: localhost, port: PORT}"), refused, "listeners[0].address"},
		{"the port of another listener", strings.NewReplacer("name: bad", "name: z-bad", "[bad]", "[z-bad]").Replace(gw("{name: http, address: 127.0.0.1, port: TAKEN}")), refused, "listeners[0]"},
		{"the port of another listener on every address", strings.NewReplacer("name: bad", "name: z-bad", "[bad]", "[z-bad]").Replace(gw("{name: http, port: TAKEN}")), refused, "listeners[0]"},
		{"a port twice", gw("{name: a, address: 127.0.0.1, port: PORT}, {name: b, address: 127.0.0.1, port: PORT}"), refused, "listeners[1]"},
		{"every address with one of them", gw("{name: a, address: 127.0.0.1, port: PORT}, {name: b, port: PORT}"), refused, "listeners[1]"},
		{"names twice", gw("{name: a, address: 127.0.0.1, port: PORT}, {name: a, address: 127.0.0.2, port: PORT}"), refused, "listeners[1].name"},
		{"no certificate", gw("{name: a, address: 127.0.0.1, port: PORT, protocol: HTTPS}"), refused, "listeners[0].tls"},
		{"a certificate that is not there", gw("{name: a, address: 127.0.0.1, port: PORT, protocol: HTTPS, tls: {certificates: [nobody]}}"), refused, "listeners[0].tls.certificates[0]"},
		{"a key set for a certificate", gw("{name: a, address: 127.0.0.1, port: PORT, protocol: HTTPS, tls: {certificates: [keys]}}"), refused, "listeners[0].tls.certificates[0]"},
		{"a policy on a gateway", "kind: Gateway\nname: bad\nlisteners: [{name: http, address: 127.0.0.1, port: PORT}]\npolicies: {authentication: {jwt: {issuer: i, audiences: [a], jwks: '{}'}}}\n", refused, "policies.authentication.jwt.jwks"},
	}
}

func badCertificates(m material) []input {
	p256, rsa2048 := m.ec(elliptic.P256()), m.rsa(2048)
	p384, p521 := m.ec(elliptic.P384()), m.ec(elliptic.P521())
	chain := m.good(p256)
	const key, at = "certificate.private_key", "certificate.chain"
	return []input{
		{"expired", m.https(m.cert(p256, -2*time.Hour, -time.Hour), m.pkcs8(p256)), refused, at},
		{"not yet valid", m.https(m.cert(p256, time.Hour, 2*time.Hour), m.pkcs8(p256)), refused, at},
		{"another key", m.https(chain, m.pkcs8(m.ec(elliptic.P256()))), refused, key},
		{"no PEM", m.https("nonsense", m.pkcs8(p256)), refused, at},
		{"an empty certificate", m.https("-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n", m.pkcs8(p256)), refused, at},
		{"a key for a chain", m.https(m.pkcs8(p256), m.pkcs8(p256)), refused, at},
		{"no key", m.https(chain, ""), refused, key},
		{"something after the chain", m.https(chain+"nonsense", m.pkcs8(p256)), refused, at},
		{"something before the chain", m.https("Subject: someone\n"+chain, m.pkcs8(p256)), either, at},
		{"something after the key", m.https(chain, m.pkcs8(p256)+"nonsense"), either, key},
		{"line ends of another system", m.https(strings.ReplaceAll(chain, "\n", "\r\n"), strings.ReplaceAll(m.pkcs8(p256), "\n", "\r\n")), either, "certificate"},
		{"a chain of strangers", m.https(chain+m.good(rsa2048), m.pkcs8(p256)), refused, at},
		{"a leaf twice", m.https(chain+chain, m.pkcs8(p256)), either, at},
		{"a small RSA key", m.https(m.small(rsa2048, p256), m.pkcs8(p256)), refused, at},
		{"Ed25519", func() string { k := m.ed(); return m.https(m.good(k), m.pkcs8(k)) }(), refused, at},
		{"P-224", func() string { k := m.ec(elliptic.P224()); return m.https(m.good(k), m.pkcs8(k)) }(), refused, at},
		{"P-384", m.https(m.good(p384), m.pkcs8(p384)), served, ""},
		{"P-521", m.https(m.good(p521), m.pkcs8(p521)), served, ""},
		{"RSA in PKCS 1", m.https(m.good(rsa2048), m.pkcs1(rsa2048)), served, ""},
		{"EC in SEC 1", m.https(chain, m.sec1(p256)), served, ""},
		{"EC with its parameters", m.https(chain, "-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n"+m.sec1(p256)), either, key},
		{"RSA of 2050 bits", func() string { k := m.rsa(2050); return m.https(m.good(k), m.pkcs8(k)) }(), either, at},
		{"one secret twice", strings.Replace(m.https(chain, m.pkcs8(p256)), "certificates: [bad]", "certificates: [bad, secrets/bad]", 1), either, "listeners[0].tls.certificates[1]"},
		{"two of one kind", strings.Replace(m.https(chain, m.pkcs8(p256)), "certificates: [bad]", "certificates: [bad, cert]", 1), either, "listeners[0].tls.certificates"},
	}
}

func badKeys(m material) []input {
	const at = "jwks"
	good := m.rsa(2048)
	e := big.NewInt(65537)
	small := new(big.Int).SetBit(new(big.Int).Rsh(good.N, 1024), 0, 1)
	huge := new(big.Int).SetBit(new(big.Int).Lsh(good.N, 16384), 0, 1)
	p256 := m.ec(elliptic.P256())
	x, y := b64(p256.X.FillBytes(make([]byte, 32))), b64(p256.Y.FillBytes(make([]byte, 32)))
	ec := func(crv, alg, x, y string) string {
		return fmt.Sprintf(`{"kty":"EC","kid":"e","crv":"%s","alg":"%s","x":"%s","y":"%s"}`, crv, alg, x, y)
	}
	return []input{
		{"RSA of 18432 bits", m.keys(rsaKey(huge, e)), either, at},
		{"RSA with exponent 3", m.keys(rsaKey(good.N, big.NewInt(3))), either, at},
		{"RSA with an even modulus", m.keys(rsaKey(new(big.Int).SetBit(new(big.Int).Set(good.N), 0, 0), e)), refused, at},
		{"RSA with exponent 17", m.keys(rsaKey(good.N, big.NewInt(17))), refused, at},
		{"RSA with exponent 1", m.keys(rsaKey(good.N, big.NewInt(1))), refused, at},
		{"RSA of 1024 bits", m.keys(rsaKey(small, e)), refused, at},
		{"an algorithm for other keys", m.keys(strings.Replace(rsaKey(good.N, e), "RS256", "ES256", 1)), refused, at},
		{"the algorithm none", m.keys(strings.Replace(rsaKey(good.N, e), "RS256", "none", 1)), refused, at},
		{"a number for a kid", m.keys(strings.Replace(rsaKey(good.N, e), `"r"`, "7", 1)), either, at},
		{"no kid", m.keys(strings.Replace(rsaKey(good.N, e), `"kid":"r",`, "", 1)), either, at},
		{"a symmetric key", m.keys(`{"kty":"oct","kid":"o","alg":"HS256","k":"c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0MTI"}`), refused, at},
		{"a point that is none", m.keys(ec("P-256", "ES256", x, x)), refused, at},
		{"a point that is cut", m.keys(ec("P-256", "ES256", x[:20], y)), either, at},
		{"another curve", m.keys(ec("P-384", "ES384", x, y)), refused, at},
		{"a curve that is unknown", m.keys(ec("secp256k1", "ES256K", x, y)), refused, at},
		{"padding", m.keys(ec("P-256", "ES256", x+"=", y+"=")), either, at},
		{"Ed25519", m.keys(`{"kty":"OKP","kid":"d","crv":"Ed25519","alg":"EdDSA","x":"` + b64(m.ed()[32:]) + `"}`), either, at},
		{"X25519", m.keys(`{"kty":"OKP","kid":"d","crv":"X25519","x":"` + b64(m.ed()[32:]) + `"}`), refused, at},
		{"one kid twice", m.keys(ec("P-256", "ES256", x, y), ec("P-256", "ES256", x, y)), served, at},
		{"a good one and a bad one", m.keys(ec("P-256", "ES256", x, y), `{"kty":"EC"}`), served, at},
		{"a key for encryption", m.keys(strings.Replace(rsaKey(good.N, e), `"alg"`, `"use":"enc","alg"`, 1)), refused, at},
		{"a member twice", m.keys(strings.Replace(rsaKey(good.N, e), `"alg"`, `"kty":"oct","alg"`, 1)), either, at},
		{"an x5c that is none", m.keys(strings.Replace(rsaKey(good.N, e), `"alg"`, `"x5c":["AAAA"],"alg"`, 1)), either, at},
		{"operations", m.keys(strings.Replace(rsaKey(good.N, e), `"alg"`, `"key_ops":["verify"],"alg"`, 1)), either, at},
		{"a wrong operation", m.keys(strings.Replace(rsaKey(good.N, e), `"alg"`, `"key_ops":["sign"],"alg"`, 1)), either, at},
	}
}
