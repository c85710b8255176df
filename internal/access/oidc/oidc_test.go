package oidc_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/penstock-gateway/penstock/internal/access/oidc"
	"github.com/penstock-gateway/penstock/internal/access/oidc/oidctest"
)

// verifier runs a Verifier of an issuer.
func verifier(t testing.TB, i *oidctest.Issuer, change func(*oidc.Options)) *oidc.Verifier {
	t.Helper()
	o := oidc.Options{Issuer: i.URL, Audiences: []string{oidctest.Audience, "other-client"}, CAFile: i.CAFile, GroupsClaim: "groups"}
	if change != nil {
		change(&o)
	}
	v, err := oidc.New(o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	var done sync.WaitGroup
	done.Go(func() { v.Run(ctx) })
	t.Cleanup(func() { stop(); done.Wait() })
	return v
}

func claims(i *oidctest.Issuer, change func(map[string]any)) map[string]any {
	return i.Claims("1234", change)
}

func wantBad(t *testing.T, v *oidc.Verifier, what, token, why string) {
	t.Helper()
	c, err := v.Verify(t.Context(), token)
	if err == nil {
		t.Errorf("%s: it is taken, as %+v", what, c)
	} else if !strings.Contains(err.Error(), why) {
		t.Errorf("%s: %v does not say %q", what, err, why)
	} else if len(token) > 40 && strings.Contains(err.Error(), token[len(token)-20:]) {
		t.Errorf("%s: the error repeats the token: %v", what, err)
	}
}

// TestGoodTokens: what an issuer makes is taken, with its name and groups.
func TestGoodTokens(t *testing.T) {
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	ec, old := oidctest.NewKey(t, "ec"), oidctest.Key{ID: "rsa", Algorithm: jose.RS256, Private: rsaKey}
	i := oidctest.Start(t, ec, old)
	v := verifier(t, i, nil)
	noID := ec
	noID.ID = ""
	for what, token := range map[string]string{
		"ES256":       oidctest.Sign(t, ec, map[jose.HeaderKey]any{"typ": "JWT"}, claims(i, nil)),
		"RS256":       oidctest.Sign(t, old, nil, claims(i, nil)),
		"no kid":      oidctest.Sign(t, noID, nil, claims(i, nil)),
		"RFC 9068":    oidctest.Sign(t, ec, map[jose.HeaderKey]any{"typ": "application/at+jwt"}, claims(i, nil)),
		"clock ahead": oidctest.Sign(t, ec, nil, claims(i, func(c map[string]any) { c["iat"], c["nbf"] = time.Now().Unix()+50, time.Now().Unix()+50 })),
		"audiences":   oidctest.Sign(t, ec, nil, claims(i, func(c map[string]any) { c["aud"] = []string{"x", "other-client"} })),
	} {
		c, err := v.Verify(t.Context(), token)
		if err != nil {
			t.Errorf("%s: %v", what, err)
		} else if c.Name != "oidc:"+i.URL+"#1234" || len(c.Groups) != 0 || time.Until(c.Expires) > time.Hour {
			t.Errorf("%s: %+v", what, c)
		}
	}
	for _, groups := range []any{[]string{"Domain Admins", "ops"}, "ops"} {
		c, err := v.Verify(t.Context(), oidctest.Sign(t, ec, nil, claims(i, func(c map[string]any) { c["groups"] = groups })))
		if err != nil || !slices.Contains(c.Groups, "ops") {
			t.Errorf("groups %v: %+v, %v", groups, c, err)
		}
	}
	v = verifier(t, i, func(o *oidc.Options) { o.NameClaim = "email" })
	verified := claims(i, func(c map[string]any) { c["email"], c["email_verified"] = "bob@example.com", true })
	if c, err := v.Verify(t.Context(), oidctest.Sign(t, ec, nil, verified)); err != nil || c.Name != "oidc:"+i.URL+"#bob@example.com" {
		t.Errorf("by email: %+v, %v", c, err)
	}
	for _, say := range []any{nil, false, "true", 1} {
		verified["email_verified"] = say
		wantBad(t, v, "an email that is not verified", oidctest.Sign(t, ec, nil, verified), "verified")
	}
}

// TestBadTokens: everything else is refused, with the reason.
func TestBadTokens(t *testing.T) {
	key, foreign := oidctest.NewKey(t, "ec"), oidctest.NewKey(t, "ec")
	i := oidctest.Start(t, key)
	v := verifier(t, i, nil)
	sign := func(change func(map[string]any)) string { return oidctest.Sign(t, key, nil, claims(i, change)) }
	set := func(name string, value any) string { return sign(func(c map[string]any) { c[name] = value }) }
	without := func(name string) string { return sign(func(c map[string]any) { delete(c, name) }) }
	header := func(name jose.HeaderKey, value any) string {
		return oidctest.Sign(t, key, map[jose.HeaderKey]any{name: value}, claims(i, nil))
	}
	good := set("x", "y")
	if _, err := v.Verify(t.Context(), good); err != nil {
		t.Fatal(err)
	}
	parts := strings.Split(good, ".")
	raw := func(b string) string { return base64.RawURLEncoding.EncodeToString([]byte(b)) }
	now := time.Now().Unix()
	other := func(change func(*oidctest.Key)) string {
		k := foreign
		change(&k)
		return oidctest.Sign(t, k, nil, claims(i, nil))
	}
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for _, x := range []struct{ what, token, why string }{
		{"empty", "", "compact form"}, {"too long", strings.Repeat("a", 17<<10), "longer"}, {"two parts", parts[0] + "." + parts[1], "compact form"},
		{"encrypted", good + ".x.y", "compact form"}, {"JSON form", `{"payload":"` + parts[1] + `","signatures":[{}],"a":".."}`, "JSON Web Token"},
		{"no signature", parts[0] + "." + parts[1] + ".", "signature"}, {"alg none", raw(`{"alg":"none"}`) + "." + parts[1] + ".", "signed by one of"},
		{"alg none, signed", raw(`{"alg":"none","kid":"ec"}`) + "." + parts[1] + "." + parts[2], "signed by one of"},
		{"HMAC with the public key", hmacOfPublic(t, key, parts[1]), "signed by one of"},
		{"claims exchanged", parts[0] + "." + raw(`{"iss":"`+i.URL+`"}`) + "." + parts[2], "signature"},
		{"signature cut", good[:len(good)-4], "signature"}, {"foreign key, same kid", other(func(*oidctest.Key) {}), "signature"},
		{"foreign key, no kid", other(func(k *oidctest.Key) { k.ID = "" }), "signature"},
		{"unknown kid", other(func(k *oidctest.Key) { k.ID = "../../etc" }), "no key of that ID"},
		{"another algorithm", other(func(k *oidctest.Key) { k.Algorithm, k.Private = jose.ES384, p384 }), "no key of that ID"},
		{"its own key in the header", header("jwk", map[string]string{"kty": "EC"}), ""},
		{"duplicate header", raw(`{"alg":"ES256","kid":"ec","alg":"none"}`) + "." + parts[1] + "." + parts[2], ""},
		{"crit", header("crit", []string{"exp"}), "crit"}, {"crit b64", header("b64", false), "b64"},
		{"typ of another kind", header("typ", "logout+jwt"), "typ"}, {"typ DPoP", header("typ", "dpop+jwt"), "typ"}, {"typ not a text", header("typ", 5), "typ"},
		{"no iss", without("iss"), "issuer"}, {"iss longer", set("iss", i.URL+"/"), "issuer"}, {"iss of another", set("iss", "https://evil.example"), "issuer"},
		{"iss in capitals", set("iss", strings.ToUpper(i.URL)), "issuer"}, {"iss a list", set("iss", []string{i.URL}), "cannot be read"},
		{"no aud", without("aud"), "not for"}, {"aud of another", set("aud", "shop"), "not for"}, {"aud longer", set("aud", oidctest.Audience+"x"), "not for"},
		{"aud a wildcard", set("aud", []string{"*", ""}), "not for"}, {"aud an object", set("aud", map[string]any{"penstock": true}), "cannot be read"},
		{"no exp", without("exp"), "no exp"}, {"exp null", set("exp", nil), "no exp"}, {"exp a text", set("exp", "never"), "cannot be read"},
		{"expired now", set("exp", now), "expired"}, {"expired long ago", set("exp", 1), "expired"}, {"exp negative", set("exp", -1e300), ""}, {"exp huge", set("exp", 1e300), ""},
		{"lasts too long", set("exp", now+int64(25*3600)), "lasts until"}, {"nbf ahead", set("nbf", now+120), "not good before"}, {"iat ahead", set("iat", now+120), "in the future"},
		{"no sub", without("sub"), "sub"}, {"sub empty", set("sub", ""), "sub"}, {"sub a number", set("sub", 5), ""}, {"sub with a space", set("sub", "a b"), "sub"},
		{"sub with a newline", set("sub", "a\nlocal:root"), "sub"}, {"sub too long", set("sub", strings.Repeat("a", 257)), "sub"}, {"sub not ASCII", set("sub", "bоb"), "sub"},
		{"groups numbers", set("groups", []any{"a", 5}), "groups"}, {"groups an object", set("groups", map[string]any{"_claim_names": 1}), "groups"},
		{"groups empty name", set("groups", []string{""}), "groups"}, {"groups control", set("groups", []string{"a\x00b"}), "groups"},
		{"groups too many", set("groups", slices.Repeat([]string{"a"}, 501)), "at most 500"},
	} {
		wantBad(t, v, x.what, x.token, x.why)
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: key.Algorithm, Key: jose.JSONWebKey{Key: key.Private, KeyID: key.ID}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	for what, claims := range map[string]string{"claims written twice": `{"iss":"` + i.URL + `","iss":"` + i.URL + `"}`, "claims a list": `[]`, "claims a text": `"x"`, "claims no JSON": `x`} {
		signed, err := signer.Sign([]byte(claims))
		if err != nil {
			t.Fatal(err)
		}
		token, err := signed.CompactSerialize()
		if err != nil {
			t.Fatal(err)
		}
		wantBad(t, v, what, token, "cannot be read")
	}
}

// hmacOfPublic takes the public key for a shared secret.
func hmacOfPublic(t *testing.T, k oidctest.Key, claims string) string {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(k.Private.Public())
	if err != nil {
		t.Fatal(err)
	}
	text := base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"HS256","kid":"ec"}`)) + "." + claims
	mac := hmac.New(sha256.New, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
	mac.Write([]byte(text))
	return text + "." + base64.RawURLEncoding.EncodeToString(mac.Sum(nil))
}

// TestRotation: a new key is known at its first token, a storm of unknown keys asks
// the issuer once, and while it is down its last keys stay.
func TestRotation(t *testing.T) {
	first, second, third := oidctest.NewKey(t, "1"), oidctest.NewKey(t, "2"), oidctest.NewKey(t, "3")
	i := oidctest.Start(t, first)
	var ahead atomic.Int64 // of the clock
	v := verifier(t, i, func(o *oidc.Options) { o.Now = func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) } })
	token := func(k oidctest.Key) string { return oidctest.Sign(t, k, nil, claims(i, nil)) }
	good := func(what string, k oidctest.Key) {
		t.Helper()
		if _, err := v.Verify(t.Context(), token(k)); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	good("the first key", first)
	i.Serve(second)
	good("the second key, at once", second)
	wantBad(t, v, "the first key, which the issuer withdrew", token(first), "no key of that ID")
	before := i.Fetches()
	var storm sync.WaitGroup
	for range 50 {
		storm.Go(func() { _, _ = v.Verify(t.Context(), token(third)) })
	}
	storm.Wait()
	if n := i.Fetches() - before; n > 1 {
		t.Errorf("50 tokens with an unknown key had the keys fetched %d times", n)
	}
	i.Answer(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusInternalServerError) })
	ahead.Store(int64(time.Minute))
	wantBad(t, v, "a key that is unknown while the issuer is down", token(third), "no key of that ID")
	good("the last good key while the issuer is down", second)
	i.Answer(nil)
	i.Serve(third)
	ahead.Store(int64(2 * time.Minute))
	good("the third key, once the issuer is back", third)
}

// TestIssuerAnswers: no keys are taken from an issuer that answers as it must not.
func TestIssuerAnswers(t *testing.T) {
	key := oidctest.NewKey(t, "1")
	var evil *oidctest.Issuer
	document := func(w http.ResponseWriter, issuer, uri string) {
		_ = json.NewEncoder(w).Encode(map[string]string{"issuer": issuer, "jwks_uri": uri})
	}
	for what, x := range map[string]struct {
		why    string
		answer func(i *oidctest.Issuer, w http.ResponseWriter, r *http.Request)
	}{
		"down": {"500", func(_ *oidctest.Issuer, w http.ResponseWriter, _ *http.Request) { w.WriteHeader(500) }},
		"redirects to another host": {"another host", func(_ *oidctest.Issuer, w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, evil.URL+r.URL.Path, http.StatusFound)
		}},
		"redirects for ever": {"redirects more", func(_ *oidctest.Issuer, w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, r.URL.Path+"x", http.StatusFound)
		}},
		"redirects to plain text": {"another host", func(i *oidctest.Issuer, w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, strings.Replace(i.URL, "https", "http", 1), http.StatusFound)
		}},
		"another issuer": {"is the document of", func(i *oidctest.Issuer, w http.ResponseWriter, _ *http.Request) { document(w, evil.URL, i.URL+"/keys") }},
		"plain keys": {"does not begin with https", func(i *oidctest.Issuer, w http.ResponseWriter, _ *http.Request) {
			document(w, i.URL, "http://127.0.0.1/keys")
		}},
		"keys in a file": {"not a URL", func(i *oidctest.Issuer, w http.ResponseWriter, _ *http.Request) {
			document(w, i.URL, "file:///etc/passwd")
		}},
		"another document":  {"discovery", func(_ *oidctest.Issuer, w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("<html>")) }},
		"too long":          {"longer than", func(_ *oidctest.Issuer, w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(make([]byte, 2<<20)) }},
		"symmetric keys":    {"public key", keysAre(`{"keys":[{"kty":"oct","kid":"1","k":"AAAA"}]}`)},
		"no keys":           {"public key", keysAre(`{"keys":[]}`)},
		"keys in HTML":      {"public key", keysAre(`<html>`)},
		"a small RSA key":   {"public key", keysAre(`{"keys":[{"kty":"RSA","kid":"1","n":"AQAB","e":"AQAB"}]}`)},
		"an encryption key": {"public key", keysAre(`{"keys":[{"kty":"EC","use":"enc","kid":"1","crv":"P-256","x":"AA","y":"AA"}]}`)},
	} {
		t.Run(what, func(t *testing.T) {
			evil = oidctest.Start(t, key)
			i := oidctest.Start(t, key)
			i.Answer(func(w http.ResponseWriter, r *http.Request) { x.answer(i, w, r) })
			v := verifier(t, i, nil)
			_, err := v.Verify(t.Context(), oidctest.Sign(t, key, nil, claims(i, nil)))
			if _, ok := errors.AsType[*oidc.Unavailable](err); !ok || !strings.Contains(err.Error(), x.why) {
				t.Errorf("%v, want that no keys are known and %q", err, x.why)
			}
		})
	}
}

func keysAre(text string) func(*oidctest.Issuer, http.ResponseWriter, *http.Request) {
	return func(i *oidctest.Issuer, w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/keys" {
			_, _ = w.Write([]byte(text))
			return
		}
		_ = json.NewEncoder(w).Encode(map[string]string{"issuer": i.URL, "jwks_uri": i.URL + "/keys"})
	}
}

// TestFileOfKeys: keys of a file are read again when a token names one that is not known.
func TestFileOfKeys(t *testing.T) {
	file := filepath.Join(t.TempDir(), "jwks.json")
	write := func(k oidctest.Key) {
		b, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: k.Private.Public(), KeyID: k.ID}}})
		if err == nil {
			err = os.WriteFile(file+".new", b, 0o600)
		}
		if err == nil {
			err = os.Rename(file+".new", file)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	first, second := oidctest.NewKey(t, "1"), oidctest.NewKey(t, "2")
	write(first)
	i := &oidctest.Issuer{URL: "https://idp.invalid"}
	v := verifier(t, i, func(o *oidc.Options) { o.JWKSFile = file })
	for _, k := range []oidctest.Key{first, second} {
		write(k)
		if _, err := v.Verify(t.Context(), oidctest.Sign(t, k, nil, claims(i, nil))); err != nil {
			t.Errorf("key %s: %v", k.ID, err)
		}
	}
}

// TestOptions: every problem of a declaration is named at once.
func TestOptions(t *testing.T) {
	_, err := oidc.New(oidc.Options{Issuer: "http://idp.example.com", CAFile: "/nowhere"})
	for _, want := range []string{"https://", "audience", "CA file"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v does not say %q", err, want)
		}
	}
	for issuer, ok := range map[string]bool{
		"https://idp.example.com/realms/x": true, "http://127.0.0.1:5556": true, "http://localhost": true, "http://[::1]:1": true, "http://idp.example.com": false,
		"https://a:b@idp.example.com": false, "https://idp.example.com?x": false, "https://idp.example.com#x": false, "idp.example.com": false, "": false,
		"http://127.0.0.1.example.com": false, "ftp://127.0.0.1": false,
	} {
		if _, err := oidc.New(oidc.Options{Issuer: issuer, Audiences: []string{"x"}, AllowHTTP: true}); (err == nil) != ok {
			t.Errorf("issuer %q: %v", issuer, err)
		}
	}
}

// FuzzVerify: no text ends the process, takes the place of a signed token, or shows up
// in an error.
func FuzzVerify(f *testing.F) {
	key := oidctest.NewKey(f, "1")
	i := &oidctest.Issuer{URL: "https://idp.invalid"}
	file := filepath.Join(f.TempDir(), "jwks.json")
	b, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: key.Private.Public(), KeyID: key.ID}}})
	if err == nil {
		err = os.WriteFile(file, b, 0o600)
	}
	if err != nil {
		f.Fatal(err)
	}
	v := verifier(f, i, func(o *oidc.Options) { o.JWKSFile = file })
	good := oidctest.Sign(f, key, nil, claims(i, func(c map[string]any) { c["exp"] = time.Now().Add(20 * time.Hour).Unix() }))
	f.Add(good)
	f.Add("..")
	f.Add(strings.Replace(good, ".", "..", 1))
	f.Add(base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"ES256","kid":"1","crit":["b64"],"b64":false}`)) + good[strings.IndexByte(good, '.'):])
	f.Fuzz(func(t *testing.T, text string) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel() // no waiting for unknown keys
		c, err := v.Verify(ctx, text)
		// The encoding of a signature is not unique, what is signed is.
		signed := good[:strings.LastIndexByte(good, '.')]
		if err == nil && (!strings.HasPrefix(text, signed+".") || c.Name != "oidc:https://idp.invalid#1234") {
			t.Errorf("%q is taken, as %+v", text, c)
		}
		if err != nil && len(text) > 100 && strings.Contains(err.Error(), text) {
			t.Errorf("the error repeats the token: %v", err)
		}
	})
}
