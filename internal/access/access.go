// Package access is the guard of the configuration API: it tells who calls, from
// the credential alone, and what that caller may do.
//
// A caller is known by one of
//
//   - the Unix socket in the data folder: the kernel names the peer's user
//     (SO_PEERCRED, unix(7)), and only the owner of the control plane and root pass;
//   - a bearer token (RFC 6750): that of the credential file, which is the owner's,
//     or one that was issued, or of a declared OpenID Connect issuer;
//   - a client certificate of the installation's own authority, made for a person.
//
// Nothing but health is served to anybody else. What a caller may do is said by
// roles; without one, nothing.
package access

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/penstock-gateway/penstock/internal/access/audit"
	"github.com/penstock-gateway/penstock/internal/access/oidc"
	"github.com/penstock-gateway/penstock/internal/keyfile"
)

// Options configure a Service.
type Options struct {
	// Dir is the private folder of the credential file and the sockets; made when it
	// is not there.
	Dir    string
	Logger *slog.Logger
	// Store keeps roles, bindings and tokens, for all replicas.
	Store State
	// Revoked returns why a certificate is not good any more, as a gRPC status: PERMISSION_DENIED
	// when it was revoked, UNAVAILABLE while that is not known. nil: none is revoked.
	Revoked func(spiffe, serial string) error
	// AuthorityHash is the SHA-256 of the certificate authority that clients know the
	// server by; it is part of each token.
	AuthorityHash [32]byte
	// Issuer checks tokens of an OpenID Connect issuer; nil: none are taken.
	Issuer *oidc.Verifier
	// Now is the clock; nil: time.Now.
	Now func() time.Time
}

// Service decides who may call the configuration API.
type Service struct {
	log      *slog.Logger
	dir      string
	now      func() time.Time
	revoked  func(spiffe, serial string) error
	owner    ownerCredential
	tries    *tries
	refusals *tries // bounds the audit records of refusals
	audit    *audit.Log
	state    State
	loading  sync.Mutex // of load: an older reading never replaces a newer one
	policy   atomic.Pointer[policy]
	calls    calls
	hash     [32]byte // of the authority that tokens pin
	issuer   *oidc.Verifier
	stop     context.CancelFunc
	done     sync.WaitGroup
	// tickets are the identities of REST calls under way, for the gRPC server behind.
	tickets sync.Map
}

// Open makes the private folder and the owner's credential file, if they are not
// there, reads what is stored and follows it until Close.
func Open(ctx context.Context, o Options) (*Service, error) {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Revoked == nil {
		o.Revoked = func(string, string) error { return nil }
	}
	if err := PrivateDir(o.Dir); err != nil {
		return nil, err
	}
	s := &Service{
		log: o.Logger, dir: o.Dir, now: o.Now, revoked: o.Revoked, tries: newTries(o.Now), refusals: newTries(o.Now),
		state: o.Store, hash: o.AuthorityHash, issuer: o.Issuer,
	}
	var err error
	if s.owner, err = openOwner(filepath.Join(o.Dir, CredentialFile), o.AuthorityHash); err != nil {
		return nil, err
	}
	if err := s.load(ctx); err != nil {
		return nil, err
	}
	if s.audit, err = audit.Open(ctx, filepath.Join(o.Dir, "audit"), o.Store, o.Logger, o.Now); err != nil {
		return nil, err
	}
	run, stop := context.WithCancel(context.WithoutCancel(ctx))
	s.stop = stop
	s.done.Go(func() { s.follow(run) })
	if s.issuer != nil {
		s.done.Go(func() { s.issuer.Run(run) })
	}
	return s, nil
}

// Close ends what Open began; the store stays the caller's.
func (s *Service) Close() {
	s.stop()
	s.done.Wait()
	if err := s.audit.Close(); err != nil {
		s.log.Warn("the audit log was not closed in order", "error", err)
	}
}

// PrivateDir makes a folder that only its owner can enter, or checks that it is one.
func PrivateDir(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	if err := keyfile.Check(dir); err != nil {
		return err
	}
	info, err := os.Stat(dir)
	if err != nil {
		return err
	}
	if !info.IsDir() {
		return fmt.Errorf("%s is not a folder", dir)
	}
	if uid, known := ownerOf(info); known && uid != os.Geteuid() {
		return fmt.Errorf("%s belongs to another user (uid %d): choose a folder of your own", dir, uid)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return errors.Join(os.Chmod(dir, 0o700))
	}
	return nil
}
