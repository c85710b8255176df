// Package pki is the certificate authority of a Penstock installation: it makes
// the CA and the short-lived leaf certificates by which proxies, runners and
// limiters are known to the control plane.
//
// Every identity is a SPIFFE id in the URI SAN of a certificate (SPIFFE X.509-SVID):
//
//	spiffe://penstock.local/control
//	spiffe://penstock.local/proxy/{project}/{gateway or -}/{name}
//	spiffe://penstock.local/runner/{name}
//	spiffe://penstock.local/limiter/{name}
//	spiffe://penstock.local/user/{name}
//
// Keys are ECDSA P-256, in files of mode 0600 in a directory of mode 0700. Files
// are replaced atomically, so a reader never sees half of one.
package pki

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/penstock-gateway/penstock/internal/keyfile"
)

// TrustDomain is the SPIFFE trust domain of every identity.
const TrustDomain = "penstock.local"

const (
	caLife      = 10 * 365 * 24 * time.Hour
	defaultTTL  = 90 * 24 * time.Hour
	clockSkew   = 5 * time.Minute
	caCertFile  = "ca.crt"
	caKeyFile   = "ca.key"
	pemTypeCert = "CERTIFICATE"
	pemTypeKey  = "PRIVATE KEY"
)

// CA signs leaf certificates. It is safe for concurrent use.
type CA struct {
	dir  string
	cert *x509.Certificate
	key  crypto.Signer
	now  func() time.Time
}

// Request is what a leaf certificate is to say.
type Request struct {
	// SPIFFE is the whole id, "spiffe://penstock.local/…". Required.
	SPIFFE string
	// DNS and IPs are the further subject alternative names, for servers.
	DNS []string
	IPs []net.IP
	// TTL is the life of the certificate. Default 90 days.
	TTL time.Duration
}

// OpenCA reads the CA in dir (ca.crt, ca.key), and makes it, valid for ten years,
// when it is not there. Processes that do so at the same time end up with the
// same CA.
func OpenCA(dir string) (*CA, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the directory of the CA: %w", err)
	}
	keyFile, certFile := filepath.Join(dir, caKeyFile), filepath.Join(dir, caCertFile)
	if err := errors.Join(keyfile.Check(dir), keyfile.Check(keyFile)); err != nil {
		return nil, err
	}
	if err := createOnce(keyFile, 0o600, newKeyPEM); err != nil {
		return nil, err
	}
	key, err := readKey(keyFile)
	if err != nil {
		return nil, err
	}
	// The certificate is made from the key that won, whoever made it: a process
	// that died between the two files leaves nothing that cannot be completed.
	err = createOnce(certFile, 0o644, func() ([]byte, error) { return selfSign(key) })
	if err != nil {
		return nil, err
	}
	return LoadCA(dir)
}

// LoadCA reads the CA in dir (ca.crt, ca.key) and makes nothing: the error is
// fs.ErrNotExist when one of them is not there.
func LoadCA(dir string) (*CA, error) {
	keyFile, certFile := filepath.Join(dir, caKeyFile), filepath.Join(dir, caCertFile)
	if err := errors.Join(keyfile.Check(dir), keyfile.Check(keyFile)); err != nil {
		return nil, err
	}
	key, err := readKey(keyFile)
	if err != nil {
		return nil, err
	}
	cert, err := readCert(certFile)
	if err != nil {
		return nil, err
	}
	if !samePublicKey(cert.PublicKey, key.Public()) {
		return nil, fmt.Errorf("%s and %s do not belong together: restore the right pair, or remove both to make a new CA", certFile, keyFile)
	}
	if !cert.IsCA {
		return nil, fmt.Errorf("%s is not the certificate of a CA", certFile)
	}
	if time.Now().After(cert.NotAfter) {
		return nil, fmt.Errorf("the CA %s expired on %s: remove %s and %s to make a new one", certFile,
			cert.NotAfter.Format(time.DateOnly), certFile, keyFile)
	}
	return &CA{dir: dir, cert: cert, key: key, now: time.Now}, nil
}

// CertFile is the path of the CA's certificate, for those who verify leaves.
func (ca *CA) CertFile() string { return filepath.Join(ca.dir, caCertFile) }

// CertPEM is the CA's certificate.
func (ca *CA) CertPEM() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: pemTypeCert, Bytes: ca.cert.Raw})
}

// Hash is the SHA-256 of the CA's certificate in DER, by which tokens pin it.
func (ca *CA) Hash() [sha256.Size]byte { return sha256.Sum256(ca.cert.Raw) }

// Issue makes a new key and a certificate for it.
func (ca *CA) Issue(r Request) (certPEM, keyPEM []byte, err error) {
	keyPEM, err = newKeyPEM()
	if err != nil {
		return nil, nil, err
	}
	key, err := parseKey(keyPEM)
	if err != nil {
		return nil, nil, err
	}
	certPEM, err = ca.sign(key.Public(), r)
	if err != nil {
		return nil, nil, err
	}
	return certPEM, keyPEM, nil
}

// sign makes a certificate for a key.
func (ca *CA) sign(key crypto.PublicKey, r Request) (certPEM []byte, err error) {
	id, err := parseSPIFFE(r.SPIFFE)
	if err != nil {
		return nil, err
	}
	if r.TTL == 0 {
		r.TTL = defaultTTL
	}
	if r.TTL < 0 {
		return nil, fmt.Errorf("certificate for %s: the life %s is negative", r.SPIFFE, r.TTL)
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	now := ca.now()
	notAfter := now.Add(r.TTL)
	if notAfter.After(ca.cert.NotAfter) {
		notAfter = ca.cert.NotAfter
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: serial,
		// A short-lived certificate must not begin with clockSkew of its life gone.
		NotBefore:   now.Add(-min(clockSkew, r.TTL/10)),
		NotAfter:    notAfter,
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		URIs:        []*url.URL{id},
		DNSNames:    r.DNS,
		IPAddresses: r.IPs,
		// No subject: the names are all that counts (RFC 5280, 4.1.2.6).
		BasicConstraintsValid: true,
	}, ca.cert, key, ca.key)
	if err != nil {
		return nil, fmt.Errorf("sign the certificate for %s: %w", r.SPIFFE, err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: pemTypeCert, Bytes: der}), nil
}

// EnsureFiles makes dir/base.crt and dir/base.key unless they are there, were
// signed by this CA, say what r says and have more than a third of their life
// left. The file of the key holds the certificate, too, so that ServerTLS and ClientTLS
// find a pair at any moment; other readers should try again when the files do not match.
func (ca *CA) EnsureFiles(dir, base string, r Request) (certFile, keyFile string, err error) {
	certFile, keyFile = filepath.Join(dir, base+".crt"), filepath.Join(dir, base+".key")
	if cert, err := ca.usable(certFile, keyFile, r); err == nil && ca.now().Before(renewAt(cert)) {
		return certFile, keyFile, nil
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", "", fmt.Errorf("make the directory of certificates: %w", err)
	}
	certPEM, keyPEM, err := ca.Issue(r)
	if err != nil {
		return "", "", err
	}
	return certFile, keyFile, writePair(certFile, keyFile, certPEM, keyPEM)
}

// KeepFresh renews the files of EnsureFiles when two thirds of their life are
// over, until ctx ends. A failure is logged and tried again a minute later.
func (ca *CA) KeepFresh(ctx context.Context, log *slog.Logger, dir, base string, r Request) {
	for {
		certFile, _, err := ca.EnsureFiles(dir, base, r)
		wait := time.Minute
		if err == nil {
			var cert *x509.Certificate
			if cert, err = readCert(certFile); err == nil {
				wait = max(time.Second, renewAt(cert).Sub(ca.now()))
			}
		}
		if err != nil {
			log.Error("cannot renew a certificate; will try again", "identity", r.SPIFFE, "error", err)
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		}
	}
}

// renewAt is when two thirds of the life are over.
func renewAt(c *x509.Certificate) time.Time {
	return c.NotBefore.Add(c.NotAfter.Sub(c.NotBefore) / 3 * 2)
}

// usable reads the pair and checks all but its age.
func (ca *CA) usable(certFile, keyFile string, r Request) (*x509.Certificate, error) {
	cert, err := readCert(certFile)
	if err != nil {
		return nil, err
	}
	key, err := readKey(keyFile)
	if err != nil {
		return nil, err
	}
	switch {
	case !samePublicKey(cert.PublicKey, key.Public()):
		return nil, errors.New("certificate and key do not belong together")
	case cert.CheckSignatureFrom(ca.cert) != nil:
		return nil, errors.New("signed by another CA")
	case len(cert.URIs) != 1 || cert.URIs[0].String() != r.SPIFFE:
		return nil, errors.New("another identity")
	case !slices.Equal(cert.DNSNames, r.DNS):
		return nil, errors.New("other DNS names")
	case !slices.EqualFunc(cert.IPAddresses, r.IPs, net.IP.Equal):
		return nil, errors.New("other addresses")
	}
	return cert, nil
}

func selfSign(key crypto.Signer) ([]byte, error) {
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	now := time.Now()
	t := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{CommonName: "Penstock CA", Organization: []string{TrustDomain}},
		NotBefore:             now.Add(-clockSkew),
		NotAfter:              now.Add(caLife),
		IsCA:                  true,
		BasicConstraintsValid: true,
		MaxPathLenZero:        true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		URIs:                  []*url.URL{{Scheme: "spiffe", Host: TrustDomain}},
	}
	der, err := x509.CreateCertificate(rand.Reader, t, t, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("sign the certificate of the CA: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: pemTypeCert, Bytes: der}), nil
}

func newSerial() (*big.Int, error) {
	n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, fmt.Errorf("make a serial number: %w", err)
	}
	return n.Add(n, big.NewInt(1)), nil
}

func newKeyPEM() ([]byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make a key: %w", err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode a key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: pemTypeKey, Bytes: der}), nil
}

func samePublicKey(a, b any) bool {
	ka, ok := a.(*ecdsa.PublicKey)
	return ok && ka.Equal(b)
}

// exists reports whether the file is there.
func exists(file string) bool {
	_, err := os.Lstat(file)
	return !errors.Is(err, fs.ErrNotExist)
}
