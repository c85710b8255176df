// Package delivery is the xDS server: it carries what the ledger decides to the
// Envoys over delta aggregated discovery (ADS), and tells who serves what. gRPC
// clients without a proxy, which know the state-of-the-world variant only, get a
// view of their own over that, from the same ledger.
//
// The server is its own, on go-control-plane's API types only: the caches of
// go-control-plane walk all resources for each client and change, and take a
// resource as received when it was sent. Only the aggregated service is
// registered, so there is one door to guard. Who a proxy is, and with it the view
// that it gets, comes from Options.Authenticate (its certificate), never from
// what it says of itself.
//
// No queue of responses is kept: a stream that can take the next response gets
// what the ledger finds lacking at that moment, in its newest version.
package delivery

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/penstock-gateway/penstock/xds"
	"github.com/penstock-gateway/penstock/xds/ledger"
)

// Identity is who a proxy is.
type Identity struct {
	// Proxy is its short name for people.
	Proxy string
	// SPIFFE is its whole id. Two streams of one id are one proxy.
	SPIFFE string
	// View names the Generation that it may see.
	View string
	// GRPCView names the Generation that it may see as a gRPC client, over the
	// state-of-the-world variant. Empty: that is refused.
	GRPCView string
}

// Options configure a Server.
type Options struct {
	Logger *slog.Logger
	// Authenticate tells who opened a stream. Its error closes the stream; give it
	// a gRPC status. Required: without it every stream is refused.
	Authenticate func(ctx context.Context) (Identity, error)
	// OnView is called, on the goroutine of the stream, when a proxy connects for a
	// view that was never updated. Somebody should Update it; until then the proxy
	// waits.
	OnView func(view string)
	// OnForbidden is called for each name that a proxy asks for and its view does
	// not have: another gateway's secret, or a name that is not there (yet). For an
	// audit log. It must not block.
	OnForbidden func(Identity, xds.Ref)
	// OnRefused is called when a proxy refused a resource that no proxy of its view
	// has acknowledged, and OnAccepted when one acknowledged the wanted version of
	// a quarantined one. They may call Quarantine. They must not block.
	OnRefused  func(Refusal)
	OnAccepted func(view string, r xds.Ref)
	// OnLeave is called when a stream has ended, with what was sent and not answered.
	// It must not block.
	OnLeave func(id Identity, unanswered []xds.Ref)
	// SilentAfter is how long a response may stay unanswered. Default 5 s.
	SilentAfter time.Duration
	// Grace is how long a resource that nothing refers to any more stays with a
	// proxy, for requests that are under way. Default 1 s; negative is none.
	Grace time.Duration
	// StreamAge is how long a stream lasts; up to a tenth is added by chance, so
	// that proxies that came together do not all come back together. It ends when no
	// answer is awaited, so nothing is sent again on the next one. Until that is open,
	// for SilentAfter at most, the proxy counts as pending. See GRPCOptions.
	// Zero: for ever.
	StreamAge time.Duration
	// FullSyncs is how many proxies that come with nothing are synchronised at one
	// time; the others wait in turn. Default 32.
	FullSyncs int
	// WarmRoutes is the RouteConfiguration that a gRPC client holds, with the clusters
	// of the next one named in it; compile.WarmRoutes. nil: clients go to the next one
	// at once.
	WarmRoutes func(held, next *xds.Resource) (*anypb.Any, error)
}

// Server is the xDS server. It is safe for concurrent use.
type Server struct {
	opt   Options
	stats counters

	turns turns

	mu       sync.Mutex
	views    map[string]*view
	streams  map[string]*stream // by SPIFFE id, with more for those of gRPC clients
	channels map[string]int     // streams of gRPC clients, by SPIFFE id
	closed   bool

	// changed is closed and replaced when a proxy's state may have changed, while
	// somebody waits.
	changed atomic.Pointer[chan struct{}]
	waiters atomic.Int32
}

// view is one Table and the streams that it feeds.
type view struct {
	name  string
	ready chan struct{} // closed at the first Update

	// mu guards the table, which is no more than a data structure, and the
	// ledgers of its proxies.
	mu      sync.Mutex
	table   *ledger.Table
	streams map[*stream]struct{}
	memory  map[string]memory // of proxies that are gone, by SPIFFE id
	// returning are those that come back, by SPIFFE id.
	returning map[string]returning
}

// memory is what is kept of a proxy between its streams.
type memory struct {
	refused ledger.Memory
	version string
}

const (
	// maxMemory bounds the memory of a view.
	maxMemory = 4096
	// maxChannels bounds the streams of gRPC clients of one identity: each channel
	// has one.
	maxChannels = 256
	// ageSpread is the part of StreamAge that is added by chance.
	ageSpread = 10
)

var (
	errReplaced = status.Error(codes.Aborted, "another stream of the same proxy identity was opened: each proxy needs a certificate of its own")
	errChannels = status.Errorf(codes.ResourceExhausted, "%d channels of this identity have a stream already: give the processes certificates of their own, or share channels", maxChannels)
	errEnvoy    = status.Error(codes.Unimplemented, "state-of-the-world xDS is for gRPC clients: set api_type DELTA_GRPC in the ads_config of an Envoy")
	errClosed   = status.Error(codes.Unavailable, "the control plane shuts down")
)

// New makes a Server. Register it on a gRPC server, and Update its views.
func New(o Options) *Server {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.SilentAfter == 0 {
		o.SilentAfter = 5 * time.Second
	}
	if o.Grace == 0 {
		o.Grace = time.Second
	}
	if o.Authenticate == nil {
		o.Authenticate = func(context.Context) (Identity, error) {
			return Identity{}, status.Error(codes.Unauthenticated, "the server has no way to tell who a proxy is")
		}
	}
	if o.FullSyncs == 0 {
		o.FullSyncs = 32
	}
	s := &Server{opt: o, views: map[string]*view{}, streams: map[string]*stream{}, channels: map[string]int{}}
	s.turns.free, s.turns.holders = o.FullSyncs, map[*stream]struct{}{}
	s.stats.types = map[xds.Type]*typeCounters{}
	for _, t := range ledger.Types() {
		s.stats.types[t] = &typeCounters{}
	}
	c := make(chan struct{})
	s.changed.Store(&c)
	return s
}

// Register adds the aggregated discovery service, and nothing else, to a gRPC
// server. The server must be one with mutual TLS and keepalive.
func (s *Server) Register(r grpc.ServiceRegistrar) {
	discoveryv3.RegisterAggregatedDiscoveryServiceServer(r, s.Service())
}

// Service is what Register adds, for who has the streams already.
func (s *Server) Service() discoveryv3.AggregatedDiscoveryServiceServer {
	return &service{server: s}
}

// DefaultStreamAge is how long a stream of a proxy lasts, in a control plane that
// has the option.
const DefaultStreamAge = 30 * time.Minute

// GRPCOptions are for the gRPC server that a Server is registered on, besides its
// credentials. A proxy that is gone without a word is found within 35 s: with an
// answer due within 5 s, proxies were cut off that were only busy, in the storm of
// a start. Small buffers, since a thousand idle proxies are connections that hardly
// speak; and room for the first request of an Envoy that holds 100,000 resources.
//
// age is Options.StreamAge. Connections are told to go a little before that (gRPC
// spreads it by a tenth either way), so that the next stream of a proxy takes a new
// connection, which may lead to another replica, and are cut off much later only if
// the stream did not end by itself. One that does nothing is closed after a minute.
func GRPCOptions(age time.Duration) []grpc.ServerOption {
	p := keepalive.ServerParameters{Time: 15 * time.Second, Timeout: 20 * time.Second, MaxConnectionIdle: time.Minute}
	if age > 0 {
		p.MaxConnectionAge, p.MaxConnectionAgeGrace = age*9/10, age/2+10*time.Second
	}
	return []grpc.ServerOption{
		grpc.KeepaliveParams(p),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second, PermitWithoutStream: true}),
		grpc.ReadBufferSize(4 << 10),
		grpc.MaxRecvMsgSize(32 << 20),
		// Windows that do not grow: to find out how far they could, gRPC answers each
		// message with a ping, which is a write, a packet and a read more on both sides.
		grpc.StaticStreamWindowSize(window), grpc.StaticConnWindowSize(window),
	}
}

// window is what a proxy may send before it is read: more than the names and versions
// of 5,000 resources, which is the most that it says at once.
const window = 1 << 20

// Update makes g what the proxies of a view are to have. It does not wait for
// any proxy; what a slow one has not been sent yet is merged. A generation of an
// older revision than the last one is ignored.
func (s *Server) Update(name string, g *xds.Generation) {
	v, ok := s.view(name)
	if !ok {
		return
	}
	v.mu.Lock()
	if v.table.Ready() && g.Revision < v.table.Revision() {
		last := v.table.Revision()
		v.mu.Unlock()
		s.opt.Logger.Warn("ignored a generation that is older than the last one", "view", name, "revision", g.Revision, "last", last)
		return
	}
	first := !v.table.Ready()
	n := v.table.Update(g, time.Now())
	for st := range v.streams {
		st.wake.Set()
	}
	v.mu.Unlock()
	if first {
		close(v.ready)
	}
	s.stats.updates.Add(1)
	s.stats.changes.Add(int64(n))
	s.notify()
}

// Close ends all streams and Waits; the proxies go on with what they have.
func (s *Server) Close() {
	s.mu.Lock()
	s.closed = true
	for _, st := range s.streams {
		st.cancel(errClosed)
	}
	s.mu.Unlock()
	s.notify()
}

// view finds or makes a view; false when the server is closed.
func (s *Server) view(name string) (*view, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, false
	}
	v := s.views[name]
	if v == nil {
		v = &view{
			name: name, ready: make(chan struct{}), table: ledger.NewTable(),
			streams: map[*stream]struct{}{}, memory: map[string]memory{}, returning: map[string]returning{},
		}
		s.views[name] = v
	}
	return v, true
}

// all are the views now.
func (s *Server) all() []*view {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]*view, 0, len(s.views))
	for _, v := range s.views {
		out = append(out, v)
	}
	return out
}

// service is the gRPC face of the Server.
type service struct {
	discoveryv3.UnimplementedAggregatedDiscoveryServiceServer
	server *Server
}

// StreamAggregatedResources serves a gRPC client until its stream ends.
func (sv *service) StreamAggregatedResources(ss discoveryv3.AggregatedDiscoveryService_StreamAggregatedResourcesServer) error {
	id, err := sv.server.identify(ss.Context())
	if err != nil {
		return err
	}
	if id.GRPCView == "" {
		return errEnvoy
	}
	return sv.server.serve(ss.Context(), newSotw(ss, sv.server.opt.WarmRoutes), id, id.GRPCView, true)
}

// DeltaAggregatedResources serves one proxy until its stream ends.
func (sv *service) DeltaAggregatedResources(ds discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error {
	id, err := sv.server.identify(ds.Context())
	if err != nil {
		return err
	}
	return sv.server.serve(ds.Context(), delta{ds}, id, id.View, false)
}

// identify asks who opened a stream.
func (s *Server) identify(ctx context.Context) (Identity, error) {
	id, err := s.opt.Authenticate(ctx)
	if err != nil {
		s.opt.Logger.Warn("refused an xDS stream", "error", err)
		if _, ok := status.FromError(err); !ok {
			err = status.Error(codes.Unauthenticated, err.Error())
		}
		return id, err
	}
	if id.SPIFFE == "" {
		id.SPIFFE = id.Proxy
	}
	return id, nil
}

// serve serves a stream until it ends.
func (s *Server) serve(ctx context.Context, wire dialect, id Identity, name string, sotw bool) error {
	v, ok := s.view(name)
	if !ok {
		return errClosed
	}
	st, err := s.attach(ctx, wire, v, id, sotw)
	if err != nil {
		return err
	}
	defer s.detach(st)
	err = st.run()
	if cause := context.Cause(st.ctx); errors.Is(cause, errReplaced) || errors.Is(cause, errClosed) {
		return cause
	}
	return err
}
