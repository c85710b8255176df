package main

import (
	"context"
	"log/slog"

	"github.com/penstock-gateway/penstock/internal/access"
	"github.com/penstock-gateway/penstock/internal/access/connect"
	"github.com/penstock-gateway/penstock/internal/access/oidc"
	"github.com/penstock-gateway/penstock/internal/control"
	"github.com/penstock-gateway/penstock/internal/pki"
	"github.com/penstock-gateway/penstock/store"
)

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
