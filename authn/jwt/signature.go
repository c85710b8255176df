package jwt

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/rsa"
	"math/big"
	"strings"
)

// hashes are those of the algorithms, by the number at their end (RFC 7518, section 3.1).
var hashes = map[string]crypto.Hash{"256": crypto.SHA256, "384": crypto.SHA384, "512": crypto.SHA512}

// sizes of the curves of elliptic keys, by the same number (RFC 7518, section 3.4).
var sizes = map[string]int{"256": 256, "384": 384, "512": 521}

// verifies reports whether a signature is that of a text by a key, as Envoy 1.40 decides:
// it does not look at the header "crit" (RFC 7515, section 4.1.11; the guard does), and
// takes each half of an elliptic signature for a number, whatever its length.
func verifies(key any, algorithm, text string, signature []byte) bool {
	if algorithm == "EdDSA" {
		k, ok := key.(ed25519.PublicKey)
		return ok && ed25519.Verify(k, []byte(text), signature)
	}
	kind, number := algorithm[:2], algorithm[2:]
	hash := hashes[number]
	sum := hash.New()
	sum.Write([]byte(text))
	digest := sum.Sum(nil)
	switch k := key.(type) {
	case *ecdsa.PublicKey:
		half := len(signature) / 2
		r, s := new(big.Int).SetBytes(signature[:half]), new(big.Int).SetBytes(signature[half:2*half])
		return kind == "ES" && k.Curve.Params().BitSize == sizes[number] && ecdsa.Verify(k, digest, r, s)
	case *rsa.PublicKey:
		if kind == "PS" {
			return rsa.VerifyPSS(k, hash, digest, signature, &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash}) == nil
		}
		return kind == "RS" && rsa.VerifyPKCS1v15(k, hash, digest, signature) == nil
	case []byte:
		mac := hmac.New(hash.New, k)
		mac.Write([]byte(text))
		return strings.HasPrefix(kind, "HS") && hmac.Equal(mac.Sum(nil), signature)
	}
	return false
}
