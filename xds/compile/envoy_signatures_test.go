package compile_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	jose "github.com/go-jose/go-jose/v4"

	"github.com/penstock-gateway/penstock/gateway/explain"
)

// algorithm signs texts, and has the public key that verifies them.
type algorithm struct {
	name   string
	public any
	sign   func(text string) []byte
}

// signingAlgorithms are all that Envoy verifies with public keys.
func signingAlgorithms(t *testing.T) map[string]algorithm {
	t.Helper()
	must := func(err error) {
		if err != nil {
			t.Fatal(err)
		}
	}
	out := map[string]algorithm{}
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	must(err)
	curves := map[string]elliptic.Curve{"256": elliptic.P256(), "384": elliptic.P384(), "512": elliptic.P521()}
	for bits, hash := range map[string]crypto.Hash{"256": crypto.SHA256, "384": crypto.SHA384, "512": crypto.SHA512} {
		digest := func(text string) []byte {
			h := hash.New()
			h.Write([]byte(text))
			return h.Sum(nil)
		}
		ec, err := ecdsa.GenerateKey(curves[bits], rand.Reader)
		must(err)
		out["ES"+bits] = algorithm{"ES" + bits, ec.Public(), func(text string) []byte {
			r, s, err := ecdsa.Sign(rand.Reader, ec, digest(text))
			must(err)
			size := (ec.Params().BitSize + 7) / 8
			return append(r.FillBytes(make([]byte, size)), s.FillBytes(make([]byte, size))...)
		}}
		out["RS"+bits] = algorithm{"RS" + bits, rsaKey.Public(), func(text string) []byte {
			b, err := rsa.SignPKCS1v15(nil, rsaKey, hash, digest(text))
			must(err)
			return b
		}}
		for name, salt := range map[string]int{"PS" + bits: rsa.PSSSaltLengthEqualsHash, "PS" + bits + " long salt": rsa.PSSSaltLengthAuto, "PS" + bits + " short salt": 8} {
			out[name] = algorithm{"PS" + bits, rsaKey.Public(), func(text string) []byte {
				b, err := rsa.SignPSS(rand.Reader, rsaKey, hash, digest(text), &rsa.PSSOptions{SaltLength: salt, Hash: hash})
				must(err)
				return b
			}}
		}
	}
	public, private, err := ed25519.GenerateKey(rand.Reader)
	must(err)
	out["EdDSA"] = algorithm{"EdDSA", public, func(text string) []byte { return ed25519.Sign(private, []byte(text)) }}
	return out
}

// halves are the two numbers of a signature of an elliptic curve, each padded to n bytes.
func halves(signature []byte, n int) []byte {
	h := len(signature) / 2
	pad := make([]byte, n-h)
	return slices.Concat(pad, signature[:h], pad, signature[h:])
}

// lastCharacter changes bits of the last character that base64url leaves unused.
func lastCharacter(text string) string {
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	i := strings.IndexByte(alphabet, text[len(text)-1])
	return text[:len(text)-1] + alphabet[i^1:i^1+1]
}

// signatureChanges are what is done to signatures, before and after they are encoded.
var signatureChanges = map[string]struct {
	bytes func([]byte) []byte
	text  func(string) string
}{
	"none":            {},
	"one byte more":   {bytes: func(b []byte) []byte { return append(b, 1) }},
	"a zero more":     {bytes: func(b []byte) []byte { return append(b, 0) }},
	"two bytes more":  {bytes: func(b []byte) []byte { return append(b, 1, 2) }},
	"many bytes more": {bytes: func(b []byte) []byte { return append(b, make([]byte, 1000)...) }},
	"twice":           {bytes: func(b []byte) []byte { return append(b, b...) }},
	"a zero before":   {bytes: func(b []byte) []byte { return append([]byte{0}, b...) }},
	"zeros in halves": {bytes: func(b []byte) []byte { return halves(b, len(b)/2+3) }},
	"zeros, one more": {bytes: func(b []byte) []byte { return append(halves(b, len(b)/2+1), 7) }},
	"one byte less":   {bytes: func(b []byte) []byte { return b[:len(b)-1] }},
	"two bytes less":  {bytes: func(b []byte) []byte { return b[:len(b)-2] }},
	"another byte":    {bytes: func(b []byte) []byte { return append(slices.Clone(b[:len(b)-1]), b[len(b)-1]^1) }},
	"zeros alone":     {bytes: func(b []byte) []byte { return make([]byte, len(b)) }},
	"a single byte":   {bytes: func([]byte) []byte { return []byte{1} }},
	"empty":           {bytes: func([]byte) []byte { return nil }},
	"a blank":         {text: func(string) string { return " " }},
	"unused bits":     {text: lastCharacter},
	"one letter more": {text: func(s string) string { return s + "A" }},
	"two letters":     {text: func(s string) string { return s + "AA" }},
	"one letter less": {text: func(s string) string { return s[:len(s)-1] }},
	"padding":         {text: func(s string) string { return s + strings.Repeat("=", (4-len(s)%4)%4) }},
	"one =":           {text: func(s string) string { return s + "=" }},
	"three =":         {text: func(s string) string { return s + "===" }},
	"= =":             {text: func(s string) string { return s + "= =" }},
	"tab in it":       {text: func(s string) string { return s[:5] + "\t" + s[5:] }},
	"blank in it":     {text: func(s string) string { return s[:5] + " " + s[5:] }},
	"plus":            {text: func(s string) string { return s[:5] + "+" + s[6:] }},
	"a dot more":      {text: func(s string) string { return s + "." }},
	"two dots before": {text: func(s string) string { return "." + s }},
	"a fourth part":   {text: func(s string) string { return s + ".e30" }},
}

// testSignatures: Envoy verifies signatures of any length and spelling as explain says, with
// keys that name their algorithm and keys that do not.
func testSignatures(t *testing.T, r *rig) {
	algorithms := signingAlgorithms(t)
	yaml := strings.Builder{}
	yaml.WriteString(gatewayOn)
	route := func(path string, keys ...jose.JSONWebKey) {
		b, err := json.Marshal(jose.JSONWebKeySet{Keys: keys})
		if err != nil {
			t.Fatal(err)
		}
		q, err := json.Marshal(string(b))
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&yaml, `---
kind: Route
name: %s
rules: [{name: all, matches: [{path: {exact: /%s}}], forward: {backends: [{backend: up}]}}]
policies: {authentication: {jwt: {issuer: "https://issuer.test", audiences: [app], jwks: %s}}}
`, strings.ToLower(path), path, q)
	}
	var bare []jose.JSONWebKey
	for _, name := range slices.Sorted(maps.Keys(algorithms)) {
		a := algorithms[name]
		if a.name == name {
			route(name, jose.JSONWebKey{Key: a.public, KeyID: "one", Algorithm: name})
			route("bare-"+name, jose.JSONWebKey{Key: a.public})
			bare = append(bare, jose.JSONWebKey{Key: a.public})
		}
	}
	route("bare-all", bare...)
	slices.Reverse(bare)
	route("bare-reversed", bare...)
	port := r.serve(t, yaml.String())
	ask := func(path, name, alg string, sign func(string) []byte, change string, header map[string]any) int {
		t.Helper()
		h := map[string]any{"alg": alg}
		maps.Copy(h, header)
		claims := map[string]any{"iss": "https://issuer.test", "aud": "app", "sub": "alice", "exp": time.Now().Unix() + 3600}
		text := unsigned(h, claims)
		signature := sign(text)
		c := signatureChanges[change]
		if c.bytes != nil {
			signature = c.bytes(signature)
		}
		encoded := base64.RawURLEncoding.EncodeToString(signature)
		if c.text != nil {
			encoded = c.text(encoded)
		}
		return r.sameAsExplained(t, port, path, fmt.Sprintf("%s at %s, signature with %s", name, path, change), "Bearer "+text+"."+encoded)
	}
	for name, a := range algorithms {
		for change := range signatureChanges {
			ask("/"+a.name, name, a.name, a.sign, change, nil)
			ask("/bare-"+a.name, name, a.name, a.sign, change, nil)
		}
		if status := ask("/"+a.name, name, a.name, a.sign, "none", nil); (status == 200) == strings.HasSuffix(name, "salt") {
			t.Errorf("%s: %d for a token that was not changed", name, status)
		}
		ask("/"+a.name, name, a.name, a.sign, "none", map[string]any{"crit": []string{"exp"}})
		ask("/"+a.name, name, a.name, a.sign, "another byte", map[string]any{"crit": []string{"exp"}})
		ask("/"+a.name, name, a.name, a.sign, "none", map[string]any{"crit": []string{}, "b64": false})
		ask("/"+a.name, name, a.name, a.sign, "none", map[string]any{"kid": "two"})
		ask("/"+a.name, name, a.name, a.sign, "none", map[string]any{"kid": 1})
		ask("/"+a.name, name, a.name, a.sign, "none", map[string]any{"jwk": map[string]any{"kty": "EC"}, "nonce": "x"})
		// A key that does not name an algorithm is tried with any.
		for other := range algorithms {
			for _, alg := range []string{algorithms[other].name, "HS256", "HS512"} {
				ask("/bare-"+a.name, name, alg, algorithms[other].sign, "none", nil)
				ask("/bare-"+a.name, name, alg, a.sign, "none", nil)
			}
		}
		for _, path := range []string{"/bare-all", "/bare-reversed"} {
			ask(path, name, a.name, a.sign, "none", nil)
		}
	}
}

// sameAsExplained sends a request with a token, and compares the answer with what explain
// says of it. It returns the status.
func (r *rig) sameAsExplained(t *testing.T, port int, path, what, authorization string) int {
	t.Helper()
	q := &sent{port: port, method: "GET", host: "x.test", target: path, lines: []string{"Authorization: " + authorization}}
	o := explain.Explain(r.snapshot, q.explained(), nil).GetOutcome()
	got := r.exchange(t, q)
	if got.status != int(o.GetStatus()) || got.code(t) != o.GetCode() {
		t.Errorf("%s: got %d %s, explain says %s", what, got.status, got.code(t), o.GetText())
	}
	return got.status
}

// testTimes: Envoy compares the times of tokens as explain says.
func testTimes(t *testing.T, r *rig) {
	port := r.serve(t, gatewayOn+hosts(protected))
	now := time.Now().Unix()
	for _, claim := range []string{"exp", "nbf", "iat"} {
		for _, v := range []any{nil, 0, -1, 1, now - 3600, now + 600, now + 3600, now + 30*3600, 4e9, 5e9, 1e17, 9e18, 1e19, 1.8e19, 2e19, 1.5, "soon", true, []int{1}, map[string]any{}, float64(now) + 600.5} {
			for _, path := range []string{"/must", "/may", "/both", "/lost"} {
				r.sameAsExplained(t, port, path, fmt.Sprintf("%s %v at %s", claim, v, path), "Bearer "+r.token(t, map[string]any{claim: v, "aud": []string{"app", "admin"}}))
			}
		}
	}
}
