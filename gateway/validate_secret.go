package gateway

import (
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

func (c *checker) secret(s *pb.Secret) {
	switch v := s.GetValue().(type) {
	case *pb.Secret_Jwks:
		if !c.has("jwks") {
			c.jwks("jwks", v.Jwks)
		}
	case *pb.Secret_Certificate:
		c.certificate(v.Certificate)
	}
	c.secretData(s.GetData())
}

// HiddenValue stands in place of each value of a Secret's data in what the API returns.
// Written back, it means the value that is there.
const HiddenValue = "(hidden)"

const (
	// maxVariable is the length of a variable that is passed on, in bytes.
	maxVariable = 32 << 10
	// maxSecretData bounds all values of a secret together, so that it fits the store.
	maxSecretData = 512 << 10
)

// secretData checks opaque values. Messages never show them.
func (c *checker) secretData(data map[string]string) {
	all := 0
	for _, key := range slices.Sorted(maps.Keys(data)) {
		field, value := fmt.Sprintf("data[%q]", key), data[key]
		all += len(value)
		switch {
		case value == "":
			c.add(field, "is empty; give it a value, or leave the key out")
		case value == HiddenValue:
			c.add(field, "%s is what reads show in place of a value, and no value is stored under this key; write the value itself", HiddenValue)
		case strings.ContainsRune(value, 0):
			c.add(field, "holds a NUL, which no environment can; encode it, in base64 for example")
		case len(value) > maxVariable:
			c.add(field, "is %d bytes long; at most %d KiB fit", len(value), maxVariable>>10)
		}
	}
	if all > maxSecretData {
		c.add("data", "its values are %d bytes long together; at most %d KiB fit: use several secrets", all, maxSecretData>>10)
	}
}

// certificate checks that Envoy can serve a chain: leaf first, each signed by the
// next, in its time, and the key that belongs to it. Envoy itself would serve an
// expired one. Messages never show key material.
func (c *checker) certificate(s *pb.CertificateSecret) {
	const field = "certificate.chain"
	chain := c.chain(field, s.GetChain())
	if len(chain) == 0 {
		return
	}
	at := now()
	for i, cert := range chain {
		switch {
		case at.After(cert.NotAfter):
			c.add(field, "certificate %d (%s) expired on %s; renew it", i, cert.Subject, cert.NotAfter.UTC().Format(time.RFC3339))
		case at.Before(cert.NotBefore):
			c.add(field, "certificate %d (%s) is not valid before %s", i, cert.Subject, cert.NotBefore.UTC().Format(time.RFC3339))
		}
		if i > 0 && chain[i-1].CheckSignatureFrom(cert) != nil {
			c.add(field, "certificate %d (%s) did not sign the one before; order the chain from the leaf up", i, cert.Subject)
		}
	}
	switch k := chain[0].PublicKey.(type) {
	case *rsa.PublicKey:
		if k.N.BitLen() < minRSABits {
			c.add(field, "the RSA key has %d bits; at least %d are needed", k.N.BitLen(), minRSABits)
		}
	case *ecdsa.PublicKey:
		if b := k.Curve.Params().BitSize; b < 256 {
			c.add(field, "the curve has %d bits; use P-256", b)
		}
	default:
		c.add(field, "the key is neither RSA nor ECDSA, and clients commonly take no other")
	}
	if len(chain[0].DNSNames)+len(chain[0].IPAddresses) == 0 {
		c.add(field, "the leaf (%s) names no host (subject alternative name), so no client would take it", chain[0].Subject)
	}
	if s.GetPrivateKey() == "" {
		c.add("certificate.private_key", "is missing; it is needed to serve the chain")
	} else if _, err := tls.X509KeyPair([]byte(s.GetChain()), []byte(s.GetPrivateKey())); err != nil {
		c.add("certificate.private_key", "%s; send the unencrypted PEM key of the leaf", strings.TrimPrefix(err.Error(), "tls: "))
	}
}

// chain reads the certificates of a PEM text and reports what cannot be read.
func (c *checker) chain(field, text string) []*x509.Certificate {
	var out []*x509.Certificate
	rest := []byte(text)
	for {
		var b *pem.Block
		if b, rest = pem.Decode(rest); b == nil {
			break
		}
		if b.Type != "CERTIFICATE" {
			c.add(field, "holds a PEM block of type %q; only certificates belong here", b.Type)
			return nil
		}
		cert, err := x509.ParseCertificate(b.Bytes)
		if err != nil {
			c.add(field, "certificate %d cannot be read: %v", len(out), err)
			return nil
		}
		out = append(out, cert)
	}
	switch {
	case strings.TrimSpace(string(rest)) != "":
		c.add(field, "holds something that is not PEM after %d certificates", len(out))
		return nil
	case len(out) == 0 && !c.has(field):
		c.add(field, "holds no certificate; paste the PEM text, leaf first")
	}
	return out
}
