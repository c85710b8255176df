package replicas

import (
	"net"
	"net/url"
	"path/filepath"
	"sync"
	"testing"

	"go.etcd.io/etcd/client/pkg/v3/transport"
	"go.etcd.io/etcd/server/v3/embed"

	"github.com/penstock-gateway/penstock/internal/pki"
)

// etcd is an etcd server on loopback that wants client certificates.
type etcd struct {
	address      string
	ca, crt, key string // files of a client
}

func startEtcd(t *testing.T, dir string) *etcd {
	t.Helper()
	ca, err := pki.OpenCA(dir)
	if err != nil {
		t.Fatal(err)
	}
	issue := func(name string) (cert, key string) {
		cert, key, err := ca.EnsureFiles(dir, name, pki.Request{
			SPIFFE: "spiffe://" + pki.TrustDomain + "/" + name, IPs: []net.IP{net.IPv4(127, 0, 0, 1)},
		})
		if err != nil {
			t.Fatal(err)
		}
		return cert, key
	}
	e := &etcd{ca: filepath.Join(dir, "ca.crt")}
	e.crt, e.key = issue("client")
	serverCert, serverKey := issue("server")

	c := embed.NewConfig()
	c.Name, c.Dir, c.LogLevel = "test", filepath.Join(dir, "data"), "fatal"
	c.ListenClientUrls = []url.URL{{Scheme: "https", Host: "127.0.0.1:0"}}
	c.AdvertiseClientUrls, c.ListenPeerUrls = c.ListenClientUrls, nil
	c.AdvertisePeerUrls = []url.URL{{Scheme: "http", Host: "127.0.0.1:0"}}
	c.InitialCluster = c.InitialClusterFromName(c.Name)
	c.TickMs, c.ElectionMs = 100, 500
	c.ClientTLSInfo = transport.TLSInfo{CertFile: serverCert, KeyFile: serverKey, TrustedCAFile: e.ca, ClientCertAuth: true}
	server, err := embed.StartEtcd(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Close)
	<-server.Server.ReadyNotify()
	e.address = server.Clients[0].Addr().String()
	return e
}

// wire carries connections to an address, until it is cut: then it carries
// nothing, and nobody is told, as when a cable is pulled.
type wire struct {
	listener net.Listener
	to       string

	mu    sync.Mutex
	whole chan struct{} // closed while the wire is whole
	conns map[net.Conn]struct{}
}

func newWire(t *testing.T, to string) *wire {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w := &wire{listener: l, to: to, whole: make(chan struct{}), conns: map[net.Conn]struct{}{}}
	close(w.whole)
	var done sync.WaitGroup
	done.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			done.Go(func() { w.carry(c) })
		}
	})
	t.Cleanup(func() {
		l.Close()
		w.mend()
		w.mu.Lock()
		for c := range w.conns {
			c.Close()
		}
		w.mu.Unlock()
		done.Wait()
	})
	return w
}

func (w *wire) address() string { return w.listener.Addr().String() }

func (w *wire) cut() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.whole = make(chan struct{})
}

func (w *wire) mend() {
	w.mu.Lock()
	defer w.mu.Unlock()
	select {
	case <-w.whole:
	default:
		close(w.whole)
	}
}

func (w *wire) state() <-chan struct{} {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.whole
}

func (w *wire) carry(in net.Conn) {
	defer in.Close()
	<-w.state()
	out, err := net.Dial("tcp", w.to)
	if err != nil {
		return
	}
	defer out.Close()
	w.mu.Lock()
	w.conns[in], w.conns[out] = struct{}{}, struct{}{}
	w.mu.Unlock()
	var both sync.WaitGroup
	both.Go(func() { w.pump(out, in) })
	both.Go(func() { w.pump(in, out) })
	both.Wait()
	w.mu.Lock()
	delete(w.conns, in)
	delete(w.conns, out)
	w.mu.Unlock()
}

// pump copies until one end closes.
func (w *wire) pump(to, from net.Conn) {
	defer to.Close()
	defer from.Close()
	b := make([]byte, 32<<10)
	for {
		n, err := from.Read(b)
		<-w.state()
		if n > 0 {
			if _, err := to.Write(b[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}
