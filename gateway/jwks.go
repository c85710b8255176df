package gateway

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	jose "github.com/go-jose/go-jose/v4"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// minRSABits is the least size of an RSA key (NIST SP 800-131A; Envoy refuses
// smaller certificates).
const minRSABits = 2048

// privateMembers of a JSON Web Key (RFC 7518, section 6).
var privateMembers = []string{"d", "p", "q", "dp", "dq", "qi", "oth", "priv"}

// publicMembers are what Envoy needs of a key. Others, such as certificates, may hold
// what it cannot read.
var publicMembers = []string{"kty", "kid", "alg", "use", "crv", "x", "y", "n", "e"}

// keySet is what a JSON Web Key Set (RFC 7517) is good for.
type keySet struct {
	// usable are the keys that tokens can be checked with, with their public members.
	usable []map[string]json.RawMessage
	// ignored says of each other key which it is and why: issuers may have keys of kinds
	// that are not known here, and the rest of the set still holds (RFC 7517, section 5).
	ignored []string
	// problems are why the set as a whole must not be stored.
	problems []string
}

// VerificationKeys returns the JSON Web Key Set with those keys of a set that Envoy can
// verify signatures with; "" when there are none. Messages never show key material.
func VerificationKeys(text string) string {
	keys := readKeySet(text).usable
	if len(keys) == 0 {
		return ""
	}
	b, err := json.Marshal(map[string]any{"keys": keys})
	if err != nil {
		return ""
	}
	return string(b)
}

// readKeySet reads a set. Its messages name a key by position and kid, and never
// show key material.
func readKeySet(text string) (set keySet) {
	var doc struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if err := json.Unmarshal([]byte(text), &doc); err != nil {
		why := err.Error()
		if _, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
			why = "it is other JSON"
		}
		set.problems = append(set.problems, `is not a JSON Web Key Set, such as {"keys": [{"kty": "EC", …}]}: `+why)
		return set
	}
	if len(doc.Keys) == 0 {
		set.problems = append(set.problems, `has no keys; a key set looks like {"keys": [{"kty": "EC", …}]}`)
		return set
	}
	kids := map[string]string{}
	for i, raw := range doc.Keys {
		at := fmt.Sprintf("keys[%d]", i)
		var members map[string]json.RawMessage
		if err := json.Unmarshal(raw, &members); err != nil || members == nil {
			set.problems = append(set.problems, at+" is not a JSON object")
			continue
		}
		kid := textMember(members, "kid")
		if kid != "" {
			at += fmt.Sprintf(" (kid %.80q)", kid)
		}
		for _, m := range privateMembers {
			if members[m] != nil && textMember(members, "kty") != "oct" {
				set.problems = append(set.problems, fmt.Sprintf("%s holds a private key (%q); remove it and issue a new one, because it was sent here", at, m))
				members = nil
				break
			}
		}
		if members == nil {
			continue
		}
		if why := unusable(members); why != "" {
			set.ignored = append(set.ignored, at+" is ignored: it "+why)
			continue
		}
		if first, ok := kids[kid]; ok && kid != "" {
			// Tokens are checked with each key of the kid.
			set.ignored = append(set.ignored, fmt.Sprintf("%s has the kid of %s; a token that names it is checked with both, so give each key its own", at, first))
		} else {
			kids[kid] = fmt.Sprintf("keys[%d]", i)
		}
		set.usable = append(set.usable, public(members))
	}
	if len(set.usable) == 0 && len(set.problems) == 0 {
		set.problems = append(set.problems, "has no key that a token can be checked with: "+strings.Join(set.ignored, "; "))
	}
	return set
}

func textMember(members map[string]json.RawMessage, name string) string {
	var s string
	if json.Unmarshal(members[name], &s) != nil {
		return ""
	}
	return s
}

// public leaves of a key what Envoy needs.
func public(members map[string]json.RawMessage) map[string]json.RawMessage {
	out := map[string]json.RawMessage{}
	for _, m := range publicMembers {
		if v := members[m]; v != nil && string(v) != "null" {
			out[m] = v
		}
	}
	return out
}

// unusable says why no token can be checked with a key in Envoy; "" when one can.
func unusable(members map[string]json.RawMessage) string {
	kty, alg := textMember(members, "kty"), textMember(members, "alg")
	switch use := textMember(members, "use"); {
	case kty == "oct" || members["k"] != nil:
		return "is symmetric: whoever can check tokens with it could make them"
	case use != "" && use != "sig":
		return fmt.Sprintf("is not for signatures (use %.20q)", use)
	}
	for _, m := range []string{"kid", "alg", "use"} {
		if v := members[m]; v != nil && v[0] != '"' && string(v) != "null" {
			return fmt.Sprintf("has a %q that is not text", m)
		}
	}
	raw, err := json.Marshal(public(members))
	if err != nil {
		return "cannot be read"
	}
	var key jose.JSONWebKey
	if err := json.Unmarshal(raw, &key); err != nil {
		return fmt.Sprintf("cannot be read, or is of a kind that is not known here (kty %.20q, crv %.20q)", kty, textMember(members, "crv"))
	}
	want, problem := keyAlgorithms(key.Key)
	switch {
	case problem != "":
		return problem
	case alg != "" && !slices.Contains(want, alg):
		return fmt.Sprintf("has alg %.20q, but such a key is for %s", alg, strings.Join(want, ", "))
	}
	return ""
}

// jwks checks a JSON Web Key Set: public keys only, and one at least that tokens can be
// checked with.
func (c *checker) jwks(field, text string) {
	for _, p := range readKeySet(text).problems {
		c.add(field, "%s", p)
	}
}

// keyWarnings are the keys of a key set that are ignored.
func (c *checker) keyWarnings(s *pb.Secret) {
	for _, i := range readKeySet(s.GetJwks()).ignored {
		c.add("jwks", "%s", i)
	}
}

// KeyAlgorithms names the algorithms (RFC 7518) that a public key verifies; none for
// a key that is not to be used.
func KeyAlgorithms(key any) []string {
	list, _ := keyAlgorithms(key)
	return list
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
			return nil, "is an RSA key with an even modulus, which is not a product of two large primes"
		}
		// BoringSSL, and so Envoy, takes these two only (seen with 1.40).
		if k.E != 3 && k.E != 65537 {
			return nil, fmt.Sprintf("is an RSA key with the exponent %d; Envoy takes 65537 and 3 only", k.E)
		}
		return []string{"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"}, ""
	case *ecdsa.PublicKey:
		if k.Curve == nil || !k.Curve.IsOnCurve(k.X, k.Y) { //nolint:staticcheck // a key that is not a point must be refused
			return nil, "is not a point of its curve"
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
