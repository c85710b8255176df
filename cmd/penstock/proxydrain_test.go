package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// held is a backend whose requests wait.
type held struct {
	begun, release chan struct{}
	backend        *pb.Resource
}

func startHeld(t *testing.T) *held {
	t.Helper()
	h := &held{begun: make(chan struct{}, 10), release: make(chan struct{})}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/slow" {
			return
		}
		h.begun <- struct{}{}
		select {
		case <-h.release:
		case <-r.Context().Done():
		}
		fmt.Fprint(w, "whole")
	}))
	t.Cleanup(s.Close)
	_, port, err := net.SplitHostPort(s.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.Atoi(port)
	if err != nil {
		t.Fatal(err)
	}
	h.backend = &pb.Resource{Kind: &pb.Resource_Backend{Backend: &pb.Backend{
		Name: "projects/default/backends/b", Target: &pb.Backend_Static{Static: &pb.StaticTarget{Endpoints: []*pb.Endpoint{{Address: "127.0.0.1", Port: uint32(n)}}}},
	}}}
	return h
}

// answer is what a request to the gateway got.
type answer struct {
	body string
	err  error
}

// drained starts a proxy with a request under way, and tells it to end. ready asks
// Envoy's admin interface, and wait returns what the process wrote and ended with.
func drained(t *testing.T, p *proxyPlane, h *held, flags ...string) (got chan answer, ready func() (int, error), wait func() (string, error)) {
	t.Helper()
	dir := shortDir(t)
	p.must("proxy", "join", "--token="+p.token(filepath.Base(dir)), "--control="+p.addr.XDS.String(), "--dir="+dir)
	p.serves(&pb.RouteRule{Action: &pb.RouteRule_Forward{Forward: &pb.Forward{Backends: []*pb.WeightedBackend{{Backend: "backends/b"}}}}}, h.backend)
	cmd := penstock(context.Background(), append([]string{"proxy", "run", "--dir=" + dir, "--concurrency=1"}, flags...)...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	p.until("Envoy to serve", func() bool {
		res, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/", p.port))
		if err == nil {
			res.Body.Close()
		}
		return err == nil && res.StatusCode == http.StatusOK
	})
	got = make(chan answer, 1)
	go func() {
		res, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/slow", p.port))
		if err != nil {
			got <- answer{"", err}
			return
		}
		defer res.Body.Close()
		b, err := io.ReadAll(res.Body)
		got <- answer{res.Status + " " + string(b), err}
	}()
	<-h.begun
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	client := &http.Client{Transport: &http.Transport{DialContext: unixDialer(filepath.Join(dir, "admin.sock")), DisableKeepAlives: true}}
	ready = func() (int, error) {
		res, err := client.Get("http://envoy/ready")
		if err != nil {
			return 0, err
		}
		return res.StatusCode, res.Body.Close()
	}
	return got, ready, func() (string, error) {
		err := <-ended // and with it the last of what it writes
		return out.String(), err
	}
}

// refused reports whether nobody listens on the port of the gateway.
func (p *proxyPlane) refused() bool { return strings.Contains(p.get(), "connection refused") }

// TestDrain: a proxy that is told to end says that it is not ready, takes no connections any
// more, and ends when the request under way has its answer.
func TestDrain(t *testing.T) {
	p := startProxyPlane(t, 0)
	h := startHeld(t)
	got, ready, wait := drained(t, p, h, "--drain-time=1s", "--stop-timeout=10m")
	p.until("the proxy to be not ready", func() bool {
		code, err := ready()
		return err == nil && code == http.StatusServiceUnavailable
	})
	p.until("the listener to be closed", p.refused)
	select {
	case a := <-got:
		t.Fatalf("the request was cut off: %+v", a)
	default:
	}
	close(h.release)
	if a := <-got; a.err != nil || a.body != "200 OK whole" {
		t.Errorf("the request under way got %+v", a)
	}
	out, err := wait()
	if err != nil || strings.Contains(out, "cut off") {
		t.Errorf("%v:\n%s", err, out)
	}
}

// TestDrainBound: a request that does not end keeps the proxy from ending for --stop-timeout
// only.
func TestDrainBound(t *testing.T) {
	p := startProxyPlane(t, 0)
	got, _, wait := drained(t, p, startHeld(t), "--drain-time=0s", "--stop-timeout=1s")
	out, err := wait()
	if err != nil || !strings.Contains(out, "they are cut off (--stop-timeout)") {
		t.Errorf("%v:\n%s", err, out)
	}
	if a := <-got; a.err == nil {
		t.Errorf("the request that does not end got %+v", a)
	}
}

// TestDrainFlags goes through what cannot be meant.
func TestDrainFlags(t *testing.T) {
	for flags, want := range map[string]string{
		"--drain-time=-1s":                   "--drain-time -1s: it must not be negative",
		"--stop-timeout=1s":                  "--stop-timeout 1s: it must be at least --drain-time, 5s",
		"--drain-time=30s --stop-timeout=9s": "--stop-timeout 9s: it must be at least --drain-time, 30s",
	} {
		p := &proxyPlane{t: t}
		_, err := p.run(append([]string{"proxy", "run", "--dir=" + t.TempDir()}, strings.Fields(flags)...)...)
		wantError(t, err, want)
	}
}

// TestListenerChange: after a change of a listener, requests under way have listenerDrain to end,
// however short --drain-time is, and connections from before come to the listener as it is after
// one more response.
func TestListenerChange(t *testing.T) {
	p := startProxyPlane(t, 0)
	h := startHeld(t)
	dir := shortDir(t)
	p.must("proxy", "join", "--token="+p.token(filepath.Base(dir)), "--control="+p.addr.XDS.String(), "--dir="+dir)
	p.serves(&pb.RouteRule{Action: &pb.RouteRule_Forward{Forward: &pb.Forward{Backends: []*pb.WeightedBackend{{Backend: "backends/b"}}}}}, h.backend)
	startProxyRun(t, dir)
	url := fmt.Sprintf("http://127.0.0.1:%d/", p.port)
	status := func(path string, client *http.Client) (code int, closes bool) {
		t.Helper()
		res, err := client.Get(url + path)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		if _, err := io.Copy(io.Discard, res.Body); err != nil {
			t.Fatal(err)
		}
		return res.StatusCode, res.Close
	}
	p.until("Envoy to serve", func() bool { return p.get() == "" })
	kept := &http.Client{Transport: &http.Transport{}}
	defer kept.CloseIdleConnections()
	if code, closes := status("a;b", kept); code != http.StatusBadRequest || closes {
		t.Fatalf("before the change: %d, closes %t", code, closes)
	}
	slow := make(chan answer, 1)
	once := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}} // what is cut off is not sent again
	go func() {
		res, err := once.Get(url + "slow")
		if err != nil {
			slow <- answer{"", err}
			return
		}
		defer res.Body.Close()
		b, err := io.ReadAll(res.Body)
		slow <- answer{string(b), err}
	}()
	<-h.begun

	file := filepath.Join(dir, "gateway.yaml")
	text := fmt.Sprintf("kind: Gateway\nname: edge\nlisteners: [{name: http, port: %d, edge: {semicolons: KEEP}}]\n", p.port)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	p.must("apply", p.api(), "-f", file)
	if code, _ := status("a;b", once); code != http.StatusOK {
		t.Errorf("a new connection: %d", code)
	}
	if _, closes := status("a;b", kept); !closes {
		t.Error("a connection from before stays open at the former listener")
	}
	if code, _ := status("a;b", kept); code != http.StatusOK {
		t.Errorf("the connection after it: %d", code)
	}
	close(h.release)
	if a := <-slow; a.err != nil || a.body != "whole" {
		t.Errorf("the request under way got %+v", a)
	}

	var info strings.Builder
	admin := &http.Client{Transport: &http.Transport{DialContext: unixDialer(filepath.Join(dir, "admin.sock")), DisableKeepAlives: true}}
	if err := envoyAdmin(t.Context(), admin, http.MethodGet, "/server_info", &info); err != nil {
		t.Fatal(err)
	}
	if want := fmt.Sprintf(`"drain_time": "%ds"`, int(listenerDrain.Seconds())); !strings.Contains(info.String(), want) {
		t.Errorf("Envoy does not say %s:\n%s", want, &info)
	}
}
