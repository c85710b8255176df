package gateway

import (
	"encoding/json"
	"strings"
	"testing"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// oddKeys are keys that issuers were seen to have beside those for tokens, with what a
// warning says of each.
var oddKeys = map[string]string{
	`{"kty":"EC","kid":"odd","use":"sig","alg":"ES256K","crv":"secp256k1","x":"Jnq5y2xYHfEvV0JbeQpuvQYgrC7wHUzNy0g6nD2UNCM","y":"j2dwYUn0S1NHZKQFSQSPrgEcU9Fsk1BKjRLo6yzYwqU"}`: `crv "secp256k1"`,
	`{"kty":"OKP","kid":"odd","crv":"Ed448","x":"X9dEm1m0Yf0s54fsYWrUah2hNCSFpw4fig6nXYDpZ3jt8SR2m0bHBhvWeD3x5Q9s0foavq_oJWGA"}`:                                                `crv "Ed448"`,
	`{"kty":"OKP","kid":"odd","crv":"X25519","x":"hSDwCYkwp1R0i33ctD73Wg2_Og0mOBr066SpjqqbTmo"}`:                                                                                "kty \"OKP\"",
	`{"kty":"AKP","kid":"odd","alg":"ML-DSA-44","pub":"AAAA"}`:                                                                                                                  `kty "AKP"`,
	`{"kid":"odd"}`: "cannot be read",
	`{"kty":"RSA","kid":"odd","e":"AQAB","n":"n4EPtAOCc9AlkeQHPzHStgAbgs7bTZLwUBZdR8_KuKPEHLd4rHVTeT-O-XV2jRoj"}`: "at least 2048",
	`{"kty":"oct","kid":"odd","k":"AAAA"}`:                                 "symmetric",
	`{"kty":"EC","kid":"odd","crv":"P-256","x":"AAAA","y":"AAAA"}`:         "cannot be read",
	`{"kty":"RSA","kid":"odd","use":"enc","alg":"RSA-OAEP","e":"AQAB"}`:    `use "enc"`,
	`{"kty":"EC","kid":"odd","use":["sig"],"crv":"P-256"}`:                 `"use" that is not text`,
	`{"kty":{"a":1},"kid":"odd"}`:                                          "cannot be read",
	`{"kty":"RSA","kid":"odd","alg":"HS256","e":"AQAB","n":"GOODMODULUS"}`: `alg "HS256"`,
}

const goodModulus = "n4EPtAOCc9AlkeQHPzHStgAbgs7bTZLwUBZdR8_KuKPEHLd4rHVTeT-O-XV2jRojdNhxJWTDvNd7nqQ0VEiZQHz_AJmSCpMaJMRBSFKrKb2wqVwGU_NsYOYL-QtiWN2lbzcEe6XC0dApr5ydQLrHqkHHig3RBordaZ6Aj-oBHqFEHYpPe7Tpe-OfVfHd1E6cS6M1FZcD1NNLYD5lFHpPI9bTwJlsde3uhGqC0ZCuEHg8lhzwOHrtIQbS0FVbb9k3-tVTU4fg_3L_vniUFAKwuCLqKnS2BYwdq_mzSnbLY7h_qixoR7jig3__kRhuaxwUkRz5iaiQkqgc5gHdrNP5zw"

// TestOddKeys: a key of another kind is ignored with a warning that names it, the others
// serve, and what Envoy gets holds nothing but what it needs (RFC 7517, section 5).
func TestOddKeys(t *testing.T) {
	good := `{"kty":"RSA","kid":"good","use":"sig","alg":"RS256","e":"AQAB","n":"` + goodModulus + `","x5c":["MIIB"],"x5t":5,"more":{"a":1}}`
	secret := func(keys ...string) *pb.Secret {
		return &pb.Secret{Name: "projects/p/secrets/s", Value: &pb.Secret_Jwks{Jwks: `{"keys": [` + strings.Join(keys, ",") + `]}`}}
	}
	for odd, want := range oddKeys {
		odd = strings.ReplaceAll(odd, "GOODMODULUS", goodModulus)
		s := secret(odd, good)
		if p := model.Validate(s); len(p) > 0 {
			t.Errorf("%s: %v", odd, p)
		}
		w := model.Warnings(s)
		if len(w) != 1 || w[0].Field != "jwks" || !strings.Contains(w[0].Message, `keys[0] (kid "odd")`) || !strings.Contains(w[0].Message, want) {
			t.Errorf("%s: warnings %v, want %s", odd, w, want)
		}
		var served struct{ Keys []map[string]any }
		if err := json.Unmarshal([]byte(VerificationKeys(s.GetJwks())), &served); err != nil || len(served.Keys) != 1 || served.Keys[0]["kid"] != "good" || len(served.Keys[0]) != 6 {
			t.Errorf("%s: served %v, %v", odd, served, err)
		}
		if p := model.Validate(secret(odd)); len(p) != 1 || !strings.Contains(p[0].Message, "no key that a token can be checked with") || !strings.Contains(p[0].Message, want) {
			t.Errorf("%s alone: %v", odd, p)
		}
		if VerificationKeys(secret(odd).GetJwks()) != "" {
			t.Errorf("%s alone is served", odd)
		}
	}
	if w := model.Warnings(secret(good, good)); len(w) != 1 || !strings.Contains(w[0].Message, `keys[1] (kid "good") has the kid of keys[0]`) {
		t.Errorf("two keys of one kid: %v", w)
	}
	if p := model.Validate(secret(good, `{"kty":"RSA","kid":"p","e":"AQAB","n":"AAAA","d":"SECRET"}`)); len(p) != 1 || !strings.Contains(p[0].Message, `keys[1] (kid "p") holds a private key`) || strings.Contains(p[0].Message, "SECRET") {
		t.Errorf("a private key: %v", p)
	}
	route := &pb.Route{Name: "projects/p/routes/r", Rules: []*pb.RouteRule{{Policies: &pb.Policies{Authentication: &pb.AuthenticationPolicy{
		Jwt: &pb.JwtAuthentication{Keys: &pb.JwtAuthentication_Jwks{Jwks: secret(`{"kid":"odd"}`, good).GetJwks()}},
	}}}}}
	if w := model.Warnings(route); len(w) != 1 || w[0].Field != "rules[0].policies.authentication.jwt.jwks" {
		t.Errorf("keys written on a rule: %v", w)
	}
}
