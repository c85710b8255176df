package store_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/transport"
	"go.etcd.io/etcd/server/v3/embed"

	"github.com/penstock-gateway/penstock/store"
	"github.com/penstock-gateway/penstock/store/storetest"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(childEnv); dir != "" {
		commitForever(dir)
	}
	if dir := os.Getenv(serverEnv); dir != "" {
		serveForever(dir)
	}
	code := m.Run()
	external.stop()
	os.Exit(code)
}

// quiet is a logger for stores whose etcd is expected to complain.
var quiet = slog.New(slog.DiscardHandler)

// sealKey is the key of all stores here.
var sealKey = []byte("0123456789abcdef0123456789abcdef")

// openEmbedded opens a store on an etcd of its own and closes it with the test.
func openEmbedded(t testing.TB, dir string) store.Store {
	t.Helper()
	return open(t, store.Options{DataDir: dir})
}

// open opens a store with the usual key.
func open(t testing.TB, o store.Options) store.Store {
	t.Helper()
	if o.SealKey == nil {
		o.SealKey = sealKey
	}
	if o.RequestTimeout == 0 {
		o.RequestTimeout = 5 * time.Minute // a busy machine is not an error
	}
	o.Logger = quiet
	s, err := store.Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// backends are both ways to have etcd. options makes those of a new empty store; the
// same options open the same store again.
var backends = []struct {
	name    string
	options func(t testing.TB) store.Options
}{
	{"embedded", func(t testing.TB) store.Options { return store.Options{DataDir: t.TempDir()} }},
	{"external", func(t testing.TB) store.Options { return external.options(t) }},
}

func TestConformance(t *testing.T) {
	t.Parallel()
	for _, b := range backends {
		t.Run(b.name, func(t *testing.T) {
			storetest.Run(t, func(t *testing.T) store.Store { return open(t, b.options(t)) })
		})
	}
}

// external is one real etcd server that is spoken to over loopback with mutual TLS.
// It is started when it is first needed, and each store has a prefix of its own.
var external etcdServer

type etcdServer struct {
	once     sync.Once
	err      error
	dir      string
	server   *embed.Etcd
	client   *tls.Config
	prefixes atomic.Int64
}

// options are those of an empty store on the server.
func (e *etcdServer) options(t testing.TB) store.Options {
	t.Helper()
	e.once.Do(func() { e.err = e.start() })
	if e.err != nil {
		t.Fatal(e.err)
	}
	return store.Options{
		Endpoints: []string{e.endpoint()},
		TLS:       e.client,
		Prefix:    fmt.Sprintf("/test-%d", e.prefixes.Add(1)),
	}
}

// endpoint is where the server listens.
func (e *etcdServer) endpoint() string { return "https://" + e.server.Clients[0].Addr().String() }

func (e *etcdServer) start() (err error) {
	if e.dir, err = os.MkdirTemp("", "store-test-"); err != nil {
		return err
	}
	if err := e.certificates(); err != nil {
		return err
	}
	return e.serve("127.0.0.1:0")
}

// serve starts the server on an address, with what is in its directory.
func (e *etcdServer) serve(addr string) (err error) {
	client := url.URL{Scheme: "https", Host: addr}
	c := embed.NewConfig()
	c.Name, c.Dir = "test", filepath.Join(e.dir, "etcd")
	c.ListenClientUrls, c.AdvertiseClientUrls = []url.URL{client}, []url.URL{client}
	c.ListenPeerUrls = nil
	c.AdvertisePeerUrls = []url.URL{{Scheme: "http", Host: "127.0.0.1:0"}}
	c.InitialCluster = c.InitialClusterFromName(c.Name)
	c.TickMs, c.ElectionMs = 100, 500
	c.ClientTLSInfo = e.serverTLS()
	c.LogLevel = "fatal"
	if e.server, err = embed.StartEtcd(c); err != nil {
		return err
	}
	<-e.server.Server.ReadyNotify()
	return nil
}

func (e *etcdServer) stop() {
	if e.server != nil {
		e.server.Close()
	}
	if e.dir != "" {
		os.RemoveAll(e.dir)
	}
}

// serverTLS are the server's certificate and whom it trusts.
func (e *etcdServer) serverTLS() transport.TLSInfo {
	return transport.TLSInfo{
		CertFile: filepath.Join(e.dir, "server.crt"), KeyFile: filepath.Join(e.dir, "server.key"),
		TrustedCAFile: filepath.Join(e.dir, "ca.crt"), ClientCertAuth: true,
	}
}

// certificates makes a CA, and from it those of the server, in files, and the client.
func (e *etcdServer) certificates() error {
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	ca := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test CA"}, IsCA: true, BasicConstraintsValid: true,
		NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	caDER, err := x509.CreateCertificate(rand.Reader, ca, ca, caKey.Public(), caKey)
	if err != nil {
		return err
	}
	leaf := func(serial int64) (certPEM, keyPEM []byte, err error) {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return nil, nil, err
		}
		der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
			SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: "test"}, NotAfter: time.Now().Add(time.Hour),
			IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
			ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		}, ca, key.Public(), caKey)
		if err != nil {
			return nil, nil, err
		}
		keyDER, err := x509.MarshalPKCS8PrivateKey(key)
		return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}), err
	}
	serverCert, serverKey, err := leaf(2)
	if err != nil {
		return err
	}
	server := e.serverTLS()
	caPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: caDER})
	for file, content := range map[string][]byte{server.CertFile: serverCert, server.KeyFile: serverKey, server.TrustedCAFile: caPEM} {
		if err := os.WriteFile(file, content, 0o600); err != nil {
			return err
		}
	}
	clientCert, clientKey, err := leaf(3)
	if err != nil {
		return err
	}
	pair, err := tls.X509KeyPair(clientCert, clientKey)
	if err != nil {
		return err
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(caPEM)
	e.client = &tls.Config{Certificates: []tls.Certificate{pair}, RootCAs: pool, MinVersion: tls.VersionTLS12}
	return nil
}
