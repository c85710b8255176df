package replicas

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
	"github.com/penstock-gateway/penstock/internal/envoytest"
	"github.com/penstock-gateway/penstock/internal/pki"
)

// site is the cluster with two proxies, a runner, and traffic.
type site struct {
	*cluster
	ports [2]int // of the gateways "one" and "two", with a proxy each
}

var proxyNames = [2]string{"p1", "p2"}

func (s *site) get(i int, path string) (string, error) {
	req, err := http.NewRequest(http.MethodGet, fmt.Sprintf("http://127.0.0.1:%d%s", s.ports[i], path), nil)
	if err != nil {
		return "", err
	}
	res, err := client.Do(req)
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if res.StatusCode != http.StatusOK {
		err = errors.Join(err, fmt.Errorf("status %d: %s", res.StatusCode, b))
	}
	return string(b), err
}

var client = &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{MaxIdleConnsPerHost: 8}}

func page(body string) string {
	return fmt.Sprintf(`
kind: Route
name: page
rules:
- name: page
  matches: [{path: {prefix: /}}]
  direct_response: {status: 200, body: %q}
`, body)
}

// served fails unless both proxies answer with body, at once.
func (s *site) served(t *testing.T, body string) {
	t.Helper()
	for i := range s.ports {
		if got, err := s.get(i, "/"); err != nil || got != body {
			t.Errorf("%s answers %q (%v), want %q", proxyNames[i], got, err, body)
		}
	}
}

// settled fails unless every live replica tells that both proxies are connected
// and serve the head.
func (s *site) settled(t *testing.T) {
	t.Helper()
	for _, r := range s.without() {
		until(t, "replica "+r.name+" to tell of both proxies", func() bool {
			st, err := r.proxy.GetStatus(t.Context(), &pb.GetStatusRequest{})
			if err != nil {
				t.Fatal(err)
			}
			p := r.proxies(t)
			return slices.Equal(st.GetRunners(), []string{"r1"}) && st.GetServing().GetServing() == 2 && st.GetServing().GetTotal() == 2 && len(p) == 2 &&
				p["p1"].GetState() == "serving" && p["p2"].GetState() == "serving"
		})
	}
}

const server = `import http.server, os
class H(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        self.send_response(200)
        self.send_header("content-length", "8")
        self.end_headers()
        self.wfile.write(b"function")
    def log_message(self, *a): pass
http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), H).serve_forever()
`

func newSite(t *testing.T) *site {
	t.Helper()
	s := &site{cluster: newCluster(t), ports: [2]int{envoytest.FreePort(t), envoytest.FreePort(t)}}
	a := s.replicas[0]
	s.start(t, a)
	var yaml strings.Builder
	for i, gw := range []string{"one", "two"} {
		fmt.Fprintf(&yaml, "kind: Gateway\nname: %s\nlisteners: [{name: http, address: 127.0.0.1, port: %d}]\n---\n", gw, s.ports[i])
	}
	yaml.WriteString(`
kind: Function
name: f
server: {command: [python3, server.py]}
source: f
---
kind: Route
name: f
rules:
- name: f
  matches: [{path: {prefix: /f}}]
  forward: {backends: [{backend: functions/f}]}
---`)
	if _, err := a.apply(t.Context(), t, yaml.String()+page("0")); err != nil {
		t.Fatal(err)
	}
	// The one replica that is there is found among those that are not.
	s.envoy(t, "one", "p1")
	s.start(t, s.replicas[1:]...)
	s.envoy(t, "two", "p2")

	source := filepath.Join(s.dir, "functions", "f")
	if err := os.MkdirAll(source, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(source, "server.py"), []byte(server), 0o600); err != nil {
		t.Fatal(err)
	}
	args := []string{"runner", "--pki-dir", s.pki(), "--name", "r1", "--root", filepath.Dir(source), "--cache-dir", filepath.Join(s.dir, "cache")}
	for _, x := range s.addresses() {
		args = append(args, "--control", x)
	}
	if _, _, err := s.ca.EnsureFiles(s.pki(), "runner-r1", pki.Request{SPIFFE: "spiffe://" + pki.TrustDomain + "/runner/r1"}); err != nil {
		t.Fatal(err)
	}
	spawn(t, "runner", args...)
	return s
}

// traffic asks both proxies without a pause until stop, which reports failures.
func (s *site) traffic(t *testing.T, path string) (stop func()) {
	t.Helper()
	var wg sync.WaitGroup
	var n, failed atomic.Int64
	var first atomic.Pointer[error]
	ctx, cancel := context.WithCancel(t.Context())
	for i := range s.ports {
		wg.Go(func() {
			tick := time.NewTicker(2 * time.Millisecond)
			defer tick.Stop()
			for {
				select {
				case <-ctx.Done():
					return
				case <-tick.C:
				}
				n.Add(1)
				if _, err := s.get(i, path); err != nil {
					failed.Add(1)
					first.CompareAndSwap(nil, &err)
				}
			}
		})
	}
	return func() {
		t.Helper()
		cancel()
		wg.Wait()
		if failed.Load() > 0 {
			t.Errorf("%d of %d requests to %s failed; the first: %v", failed.Load(), n.Load(), path, *first.Load())
		}
		t.Logf("%d requests to %s, %d failed", n.Load(), path, failed.Load())
	}
}

// TestReplicas is one story, as each part needs the state that the one before
// leaves.
func TestReplicas(t *testing.T) {
	s := newSite(t)
	for i := range s.ports {
		until(t, "the function to answer through "+proxyNames[i], func() bool {
			body, err := s.get(i, "/f")
			return err == nil && body == "function"
		})
	}
	s.settled(t)
	stopPage, stopFunction := s.traffic(t, "/"), s.traffic(t, "/f")
	t.Run("write at one, served by all", s.testWrite)
	t.Run("kill", s.testKill)
	t.Run("cut off from etcd", s.testCut)
	stopPage()
	stopFunction()
}

// testWrite: when a write returns, the proxies of all other replicas serve it.
func (s *site) testWrite(t *testing.T) {
	writer := s.without(s.home(t, "proxy", "p1"), s.home(t, "proxy", "p2"))[0]
	var slowest, sum time.Duration
	const rounds = 20
	for i := range rounds {
		body := fmt.Sprintf("written %d", i)
		began := time.Now()
		rep, err := writer.apply(t.Context(), t, page(body))
		if err != nil {
			t.Fatal(err)
		}
		took := time.Since(began)
		slowest, sum = max(slowest, took), sum+took
		if !rep.GetComplete() || rep.GetServing() != 2 || rep.GetTotal() != 2 {
			t.Errorf("round %d: %v, want 2 of 2", i, rep)
		}
		s.served(t, body)
	}
	t.Logf("write at a replica without proxies, served by those of others: mean %s, slowest %s", sum/rounds, slowest)
	s.settled(t)
}

// testKill: the proxy and the runner of a replica that is killed move, and
// nothing is sent again.
func (s *site) testKill(t *testing.T) {
	victim := s.home(t, "proxy", "p1")
	killed := time.Now()
	victim.kill(t)
	home := s.home(t, "proxy", "p1")
	t.Logf("p1 moved from %s to %s in %s", victim.name, home.name, time.Since(killed))
	runner := s.home(t, "runner", "r1")
	t.Logf("the runner is at %s after %s", runner.name, time.Since(killed))
	s.settled(t)
	for _, r := range s.without() {
		// Until its new replica has told of it, p1 is known from the old one.
		until(t, "replica "+r.name+" to know that p1 has moved", func() bool {
			p := r.proxies(t)["p1"]
			return p.GetConnectTime().AsTime().After(killed) && p.GetState() != "pending"
		})
		if p := r.proxies(t)["p1"]; p.GetResourcesSent() != 0 || p.GetState() != "serving" {
			t.Errorf("replica %s says that p1, after it moved, was sent %d resources and is %s, want 0 and serving", r.name, p.GetResourcesSent(), p.GetState())
		}
	}
	for _, r := range s.without() {
		body := "after the kill by " + r.name
		rep, err := r.apply(t.Context(), t, page(body))
		if err != nil || rep.GetServing() != 2 || rep.GetTotal() != 2 {
			t.Fatalf("write at %s: %v, %v, want 2 of 2", r.name, rep, err)
		}
		s.served(t, body)
	}
	s.start(t, victim)
	s.settled(t)

	// A write right after a kill waits for the proxy that is on its way.
	victim = s.home(t, "proxy", "p1")
	writer := s.without(victim)[0]
	victim.kill(t)
	killed = time.Now()
	rep, err := writer.apply(t.Context(), t, page("right after a kill"))
	if err != nil || rep.GetServing() != 2 || rep.GetTotal() != 2 {
		t.Fatalf("write right after a kill: %v, %v, want 2 of 2", rep, err)
	}
	t.Logf("a write right after a kill took %s", time.Since(killed))
	s.served(t, "right after a kill")
	s.start(t, victim)
	s.settled(t)
}

// testCut: a replica that does not reach etcd serves its proxies what it has,
// refuses writes, holds up no others, and follows when it is back.
func (s *site) testCut(t *testing.T) {
	home := s.home(t, "proxy", "p1")
	other := s.without(home, s.home(t, "proxy", "p2"))[0]
	home.wire.cut()
	defer home.wire.mend()

	refused := make(chan error, 1)
	began := time.Now()
	go func() {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		_, err := home.config.Apply(ctx, &pb.ApplyRequest{Resources: resources(t, page("by the one that is cut off"))})
		t.Logf("the write at the replica that is cut off failed after %s: %v", time.Since(began), err)
		refused <- err
	}()
	rep, err := other.apply(t.Context(), t, page("meanwhile"))
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("the write at another returned after %s: %v", time.Since(began), rep)
	said := false
	for _, p := range rep.GetProblems() {
		said = said || p.GetProxy() == "p1" && p.GetState() == "silent" && strings.Contains(p.GetDetail(), "has not been heard of")
	}
	if !rep.GetComplete() || !said {
		t.Errorf("%v, want that p1 is silent, and to be done", rep)
	}
	if p := home.proxies(t)["p1"]; p.GetState() != "serving" {
		t.Errorf("the replica that is cut off says that p1 is %q, want serving", p.GetState())
	}
	if got, err := s.get(0, "/"); err != nil || got == "meanwhile" || got == "by the one that is cut off" {
		t.Errorf("p1 answers %q (%v), want what was there before the cut", got, err)
	}
	if err := <-refused; status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "did not answer") {
		t.Errorf("a write at the replica that is cut off: %v, want UNAVAILABLE that says that etcd did not answer", err)
	}
	mended := time.Now()
	home.wire.mend()
	until(t, "the replica to follow", func() bool {
		got, err := s.get(0, "/")
		return err == nil && got == "meanwhile" // the other write came second, to a head that had moved
	})
	t.Logf("p1 serves what was written meanwhile %s after the cut was mended", time.Since(mended))
	s.settled(t)
	rep, err = home.apply(t.Context(), t, page("back"))
	if err != nil || rep.GetServing() != 2 || rep.GetTotal() != 2 {
		t.Errorf("a write after the cut: %v, %v, want 2 of 2", rep, err)
	}
	s.served(t, "back")
}
