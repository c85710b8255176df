package oidc

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
)

// Caller is who a token is of.
type Caller struct {
	// Name is "oidc:", the issuer, "#", and the claim that names the caller.
	Name string
	// Groups are those of the groups claim.
	Groups []string
	// Expires is the exp claim.
	Expires time.Time
}

// Unavailable is the error while no keys of the issuer are known.
type Unavailable struct{ why error }

// Error implements error.
func (u *Unavailable) Error() string {
	return fmt.Sprintf("the keys of the issuer are not known: %v", u.why)
}

// Unwrap returns why.
func (u *Unavailable) Unwrap() error { return u.why }

// Run fetches the issuer's keys and keeps them fresh until ctx ends.
func (v *Verifier) Run(ctx context.Context) { v.keys.run(ctx) }

// Issuer is the URL of the issuer.
func (v *Verifier) Issuer() string { return v.o.Issuer }

// Verify checks a token and tells whose it is. It may wait a few seconds for the
// issuer when the key is not known. The error is *Unavailable when no key is, and
// never repeats the token.
func (v *Verifier) Verify(ctx context.Context, text string) (*Caller, error) {
	if len(text) > maxToken {
		return nil, fmt.Errorf("the token is longer than %d bytes", maxToken)
	}
	if strings.Count(text, ".") != 2 {
		return nil, errors.New("the token is not a JSON Web Token in its compact form")
	}
	t, err := jwt.ParseSigned(text, algorithms)
	if err != nil || len(t.Headers) != 1 {
		return nil, fmt.Errorf("the token is not a JSON Web Token that is signed by one of %s", join(algorithms))
	}
	if err := checkHeader(t.Headers[0]); err != nil {
		return nil, err
	}
	fit, err := v.keysOf(ctx, t.Headers[0])
	if err != nil {
		return nil, err
	}
	for _, key := range fit {
		var standard jwt.Claims
		var all map[string]any
		err := t.Claims(key.Key, &standard, &all)
		if errors.Is(err, jose.ErrCryptoFailure) {
			continue
		}
		if err != nil {
			return nil, errors.New("the claims of the token cannot be read")
		}
		return v.caller(standard, all)
	}
	return nil, fmt.Errorf("the signature of the token is not of a key of %s", v.o.Issuer)
}

func (v *Verifier) keysOf(ctx context.Context, h jose.Header) ([]jose.JSONWebKey, error) {
	// A token may be signed with a key that is newer than what was fetched.
	fit, seen, _ := v.keys.of(h)
	if len(fit) > 0 {
		return fit, nil
	}
	v.keys.refetch(ctx, seen)
	fit, _, err := v.keys.of(h)
	if err != nil {
		return nil, err
	}
	if len(fit) == 0 {
		return nil, fmt.Errorf("%s has no key of that ID (%.80q) for %s", v.o.Issuer, h.KeyID, h.Algorithm)
	}
	return fit, nil
}

// checkHeader refuses tokens that are made for something else (RFC 8725, 3.11), and
// those with extensions that must be understood (RFC 7515, 4.1.11).
func checkHeader(h jose.Header) error {
	typ, present := h.ExtraHeaders[jose.HeaderType]
	name, _ := typ.(string)
	name = strings.TrimPrefix(strings.ToLower(name), "application/")
	if present && name != "jwt" && name != "at+jwt" {
		return errors.New("the typ of the token is neither JWT nor at+jwt: it is for something else")
	}
	for _, x := range []jose.HeaderKey{"crit", "b64"} {
		if _, present := h.ExtraHeaders[x]; present {
			return fmt.Errorf("the header of the token has %q, which is not taken", x)
		}
	}
	return nil
}

// caller checks the claims of a token with a good signature.
func (v *Verifier) caller(c jwt.Claims, all map[string]any) (*Caller, error) {
	now := v.o.Now()
	switch {
	case c.Issuer != v.o.Issuer:
		return nil, fmt.Errorf("the token is of the issuer %.200q, not of %s", c.Issuer, v.o.Issuer)
	case !slices.ContainsFunc(v.o.Audiences, func(a string) bool { return slices.Contains(c.Audience, a) }):
		return nil, fmt.Errorf("the token is for %.200q, not for %s", []string(c.Audience), join(v.o.Audiences))
	case c.Expiry == nil:
		return nil, errors.New("the token has no exp claim, so it would never end")
	case !now.Before(c.Expiry.Time()):
		return nil, fmt.Errorf("the token expired on %s: get another from %s", c.Expiry.Time().UTC().Format(time.RFC3339), v.o.Issuer)
	case c.Expiry.Time().After(now.Add(MaxLife + skew)):
		return nil, fmt.Errorf("the token lasts until %s; at most %s are taken", c.Expiry.Time().UTC().Format(time.RFC3339), MaxLife)
	case c.NotBefore != nil && now.Add(skew).Before(c.NotBefore.Time()):
		return nil, fmt.Errorf("the token is not good before %s: is the clock of this machine right?", c.NotBefore.Time().UTC().Format(time.RFC3339))
	case c.IssuedAt != nil && now.Add(skew).Before(c.IssuedAt.Time()):
		return nil, fmt.Errorf("the token was issued at %s, in the future: is the clock of this machine right?", c.IssuedAt.Time().UTC().Format(time.RFC3339))
	}
	name, err := v.name(all)
	if err != nil {
		return nil, err
	}
	groups, err := v.groups(all)
	if err != nil {
		return nil, err
	}
	return &Caller{Name: "oidc:" + v.o.Issuer + "#" + name, Groups: groups, Expires: c.Expiry.Time()}, nil
}

func (v *Verifier) name(all map[string]any) (string, error) {
	name, _ := all[v.o.NameClaim].(string)
	if name == "" || len(name) > maxName || strings.ContainsFunc(name, func(r rune) bool { return r < '!' || r > '~' }) {
		return "", fmt.Errorf("the claim %q of the token is not a name: want 1 to %d printable characters of ASCII without spaces", v.o.NameClaim, maxName)
	}
	// Else whoever may choose his address at the issuer would be anybody.
	if verified, _ := all["email_verified"].(bool); v.o.NameClaim == "email" && !verified {
		return "", errors.New("the token does not say that the email address is verified (email_verified)")
	}
	return name, nil
}

func (v *Verifier) groups(all map[string]any) ([]string, error) {
	value, present := all[v.o.GroupsClaim]
	if v.o.GroupsClaim == "" || !present {
		return nil, nil
	}
	list, isList := value.([]any)
	if !isList {
		list = []any{value}
	}
	if len(list) > maxGroups {
		return nil, fmt.Errorf("the claim %q of the token has %d groups; at most %d are taken", v.o.GroupsClaim, len(list), maxGroups)
	}
	var out []string
	for _, x := range list {
		g, ok := x.(string)
		if !ok || g == "" || len(g) > maxName || !utf8.ValidString(g) || strings.ContainsFunc(g, unicode.IsControl) {
			return nil, fmt.Errorf("the claim %q of the token is not a list of names of groups, of 1 to %d bytes each", v.o.GroupsClaim, maxName)
		}
		out = append(out, g)
	}
	return out, nil
}

func join[S ~string](list []S) string {
	out := make([]string, len(list))
	for i, s := range list {
		out[i] = string(s)
	}
	return strings.Join(out, ", ")
}
