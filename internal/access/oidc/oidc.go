// Package oidc knows callers of the configuration API by signed tokens of one
// declared issuer: ID tokens (OpenID Connect Core 1.0, 2) and JWT access tokens
// (RFC 9068).
package oidc

import (
	"cmp"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
)

const (
	// MaxLife bounds how far ahead the exp claim of a token may be.
	MaxLife = 24 * time.Hour
	// skew is how far the issuer's clock may be ahead of ours (iat, nbf).
	skew = time.Minute
	// maxToken is the length of a token in bytes.
	maxToken = 16 << 10
	// maxGroups bounds the groups of one token.
	maxGroups = 500
	// maxName bounds the name of a caller and of a group, in bytes.
	maxName = 256
)

// algorithms are those whose key cannot make tokens (RFC 7518, 3.1; RFC 8037).
var algorithms = []jose.SignatureAlgorithm{
	jose.RS256, jose.RS384, jose.RS512, jose.PS256, jose.PS384, jose.PS512, jose.ES256, jose.ES384, jose.ES512, jose.EdDSA,
}

// Options declare an issuer.
type Options struct {
	// Issuer is its URL, exactly as in the iss claim.
	Issuer string
	// Audiences are those of which a token must name one in its aud claim.
	Audiences []string
	// JWKSFile holds its keys (RFC 7517). Empty: they are fetched, by its discovery
	// document (OpenID Connect Discovery 1.0, 4).
	JWKSFile string
	// CAFile holds the certificate authorities that fetches trust. Empty: those of
	// the system.
	CAFile string
	// NameClaim is the claim that names the caller. Empty: sub.
	NameClaim string
	// GroupsClaim is the claim with the caller's groups. Empty: there are none.
	GroupsClaim string
	// AllowHTTP lets an issuer on a loopback address do without TLS, for tests.
	AllowHTTP bool
	Logger    *slog.Logger
	// Now is the clock; nil: time.Now.
	Now func() time.Time
}

// Verifier checks tokens of an issuer.
type Verifier struct {
	o    Options
	keys *keys
}

// New returns a Verifier, which knows no keys until Run is called. The error names
// all problems of the options.
func New(o Options) (*Verifier, error) {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	o.NameClaim = cmp.Or(o.NameClaim, "sub")
	var problems []error
	if err := o.checkURL(o.Issuer); err != nil {
		problems = append(problems, fmt.Errorf("issuer: %w", err))
	} else if strings.ContainsAny(o.Issuer, "?#") {
		problems = append(problems, fmt.Errorf("issuer: %q has a query or a fragment", o.Issuer))
	}
	if len(o.Audiences) == 0 || slices.Contains(o.Audiences, "") {
		problems = append(problems, errors.New("audience: give at least one, such as the client ID at the issuer: without it, tokens for other services would be taken"))
	}
	var roots *x509.CertPool
	if o.CAFile != "" {
		b, err := os.ReadFile(o.CAFile)
		roots = x509.NewCertPool()
		if err != nil {
			problems = append(problems, fmt.Errorf("CA file: %w", err))
		} else if !roots.AppendCertsFromPEM(b) {
			problems = append(problems, fmt.Errorf("CA file: %s holds no certificate", o.CAFile))
		}
	}
	s := &source{o: o, client: newClient(roots)}
	if o.JWKSFile != "" && len(problems) == 0 {
		if _, err := s.file(); err != nil {
			problems = append(problems, err)
		}
	}
	if len(problems) > 0 {
		return nil, errors.Join(problems...)
	}
	return &Verifier{o: o, keys: newKeys(s)}, nil
}

// checkURL refuses addresses that anybody on the way could answer for.
func (o *Options) checkURL(text string) error {
	u, err := url.Parse(text)
	switch {
	case err != nil || u.Host == "" || u.User != nil:
		return fmt.Errorf("%.200q is not a URL such as https://idp.example.com", text)
	case u.Scheme == "https":
		return nil
	case u.Scheme == "http" && o.AllowHTTP && onLoopback(u.Hostname()):
		return nil
	case u.Scheme == "http" && o.AllowHTTP:
		return fmt.Errorf("%.200q: only an issuer on a loopback address may do without TLS", text)
	}
	return fmt.Errorf("%.200q does not begin with https://", text)
}

func onLoopback(host string) bool {
	ip, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && ip.IsLoopback()
}
