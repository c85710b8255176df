package main

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"github.com/spf13/cobra"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
	"github.com/penstock-gateway/penstock/internal/access/connect"
	"github.com/penstock-gateway/penstock/internal/keyfile"
)

const (
	// devIssuerURL is the iss claim of development tokens.
	devIssuerURL = "https://dev.penstock.local"
	// devIssuerSecret holds the public keys, for routes to refer to.
	devIssuerSecret = "projects/default/secrets/dev-issuer"
	// devAudience and devSubject are what a token says when nothing is asked for.
	devAudience = "penstock-dev"
	devSubject  = "developer"
)

// devIssuer signs tokens for trying out and tests. Its key lies in the data
// folder and never leaves the machine.
type devIssuer struct {
	key  *ecdsa.PrivateKey
	id   string
	jwks string
}

// openDevIssuer reads the key below the data folder, or makes it.
func openDevIssuer(dataDir string) (*devIssuer, error) {
	dir := filepath.Join(dataDir, "dev-issuer")
	file := filepath.Join(dir, "key.pem")
	if err := errors.Join(keyfile.Check(dir), keyfile.Check(file)); err != nil {
		return nil, fmt.Errorf("development issuer: %w", err)
	}
	b, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		b, err = createDevKey(dir, file)
	}
	if err != nil {
		return nil, fmt.Errorf("development issuer: %w", err)
	}
	block, _ := pem.Decode(b)
	if block == nil {
		return nil, fmt.Errorf("development issuer: %s holds no PEM block: remove it to make a new key", file)
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("development issuer: %s: %w: remove it to make a new key", file, err)
	}
	key, ok := parsed.(*ecdsa.PrivateKey)
	if !ok || key.Curve != elliptic.P256() {
		return nil, fmt.Errorf("development issuer: %s is no key of the curve P-256: remove it to make a new one", file)
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
	// For other tools; the key itself is the source.
	if err := replaceFile(filepath.Join(dir, "jwks.json"), append(set, '\n'), 0o644); err != nil {
		return nil, err
	}
	return &devIssuer{key: key, id: public.KeyID, jwks: string(set)}, nil
}

func createDevKey(dir, file string) ([]byte, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	b := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
	return b, replaceFile(file, b, 0o600)
}

func (d *devIssuer) secret() *pb.Secret {
	return &pb.Secret{
		Name:     devIssuerSecret,
		Metadata: &pb.Metadata{Origin: &pb.Origin{Source: "up"}},
		Value:    &pb.Secret_Jwks{Jwks: d.jwks},
	}
}

// sign makes a token of the claims. Standard claims win over extra ones.
func (d *devIssuer) sign(standard jwt.Claims, extra map[string]any) (string, error) {
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: d.key, KeyID: d.id}},
		(&jose.SignerOptions{}).WithType("JWT"))
	if err != nil {
		return "", err
	}
	return jwt.Signed(signer).Claims(extra).Claims(standard).Serialize()
}

// tokenFlags are the flags of `penstock token`.
type tokenFlags struct {
	dataDir, subject, issuer string
	audiences, claims        []string
	expires                  time.Duration
}

func newTokenCommand() *cobra.Command {
	var f tokenFlags
	c := &cobra.Command{
		Use:   "token",
		Short: "Print a signed token of the development issuer",
		Long: "Signs a JSON Web Token (ES256) with the development key of `penstock up`. A route accepts it\n" +
			"when its authentication names the issuer " + devIssuerURL + " and the secret dev-issuer.",
		Example: "  curl -H \"Authorization: Bearer $(penstock token --subject alice)\" http://127.0.0.1:8080/account\n" +
			"  penstock token --subject alice --audience shop --claim plan=gold --claim 'roles:=[\"admin\",\"dev\"]' --expires 10m",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			token, err := makeToken(f, time.Now())
			if err != nil {
				return err
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), token)
			return err
		},
	}
	fl := c.Flags()
	fl.StringVar(&f.dataDir, "data-dir", "", "data folder of \"penstock up\" (default: the one that runs)")
	fl.StringVar(&f.subject, "subject", devSubject, "the sub claim: who this is")
	fl.StringSliceVar(&f.audiences, "audience", []string{devAudience}, "the aud claim: what the token is for (repeatable)")
	fl.StringArrayVar(&f.claims, "claim", nil, "another claim, NAME=TEXT or NAME:=JSON (repeatable)")
	fl.StringVar(&f.issuer, "issuer", devIssuerURL, "the iss claim")
	fl.DurationVar(&f.expires, "expires", time.Hour, "time until the token expires; negative: it has expired")
	return c
}

// runningDataDir is the data folder of the control plane that this user runs on this
// machine, or the usual one.
func runningDataDir() string {
	if dir := connect.LocalDataDir(); dir != "" {
		return dir
	}
	return "./.penstock"
}

func makeToken(f tokenFlags, now time.Time) (string, error) {
	extra, err := parseClaims(f.claims)
	if err != nil {
		return "", err
	}
	if f.subject == "" {
		return "", errors.New("--subject must not be empty")
	}
	if f.dataDir == "" {
		f.dataDir = runningDataDir()
	}
	// A token of a key that no gateway knows would only puzzle.
	if info, err := os.Stat(f.dataDir); err != nil || !info.IsDir() {
		return "", fmt.Errorf("--data-dir %s is no folder: run `penstock up` once, or name its --data-dir", f.dataDir)
	}
	issuer, err := openDevIssuer(f.dataDir)
	if err != nil {
		return "", err
	}
	return issuer.sign(jwt.Claims{
		Issuer: f.issuer, Subject: f.subject, Audience: f.audiences,
		IssuedAt: jwt.NewNumericDate(now), Expiry: jwt.NewNumericDate(now.Add(f.expires)),
	}, extra)
}

// parseClaims reads NAME=TEXT and NAME:=JSON.
func parseClaims(list []string) (map[string]any, error) {
	out := map[string]any{}
	for _, c := range list {
		name, text, ok := strings.Cut(c, "=")
		if !ok || strings.TrimSuffix(name, ":") == "" {
			return nil, fmt.Errorf("--claim %q is neither NAME=TEXT nor NAME:=JSON", c)
		}
		var value any = text
		if n, isJSON := strings.CutSuffix(name, ":"); isJSON {
			name = n
			if err := json.Unmarshal([]byte(text), &value); err != nil {
				return nil, fmt.Errorf("--claim %q: what follows := is no JSON: %w", c, err)
			}
		}
		if slices.Contains([]string{"iss", "sub", "aud", "exp", "iat"}, name) {
			return nil, fmt.Errorf("--claim %q: use --issuer, --subject, --audience or --expires for a standard claim", c)
		}
		if _, twice := out[name]; twice {
			return nil, fmt.Errorf("--claim %q: the claim %s was given before", c, name)
		}
		out[name] = value
	}
	return out, nil
}
