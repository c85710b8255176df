// Package admission decides which proxies are let in: it makes join tokens, signs the
// certificates of proxies that join or renew, knows which were revoked, at any replica,
// and stands before every call of the port that proxies and runners use.
//
// Locks: guard.mu and handshakes.mu are taken last, and nothing waits while holding
// them. joins.loading is held while the store is read; only calls that revoke or allow,
// and the loop that follows the store, wait for it.
package admission

import (
	"context"
	"crypto/tls"
	"log/slog"
	"time"

	"google.golang.org/grpc"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
	"github.com/penstock-gateway/penstock/internal/control/kv"
	"github.com/penstock-gateway/penstock/internal/pki"
	"github.com/penstock-gateway/penstock/store"
)

// State is what admission needs of a store.Store, which documents it.
type State interface {
	kv.Watcher
	State(ctx context.Context, prefix string) (map[string][]byte, error)
	ReadState(ctx context.Context, prefix string) (store.StateValues, error)
	ReadKey(ctx context.Context, key string) (store.StateValues, error)
	PutState(ctx context.Context, key string, value []byte) error
	DeleteState(ctx context.Context, key string) error
}

// Params are what a Room needs.
type Params struct {
	State State
	Log   *slog.Logger
	// CA signs the certificates of proxies; nil: none can join here, nor renew.
	CA *pki.CA
	// CertLife is the life of those certificates. Default 30 days.
	CertLife time.Duration
	// Exists reports whether the configuration has an object of a full name.
	Exists func(name string) bool
}

// Room is admission at one replica.
type Room struct {
	guard *guard
	joins *joins
}

// New returns a Room that knows of no revocation: Load reads them.
func New(p Params) *Room {
	g := newGuard(p.Log)
	return &Room{guard: g, joins: newJoins(p, g)}
}

// Load takes over what is revoked.
func (r *Room) Load(ctx context.Context) error { return r.joins.load(ctx) }

// Follow takes over what any replica revokes, until ctx ends.
func (r *Room) Follow(ctx context.Context) { r.joins.follow(ctx) }

// CertificateRevoked is an error when a certificate, or the whole identity, was revoked,
// and while that is not known.
func (r *Room) CertificateRevoked(id, serial string) error {
	r.guard.mu.Lock()
	defer r.guard.mu.Unlock()
	if r.guard.isRevoked(id, serial) {
		return errRevoked
	}
	if r.guard.unknown {
		return errUnknown
	}
	return nil
}

// Revocations are what is revoked, by subject.
func (r *Room) Revocations() []*pb.Revocation { return r.guard.list() }

// FailedHandshakes counts the TLS handshakes that failed, by reason.
func (r *Room) FailedHandshakes() map[string]uint64 { return r.guard.failed.snapshot() }

// ServerOptions put the guard before every call of a server with this TLS configuration.
func (r *Room) ServerOptions(config *tls.Config) []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.Creds(r.guard.credentials(config)), grpc.InTapHandle(r.guard.tap),
		grpc.ChainUnaryInterceptor(r.guard.unary), grpc.ChainStreamInterceptor(r.guard.stream),
	}
}

// RegisterJoin adds the ProxyJoinService to a server with ServerOptions.
func (r *Room) RegisterJoin(s grpc.ServiceRegistrar) { pb.RegisterProxyJoinServiceServer(s, r.joins) }

// RegisterAdmission adds the ProxyAdmissionService to a server of the API, which checks
// who may call it.
func (r *Room) RegisterAdmission(s grpc.ServiceRegistrar) {
	pb.RegisterProxyAdmissionServiceServer(s, admission{joins: r.joins})
}
