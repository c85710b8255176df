// Package supportdesk runs the steps of the example's README against the real
// parts: the built binary, Envoy, awslambdaric, Redis and Jaeger.
package supportdesk

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/penstock-gateway/penstock/internal/envoytest"
	"github.com/penstock-gateway/penstock/internal/redistest"
	"github.com/penstock-gateway/penstock/internal/toolbox"
)

// desk is one running `penstock up` with ports and a data folder of its own.
type desk struct {
	bin, dir, root                     string
	gateway, api, http, plain, limiter string
	args                               []string
}

func TestAcceptance(t *testing.T) {
	d := newDesk(t)
	d.up(t)
	for _, step := range []struct {
		name string
		run  func(*testing.T, *desk)
	}{
		{"functions answer", functionsAnswer},
		{"configuration by file, command, gRPC and REST", configure},
		{"bad input", badInput},
		{"token", token},
		{"limit", limit},
		{"an instance is killed", killInstance},
		{"trace", traceOfRequest},
		{"explain", explainRequest},
		{"the control plane is killed", killControl},
		{"down and up again", downAndUp},
	} {
		if !t.Run(step.name, func(t *testing.T) { step.run(t, d) }) {
			t.Fatalf("step %q failed; the rest builds on it", step.name)
		}
	}
}

// TestTwoLimiters: two limiter processes share one count in a real Redis, and the
// limit holds over both.
func TestTwoLimiters(t *testing.T) {
	redis := redistest.Start(t)
	d := newDesk(t, "--redis-url", redis.URL(), "--limiters", "2", "--no-jaeger")
	d.up(t)
	passed, limited := 0, 0
	for range 20 {
		// A connection of its own each, so that both limiters are asked.
		switch a := d.do(t, "GET", "/limited", "", "connection", "close"); a.status {
		case 200:
			passed++
		case 429:
			limited++
		default:
			t.Fatalf("/limited: %d %s", a.status, a.body)
		}
	}
	if passed != 5 || limited != 15 {
		t.Errorf("%d passed and %d were limited, want 5 and 15", passed, limited)
	}
}

func newDesk(t *testing.T, more ...string) *desk {
	t.Helper()
	root, err := toolbox.RepoRoot()
	if err != nil {
		t.Fatal(err)
	}
	d := &desk{root: root, dir: t.TempDir(), bin: filepath.Join(t.TempDir(), "penstock")}
	build := exec.CommandContext(t.Context(), "go", "build", "-o", d.bin, "./cmd/penstock")
	build.Dir = root
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	port := func() string { return fmt.Sprintf("127.0.0.1:%d", envoytest.FreePort(t)) }
	d.gateway, d.api, d.http, d.plain, d.limiter = port(), port(), port(), port(), port()
	// The example with its own address for the plain upstream.
	config := filepath.Join(d.dir, "config")
	if err := os.CopyFS(config, os.DirFS(filepath.Join(root, "examples/support-desk/config"))); err != nil {
		t.Fatal(err)
	}
	_, plainPort, _ := net.SplitHostPort(d.plain)
	file := filepath.Join(config, "backends.yaml")
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, bytes.ReplaceAll(b, []byte("port: 8090"), []byte("port: "+plainPort)), 0o600); err != nil {
		t.Fatal(err)
	}
	d.args = []string{
		"up", "-d", "--settings", os.DevNull, "--data-dir", filepath.Join(d.dir, "data"), "--config", config,
		"--functions-root", filepath.Join(root, "examples/support-desk/functions"),
		"--run", "plain=python3 " + filepath.Join(root, "examples/support-desk/plain/server.py") + " " + plainPort,
		"--gateway-listen", d.gateway, "--api-listen", d.api, "--http-listen", d.http, "--xds-listen", port(),
		"--limiter-listen", d.limiter, "--otlp-listen", port(),
	}
	d.args = append(d.args, more...)
	t.Cleanup(func() {
		// t.Context is done by now.
		out, err := d.command(context.Background(), "down", "--data-dir", filepath.Join(d.dir, "data")).CombinedOutput()
		if err != nil && !strings.Contains(string(out), "not running") {
			t.Errorf("penstock down: %v\n%s", err, out)
		}
		if t.Failed() {
			log, _ := os.ReadFile(filepath.Join(d.dir, "data", "up.log"))
			t.Logf("up.log:\n%s", tail(log, 30000))
		}
	})
	return d
}

func tail(b []byte, n int) []byte { return b[max(0, len(b)-n):] }

func (d *desk) command(ctx context.Context, args ...string) *exec.Cmd {
	c := exec.CommandContext(ctx, d.bin, args...)
	c.Dir = d.root
	c.Env = append(os.Environ(), "PENSTOCK_SERVER="+d.api)
	return c
}

// credential is the owner's, for the loopback addresses.
func (d *desk) credential(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(d.dir, "data", "access", "credential"))
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(b))
}

func (d *desk) up(t *testing.T) {
	t.Helper()
	out, err := d.command(t.Context(), d.args...).CombinedOutput()
	if err != nil {
		log, _ := os.ReadFile(filepath.Join(d.dir, "data", "up.log"))
		t.Fatalf("penstock up -d: %v\n%s\n%s", err, out, tail(log, 20000))
	}
}

// run runs a client verb and returns what it printed.
func (d *desk) run(t *testing.T, args ...string) string {
	t.Helper()
	out, err := d.command(t.Context(), args...).CombinedOutput()
	if err != nil {
		t.Fatalf("penstock %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// status reads the status into st. It ends with 3 as long as something does not serve,
// which is what its callers look for.
func (d *desk) status(t *testing.T, st any) {
	t.Helper()
	out, err := d.command(t.Context(), "status", "-o", "json").Output()
	if e := (*exec.ExitError)(nil); err != nil && !(errors.As(err, &e) && e.ExitCode() == 3) {
		t.Fatalf("penstock status: %v\n%s", err, out)
	}
	if err := json.Unmarshal(out, st); err != nil {
		t.Fatalf("penstock status: %v\n%s", err, out)
	}
}

// fail runs a client verb that must fail, and returns what it printed.
func (d *desk) fail(t *testing.T, args ...string) string {
	t.Helper()
	out, err := d.command(t.Context(), args...).CombinedOutput()
	if err == nil {
		t.Fatalf("penstock %s: succeeded:\n%s", strings.Join(args, " "), out)
	}
	return string(out)
}

type answer struct {
	status int
	header http.Header
	body   string
}

func (d *desk) do(t *testing.T, method, path, body string, headers ...string) answer {
	t.Helper()
	a, err := send(t.Context(), method, "http://"+d.gateway+path, body, headers...)
	if err != nil {
		t.Fatalf("%s %s: %v", method, path, err)
	}
	return a
}

func send(ctx context.Context, method, url, body string, headers ...string) (answer, error) {
	r, err := http.NewRequestWithContext(ctx, method, url, strings.NewReader(body))
	if err != nil {
		return answer{}, err
	}
	for i := 0; i < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		return answer{}, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return answer{resp.StatusCode, resp.Header, string(b)}, err
}

// eventually asks again until ok or the deadline; it polls a real condition.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(60 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within a minute", what)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func functionsAnswer(t *testing.T, d *desk) {
	eventually(t, "three functions ready", func() bool {
		var st struct {
			Instances []struct{ State string }
		}
		d.status(t, &st)
		ready := 0
		for _, i := range st.Instances {
			if i.State == "INSTANCE_STATE_READY" {
				ready++
			}
		}
		return ready == 4
	})
	// Ready instances are in Envoy when the wait returns.
	d.run(t, "wait")
	seen := map[string]bool{}
	for range 40 {
		a := d.do(t, "POST", "/support", `{"question":"Where is my order?"}`)
		if a.status != 200 || !strings.Contains(a.body, "order") {
			t.Fatalf("/support: %d %s", a.status, a.body)
		}
		if !regexp.MustCompile(`^[0-9a-f]{32}$`).MatchString(a.header.Get("x-trace-id")) {
			t.Fatalf("x-trace-id is %q", a.header.Get("x-trace-id"))
		}
		seen[a.header.Get("x-instance")] = true
	}
	if len(seen) != 2 {
		t.Errorf("40 requests reached %d instances, want both: %v", len(seen), seen)
	}
	for _, path := range []string{"/catalog", "/plain"} {
		if a := d.do(t, "GET", path, ""); a.status != 200 || a.header.Get("x-trace-id") == "" {
			t.Errorf("%s: %d %s, x-trace-id %q", path, a.status, a.body, a.header.Get("x-trace-id"))
		}
	}
	if a := d.do(t, "GET", "/nowhere", ""); a.status != 404 || a.header.Get("x-trace-id") == "" {
		t.Errorf("/nowhere: %d, x-trace-id %q, want 404 with one", a.status, a.header.Get("x-trace-id"))
	}
}

func (d *desk) file(t *testing.T, name, content string) string {
	t.Helper()
	path := filepath.Join(d.dir, name)
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func configure(t *testing.T, d *desk) {
	// Every write is served when its call returns: one request, no polling.
	hello := "kind: Route\nname: hello\nrules:\n- matches: [{path: {prefix: /hello}}]\n  direct_response: {status: 200, body: \"%s\"}\n"
	file := d.file(t, "hello.yaml", fmt.Sprintf(hello, "one"))
	if out := d.run(t, "diff", "-f", filepath.Join(d.dir, "config")); !strings.Contains(out, "no difference") {
		t.Errorf("diff of what was applied: %s", out)
	}
	if out := d.fail(t, "diff", "-f", file); !strings.Contains(out, "+ projects/default/routes/hello") {
		t.Errorf("diff: %s", out)
	}
	d.run(t, "validate", "-f", file)
	first := revisionOf(t, d.run(t, "apply", "-f", file))
	if a := d.do(t, "GET", "/hello", ""); a.body != "one" {
		t.Fatalf("after apply: %d %q", a.status, a.body)
	}
	d.file(t, "hello.yaml", fmt.Sprintf(hello, "two"))
	second := revisionOf(t, d.run(t, "apply", "-f", file))
	if a := d.do(t, "GET", "/hello", ""); a.body != "two" || second != first+1 {
		t.Fatalf("after the second apply (revision %d, then %d): %d %q", first, second, a.status, a.body)
	}
	d.run(t, "route", "create", "by-command", "--path", "/by-command", "--backend", "plain")
	if a := d.do(t, "GET", "/by-command", ""); a.status != 200 {
		t.Errorf("route create: %d", a.status)
	}
	rest, err := send(t.Context(), "POST", "http://"+d.http+"/v1/projects/default/routes?route_id=rest",
		`{"rules":[{"matches":[{"path":{"prefix":"/rest"}}],"direct_response":{"status":200,"body":"rest"}}]}`,
		"Content-Type", "application/json", "Authorization", "Bearer "+d.credential(t))
	if err != nil || rest.status != 200 || !strings.Contains(rest.body, `"revision"`) {
		t.Fatalf("REST create: %v %d %s", err, rest.status, rest.body)
	}
	if a := d.do(t, "GET", "/rest", ""); a.body != "rest" {
		t.Errorf("after REST create: %d %q", a.status, a.body)
	}
	for _, verb := range [][]string{{"list"}, {"list", "routes"}, {"get", "route", "hello"}, {"history"}, {"proxies"}, {"status"}} {
		if out := d.run(t, verb...); strings.TrimSpace(out) == "" {
			t.Errorf("penstock %v prints nothing", verb)
		}
	}
	if out := d.run(t, "proxies"); !strings.Contains(out, "spiffe://penstock.local/proxy/default/-/edge-1") || !strings.Contains(out, "serving") {
		t.Errorf("proxies: %s", out)
	}
	d.run(t, "rollback", strconv.FormatInt(first, 10))
	if a := d.do(t, "GET", "/hello", ""); a.body != "one" {
		t.Errorf("after rollback: %d %q", a.status, a.body)
	}
	if a := d.do(t, "GET", "/rest", ""); a.status != 404 {
		t.Errorf("after rollback, /rest: %d, want 404", a.status)
	}
	d.run(t, "delete", "route", "hello")
	if a := d.do(t, "GET", "/hello", ""); a.status != 404 {
		t.Errorf("after delete: %d", a.status)
	}
}

var revisionLine = regexp.MustCompile(`revision (\d+)`)

func revisionOf(t *testing.T, out string) int64 {
	t.Helper()
	m := revisionLine.FindStringSubmatch(out)
	if m == nil || !strings.Contains(out, "serving on 1 of 1") {
		t.Fatalf("apply printed no revision that is served:\n%s", out)
	}
	n, _ := strconv.ParseInt(m[1], 10, 64)
	return n
}

// badInput: a clear error with place and name, and nothing is lost.
func badInput(t *testing.T, d *desk) {
	route := "kind: Route\nname: bad\nrules:\n- matches: [{path: {prefix: /bad}}]\n"
	for name, c := range map[string]struct{ yaml, want string }{
		"unknown field":     {route + "  direct_respons: {status: 200}\n", "direct_response"},
		"wrong type":        {route + "  direct_response: {status: many}\n", "5:"},
		"duplicate key":     {route + "name: again\n  direct_response: {status: 200}\n", ""},
		"missing reference": {route + "  forward: {backends: [{backend: nobody}]}\n", "projects/default/backends/nobody"},
		"invalid regex":     {"kind: Route\nname: bad\nrules:\n- matches: [{path: {regex: \"/(\"}}]\n  direct_response: {status: 200}\n", "regex"},
		"redirect to itself": {"kind: Route\nname: bad\nhostnames: [a.example.com]\nrules:\n- matches: [{path: {exact: /a}}]\n  redirect: {host: a.example.com, path: /a}\n",
			"redirect"},
		"5 MB":      {route + "  direct_response: {status: 200}\n" + strings.Repeat("# filler filler filler\n", 230_000), "MiB"},
		"truncated": {"kind: Route\nname: bad\nrules: [{matches: [{path: {pre", "bad"},
	} {
		t.Run(name, func(t *testing.T) {
			file := d.file(t, "bad.yaml", c.yaml)
			before := d.run(t, "history", "-n", "1")
			out := d.fail(t, "apply", "-f", file)
			if !strings.Contains(out, c.want) || !strings.Contains(out, "bad") {
				t.Errorf("want the place, the name and %q:\n%.2000s", c.want, out)
			}
			if after := d.run(t, "history", "-n", "1"); after != before {
				t.Errorf("a revision was made:\n%s", after)
			}
		})
	}
	if a := d.do(t, "GET", "/plain", ""); a.status != 200 {
		t.Errorf("the rest does not serve: %d", a.status)
	}
}

func (d *desk) token(t *testing.T, args ...string) string {
	t.Helper()
	return "Bearer " + strings.TrimSpace(d.run(t, append([]string{"token", "--data-dir", filepath.Join(d.dir, "data")}, args...)...))
}

func token(t *testing.T, d *desk) {
	if a := d.do(t, "GET", "/account", ""); a.status != 401 || a.header.Get("x-trace-id") == "" {
		t.Errorf("without a token: %d, want 401 with a trace id", a.status)
	}
	good := d.token(t, "--subject", "alice", "--claim", "plan=gold")
	for _, headers := range [][]string{{}, {"x-user-plan", "forged"}, {"X-User-Id", "root"}} {
		a := d.do(t, "GET", "/account", "", append([]string{"authorization", good}, headers...)...)
		if a.status != 200 || !strings.Contains(a.body, "alice") || !strings.Contains(a.body, "gold") || strings.Contains(a.body, "forged") || strings.Contains(a.body, "root") {
			t.Errorf("with a token and %v: %d %s", headers, a.status, a.body)
		}
	}
	if a := d.do(t, "GET", "/account", "", "authorization", good[:len(good)-4]+"AAAA"); a.status != 401 {
		t.Errorf("with a broken signature: %d, want 401", a.status)
	}
	// A claim header never reaches any backend, not even where no token is asked for.
	if a := d.do(t, "GET", "/plain", "", "x-user-id", "root"); strings.Contains(a.body, "root") {
		t.Errorf("/plain was sent a forged claim header: %s", a.body)
	}
}

func limit(t *testing.T, d *desk) {
	for _, headers := range [][]string{nil, {"authorization", d.token(t, "--subject", "bob")}} {
		for i := range 6 {
			a := d.do(t, "GET", "/limited", "", headers...)
			want := 200
			if i == 5 {
				want = 429
			}
			if a.status != want || a.header.Get("RateLimit") == "" || a.header.Get("RateLimit-Policy") == "" {
				t.Fatalf("request %d with %d headers: %d %v, want %d with RateLimit and RateLimit-Policy", i+1, len(headers), a.status, a.header, want)
			}
			if n, err := strconv.Atoi(a.header.Get("Retry-After")); want == 429 && (err != nil || n < 1 || n > 60) {
				t.Errorf("Retry-After is %q", a.header.Get("Retry-After"))
			}
		}
	}
}

type instance struct {
	Function, ID, State string
	Pid, Restarts       int
}

func (d *desk) instances(t *testing.T, function string) []instance {
	t.Helper()
	var st struct{ Instances []instance }
	d.status(t, &st)
	var out []instance
	for _, i := range st.Instances {
		if strings.HasSuffix(i.Function, "/"+function) {
			out = append(out, i)
		}
	}
	return out
}

func killInstance(t *testing.T, d *desk) {
	before := d.instances(t, "support")
	if len(before) != 2 || before[0].Pid == 0 {
		t.Fatalf("instances: %+v", before)
	}
	dead := before[0].Pid
	if err := syscall.Kill(dead, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	for i := range 50 {
		if a := d.do(t, "GET", "/support", ""); a.status >= 500 {
			t.Fatalf("request %d after the kill: %d %s", i, a.status, a.body)
		}
	}
	eventually(t, "a new instance in place of the dead one", func() bool {
		ready := 0
		for _, i := range d.instances(t, "support") {
			if i.Pid == dead {
				return false
			}
			if i.State == "INSTANCE_STATE_READY" {
				ready++
			}
		}
		return ready == 2
	})
}

func traceOfRequest(t *testing.T, d *desk) {
	data := filepath.Join(d.dir, "data")
	eventually(t, "Jaeger to have joined", func() bool {
		out, err := d.command(t.Context(), "status", "--data-dir", data).CombinedOutput()
		return err == nil && strings.Contains(string(out), "Jaeger is running")
	})
	limited := d.do(t, "GET", "/limited", "", "authorization", d.token(t, "--subject", "carol"))
	out := d.run(t, "trace", limited.header.Get("x-trace-id"), "--data-dir", data)
	for _, want := range []string{"penstock-gateway", "penstock-limiter"} {
		if !strings.Contains(out, want) {
			t.Errorf("the trace of /limited has no span of %s:\n%s", want, out)
		}
	}
	const parent = "0123456789abcdef0123456789abcdef"
	a := d.do(t, "POST", "/support", `{"question":"refund"}`, "traceparent", "00-"+parent+"-0123456789abcdef-01")
	if got := a.header.Get("x-trace-id"); got != parent {
		t.Errorf("x-trace-id is %q, want the caller's %q", got, parent)
	}
	out = d.run(t, "trace", parent, "--data-dir", data)
	for _, want := range []string{"penstock-gateway", "penstock-runner", "routes/support"} {
		if !strings.Contains(out, want) {
			t.Errorf("the trace of /support lacks %q:\n%s", want, out)
		}
	}
	t.Logf("\n%s", out)
}

func explainRequest(t *testing.T, d *desk) {
	out := d.run(t, "explain", "POST", "http://localhost:"+d.gateway[strings.LastIndexByte(d.gateway, ':')+1:]+"/support")
	for _, want := range []string{"gateways/edge", "routes/support", "routes.yaml:", "timeout", "functions/support", "instance", "not chosen", "routes/account"} {
		if !strings.Contains(out, want) {
			t.Errorf("explain lacks %q:\n%s", want, out)
		}
	}
	t.Logf("\n%s", out)
}

func (d *desk) sent(t *testing.T) (sent int64, connected bool) {
	t.Helper()
	out, err := d.command(t.Context(), "proxies", "-o", "json").Output()
	if err != nil {
		return 0, false
	}
	var p struct {
		Proxies []struct {
			State          string
			Resources_sent json.Number
		}
	}
	if err := json.Unmarshal(out, &p); err != nil {
		t.Fatal(err)
	}
	if len(p.Proxies) != 1 || p.Proxies[0].State != "serving" {
		return 0, false
	}
	n, _ := p.Proxies[0].Resources_sent.Int64()
	return n, true
}

func killControl(t *testing.T, d *desk) {
	before := d.run(t, "list", "-o", "yaml")
	var st struct {
		Processes []struct {
			Name string
			Pid  int
		}
	}
	b, err := os.ReadFile(filepath.Join(d.dir, "data", "run", "state.json"))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, &st); err != nil {
		t.Fatal(err)
	}
	killed := false
	for _, p := range st.Processes {
		if p.Name == "control" {
			killed = syscall.Kill(p.Pid, syscall.SIGKILL) == nil
		}
	}
	if !killed {
		t.Fatalf("no control plane to kill in %s", b)
	}
	back := false
	for i := 0; !back; i++ {
		if a := d.do(t, "POST", "/support", `{"question":"still there?"}`); a.status != 200 {
			t.Fatalf("request %d without the control plane: %d %s", i, a.status, a.body)
		}
		_, back = d.sent(t)
	}
	if sent, _ := d.sent(t); sent != 0 {
		t.Errorf("after the restart %d resources were sent again, want 0", sent)
	}
	if after := d.run(t, "list", "-o", "yaml"); stripStatus(after) != stripStatus(before) {
		t.Errorf("configuration differs after the restart:\n%s\nbefore:\n%s", after, before)
	}
}

func stripStatus(yaml string) string {
	var out []string
	skip := false
	for line := range strings.Lines(yaml) {
		if !strings.HasPrefix(line, " ") && !strings.HasPrefix(line, "-") {
			skip = strings.HasPrefix(line, "status:")
		}
		if !skip {
			out = append(out, line)
		}
	}
	return strings.Join(out, "")
}

func downAndUp(t *testing.T, d *desk) {
	keep := d.file(t, "keep.yaml", "kind: Route\nname: keep\nrules:\n- matches: [{path: {prefix: /keep}}]\n  direct_response: {status: 200, body: kept}\n")
	d.run(t, "apply", "-f", keep)
	d.run(t, "down", "--data-dir", filepath.Join(d.dir, "data"))
	if out, _ := exec.CommandContext(t.Context(), "pgrep", "-f", d.dir).Output(); len(out) > 0 {
		list, _ := exec.CommandContext(t.Context(), "ps", "-o", "pid,args", "-p", strings.ReplaceAll(strings.TrimSpace(string(out)), "\n", ",")).Output()
		t.Errorf("processes are left after down:\n%s", list)
	}
	d.up(t)
	if a := d.do(t, "GET", "/keep", ""); a.body != "kept" {
		t.Errorf("after a second up: %d %q", a.status, a.body)
	}
}
