package access

import (
	"context"
	"net"
	"net/http"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/penstock-gateway/penstock/gateway/source/api"
)

type (
	socketKey struct{}
	ticketKey struct{}
)

// ConnContext notes who is at the other end of a Unix socket. It is the ConnContext
// of the http.Server.
func (s *Service) ConnContext(ctx context.Context, c net.Conn) context.Context {
	u, ok := c.(*net.UnixConn)
	if !ok {
		return ctx
	}
	uid, err := peerUser(u)
	if err != nil {
		s.log.Warn("cannot tell who is at the other end of the socket", "error", err)
		return ctx
	}
	return context.WithValue(ctx, socketKey{}, uid)
}

// HTTP lets only known callers through to next, but for the paths of open.
func (s *Service) HTTP(next http.Handler, open ...string) http.Handler {
	free := map[string]bool{}
	for _, path := range open {
		free[path] = true
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if free[r.URL.Path] {
			next.ServeHTTP(w, r)
			return
		}
		who := presented{uid: -1, authorization: r.Header.Values("Authorization"), tls: r.TLS, from: r.RemoteAddr}
		if uid, ok := r.Context().Value(socketKey{}).(int); ok {
			who.uid = uid
		}
		id, err := s.authenticate(r.Context(), who, r.Method+" "+r.URL.Path)
		if err != nil {
			st := status.Convert(err)
			code := http.StatusUnauthorized
			switch st.Code() {
			case codes.ResourceExhausted:
				code = http.StatusTooManyRequests
			case codes.Unavailable:
				code = http.StatusServiceUnavailable
			default:
				w.Header().Set("WWW-Authenticate", `Bearer realm="penstock"`)
			}
			api.WriteProblem(w, code, st.Code(), st.Message())
			return
		}
		rule := page(r.URL.Path)
		err = s.check(id, rule, nil)
		if !rule.anybody {
			s.ended(id, rule, r.Method+" "+r.URL.Path, nil, err)
		}
		if err != nil {
			api.WriteProblem(w, http.StatusForbidden, codes.PermissionDenied, status.Convert(err).Message())
			return
		}
		ticket, forget := s.outer(id)
		defer forget()
		ctx := context.WithValue(r.Context(), ticketKey{}, ticket)
		next.ServeHTTP(w, r.WithContext(s.enter(ctx, id)))
	})
}

// Metadata is what a REST call carries to the gRPC server behind it, to say who
// makes it.
func (s *Service) Metadata(ctx context.Context, _ *http.Request) metadata.MD {
	ticket, ok := ctx.Value(ticketKey{}).(string)
	if !ok {
		return nil
	}
	return metadata.Pairs(innerHeader, ticket)
}
