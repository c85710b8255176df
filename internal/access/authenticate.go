package access

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/netip"
	"os"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/penstock-gateway/penstock/internal/access/oidc"
	"github.com/penstock-gateway/penstock/internal/pki"
)

// presented is what a caller shows of itself.
type presented struct {
	// uid is the user at the other end of a Unix socket; -1: it is none.
	uid int
	// authorization is the header of that name.
	authorization []string
	// tls is set for a TLS connection.
	tls *tls.ConnectionState
	// from is the address.
	from string
}

// errNobody is for a caller without a credential.
const nobody = "this needs a credential: `penstock` finds that of the user who started the control plane by itself; " +
	"everybody else needs a token (`penstock access token create`, made by an administrator) in PENSTOCK_TOKEN or by `penstock login`, " +
	"as the header \"authorization: Bearer TOKEN\""

// authenticate tells who a caller is. Errors are gRPC statuses: UNAUTHENTICATED,
// UNAVAILABLE while the keys of the declared issuer are not known, or
// RESOURCE_EXHAUSTED for a source that fails too often.
func (s *Service) authenticate(ctx context.Context, p presented, action string) (*Identity, error) {
	id, err := s.known(ctx, p)
	if err != nil {
		if !s.tries.allowed(source(p)) {
			return nil, status.Error(codes.ResourceExhausted, "too many failed attempts from here: wait a second")
		}
		s.refusedCaller(p, action, err)
		return nil, err
	}
	return id, nil
}

func source(p presented) string {
	if p.uid >= 0 {
		return localName(p.uid)
	}
	host, _, err := net.SplitHostPort(p.from)
	if err != nil {
		return p.from
	}
	ip, err := netip.ParseAddr(host)
	switch {
	case err != nil:
		return host
	case ip.IsLoopback():
		return "this machine" // which has 16 million addresses of this kind
	case ip.Unmap().Is6():
		p, _ := ip.Prefix(64) // what one customer has
		return p.String()
	}
	return ip.Unmap().String()
}

func (s *Service) known(ctx context.Context, p presented) (*Identity, error) {
	switch {
	case len(p.authorization) > 1:
		return nil, status.Error(codes.Unauthenticated, "authorization: given twice")
	case len(p.authorization) == 1:
		return s.bearer(ctx, p)
	case p.uid >= 0:
		if p.uid != 0 && p.uid != os.Geteuid() {
			return nil, status.Errorf(codes.Unauthenticated, "the socket is for the user who started the control plane, not for %s: %s", localName(p.uid), nobody)
		}
		return &Identity{Name: localName(p.uid), Via: "socket", From: "this machine", Owner: true}, nil
	case p.tls != nil && len(p.tls.PeerCertificates) > 0:
		return s.certificate(p)
	}
	return nil, status.Error(codes.Unauthenticated, nobody)
}

// bearer knows a caller by a token (RFC 6750, 2.1).
func (s *Service) bearer(ctx context.Context, p presented) (*Identity, error) {
	scheme, text, _ := strings.Cut(p.authorization[0], " ")
	if !strings.EqualFold(scheme, "bearer") {
		return nil, status.Error(codes.Unauthenticated, "authorization: want \"Bearer TOKEN\"")
	}
	if s.issuer != nil && !IsToken(text) {
		return s.issued(ctx, p, text)
	}
	t, err := ParseToken(text)
	if err != nil {
		return nil, status.Errorf(codes.Unauthenticated, "authorization: %v", err)
	}
	if s.owner.is(t) {
		return &Identity{Name: s.owner.name, Via: "credential file", From: p.from, Owner: true}, nil
	}
	if it := s.policy.Load().tokens[hashOf(t)]; it != nil {
		expires := it.token.GetExpireTime().AsTime()
		if !s.now().Before(expires) {
			return nil, status.Errorf(codes.Unauthenticated, "the token %q expired on %s: an administrator makes another with `penstock access token create`", it.token.GetName(), expires.Format(time.RFC3339))
		}
		return &Identity{Name: "token:" + it.token.GetName(), Via: "token", From: p.from, Expires: expires, tokenHash: &it.hash}, nil
	}
	return nil, status.Error(codes.Unauthenticated, "the token is not known here: it was revoked, has expired, or is of another control plane; an administrator makes one with `penstock access token create`")
}

// issued knows a caller by a token of the declared issuer.
func (s *Service) issued(ctx context.Context, p presented, text string) (*Identity, error) {
	c, err := s.issuer.Verify(ctx, text)
	if _, down := errors.AsType[*oidc.Unavailable](err); down {
		return nil, status.Errorf(codes.Unavailable, "authorization: tokens of %s cannot be checked now: %v", s.issuer.Issuer(), err)
	}
	if err != nil {
		return nil, status.Errorf(codes.Unauthenticated, "authorization: %v", err)
	}
	return &Identity{Name: c.Name, Via: "OpenID Connect", From: p.from, Expires: c.Expires, groups: c.Groups}, nil
}

// certificate knows a person by a client certificate; those of proxies and runners
// are for other ports.
func (s *Service) certificate(p presented) (*Identity, error) {
	spiffe, cert, err := pki.StateSPIFFE(*p.tls)
	if err != nil {
		return nil, status.Errorf(codes.Unauthenticated, "client certificate: %v", err)
	}
	name, err := pki.ParseUserID(spiffe)
	if err != nil {
		return nil, status.Errorf(codes.Unauthenticated, "client certificate: %v; the configuration API takes certificates of people only", err)
	}
	switch err := s.revoked(spiffe, pki.Serial(cert)); {
	case status.Code(err) == codes.PermissionDenied:
		return nil, status.Error(codes.Unauthenticated, "the client certificate was revoked")
	case err != nil:
		return nil, err
	}
	return &Identity{Name: "user:" + name, Via: "client certificate", From: p.from, Expires: cert.NotAfter, spiffe: spiffe, serial: pki.Serial(cert)}, nil
}
