package keeper

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/penstock-gateway/penstock/xds"
	"github.com/penstock-gateway/penstock/xds/delivery"
)

// settleAfter is how long nothing may come until a proxy that was started with nothing has
// all that there is for it.
const settleAfter = 2 * time.Second

var (
	errReplaced = status.Error(codes.Aborted, "the proxy opened another stream")
	errBack     = status.Error(codes.Unavailable, "the control plane is there again: the next stream leads to it")
	errNewer    = status.Error(codes.Unavailable, "the proxy has a configuration that is not kept here: it serves on with it until the control plane is there")
)

type proxyStream = discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesServer

// DeltaAggregatedResources serves the proxy until its stream, or that of the control plane, ends.
func (k *Keeper) DeltaAggregatedResources(down proxyStream) error {
	ctx, cancel := context.WithCancelCause(down.Context())
	defer cancel(nil)
	k.mu.Lock()
	if k.current != nil {
		k.current(errReplaced)
	}
	k.current = cancel
	k.turn++
	turn := k.turn
	k.mu.Unlock()
	first, err := down.Recv()
	if err != nil {
		return err
	}
	p := &peeked{proxyStream: down, ctx: ctx, first: first}

	wait, done := context.WithTimeout(ctx, k.opt.wait)
	connected := k.ready(wait)
	done()
	if !connected {
		why := k.Usable()
		if why == nil {
			why = k.disk(ctx, turn, p)
			if !errors.Is(why, errNewer) {
				return why
			}
		}
		problem := fmt.Sprintf("%s; %s", k.unreachable(ctx), describe(why))
		k.set(turn, None, problem)
		k.opt.Logger.Warn("no control plane, and nothing for the proxy on disk: it waits", "why", problem)
		if !k.ready(ctx) {
			return cause(ctx)
		}
	}
	return k.pass(ctx, turn, p)
}

// unreachable says why there is no connection to the control plane.
func (k *Keeper) unreachable(ctx context.Context) string {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	_, err := discoveryv3.NewAggregatedDiscoveryServiceClient(k.conn).DeltaAggregatedResources(ctx)
	if err == nil || ctx.Err() != nil {
		return "it does not answer"
	}
	return describe(err)
}

// describe is an error without gRPC's frames.
func describe(err error) string {
	s, ok := status.FromError(err)
	if !ok {
		return err.Error()
	}
	if _, inner, found := strings.Cut(s.Message(), `desc = "`); found {
		inner = strings.TrimSuffix(inner, `"`)
		if _, after, found := strings.Cut(inner, ": "); found && strings.HasPrefix(inner, "transport: ") {
			inner = strings.TrimPrefix(after, "Error while dialing: ")
		}
		return inner
	}
	return s.Message()
}

func cause(ctx context.Context) error {
	err := context.Cause(ctx)
	if _, ok := status.FromError(err); ok {
		return err
	}
	return status.FromContextError(err).Err()
}

// peeked is a stream whose first request was read.
type peeked struct {
	proxyStream
	ctx   context.Context
	mu    sync.Mutex
	first *discoveryv3.DeltaDiscoveryRequest
	// look, unless nil, sees each request, and ends the stream with its error.
	look func(*discoveryv3.DeltaDiscoveryRequest) error
}

func (p *peeked) Context() context.Context { return p.ctx }

func (p *peeked) Recv() (*discoveryv3.DeltaDiscoveryRequest, error) {
	p.mu.Lock()
	q := p.first
	p.first = nil
	p.mu.Unlock()
	var err error
	if q == nil {
		q, err = p.proxyStream.Recv()
	}
	if err == nil && p.look != nil {
		err = p.look(q)
	}
	return q, err
}

// disk serves the proxy what is kept until the control plane is there. errNewer means that
// nothing was sent, and that the proxy has something else than what is kept.
func (k *Keeper) disk(ctx context.Context, turn int, p *peeked) error {
	k.mu.Lock()
	older := k.older(p.first)
	g := k.state.generation()
	k.mu.Unlock()
	if older {
		return errNewer
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	// What a proxy that runs says that it has comes type by type.
	begun := map[string]bool{}
	q := &peeked{proxyStream: p, ctx: ctx, look: func(q *discoveryv3.DeltaDiscoveryRequest) error {
		k.mu.Lock()
		defer k.mu.Unlock()
		if t := q.GetTypeUrl(); !begun[t] {
			if begun[t] = true; k.older(q) {
				return errNewer
			}
		}
		return nil
	}}
	server := delivery.New(delivery.Options{
		Logger: slog.New(warnings{k.opt.Logger.Handler()}).With("from", "disk"),
		Authenticate: func(context.Context) (delivery.Identity, error) {
			return delivery.Identity{Proxy: k.opt.Identity, SPIFFE: k.opt.Identity, View: "disk"}, nil
		},
	})
	server.Update("disk", g)
	defer server.Close()
	go func() {
		if k.ready(ctx) {
			cancel(errBack)
			server.Close()
		}
	}()
	problem := k.unreachable(ctx)
	k.set(turn, Disk, problem)
	k.opt.Logger.Warn("no control plane: the proxy gets its last acknowledged configuration from disk",
		"age", k.age().String(), "resources", k.Status().Resources, "why", problem)
	err := server.Service().DeltaAggregatedResources(q)
	if errors.Is(context.Cause(ctx), errBack) {
		k.opt.Logger.Info("the control plane is there again")
		return errBack
	}
	k.set(turn, None, problem)
	if errors.Is(err, errNewer) {
		return status.Error(codes.Unavailable, describe(err))
	}
	return err
}

// warnings is a handler of what is more than news.
type warnings struct{ slog.Handler }

func (w warnings) Enabled(ctx context.Context, l slog.Level) bool {
	return l >= slog.LevelWarn && w.Handler.Enabled(ctx, l)
}

func (w warnings) WithAttrs(a []slog.Attr) slog.Handler { return warnings{w.Handler.WithAttrs(a)} }
func (w warnings) WithGroup(name string) slog.Handler   { return warnings{w.Handler.WithGroup(name)} }

// older reports whether a proxy says, with its first request of a type, that it has what
// is not kept, in its place or at all. It is called with mu held.
func (k *Keeper) older(q *discoveryv3.DeltaDiscoveryRequest) bool {
	missing, _ := k.state.resume(xds.Type(q.GetTypeUrl()), q.GetInitialResourceVersions())
	return len(missing) > 0
}

// pass passes on everything between the proxy and the control plane.
func (k *Keeper) pass(ctx context.Context, turn int, down *peeked) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	up, err := discoveryv3.NewAggregatedDiscoveryServiceClient(k.conn).DeltaAggregatedResources(ctx)
	if err != nil {
		return err
	}
	k.mu.Lock()
	k.streams++
	k.mu.Unlock()
	n := newNotes(k)
	defer func() {
		n.stop()
		k.contactEnds(turn)
	}()
	go func() {
		for {
			q, err := down.Recv()
			if errors.Is(err, io.EOF) {
				_ = up.CloseSend()
				return
			}
			if err == nil {
				n.request(q)
				err = up.Send(q)
			}
			if err != nil && !errors.Is(err, io.EOF) {
				cancel(err)
			}
			if err != nil {
				return // io.EOF: the other goroutine gets the reason
			}
		}
	}()
	// A proxy that has everything gets no response, so the connection must do as a sign.
	k.contact()
	k.set(turn, ControlPlane, "")
	k.opt.Logger.Info("the proxy is connected to the control plane")
	for {
		r, err := up.Recv()
		if err != nil {
			return k.ended(ctx, err)
		}
		n.response(r)
		if err := down.Send(r); err != nil {
			return err
		}
	}
}

// contactEnds notes the end of a stream that led to the control plane.
func (k *Keeper) contactEnds(turn int) {
	k.mu.Lock()
	k.streams--
	k.mu.Unlock()
	k.contact()
	k.set(turn, None, "the stream to the control plane ended")
}

// ended is what the proxy is told of the end of the stream to the control plane.
func (k *Keeper) ended(ctx context.Context, err error) error {
	// First, since the proxy may have ended its stream at the same moment.
	if status.Code(err) == codes.PermissionDenied {
		k.forget(err)
	}
	if ctx.Err() != nil {
		return cause(ctx)
	}
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// notes are what is known of one stream to the control plane.
type notes struct {
	k     *Keeper
	epoch int // of the keeper when the stream began

	mu       sync.Mutex
	begun    map[string]bool
	flight   map[string]*discoveryv3.DeltaDiscoveryResponse // by type and nonce
	listener bool                                           // some were acknowledged, or are not to change
	settled  *time.Timer
}

func newNotes(k *Keeper) *notes {
	n := &notes{k: k, begun: map[string]bool{}, flight: map[string]*discoveryv3.DeltaDiscoveryResponse{}}
	k.mu.Lock()
	n.epoch = k.epoch
	k.mu.Unlock()
	n.settled = time.AfterFunc(settleAfter, n.settle)
	return n
}

func (n *notes) stop() { n.settled.Stop() }

// response notes what is sent.
func (n *notes) response(r *discoveryv3.DeltaDiscoveryResponse) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.flight[r.GetTypeUrl()+r.GetNonce()] = r
	n.settled.Reset(settleAfter)
}

// request notes what the proxy says, before the control plane hears it. Of what the proxy
// has and the keeper does not, it takes the versions away, so that it is sent once more.
func (n *notes) request(q *discoveryv3.DeltaDiscoveryRequest) {
	n.mu.Lock()
	defer n.mu.Unlock()
	change := &discoveryv3.DeltaDiscoveryResponse{TypeUrl: q.GetTypeUrl()}
	t := xds.Type(q.GetTypeUrl())
	if !n.begun[q.GetTypeUrl()] {
		n.begun[q.GetTypeUrl()] = true
		n.k.mu.Lock()
		if len(q.GetInitialResourceVersions()) == 0 {
			n.k.state.begin(t)
		}
		missing, gone := n.k.state.resume(t, q.GetInitialResourceVersions())
		n.k.mu.Unlock()
		for _, name := range missing {
			delete(q.InitialResourceVersions, name)
		}
		n.listener = n.listener || t == xds.Listener && len(q.GetInitialResourceVersions()) > 0
		change.RemovedResources = gone
	}
	if key := q.GetTypeUrl() + q.GetResponseNonce(); q.GetResponseNonce() != "" {
		if r := n.flight[key]; r != nil && q.GetErrorDetail() == nil {
			change.Resources = r.GetResources()
			change.RemovedResources = append(change.RemovedResources, r.GetRemovedResources()...)
			n.listener = n.listener || t == xds.Listener
		}
		delete(n.flight, key)
	}
	for _, name := range q.GetResourceNamesUnsubscribe() {
		if name != "*" {
			change.RemovedResources = append(change.RemovedResources, name)
		}
	}
	n.k.keep(n.epoch, change)
	n.settled.Reset(settleAfter)
}

// settle removes what a proxy that was started with nothing did not get again.
func (n *notes) settle() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.listener || len(n.flight) > 0 {
		n.settled.Reset(settleAfter)
		return
	}
	for t := range n.begun {
		n.k.mu.Lock()
		unseen := n.k.state.unseen(xds.Type(t))
		n.k.mu.Unlock()
		n.k.keep(n.epoch, &discoveryv3.DeltaDiscoveryResponse{TypeUrl: t, RemovedResources: unseen})
	}
}
