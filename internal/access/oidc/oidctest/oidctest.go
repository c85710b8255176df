// Package oidctest runs an OpenID Connect issuer with real keys for tests.
package oidctest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"encoding/pem"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
)

// Audience is what Claims are for.
const Audience = "penstock"

// Issuer is a running issuer.
type Issuer struct {
	// URL is the issuer, CAFile the authority of its certificate.
	URL, CAFile string

	mu      sync.Mutex
	served  []jose.JSONWebKey
	handler http.HandlerFunc // in place of the issuer's own answers
	fetches int              // of the keys
}

// Key is a signing key of the issuer.
type Key struct {
	ID        string
	Algorithm jose.SignatureAlgorithm
	Private   crypto.Signer
}

// NewKey makes a key for ES256.
func NewKey(tb testing.TB, id string) Key {
	tb.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	return Key{ID: id, Algorithm: jose.ES256, Private: k}
}

// Start runs an issuer until the test ends.
func Start(tb testing.TB, keys ...Key) *Issuer {
	tb.Helper()
	i := &Issuer{}
	i.Serve(keys...)
	s := httptest.NewTLSServer(http.HandlerFunc(i.answer))
	tb.Cleanup(s.Close)
	i.URL, i.CAFile = s.URL, filepath.Join(tb.TempDir(), "ca.pem")
	if err := os.WriteFile(i.CAFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}), 0o600); err != nil {
		tb.Fatal(err)
	}
	return i
}

// Serve changes the keys that the issuer shows.
func (i *Issuer) Serve(keys ...Key) {
	var served []jose.JSONWebKey
	for _, k := range keys {
		served = append(served, jose.JSONWebKey{Key: k.Private.Public(), KeyID: k.ID, Algorithm: string(k.Algorithm), Use: "sig"})
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	i.served = served
}

// Answer has f answer all requests; nil: the issuer itself.
func (i *Issuer) Answer(f http.HandlerFunc) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.handler = f
}

// Fetches is how often the keys were asked for.
func (i *Issuer) Fetches() int {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.fetches
}

func (i *Issuer) answer(w http.ResponseWriter, r *http.Request) {
	i.mu.Lock()
	handler, served := i.handler, i.served
	if r.URL.Path == "/keys" {
		i.fetches++
	}
	i.mu.Unlock()
	switch {
	case handler != nil:
		handler(w, r)
	case r.URL.Path == "/.well-known/openid-configuration":
		_ = json.NewEncoder(w).Encode(map[string]string{"issuer": i.URL, "jwks_uri": i.URL + "/keys"})
	case r.URL.Path == "/keys":
		_ = json.NewEncoder(w).Encode(jose.JSONWebKeySet{Keys: served})
	default:
		http.NotFound(w, r)
	}
}

// Claims are good ones of somebody; change, when set, changes them.
func (i *Issuer) Claims(subject string, change func(map[string]any)) map[string]any {
	now := time.Now()
	c := map[string]any{"iss": i.URL, "sub": subject, "aud": Audience, "iat": now.Unix(), "exp": now.Add(time.Hour).Unix()}
	if change != nil {
		change(c)
	}
	return c
}

// Sign makes a token with a header.
func Sign(tb testing.TB, k Key, header map[jose.HeaderKey]any, claims any) string {
	tb.Helper()
	s, err := jose.NewSigner(jose.SigningKey{Algorithm: k.Algorithm, Key: jose.JSONWebKey{Key: k.Private, KeyID: k.ID}}, &jose.SignerOptions{ExtraHeaders: header})
	if err != nil {
		tb.Fatal(err)
	}
	text, err := jwt.Signed(s).Claims(claims).Serialize()
	if err != nil {
		tb.Fatal(err)
	}
	return text
}
