package admission

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/tap"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
	"github.com/penstock-gateway/penstock/internal/pki"
)

const (
	// maxJoining bounds the Join calls at one time, and joinTimeout their time:
	// they come from anybody who reaches the port.
	maxJoining  = 4
	joinTimeout = 10 * time.Second
	// auditEvery bounds the lines about one refused certificate: Envoy tries
	// again about once a second.
	auditEvery = time.Minute
	// maxAudited bounds what is remembered for that.
	maxAudited = 1024
	// closeAfter is what the calls of a revoked certificate have to say why they
	// end, before the connection is closed under them.
	closeAfter = time.Second
)

// errRevoked ends the calls of a certificate that was revoked.
var errRevoked = status.Error(codes.PermissionDenied, "the certificate was revoked: `penstock proxy allow` undoes it")

// errUnknown refuses certificates while it is not known which were revoked.
var errUnknown = status.Error(codes.Unavailable, "which certificates were revoked is not known, because that list in the store is damaged, so none is let in: `penstock store check` says more, `penstock store repair` mends it")

// guard stands before every call of the xDS port. TLS lets in clients that have
// no certificate yet; this is the one place that keeps them from all methods but
// Join, and revoked certificates from all.
type guard struct {
	log     *slog.Logger
	now     func() time.Time
	joining chan struct{} // a slot for each Join call
	failed  *handshakes

	mu      sync.Mutex
	revoked map[string]*pb.Revocation // by subject
	unknown bool                      // there may be more
	open    map[*call]struct{}
	conns   map[*guardedConn]struct{}
	audited map[string]time.Time // last line about a certificate, by serial
}

// call is one call under way.
type call struct {
	id, serial string
	cancel     context.CancelCauseFunc
}

func newGuard(log *slog.Logger) *guard {
	return &guard{
		log: log, now: time.Now, joining: make(chan struct{}, maxJoining), failed: newHandshakes(log),
		revoked: map[string]*pb.Revocation{}, open: map[*call]struct{}{},
		conns: map[*guardedConn]struct{}{}, audited: map[string]time.Time{},
	}
}

// Subjects of revocations, as in the keys of the store.
func identitySubject(id string) string   { return "identity/" + id }
func serialSubject(serial string) string { return "serial/" + serial }

// check tells who calls a method and whether that is allowed. It is the only
// decision about certificates on the port.
func (g *guard) check(ctx context.Context, method string) (id, serial string, err error) {
	if method == pb.ProxyJoinService_Join_FullMethodName {
		return "", "", nil
	}
	id, cert, err := pki.PeerCertificate(ctx)
	if err != nil {
		return "", "", status.Errorf(codes.Unauthenticated, "%s needs a client certificate of this installation: %s", method, status.Convert(err).Message())
	}
	serial = pki.Serial(cert)
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.isRevoked(id, serial) {
		g.audit(id, serial, method)
		return id, serial, errRevoked
	}
	if g.unknown {
		return id, serial, errUnknown
	}
	return id, serial, nil
}

// isRevoked is called with mu held.
func (g *guard) isRevoked(id, serial string) bool {
	return g.revoked[identitySubject(id)] != nil || g.revoked[serialSubject(serial)] != nil
}

// audit is called with mu held.
func (g *guard) audit(id, serial, method string) {
	now := g.now()
	if last, ok := g.audited[serial]; ok && now.Sub(last) < auditEvery {
		return
	}
	if len(g.audited) >= maxAudited {
		clear(g.audited)
	}
	g.audited[serial] = now
	g.log.Warn("audit: refused a revoked certificate", "identity", id, "serial", serial, "method", method)
}

// enter is check for a call that begins now; it is ended when its certificate is
// revoked. The caller calls leave when it is over.
func (g *guard) enter(ctx context.Context, method string) (_ context.Context, leave func(), err error) {
	id, serial, err := g.check(ctx, method)
	if err != nil {
		return nil, nil, err
	}
	c := &call{id: id, serial: serial}
	ctx, c.cancel = context.WithCancelCause(ctx)
	g.mu.Lock()
	g.open[c] = struct{}{}
	// It may have been revoked since check.
	late := id != "" && g.isRevoked(id, serial)
	g.mu.Unlock()
	leave = func() {
		c.cancel(nil)
		g.mu.Lock()
		delete(g.open, c)
		g.mu.Unlock()
	}
	if late {
		leave()
		return nil, nil, errRevoked
	}
	return ctx, leave, nil
}

// set takes over what is revoked, and ends the calls that it concerns. With unknown there
// may be more: what was known stays in force, and no call begins any more. Those under way
// go on, for they were looked at when it was known, and the gateway would end with them.
func (g *guard) set(revoked map[string]*pb.Revocation, unknown bool) {
	g.mu.Lock()
	if unknown {
		for subject, r := range g.revoked {
			if revoked[subject] == nil {
				revoked[subject] = r
			}
		}
	}
	g.revoked, g.unknown = revoked, unknown
	clear(g.audited)
	var ended []*call
	for c := range g.open {
		if c.id != "" && g.isRevoked(c.id, c.serial) {
			ended = append(ended, c)
		}
	}
	var conns []*guardedConn
	for c := range g.conns {
		if g.isRevoked(c.id, c.serial) {
			conns = append(conns, c)
		}
	}
	g.mu.Unlock()
	for _, c := range ended {
		g.log.Warn("audit: closed a stream of a revoked certificate", "identity", c.id, "serial", c.serial)
		c.cancel(errRevoked)
	}
	// The connection, too: a proxy whose next certificate is good makes another one
	// with it, and one that does not read cannot hold its stream open.
	for _, c := range conns {
		time.AfterFunc(closeAfter, func() { c.Close() })
	}
}

// credentials are those of TLS; the connections that they make are known to the
// guard.
func (g *guard) credentials(config *tls.Config) credentials.TransportCredentials {
	return &guardedCredentials{TransportCredentials: credentials.NewTLS(config), guard: g}
}

type guardedCredentials struct {
	credentials.TransportCredentials
	guard *guard
}

// ServerHandshake implements credentials.TransportCredentials.
func (c *guardedCredentials) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	conn, info, err := c.TransportCredentials.ServerHandshake(raw)
	if err != nil {
		c.guard.failed.refused(raw.RemoteAddr(), err)
		return nil, nil, err
	}
	id, cert, err := pki.PeerCertificate(peer.NewContext(context.Background(), &peer.Peer{AuthInfo: info}))
	if err != nil {
		return conn, info, nil // no certificate: good for joining only, see check
	}
	out := &guardedConn{Conn: conn, guard: c.guard, id: id, serial: pki.Serial(cert)}
	c.guard.mu.Lock()
	c.guard.conns[out] = struct{}{}
	c.guard.mu.Unlock()
	return out, info, nil
}

// Clone implements credentials.TransportCredentials.
func (c *guardedCredentials) Clone() credentials.TransportCredentials {
	return &guardedCredentials{TransportCredentials: c.TransportCredentials.Clone(), guard: c.guard}
}

// guardedConn is a connection with a client certificate.
type guardedConn struct {
	net.Conn
	guard      *guard
	id, serial string
}

// Close implements net.Conn.
func (c *guardedConn) Close() error {
	c.guard.mu.Lock()
	delete(c.guard.conns, c)
	c.guard.mu.Unlock()
	return c.Conn.Close()
}

// list is what is revoked, by subject.
func (g *guard) list() []*pb.Revocation {
	g.mu.Lock()
	defer g.mu.Unlock()
	var keys []string
	for k := range g.revoked {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	var out []*pb.Revocation
	for _, k := range keys {
		out = append(out, g.revoked[k])
	}
	return out
}

// tap refuses calls when their headers are there, before a message is read and
// takes memory. The interceptors check again.
func (g *guard) tap(ctx context.Context, info *tap.Info) (context.Context, error) {
	if _, _, err := g.check(ctx, info.FullMethodName); err != nil {
		return ctx, err
	}
	if info.FullMethodName != pb.ProxyJoinService_Join_FullMethodName {
		return ctx, nil
	}
	select {
	case g.joining <- struct{}{}:
	default:
		return ctx, status.Errorf(codes.Unavailable, "%d proxies are joining just now: try again", maxJoining)
	}
	ctx, cancel := context.WithTimeout(ctx, joinTimeout)
	context.AfterFunc(ctx, func() {
		cancel()
		<-g.joining
	})
	return ctx, nil
}

func (g *guard) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	ctx, leave, err := g.enter(ctx, info.FullMethod)
	if err != nil {
		return nil, err
	}
	defer leave()
	resp, err := next(ctx, req)
	if errors.Is(context.Cause(ctx), errRevoked) {
		return nil, errRevoked
	}
	return resp, err
}

func (g *guard) stream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) error {
	ctx, leave, err := g.enter(ss.Context(), info.FullMethod)
	if err != nil {
		return err
	}
	defer leave()
	err = next(srv, &guarded{ServerStream: ss, ctx: ctx})
	if errors.Is(context.Cause(ctx), errRevoked) {
		return errRevoked
	}
	return err
}

// guarded is a stream that ends when its certificate is revoked.
type guarded struct {
	grpc.ServerStream
	ctx context.Context
}

func (s *guarded) Context() context.Context { return s.ctx }
