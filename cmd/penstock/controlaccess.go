package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"

	"github.com/penstock-gateway/penstock/internal/access"
	"github.com/penstock-gateway/penstock/internal/access/connect"
	"github.com/penstock-gateway/penstock/internal/access/oidc"
	"github.com/penstock-gateway/penstock/internal/control"
	"github.com/penstock-gateway/penstock/internal/keyfile"
	"github.com/penstock-gateway/penstock/internal/pki"
	"github.com/penstock-gateway/penstock/store"
)

// beyondLoopback reports whether others than this machine can reach an address.
func beyondLoopback(address string) bool {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return true
	}
	ip, err := netip.ParseAddr(host)
	return host != "localhost" && (err != nil || !ip.IsLoopback())
}

// apiServerTLS is the TLS of the configuration API; nil when it is on loopback only
// and nobody asked for TLS. hosts are the names in its certificate.
func (f *controlFlags) apiServerTLS(ctx context.Context, ca *pki.CA, log *slog.Logger) (config *tls.Config, hosts []string, err error) {
	switch {
	case (f.apiCert == "") != (f.apiKey == ""):
		return nil, nil, errors.New("--api-cert and --api-key go together")
	case f.apiCert == "" && !f.apiTLS && !beyondLoopback(f.api) && !beyondLoopback(f.http):
		return nil, nil, nil
	}
	cert, key := f.apiCert, f.apiKey
	if cert == "" {
		r := pki.Request{SPIFFE: "spiffe://" + pki.TrustDomain + "/control", DNS: []string{"localhost"}, IPs: []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback}}
		addNames(&r, f.apiHosts, f.api, f.http)
		if cert, key, err = ca.EnsureFiles(f.pkiDir, "api", r); err != nil {
			return nil, nil, err
		}
		go ca.KeepFresh(ctx, log, f.pkiDir, "api", r)
	} else if err := keyfile.Check(key); err != nil {
		return nil, nil, fmt.Errorf("--api-key: %w", err)
	}
	if config, err = pki.APIServerTLS(cert, key, ca.CertFile()); err != nil {
		return nil, nil, fmt.Errorf("TLS of the configuration API: %w", err)
	}
	leaf, err := pki.ReadCertificate(cert)
	if err != nil {
		return nil, nil, err
	}
	return config, append(leaf.DNSNames, f.apiHosts...), nil
}

// addNames puts names and the hosts of addresses into a certificate.
func addNames(r *pki.Request, names []string, addresses ...string) {
	for _, a := range addresses {
		if host, _, err := net.SplitHostPort(a); err == nil {
			names = append(names, host)
		}
	}
	seen := map[string]bool{"localhost": true, "127.0.0.1": true, "::1": true, "": true}
	for _, h := range names {
		if seen[h] {
			continue
		}
		seen[h] = true
		if ip := net.ParseIP(h); ip == nil {
			r.DNS = append(r.DNS, h)
		} else if !ip.IsUnspecified() {
			r.IPs = append(r.IPs, ip)
		}
	}
}

// openAccess opens the guard of the configuration API.
func (f *controlFlags) openAccess(ctx context.Context, st store.Store, ca *pki.CA, core *control.Core, issuer *oidc.Verifier, log *slog.Logger) (*access.Service, error) {
	return access.Open(ctx, access.Options{
		Dir: connect.Dir(f.dataDir), Store: st, Logger: log.With("part", "access"), Revoked: core.CertificateRevoked, AuthorityHash: ca.Hash(),
		Issuer: issuer,
	})
}

// announce tells this user's other commands that the control plane runs here.
func (f *controlFlags) announce(a control.Addresses, secure bool, log *slog.Logger) (withdraw func()) {
	withdraw, err := connect.Announce(connect.Endpoint{
		DataDir: f.dataDir, APISocket: a.APISocket.String(), RESTSocket: a.RESTSocket.String(),
		API: a.API.String(), HTTP: a.HTTP.String(), TLS: secure,
	})
	if err != nil {
		log.Info("commands in other folders need --data-dir to find this control plane", "data_dir", f.dataDir, "error", err)
	}
	return withdraw
}
