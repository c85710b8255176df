package admission

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/penstock-gateway/penstock/internal/pki"
)

// TestFailedHandshakes meets the credentials of the xDS port with clients that fail,
// each over real TLS, and looks for the reason in the log and in the counts.
func TestFailedHandshakes(t *testing.T) {
	dir := t.TempDir()
	own, err := pki.OpenCA(dir)
	if err != nil {
		t.Fatal(err)
	}
	other, err := pki.OpenCA(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	certFile, keyFile, err := own.EnsureFiles(dir, "control", pki.Request{SPIFFE: "spiffe://penstock.local/control", DNS: []string{"localhost"}})
	if err != nil {
		t.Fatal(err)
	}
	config, err := pki.JoinServerTLS(certFile, keyFile, own.CertFile())
	if err != nil {
		t.Fatal(err)
	}
	pool := func(ca *pki.CA) *x509.CertPool {
		p := x509.NewCertPool()
		p.AppendCertsFromPEM(ca.CertPEM())
		return p
	}
	pair := func(ca *pki.CA, life time.Duration) []tls.Certificate {
		cert, key, err := ca.Issue(pki.Request{SPIFFE: pki.ProxyID("default", "-", "p"), TTL: life})
		if err != nil {
			t.Fatal(err)
		}
		c, err := tls.X509KeyPair(cert, key)
		if err != nil {
			t.Fatal(err)
		}
		return []tls.Certificate{c}
	}
	good := func() *tls.Config {
		return &tls.Config{RootCAs: pool(own), ServerName: "localhost", NextProtos: []string{"h2"}, MinVersion: tls.VersionTLS12}
	}
	with := func(change func(*tls.Config)) func(net.Conn) {
		return func(c net.Conn) {
			config := good()
			change(config)
			client := tls.Client(c, config)
			if client.Handshake() == nil {
				_, _ = client.Read(make([]byte, 1)) // the server's alert
			}
		}
	}
	for want, client := range map[string]func(net.Conn){
		"client-foreign":     with(func(c *tls.Config) { c.Certificates = pair(other, 0) }),
		"client-expired":     with(func(c *tls.Config) { c.Certificates = pair(own, time.Nanosecond) }),
		"server-not-trusted": with(func(c *tls.Config) { c.RootCAs = pool(other) }),
		"protocol":           with(func(c *tls.Config) { c.MinVersion, c.MaxVersion = tls.VersionTLS10, tls.VersionTLS11 }),
		"not-tls":            func(c net.Conn) { _, _ = io.WriteString(c, "GET / HTTP/1.1\r\n\r\n") },
		"closed":             func(net.Conn) {},
		"":                   with(func(c *tls.Config) { c.Certificates = pair(own, 0) }),
	} {
		t.Run(want, func(t *testing.T) {
			var lines bytes.Buffer
			g := newGuard(slog.New(slog.NewTextHandler(&lines, &slog.HandlerOptions{Level: slog.LevelDebug})))
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			done := make(chan struct{})
			go func() {
				defer close(done)
				c, err := net.Dial("tcp", l.Addr().String())
				if err != nil {
					t.Error(err)
					return
				}
				defer c.Close()
				client(c)
			}()
			raw, err := l.Accept()
			if err != nil {
				t.Fatal(err)
			}
			conn, _, err := g.credentials(config).ServerHandshake(raw)
			if err == nil {
				conn.Close()
			}
			raw.Close()
			<-done
			counts := g.failed.snapshot()
			if want == "" {
				if err != nil || len(counts) > 0 || lines.Len() > 0 {
					t.Errorf("a good client: %v, %v, %s", err, counts, &lines)
				}
				return
			}
			if err == nil || counts[want] != 1 || !strings.Contains(lines.String(), "reason="+want) {
				t.Errorf("error %v, counts %v, log %s", err, counts, &lines)
			}
		})
	}
}

// TestFailedHandshakesBounded: an address that tries again and again makes a line a
// minute for each reason, and all together at most maxHandshakeLines.
func TestFailedHandshakesBounded(t *testing.T) {
	var lines bytes.Buffer
	h := newHandshakes(slog.New(slog.NewTextHandler(&lines, nil)))
	now := time.Unix(1000, 0)
	h.now = func() time.Time { return now }
	said := func() int {
		n := strings.Count(lines.String(), "\n")
		lines.Reset()
		return n
	}
	from := func(i int) net.Addr { return &net.TCPAddr{IP: net.IPv4(10, 0, byte(i>>8), byte(i)), Port: i} }
	foreign, plain := fmt.Errorf("tls: %w", x509.UnknownAuthorityError{}), tls.RecordHeaderError{}
	for range 100 {
		h.refused(from(1), foreign)
		h.refused(from(1), plain)
	}
	if n := said(); n != 2 {
		t.Errorf("%d lines, want one for each reason", n)
	}
	now = now.Add(handshakeEvery)
	for i := range 1000 {
		h.refused(from(i), errors.New("x"))
	}
	if n := said(); n != maxHandshakeLines {
		t.Errorf("%d lines, want %d", n, maxHandshakeLines)
	}
	now = now.Add(handshakeEvery)
	h.refused(from(1), foreign)
	if text := lines.String(); !strings.Contains(text, fmt.Sprintf("not_logged=%d", 1000-maxHandshakeLines)) {
		t.Errorf("what was left out is not told: %s", text)
	}
	if c := h.snapshot(); c["client-foreign"] != 101 || c["not-tls"] != 100 || c["other"] != 1000 {
		t.Errorf("counts: %v", c)
	}
}
