package main

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"
	collectortracev1 "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/penstock-gateway/penstock/telemetry"
	"github.com/penstock-gateway/penstock/telemetry/relay"
)

type relayFlags struct {
	listen, to, metricsListen string
	private                   bool
	maxBytes                  int64
	flushTimeout              time.Duration
	logLevel                  string
}

func newRelayCommand() *cobra.Command {
	var f relayFlags
	c := &cobra.Command{
		Use:   "relay",
		Short: "Hold traces until the collector answers",
		Long: "Takes traces (OTLP over gRPC), acknowledges them, holds them in bounded memory and forwards them,\n" +
			"in order, once the collector answers. Envoy would drop them.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return runRelay(cmd.Context(), f) },
	}
	fl := c.Flags()
	fl.StringVar(&f.listen, "listen", "unix:./.penstock/run/otlp.sock", "OTLP over gRPC: unix:PATH, for processes of the same user on this machine, or IP:PORT, where whoever reaches it may make up spans")
	fl.BoolVar(&f.private, "private-network", false, "--listen may be an address beyond loopback: only the mesh reaches it")
	fl.StringVar(&f.to, "to", "127.0.0.1:14317", "host:port or unix:/PATH of the collector (OTLP over gRPC)")
	fl.Int64Var(&f.maxBytes, "max-bytes", relay.DefaultMaxBytes, "bytes of traces to hold; beyond it the oldest are dropped")
	fl.DurationVar(&f.flushTimeout, "flush-timeout", relay.DefaultFlushTimeout, "how long to try to send what is left at the end")
	fl.StringVar(&f.metricsListen, "metrics-listen", "", "metrics over HTTP, IP:PORT or unix:PATH; empty: off")
	fl.StringVar(&f.logLevel, "log-level", "info", "debug, info, warn, error")
	return c
}

func runRelay(ctx context.Context, f relayFlags) error {
	log := telemetry.NewLogger(os.Stderr, f.logLevel, "relay")
	if f.maxBytes < 1<<20 {
		return fmt.Errorf("--max-bytes %d: it must be at least 1048576", f.maxBytes)
	}
	registry := telemetry.NewRegistry()
	r, err := relay.New(relay.Options{
		To: f.to, MaxBytes: f.maxBytes, FlushTimeout: f.flushTimeout, Logger: log, Registerer: registry,
	})
	if err != nil {
		return fmt.Errorf("--to: %w", err)
	}
	if f.metricsListen != "" {
		stop, err := serveMetrics(f.metricsListen, telemetry.MetricsHandler(registry), log)
		if err != nil {
			return fmt.Errorf("--metrics-listen: %w", err)
		}
		defer stop()
	}
	listener, err := listen(ctx, f.listen, f.private)
	if err != nil {
		return fmt.Errorf("--listen: %w", err)
	}
	server := grpc.NewServer()
	r.Register(server)
	h := health.NewServer()
	h.SetServingStatus(collectortracev1.TraceService_ServiceDesc.ServiceName, healthv1.HealthCheckResponse_SERVING)
	healthv1.RegisterHealthServer(server, h)

	serving, serveCtx := errgroup.WithContext(ctx)
	serveGRPC(serveCtx, serving, server, listener, h.Shutdown)
	log.Info("relay is ready", "listen", listener.Addr().String(), "to", f.to)

	// Forwarding ends after receiving has, so that nothing comes in behind it.
	forwardCtx, stopForwarding := context.WithCancel(context.WithoutCancel(ctx))
	forwarded := make(chan error, 1)
	go func() { forwarded <- r.Run(forwardCtx) }()
	err = serving.Wait()
	stopForwarding()
	if ferr := <-forwarded; ferr != nil {
		log.Warn("not all traces could be forwarded", "error", ferr)
	}
	s := r.Status()
	log.Info("relay ends", "received", s.Received, "forwarded", s.Forwarded, "dropped", s.Dropped, "refused", s.Refused)
	return err
}
