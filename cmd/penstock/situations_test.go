package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/penstock-gateway/penstock/internal/envoytest"
	"github.com/penstock-gateway/penstock/internal/toolbox"
)

// echo answers with the request that it got, its own name and how many it got; paths that
// end in /busy with 503.
func echo(t *testing.T, name string) (port string) {
	t.Helper()
	var count atomic.Int64
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		headers := map[string]string{}
		for k, v := range r.Header {
			headers[strings.ToLower(k)] = strings.Join(v, ", ")
		}
		if strings.HasSuffix(r.URL.Path, "/busy") {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
		_ = json.NewEncoder(w).Encode(map[string]any{"backend": name, "count": count.Add(1), "method": r.Method, "path": r.RequestURI, "headers": headers})
	}))
	t.Cleanup(s.Close)
	_, port, _ = net.SplitHostPort(s.Listener.Addr().String())
	return port
}

// situations copies testdata/situations, whose functions are where `up` looks for them.
func situations(t *testing.T) (dir string) {
	t.Helper()
	dir = t.TempDir()
	if err := os.CopyFS(dir, os.DirFS("testdata/situations")); err != nil {
		t.Fatal(err)
	}
	return dir
}

// TestSituations runs what other gateways' users reported (docs/trials/situations.md)
// against a running gateway: each check of each script says ok.
func TestSituations(t *testing.T) {
	dir := situations(t)
	in := newInstallation(t)
	in.up(t, "--no-jaeger", "--functions-root", filepath.Join(dir, "functions"))
	bin := installProgram(t, dir)
	env := append(os.Environ(), "PENSTOCK="+filepath.Join(bin, "penstock"), "PENSTOCK_DATA_DIR="+in.dataDir,
		"GATEWAY=http://"+in.flags.gateway, "ECHO_PORT="+echo(t, "echo"))
	scripts, err := filepath.Glob(filepath.Join(dir, "*.sh"))
	if err != nil || len(scripts) < 12 {
		t.Fatal(scripts, err)
	}
	for _, script := range scripts {
		name := filepath.Base(script)
		if name == "lib.sh" {
			continue
		}
		t.Run(strings.TrimSuffix(name, ".sh"), func(t *testing.T) {
			cmd := exec.CommandContext(t.Context(), "bash", "-c", ". ./lib.sh; . ./"+name)
			cmd.Dir, cmd.Env = dir, env
			out, err := cmd.CombinedOutput()
			checks := 0
			for line := range strings.Lines(string(out)) {
				if !strings.HasPrefix(line, "ok   ") {
					t.Errorf("%s", line)
				}
				checks++
			}
			if err != nil || checks == 0 {
				t.Errorf("%v, %d checks:\n%s", err, checks, out)
			}
			t.Logf("%s", out)
		})
	}
}

// TestSituationsPage: the page has a row for each script and each input of Istio, and for
// no other.
func TestSituationsPage(t *testing.T) {
	root, err := toolbox.RepoRoot()
	if err != nil {
		t.Fatal(err)
	}
	page, err := os.ReadFile(filepath.Join(root, "docs", "trials", "situations.md"))
	if err != nil {
		t.Fatal(err)
	}
	rows := map[string]bool{}
	for line := range strings.Lines(string(page)) {
		if rest, ok := strings.CutPrefix(line, "| `"); ok {
			name, _, _ := strings.Cut(rest, "`")
			rows[name] = true
		}
	}
	for _, pattern := range []string{"*.sh", "istio/*.yaml"} {
		files, err := filepath.Glob(filepath.Join("testdata/situations", pattern))
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			name := filepath.Base(f)
			if name != "lib.sh" && !rows[name] {
				t.Errorf("the page has no row for %s", name)
			}
			delete(rows, name)
		}
	}
	delete(rows, "slow-upload") // by hand: it takes minutes
	for name := range rows {
		t.Errorf("there is no %s", name)
	}
}

// istioGateway gives the inputs of Istio ports of this test, applies the gateway, and
// returns its address.
func istioGateway(t *testing.T, in *installation, dir string) (address string) {
	t.Helper()
	port := fmt.Sprint(envoytest.FreePort(t))
	address = "127.0.0.1:" + port
	ports := []string{"9100", port}
	for i := 1; i <= 4; i++ {
		ports = append(ports, fmt.Sprint(9200+i), echo(t, fmt.Sprint("92", "0", i)))
	}
	files, err := filepath.Glob(filepath.Join(dir, "istio", "*.yaml"))
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(f, []byte(strings.NewReplacer(ports...).Replace(string(b))), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	in.must(t, "apply", "-f", filepath.Join(dir, "istio", "base.yaml"))
	await(t, func() error {
		c, err := net.Dial("tcp", address)
		if err == nil {
			c.Close()
		}
		return err
	})
	return address
}

// must runs a command as the owner.
func (in *installation) must(t *testing.T, args ...string) string {
	t.Helper()
	out, err := in.run(t, append(args, "--data-dir", in.dataDir)...)
	if err != nil {
		t.Fatalf("penstock %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

// TestIstioSituations applies small inputs of Istio, each alone after the base, and
// sends the requests that they are about.
func TestIstioSituations(t *testing.T) {
	dir := situations(t)
	in := newInstallation(t)
	in.up(t, "--no-jaeger")
	address := istioGateway(t, in, dir)
	apply := func(name string) { in.must(t, "apply", "-f", filepath.Join(dir, "istio", name)) }
	type want struct{ host, path, header, got string }
	for _, test := range []struct {
		file  string
		wants []want
	}{
		{"01-subsets.yaml", nil},
		{"01-weights-alone.yaml", []want{{"canary", "/", "", `"backend":"920`}}},
		{"02-port-alone.yaml", []want{{"port", "/", "", `"backend":"9201"`}}},
		{"03-empty-prefix.yaml", []want{{"empty", "/x", "", `"backend":"9201"`}}},
		{"04-redirect-https.yaml", []want{{"r", "/x", "", "301 https://r.example.com/x"}}},
		{"06-retry-words.yaml", []want{{"words", "/codes", "", `"backend":"9201"`}, {"words", "/word", "", `"backend":"9201"`}}},
		{"07-mesh-mtls.yaml", nil},
		{"08-two-ports.yaml", []want{{"ports", "/admin", "", `"backend":"9204"`}, {"ports", "/", "", `"backend":"9203"`}}},
		{"09-slashes.yaml", []want{
			{"p", "/a%2Fb", "", `"path":"/a%2Fb"`}, {"p", "/a;v=1", "", `"path":"/a;v=1"`}, {"p", "//a", "", `"path":"//a"`}, {"p", "/a", "my_id", `"my_id":"1"`},
		}},
	} {
		apply(test.file)
		for _, w := range test.wants {
			if got := asked(t, address, w.host+".example.com", w.path, w.header); !strings.Contains(got, w.got) {
				t.Errorf("%s: %s %s: %s, want %s", test.file, w.host, w.path, got, w.got)
			}
		}
	}
	for _, path := range []string{"/codes/busy", "/word/busy"} {
		if first, second := requestsAt(t, address, path), requestsAt(t, address, path); second-first != 3 {
			t.Errorf("%s: %d tries, want the first and attempts: 2", path, second-first)
		}
	}
	// A Backend alone, without the rule that made its subsets, would leave a route without them.
	if out, err := in.run(t, "apply", "-f", filepath.Join(dir, "istio", "base.yaml"), "--data-dir", in.dataDir); err == nil || !strings.Contains(out, `backends/c has no subset "one"`) {
		t.Errorf("the base again: %v\n%s", err, out)
	}
	// The everyday step of a canary: other weights, the file alone.
	file := filepath.Join(dir, "istio", "01-weights-alone.yaml")
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(strings.NewReplacer("weight: 90", "weight: 0", "weight: 10", "weight: 100").Replace(string(b))), 0o600); err != nil {
		t.Fatal(err)
	}
	apply("01-weights-alone.yaml")
	for range 10 {
		if got := asked(t, address, "canary.example.com", "/", ""); !strings.Contains(got, `"backend":"9204"`) {
			t.Errorf("with all weight on v2: %s", got)
		}
	}
}

// requestsAt is how many requests the backend of words.example.com had got when it answered one.
func requestsAt(t *testing.T, address, path string) (n int) {
	t.Helper()
	status, body, _ := strings.Cut(asked(t, address, "words.example.com", path, ""), " ")
	var got struct{ Count int }
	if err := json.Unmarshal([]byte(body), &got); err != nil || status != "503" {
		t.Fatalf("%s: %s %s: %v", path, status, body, err)
	}
	return got.Count
}

// asked makes a request, with the path as it is, and returns what came: the body, or the
// status and where it leads to.
func asked(t *testing.T, address, host, path, header string) string {
	t.Helper()
	c, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if header != "" {
		header += ": 1\r\n"
	}
	fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: %s\r\n%sConnection: close\r\n\r\n", path, host, header)
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Sprintf("%d %s%s", resp.StatusCode, resp.Header.Get("Location"), body)
	}
	return string(body)
}
