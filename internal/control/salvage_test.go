package control

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/penstock-gateway/penstock/gateway"
	"github.com/penstock-gateway/penstock/gateway/source/file"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
	"github.com/penstock-gateway/penstock/internal/envoytest"
	"github.com/penstock-gateway/penstock/internal/pki"
	"github.com/penstock-gateway/penstock/xds/bootstrap"
)

// strictEnvoy starts an Envoy of a plane that refuses regular expressions of more
// than some 80 steps, which every check of ours lets pass: as one with other run-time
// settings would.
func strictEnvoy(t *testing.T, p *plane, dir string) *envoytest.Envoy {
	t.Helper()
	ca, err := pki.OpenCA(filepath.Join(dir, "pki"))
	if err != nil {
		t.Fatal(err)
	}
	cert, key, err := ca.EnsureFiles(filepath.Join(dir, "pki"), "strict", pki.Request{
		SPIFFE: "spiffe://" + pki.TrustDomain + "/proxy/default/-/strict", IPs: []net.IP{net.IPv4(127, 0, 0, 1)},
	})
	if err != nil {
		t.Fatal(err)
	}
	sds := t.TempDir()
	c := bootstrap.Config{
		NodeID: "strict", XDSAddresses: []string{p.addr.XDS.String()},
		CAFile: filepath.Join(dir, "pki", "ca.crt"), CertFile: cert, KeyFile: key, SDSDir: sds,
	}
	b, err := bootstrap.New(c)
	if err == nil {
		err = bootstrap.WriteFiles(filepath.Join(sds, "unused.json"), c)
	}
	if err != nil {
		t.Fatal(err)
	}
	layer := b.GetLayeredRuntime().GetLayers()[0].GetLayerSpecifier().(*bootstrapv3.RuntimeLayer_StaticLayer).StaticLayer
	layer.Fields["re2.max_program_size.error_level"] = structpb.NewNumberValue(80)
	e := envoytest.Start(t, envoytest.Options{Bootstrap: b})
	until(t, "the proxy to be connected", func() bool { return len(p.core.Proxies()) > 0 })
	return e
}

func decodeYAML(t *testing.T, yaml string) []gateway.Object {
	t.Helper()
	objects, errs := file.Decode("test.yaml", []byte(yaml))
	if len(errs) > 0 {
		t.Fatal(errs.Error())
	}
	return objects
}

// applyYAML writes and returns what came of it within the write's wait.
func applyYAML(t *testing.T, p *plane, yaml string, deletes ...string) {
	t.Helper()
	req := &pb.ApplyRequest{Deletes: deletes, Options: &pb.WriteOptions{WaitTimeout: durationpb.New(30 * time.Second)}}
	for _, o := range decodeYAML(t, yaml) {
		req.Resources = append(req.Resources, gateway.ToResource(o))
	}
	if _, err := pb.NewConfigServiceClient(p.conn).Apply(t.Context(), req); err != nil {
		t.Fatal(err)
	}
}

// ask asks a port for a path of a host; it returns "status body".
func ask(t *testing.T, port int, host, path string) string {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, fmt.Sprintf("http://127.0.0.1:%d%s", port, path), nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Host = host
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		return err.Error()
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return err.Error()
	}
	text := strings.TrimSpace(string(b))
	if resp.Header.Get("content-type") == "application/problem+json" {
		var problem struct{ Detail string }
		if err := json.Unmarshal(b, &problem); err != nil {
			return err.Error()
		}
		text = problem.Detail
	}
	return fmt.Sprintf("%d %s", resp.StatusCode, text)
}

// asks waits until all paths of a host have their answers, and sees that they stay.
func asks(t *testing.T, port int, host string, want map[string]string) {
	t.Helper()
	var last string
	defer func() {
		if t.Failed() {
			t.Log("last wrong answer: " + last)
		}
	}()
	until(t, "the answers of "+host, func() bool {
		for path, w := range want {
			if got := ask(t, port, host, path); got != w && !(w == "503" && strings.HasPrefix(got, "503 projects/default/routes/")) {
				last = fmt.Sprintf("%s%s: %s, want %s", host, path, got, w)
				return false
			}
		}
		return true
	})
}

// quarantine is what the status says of quarantined routes: "object field".
func quarantineOf(t *testing.T, p *plane) (out []string) {
	t.Helper()
	st, err := p.core.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, q := range st.GetProblems() {
		if strings.HasPrefix(q.GetMessage(), "quarantined: ") {
			if !strings.Contains(q.GetMessage(), "program size") {
				t.Errorf("Envoy's words are missing: %s", q.GetMessage())
			}
			out = append(out, strings.TrimPrefix(q.GetObject(), "projects/default/routes/")+" "+q.GetField())
		}
	}
	return out
}

func quarantines(t *testing.T, p *plane, want ...string) {
	t.Helper()
	var last []string
	defer func() {
		if t.Failed() {
			t.Logf("quarantined: %q", last)
		}
	}()
	until(t, fmt.Sprintf("the quarantine of %q", want), func() bool {
		last = quarantineOf(t, p)
		return strings.Join(last, ", ") == strings.Join(want, ", ")
	})
}

// large is a regular expression of some 50 steps, of which the end is given.
func large(begin, end string) string { return begin + "([a-c]{38}[0-9]{38}x|" + end + ")" }

func answerRule(name, match, body string) string {
	return fmt.Sprintf("- {name: %s, matches: [{path: {%s}}], direct_response: {status: 200, body: %s}}\n", name, match, body)
}

func routeOf(name string, rules ...string) string {
	return fmt.Sprintf("---\nkind: Route\nname: %s\nHOSTS\nrules:\n%s", name, strings.Join(rules, ""))
}

// TestSalvage: when the real Envoy refuses the routes of a host, that costs only the
// bad ones: what was accepted before serves on in their place, all others are as
// written, and the status says which, where and why.
func TestSalvage(t *testing.T) {
	for layout, hosts := range map[string]string{"scopes": "hostnames: [a.test]", "wildcard": `hostnames: ["*.test"]`, "any host": ""} {
		t.Run(layout, func(t *testing.T) { testSalvage(t, hosts) })
	}
}

func testSalvage(t *testing.T, hosts string) {
	dir := t.TempDir()
	p := start(t, dir)
	first := strictEnvoy(t, p, dir)
	port := envoytest.FreePort(t)
	apply := func(yaml string, deletes ...string) {
		t.Helper()
		applyYAML(t, p, strings.ReplaceAll(yaml, "HOSTS", hosts), deletes...)
	}
	gw := fmt.Sprintf("kind: Gateway\nname: g\nlisteners: [{name: http, address: 127.0.0.1, port: %d}]\n", port)
	var many []string
	for i := range 20 {
		many = append(many, answerRule(fmt.Sprint("m", i), fmt.Sprintf("exact: /m%d", i), "old"))
	}
	mixed := func(regex, body string) string {
		return routeOf("mixed", answerRule("good", "exact: /good", body), answerRule("bad", fmt.Sprintf("regex: %q", regex), body))
	}
	apply(gw + routeOf("many", many...) + mixed("/r[0-9]", "old") + routeOf("plain", answerRule("all", "prefix: /plain", "old")))
	want := map[string]string{"/m0": "200 old", "/good": "200 old", "/r1": "200 old", "/plain/x": "200 old", "/other": "404 No route serves this request."}
	asks(t, port, "a.test", want)
	quarantines(t, p)
	explained(t, p, port, want)

	// One changed rule of two is bad, and so is a new route; the rest goes on, as new.
	for i := range many {
		many[i] = strings.ReplaceAll(many[i], "old", "new")
	}
	added := routeOf("added", answerRule("bad", fmt.Sprintf("regex: %q", large("/added/", "x")), "new"))
	apply(routeOf("many", many...) + mixed(large("/r", "[0-9]"), "new") + added)
	want = map[string]string{"/m0": "200 new", "/m19": "200 new", "/good": "200 new", "/r1": "200 old", "/added/x": "404 No route serves this request.", "/plain/x": "200 old"}
	asks(t, port, "a.test", want)
	quarantines(t, p, "added rules[0]", "mixed rules[1]")
	explained(t, p, port, want)
	route, err := pb.NewRouteServiceClient(p.conn).GetRoute(t.Context(), &pb.GetRouteRequest{Name: "projects/default/routes/mixed"})
	if err != nil {
		t.Fatal(err)
	}
	if c := route.GetRoute().GetStatus().GetConditions()[0]; c.GetReason() != "Quarantined" || c.GetOk() || !strings.Contains(c.GetMessage(), "rules[1]: quarantined: ") || !strings.Contains(c.GetMessage(), "its last accepted form serves") {
		t.Errorf("the condition: %v", c)
	}

	// Others are changed meanwhile, and even the object with the bad rule is.
	apply(routeOf("plain", answerRule("all", "prefix: /plain", "new")) + mixed(large("/r", "[0-9]"), "newer"))
	want = map[string]string{"/plain": "200 new", "/good": "200 newer", "/r1": "200 old"}
	asks(t, port, "a.test", want)
	quarantines(t, p, "added rules[0]", "mixed rules[1]")
	explained(t, p, port, want)

	// One is mended, the other goes.
	apply(mixed("/r[0-7]", "mended"))
	want = map[string]string{"/good": "200 mended", "/r1": "200 mended", "/r9": "404 No route serves this request.", "/m3": "200 new"}
	asks(t, port, "a.test", want)
	quarantines(t, p, "added rules[0]")
	explained(t, p, port, want)
	apply("", "projects/default/routes/added")
	quarantines(t, p)

	testGuarded(t, p, port, apply, added)

	// A control plane that knows of no version before finds them as well.
	apply(mixed(large("/r", "[0-7]"), "last") + added)
	quarantines(t, p, "added rules[0]", "mixed rules[1]")
	first.Kill()
	dir = t.TempDir()
	q := serve(t, p.core.store, dir)
	strictEnvoy(t, q, dir)
	quarantines(t, q, "added rules[0]", "mixed rules[1]")
	want = map[string]string{"/good": "200 last", "/m3": "200 new", "/r1": "503", "/rest": "503", "/added/x": "503", "/plain": "200 new"}
	asks(t, port, "a.test", want)
	explained(t, q, port, want)
}

// testGuarded: what guards a path is not taken away while what comes in its place may
// be what is refused.
func testGuarded(t *testing.T, p *plane, port int, apply func(string, ...string), added string) {
	t.Helper()
	guard := func(path string) string {
		return routeOf("guard", "- {name: no, matches: [{path: {prefix: "+path+"}}], direct_response: {status: 403, body: no}}\n", answerRule("other", "exact: /guard", strings.Trim(path, "/")))
	}
	// What was open is not served in the place of what is closed and refused.
	tight := func(regex string, status int) string {
		return routeOf("tight", fmt.Sprintf("- {name: t, matches: [{path: {regex: %q}}], direct_response: {status: %d, body: t}}\n", regex, status))
	}
	apply(tight("/tight[0-9]", 200))
	want := map[string]string{"/tight1": "200 t"}
	asks(t, port, "a.test", want)
	explained(t, p, port, want)
	apply(tight(large("/tight", "[0-9]"), 403))
	want = map[string]string{"/tight1": "503", "/m3": "200 new"}
	asks(t, port, "a.test", want)
	quarantines(t, p, "tight rules[0]")
	explained(t, p, port, want)
	apply("", "projects/default/routes/tight")
	quarantines(t, p)

	apply(guard("/secret"))
	want = map[string]string{"/secret/x": "403 no", "/guard": "200 secret"}
	asks(t, port, "a.test", want)
	explained(t, p, port, want)
	apply(guard("/moved") + added)
	until(t, "the search to be given up", func() bool { return len(p.core.salvage.GivenUp()) > 0 })
	want = map[string]string{"/secret/x": "403 no", "/guard": "200 secret", "/m3": "200 new"}
	asks(t, port, "a.test", want)
	quarantines(t, p)
	explained(t, p, port, want)
	apply("", "projects/default/routes/added")
	want = map[string]string{"/secret/x": "404 No route serves this request.", "/moved": "403 no", "/guard": "200 moved"}
	asks(t, port, "a.test", want)
	explained(t, p, port, want)
}

// explained waits until explain says what Envoy answers: of a whole table that keeps what it
// had it is not known what it answers, and explain says so.
func explained(t *testing.T, p *plane, port int, want map[string]string) {
	t.Helper()
	client := pb.NewExplainServiceClient(p.conn)
	var last string
	defer func() {
		if t.Failed() {
			t.Log("last wrong explanation: " + last)
		}
	}()
	until(t, "explain to say what Envoy answers", func() bool {
		for path, answer := range want {
			status, body, _ := strings.Cut(answer, " ")
			e, err := client.Explain(t.Context(), &pb.ExplainRequest{Method: "GET", Url: fmt.Sprintf("http://a.test:%d%s", port, path)})
			if err != nil {
				t.Fatal(err)
			}
			o := e.GetOutcome()
			switch {
			case fmt.Sprint(o.GetStatus()) == status && (status != "200" || strings.Contains(o.GetText(), body)):
			case o.GetStatus() == 0 && !o.GetCertain() && len(e.GetRefused()) > 0 && len(p.core.salvage.GivenUp()) > 0:
			default:
				last = fmt.Sprintf("%s is answered %q, and explain says %q (%v)", path, answer, o.GetText(), e.GetRefused())
				return false
			}
		}
		return true
	})
}
