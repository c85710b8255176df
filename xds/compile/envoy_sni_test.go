package compile_test

import (
	"cmp"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/penstock-gateway/penstock/gateway"
	"github.com/penstock-gateway/penstock/gateway/explain"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
	"github.com/penstock-gateway/penstock/internal/envoytest"
	"github.com/penstock-gateway/penstock/internal/pki"
	"github.com/penstock-gateway/penstock/xds"
)

// asked is a request over TLS: with this name in the handshake ("" for none), for this
// host.
type asked struct{ sni, host string }

func (a asked) do(t *testing.T, port int, protocol string) (status int, body string) {
	t.Helper()
	conf := &tls.Config{ServerName: a.sni, InsecureSkipVerify: true, NextProtos: []string{protocol}}
	tr := &http.Transport{TLSClientConfig: conf, ForceAttemptHTTP2: protocol == "h2"}
	defer tr.CloseIdleConnections()
	if a.sni == "" {
		conf.ServerName = "127.0.0.1" // of an address no name is sent
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, fmt.Sprintf("https://127.0.0.1:%d/x", port), nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Host = a.host
	res, err := tr.RoundTrip(req)
	if err != nil {
		t.Fatalf("%+v: %v", a, err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil || (res.ProtoMajor == 2) != (protocol == "h2") {
		t.Fatalf("%+v: %s, %v", a, res.Proto, err)
	}
	return res.StatusCode, string(b)
}

// explained compares an answer with what explain says: of the URL that has the name of the
// handshake, and the host in a header.
func (a asked) explained(t *testing.T, r *rig, port, status int, body string) {
	t.Helper()
	url := fmt.Sprintf("https://%s:%d/x", cmp.Or(a.sni, "127.0.0.1"), port)
	o := explain.Explain(r.snapshot, &pb.ExplainRequest{Url: url, HeaderLines: []string{"host: " + a.host}}, nil).GetOutcome()
	if status != int(o.GetStatus()) || !strings.Contains(body, o.GetCode()) {
		t.Errorf("handshake for %q, host %q: %d %s, explain says %s", a.sni, a.host, status, body, o.GetText())
	}
	if a.sni == a.host {
		// As users ask: with the URL alone.
		o = explain.Explain(r.snapshot, &pb.ExplainRequest{Url: url}, nil).GetOutcome()
		if status != int(o.GetStatus()) {
			t.Errorf("%s: %d, explain says %s", url, status, o.GetText())
		}
	}
}

// certificateSecret is a Secret with a certificate for names.
func certificateSecret(t *testing.T, ca *pki.CA, name string, names ...string) string {
	t.Helper()
	cert, key, err := ca.Issue(pki.Request{SPIFFE: "spiffe://penstock.local/" + name, DNS: names, TTL: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	c, err := json.Marshal(string(cert))
	if err != nil {
		t.Fatal(err)
	}
	k, err := json.Marshal(string(key))
	if err != nil {
		t.Fatal(err)
	}
	return "---\nkind: Secret\nname: " + name + "\ncertificate: {chain: " + string(c) + ", private_key: " + string(k) + "}\n"
}

// testSNI: where a listener has several certificates, a connection that was made for
// one host reaches no other; where it has one, every host that it serves.
func testSNI(t *testing.T, r *rig) {
	ca, err := pki.OpenCA(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	port := envoytest.FreePort(t)
	defer func() { takesPort(t, port) }()
	apply := func(certificates string, secrets ...string) {
		t.Helper()
		r.apply(t, r.objects(t, `
kind: Gateway
name: edge
listeners: [{name: https, address: 127.0.0.1, port: PORT, protocol: HTTPS, tls: {certificates: [`+certificates+`]}}]
`+strings.Join(secrets, "")+`
---
kind: Route
name: a
hostnames: [a.tls.example]
rules: [{name: all, direct_response: {status: 200, body: a}}]
---
kind: Route
name: b
hostnames: [b.tls.example]
rules: [{name: all, direct_response: {status: 200, body: b}}]
---
kind: Route
name: wild
hostnames: ["*.wild.example"]
rules: [{name: all, direct_response: {status: 200, body: wild}}]
---
kind: Route
name: rest
rules: [{name: all, direct_response: {status: 200, body: rest}}]
`, map[string]int{"PORT": port}))
		r.open(t, port)
	}
	certA, certB := certificateSecret(t, ca, "cert-a", "a.tls.example"), certificateSecret(t, ca, "cert-b", "b.tls.example", "*.wild.example")
	apply("cert-a, cert-b", certA, certB)
	for a, want := range map[asked]string{
		{"a.tls.example", "a.tls.example"}: "a", {"b.tls.example", "b.tls.example"}: "b",
		{"a.tls.example", fmt.Sprintf("a.tls.example:%d", port)}: "a", {"a.tls.example", "A.TLS.Example"}: "a", {"A.TLS.example", "a.tls.example"}: "a",
		{"a.tls.example", "a.tls.example."}: "a", {"x.wild.example", "x.wild.example"}: "wild", {"zz.tls.example", "zz.tls.example"}: "rest",
		{"", "127.0.0.1"}: "rest", {"", fmt.Sprintf("127.0.0.1:%d", port)}: "rest", {"", "[::1]"}: "rest", {"", "[::1]:443"}: "rest",

		{"a.tls.example", "b.tls.example"}: "421", {"b.tls.example", "a.tls.example"}: "421", {"zz.tls.example", "b.tls.example"}: "421",
		{"a.tls.example", "B.TLS.EXAMPLE"}: "421", {"a.tls.example", "b.tls.example:443"}: "421", {"a.tls.example", "b.tls.example."}: "421",
		{"tls.example", "tls.example.evil"}: "421", {"a.tls.example", "xa.tls.example"}: "421", {"x.wild.example", "y.wild.example"}: "421",
		{"a", "a.tls.example"}: "421", {"a.tls.example", "127.0.0.1"}: "421", {"", "b.tls.example"}: "421", {"", "a.tls.example"}: "421", {"", "1.2.3.example"}: "421",
		{".*", "b.tls.example"}: "421", {"[::1]", "a.tls.example"}: "421", {"a.tls.example", "[::1]"}: "421", {"a.tls.example", "1.2.3.4:80"}: "421",
	} {
		for _, protocol := range []string{"http/1.1", "h2"} {
			status, body := a.do(t, port, protocol)
			a.explained(t, r, port, status, body)
			if want == "421" {
				r.codes[gateway.Misdirected.Code] = true
				if status != http.StatusMisdirectedRequest || !strings.Contains(body, "PK-EDGE-MISDIRECTED") {
					t.Errorf("%s, handshake for %q, host %q: %d %s, want 421", protocol, a.sni, a.host, status, body)
				}
			} else if status != http.StatusOK || body != want {
				t.Errorf("%s, handshake for %q, host %q: %d %s, want %s", protocol, a.sni, a.host, status, body, want)
			}
		}
	}
	before := r.last.Get(xds.Listener, "default/edge/https").Version
	apply("cert-a, cert-b", certificateSecret(t, ca, "cert-a", "a.tls.example", "c.tls.example"), certB)
	if r.last.Get(xds.Listener, "default/edge/https").Version != before {
		t.Error("a new certificate changed the listener")
	}
	apply("cert-a", certA)
	for _, a := range []asked{{"a.tls.example", "b.tls.example"}, {"", "b.tls.example"}} {
		poll(t, "one certificate to serve all hosts", func() bool { status, body := a.do(t, port, "h2"); return status == 200 && body == "b" })
		a.explained(t, r, port, 200, "b")
	}
}

// testServerNames: a listener that is for some hosts alone makes no TLS connection for another
// one, so that nobody sees a certificate, or is asked for one, of a host that was not named.
func testServerNames(t *testing.T, r *rig) {
	ca, err := pki.OpenCA(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	certA, certB := certificateSecret(t, ca, "cert-a", "a.tls.example"), certificateSecret(t, ca, "cert-b", "*.wild.example")
	closed := []string{"", "zz.tls.example", "tls.example", "a.tls.example.evil", "xa.tls.example", "wild.example", "xwild.example"}
	for _, c := range []struct {
		hostnames, certificates string
		closed, open            []string
	}{
		{`[a.tls.example, "*.wild.example"]`, "cert-a", closed, []string{"a.tls.example", "A.TLS.example", "x.wild.example", "x.y.wild.example"}},
		{`[a.tls.example, "*.wild.example"]`, "cert-a, cert-b", closed, []string{"a.tls.example", "x.wild.example"}},
		{`[a.tls.example, "*"]`, "cert-a", nil, append([]string{"a.tls.example"}, closed...)},
		{`[a.tls.example, "127.0.0.1"]`, "cert-a", nil, append([]string{"a.tls.example"}, closed...)},
		{`[]`, "cert-a", nil, append([]string{"a.tls.example"}, closed...)},
	} {
		port := envoytest.FreePort(t)
		r.apply(t, r.objects(t, `
kind: Gateway
name: edge
listeners: [{name: https, address: 127.0.0.1, port: PORT, protocol: HTTPS, hostnames: `+c.hostnames+`, tls: {certificates: [`+c.certificates+`]}}]
`+certA+certB+`
---
kind: Route
name: rest
rules: [{name: all, direct_response: {status: 200, body: rest}}]
`, map[string]int{"PORT": port}))
		r.open(t, port)
		for _, want := range []bool{true, false} {
			for _, sni := range map[bool][]string{true: c.open, false: c.closed}[want] {
				err := handshake(t, port, sni)
				if (err == nil) != want {
					t.Errorf("hostnames %s, certificates %s: a handshake for %q: %v", c.hostnames, c.certificates, sni, err)
				}
				url := fmt.Sprintf("https://%s:%d/x", cmp.Or(sni, "127.0.0.1"), port)
				o := explain.Explain(r.snapshot, &pb.ExplainRequest{Url: url}, nil).GetOutcome()
				if refused := o.GetStatus() == 0 && strings.HasPrefix(o.GetText(), "no TLS handshake"); refused == want {
					t.Errorf("hostnames %s, certificates %s: explain says of %s: %s", c.hostnames, c.certificates, url, o.GetText())
				}
			}
		}
	}
}

// handshake makes a TLS connection for a host, "" for none.
func handshake(t *testing.T, port int, sni string) error {
	t.Helper()
	c, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	return tls.Client(c, &tls.Config{ServerName: sni, InsecureSkipVerify: true}).HandshakeContext(t.Context())
}
