package access

import (
	"context"
	"errors"
	"sync/atomic"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/tap"
	"google.golang.org/protobuf/proto"

	"github.com/penstock-gateway/penstock/gateway/source/api"
)

// innerHeader carries who called the REST front of this process.
const innerHeader = "x-penstock-inner"

// open are the methods that need no credential: they tell nothing but that the
// control plane serves.
func open(method string) bool { return method == healthpb.Health_Check_FullMethodName }

// Tap knows the caller of an RPC before its first message is read and takes memory.
// It is the InTapHandle of the gRPC server.
func (s *Service) Tap(ctx context.Context, info *tap.Info) (context.Context, error) {
	if open(info.FullMethodName) {
		return ctx, nil
	}
	id, err := s.caller(ctx, info.FullMethodName)
	if err != nil {
		return ctx, err
	}
	return s.enter(ctx, id), nil
}

// enter is a context of a call by id.
func (s *Service) enter(ctx context.Context, id *Identity) context.Context {
	n := &note{}
	caller := s.apiCaller(id)
	caller.Changed = n.changed
	return api.WithCaller(context.WithValue(WithIdentity(ctx, id), noteKey{}, n), caller)
}

// caller tells who makes an RPC.
func (s *Service) caller(ctx context.Context, method string) (*Identity, error) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return nil, status.Error(codes.Unauthenticated, nobody)
	}
	md, _ := metadata.FromIncomingContext(ctx)
	if _, inner := p.AuthInfo.(innerInfo); inner {
		return s.innerCaller(md)
	}
	who := presented{uid: -1, authorization: md.Get("authorization")}
	if p.Addr != nil {
		who.from = p.Addr.String()
	}
	switch info := p.AuthInfo.(type) {
	case socketInfo:
		who.uid = info.uid
	case credentials.TLSInfo:
		who.tls = &info.State
	}
	return s.authenticate(ctx, who, method)
}

// outer is what the REST front sends with a call, and innerCaller reads: a ticket
// for the identity that it found. No client can make one.
func (s *Service) outer(id *Identity) (ticket string, forget func()) {
	ticket = randomText()
	s.tickets.Store(ticket, id)
	return ticket, func() { s.tickets.Delete(ticket) }
}

func (s *Service) innerCaller(md metadata.MD) (*Identity, error) {
	if v := md.Get(innerHeader); len(v) == 1 {
		if id, ok := s.tickets.Load(v[0]); ok {
			return id.(*Identity), nil
		}
	}
	return nil, status.Error(codes.Unauthenticated, nobody)
}

// Unary authorizes a call. It is an interceptor of the gRPC server.
func (s *Service) Unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	if open(info.FullMethod) {
		return next(ctx, req)
	}
	id := From(ctx)
	m, isMessage := req.(proto.Message)
	if id == nil || !isMessage {
		return nil, status.Error(codes.Unauthenticated, nobody)
	}
	r, err := ruleOf(info.FullMethod)
	if err == nil {
		err = s.check(id, r, m)
	}
	if err == nil {
		err = s.began(r)
	}
	var resp any
	if err == nil {
		resp, err = next(ctx, req)
	}
	n, _ := ctx.Value(noteKey{}).(*note)
	s.ended(id, r, info.FullMethod, n, err)
	return resp, err
}

// Stream authorizes a stream, by its first message where that says what it is about.
// It is an interceptor of the gRPC server.
func (s *Service) Stream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) (err error) {
	id := From(ss.Context())
	if id == nil {
		return status.Error(codes.Unauthenticated, nobody)
	}
	r, err := ruleOf(info.FullMethod)
	defer func() {
		n, _ := ss.Context().Value(noteKey{}).(*note)
		s.ended(id, r, info.FullMethod, n, err)
	}()
	if err == nil {
		err = s.began(r)
	}
	if err == nil && r.scope == nil {
		err = s.check(id, r, nil)
	}
	if err != nil {
		return err
	}
	st := &checked{ServerStream: ss, check: func(m proto.Message) error { return s.check(id, r, m) }, once: r.scope == nil}
	ctx, leave := s.calls.enter(ss.Context(), id, func() bool {
		if r.scope == nil {
			return s.check(id, r, nil) == nil
		}
		first := st.first.Load()
		return first == nil || s.check(id, r, *first) == nil
	})
	defer leave()
	st.ctx = ctx
	if !s.still(id) {
		return errEnded // since it was known
	}
	err = next(srv, st)
	if errors.Is(context.Cause(ctx), errEnded) {
		return errEnded
	}
	return err
}

func ruleOf(method string) (rule, error) {
	r, ok := rules[method]
	if !ok {
		return r, status.Errorf(codes.PermissionDenied, "%s has no rule that allows it to anybody", method)
	}
	return r, nil
}

// checked is a stream whose first message is checked.
type checked struct {
	grpc.ServerStream
	ctx   context.Context
	check func(proto.Message) error
	once  bool
	first atomic.Pointer[proto.Message]
}

// Context implements grpc.ServerStream.
func (c *checked) Context() context.Context { return c.ctx }

// RecvMsg implements grpc.ServerStream.
func (c *checked) RecvMsg(m any) error {
	if err := c.ServerStream.RecvMsg(m); err != nil || c.once {
		return err
	}
	p, ok := m.(proto.Message)
	if !ok {
		return status.Error(codes.Internal, "the message cannot be checked")
	}
	if err := c.check(p); err != nil {
		return err
	}
	c.once = true
	c.first.Store(&p)
	return nil
}
