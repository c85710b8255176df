package pki

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"os"
	"slices"
)

// writePair replaces a key and its certificate. No two files are replaced at once, so a
// process that reads both may see a new one and an old one, or one of each of two writers.
// Therefore the file of the key holds its certificate, too, behind the key, where those who
// look for a key only pass over it; and it is replaced first, so that who saw the new
// certificate finds the new key. See loadPair.
func writePair(certFile, keyFile string, certPEM, keyPEM []byte) error {
	if err := writeAtomic(keyFile, slices.Concat(keyPEM, certPEM), 0o600); err != nil {
		return err
	}
	return writeAtomic(certFile, certPEM, 0o644)
}

// loadPair reads a certificate and its key. When the two do not belong together and the
// file of the key has a certificate for it with the same identity (writePair), that one
// counts. A key of another identity is an error.
func loadPair(certFile, keyFile string) (tls.Certificate, error) {
	certPEM, err := os.ReadFile(certFile)
	if err != nil {
		return tls.Certificate{}, err
	}
	keyPEM, err := os.ReadFile(keyFile)
	if err != nil {
		return tls.Certificate{}, err
	}
	pair, err := tls.X509KeyPair(certPEM, keyPEM)
	if err == nil {
		return pair, nil
	}
	own, ownErr := tls.X509KeyPair(keyPEM, keyPEM)
	if ownErr != nil || !sameIdentity(certPEM, own.Leaf) {
		return tls.Certificate{}, err
	}
	return own, nil
}

// sameIdentity reports whether a certificate in PEM is by the same authority, and for the
// same SPIFFE id, as another one.
func sameIdentity(certPEM []byte, other *x509.Certificate) bool {
	block, _ := pem.Decode(certPEM)
	if block == nil || block.Type != pemTypeCert {
		return false
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	return err == nil && len(cert.URIs) == 1 && len(other.URIs) == 1 && *cert.URIs[0] == *other.URIs[0] &&
		bytes.Equal(cert.RawIssuer, other.RawIssuer) && bytes.Equal(cert.AuthorityKeyId, other.AuthorityKeyId)
}
