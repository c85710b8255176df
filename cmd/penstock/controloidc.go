package main

import (
	"errors"
	"fmt"
	"log/slog"

	"github.com/spf13/pflag"

	"github.com/penstock-gateway/penstock/internal/access/oidc"
)

// oidcFlags declare the OpenID Connect issuer whose tokens the configuration API
// takes.
type oidcFlags struct {
	issuer, jwksFile, caFile string
	audiences                []string
	nameClaim, groupsClaim   string
	allowHTTP                bool
}

func (f *oidcFlags) add(fl *pflag.FlagSet) {
	fl.StringVar(&f.issuer, "oidc-issuer", "", "URL of an OpenID Connect issuer whose tokens the configuration API takes, exactly as in their iss claim")
	fl.StringSliceVar(&f.audiences, "oidc-audience", nil, "the aud claim of those tokens, such as the client ID at the issuer; another one is refused (repeatable)")
	fl.StringVar(&f.nameClaim, "oidc-name-claim", "sub", "claim that names the caller, oidc:ISSUER#NAME; email only counts when it is verified")
	fl.StringVar(&f.groupsClaim, "oidc-groups-claim", "", "claim with the caller's groups, group:NAME (default: no groups)")
	fl.StringVar(&f.jwksFile, "oidc-jwks-file", "", "JSON Web Key Set of the issuer (default: fetched from it)")
	fl.StringVar(&f.caFile, "oidc-ca-file", "", "certificate authorities of the issuer's server (default: those of the system)")
	fl.BoolVar(&f.allowHTTP, "oidc-allow-http", false, "let an issuer on a loopback address do without TLS; for tests")
}

// verifier checks the flags, and returns nil when no issuer is declared.
func (f *oidcFlags) verifier(log *slog.Logger) (*oidc.Verifier, error) {
	if f.issuer == "" {
		if len(f.audiences) > 0 || f.jwksFile != "" || f.caFile != "" || f.groupsClaim != "" || f.allowHTTP || f.nameClaim != "sub" && f.nameClaim != "" {
			return nil, errors.New("the other flags --oidc-… need --oidc-issuer")
		}
		return nil, nil
	}
	v, err := oidc.New(oidc.Options{
		Issuer: f.issuer, Audiences: f.audiences, JWKSFile: f.jwksFile, CAFile: f.caFile, NameClaim: f.nameClaim, GroupsClaim: f.groupsClaim,
		AllowHTTP: f.allowHTTP, Logger: log.With("part", "oidc"),
	})
	if err != nil {
		return nil, fmt.Errorf("--oidc-issuer, --oidc-audience, …: %w", err)
	}
	return v, nil
}

// args are the flags as a child gets them.
func (f *oidcFlags) args() []string {
	if f.issuer == "" {
		return nil
	}
	out := []string{"--oidc-issuer=" + f.issuer, "--oidc-name-claim=" + f.nameClaim, "--oidc-groups-claim=" + f.groupsClaim,
		"--oidc-jwks-file=" + f.jwksFile, "--oidc-ca-file=" + f.caFile, fmt.Sprintf("--oidc-allow-http=%t", f.allowHTTP)}
	for _, a := range f.audiences {
		out = append(out, "--oidc-audience="+a)
	}
	return out
}
