package jwt

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"math/big"
	"slices"
	"strings"
)

// verifies reports whether a signature is that of a text by a key, as Envoy 1.40 decides:
// it does not look at the header "crit" (RFC 7515, section 4.1.11; the guard does), and
// takes each half of an elliptic signature for a number, whatever its length. A key that
// does not name its algorithm also verifies what says that it is of another one: all but
// the hash follows from the key.
func verifies(key any, algorithm, text string, signature []byte) bool {
	switch k := key.(type) {
	case ed25519.PublicKey:
		return ed25519.Verify(k, []byte(text), signature)
	case *ecdsa.PublicKey:
		half := len(signature) / 2
		r, s := new(big.Int).SetBytes(signature[:half]), new(big.Int).SetBytes(signature[half:2*half])
		return ecdsa.Verify(k, digest(hashOf(algorithm, "ES"), text), r, s)
	case *rsa.PublicKey:
		hash := hashOf(algorithm, "RS", "PS")
		if strings.HasPrefix(algorithm, "PS") {
			return rsa.VerifyPSS(k, hash, digest(hash, text), signature, &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash}) == nil
		}
		return strings.HasPrefix(algorithm, "RS") && rsa.VerifyPKCS1v15(k, hash, digest(hash, text), signature) == nil
	}
	return false // others are not in a set, see gateway.VerificationKeys
}

// hashOf is the hash of an algorithm of one of these families (RFC 7518, section 3.1), and
// SHA-256 for others.
func hashOf(algorithm string, families ...string) crypto.Hash {
	if len(algorithm) != len("ES256") || !slices.Contains(families, algorithm[:2]) {
		return crypto.SHA256
	}
	switch algorithm[2:] {
	case "384":
		return crypto.SHA384
	case "512":
		return crypto.SHA512
	}
	return crypto.SHA256
}

func digest(hash crypto.Hash, text string) []byte {
	h := hash.New()
	h.Write([]byte(text))
	return h.Sum(nil)
}
