package gateway

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	jose "github.com/go-jose/go-jose/v4"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// minRSABits is the least size of an RSA key (NIST SP 800-131A; Envoy refuses
// smaller certificates).
const minRSABits = 2048

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

// privateMembers of a JSON Web Key (RFC 7518, section 6).
var privateMembers = []string{"d", "p", "q", "dp", "dq", "qi", "oth", "priv"}

// jwks checks a JSON Web Key Set (RFC 7517): public keys only, those for
// signatures each of a kind that Envoy verifies with and of proper size. Messages
// never show key material.
func (c *checker) jwks(field, text string) {
	var set struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if err := json.Unmarshal([]byte(text), &set); err != nil {
		why := err.Error()
		if _, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
			why = "it is other JSON"
		}
		c.add(field, `is no JSON Web Key Set, such as {"keys": [{"kty": "EC", …}]}: %s`, why)
		return
	}
	if len(set.Keys) == 0 {
		c.add(field, `has no keys; a key set looks like {"keys": [{"kty": "EC", …}]}`)
		return
	}
	kids := make([]string, len(set.Keys))
	signing := false
	for i, raw := range set.Keys {
		var forSignatures bool
		kids[i], forSignatures = c.jwk(field, fmt.Sprintf("keys[%d]", i), raw)
		signing = signing || forSignatures
	}
	if !signing && !c.has(field) {
		c.add(field, `has no key for signatures: each says "use": "enc"`)
	}
	first := map[string]int{}
	for i, kid := range kids {
		if j, ok := first[kid]; ok && kid != "" {
			c.add(field, "keys[%d] has the kid %q of keys[%d]; give each key its own", i, kid, j)
		} else if !ok {
			first[kid] = i
		}
	}
}

// jwk checks one key and returns its kid and whether it is for signatures. Key
// sets of issuers may hold keys for encryption besides; no token is checked with
// them.
func (c *checker) jwk(field, at string, raw json.RawMessage) (kid string, signing bool) {
	var members map[string]json.RawMessage
	if err := json.Unmarshal(raw, &members); err != nil || members == nil {
		c.add(field, "%s is no JSON object", at)
		return "", false
	}
	text := func(name string) string {
		var s string
		if json.Unmarshal(members[name], &s) != nil {
			return ""
		}
		return s
	}
	kid = text("kid")
	kty, alg := text("kty"), text("alg")
	if kty == "oct" || members["k"] != nil {
		c.add(field, "%s is a symmetric key: whoever can check tokens could make them; use public keys (RSA, EC or Ed25519)", at)
		return kid, false
	}
	for _, m := range privateMembers {
		if members[m] != nil {
			c.add(field, "%s holds a private key (%q); take it away and issue a new one, because it was sent here", at, m)
			return kid, false
		}
	}
	if text("use") == "enc" {
		return kid, false
	}
	var key jose.JSONWebKey
	if err := json.Unmarshal(raw, &key); err != nil {
		c.add(field, "%s (kty %q): %v", at, kty, err)
		return kid, false
	}
	if want, problem := keyAlgorithms(key.Key); problem != "" {
		c.add(field, "%s %s", at, problem)
	} else if alg != "" && !slices.Contains(want, alg) {
		c.add(field, "%s has alg %q, but such a key is for %s", at, alg, strings.Join(want, ", "))
	}
	return kid, true
}

// keyAlgorithms names the algorithms (RFC 7518) that a public key verifies in
// Envoy, or says why it verifies none.
func keyAlgorithms(key any) (algorithms []string, problem string) {
	switch k := key.(type) {
	case *rsa.PublicKey:
		if k.N.BitLen() < minRSABits {
			return nil, fmt.Sprintf("is an RSA key of %d bits; at least %d are needed", k.N.BitLen(), minRSABits)
		}
		if k.N.Bit(0) == 0 {
			return nil, "is an RSA key with an even modulus, which is no product of two large primes"
		}
		// BoringSSL, and so Envoy, takes these two only (seen with 1.40).
		if k.E != 3 && k.E != 65537 {
			return nil, fmt.Sprintf("is an RSA key with the exponent %d; Envoy takes 65537 and 3 only", k.E)
		}
		return []string{"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"}, ""
	case *ecdsa.PublicKey:
		if k.Curve == nil || !k.Curve.IsOnCurve(k.X, k.Y) { //nolint:staticcheck // a key that is not a point must be refused
			return nil, "is no point of its curve"
		}
		switch k.Curve.Params().BitSize {
		case 256:
			return []string{"ES256"}, ""
		case 384:
			return []string{"ES384"}, ""
		case 521:
			return []string{"ES512"}, ""
		}
	case ed25519.PublicKey:
		return []string{"EdDSA"}, ""
	}
	return nil, "is of a kind that no token can be checked with; use RSA, EC (P-256, P-384, P-521) or Ed25519"
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
		c.add(field, "holds something that is no PEM after %d certificates", len(out))
		return nil
	case len(out) == 0 && !c.has(field):
		c.add(field, "holds no certificate; paste the PEM text, leaf first")
	}
	return out
}
