package api

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"

	"github.com/grpc-ecosystem/grpc-gateway/v2/runtime"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/encoding/protojson"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// REST returns the REST form of the services. conn leads to the gRPC server, so
// that its interceptors run for REST calls too.
func REST(ctx context.Context, conn *grpc.ClientConn) (http.Handler, error) {
	mux := runtime.NewServeMux(
		// Strict as the YAML format is: a misspelt field is an error, not a no-op.
		runtime.WithMarshalerOption(runtime.MIMEWildcard, &runtime.JSONPb{
			MarshalOptions:   protojson.MarshalOptions{UseProtoNames: true},
			UnmarshalOptions: protojson.UnmarshalOptions{DiscardUnknown: false},
		}),
		runtime.WithMetadata(func(_ context.Context, r *http.Request) metadata.MD {
			host, _, err := net.SplitHostPort(r.RemoteAddr)
			if err != nil {
				host = r.RemoteAddr
			}
			return metadata.Pairs(sourceHeader, "rest", callerHeader, host)
		}),
	)
	for _, register := range []func(context.Context, *runtime.ServeMux, *grpc.ClientConn) error{
		pb.RegisterConfigServiceHandler, pb.RegisterProxyServiceHandler, pb.RegisterExplainServiceHandler,
		pb.RegisterGatewayServiceHandler, pb.RegisterRouteServiceHandler, pb.RegisterBackendServiceHandler,
		pb.RegisterFunctionServiceHandler, pb.RegisterConsumerServiceHandler, pb.RegisterSecretServiceHandler,
	} {
		if err := register(ctx, mux, conn); err != nil {
			return nil, fmt.Errorf("register REST handler: %w", err)
		}
	}
	return mux, nil
}

// LocalOnly refuses requests that a web page in the user's browser could have
// made: a Host that is no address and not localhost (DNS rebinding), or an Origin
// other than the server's own (cross-site request).
func LocalOnly(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host, _, err := net.SplitHostPort(r.Host)
		if err != nil {
			host = r.Host
		}
		if _, err := netip.ParseAddr(host); err != nil && host != "localhost" {
			http.Error(w, "the Host header must be an IP address or localhost: "+
				"a name could be pointed here by somebody else's DNS", http.StatusForbidden)
			return
		}
		if o := r.Header.Get("Origin"); o != "" {
			if u, err := url.Parse(o); err != nil || u.Host != r.Host {
				http.Error(w, "requests from pages of another origin are refused", http.StatusForbidden)
				return
			}
		}
		next.ServeHTTP(w, r)
	})
}
