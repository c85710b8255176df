package shadow_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	luav3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/lua/v3"
	routerv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/penstock-gateway/penstock/internal/envoytest"
	"github.com/penstock-gateway/penstock/internal/shadow"
	"github.com/penstock-gateway/penstock/xds"
	"github.com/penstock-gateway/penstock/xds/ledger"
)

// generation is made by hand.
type generation map[xds.Type]map[string]*xds.Resource

func (g generation) add(t testing.TB, kind xds.Type, name string, m proto.Message, refs ...xds.Ref) {
	t.Helper()
	r, err := xds.NewResource(kind, name, m, refs, nil)
	if err != nil {
		t.Fatal(err)
	}
	if g[kind] == nil {
		g[kind] = map[string]*xds.Resource{}
	}
	g[kind][name] = r
}

func (g generation) revision(n int64) *xds.Generation {
	out := &xds.Generation{Revision: n}
	for _, all := range g {
		for _, r := range all {
			out.Set(r)
		}
	}
	return out
}

func pack(t testing.TB, m proto.Message) *anypb.Any {
	t.Helper()
	a, err := anypb.New(m)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// cluster has an endpoint at a port that nobody may connect to.
func (g generation) cluster(t testing.TB, name string, port uint32) {
	eds := &clusterv3.Cluster_EdsClusterConfig{EdsConfig: &corev3.ConfigSource{
		ResourceApiVersion:    corev3.ApiVersion_V3,
		ConfigSourceSpecifier: &corev3.ConfigSource_Ads{Ads: &corev3.AggregatedConfigSource{}},
	}}
	g.add(t, xds.Cluster, name, &clusterv3.Cluster{
		Name: name, ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_EDS}, EdsClusterConfig: eds,
		HealthChecks: []*corev3.HealthCheck{{
			Timeout: durationpb.New(time.Second), Interval: durationpb.New(time.Millisecond * 10),
			UnhealthyThreshold: nil, HealthChecker: &corev3.HealthCheck_TcpHealthCheck_{TcpHealthCheck: &corev3.HealthCheck_TcpHealthCheck{}},
		}},
	}, xds.Ref{Type: xds.Endpoint, Name: name})
	g.endpoints(t, name, "127.0.0.1", port)
}

func (g generation) endpoints(t testing.TB, name, address string, port uint32) {
	g.add(t, xds.Endpoint, name, &endpointv3.ClusterLoadAssignment{ClusterName: name, Endpoints: []*endpointv3.LocalityLbEndpoints{{
		LbEndpoints: []*endpointv3.LbEndpoint{{HostIdentifier: &endpointv3.LbEndpoint_Endpoint{Endpoint: &endpointv3.Endpoint{Address: tcp(address, port)}}}},
	}}})
}

func tcp(address string, port uint32) *corev3.Address {
	return &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
		Address: address, PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: port},
	}}}
}

// listener runs a Lua script, which Envoy loads when it gets the listener.
func (g generation) listener(t testing.TB, name string, port uint32, script string) {
	m := &hcmv3.HttpConnectionManager{
		StatPrefix: name,
		RouteSpecifier: &hcmv3.HttpConnectionManager_RouteConfig{RouteConfig: &routev3.RouteConfiguration{
			Name: name, VirtualHosts: []*routev3.VirtualHost{{Name: "a", Domains: []string{"*"}}},
		}},
		HttpFilters: []*hcmv3.HttpFilter{
			{Name: "lua", ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: pack(t, &luav3.Lua{DefaultSourceCode: &corev3.DataSource{
				Specifier: &corev3.DataSource_InlineString{InlineString: script},
			}})}},
			{Name: "router", ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: pack(t, &routerv3.Router{})}},
		},
	}
	g.add(t, xds.Listener, name, &listenerv3.Listener{
		Name: name, Address: tcp("127.0.0.1", port),
		FilterChains: []*listenerv3.FilterChain{{Filters: []*listenerv3.Filter{{
			Name: "hcm", ConfigType: &listenerv3.Filter_TypedConfig{TypedConfig: pack(t, m)},
		}}}},
	})
}

const (
	harmless = "function envoy_on_request(h) end"
	// endless never lets Envoy's main thread go.
	endless = "while true do end"
	noLua   = "this is not Lua"
)

func newShadow(t *testing.T, o shadow.Options) *shadow.Shadow {
	t.Helper()
	if o.Envoy == "" {
		o.Envoy = envoytest.Binary(t)
	}
	if testing.Verbose() {
		o.Logger = slog.New(slog.NewTextHandler(os.Stderr, nil))
	}
	s := shadow.New(o)
	t.Cleanup(s.Close)
	return s
}

func try(t *testing.T, s *shadow.Shadow, g *xds.Generation, known map[xds.Ref]*ledger.Quarantine) []shadow.Verdict {
	t.Helper()
	all, err := s.Try(t.Context(), g, known)
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// TestRefusedAndHung: of many changes, what Envoy refuses and what hangs it is
// named, each alone, and nothing else; what is known is not tried again.
func TestRefusedAndHung(t *testing.T) {
	s := newShadow(t, shadow.Options{Limit: time.Second})
	g := generation{}
	for i := range 6 {
		g.cluster(t, fmt.Sprint("c", i), 1)
		g.listener(t, fmt.Sprint("l", i), uint32(20000+i), harmless)
	}
	if all := try(t, s, g.revision(1), nil); len(all) != 0 {
		t.Fatalf("of good ones only: %v", all)
	}
	if st := s.State(); !st.Running || st.Starts != 1 || st.Sandbox == "" || st.Last == 0 {
		t.Errorf("state %+v", st)
	} else {
		t.Log(st.Sandbox)
	}
	for i := range 6 {
		g.cluster(t, fmt.Sprint("d", i), 1)
		g.listener(t, fmt.Sprint("l", i), uint32(20000+i), harmless+" --")
	}
	g.listener(t, "l2", 20002, noLua)
	g.listener(t, "l4", 20004, endless)
	g.endpoints(t, "d3", "no.address", 1)
	all := try(t, s, g.revision(2), nil)
	got := map[string]bool{}
	known := map[xds.Ref]*ledger.Quarantine{}
	for _, v := range all {
		got[v.Ref.String()] = v.Hung
		known[v.Ref] = &ledger.Quarantine{Refused: map[string]string{v.Version: v.Detail}}
		if v.Version != g[v.Ref.Type][v.Ref.Name].Version || v.Detail == "" {
			t.Errorf("%+v", v)
		}
		t.Logf("%+v", v)
	}
	if hung, named := got["Listener/l4"]; len(got) != 3 || !hung || !named {
		t.Errorf("verdicts %v", got)
	}
	if hung, named := got["Listener/l2"]; hung || !named {
		t.Errorf("verdicts %v", got)
	}
	if hung, named := got["ClusterLoadAssignment/d3"]; hung || !named {
		t.Errorf("verdicts %v", got)
	}
	starts := s.State().Starts
	if all := try(t, s, g.revision(3), known); len(all) != 0 || s.State().Starts != starts {
		t.Errorf("what is known is tried again: %v, %d starts", all, s.State().Starts-starts)
	}
	// What is not known any more is tried again.
	again := maps.Clone(known)
	delete(again, xds.Ref{Type: xds.Listener, Name: "l2"})
	if all := try(t, s, g.revision(3), again); len(all) != 1 || all[0].Ref.Name != "l2" {
		t.Errorf("another try of what is refused: %v", all)
	}
	// Another version of what hung, which hangs as well, and one that does not.
	g.listener(t, "l4", 20004, endless+" --")
	if all := try(t, s, g.revision(4), known); len(all) != 1 || !all[0].Hung || all[0].Ref.Name != "l4" {
		t.Errorf("of another that hangs: %v", all)
	}
	g.listener(t, "l4", 20004, harmless)
	if all := try(t, s, g.revision(5), known); len(all) != 0 {
		t.Errorf("of one that was mended: %v", all)
	}
}

// TestStopped: a shadow that somebody else stops or ends is started again, and what
// it was just sent is tried once more, not blamed.
func TestStopped(t *testing.T) {
	s := newShadow(t, shadow.Options{Limit: time.Second})
	g := generation{}
	g.listener(t, "l", 20000, harmless)
	try(t, s, g.revision(1), nil)
	for n, sig := range []syscall.Signal{syscall.SIGSTOP, syscall.SIGKILL} {
		if err := syscall.Kill(s.State().PID, sig); err != nil {
			t.Fatal(err)
		}
		g.listener(t, "l", 20000, harmless+strings.Repeat(" ", n+1))
		if all := try(t, s, g.revision(int64(2+n)), nil); len(all) != 0 || s.State().Starts != n+2 {
			t.Errorf("%v: %v after %d starts", sig, all, s.State().Starts)
		}
	}
}

func TestUnavailable(t *testing.T) {
	dir := t.TempDir()
	bad := filepath.Join(dir, "envoy")
	if err := os.WriteFile(bad, []byte("#!/bin/sh\necho broken build >&2\nexit 3\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Dir(dir), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{bad: "ended at its start", filepath.Join(dir, "none"): "not found"} {
		s := newShadow(t, shadow.Options{Envoy: path})
		_, err := s.Try(t.Context(), generation{}.revision(1), nil)
		if !errors.Is(err, shadow.ErrUnavailable) || !strings.Contains(err.Error(), want) || s.State().Err == "" {
			t.Errorf("%s: %v, want %q", path, err, want)
		}
	}
}

// TestNowhere: the shadow opens no port and connects nowhere.
func TestNowhere(t *testing.T) {
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer lis.Close()
	came := make(chan struct{}, 1)
	go func() {
		for {
			c, err := lis.Accept()
			if err != nil {
				return
			}
			c.Close()
			came <- struct{}{}
		}
	}()
	s := newShadow(t, shadow.Options{})
	port := envoytest.FreePort(t)
	g := generation{}
	g.cluster(t, "c", uint32(lis.Addr().(*net.TCPAddr).Port))
	g.listener(t, "l", uint32(port), harmless)
	if all := try(t, s, g.revision(1), nil); len(all) != 0 {
		t.Fatal(all)
	}
	if c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port)); err == nil {
		c.Close()
		t.Error("the shadow listens on the gateway's port")
	}
	// Several more changes, each of which would set off checks of health.
	for i := range 5 {
		g.cluster(t, fmt.Sprint("c", i), uint32(lis.Addr().(*net.TCPAddr).Port))
		try(t, s, g.revision(int64(2+i)), nil)
	}
	select {
	case <-came:
		t.Error("the shadow connected to an endpoint")
	default:
	}
}

// TestKeys: the shadow accepts certificates of every kind that the fleet does, and
// never sees a real key.
func TestKeys(t *testing.T) {
	s := newShadow(t, shadow.Options{})
	g := generation{}
	for name, key := range keys(t) {
		chain, pemKey := certificate(t, key)
		inline := func(s string) *corev3.DataSource {
			return &corev3.DataSource{Specifier: &corev3.DataSource_InlineString{InlineString: s}}
		}
		g.add(t, xds.Secret, name, &tlsv3.Secret{Name: name, Type: &tlsv3.Secret_TlsCertificate{TlsCertificate: &tlsv3.TlsCertificate{
			CertificateChain: inline(chain), PrivateKey: inline(pemKey),
		}}})
		if body := shadow.Fake(g[xds.Secret][name]).Body.GetValue(); strings.Contains(string(body), middle(pemKey)) {
			t.Errorf("%s: the shadow gets the real key", name)
		}
		g.tls(t, name)
	}
	if all := try(t, s, g.revision(1), nil); len(all) != 0 {
		t.Errorf("of good certificates: %v", all)
	}
	// A key that is not the certificate's is found, though keys are replaced.
	a, _ := certificate(t, keys(t)["p256"])
	_, b := certificate(t, keys(t)["p256"])
	g.add(t, xds.Secret, "p256", &tlsv3.Secret{Name: "p256", Type: &tlsv3.Secret_TlsCertificate{TlsCertificate: &tlsv3.TlsCertificate{
		CertificateChain: &corev3.DataSource{Specifier: &corev3.DataSource_InlineString{InlineString: a}},
		PrivateKey:       &corev3.DataSource{Specifier: &corev3.DataSource_InlineBytes{InlineBytes: []byte(b)}},
	}}})
	if all := try(t, s, g.revision(2), nil); len(all) != 1 || all[0].Ref.Name != "p256" {
		t.Errorf("of a key that does not fit: %v", all)
	}
}

func (g generation) tls(t *testing.T, secret string) {
	ads := &corev3.ConfigSource{ResourceApiVersion: corev3.ApiVersion_V3, ConfigSourceSpecifier: &corev3.ConfigSource_Ads{Ads: &corev3.AggregatedConfigSource{}}}
	g.listener(t, secret, 20000, harmless)
	l := &listenerv3.Listener{}
	if err := g[xds.Listener][secret].Body.UnmarshalTo(l); err != nil {
		t.Fatal(err)
	}
	l.Address = tcp("127.0.0.1", uint32(20000+len(g[xds.Listener])))
	l.FilterChains[0].TransportSocket = &corev3.TransportSocket{Name: "tls", ConfigType: &corev3.TransportSocket_TypedConfig{
		TypedConfig: pack(t, &tlsv3.DownstreamTlsContext{CommonTlsContext: &tlsv3.CommonTlsContext{
			TlsCertificateSdsSecretConfigs: []*tlsv3.SdsSecretConfig{{Name: secret, SdsConfig: ads}},
		}}),
	}}
	g.add(t, xds.Listener, secret, l, xds.Ref{Type: xds.Secret, Name: secret})
}

func keys(t *testing.T) map[string]crypto.Signer {
	out := map[string]crypto.Signer{}
	for name, generate := range map[string]func() (crypto.Signer, error){
		"p256":    func() (crypto.Signer, error) { return ecdsa.GenerateKey(elliptic.P256(), rand.Reader) },
		"p384":    func() (crypto.Signer, error) { return ecdsa.GenerateKey(elliptic.P384(), rand.Reader) },
		"rsa2048": func() (crypto.Signer, error) { return rsa.GenerateKey(rand.Reader, 2048) },
	} {
		key, err := generate()
		if err != nil {
			t.Fatal(err)
		}
		out[name] = key
	}
	return out
}

func certificate(t *testing.T, key crypto.Signer) (chain, pemKey string) {
	template := &x509.Certificate{
		SerialNumber: big.NewInt(7), Subject: pkix.Name{CommonName: "a.test"}, DNSNames: []string{"a.test"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageDigitalSignature,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	b, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})), string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: b}))
}

// middle is a line of a key that is the key's own.
func middle(pemKey string) string {
	lines := slices.Collect(strings.Lines(pemKey))
	return strings.TrimSpace(lines[len(lines)-2])
}

// FuzzFake: whatever a resource holds, nothing panics and the version stays.
func FuzzFake(f *testing.F) {
	f.Add(0, []byte{})
	f.Add(3, []byte("\n\x01a"))
	f.Fuzz(func(t *testing.T, kind int, body []byte) {
		types := ledger.Types()
		r := &xds.Resource{Type: types[uint(kind)%uint(len(types))], Name: "a", Version: "v"}
		r.Body = &anypb.Any{TypeUrl: string(r.Type), Value: body}
		if got := shadow.Fake(r); got.Version != "v" || got.Name != "a" || got.Type != r.Type {
			t.Errorf("%+v", got)
		}
	})
}
