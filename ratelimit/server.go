package ratelimit

import (
	"runtime"
	"time"

	"go.opentelemetry.io/contrib/instrumentation/google.golang.org/grpc/otelgrpc"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/stats"

	ratelimitv3 "github.com/envoyproxy/go-control-plane/envoy/service/ratelimit/v3"
)

// maxCall bounds a call. Each descriptor repeats what the caller says of himself,
// which the 60 KiB of headers that a listener accepts bound, beside the limit: a call
// that is too long would be an error, and an error lets the request pass.
const maxCall = maxDescriptors * (64<<10 + maxSpecText)

// NewServer returns a gRPC server with the service and the standard health
// service. With a tracer provider each decision is a span that joins the caller's trace.
func NewServer(s *Service, tracer trace.TracerProvider, propagator propagation.TextMapPropagator) (*grpc.Server, *health.Server) {
	o := []grpc.ServerOption{
		grpc.MaxRecvMsgSize(maxCall),
		grpc.ForceServerCodecV2(newTolerantCodec()),
		// Proxies keep one connection per worker for their whole life: find dead ones,
		// and let proxies do the same.
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: 30 * time.Second, Timeout: 10 * time.Second}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second, PermitWithoutStream: true}),
		// Saves growing a stack for each call.
		grpc.NumStreamWorkers(uint32(4 * runtime.GOMAXPROCS(0))),
	}
	if tracer != nil {
		o = append(o, grpc.StatsHandler(otelgrpc.NewServerHandler(
			otelgrpc.WithTracerProvider(tracer), otelgrpc.WithPropagators(propagator),
			otelgrpc.WithFilter(func(i *stats.RPCTagInfo) bool {
				return i.FullMethodName == ratelimitv3.RateLimitService_ShouldRateLimit_FullMethodName
			}),
		)))
	}
	server := grpc.NewServer(o...)
	s.Register(server)
	h := health.NewServer()
	h.SetServingStatus(ratelimitv3.RateLimitService_ServiceDesc.ServiceName, healthv1.HealthCheckResponse_SERVING)
	healthv1.RegisterHealthServer(server, h)
	return server, h
}
