package bootstrap_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"

	"github.com/penstock-gateway/penstock/internal/envoytest"
	"github.com/penstock-gateway/penstock/internal/ports/porttest"
	"github.com/penstock-gateway/penstock/xds/bootstrap"
)

// authority is a throw-away CA whose files lie in dir.
type authority struct {
	dir  string
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test CA"},
		NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	a := &authority{dir: t.TempDir(), key: key, cert: cert}
	a.write(t, "ca.crt", "CERTIFICATE", der)
	return a
}

// write replaces a file by a rename, which is what Envoy watches for.
func (a *authority) write(t *testing.T, name, kind string, der []byte) {
	t.Helper()
	tmp := filepath.Join(a.dir, "."+name)
	if err := os.WriteFile(tmp, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(tmp, filepath.Join(a.dir, name)); err != nil {
		t.Fatal(err)
	}
}

func (a *authority) issue(t *testing.T, base, spiffe string) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	id, err := url.Parse(spiffe)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour),
		URIs: []*url.URL{id}, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}, a.cert, key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	a.write(t, base+".key", "PRIVATE KEY", keyDER)
	a.write(t, base+".crt", "CERTIFICATE", der)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// config is a bootstrap for a proxy with the identity …/proxy/default/-/one.
func (a *authority) config(t *testing.T, address string) bootstrap.Config {
	a.issue(t, "proxy", "spiffe://penstock.local/proxy/default/-/one")
	return bootstrap.Config{
		NodeID: "one", XDSAddresses: []string{address}, SDSDir: a.dir, FastTraces: true,
		CAFile: filepath.Join(a.dir, "ca.crt"), CertFile: filepath.Join(a.dir, "proxy.crt"), KeyFile: filepath.Join(a.dir, "proxy.key"),
	}
}

// ads is a control plane that has nothing to say but tells who came.
type ads struct {
	discoveryv3.UnimplementedAggregatedDiscoveryServiceServer
	came chan string // SPIFFE id of each new stream
}

func (s *ads) DeltaAggregatedResources(stream discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error {
	p, _ := peer.FromContext(stream.Context())
	id := p.AuthInfo.(credentials.TLSInfo).State.PeerCertificates[0].URIs[0].String()
	select {
	case s.came <- id:
	case <-stream.Context().Done():
	}
	for {
		req, err := stream.Recv()
		if err != nil {
			return err
		}
		if req.GetResponseNonce() != "" {
			continue
		}
		if err := stream.Send(&discoveryv3.DeltaDiscoveryResponse{TypeUrl: req.GetTypeUrl(), Nonce: "1"}); err != nil {
			return err
		}
	}
}

// serve starts the control plane on address; the result stops it at once.
func (a *authority) serve(t *testing.T, address, spiffe string, came chan string) (stop func()) {
	t.Helper()
	pool := x509.NewCertPool()
	pool.AddCert(a.cert)
	server := grpc.NewServer(grpc.Creds(credentials.NewTLS(&tls.Config{
		Certificates: []tls.Certificate{a.issue(t, "control", spiffe)},
		ClientAuth:   tls.RequireAndVerifyClientCert, ClientCAs: pool,
	})))
	discoveryv3.RegisterAggregatedDiscoveryServiceServer(server, &ads{came: came})
	l := porttest.Listen(t, address)
	done := make(chan struct{})
	go func() { defer close(done); _ = server.Serve(l) }()
	stop = func() { server.Stop(); <-done }
	t.Cleanup(stop)
	return stop
}

func wait(t *testing.T, came chan string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	select {
	case id := <-came:
		return id
	case <-ctx.Done():
		t.Fatal("the proxy did not come")
		return ""
	}
}

// TestReconnect: the proxy comes back after each restart of the control plane, and
// its back-off is bounded by the bootstrap, not by Envoy's default of 30 s.
func TestReconnect(t *testing.T) {
	ca := newAuthority(t)
	address := net.JoinHostPort("127.0.0.1", strconv.Itoa(envoytest.FreePort(t)))
	came := make(chan string)
	stop := ca.serve(t, address, bootstrap.ControlSPIFFE, came)
	e := envoytest.Start(t, envoytest.Options{Config: ca.config(t, address)})
	if id := wait(t, came); id != "spiffe://penstock.local/proxy/default/-/one" {
		t.Errorf("the control plane sees the identity %s", id)
	}
	e.WaitLive(t)
	for range 2 {
		stop()
		// Long enough for several attempts to fail, so that the back-off grows.
		failures := e.Stat(t, "cluster."+bootstrap.XDSCluster+".upstream_cx_connect_fail")
		poll(t, func() bool {
			return e.Stat(t, "cluster."+bootstrap.XDSCluster+".upstream_cx_connect_fail") >= failures+3
		})
		begin := time.Now()
		stop = ca.serve(t, address, bootstrap.ControlSPIFFE, came)
		wait(t, came)
		t.Logf("reconnected after %s", time.Since(begin).Round(time.Millisecond))
	}
}

// TestRotation: a replaced certificate is used for the next connection, without a
// restart of the proxy.
func TestRotation(t *testing.T) {
	ca := newAuthority(t)
	address := net.JoinHostPort("127.0.0.1", strconv.Itoa(envoytest.FreePort(t)))
	came := make(chan string)
	stop := ca.serve(t, address, bootstrap.ControlSPIFFE, came)
	e := envoytest.Start(t, envoytest.Options{Config: ca.config(t, address)})
	wait(t, came)
	e.WaitLive(t)
	ca.issue(t, "proxy", "spiffe://penstock.local/proxy/default/-/two")
	poll(t, func() bool { return strings.Contains(e.Admin(t, "/certs"), "/proxy/default/-/two") })
	stop()
	ca.serve(t, address, bootstrap.ControlSPIFFE, came)
	if id := wait(t, came); id != "spiffe://penstock.local/proxy/default/-/two" {
		t.Errorf("after the rotation the control plane sees %s", id)
	}
}

// TestImpostor: a server whose certificate is of the same CA but is not the control
// plane's gets no stream.
func TestImpostor(t *testing.T) {
	ca := newAuthority(t)
	address := net.JoinHostPort("127.0.0.1", strconv.Itoa(envoytest.FreePort(t)))
	came := make(chan string, 1)
	ca.serve(t, address, "spiffe://penstock.local/runner/local", came)
	e := envoytest.Start(t, envoytest.Options{Config: ca.config(t, address)})
	poll(t, func() bool {
		return e.Stat(t, "cluster."+bootstrap.XDSCluster+".upstream_cx_connect_fail") >= 2
	})
	select {
	case id := <-came:
		t.Errorf("the proxy %s trusted a runner as its control plane", id)
	default:
	}
}

// TestProcess reads back from the running Envoy what the bootstrap promises.
func TestProcess(t *testing.T) {
	ca := newAuthority(t)
	address := net.JoinHostPort("127.0.0.1", strconv.Itoa(envoytest.FreePort(t)))
	came := make(chan string, 1)
	ca.serve(t, address, bootstrap.ControlSPIFFE, came)
	c := ca.config(t, address)
	c.Listeners = []string{"default/edge/http"}
	e := envoytest.Start(t, envoytest.Options{Config: c})
	e.WaitLive(t)

	var runtime struct {
		Entries map[string]struct {
			Final string `json:"final_value"`
		} `json:"entries"`
	}
	if err := json.Unmarshal([]byte(e.Admin(t, "/runtime")), &runtime); err != nil {
		t.Fatal(err)
	}
	for key, want := range map[string]string{
		"http.max_requests_per_io_cycle":                                    "1",
		"overload.premature_reset_total_stream_count":                       "100",
		"re2.max_program_size.error_level":                                  "100",
		"tracing.opentelemetry.flush_interval_ms":                           "200",
		"tracing.opentelemetry.min_flush_spans":                             "64",
		"envoy.resource_limits.listener.default/edge/http.connection_limit": "10000",
	} {
		if got := runtime.Entries[key].Final; got != want {
			t.Errorf("runtime %s is %q, want %q", key, got, want)
		}
	}
	if got := strings.Count(e.Admin(t, "/stats"), "\n"); got > 300 {
		t.Errorf("an idle Envoy has %d lines of statistics, want at most 300", got)
	}
	// Deprecated fields, limits that Envoy misses, and the like.
	if log := e.Log(t); strings.Contains(log, "[warning]") {
		t.Errorf("Envoy warns:\n%s", log)
	}
	if e.Stat(t, "control_plane.connected_state") != 1 {
		t.Errorf("control_plane.connected_state is not 1")
	}
}

// TestAdminPaths: through the product's admin socket nobody stops or changes the
// proxy.
func TestAdminPaths(t *testing.T) {
	dir, err := os.MkdirTemp("", "admin-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	socket := filepath.Join(dir, "admin.sock")
	file := filepath.Join(dir, "bootstrap.json")
	if err := bootstrap.WriteFiles(file, bootstrap.Config{NodeID: "one", AdminSocket: socket}); err != nil {
		t.Fatal(err)
	}
	client := envoytest.StartFile(t, file, socket)
	for _, test := range []struct {
		method, path string
		status       int
	}{
		{"GET", "/ready", 200}, {"GET", "/stats?filter=server.live", 200}, {"GET", "/stats/prometheus", 200},
		{"GET", "/clusters?format=json", 200}, {"GET", "/config_dump?include_eds", 200}, {"GET", "/server_info", 200},
		{"POST", "/quitquitquit", 403}, {"POST", "/runtime_modify?a=b", 403}, {"POST", "/logging?level=trace", 403},
		{"POST", "/reset_counters", 403}, {"GET", "/stats/..%2fquitquitquit", 403}, {"GET", "/stats/recentlookups", 403}, {"GET", "/", 403},
		{"POST", "/drain_listeners?graceful", 200},
	} {
		req, err := http.NewRequestWithContext(t.Context(), test.method, "http://envoy"+test.path, nil)
		if err != nil {
			t.Fatal(err)
		}
		res, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if res.StatusCode != test.status {
			t.Errorf("%s %s: status %d, want %d", test.method, test.path, res.StatusCode, test.status)
		}
	}
	info, err := os.Stat(socket)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("admin socket: mode %v (%v), want 0600", info.Mode(), err)
	}
}

func poll(t *testing.T, cond func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !cond() {
		select {
		case <-ctx.Done():
			t.Fatal("waited in vain")
		case <-tick.C:
		}
	}
}
