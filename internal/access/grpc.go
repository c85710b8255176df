package access

import (
	"context"
	"crypto/subtle"
	"encoding/json"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/tap"

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
	id, err := s.caller(ctx)
	if err != nil {
		return ctx, err
	}
	return s.enter(ctx, id), nil
}

// enter is a context of a call by id.
func (s *Service) enter(ctx context.Context, id *Identity) context.Context {
	return api.WithCaller(WithIdentity(ctx, id), &api.Caller{Name: id.Name})
}

// caller tells who makes an RPC.
func (s *Service) caller(ctx context.Context) (*Identity, error) {
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
	return s.authenticate(ctx, who)
}

// outer is what the REST front sends with a call, and innerCaller reads: who called
// it. The secret of this process keeps headers of a client from being taken for it.
func (s *Service) outer(id *Identity) string {
	b, err := json.Marshal(id)
	if err != nil {
		return ""
	}
	return s.inner + " " + string(b)
}

func (s *Service) innerCaller(md metadata.MD) (*Identity, error) {
	v := md.Get(innerHeader)
	if len(v) != 1 {
		return nil, status.Error(codes.Unauthenticated, nobody)
	}
	secret, text, _ := strings.Cut(v[0], " ")
	var id Identity
	if subtle.ConstantTimeCompare([]byte(secret), []byte(s.inner)) != 1 || json.Unmarshal([]byte(text), &id) != nil {
		return nil, status.Error(codes.Unauthenticated, nobody)
	}
	return &id, nil
}
