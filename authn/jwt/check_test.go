package jwt

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"strings"
	"testing"
	"time"

	jose "github.com/go-jose/go-jose/v4"
	josejwt "github.com/go-jose/go-jose/v4/jwt"

	"github.com/penstock-gateway/penstock/gateway"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// TestCheck: what is said of a token, and who refuses it. That a proxy decides the same is
// compared in xds/compile (TestExplain).
func TestCheck(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	set, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: key.Public(), KeyID: "one", Algorithm: "ES256"}}})
	if err != nil {
		t.Fatal(err)
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: key}, (&jose.SignerOptions{}).WithHeader("kid", "one"))
	if err != nil {
		t.Fatal(err)
	}
	now := time.Unix(1_800_000_000, 0)
	bearer := func(change map[string]any) []string {
		claims := map[string]any{"iss": "https://issuer.test", "aud": "a", "sub": "alice", "exp": now.Unix() + 60}
		for k, v := range change {
			claims[k] = v
		}
		text, err := josejwt.Signed(signer).Claims(claims).Serialize()
		if err != nil {
			t.Fatal(err)
		}
		return []string{"Bearer " + text}
	}
	known := tokenPolicy(nil)
	optional := tokenPolicy(func(p *pb.JwtAuthentication) { p.Optional = true })
	listed := tokenPolicy(func(p *pb.JwtAuthentication) { p.Consumers = []string{"bob"} })
	facts := Facts{
		Keys: func(string) string { return string(set) }, Now: now,
		Consumer: func(string) *pb.Consumer {
			return &pb.Consumer{Jwt: &pb.JwtIdentity{Issuer: "https://issuer.test", Subject: "bob"}}
		},
	}
	none := gateway.Answer{}
	for name, c := range map[string]struct {
		policy *pb.JwtAuthentication
		lines  []string
		answer gateway.Answer
		guard  bool
		reason string
	}{
		"good":              {known, bearer(nil), none, false, ""},
		"none":              {known, nil, gateway.Unauthenticated, false, "the request brings no token"},
		"none, optional":    {optional, nil, none, false, ""},
		"other scheme":      {known, []string{strings.Replace(bearer(nil)[0], "Bearer", "Basic", 1)}, gateway.RefusedToken, true, "does not stand in the header"},
		"bad, optional":     {optional, []string{"Basic eA"}, gateway.Unauthenticated, false, "is malformed"},
		"no blank":          {optional, []string{"Bearer"}, gateway.RefusedToken, true, "is not one of issuer"},
		"two":               {known, append(bearer(nil), bearer(nil)...), gateway.Unauthenticated, false, "it does not have three parts"},
		"expired":           {known, bearer(map[string]any{"exp": now.Unix() - 31}), gateway.Unauthenticated, false, "has expired at 2027-01-15T07:59:29Z"},
		"within the skew":   {known, bearer(map[string]any{"exp": now.Unix() - 30}), none, false, ""},
		"too long":          {known, bearer(map[string]any{"exp": now.Unix() + 90_000}), gateway.Unauthenticated, false, "longer than max_lifetime"},
		"for ever":          {known, bearer(map[string]any{"exp": 0}), gateway.Unauthenticated, false, "does not expire"},
		"time overflows":    {known, bearer(map[string]any{"exp": 1e19}), gateway.RefusedToken, true, "has a time"},
		"time out of range": {known, bearer(map[string]any{"exp": 2e19}), gateway.Unauthenticated, false, "its claim exp is not a time"},
		"empty parts":       {known, []string{bearer(nil)[0] + "."}, gateway.RefusedToken, true, "does not stand in the header"},
		"other audience":    {known, bearer(map[string]any{"aud": "c"}), gateway.RefusedToken, false, "is not for audience"},
		"audience alike":    {known, bearer(map[string]any{"aud": "https://a/"}), gateway.RefusedToken, true, "is not for audience"},
		"one of a list":     {known, bearer(map[string]any{"aud": []string{"x", "b"}}), none, false, ""},
		"other issuer":      {known, bearer(map[string]any{"iss": "https://evil.test"}), gateway.Unauthenticated, false, `is of issuer "https://evil.test"`},
		"issued later":      {known, bearer(map[string]any{"iat": now.Unix() + 31}), gateway.RefusedToken, true, "is issued later than now"},
		"not listed":        {listed, bearer(nil), gateway.Forbidden, true, "is of no consumer"},
		"listed":            {listed, bearer(map[string]any{"sub": "bob"}), none, false, ""},
		"unclean subject":   {known, bearer(map[string]any{"sub": " alice"}), gateway.RefusedToken, true, "has a sub with"},
		"another signature": {known, []string{bearer(nil)[0][:len(bearer(nil)[0])-20] + "AAAAAAAAAAAAAAAAAAAA"}, gateway.Unauthenticated, false, "has a signature that no key verifies"},
	} {
		v := Check(providers(c.policy), c.lines, facts)
		if v.Answer != c.answer || v.Passes != (c.answer == none) || v.ByGuard != c.guard || !strings.Contains(v.Reason, c.reason) {
			t.Errorf("%s: %+v", name, v)
		}
	}
	if v := Check(providers(known), bearer(nil), facts); v.Subject != "alice" || v.Issuer != "https://issuer.test" {
		t.Errorf("caller %+v", v)
	}
}

// FuzzCheck looks for panics in what a caller sends.
func FuzzCheck(f *testing.F) {
	for _, s := range []string{"", "Bearer", "Bearer a.b.c", "Bearer e30.e30.", "Bearer eyJhbGciOiJFUzI1NiJ9.e30.AA==", "Basic YTpi, x"} {
		f.Add(s)
	}
	p := providers(tokenPolicy(nil))
	f.Fuzz(func(t *testing.T, line string) {
		if v := Check(p, []string{line}, Facts{Keys: func(string) string { return nobodysKey }, Now: time.Unix(1, 0)}); v.Passes {
			t.Errorf("%q passes", line)
		}
	})
}
