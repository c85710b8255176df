package control

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"runtime"
	"time"

	"go.opentelemetry.io/contrib/instrumentation/google.golang.org/grpc/otelgrpc"
	"go.opentelemetry.io/otel/trace"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/reflection"
	"google.golang.org/grpc/test/bufconn"

	"github.com/penstock-gateway/penstock/gateway/source/api"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
	"github.com/penstock-gateway/penstock/xds/delivery"
)

// maxMessage bounds one request or answer of the configuration API: 10,000
// resources with room to spare.
const maxMessage = 64 << 20

// maxStreams bounds the calls on one connection to the xDS port: a proxy has one
// stream and now and then a renewal.
const maxStreams = 100

// ServeOptions say where a Core is served.
type ServeOptions struct {
	// API is the address of the configuration API over gRPC, without TLS: loopback
	// only.
	API string
	// HTTP is the address of REST, health, metrics and debug pages: loopback only.
	HTTP string
	// XDS is the address for proxies and runners, mutually authenticated by TLS.
	// Whatever TLS lets in, only the Join method is open to clients without a
	// verified certificate; pki.JoinServerTLS is for that.
	XDS string
	TLS *tls.Config
	// Metrics, when set, is served at /metrics.
	Metrics        http.Handler
	TracerProvider trace.TracerProvider
	Logger         *slog.Logger
	// Ready, when set, is called once all addresses accept connections.
	Ready func(Addresses)
}

// Addresses are the addresses that are listened on.
type Addresses struct{ API, HTTP, XDS net.Addr }

// Serve opens the addresses and serves until ctx ends. A port in use is an error
// that names the address and its flag.
func (c *Core) Serve(ctx context.Context, o ServeOptions) error {
	for flag, addr := range map[string]string{"--api-listen": o.API, "--http-listen": o.HTTP} {
		if err := loopbackOnly(addr); err != nil {
			return fmt.Errorf("%s %s: %w", flag, addr, err)
		}
	}
	var lc net.ListenConfig
	listen := func(flag, addr string) (net.Listener, error) {
		l, err := lc.Listen(ctx, "tcp", addr)
		if err != nil {
			return nil, fmt.Errorf("cannot listen on %s (choose another with %s): %w", addr, flag, err)
		}
		return l, nil
	}
	apiL, err := listen("--api-listen", o.API)
	if err != nil {
		return err
	}
	defer apiL.Close()
	httpL, err := listen("--http-listen", o.HTTP)
	if err != nil {
		return err
	}
	defer httpL.Close()
	xdsL, err := listen("--xds-listen", o.XDS)
	if err != nil {
		return err
	}
	defer xdsL.Close()

	apiServer := c.apiServer(o)
	xdsServer := c.xdsServer(o)
	mux, inner, err := c.httpHandler(ctx, o)
	if err != nil {
		return err
	}
	httpServer := &http.Server{
		Handler: mux, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute,
		ErrorLog: slog.NewLogLogger(o.Logger.Handler(), slog.LevelWarn),
	}
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error { return apiServer.Serve(apiL) })
	g.Go(func() error { return apiServer.Serve(inner) })
	g.Go(func() error { return xdsServer.Serve(xdsL) })
	g.Go(func() error {
		if err := httpServer.Serve(httpL); !errors.Is(err, http.ErrServerClosed) {
			return err
		}
		return nil
	})
	g.Go(func() error {
		<-gctx.Done()
		// Watches and ADS streams never end by themselves: stop, do not drain them.
		apiServer.Stop()
		xdsServer.Stop()
		return httpServer.Close()
	})
	if o.Ready != nil {
		o.Ready(Addresses{API: apiL.Addr(), HTTP: httpL.Addr(), XDS: xdsL.Addr()})
	}
	err = g.Wait()
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// loopbackOnly refuses addresses that others could reach, as the configuration
// API has no authentication of its own yet.
func loopbackOnly(addr string) error {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return err
	}
	if ip, err := netip.ParseAddr(host); host == "localhost" || err == nil && ip.IsLoopback() {
		return nil
	}
	return errors.New("the configuration API has no authentication, so it is served on loopback addresses only")
}

// apiWindow is what a client of the API may send before it is read.
const apiWindow = 4 << 20

func (c *Core) apiServer(o ServeOptions) *grpc.Server {
	s := grpc.NewServer(
		grpc.MaxRecvMsgSize(maxMessage), grpc.MaxSendMsgSize(maxMessage),
		grpc.StatsHandler(otelgrpc.NewServerHandler(otelgrpc.WithTracerProvider(o.TracerProvider))),
		grpc.ChainUnaryInterceptor(recoverUnary(o.Logger)),
		// Workers keep their stacks, which grow to 32 kB in a call; more calls at once
		// than there are workers get goroutines of their own.
		grpc.NumStreamWorkers(uint32(2*runtime.GOMAXPROCS(0))),
		// As in delivery.GRPCOptions: no pings to find out how large windows may be.
		grpc.StaticStreamWindowSize(apiWindow), grpc.StaticConnWindowSize(apiWindow),
	)
	api.Register(s, c)
	pb.RegisterFunctionOperationsServiceServer(s, operations{core: c})
	pb.RegisterProxyAdmissionServiceServer(s, admission{joins: c.joins})
	h := health.NewServer()
	h.SetServingStatus("", healthpb.HealthCheckResponse_SERVING)
	healthpb.RegisterHealthServer(s, h)
	reflection.Register(s)
	return s
}

func (c *Core) xdsServer(o ServeOptions) *grpc.Server {
	s := grpc.NewServer(append(delivery.GRPCOptions(c.streamAge), grpc.Creds(c.guard.credentials(o.TLS)),
		grpc.MaxConcurrentStreams(maxStreams), grpc.InTapHandle(c.guard.tap),
		grpc.ChainUnaryInterceptor(recoverUnary(o.Logger), c.guard.unary), grpc.ChainStreamInterceptor(c.guard.stream))...)
	c.delivery.Register(s)
	c.RegisterRunners(s)
	pb.RegisterProxyJoinServiceServer(s, c.joins)
	return s
}

// httpHandler is REST, health, metrics and debug. inner carries REST calls to the
// API server in process.
func (c *Core) httpHandler(ctx context.Context, o ServeOptions) (http.Handler, net.Listener, error) {
	inner := bufconn.Listen(1 << 20)
	conn, err := grpc.NewClient("passthrough:///api",
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return inner.DialContext(ctx) }),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage), grpc.MaxCallSendMsgSize(maxMessage)),
	)
	if err != nil {
		return nil, nil, err
	}
	context.AfterFunc(ctx, func() { conn.Close() })
	rest, err := api.REST(ctx, conn)
	if err != nil {
		return nil, nil, err
	}
	mux := http.NewServeMux()
	mux.Handle("/v1/", http.MaxBytesHandler(rest, maxMessage))
	ok := func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") }
	mux.HandleFunc("/livez", ok)
	// A Core exists only once its head is loaded and compiled, so serving at all
	// is being ready; the store is asked because it may be another machine's.
	mux.HandleFunc("/readyz", func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), 2*time.Second)
		defer cancel()
		if _, err := c.store.Head(ctx); err != nil {
			http.Error(w, "the store does not answer: "+err.Error(), http.StatusServiceUnavailable)
			return
		}
		ok(w, r)
	})
	if o.Metrics != nil {
		mux.Handle("/metrics", o.Metrics)
	}
	c.debugPages(mux)
	return api.LocalOnly(mux), inner, nil
}

// recoverUnary turns a panic of one call into an error of that call.
func recoverUnary(log *slog.Logger) grpc.UnaryServerInterceptor {
	return func(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (resp any, err error) {
		defer func() {
			if p := recover(); p != nil {
				log.ErrorContext(ctx, "a call panicked", "method", info.FullMethod, "panic", p, "stack", stack())
				err = errInternal
			}
		}()
		return next(ctx, req)
	}
}
