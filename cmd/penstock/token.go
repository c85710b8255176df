package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/penstock-gateway/penstock/gateway"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
	"github.com/penstock-gateway/penstock/internal/access/connect"
	"github.com/penstock-gateway/penstock/internal/devissuer"
)

const (
	// devIssuerSecret holds the public keys, for routes to refer to.
	devIssuerSecret = gateway.DevIssuerSecret
	// devSubject is whom a token is for when nobody is named.
	devSubject = "developer"
)

// newDevIssuerSecret is the Secret by which routes accept the development issuer.
func newDevIssuerSecret(ctx context.Context, c pb.DevTokenServiceClient) (*pb.Secret, error) {
	issuer, err := c.GetDevIssuer(ctx, &pb.GetDevIssuerRequest{})
	if err != nil {
		return nil, fmt.Errorf("development issuer: %s", describeError(err))
	}
	return &pb.Secret{
		Name:     devIssuerSecret,
		Metadata: &pb.Metadata{Origin: &pb.Origin{Source: "up"}},
		Value:    &pb.Secret_Jwks{Jwks: issuer.GetJwks()},
	}, nil
}

// tokenFlags are the flags of `penstock token`.
type tokenFlags struct {
	client            clientFlags
	subject, issuer   string
	audiences, claims []string
	expires           time.Duration
}

func newTokenCommand() *cobra.Command {
	f := tokenFlags{client: clientFlags{output: "text"}}
	c := &cobra.Command{
		Use:   "token",
		Short: "Print a signed token of the development issuer",
		Long: "Has the control plane sign a JSON Web Token (ES256) with its development key. A route accepts it when its\n" +
			"authentication names the issuer " + devissuer.URL + " and the secret dev-issuer. `penstock up` has a\n" +
			"development issuer, and `penstock control` with --dev-issuer. It is the right to \"mint dev-tokens\", in all projects.",
		Example: "  curl -H \"Authorization: Bearer $(penstock token --subject alice)\" http://127.0.0.1:8080/account\n" +
			"  penstock token --subject alice --audience shop --claim plan=gold --claim 'roles:=[\"admin\",\"dev\"]' --expires 10m",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			req, err := f.request()
			if err != nil {
				return err
			}
			ctx, conn, err := f.client.dial(cmd.Context())
			if err != nil {
				return err
			}
			defer conn.Close()
			resp, err := pb.NewDevTokenServiceClient(conn).MintDevToken(ctx, req)
			if err != nil {
				return err
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), resp.GetToken())
			return err
		},
	}
	f.client.addWhere(c)
	fl := c.Flags()
	fl.StringVar(&f.subject, "subject", devSubject, "the sub claim: who this is")
	fl.StringSliceVar(&f.audiences, "audience", []string{devissuer.Audience}, "the aud claim: what the token is for (repeatable)")
	fl.StringArrayVar(&f.claims, "claim", nil, "another claim, NAME=TEXT or NAME:=JSON (repeatable)")
	fl.StringVar(&f.issuer, "issuer", devissuer.URL, "the iss claim")
	fl.DurationVar(&f.expires, "expires", time.Hour, "time until the token expires, at most 24h; negative: it has expired")
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

// maxDevTokenLife is how long a token may last, or have expired.
const maxDevTokenLife = 24 * time.Hour

// request is what the flags ask for; all problems at once.
func (f *tokenFlags) request() (*pb.MintDevTokenRequest, error) {
	claims, err := parseClaims(f.claims)
	errs := []error{err}
	if f.subject == "" {
		errs = append(errs, errors.New("--subject must not be empty"))
	}
	if f.expires > maxDevTokenLife || f.expires < -maxDevTokenLife {
		errs = append(errs, fmt.Errorf("--expires %s: it must be from -24h to 24h", f.expires))
	}
	return &pb.MintDevTokenRequest{
		Issuer: f.issuer, Subject: f.subject, Audiences: f.audiences, Claims: claims, Ttl: durationpb.New(f.expires),
	}, errors.Join(errs...)
}

// parseClaims reads NAME=TEXT and NAME:=JSON to JSON values by name.
func parseClaims(list []string) (map[string]string, error) {
	out := map[string]string{}
	var errs []error
	for _, c := range list {
		name, text, ok := strings.Cut(c, "=")
		if !ok || strings.TrimSuffix(name, ":") == "" {
			errs = append(errs, fmt.Errorf("--claim %q is neither NAME=TEXT nor NAME:=JSON", c))
			continue
		}
		name, isJSON := strings.CutSuffix(name, ":")
		var err error
		switch {
		case !isJSON:
			var b []byte
			b, err = json.Marshal(text)
			text = string(b)
		case !json.Valid([]byte(text)):
			err = fmt.Errorf("--claim %q: what follows := is not valid JSON", c)
		}
		if slices.Contains([]string{"iss", "sub", "aud", "exp", "iat"}, name) {
			err = fmt.Errorf("--claim %q: use --issuer, --subject, --audience or --expires for a standard claim", c)
		} else if _, twice := out[name]; twice {
			err = fmt.Errorf("--claim %q: the claim %s was given before", c, name)
		}
		if err != nil {
			errs = append(errs, err)
		}
		out[name] = text
	}
	return out, errors.Join(errs...)
}

// removeOldDevKey removes the key of the development issuer of builds that kept it in a
// file: routes no longer accept it, and it would only lie around.
func removeOldDevKey(dataDir string) error {
	dir := filepath.Join(dataDir, "dev-issuer")
	for _, path := range []string{filepath.Join(dir, "key.pem"), filepath.Join(dir, "jwks.json"), dir} {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ENOTEMPTY) {
			return fmt.Errorf("the development key of an earlier build: %w", err)
		}
	}
	return nil
}
