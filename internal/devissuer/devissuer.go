// Package devissuer is the development issuer: it signs tokens (RFC 7519, ES256) for
// trying out routes that ask for one. Its key is made by the control plane, kept sealed
// in the store, the same for all replicas, and never leaves them.
package devissuer

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"buf.build/go/protovalidate"
	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/penstock-gateway/penstock/gateway/source/api"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

const (
	// URL is the iss claim of the tokens.
	URL = "https://dev.penstock.local"
	// Audience is the aud claim of a token for which nobody named another.
	Audience = "penstock-dev"
	// pin is the name that the store keeps the key under.
	pin = "dev-issuer"
	// defaultTTL is how long a token lasts for which nobody said it.
	defaultTTL = time.Hour
	// maxToken bounds the text of a token: proxies take 60 KiB of headers in all.
	maxToken = 16 << 10
)

// Store keeps the key.
type Store interface {
	Pin(ctx context.Context, name, value string) (string, error)
	Seal(name string, plain []byte) ([]byte, error)
	Unseal(name string, sealed []byte) ([]byte, error)
}

// Issuer is the DevTokenService. The zero Issuer is that of a control plane that has
// none, and says so.
type Issuer struct {
	pb.UnimplementedDevTokenServiceServer
	key  *ecdsa.PrivateKey
	id   string
	jwks string
	now  func() time.Time
}

// Open reads the key of the store, or makes it for the first replica that comes.
func Open(ctx context.Context, st Store) (*Issuer, error) {
	key, err := openKey(ctx, st)
	if err != nil {
		return nil, fmt.Errorf("development issuer: %w", err)
	}
	public := jose.JSONWebKey{Key: key.Public(), Algorithm: string(jose.ES256), Use: "sig"}
	thumb, err := public.Thumbprint(crypto.SHA256)
	if err != nil {
		return nil, err
	}
	public.KeyID = base64.RawURLEncoding.EncodeToString(thumb[:12])
	set, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{public}})
	if err != nil {
		return nil, err
	}
	return &Issuer{key: key, id: public.KeyID, jwks: string(set), now: time.Now}, nil
}

// openKey pins a new key, sealed; the store answers with the one that was first.
func openKey(ctx context.Context, st Store) (*ecdsa.PrivateKey, error) {
	kept, err := st.Pin(ctx, pin, "")
	if err == nil && kept == "" {
		var made string
		if made, err = newKey(st); err == nil {
			kept, err = st.Pin(ctx, pin, made)
		}
	}
	if err != nil {
		return nil, err
	}
	sealed, err := base64.StdEncoding.DecodeString(kept)
	if err != nil {
		return nil, fmt.Errorf("its key in the store is damaged: %w", err)
	}
	der, err := st.Unseal(pin, sealed)
	if err != nil {
		return nil, err
	}
	parsed, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return nil, fmt.Errorf("its key in the store is damaged: %w", err)
	}
	key, ok := parsed.(*ecdsa.PrivateKey)
	if !ok || key.Curve != elliptic.P256() {
		return nil, fmt.Errorf("its key in the store is a %T, want one of the curve P-256", parsed)
	}
	return key, nil
}

func newKey(st Store) (string, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return "", err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return "", err
	}
	sealed, err := st.Seal(pin, der)
	return base64.StdEncoding.EncodeToString(sealed), err
}

func (i *Issuer) have() error {
	if i.key == nil {
		return status.Error(codes.FailedPrecondition,
			"this control plane has no development issuer: `penstock up` has one, and `penstock control --dev-issuer`; in production take the tokens of your own issuer")
	}
	return nil
}

// GetDevIssuer implements pb.DevTokenServiceServer.
func (i *Issuer) GetDevIssuer(context.Context, *pb.GetDevIssuerRequest) (*pb.GetDevIssuerResponse, error) {
	if err := i.have(); err != nil {
		return nil, err
	}
	return &pb.GetDevIssuerResponse{Issuer: URL, Jwks: i.jwks}, nil
}

// MintDevToken implements pb.DevTokenServiceServer. That the caller may do so was
// checked before.
func (i *Issuer) MintDevToken(ctx context.Context, r *pb.MintDevTokenRequest) (*pb.MintDevTokenResponse, error) {
	if err := i.have(); err != nil {
		return nil, err
	}
	if err := protovalidate.Validate(r); err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	extra, err := claims(r.GetClaims())
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	now, ttl := i.now(), defaultTTL
	if r.GetTtl() != nil {
		ttl = r.GetTtl().AsDuration()
	}
	said := jwt.Claims{
		Issuer: r.GetIssuer(), Subject: r.GetSubject(), Audience: r.GetAudiences(),
		IssuedAt: jwt.NewNumericDate(now), Expiry: jwt.NewNumericDate(now.Add(ttl)),
	}
	if said.Issuer == "" {
		said.Issuer = URL
	}
	if len(said.Audience) == 0 {
		said.Audience = jwt.Audience{Audience}
	}
	token, err := i.sign(said, extra)
	if err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	if len(token) > maxToken {
		return nil, status.Errorf(codes.InvalidArgument, "claims: the token would have %d bytes, and %d are the most that proxies should be sent", len(token), maxToken)
	}
	note(ctx, said, token)
	return &pb.MintDevTokenResponse{Token: token, ExpireTime: timestamppb.New(said.Expiry.Time())}, nil
}

// standard are the claims that have fields of their own.
var standard = []string{"iss", "sub", "aud", "exp", "iat"}

// claims reads the further claims, and names all that cannot be read.
func claims(list map[string]string) (map[string]json.RawMessage, error) {
	out := map[string]json.RawMessage{}
	var bad []string
	for _, name := range slices.Sorted(maps.Keys(list)) {
		switch {
		case slices.Contains(standard, name):
			bad = append(bad, fmt.Sprintf("claims[%q]: the claims %s have fields of their own", name, strings.Join(standard, ", ")))
		case !json.Valid([]byte(list[name])):
			bad = append(bad, fmt.Sprintf("claims[%q]: the value is not valid JSON (a text needs quotation marks)", name))
		default:
			out[name] = json.RawMessage(list[name])
		}
	}
	if len(bad) > 0 {
		return nil, fmt.Errorf("%s", strings.Join(bad, "\n"))
	}
	return out, nil
}

// sign makes a token of the claims.
func (i *Issuer) sign(said jwt.Claims, extra map[string]json.RawMessage) (string, error) {
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: i.key, KeyID: i.id}},
		(&jose.SignerOptions{}).WithType("JWT"))
	if err != nil {
		return "", err
	}
	all := map[string]any{}
	for name, value := range extra {
		all[name] = value
	}
	// jwt.Builder would decode the further claims, and numbers lose digits by that.
	b, err := json.Marshal(said)
	if err != nil {
		return "", err
	}
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(b, &fields); err != nil {
		return "", err
	}
	for name, value := range fields {
		all[name] = value
	}
	payload, err := json.Marshal(all)
	if err != nil {
		return "", err
	}
	signed, err := signer.Sign(payload)
	if err != nil {
		return "", err
	}
	return signed.CompactSerialize()
}

// note has the audit record say for whom a token is, until when, and its hash, by which
// a token that is found somewhere can be traced to who had it made.
func note(ctx context.Context, said jwt.Claims, token string) {
	if changed := api.CallerOf(ctx).Changed; changed != nil {
		sum := sha256.Sum256([]byte(token))
		changed(fmt.Sprintf("dev-token iss=%q sub=%q aud=%q exp=%s", said.Issuer, said.Subject, []string(said.Audience), said.Expiry.Time().UTC().Format(time.RFC3339)),
			"", hex.EncodeToString(sum[:10]))
	}
}
