package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.opentelemetry.io/otel/trace/noop"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
	"github.com/penstock-gateway/penstock/internal/access/accesstest"
	"github.com/penstock-gateway/penstock/internal/access/connect"
	"github.com/penstock-gateway/penstock/internal/control"
	"github.com/penstock-gateway/penstock/internal/envoytest"
	"github.com/penstock-gateway/penstock/internal/pki"
	"github.com/penstock-gateway/penstock/store"
)

// proxyPlane is a served control plane with a gateway, edge, whose only route
// answers by itself.
type proxyPlane struct {
	t    *testing.T
	core *control.Core
	ca   *pki.CA
	addr control.Addresses
	log  *syncBuffer
	port int // of the gateway
	dir  string
	end  func() // ends the control plane
}

func startProxyPlane(t *testing.T, certLife time.Duration) *proxyPlane {
	t.Helper()
	p := &proxyPlane{t: t, log: &syncBuffer{}, port: envoytest.FreePort(t)}
	log := slog.New(slog.NewTextHandler(p.log, nil))
	dir := t.TempDir()
	p.dir = dir
	st, err := store.Open(t.Context(), store.Options{DataDir: filepath.Join(dir, "etcd"), SealKey: make([]byte, 32), Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { st.Close() })
	f := controlFlags{pkiDir: filepath.Join(dir, "pki"), xds: "127.0.0.1:0"}
	if p.ca, err = openAuthority(t.Context(), st, f.pkiDir, "", log); err != nil {
		t.Fatal(err)
	}
	tlsConfig, err := f.serverTLS(t.Context(), p.ca, log)
	if err != nil {
		t.Fatal(err)
	}
	p.core, err = control.New(t.Context(), control.Options{
		Store: st, Logger: log, Authenticate: authenticateProxy, CA: p.ca, ProxyCertLife: certLife,
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	served, ready := make(chan error, 1), make(chan struct{})
	go func() {
		served <- p.core.Serve(ctx, control.ServeOptions{
			Access: accesstest.Open(t, dir), API: "127.0.0.1:0", HTTP: "127.0.0.1:0", XDS: "127.0.0.1:0", TLS: tlsConfig, Logger: log,
			TracerProvider: noop.NewTracerProvider(),
			Ready: func(a control.Addresses) {
				p.addr = a
				t.Cleanup((&controlFlags{dataDir: dir}).announce(a, false, log))
				close(ready)
			},
		})
	}()
	select {
	case <-ready:
	case err := <-served:
		t.Fatal(err)
	}
	p.end = sync.OnceFunc(func() {
		cancel()
		if err := <-served; err != nil {
			t.Error(err)
		}
		p.core.Close()
	})
	t.Cleanup(p.end)
	p.answer("hello")
	return p
}

// answer makes the route answer with body.
func (p *proxyPlane) answer(body string) {
	p.t.Helper()
	p.serves(&pb.RouteRule{Action: &pb.RouteRule_DirectResponse{DirectResponse: &pb.DirectResponse{Status: 200, Body: body}}})
}

// serves makes the route have one rule, for all paths, and applies what else it needs.
func (p *proxyPlane) serves(rule *pb.RouteRule, more ...*pb.Resource) {
	p.t.Helper()
	rule.Matches = []*pb.RouteMatch{{Path: &pb.PathMatch{Match: &pb.PathMatch_Prefix{Prefix: "/"}}}}
	conn, err := grpc.NewClient(p.addr.API.String(), grpc.WithTransportCredentials(insecure.NewCredentials()), connect.Owner(p.dir))
	if err != nil {
		p.t.Fatal(err)
	}
	defer conn.Close()
	_, err = pb.NewConfigServiceClient(conn).Apply(p.t.Context(), &pb.ApplyRequest{
		Options: &pb.WriteOptions{Wait: pb.WaitMode_WAIT_MODE_NONE},
		Resources: append(more,
			&pb.Resource{Kind: &pb.Resource_Gateway{Gateway: &pb.Gateway{Name: "projects/default/gateways/edge", Listeners: []*pb.Listener{{Name: "http", Port: uint32(p.port)}}}}},
			&pb.Resource{Kind: &pb.Resource_Route{Route: &pb.Route{Name: "projects/default/routes/r", Rules: []*pb.RouteRule{rule}}}},
		),
	})
	if err != nil {
		p.t.Fatal(err)
	}
}

func (p *proxyPlane) run(args ...string) (string, error) {
	p.t.Helper()
	c := newRoot()
	var out bytes.Buffer
	c.SetOut(&out)
	c.SetErr(io.Discard)
	c.SetArgs(args)
	err := c.ExecuteContext(p.t.Context())
	return out.String(), err
}

func (p *proxyPlane) must(args ...string) string {
	p.t.Helper()
	out, err := p.run(args...)
	if err != nil {
		p.t.Fatalf("penstock %s: %v", strings.Join(args, " "), err)
	}
	return out
}

func (p *proxyPlane) api() string { return "--server=" + p.addr.API.String() }

func (p *proxyPlane) token(name string, more ...string) string {
	p.t.Helper()
	return strings.TrimSpace(p.must(append([]string{"proxy", "token", p.api(), "--gateway=edge", "--name=" + name}, more...)...))
}

// connected is the proxy's line of the status, nil when it is not connected.
func (p *proxyPlane) connected(name string) *pb.Proxy {
	for _, s := range p.core.Proxies() {
		if s.GetName() == name {
			return s
		}
	}
	return nil
}

// get asks the gateway.
func (p *proxyPlane) get() string {
	res, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/", p.port))
	if err != nil {
		return err.Error()
	}
	defer res.Body.Close()
	b, _ := io.ReadAll(res.Body)
	return string(b)
}

func (p *proxyPlane) until(what string, ok func() bool) {
	p.t.Helper()
	deadline := time.Now().Add(time.Minute)
	for !ok() {
		if time.Now().After(deadline) {
			p.t.Fatalf("waited a minute in vain for %s; log of the control plane:\n%s", what, p.log.String())
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// shortDir is a folder whose name leaves room for a socket's.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "proxy-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// adminOf asks an Envoy's admin interface.
func adminOf(t *testing.T, c *http.Client, path string) string {
	t.Helper()
	res, err := c.Get("http://envoy" + path)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func serialIn(t *testing.T, dir string) string {
	t.Helper()
	c, err := pki.ReadCertificate(filepath.Join(dir, proxyCert))
	if err != nil {
		t.Fatal(err)
	}
	return pki.Serial(c)
}

// TestProxyJoinEnvoy: a folder made by join, and nothing else, is all that Envoy
// needs to serve; a renewal keeps its stream; a revocation closes it, while Envoy
// serves on; and allow lets it in again.
func TestProxyJoinEnvoy(t *testing.T) {
	p := startProxyPlane(t, 0)
	dir := shortDir(t)
	out := p.must("proxy", "join", "--token="+p.token("edge-2"), "--name=edge-2", "--control="+p.addr.XDS.String(), "--dir="+dir)
	if want := "envoy -c " + filepath.Join(dir, "envoy.json"); !strings.Contains(out, want) || !strings.Contains(out, "proxy/default/edge/edge-2") {
		t.Errorf("join says %q, want %q in it", out, want)
	}
	if info, err := os.Stat(filepath.Join(dir, proxyKey)); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the key: %v, %v", info, err)
	}
	admin := envoytest.StartFile(t, filepath.Join(dir, "envoy.json"), filepath.Join(dir, "admin.sock"))
	p.until("Envoy to serve", func() bool { return p.get() == "hello" })
	before := p.connected("edge-2")
	if before.GetIdentity() != "spiffe://penstock.local/proxy/default/edge/edge-2" {
		t.Fatalf("connected as %v", before)
	}

	t.Run("renew", func(t *testing.T) {
		old := serialIn(t, dir)
		p.must("proxy", "renew", "--dir="+dir)
		next := serialIn(t, dir)
		if next == old {
			t.Fatal("the certificate is the same")
		}
		p.until("Envoy to take the new certificate", func() bool { return strings.Contains(adminOf(t, admin, "/certs"), next) })
		p.answer("after the renewal")
		p.until("a change to arrive", func() bool { return p.get() == "after the renewal" })
		if now := p.connected("edge-2"); !now.GetConnectTime().AsTime().Equal(before.GetConnectTime().AsTime()) {
			t.Errorf("the stream was dropped: connected at %v, then %v", before.GetConnectTime(), now.GetConnectTime())
		}
		// The old certificate is what the connection was made with. Without it Envoy
		// comes back with the new one.
		p.must("proxy", "revoke", p.api(), "--serial="+old, "--reason=test")
		p.until("Envoy to come back with the new certificate", func() bool {
			now := p.connected("edge-2")
			return now != nil && !now.GetConnectTime().AsTime().Equal(before.GetConnectTime().AsTime())
		})
		p.answer("on the new certificate")
		p.until("a change to arrive", func() bool { return p.get() == "on the new certificate" })
	})

	t.Run("revoke", func(t *testing.T) {
		if out := p.must("proxy", "revoke", p.api(), "edge-2", "-m", "test"); !strings.Contains(out, "proxy/default/edge/edge-2") {
			t.Errorf("revoke says %q", out)
		}
		p.until("the stream to be closed", func() bool { return p.connected("edge-2") == nil })
		p.answer("nobody hears this")
		p.until("a reconnect to be refused", func() bool { return strings.Contains(p.log.String(), "audit: refused a revoked certificate") })
		p.until("Envoy to notice", func() bool {
			return strings.Contains(adminOf(t, admin, "/stats?filter=control_plane.connected_state"), "connected_state: 0")
		})
		if got := p.get(); got != "on the new certificate" {
			t.Errorf("the gateway answers %q, want what it had", got)
		}
		if p.connected("edge-2") != nil {
			t.Error("a revoked proxy is connected")
		}
		_, err := p.run("proxy", "renew", "--dir="+dir)
		wantError(t, err, "revoked")
		if out := p.must("proxy", "revoked", p.api()); !strings.Contains(out, "edge/edge-2") || !strings.Contains(out, "certificate:") {
			t.Errorf("revoked says %q", out)
		}
		if out := p.must("proxy", "allow", p.api(), "edge-2"); !strings.HasPrefix(out, "allowed spiffe://") {
			t.Errorf("allow says %q", out)
		}
		p.until("the change to arrive", func() bool { return p.get() == "nobody hears this" })
	})
}

// TestProxyKeepFresh: the service beside Envoy renews before two thirds of the
// life are over.
func TestProxyKeepFresh(t *testing.T) {
	p := startProxyPlane(t, 6*time.Second)
	dir := shortDir(t)
	p.must("proxy", "join", "--token="+p.token("edge-2"), "--control="+p.addr.XDS.String(), "--dir="+dir)
	first := serialIn(t, dir)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	var log syncBuffer
	go func() { done <- keepProxyFresh(ctx, slog.New(slog.NewTextHandler(&log, nil)), dir, "") }()
	p.until("a renewal", func() bool { return serialIn(t, dir) != first })
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if log.String() == "" || strings.Contains(log.String(), "ERROR") {
		t.Errorf("log: %s", log.String())
	}
	// Nobody renewed in time. Times in certificates are whole seconds, so this one
	// is over at once.
	cert, key, err := p.ca.Issue(pki.Request{SPIFFE: pki.ProxyID("default", "edge", "edge-2"), TTL: time.Nanosecond})
	if err != nil {
		t.Fatal(err)
	}
	if err := pki.ReplaceSet(dir, map[string][]byte{proxyCert: cert, proxyKey: key}); err != nil {
		t.Fatal(err)
	}
	_, err = p.run("proxy", "renew", "--dir="+dir)
	wantError(t, err, "expired on", "penstock proxy token", "--replace")
	p.must("proxy", "join", "--token="+p.token("edge-2"), "--control="+p.addr.XDS.String(), "--dir="+dir, "--replace")
}

func TestProxyJoinErrors(t *testing.T) {
	p := startProxyPlane(t, 0)
	xds := p.addr.XDS.String()
	used := p.token("used")
	usedDir := shortDir(t)
	p.must("proxy", "join", "--token="+used, "--control="+xds, "--dir="+usedDir)
	short, made := p.token("short", "--ttl=1s"), time.Now()
	good := p.token("good")
	other, err := pki.OpenCA(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	foreign := other.NewJoinToken()
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	silent.Close()
	p.until("a token to expire", func() bool { return time.Since(made) > time.Second })
	notADir := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(notADir, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		token string
		more  []string
		want  []string
	}{
		"used before":     {used, nil, []string{"used before", "penstock proxy token"}},
		"expired":         {short, nil, []string{"expired at", "penstock proxy token"}},
		"another name":    {good, []string{"--name=edge-9"}, []string{`for the proxy "good"`, `"edge-9"`}},
		"wrong pin":       {foreign.String(), nil, []string{"not trusted", "certificate authority is not the one of the token"}},
		"damaged":         {good[:len(good)-1], nil, []string{"damaged", "copy it whole"}},
		"not a token":     {"hello", nil, []string{"not a join token", "psj1_"}},
		"no token":        {"", nil, []string{"no join token", "--token"}},
		"no file":         {"", []string{"--token-file=/nowhere"}, []string{"--token-file", "/nowhere"}},
		"nobody there":    {good, []string{"--control=" + silent.Addr().String()}, []string{"connection refused"}},
		"no port":         {good, []string{"--control=localhost"}, []string{"--control", "host:port"}},
		"bad xds address": {good, []string{"--xds-address=localhost"}, []string{"XDSAddress", "host:port"}},
		"long socket":     {good, []string{"--admin-socket=/" + strings.Repeat("a", 120)}, []string{"AdminSocket", "107"}},
		"no heap":         {good, []string{"--max-heap-bytes=1"}, []string{"MaxHeapBytes"}},
		"dir is a file":   {good, []string{"--dir=" + notADir}, []string{"--dir", notADir}},
		"dir is taken":    {good, []string{"--dir=" + usedDir}, []string{"holds the identity", "proxy/default/edge/used", "--replace"}},
	} {
		t.Run(name, func(t *testing.T) {
			dir := shortDir(t)
			args := []string{"proxy", "join", "--control=" + xds, "--dir=" + dir}
			if c.token != "" {
				args = append(args, "--token="+c.token)
			}
			_, err := p.run(append(args, c.more...)...)
			wantError(t, err, c.want...)
			if c.token != "" && strings.Contains(err.Error(), c.token[min(5, len(c.token)):]) && len(c.token) > 20 {
				t.Errorf("the error holds the token: %v", err)
			}
			if left, _ := filepath.Glob(filepath.Join(dir, "*")); len(left) > 0 {
				t.Errorf("left behind: %v", left)
			}
		})
	}
	// All those errors left the token good.
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte(good+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	p.must("proxy", "join", "--token-file="+file, "--control="+xds, "--dir="+shortDir(t))
}

func TestProxyErrors(t *testing.T) {
	p := startProxyPlane(t, 0)
	for name, c := range map[string]struct{ args, want []string }{
		"renew nothing":       {[]string{"renew", "--dir=" + shortDir(t)}, []string{"no proxy joined there", "penstock proxy join"}},
		"token for a Gateway": {[]string{"token", p.api(), "--gateway=nobody", "--name=a"}, []string{"projects/default/gateways/nobody", "create it first"}},
		"token for a Name":    {[]string{"token", p.api(), "--gateway=edge", "--name=A_b"}, []string{"name"}},
		"token for too long":  {[]string{"token", p.api(), "--gateway=edge", "--name=a", "--ttl=48h"}, []string{"ttl"}},
		"revoke whom":         {[]string{"revoke", p.api()}, []string{"say which proxy"}},
		"revoke both":         {[]string{"revoke", p.api(), "a", "--serial=1"}, []string{"not both"}},
		"revoke nobody":       {[]string{"revoke", p.api(), "nobody"}, []string{`no proxy "nobody"`, "--gateway"}},
		"revoke a runner":     {[]string{"revoke", p.api(), "spiffe://penstock.local/runner/a"}, []string{"not the id of a proxy"}},
		"revoke a bad serial": {[]string{"revoke", p.api(), "--serial=xyz"}, []string{"hexadecimal"}},
		"allow nobody":        {[]string{"allow", p.api(), "nobody"}, []string{`no proxy "nobody"`}},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := p.run(append([]string{"proxy"}, c.args...)...)
			wantError(t, err, c.want...)
		})
	}
}
