package pki

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"
)

// ServerTLS is the configuration of a server that requires client certificates
// of the CA in caFile. Replaced files take effect with the next handshake;
// files that cannot be read leave the last good ones in force.
func ServerTLS(certFile, keyFile, caFile string) (*tls.Config, error) {
	return serverTLS(certFile, keyFile, caFile, tls.RequireAndVerifyClientCert)
}

// JoinServerTLS is ServerTLS for a server that also lets in clients without a
// certificate, so that they can get one: whoever uses it must check each call. A
// certificate that is given must be of the CA. The CA is part of the chain that
// the server shows, for clients that know it by its hash only.
func JoinServerTLS(certFile, keyFile, caFile string) (*tls.Config, error) {
	return serverTLS(certFile, keyFile, caFile, tls.VerifyClientCertIfGiven)
}

// APIServerTLS is the configuration of the server of the configuration API, which
// speaks HTTP/1.1, too. Clients may show a certificate of the CA, which is part of the
// chain that the server shows, for clients that know it by its hash only.
func APIServerTLS(certFile, keyFile, caFile string) (*tls.Config, error) {
	c, err := serverTLS(certFile, keyFile, caFile, tls.VerifyClientCertIfGiven)
	if err != nil {
		return nil, err
	}
	c.MinVersion = tls.VersionTLS13
	c.NextProtos = []string{"h2", "http/1.1"}
	return c, nil
}

func serverTLS(certFile, keyFile, caFile string, auth tls.ClientAuthType) (*tls.Config, error) {
	f := &files{cert: certFile, key: keyFile, ca: caFile, showCA: auth == tls.VerifyClientCertIfGiven}
	if _, _, err := f.load(); err != nil {
		return nil, err
	}
	base := &tls.Config{
		MinVersion: tls.VersionTLS12,
		NextProtos: []string{"h2"},
		ClientAuth: auth,
	}
	base.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) {
		cert, pool, err := f.load()
		if err != nil {
			return nil, err
		}
		c := base.Clone()
		c.GetConfigForClient = nil
		c.Certificates = []tls.Certificate{*cert}
		c.ClientCAs = pool
		return c, nil
	}
	return base, nil
}

// ClientTLS is the configuration of a client with a certificate of its own, to
// a server of the same CA that is known as serverName. The client's certificate
// is read anew when its file was replaced; the CA is read once.
func ClientTLS(certFile, keyFile, caFile, serverName string) (*tls.Config, error) {
	f := &files{cert: certFile, key: keyFile, ca: caFile}
	_, pool, err := f.load()
	if err != nil {
		return nil, err
	}
	return &tls.Config{
		MinVersion: tls.VersionTLS12,
		RootCAs:    pool,
		ServerName: serverName,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			cert, _, err := f.load()
			return cert, err
		},
	}, nil
}

// files is a certificate with its key and a CA, reloaded when they change.
type files struct {
	cert, key, ca string
	// showCA puts the CA behind the certificate.
	showCA bool

	mu    sync.Mutex
	stamp [3]stamp
	last  *tls.Certificate
	pool  *x509.CertPool
}

// stamp tells one content of a file from the next.
type stamp struct {
	modified time.Time
	size     int64
}

// load returns the newest pair that could be read whole.
func (f *files) load() (*tls.Certificate, *x509.CertPool, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var now [3]stamp
	for i, name := range []string{f.cert, f.key, f.ca} {
		if info, err := os.Stat(name); err == nil {
			now[i] = stamp{info.ModTime(), info.Size()}
		}
	}
	if f.last != nil && now == f.stamp {
		return f.last, f.pool, nil
	}
	cert, pool, err := f.read()
	switch {
	case err == nil:
		f.last, f.pool, f.stamp = cert, pool, now
	case f.last == nil:
		return nil, nil, err
	}
	// On an error the stamp stays the old one, so the next handshake tries again.
	return f.last, f.pool, nil
}

func (f *files) read() (*tls.Certificate, *x509.CertPool, error) {
	cert, err := loadPair(f.cert, f.key)
	if err != nil {
		return nil, nil, fmt.Errorf("certificate %s with key %s: %w", f.cert, f.key, err)
	}
	b, err := os.ReadFile(f.ca)
	if err != nil {
		return nil, nil, fmt.Errorf("read the CA: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(bytes.TrimSpace(b)) {
		return nil, nil, fmt.Errorf("CA %s: %w", f.ca, errors.New("no certificate in it"))
	}
	if f.showCA {
		block, _ := pem.Decode(b)
		if block == nil || block.Type != pemTypeCert {
			return nil, nil, fmt.Errorf("CA %s: it does not begin with a PEM block %q", f.ca, pemTypeCert)
		}
		cert.Certificate = append(cert.Certificate, block.Bytes)
	}
	return &cert, pool, nil
}
