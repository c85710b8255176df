package control

import (
	"cmp"
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

	"github.com/penstock-gateway/penstock/gateway/source/api"
	"github.com/penstock-gateway/penstock/gen/openapi"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
	"github.com/penstock-gateway/penstock/internal/access"
	"github.com/penstock-gateway/penstock/internal/devissuer"
	"github.com/penstock-gateway/penstock/xds/delivery"
)

// maxMessage bounds one request or answer of the configuration API: 10,000
// resources with room to spare.
const maxMessage = 64 << 20

// maxStreams bounds the calls on one connection to the xDS port: a proxy has one
// stream and now and then a renewal.
const maxStreams = 100

// maxAPIStreams bounds the calls on one connection to the configuration API. All
// REST calls share one connection to it inside the process.
const maxAPIStreams = 1000

// ServeOptions say where a Core is served.
type ServeOptions struct {
	// Access knows the callers of the configuration API. Its sockets are served, too.
	Access *access.Service
	// API is the address of the configuration API over gRPC, HTTP that of REST,
	// health, metrics and debug pages. Without APITLS both must be loopback.
	API, HTTP string
	// APITLS, when set, is the TLS of both.
	APITLS *tls.Config
	// APIHosts are the names that clients may call the HTTP address by.
	APIHosts []string
	// XDS is the address for proxies and runners, mutually authenticated by TLS.
	// Whatever TLS lets in, only the Join method is open to clients without a
	// verified certificate; pki.JoinServerTLS is for that.
	XDS string
	TLS *tls.Config
	// DevIssuer signs tokens for trying out; nil: none.
	DevIssuer *devissuer.Issuer
	// Metrics, when set, is served at /metrics.
	Metrics http.Handler
	// Traces, when set, answers below /traces/; NewTraces makes it.
	Traces         http.Handler
	TracerProvider trace.TracerProvider
	Logger         *slog.Logger
	// Ready, when set, is called once all addresses accept connections.
	Ready func(Addresses)
}

// Addresses are the addresses that are listened on, and the sockets of the API.
type Addresses struct{ API, HTTP, XDS, APISocket, RESTSocket net.Addr }

// listeners are what Serve listens on.
type listeners struct {
	api, http, xds    net.Listener
	apiSock, restSock net.Listener
	inner             access.Inner
}

func (l *listeners) close() {
	for _, x := range []net.Listener{l.api, l.http, l.xds, l.apiSock, l.restSock, l.inner} {
		if x != nil {
			x.Close()
		}
	}
}

func (o *ServeOptions) listen(ctx context.Context) (_ *listeners, err error) {
	l := &listeners{inner: access.NewInner()}
	defer func() {
		if err != nil {
			l.close()
		}
	}()
	for _, a := range []struct {
		flag, address string
		open          bool
		to            *net.Listener
	}{{"--api-listen", o.API, true, &l.api}, {"--http-listen", o.HTTP, true, &l.http}, {"--xds-listen", o.XDS, false, &l.xds}} {
		if a.open && o.APITLS == nil {
			if err := loopbackOnly(a.address); err != nil {
				return nil, fmt.Errorf("%s %s: %w", a.flag, a.address, err)
			}
		}
		if *a.to, err = new(net.ListenConfig).Listen(ctx, "tcp", a.address); err != nil {
			return nil, fmt.Errorf("cannot listen on %s (choose another with %s): %w", a.address, a.flag, err)
		}
	}
	for name, to := range map[string]*net.Listener{access.APISocket: &l.apiSock, access.RESTSocket: &l.restSock} {
		sock, err := o.Access.Listen(ctx, name)
		if err != nil {
			return nil, err
		}
		*to = sock
	}
	return l, nil
}

// Serve opens the addresses and serves until ctx ends. A port in use is an error
// that names the address and its flag.
func (c *Core) Serve(ctx context.Context, o ServeOptions) error {
	l, err := o.listen(ctx)
	if err != nil {
		return err
	}
	defer l.close()
	apiServer := c.apiServer(o)
	xdsServer := c.xdsServer(o)
	handler, err := c.httpHandler(ctx, o, l.inner)
	if err != nil {
		return err
	}
	httpServer := &http.Server{
		Handler: handler, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute, TLSConfig: o.APITLS,
		ConnContext: o.Access.ConnContext,
		ErrorLog:    slog.NewLogLogger(o.Logger.Handler(), slog.LevelWarn),
	}
	g, gctx := errgroup.WithContext(ctx)
	for _, at := range []net.Listener{l.api, l.apiSock, l.inner} {
		g.Go(func() error { return apiServer.Serve(at) })
	}
	g.Go(func() error { return xdsServer.Serve(l.xds) })
	g.Go(func() error {
		if o.APITLS != nil {
			return unlessClosed(httpServer.ServeTLS(l.http, "", ""))
		}
		return unlessClosed(httpServer.Serve(l.http))
	})
	g.Go(func() error { return unlessClosed(httpServer.Serve(l.restSock)) })
	g.Go(func() error {
		<-gctx.Done()
		// Watches and ADS streams never end by themselves: stop, do not drain them.
		apiServer.Stop()
		xdsServer.Stop()
		return httpServer.Close()
	})
	if o.Ready != nil {
		o.Ready(Addresses{API: l.api.Addr(), HTTP: l.http.Addr(), XDS: l.xds.Addr(), APISocket: l.apiSock.Addr(), RESTSocket: l.restSock.Addr()})
	}
	err = g.Wait()
	if ctx.Err() != nil {
		return nil
	}
	return err
}

func unlessClosed(err error) error {
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

// loopbackOnly refuses addresses that others could reach, as what is said there can
// be read and changed on the way.
func loopbackOnly(addr string) error {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return err
	}
	if ip, err := netip.ParseAddr(host); host == "localhost" || err == nil && ip.IsLoopback() {
		return nil
	}
	return errors.New("without TLS the configuration API is served on loopback addresses only")
}

// apiWindow is what a client of the API may send before it is read.
const apiWindow = 4 << 20

func (c *Core) apiServer(o ServeOptions) *grpc.Server {
	s := grpc.NewServer(
		grpc.WaitForHandlers(true), // so that none of them uses a store that is closed
		grpc.Creds(access.Credentials(o.APITLS)), grpc.InTapHandle(o.Access.Tap), grpc.MaxConcurrentStreams(maxAPIStreams),
		grpc.MaxRecvMsgSize(maxMessage), grpc.MaxSendMsgSize(maxMessage),
		grpc.StatsHandler(otelgrpc.NewServerHandler(otelgrpc.WithTracerProvider(o.TracerProvider))),
		grpc.ChainUnaryInterceptor(recoverUnary(o.Logger), o.Access.Unary), grpc.ChainStreamInterceptor(o.Access.Stream),
		// Workers keep their stacks, which grow to 32 kB in a call; more calls at once
		// than there are workers get goroutines of their own.
		grpc.NumStreamWorkers(uint32(2*runtime.GOMAXPROCS(0))),
		// As in delivery.GRPCOptions: no pings to find out how large windows may be.
		grpc.StaticStreamWindowSize(apiWindow), grpc.StaticConnWindowSize(apiWindow),
	)
	api.Register(s, c)
	pb.RegisterFunctionOperationsServiceServer(s, operations{core: c})
	c.admission.RegisterAdmission(s)
	pb.RegisterBackupServiceServer(s, backups{core: c})
	pb.RegisterAccessServiceServer(s, o.Access.Server())
	pb.RegisterDevTokenServiceServer(s, cmp.Or(o.DevIssuer, &devissuer.Issuer{}))
	h := health.NewServer()
	h.SetServingStatus("", healthpb.HealthCheckResponse_SERVING)
	healthpb.RegisterHealthServer(s, h)
	reflection.Register(s)
	return s
}

func (c *Core) xdsServer(o ServeOptions) *grpc.Server {
	options := append(delivery.GRPCOptions(c.streamAge), grpc.WaitForHandlers(true), grpc.MaxConcurrentStreams(maxStreams),
		grpc.ChainUnaryInterceptor(recoverUnary(o.Logger)))
	s := grpc.NewServer(append(options, c.admission.ServerOptions(o.TLS)...)...)
	c.delivery.Register(s)
	c.RegisterRunners(s)
	c.admission.RegisterJoin(s)
	return s
}

// httpHandler is REST, health, metrics and debug. inner carries REST calls to the
// API server in process.
func (c *Core) httpHandler(ctx context.Context, o ServeOptions, inner access.Inner) (http.Handler, error) {
	conn, err := grpc.NewClient("passthrough:///api",
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return inner.DialContext(ctx) }),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage), grpc.MaxCallSendMsgSize(maxMessage)),
	)
	if err != nil {
		return nil, err
	}
	context.AfterFunc(ctx, func() { conn.Close() })
	rest, err := api.REST(ctx, conn, o.Access.Metadata)
	if err != nil {
		return nil, err
	}
	mux := http.NewServeMux()
	mux.Handle("/v1/", http.MaxBytesHandler(rest, maxMessage))
	ok := func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") }
	mux.HandleFunc("/livez", ok)
	mux.HandleFunc("GET /openapi.json", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write(openapi.JSON)
	})
	// A Core exists only once its head is loaded and compiled, so serving at all
	// is being ready; the store is asked because it may be another machine's.
	ready := func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), 2*time.Second)
		defer cancel()
		if _, err := c.store.Head(ctx); err != nil {
			// Anybody may ask, so the reason goes to the log.
			o.Logger.Warn("not ready: the store does not answer", "error", err)
			http.Error(w, "the store does not answer: the control plane's log has the reason", http.StatusServiceUnavailable)
			return
		}
		ok(w, r)
	}
	mux.HandleFunc("/readyz", ready)
	mux.HandleFunc("/healthz", ready)
	if o.Metrics != nil {
		mux.Handle("/metrics", o.Metrics)
	}
	mux.Handle("/traces/", traces(o.Traces))
	c.debugPages(mux)
	return api.Guarded(o.Access.HTTP(mux, "/livez", "/readyz", "/healthz"), o.APIHosts...), nil
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
