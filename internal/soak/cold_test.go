package soak

import (
	"crypto/elliptic"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/penstock-gateway/penstock/internal/envoytest"
	"github.com/penstock-gateway/penstock/xds/keeper"
)

// withKeeper has a keeper between the proxy and the control plane.
func withKeeper(p *plane) { p.kept = true }

// cold is what is configured for the tests of starts without a control plane.
type cold struct {
	*world
	clear, sealed string
}

func newCold(t *testing.T) *cold {
	t.Helper()
	w := &world{plane: newPlane(t, withKeeper), ups: newUpstreams(t, 2)}
	for range 2 {
		w.keys = append(w.keys, material{t}.ec(elliptic.P256()))
	}
	w.ports = []int{envoytest.FreePort(t), envoytest.FreePort(t), envoytest.FreePort(t)}
	c := &cold{world: w}
	c.clear, c.sealed = net.JoinHostPort("127.0.0.1", strconv.Itoa(w.ports[1])), net.JoinHostPort("127.0.0.1", strconv.Itoa(w.ports[2]))
	w.apply(t, strings.Join([]string{
		w.gateway("wide", "{}"), w.certificate(t), w.keySet(t, 0), w.backendYAML("one", "", 0),
		c.route("open", ""), c.route("guarded", jwtPolicy(0, "")),
		c.route("limited", "rate_limit: {limits: [{name: few, requests: 2, window: 3600s}]}"),
	}, "\n---\n"))
	w.envoy.WaitLive(t)
	return c
}

func (c *cold) route(name, policies string) string {
	return routeYAML(name, "wide", "'*'", []string{"/" + name}, "one", policies)
}

// get is the status of an answer, or 0 when there is none.
func (c *cold) get(t *testing.T, path, token string) int {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+c.clear+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	tr := transport(false)
	defer tr.CloseIdleConnections()
	res, err := tr.RoundTrip(req)
	if err != nil {
		return 0
	}
	defer res.Body.Close()
	_, _ = io.Copy(io.Discard, res.Body)
	return res.StatusCode
}

// want checks what the gateway answers, which is the same wherever its configuration is from.
func (c *cold) want(t *testing.T, limited int) {
	t.Helper()
	for _, q := range []struct {
		path, token string
		status      int
	}{
		{"/open", "", 200}, {"/guarded", "", 401}, {"/guarded", c.token(t, 0), 200}, {"/guarded", c.token(t, 1), 401},
		{"/limited", "", limited}, {"/none", "", 404},
	} {
		if got := c.get(t, q.path, q.token); got != q.status {
			t.Errorf("GET %s (token %t): got %d, want %d", q.path, q.token != "", got, q.status)
		}
	}
	conn, err := tls.Dial("tcp", c.sealed, &tls.Config{ServerName: "localhost", InsecureSkipVerify: true})
	if err != nil {
		t.Errorf("TLS: %v", err)
		return
	}
	conn.Close()
}

// reboot ends the proxy and its keeper, and starts both again.
func (c *cold) reboot(t *testing.T) {
	t.Helper()
	c.envoy.Kill()
	c.endKeeper()
	c.startKeeper(t)
	c.startEnvoy(t)
}

// TestColdStart ends the control plane, the proxy and its keeper. A proxy that starts then
// serves what it has acknowledged, with everything that guards it, and goes over to the
// control plane when that is back: no stream is cut and nothing is sent again.
func TestColdStart(t *testing.T) {
	c := newCold(t)
	c.want(t, 200)
	// What was changed and removed since stays so.
	c.apply(t, c.route("late", "")+"---\n"+c.route("gone", ""))
	c.apply(t, c.route("open", jwtPolicy(0, "")), "routes/gone")
	c.apply(t, c.route("open", ""))
	c.down(t)

	c.reboot(t)
	c.envoy.WaitLive(t)
	c.want(t, 200) // the second of two
	c.want(t, 429)
	if got := c.get(t, "/late", ""); got != 200 {
		t.Errorf("what was applied last: got %d", got)
	}
	if got := c.get(t, "/gone", ""); got != 404 {
		t.Errorf("what was deleted: got %d, want 404", got)
	}
	if s := c.keeper.Status(); s.Source != keeper.Disk || s.Contact.IsZero() || !strings.Contains(s.Problem, "connection refused") {
		t.Errorf("status is %+v", s)
	}

	socket := openWebSocket(t, c.clear, "any.test", "/open")
	c.up(t)
	waitFor(t, "the proxy to come back", func() bool {
		p := c.proxy(t)
		return p.GetState() == "serving" && p.GetRevision() == c.core.Snapshot().Revision()
	})
	socket.ping(t)
	if n := c.proxy(t).GetResourcesSent(); n != 0 {
		t.Errorf("%d resources were sent again", n)
	}
	waitFor(t, "the keeper to know", func() bool { return c.keeper.Status().Source == keeper.ControlPlane })
	c.apply(t, c.route("open", "timeout: {request: 4s}")+"---\n"+c.route("newest", ""), "routes/late")
	socket.ping(t)
	c.want(t, 429)
	if got := [2]int{c.get(t, "/newest", ""), c.get(t, "/late", "")}; got != [2]int{200, 404} {
		t.Errorf("after a change: got %v", got)
	}
}

// TestColdRefused alters what is kept: none of it is served then, and the keeper says why.
func TestColdRefused(t *testing.T) {
	c := newCold(t)
	c.down(t)
	c.envoy.Kill()
	c.endKeeper()
	file := filepath.Join(c.dir, "keep", "configuration.kept")
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)/2] ^= 1
	if err := os.WriteFile(file, b, 0o600); err != nil {
		t.Fatal(err)
	}
	c.startKeeper(t)
	c.startEnvoy(t)
	waitFor(t, "the keeper to say so", func() bool { return strings.Contains(c.keeper.Status().Problem, "was altered") })
	c.envoy.WaitLive(t) // it starts without listeners
	if got := c.get(t, "/open", ""); got != 0 {
		t.Errorf("GET /open: got %d from an altered configuration", got)
	}
	c.up(t)
	waitFor(t, "the control plane to mend it", func() bool { return c.get(t, "/open", "") == 200 })
	// What the proxy acknowledges is kept before the control plane hears of it. A proxy that
	// was given a part would wait for the rest.
	waitFor(t, "the proxy to have acknowledged all", func() bool {
		p := c.proxy(t)
		return p.GetState() == "serving" && p.GetRevision() == c.core.Snapshot().Revision()
	})
	if err := c.keeper.Usable(); err != nil {
		t.Errorf("what is kept is not good again: %v", err)
	}
	c.down(t)
	c.reboot(t)
	c.envoy.WaitLive(t)
	c.want(t, 200)
}

// TestColdKeeper ends the keeper beside a proxy that runs, with and without a control
// plane: the proxy serves on, and what it gets afterwards is kept, too.
func TestColdKeeper(t *testing.T) {
	c := newCold(t)
	for i := range 3 {
		c.endKeeper()
		if i == 2 {
			// Nothing is kept any more, but the proxy has it.
			if err := os.Remove(filepath.Join(c.dir, "keep", "configuration.kept")); err != nil {
				t.Fatal(err)
			}
		}
		waitFor(t, "the stream to end", func() bool { return c.proxy(t) == nil })
		c.startKeeper(t)
		waitFor(t, "the proxy to come back", func() bool { return c.proxy(t) != nil })
		c.apply(t, c.route(fmt.Sprint("more-", i), ""))
		waitFor(t, "all to be kept", func() bool { return c.keeper.Usable() == nil })
	}
	c.down(t)
	c.reboot(t)
	c.envoy.WaitLive(t)
	c.want(t, 200)
	for i := range 3 {
		if got := c.get(t, fmt.Sprint("/more-", i), ""); got != 200 {
			t.Errorf("/more-%d: got %d", i, got)
		}
	}
}
