package jwt

import (
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	jose "github.com/go-jose/go-jose/v4"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/penstock-gateway/penstock/gateway"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// Facts are what the verdict on a request depends on beside its token.
type Facts struct {
	// Keys returns the key set in a Secret, as for Filter.
	Keys func(secret string) string
	// Consumer returns a consumer by its full name, as for Guard.
	Consumer func(name string) *pb.Consumer
	Now      time.Time
}

// Verdict is what the filter and the guard decide on a request.
type Verdict struct {
	// Passes: the request goes on.
	Passes bool
	// Provider is the one that refuses it.
	Provider *Provider
	// Answer is what the client gets when it does not pass.
	Answer gateway.Answer
	// Reason says what is wrong, after the words "the token"; of a request without one
	// it is a sentence.
	Reason string
	// ByGuard: the guard refuses, which stands behind the filter that verifies.
	ByGuard bool
	// Issuer and Subject are those of the first provider's verified token; "" without one.
	Issuer, Subject string
}

// Check says what a proxy decides on a request with these lines of TokenHeader, on a
// route with these providers. It does what Envoy 1.40 was seen to do: the filter verifies
// by Require and Filter, then the policies of Guard are evaluated on what it leaves.
func Check(providers []*Provider, lines []string, facts Facts) Verdict {
	v := Verdict{Passes: true}
	metadata := map[string]*structpb.Struct{}
	for i, p := range providers {
		failure, token := p.verify(lines, facts)
		switch {
		case failure == nil:
			metadata[p.Name], metadata[p.headerName()] = token.payload, token.header
			if i == 0 {
				v.Issuer, v.Subject = text(token.payload, "iss"), text(token.payload, "sub")
			}
		case p.Policy.GetOptional() && failure.missing:
		default:
			return Verdict{Provider: p, Answer: failure.answer, Reason: failure.reason}
		}
	}
	if len(lines) > 1 {
		lines = []string{joined(lines)}
	}
	g := guarded{lines: lines, metadata: metadata, now: facts.Now}
	name := g.refusal(Guard(providers, facts.Consumer).GetRbac().GetRules())
	if name == "" {
		return v
	}
	v.Passes, v.ByGuard, v.Answer = false, true, gateway.RefusedToken
	if name == notListed {
		v.Answer = gateway.Forbidden
	}
	v.Provider, v.Reason = g.culprit(providers, facts.Consumer, name)
	return v
}

// joined is the header that lines make: Envoy keeps this one as one value.
func joined(lines []string) string {
	return strings.Join(slices.DeleteFunc(slices.Clone(lines), func(l string) bool { return l == "" }), ",")
}

// failure is why a provider does not accept a request.
type failure struct {
	answer gateway.Answer
	reason string
	// missing: there is no token, which a route where it is optional passes to the guard.
	missing bool
}

func invalid(format string, args ...any) *failure {
	return &failure{answer: gateway.Unauthenticated, reason: fmt.Sprintf(format, args...)}
}

// token is what is known of a token before its signature is checked.
type token struct {
	header, payload *structpb.Struct
	signature       []byte
	// signed is the text that is signed.
	signed string
}

// verify does what the filter does for one provider.
func (p *Provider) verify(lines []string, facts Facts) (*failure, *token) {
	compact := extract(joined(lines))
	if compact == "" {
		why := "the request brings no token"
		if len(lines) > 0 {
			why = "the request's Authorization holds no Bearer token"
		}
		return &failure{answer: gateway.Unauthenticated, reason: why, missing: true}, nil
	}
	t, err := parse(compact)
	if err != nil {
		return invalid("is malformed: %v", err), nil
	}
	if iss := text(t.payload, "iss"); iss != p.Policy.GetIssuer() {
		return invalid("is of issuer %q", iss), nil
	}
	if why := p.untimely(t.payload, facts.Now); why != "" {
		return invalid("%s", why), nil
	}
	if !p.addressed(t.payload) {
		return &failure{answer: gateway.RefusedToken, reason: fmt.Sprintf("is not for audience %s", strings.Join(p.Policy.GetAudiences(), " or "))}, nil
	}
	if why := p.lasting(t.payload, facts.Now); why != "" {
		return invalid("%s", why), nil
	}
	if why := p.unsigned(t, facts.Keys); why != "" {
		return invalid("%s", why), nil
	}
	return nil, t
}

// extract finds the token in the header as Envoy does: what follows the first blank, from
// the first character on that a token may have. Without a blank there is none; what has no
// such character is taken whole.
func extract(value string) string {
	_, rest, found := strings.Cut(value, " ")
	if !found {
		return ""
	}
	for i, c := range []byte(rest) {
		if c == '.' || c == '-' || c == '_' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' {
			return rest[i:]
		}
	}
	return value
}

// decode reads base64url (RFC 4648, section 5) as Envoy does: blanks and tabs count for
// nothing, and there may be padding.
func decode(text string) ([]byte, error) {
	text = strings.NewReplacer(" ", "", "\t", "").Replace(text)
	if strings.HasSuffix(text, "=") {
		return base64.URLEncoding.DecodeString(text)
	}
	return base64.RawURLEncoding.DecodeString(text)
}

// algorithms are the signatures that Envoy verifies.
var algorithms = []jose.SignatureAlgorithm{
	jose.ES256, jose.ES384, jose.ES512, jose.HS256, jose.HS384, jose.HS512,
	jose.RS256, jose.RS384, jose.RS512, jose.PS256, jose.PS384, jose.PS512, jose.EdDSA,
}

// parse reads header and payload, and refuses members that Envoy refuses for their type.
func parse(compact string) (*token, error) {
	// Envoy skips empty parts; the guard refuses a token that has them.
	parts := strings.FieldsFunc(compact, func(r rune) bool { return r == '.' })
	if len(parts) != 3 {
		return nil, errors.New("it does not have three parts")
	}
	t := &token{header: &structpb.Struct{}, payload: &structpb.Struct{}, signed: parts[0] + "." + parts[1]}
	for i, s := range []*structpb.Struct{t.header, t.payload} {
		b, err := decode(parts[i])
		if err == nil {
			err = s.UnmarshalJSON(b)
		}
		if err != nil {
			return nil, fmt.Errorf("its %s is not JSON in base64url", [...]string{"header", "payload"}[i])
		}
	}
	var err error
	if t.signature, err = decode(parts[2]); err != nil {
		return nil, errors.New("its signature is not base64url")
	}
	if alg := text(t.header, "alg"); !slices.Contains(algorithms, jose.SignatureAlgorithm(alg)) {
		return nil, fmt.Errorf("its algorithm %q is not supported", alg)
	}
	if kid := t.header.GetFields()["kid"]; kid != nil && !isString(kid) {
		return nil, errors.New("its kid is not a text")
	}
	for _, claim := range []string{"iss", "sub", "jti"} {
		if v := t.payload.GetFields()[claim]; v != nil && !isString(v) {
			return nil, fmt.Errorf("its claim %s is not a text", claim)
		}
	}
	for _, claim := range []string{"iat", "nbf", "exp"} {
		if v := t.payload.GetFields()[claim]; v != nil && (!isNumber(v) || v.GetNumberValue() < 0 || v.GetNumberValue() >= 1<<64) {
			return nil, fmt.Errorf("its claim %s is not a time in seconds", claim)
		}
	}
	if v := t.payload.GetFields()["aud"]; v != nil && !isString(v) {
		if v.GetListValue() == nil || slices.ContainsFunc(v.GetListValue().GetValues(), func(v *structpb.Value) bool { return !isString(v) }) {
			return nil, fmt.Errorf("its claim aud is neither a text nor a list of texts")
		}
	}
	return t, nil
}

func isString(v *structpb.Value) bool { _, ok := v.GetKind().(*structpb.Value_StringValue); return ok }
func isNumber(v *structpb.Value) bool { _, ok := v.GetKind().(*structpb.Value_NumberValue); return ok }

func text(s *structpb.Struct, name string) string { return s.GetFields()[name].GetStringValue() }

// untimely says why a token is not valid now.
func (p *Provider) untimely(payload *structpb.Struct, now time.Time) string {
	n, skew := now.Unix(), int64(p.clockSkew())
	switch nbf, exp := seconds(payload, "nbf"), seconds(payload, "exp"); {
	case nbf > n+skew:
		return "is not valid before " + when(nbf)
	case exp != 0 && n > exp+skew:
		return "has expired at " + when(exp)
	}
	return ""
}

// lasting says why a token is valid for too long, which the filter looks at after the
// audience.
func (p *Provider) lasting(payload *structpb.Struct, now time.Time) string {
	switch exp := seconds(payload, "exp"); {
	case payload.GetFields()["exp"].GetNumberValue() >= 1<<63:
		return "" // Envoy's time overflows, and the guard refuses it
	case exp == 0:
		return "does not expire"
	case exp-now.Unix() > int64(p.maxLifetime()/time.Second)+int64(p.clockSkew()):
		return fmt.Sprintf("is valid until %s, longer than max_lifetime allows", when(exp))
	}
	return ""
}

// seconds is a claim that is a time, in seconds; 0 without it.
func seconds(payload *structpb.Struct, claim string) int64 {
	return int64(min(payload.GetFields()[claim].GetNumberValue(), 1<<62))
}

func when(seconds int64) string { return time.Unix(seconds, 0).UTC().Format(time.RFC3339) }

// addressed reports whether a token is for one of the audiences, as the filter compares
// them: without the scheme and a slash at the end. The guard compares them exactly.
func (p *Provider) addressed(payload *structpb.Struct) bool {
	canonical := func(s string) string {
		s = strings.TrimSuffix(s, "/")
		return strings.TrimPrefix(strings.TrimPrefix(s, "https://"), "http://")
	}
	v := payload.GetFields()["aud"]
	of := []string{v.GetStringValue()}
	for _, one := range v.GetListValue().GetValues() {
		of = append(of, one.GetStringValue())
	}
	return slices.ContainsFunc(p.Policy.GetAudiences(), func(a string) bool {
		return slices.ContainsFunc(of, func(o string) bool { return o != "" && canonical(o) == canonical(a) })
	})
}

// unsigned says why no key of the provider verifies the signature. A key that names another
// kid or algorithm is not tried.
func (p *Provider) unsigned(t *token, keys func(secret string) string) string {
	set := gateway.VerificationKeys(p.Policy.GetJwks())
	if p.Secret != "" {
		set = keys(p.Secret)
	}
	var known jose.JSONWebKeySet
	if set == "" || json.Unmarshal([]byte(set), &known) != nil {
		return "cannot be verified: there are no keys"
	}
	alg, kid := text(t.header, "alg"), text(t.header, "kid")
	tried := false
	for _, k := range known.Keys {
		if kid != "" && k.KeyID != "" && k.KeyID != kid || k.Algorithm != "" && k.Algorithm != alg {
			continue
		}
		tried = true
		if verifies(k.Key, alg, t.signed, t.signature) {
			return ""
		}
		if _, is := k.Key.(ed25519.PublicKey); is && len(t.signature) != ed25519.SignatureSize {
			break // Envoy tries no further key
		}
	}
	if !tried {
		return fmt.Sprintf("is signed with a key that is not known here (kid %q, %s)", kid, alg)
	}
	return "has a signature that no key verifies"
}
