package connect

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"

	"github.com/penstock-gateway/penstock/internal/access"
	"github.com/penstock-gateway/penstock/internal/keyfile"
	"github.com/penstock-gateway/penstock/internal/pki"
)

// controlSPIFFE is who the server is by the installation's own authority.
const controlSPIFFE = pki.ControlID

// clientTLS is how a server is known. A token pins the installation's authority, so
// with one no file is needed; with a CA file, that authority vouches for the host's
// name or for the control plane of an installation; else the system's authorities
// do for the host's name.
func clientTLS(token, caFile, certFile, keyFile string) (*tls.Config, error) {
	c := &tls.Config{MinVersion: tls.VersionTLS13}
	if certFile != "" || keyFile != "" {
		if err := keyfile.Check(keyFile); err != nil {
			return nil, err
		}
		pair, err := tls.LoadX509KeyPair(certFile, keyFile)
		if err != nil {
			return nil, fmt.Errorf("client certificate: %w", err)
		}
		c.Certificates = []tls.Certificate{pair}
	}
	if caFile != "" {
		b, err := os.ReadFile(caFile)
		if err != nil {
			return nil, fmt.Errorf("certificate authority: %w", err)
		}
		c.RootCAs = x509.NewCertPool()
		if !c.RootCAs.AppendCertsFromPEM(b) {
			return nil, fmt.Errorf("certificate authority: %s holds no certificate", caFile)
		}
	}
	var pin func(tls.ConnectionState) error
	if t, err := access.ParseToken(token); err == nil {
		pin = pki.JoinTLS(t, controlSPIFFE).VerifyConnection
	}
	roots := c.RootCAs
	// Verified by hand, as there are two ways to be known.
	c.InsecureSkipVerify = true
	c.VerifyConnection = func(s tls.ConnectionState) error {
		if pin != nil && caFile == "" {
			err := pin(s)
			if err != nil && verifyName(s, nil) == nil {
				return nil // a certificate of a public authority
			}
			return err
		}
		err := verifyName(s, roots)
		if err != nil && roots != nil && pki.VerifyServer(s, roots, controlSPIFFE) == nil {
			return nil
		}
		return err
	}
	return c, nil
}

// verifyName checks the chain of a server and its host name.
func verifyName(s tls.ConnectionState, roots *x509.CertPool) error {
	if len(s.PeerCertificates) == 0 {
		return errors.New("the server shows no certificate")
	}
	name := s.ServerName
	if ip := net.ParseIP(name); ip != nil {
		name = "[" + name + "]"
	}
	between := x509.NewCertPool()
	for _, c := range s.PeerCertificates[1:] {
		between.AddCert(c)
	}
	_, err := s.PeerCertificates[0].Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, DNSName: name})
	return err
}
