package jwt

import (
	"crypto/elliptic"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"testing"
	"time"

	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/rbac/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/penstock-gateway/penstock/gateway"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// TestNobodysKey derives the key again: nobody chose its private half.
func TestNobodysKey(t *testing.T) {
	var set struct{ Keys []struct{ X, Y string } }
	if err := json.Unmarshal([]byte(nobodysKey), &set); err != nil {
		t.Fatal(err)
	}
	x := sha256.Sum256([]byte("penstock: a key that nobody holds/0"))
	if got := base64.RawURLEncoding.EncodeToString(x[:]); got != set.Keys[0].X {
		t.Errorf("x is %s", set.Keys[0].X)
	}
	y, err := base64.RawURLEncoding.DecodeString(set.Keys[0].Y)
	if err != nil {
		t.Fatal(err)
	}
	// y^2 = x^3 - 3x + b
	p := elliptic.P256().Params()
	bx, by := new(big.Int).SetBytes(x[:]), new(big.Int).SetBytes(y)
	right := new(big.Int).Exp(bx, big.NewInt(3), p.P)
	right.Sub(right, new(big.Int).Mul(big.NewInt(3), bx)).Add(right, p.B).Mod(right, p.P)
	if left := new(big.Int).Exp(by, big.NewInt(2), p.P); left.Cmp(right) != 0 || by.Bit(0) != 0 {
		t.Error("y is not the even root on the curve")
	}
}

func tokenPolicy(change func(*pb.JwtAuthentication)) *pb.JwtAuthentication {
	p := &pb.JwtAuthentication{
		Issuer: "https://issuer.test", Audiences: []string{"b", "a"},
		Keys: &pb.JwtAuthentication_JwksSecret{JwksSecret: "keys"},
	}
	if change != nil {
		change(p)
	}
	return p
}

func providers(policies ...*pb.JwtAuthentication) []*Provider {
	var s []gateway.Sourced[*pb.JwtAuthentication]
	for _, p := range policies {
		s = append(s, gateway.Sourced[*pb.JwtAuthentication]{Source: gateway.Source{Object: &pb.Route{Name: "projects/p/routes/r"}}, Value: p})
	}
	return Providers(s, "other")
}

func TestProviders(t *testing.T) {
	base := providers(tokenPolicy(nil))[0]
	if base.Secret != "projects/p/secrets/keys" || base.Owner != "projects/p/routes/r" {
		t.Errorf("%+v", base)
	}
	for name, c := range map[string]struct {
		change func(*pb.JwtAuthentication)
		same   bool
	}{
		"order of audiences": {func(p *pb.JwtAuthentication) { slices.Reverse(p.Audiences) }, true},
		"full name of secret": {func(p *pb.JwtAuthentication) {
			p.Keys = &pb.JwtAuthentication_JwksSecret{JwksSecret: "projects/p/secrets/keys"}
		}, true},
		"consumers":        {func(p *pb.JwtAuthentication) { p.Consumers = []string{"alice"} }, true},
		"optional":         {func(p *pb.JwtAuthentication) { p.Optional = true }, true},
		"default skew":     {func(p *pb.JwtAuthentication) { p.ClockSkew = durationpb.New(30 * time.Second) }, true},
		"skew":             {func(p *pb.JwtAuthentication) { p.ClockSkew = durationpb.New(31 * time.Second) }, false},
		"lifetime":         {func(p *pb.JwtAuthentication) { p.MaxLifetime = durationpb.New(time.Hour) }, false},
		"issuer":           {func(p *pb.JwtAuthentication) { p.Issuer = "x" }, false},
		"audience":         {func(p *pb.JwtAuthentication) { p.Audiences = []string{"a"} }, false},
		"audiences joined": {func(p *pb.JwtAuthentication) { p.Audiences = []string{"a1:b"} }, false},
		"secret":           {func(p *pb.JwtAuthentication) { p.Keys = &pb.JwtAuthentication_JwksSecret{JwksSecret: "more"} }, false},
		"inline":           {func(p *pb.JwtAuthentication) { p.Keys = &pb.JwtAuthentication_Jwks{Jwks: "{}"} }, false},
		"claims":           {func(p *pb.JwtAuthentication) { p.ClaimHeaders = []*pb.ClaimHeader{{Claim: "sub", Header: "x-sub"}} }, false},
	} {
		if got := providers(tokenPolicy(c.change))[0]; (got.Name == base.Name) != c.same {
			t.Errorf("%s: names %s, %s", name, got.Name, base.Name)
		}
	}
	for skew, want := range map[time.Duration]uint32{0: 1, time.Millisecond: 1, time.Second: 1, 1500 * time.Millisecond: 2, 5 * time.Minute: 300} {
		if got := providers(tokenPolicy(func(p *pb.JwtAuthentication) { p.ClockSkew = durationpb.New(skew) }))[0].clockSkew(); got != want {
			t.Errorf("skew %s: %d s", skew, got)
		}
	}
}

func TestFilter(t *testing.T) {
	a := providers(tokenPolicy(nil), tokenPolicy(func(p *pb.JwtAuthentication) { p.Optional = true; p.Issuer = "two" }))
	b := providers(tokenPolicy(nil), tokenPolicy(func(p *pb.JwtAuthentication) { p.Keys = &pb.JwtAuthentication_JwksSecret{JwksSecret: "gone"} }))
	keys := func(secret string) string {
		if secret == "projects/p/secrets/keys" {
			return "the keys"
		}
		return ""
	}
	ra, rb, none := Require(a), Require(b), Require(nil)
	f := Filter(append(a, b...), []Requirement{ra, rb, none}, keys)
	if err := f.ValidateAll(); err != nil {
		t.Fatal(err)
	}
	if len(f.GetProviders()) != 4 || len(f.GetRequirementMap()) != 2 || none.Name != "" {
		t.Errorf("%d providers, requirements %v", len(f.GetProviders()), f.GetRequirementMap())
	}
	for _, p := range f.GetProviders() {
		if !p.GetRequireExpiration() || len(p.GetFromHeaders()) == 0 || len(p.GetFromParams()) != 0 || p.GetLocalJwks().GetInlineString() == "" {
			t.Errorf("%v", p)
		}
	}
	if got := f.GetProviders()[b[1].Name].GetLocalJwks().GetInlineString(); got != nobodysKey {
		t.Errorf("a provider without keys has %q", got)
	}
	if got := f.GetProviders()[a[0].Name].GetLocalJwks().GetInlineString(); got != "the keys" {
		t.Errorf("a provider with keys has %q", got)
	}
	again := Filter(append(slices.Clone(b), a...), []Requirement{rb, ra}, keys)
	if !proto.Equal(f, again) {
		t.Error("the configuration depends on the order of the routes")
	}
	d := Deny()
	if err := d.ValidateAll(); err != nil || len(d.GetRules()) != 1 || d.GetRules()[0].GetRequires().GetProviderName() != never {
		t.Errorf("%v %v", d, err)
	}
	for name, r := range map[string]struct {
		providers []*Provider
		want      string
	}{
		"one":      {a[:1], `{"provider_name":"A"}`},
		"optional": {a[1:], `{"requires_any":{"requirements":[{"provider_name":"A"},{"allow_missing":{}}]}}`},
		"both":     {a, `{"requires_all":{"requirements":[{"provider_name":"A"},{"requires_any":{"requirements":[{"provider_name":"B"},{"allow_missing":{}}]}}]}}`},
	} {
		b, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(Require(r.providers).Value)
		if err != nil {
			t.Fatal(err)
		}
		got := strings.ReplaceAll(string(b), " ", "")
		for i, p := range r.providers {
			got = strings.ReplaceAll(got, p.Name, string(rune('A'+i)))
		}
		if got != r.want {
			t.Errorf("%s: %s, want %s", name, got, r.want)
		}
	}
	if PerRoute(none).GetDisabled() != true || PerRoute(ra).GetRequirementName() != ra.Name {
		t.Error("PerRoute")
	}
}

func TestRetain(t *testing.T) {
	keys := func(string) string { return "keys" }
	old := providers(tokenPolicy(func(p *pb.JwtAuthentication) { p.ClaimHeaders = []*pb.ClaimHeader{{Claim: "sub", Header: "x-old"}} }), tokenPolicy(nil))
	now := providers(tokenPolicy(nil))
	previous := Filter(old, []Requirement{Require(old), Require(old[:1])}, keys)
	f := Filter(now, []Requirement{Require(now)}, keys)
	claims := Retain(f, previous)
	if !slices.Equal(claims, []string{"x-old"}) || f.GetProviders()[old[0].Name] == nil || f.GetRequirementMap()[Require(old).Name] == nil || f.GetRequirementMap()[Require(now).Name] == nil {
		t.Errorf("%v %v", claims, f)
	}
	if err := f.ValidateAll(); err != nil {
		t.Error(err)
	}
	if Retain(f, nil) != nil {
		t.Error("nothing to retain")
	}
	// One change may have any number of them, and no route may lose its own.
	var many []*Provider
	var reqs []Requirement
	for i := range 1000 {
		p := providers(tokenPolicy(func(p *pb.JwtAuthentication) { p.Issuer = fmt.Sprint(i) }))
		many = append(many, p...)
		reqs = append(reqs, Require(p))
	}
	f = Filter(now, nil, keys)
	Retain(f, Filter(many, reqs, keys))
	if len(f.GetProviders()) != len(many)+2 || len(f.GetRequirementMap()) != len(reqs) {
		t.Errorf("%d providers, %d requirements", len(f.GetProviders()), len(f.GetRequirementMap()))
	}
}

func TestGuard(t *testing.T) {
	consumers := map[string]*pb.Consumer{
		"projects/p/consumers/alice":   {Jwt: &pb.JwtIdentity{Issuer: "https://issuer.test", Subject: "alice"}},
		"projects/p/consumers/bob":     {Jwt: &pb.JwtIdentity{Issuer: "https://issuer.test", Subject: "bob"}},
		"projects/p/consumers/foreign": {Jwt: &pb.JwtIdentity{Issuer: "https://other.test", Subject: "eve"}},
	}
	find := func(name string) *pb.Consumer { return consumers[name] }
	listed := func(optional bool, names ...string) *pb.JwtAuthentication {
		return tokenPolicy(func(p *pb.JwtAuthentication) { p.Optional, p.Consumers = optional, names })
	}
	for name, c := range map[string]struct {
		policies []*pb.JwtAuthentication
		want     []string // texts in the rule, in order; nil: opted out
	}{
		"none":                 {nil, nil},
		"optional":             {[]*pb.JwtAuthentication{listed(true)}, []string{"DENY", `"bad-token"`, `"authorization"`, "present_match", "not_rule", `"iss"`, `"https://issuer.test"`, `"aud"`, "list_match", `"exp"`, `"alg"`, `"crit"`}},
		"required":             {[]*pb.JwtAuthentication{listed(false)}, []string{"DENY", `"bad-token"`, "not_rule", `"iss"`, `"https://issuer.test"`, `"exp"`, "double_match", "4000000000", `"bad-token-issued-later-`, `"_>_"`}},
		"both":                 {[]*pb.JwtAuthentication{listed(false), tokenPolicy(func(p *pb.JwtAuthentication) { p.Issuer = "two" })}, []string{`"https://issuer.test"`, `"two"`}},
		"listed":               {[]*pb.JwtAuthentication{listed(false, "alice")}, []string{`"not-listed"`, "not_rule", `"sub"`, `"alice"`}},
		"several":              {[]*pb.JwtAuthentication{listed(false, "bob", "alice", "foreign", "gone")}, []string{`"not-listed"`, `"sub"`, "or_match", `"alice"`, `"bob"`}},
		"nobody of the issuer": {[]*pb.JwtAuthentication{listed(false, "foreign")}, []string{`"not-listed"`, "not_rule", "not_rule", `"any"`, "true"}},
		"optional and listed":  {[]*pb.JwtAuthentication{listed(true, "alice")}, []string{`"not-listed"`, `"authorization"`, "not_rule", `"alice"`}},
		"claims":               {[]*pb.JwtAuthentication{tokenPolicy(func(p *pb.JwtAuthentication) { p.ClaimHeaders = []*pb.ClaimHeader{{Claim: "a.b", Header: "x-a"}} })}, []string{`"bad-token"`, `"a"`, `"b"`, `"a.b"`, `"bad-token-fraction-`}},
	} {
		g := Guard(providers(c.policies...), find)
		if err := g.ValidateAll(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if c.want == nil {
			if !proto.Equal(g, &rbacv3.RBACPerRoute{}) {
				t.Errorf("%s: %v", name, g)
			}
			continue
		}
		b, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(g)
		if err != nil {
			t.Fatal(err)
		}
		rest := string(b)
		for _, text := range c.want {
			_, after, ok := strings.Cut(rest, text)
			if !ok {
				t.Errorf("%s: %s is not in its place in %s", name, text, b)
			}
			rest = after
		}
		if strings.Contains(string(b), "eve") {
			t.Errorf("%s: a subject of another issuer is let in: %s", name, b)
		}
	}
}

func TestClaimHeaders(t *testing.T) {
	p := providers(
		tokenPolicy(func(p *pb.JwtAuthentication) {
			p.ClaimHeaders = []*pb.ClaimHeader{{Claim: "sub", Header: "x-b"}, {Claim: "a", Header: "x-a"}}
		}),
		tokenPolicy(func(p *pb.JwtAuthentication) { p.ClaimHeaders = []*pb.ClaimHeader{{Claim: "sub", Header: "x-b"}} }),
	)
	if got := ClaimHeaders(p); !slices.Equal(got, []string{"x-a", "x-b"}) {
		t.Error(got)
	}
}
