package pki

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"strings"
	"time"
)

// JoinToken lets one proxy get its first certificate. It pins the CA, so the
// proxy knows the control plane before it has any file of it.
type JoinToken struct {
	// Secret is what the control plane knows the token by; it keeps the hash.
	Secret [20]byte
	// CA is the SHA-256 of the DER of the CA's certificate.
	CA [sha256.Size]byte
}

// joinPrefix lets people and secret scanners know a token when they see one.
const joinPrefix = "psj1_"

// NewJoinToken makes a token for proxies of this CA.
func (ca *CA) NewJoinToken() JoinToken {
	t := JoinToken{CA: ca.Hash()}
	rand.Read(t.Secret[:]) // never fails: crypto/rand ends the process first
	return t
}

// String is the text of the token, with the prefix "psj1_".
func (t JoinToken) String() string { return FormatToken(joinPrefix, t) }

// FormatToken is the text of a token: the prefix and, in base64url, the secret, the
// hash of the CA and four bytes of a checksum.
func FormatToken(prefix string, t JoinToken) string {
	b := append(append([]byte{}, t.Secret[:]...), t.CA[:]...)
	sum := sha256.Sum256(b)
	return prefix + base64.RawURLEncoding.EncodeToString(append(b, sum[:4]...))
}

// ParseJoinToken is the inverse of JoinToken.String.
func ParseJoinToken(text string) (JoinToken, error) {
	return ParseToken(joinPrefix, "join token", "`penstock proxy token`", text)
}

// ParseToken is the inverse of FormatToken. It finds every token that was cut or
// mistyped; its errors say what it is and who prints one, and do not repeat the
// text, which may be a secret.
func ParseToken(prefix, what, printer, text string) (JoinToken, error) {
	var t JoinToken
	body, ok := strings.CutPrefix(strings.TrimSpace(text), prefix)
	if !ok {
		return t, fmt.Errorf("this is not a %s: they begin with %s and are printed by %s", what, prefix, printer)
	}
	// Strict: there is one text for each token.
	b, err := base64.RawURLEncoding.Strict().DecodeString(body)
	n := len(t.Secret) + len(t.CA)
	// The decoder passes over line breaks.
	if err != nil || len(b) != n+4 || strings.ContainsAny(body, "\r\n") {
		return t, fmt.Errorf("the %s is damaged: copy it whole, on one line", what)
	}
	if sum := sha256.Sum256(b[:n]); !bytes.Equal(sum[:4], b[n:]) {
		return t, fmt.Errorf("the %s is damaged (its checksum does not fit): copy it whole, on one line", what)
	}
	copy(t.Secret[:], b)
	copy(t.CA[:], b[len(t.Secret):])
	return t, nil
}

// NewRequest makes a key, in PEM, and a certificate request for it, in DER. The
// request names the identity when there is one; else the signer knows it.
func NewRequest(spiffe string) (csr, keyPEM []byte, err error) {
	keyPEM, err = newKeyPEM()
	if err != nil {
		return nil, nil, err
	}
	key, err := parseKey(keyPEM)
	if err != nil {
		return nil, nil, err
	}
	t := &x509.CertificateRequest{}
	if spiffe != "" {
		id, err := parseSPIFFE(spiffe)
		if err != nil {
			return nil, nil, err
		}
		t.URIs = append(t.URIs, id)
	}
	csr, err = x509.CreateCertificateRequest(rand.Reader, t, key)
	if err != nil {
		return nil, nil, fmt.Errorf("make a certificate request: %w", err)
	}
	return csr, keyPEM, nil
}

// CheckRequest reads a certificate request in DER, which must be signed by its
// own key and may name nothing but the identity that it will get.
func CheckRequest(der []byte, spiffe string) (*ecdsa.PublicKey, error) {
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return nil, fmt.Errorf("certificate request: not PKCS #10 in DER: %w", err)
	}
	if err := csr.CheckSignature(); err != nil {
		return nil, fmt.Errorf("certificate request: not signed by its own key: %w", err)
	}
	key, ok := csr.PublicKey.(*ecdsa.PublicKey)
	if !ok || key.Curve != elliptic.P256() {
		return nil, fmt.Errorf("certificate request: the key is %s, it must be ECDSA on P-256", csr.PublicKeyAlgorithm)
	}
	if len(csr.DNSNames)+len(csr.IPAddresses)+len(csr.EmailAddresses) > 0 {
		return nil, errors.New("certificate request: it asks for DNS names, addresses or mail addresses, a proxy has only its SPIFFE id")
	}
	for _, u := range csr.URIs {
		if u.String() != spiffe {
			return nil, fmt.Errorf("certificate request: it asks for %s, but this is %s", u, spiffe)
		}
	}
	return key, nil
}

// SignRequest makes a certificate, in PEM, for the key of a request that passes
// CheckRequest. The names come from r alone.
func (ca *CA) SignRequest(der []byte, r Request) (certPEM []byte, err error) {
	key, err := CheckRequest(der, r.SPIFFE)
	if err != nil {
		return nil, err
	}
	return ca.sign(key, r)
}

// ErrPin is in errors of JoinTLS when the server has another CA than the token.
var ErrPin = errors.New("the server's certificate authority is not the one of the token")

// JoinTLS is the configuration of a client that has a token and no certificate.
// The server must show the CA that the token pins and be, by that CA, the
// identity spiffe; its host name does not matter.
func JoinTLS(t JoinToken, spiffe string) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		NextProtos: []string{"h2"},
		// Verified by hand below, as the roots are known only then.
		InsecureSkipVerify: true,
		VerifyConnection: func(s tls.ConnectionState) error {
			for _, c := range s.PeerCertificates {
				if sha256.Sum256(c.Raw) == t.CA {
					roots := x509.NewCertPool()
					roots.AddCert(c)
					return VerifyServer(s, roots, spiffe)
				}
			}
			seen := "none"
			if n := len(s.PeerCertificates); n > 0 {
				sum := sha256.Sum256(s.PeerCertificates[n-1].Raw)
				seen = hex.EncodeToString(sum[:8]) + "…"
			}
			return fmt.Errorf("%w (it has %s, the token pins %s…): this is another control plane than the one that made the token, or somebody stands between",
				ErrPin, seen, hex.EncodeToString(t.CA[:8]))
		},
	}
}

// ProxyTLS is ClientTLS for a client that knows the server by its SPIFFE id
// instead of a host name, as Envoy does.
func ProxyTLS(certFile, keyFile, caFile, spiffe string) (*tls.Config, error) {
	c, err := ClientTLS(certFile, keyFile, caFile, "")
	if err != nil {
		return nil, err
	}
	roots := c.RootCAs
	c.InsecureSkipVerify = true
	c.VerifyConnection = func(s tls.ConnectionState) error { return VerifyServer(s, roots, spiffe) }
	return c, nil
}

// VerifyServer checks the chain of a server and its identity.
func VerifyServer(s tls.ConnectionState, roots *x509.CertPool, spiffe string) error {
	if len(s.PeerCertificates) == 0 {
		return errors.New("the server shows no certificate")
	}
	leaf := s.PeerCertificates[0]
	between := x509.NewCertPool()
	for _, c := range s.PeerCertificates[1:] {
		between.AddCert(c)
	}
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}); err != nil {
		return err
	}
	if len(leaf.URIs) != 1 || leaf.URIs[0].String() != spiffe {
		return fmt.Errorf("the server is %v, want %s", leaf.URIs, spiffe)
	}
	return nil
}

// Serial is the usual text of a certificate's serial number: lower-case hexadecimal.
func Serial(c *x509.Certificate) string { return c.SerialNumber.Text(16) }

// ParseSerial reads a serial number in hexadecimal, as certificate viewers print
// it (upper case, with colons or leading zeros), into the text that Serial gives.
func ParseSerial(s string) (string, error) {
	clean := strings.ReplaceAll(strings.TrimSpace(s), ":", "")
	if strings.Trim(clean, "0123456789abcdefABCDEF") != "" || clean == "" || len(clean) > 42 {
		return "", fmt.Errorf("serial number %q is not hexadecimal of 1 to 21 bytes, as `openssl x509 -serial` prints it", s)
	}
	n, ok := new(big.Int).SetString(clean, 16)
	if !ok || n.Sign() == 0 {
		return "", fmt.Errorf("serial number %q is not a positive hexadecimal number", s)
	}
	return n.Text(16), nil
}

// ReadCertificate reads the first certificate of a PEM file.
func ReadCertificate(file string) (*x509.Certificate, error) { return readCert(file) }

// ParsePair checks that a certificate and key, both PEM, belong together, that
// the certificate was signed by the CA (PEM) and is in force at now.
func ParsePair(certPEM, keyPEM, caPEM []byte, now time.Time) (*x509.Certificate, error) {
	pair, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(caPEM)
	if block == nil || block.Type != pemTypeCert {
		return nil, errors.New("the CA is not a PEM certificate")
	}
	ca, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("the CA: %w", err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(ca)
	if _, err := pair.Leaf.Verify(x509.VerifyOptions{Roots: roots, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
		return nil, err
	}
	return pair.Leaf, nil
}
