package control

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/penstock-gateway/penstock/gateway"
	"github.com/penstock-gateway/penstock/gateway/source/file"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
	"github.com/penstock-gateway/penstock/internal/control/quarantine"
	"github.com/penstock-gateway/penstock/internal/envoytest"
	"github.com/penstock-gateway/penstock/internal/pki"
	"github.com/penstock-gateway/penstock/xds/bootstrap"
	"github.com/penstock-gateway/penstock/xds/compile"
)

// picky is an Envoy that refuses some of what we compile: clusters that resolve
// names, since their fields are deprecated, and regular expressions of more than
// a few steps. So would one of a later version, or with other run-time settings.
var picky = map[string]float64{"envoy.features.fail_on_any_deprecated_feature": 1, "re2.max_program_size.error_level": 80}

// proxyOf starts an Envoy of a control plane.
func proxyOf(t testing.TB, p *plane, dir, name string, runtime map[string]float64) *envoytest.Envoy {
	t.Helper()
	ca, err := pki.OpenCA(filepath.Join(dir, "pki"))
	if err != nil {
		t.Fatal(err)
	}
	cert, key, err := ca.EnsureFiles(filepath.Join(dir, "pki"), name, pki.Request{
		SPIFFE: "spiffe://" + pki.TrustDomain + "/proxy/default/-/" + name, IPs: []net.IP{net.IPv4(127, 0, 0, 1)},
	})
	if err != nil {
		t.Fatal(err)
	}
	sds := t.TempDir()
	c := bootstrap.Config{
		NodeID: name, XDSAddresses: []string{p.addr.XDS.String()},
		CAFile: filepath.Join(dir, "pki", "ca.crt"), CertFile: cert, KeyFile: key, SDSDir: sds,
	}
	b, err := bootstrap.New(c)
	if err != nil {
		t.Fatal(err)
	}
	if err := bootstrap.WriteFiles(filepath.Join(sds, "unused.json"), c); err != nil {
		t.Fatal(err)
	}
	setRuntime(b, runtime)
	e := envoytest.Start(t, envoytest.Options{Bootstrap: b})
	until(t, name+" to be connected", func() bool { return p.proxyNamed(name) != nil })
	return e
}

func setRuntime(b *bootstrapv3.Bootstrap, runtime map[string]float64) {
	layer := b.GetLayeredRuntime().GetLayers()[0].GetLayerSpecifier().(*bootstrapv3.RuntimeLayer_StaticLayer).StaticLayer
	for k, v := range runtime {
		layer.Fields[k] = structpb.NewNumberValue(v)
		if v == 1 {
			layer.Fields[k] = structpb.NewBoolValue(true)
		}
	}
}

func (p *plane) proxyNamed(name string) *pb.Proxy {
	all := p.core.Proxies()
	if i := slices.IndexFunc(all, func(q *pb.Proxy) bool { return q.GetName() == name }); i >= 0 {
		return all[i]
	}
	return nil
}

func (p *plane) apply(t testing.TB, yaml string, deletes ...string) *pb.ServingReport {
	t.Helper()
	objects, errs := file.Decode("test.yaml", []byte(yaml))
	if len(errs) > 0 {
		t.Fatal(errs.Error())
	}
	req := &pb.ApplyRequest{Deletes: deletes, Options: &pb.WriteOptions{WaitTimeout: durationpb.New(30 * time.Second)}}
	for _, o := range objects {
		req.Resources = append(req.Resources, gateway.ToResource(o))
	}
	r, err := pb.NewConfigServiceClient(p.conn).Apply(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	return r.GetResult().GetServing()
}

// get asks an Envoy for a path of a host.
func get(t *testing.T, port int, host, path string) (int, string) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, fmt.Sprintf("http://127.0.0.1:%d%s", port, path), nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Host = host
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		return 0, err.Error()
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0, err.Error()
	}
	return resp.StatusCode, string(b)
}

func answers(t *testing.T, port int, host, path string, status int, body string) {
	t.Helper()
	var last string
	ok := func() bool {
		code, text := get(t, port, host, path)
		last = fmt.Sprint(code, " ", text)
		return code == status && strings.Contains(text, body)
	}
	defer func() {
		if t.Failed() {
			t.Logf("last answer of %s%s: %s", host, path, last)
		}
	}()
	until(t, fmt.Sprintf("%s%s to answer %d %q", host, path, status, body), ok)
}

// backend is a server that answers its name.
func backend(t *testing.T, name string) (yaml string) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, name) }))
	t.Cleanup(s.Close)
	return fmt.Sprintf("static: {endpoints: [{address: 127.0.0.1, port: %d}]}", s.Listener.Addr().(*net.TCPAddr).Port)
}

func problem(t *testing.T, p *plane, object string) *pb.ObjectProblem {
	t.Helper()
	st, err := p.core.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, q := range st.GetProblems() {
		if q.GetObject() == object && strings.Contains(q.GetMessage(), "quarantined") {
			return q
		}
	}
	return nil
}

// TestLastGood: what the real Envoy refuses is sent to nobody again, and its last
// good version serves, with what that needs, at proxies that start later, after a
// restart and at another replica, until the object is mended.
func TestLastGood(t *testing.T) {
	dir := t.TempDir()
	p := start(t, dir)
	port := envoytest.FreePort(t)
	first := proxyOf(t, p, dir, "one", picky)
	one := backend(t, "one")
	before := fmt.Sprintf(`
kind: Gateway
name: edge
listeners: [{name: http, address: 127.0.0.1, port: %d}]
---
kind: Backend
name: b
%s
---
kind: Backend
name: old
%s
---
kind: Route
name: r
gateways: [edge]
hostnames: [r.test]
rules: [{matches: [{path: {prefix: /}}], forward: {backends: [{backend: b}]}}]
`, port, one, backend(t, "old"))
	if rep := p.apply(t, before); len(rep.GetProblems()) > 0 {
		t.Fatal(rep)
	}
	answers(t, port, "r.test", "/", 200, "one")

	// A cluster whose last good version has endpoints that are wanted no more.
	rep := p.apply(t, `
kind: Backend
name: b
dns: {hostname: localhost, port: 1}
---
kind: Route
name: y
gateways: [edge]
hostnames: [y.test]
rules: [{direct_response: {status: 200, body: other}}]
`, "projects/default/backends/old")
	for _, object := range []string{"backends/b"} {
		if !slices.ContainsFunc(rep.GetProblems(), func(q *pb.ProxyProblem) bool {
			return q.GetObject() == "projects/default/"+object && (q.GetState() == "quarantined" || q.GetState() == "refused")
		}) {
			t.Errorf("the report does not name %s: %v", object, rep)
		}
	}
	until(t, "the status to name it", func() bool {
		return problem(t, p, "projects/default/backends/b") != nil
	})
	answers(t, port, "y.test", "/", 200, "other")
	answers(t, port, "r.test", "/", 200, "one")
	explains(t, p, port, "y.test", 200, "other", "")
	explains(t, p, port, "r.test", 200, "200 by projects/default/backends/b", "projects/default/backends/b served as of revision 1")
	until(t, "it to be saved", func() bool { return stored(t, p) == 1 })

	first.Kill()
	// Another replica, with a proxy that has never seen the good version.
	q := serve(t, p.core.store, dir)
	checkLater(t, q, dir, "two", port).Kill()
	// All end; a new one starts on the same store.
	p.stop()
	q.stop()
	p = serve(t, p.core.store, dir)
	checkLater(t, p, dir, "three", port)

	// Tried again, and refused again.
	if code, body := httpPost(t, p, "/debug/quarantine/retry?name=backends/b"); code != http.StatusOK {
		t.Fatal(code, body)
	}
	until(t, "the backend to be refused again", func() bool {
		q := problem(t, p, "projects/default/backends/b")
		return q != nil && strings.Contains(q.GetMessage(), "proxy three")
	})
	answers(t, port, "r.test", "/", 200, "one")
}

// explains checks what explain says that a request gets, and of which refusal it tells.
func explains(t *testing.T, p *plane, port int, host string, status uint32, text, refused string) *pb.ExplainResponse {
	t.Helper()
	e, err := pb.NewExplainServiceClient(p.conn).Explain(t.Context(), &pb.ExplainRequest{Method: "GET", Url: fmt.Sprintf("http://%s:%d/", host, port)})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, r := range e.GetRefused() {
		got = append(got, r.GetObject()+" "+r.GetServes())
		if r.GetDetail() == "" {
			t.Errorf("%s: it does not say what Envoy said of %s", host, r.GetObject())
		}
	}
	if o := e.GetOutcome(); o.GetStatus() != status || !strings.Contains(o.GetText(), text) || strings.Join(got, ", ") != refused {
		t.Errorf("explain of %s: %q, refused %q; want %d with %q, refused %q", host, o.GetText(), got, status, text, refused)
	}
	return e
}

func stored(t *testing.T, p *plane) int {
	t.Helper()
	all, err := p.core.store.State(t.Context(), quarantine.Prefix)
	if err != nil {
		t.Fatal(err)
	}
	return len(all)
}

// checkLater starts a proxy and looks at what it serves.
func checkLater(t *testing.T, p *plane, dir, name string, port int) *envoytest.Envoy {
	t.Helper()
	e := proxyOf(t, p, dir, name, picky)
	until(t, name+" to come to rest", func() bool { return p.proxyNamed(name).GetState() == "quarantined" })
	answers(t, port, "y.test", "/", 200, "other")
	answers(t, port, "r.test", "/", 200, "one")
	for _, stat := range []string{"cluster_manager.cds.update_rejected", "listener_manager.lds.update_rejected"} {
		if n := e.Stat(t, stat); n != 0 {
			t.Errorf("%s: %s is %d: it was sent what another proxy had refused", name, stat, n)
		}
	}
	return e
}

// TestRefusedBackendOfWildcards: where one RouteConfiguration holds the wildcards of a
// listener, a new backend that Envoy refuses takes nothing from the routes beside it; what would go
// there is 503, or goes to the other backends of the rule.
func TestRefusedBackendOfWildcards(t *testing.T) {
	dir := t.TempDir()
	p := start(t, dir)
	port := envoytest.FreePort(t)
	e := proxyOf(t, p, dir, "one", picky)
	p.apply(t, fmt.Sprintf(`
kind: Gateway
name: edge
listeners: [{name: http, address: 127.0.0.1, port: %d}]
---
kind: Backend
name: good
%s
---
kind: Route
name: any
gateways: [edge]
rules: [{direct_response: {status: 200, body: any}}]
---
kind: Route
name: split
gateways: [edge]
hostnames: ["*.split.test"]
rules: [{forward: {backends: [{backend: good}]}}]
`, port, backend(t, "good")))
	if got := p.core.Layout("projects/default/gateways/edge", "http", "*.split.test"); got != compile.LayoutWildcards {
		t.Fatalf("the layout is %q, want that of wildcards", got)
	}
	answers(t, port, "a.test", "/", 200, "any")
	p.apply(t, `
kind: Backend
name: b
dns: {hostname: localhost, port: 1}
---
kind: Route
name: any
gateways: [edge]
rules: [{direct_response: {status: 200, body: changed}}]
---
kind: Route
name: split
gateways: [edge]
hostnames: ["*.split.test"]
rules: [{forward: {backends: [{backend: good, weight: 1}, {backend: b, weight: 100}]}}]
---
kind: Route
name: z
gateways: [edge]
hostnames: ["*.z.test"]
rules: [{forward: {backends: [{backend: b}]}}]
`)
	answers(t, port, "a.test", "/", 200, "changed")
	answers(t, port, "x.z.test", "/", 503, "proxies refuse its backend")
	for range 20 {
		if status, body := get(t, port, "x.split.test", "/"); status != 200 || body != "good" {
			t.Fatalf("x.split.test answers %d %q, want the good backend", status, body)
		}
	}
	const nothing = "projects/default/backends/b nothing is served in its place"
	explains(t, p, port, "a.test", 200, "changed", "")
	explains(t, p, port, "x.z.test", 503, "Envoy refused projects/default/backends/b: ", nothing)
	if e := explains(t, p, port, "x.split.test", 200, "200 by projects/default/backends/good", nothing); len(e.GetBackends()) != 1 || e.GetBackends()[0].GetPercent() != 100 {
		t.Errorf("x.split.test goes to %v", e.GetBackends())
	}
	if q := problem(t, p, "projects/default/backends/b"); q == nil || !strings.Contains(q.GetMessage(), "held back") {
		t.Errorf("the status says of the backend: %v", q)
	}
	// The restart knows it, too.
	e.Kill()
	until(t, "it to be saved", func() bool { return stored(t, p) == 1 })
	p.stop()
	p = serve(t, p.core.store, dir)
	e = proxyOf(t, p, dir, "two", picky)
	answers(t, port, "a.test", "/", 200, "changed")
	answers(t, port, "x.z.test", "/", 503, "proxies refuse its backend")
	if n := e.Stat(t, "cluster_manager.cds.update_rejected"); n != 0 {
		t.Errorf("%d updates were refused, want none sent that are", n)
	}
	p.apply(t, "kind: Backend\nname: b\n"+backend(t, "mended"))
	answers(t, port, "x.z.test", "/", 200, "mended")
	until(t, "the quarantine to end", func() bool { return stored(t, p) == 0 })
	explains(t, p, port, "x.z.test", 200, "200 by projects/default/backends/b", "")
}

// TestAcceptedElsewhere: what one proxy refuses and another takes is not a quarantine:
// each proxy keeps what it can.
func TestAcceptedElsewhere(t *testing.T) {
	dir := t.TempDir()
	p := start(t, dir)
	port := envoytest.FreePort(t)
	proxyOf(t, p, dir, "easy", nil)
	p.apply(t, fmt.Sprintf(`
kind: Gateway
name: edge
listeners: [{name: http, address: 127.0.0.1, port: %d}]
---
kind: Backend
name: b
dns: {hostname: localhost, port: 1}
---
kind: Route
name: r
gateways: [edge]
hostnames: [r.test]
rules: [{forward: {backends: [{backend: b}]}}]
`, port))
	until(t, "the first to serve", func() bool { return p.proxyNamed("easy").GetState() == "serving" })
	proxyOf(t, p, dir, "picky", picky)
	until(t, "the second to refuse", func() bool { return p.proxyNamed("picky").GetState() == "refused" })
	if n := stored(t, p); n != 0 || problem(t, p, "projects/default/backends/b") != nil {
		t.Errorf("%d resources are in quarantine, want none: a proxy serves it", n)
	}
}

// TestQuarantinePages: bad requests for another try are answered with what is wrong.
func TestQuarantinePages(t *testing.T) {
	p := start(t, t.TempDir())
	for query, want := range map[string]string{
		"": "say which", "?name=a&all=true": "say which", "?name=backends/b": "nothing of", "?all=true": "",
	} {
		code, body := httpPost(t, p, "/debug/quarantine/retry"+query)
		if (code == http.StatusOK) != (want == "") || !strings.Contains(body, want) {
			t.Errorf("%q: %d %s", query, code, body)
		}
	}
}
