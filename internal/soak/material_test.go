package soak

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"strings"
	"testing"
	"time"
)

// material makes certificates and keys, good and bad.
type material struct{ t *testing.T }

func (m material) check(err error) {
	m.t.Helper()
	if err != nil {
		m.t.Fatal(err)
	}
}

func (m material) ec(c elliptic.Curve) *ecdsa.PrivateKey {
	k, err := ecdsa.GenerateKey(c, rand.Reader)
	m.check(err)
	return k
}

func (m material) rsa(bits int) *rsa.PrivateKey {
	k, err := rsa.GenerateKey(rand.Reader, bits)
	m.check(err)
	return k
}

func (m material) ed() ed25519.PrivateKey {
	_, k, err := ed25519.GenerateKey(rand.Reader)
	m.check(err)
	return k
}

// cert is a self-signed certificate for a name and a time, as PEM.
func (m material) cert(key crypto.Signer, from, to time.Duration) string {
	m.t.Helper()
	return m.sign(key.Public(), key, from, to)
}

// small is a certificate for an RSA key of 1024 bits, which Go does not make, and
// which nobody can use.
func (m material) small(like *rsa.PrivateKey, signer crypto.Signer) string {
	n := new(big.Int).SetBit(new(big.Int).Rsh(like.N, 1024), 0, 1)
	return m.sign(&rsa.PublicKey{N: n, E: like.E}, signer, -time.Hour, time.Hour)
}

func (m material) sign(public crypto.PublicKey, signer crypto.Signer, from, to time.Duration) string {
	m.t.Helper()
	now := time.Now()
	c := &x509.Certificate{
		SerialNumber: big.NewInt(now.UnixNano()), Subject: pkix.Name{CommonName: "bad.test"}, DNSNames: []string{"bad.test"},
		NotBefore: now.Add(from), NotAfter: now.Add(to), BasicConstraintsValid: true, IsCA: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, c, c, public, signer)
	m.check(err)
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

// good is a certificate that is valid now.
func (m material) good(key crypto.Signer) string { return m.cert(key, -time.Hour, time.Hour) }

func (m material) pkcs8(key any) string {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	m.check(err)
	return string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
}

func (m material) sec1(key *ecdsa.PrivateKey) string {
	der, err := x509.MarshalECPrivateKey(key)
	m.check(err)
	return string(pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}))
}

func (m material) pkcs1(key *rsa.PrivateKey) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)}))
}

// https is a secret with a gateway that uses it on PORT.
func (m material) https(chain, key string) string {
	quote := func(s string) string {
		b, err := json.Marshal(s)
		m.check(err)
		return string(b)
	}
	return fmt.Sprintf("kind: Secret\nname: bad\ncertificate: {chain: %s, private_key: %s}\n---\n", quote(chain), quote(key)) +
		"kind: Gateway\nname: bad\nlisteners: [{name: https, address: 127.0.0.1, port: PORT, protocol: HTTPS, tls: {certificates: [bad]}}]\n---\n" +
		"kind: Route\nname: bad\ngateways: [bad]\nhostnames: [bad.test]\nrules: [{direct_response: {status: 200}}]\n"
}

// keys is a key set in a secret with a route that uses it.
func (m material) keys(keys ...string) string {
	return fmt.Sprintf("kind: Secret\nname: bad\njwks: '{\"keys\":[%s]}'\n---\n", strings.Join(keys, ",")) +
		bad("direct_response: {status: 200}", `policies: {authentication: {jwt: {issuer: "https://bad.test", audiences: [app], jwks_secret: bad}}}`)
}

func b64(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

// rsaKey is a public key of any modulus and exponent.
func rsaKey(n, e *big.Int) string {
	return fmt.Sprintf(`{"kty":"RSA","kid":"r","alg":"RS256","n":"%s","e":"%s"}`, b64(n.Bytes()), b64(e.Bytes()))
}

// bad is a route on a host of its own whose first rule has an action and more.
func bad(action string, more ...string) string {
	return "kind: Route\nname: bad\ngateways: [edge]\nhostnames: [bad.test]\nrules:\n- matches: [{path: {prefix: /bad}}]\n  " +
		action + "\n  " + strings.Join(more, "\n  ") + "\n"
}

// matched is a route with a match.
func matched(match string) string {
	return "kind: Route\nname: bad\ngateways: [edge]\nhostnames: [bad.test]\nrules: [{matches: [" + match + "], direct_response: {status: 200}}]\n"
}

// policy is a route with policies.
func policy(p string) string {
	return bad("forward: {backends: [{backend: still}]}", "policies: {"+p+"}")
}

// backendOf is a backend with a route to it.
func backendOf(b string) string {
	return "kind: Backend\nname: bad\n" + b + "\n---\n" + bad("forward: {backends: [{backend: bad}]}")
}
