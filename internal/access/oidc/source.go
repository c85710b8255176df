package oidc

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
)

const (
	// maxBody bounds a document of the issuer, in bytes.
	maxBody = 1 << 20
	// fetchTimeout bounds one request to it.
	fetchTimeout = 10 * time.Second
	// maxRedirects of one request.
	maxRedirects = 3
)

// source is where the keys come from.
type source struct {
	o      Options
	client *http.Client
}

// newClient follows redirects only to where the request went first: what another
// host says is not the issuer's word.
func newClient(roots *x509.CertPool) *http.Client {
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.TLSClientConfig = &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots}
	t.DisableKeepAlives = true // for a request each few minutes
	return &http.Client{Transport: t, Timeout: fetchTimeout, CheckRedirect: func(r *http.Request, via []*http.Request) error {
		if first := via[0].URL; r.URL.Scheme != first.Scheme || r.URL.Host != first.Host {
			return fmt.Errorf("it redirects to another host, %s", r.URL.Host)
		}
		if len(via) > maxRedirects {
			return fmt.Errorf("it redirects more than %d times", maxRedirects)
		}
		return nil
	}}
}

// get returns the keys of the issuer.
func (s *source) get(ctx context.Context) ([]jose.JSONWebKey, error) {
	if s.o.JWKSFile != "" {
		return s.file()
	}
	var doc struct {
		Issuer string `json:"issuer"`
		Keys   string `json:"jwks_uri"`
	}
	where := strings.TrimSuffix(s.o.Issuer, "/") + "/.well-known/openid-configuration"
	b, err := s.fetch(ctx, where)
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(b, &doc); err != nil {
		return nil, fmt.Errorf("%s: it is not a discovery document", where)
	}
	if doc.Issuer != s.o.Issuer {
		return nil, fmt.Errorf("%s: it is the document of the issuer %.200q, not of %q", where, doc.Issuer, s.o.Issuer)
	}
	if err := s.o.checkURL(doc.Keys); err != nil {
		return nil, fmt.Errorf("%s: jwks_uri: %w", where, err)
	}
	if b, err = s.fetch(ctx, doc.Keys); err != nil {
		return nil, err
	}
	list, err := parseKeys(b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", doc.Keys, err)
	}
	return list, nil
}

func (s *source) file() ([]jose.JSONWebKey, error) {
	f, err := os.Open(s.o.JWKSFile)
	if err != nil {
		return nil, fmt.Errorf("JWKS file: %w", err)
	}
	defer f.Close()
	b, err := bounded(f)
	if err != nil {
		return nil, fmt.Errorf("JWKS file %s: %w", s.o.JWKSFile, err)
	}
	list, err := parseKeys(b)
	if err != nil {
		return nil, fmt.Errorf("JWKS file %s: %w", s.o.JWKSFile, err)
	}
	return list, nil
}

func (s *source) fetch(ctx context.Context, url string) ([]byte, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	r.Header.Set("Accept", "application/json")
	resp, err := s.client.Do(r)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s: the answer is %s", url, resp.Status)
	}
	b, err := bounded(resp.Body)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", url, err)
	}
	return b, nil
}

func bounded(r io.Reader) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(r, maxBody+1))
	if err == nil && len(b) > maxBody {
		err = fmt.Errorf("it is longer than %d bytes", maxBody)
	}
	return b, err
}
