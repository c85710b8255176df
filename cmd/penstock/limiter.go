package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"

	"github.com/penstock-gateway/penstock/ratelimit"
	"github.com/penstock-gateway/penstock/telemetry"
)

type limiterFlags struct {
	listen, metricsListen string
	private               bool
	redisURL              string
	redisCluster          bool
	redisTimeout          time.Duration
	maxKeys               int
	otlp, instance        string
	logLevel              string
}

func newLimiterCommand() *cobra.Command {
	var f limiterFlags
	c := &cobra.Command{
		Use:   "limiter",
		Short: "Run the rate limit service",
		Long: "Runs the service that Envoy's ratelimit filter asks (rate limit service v3 over gRPC). It has no\n" +
			"configuration: each limit travels in the request. Counters are in memory, for one limiter, or in\n" +
			"Redis, shared by any number of them.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return runLimiter(cmd.Context(), f) },
	}
	fl := c.Flags()
	fl.StringVar(&f.listen, "listen", "unix:./.penstock/run/limiter.sock", "rate limit service over gRPC: unix:PATH, for a proxy of the same user on this machine, or IP:PORT, where whoever reaches it is believed")
	fl.BoolVar(&f.private, "private-network", false, "--listen may be an address beyond loopback: only proxies of the mesh reach it")
	fl.StringVar(&f.metricsListen, "metrics-listen", "", "metrics over HTTP, IP:PORT or unix:PATH; empty: off")
	fl.StringVar(&f.redisURL, "redis-url", "", "Redis that limiters share, such as redis://127.0.0.1:6379/0 (empty: counters in memory); arguments are seen by all users of the machine, so a URL with a password belongs into the environment")
	fl.BoolVar(&f.redisCluster, "redis-cluster", false, "the URL is a node of a Redis Cluster")
	fl.DurationVar(&f.redisTimeout, "redis-timeout", ratelimit.DefaultRedisTimeout, "how long Redis may take; after it, the limit's failure policy decides")
	fl.IntVar(&f.maxKeys, "max-keys", ratelimit.DefaultMaxKeys, "most counters in memory; beyond it the longest unused are forgotten")
	fl.StringVar(&f.otlp, "otlp", "", "host:port or unix:/PATH that traces go to (OTLP over gRPC)")
	fl.StringVar(&f.instance, "instance", "", "name of this limiter in traces (default host and process id)")
	fl.StringVar(&f.logLevel, "log-level", "info", "debug, info, warn, error")
	return c
}

func runLimiter(ctx context.Context, f limiterFlags) error {
	log := telemetry.NewLogger(os.Stderr, f.logLevel, "limiter")
	tel, err := telemetry.Setup(ctx, telemetry.Config{
		Service: "penstock-limiter", Version: version(), Instance: f.instance, OTLP: f.otlp, Logger: log,
	})
	if err != nil {
		return fmt.Errorf("--otlp: %w", err)
	}
	defer shutdown(tel, log)
	metrics, err := ratelimit.NewMetrics(tel.Registry)
	if err != nil {
		return err
	}
	backend, err := f.backend(metrics, log)
	if err != nil {
		return err
	}
	defer backend.Close()
	if err := metrics.RegisterBackend(tel.Registry, backend); err != nil {
		return err
	}
	if f.metricsListen != "" {
		stop, err := serveMetrics(f.metricsListen, tel.Handler(), log)
		if err != nil {
			return fmt.Errorf("--metrics-listen: %w", err)
		}
		defer stop()
	}
	listener, err := listen(ctx, f.listen, f.private)
	if err != nil {
		return fmt.Errorf("--listen: %w", err)
	}
	server, health := ratelimit.NewServer(ratelimit.NewService(backend, metrics, log), tel.TracerProvider, tel.Propagator)
	group, ctx := errgroup.WithContext(ctx)
	log.Info("limiter is ready", "listen", listener.Addr().String(), "backend", backend.Name())
	serveGRPC(ctx, group, server, listener, health.Shutdown)
	return group.Wait()
}

func (f *limiterFlags) backend(m *ratelimit.Metrics, log *slog.Logger) (ratelimit.Backend, error) {
	url := f.redisURL
	if url == "" {
		if f.redisCluster {
			return nil, errors.New("--redis-cluster needs --redis-url")
		}
		if f.maxKeys < 1 {
			return nil, fmt.Errorf("--max-keys %d: it must be at least 1", f.maxKeys)
		}
		return ratelimit.NewMemory(ratelimit.MemoryOptions{MaxKeys: f.maxKeys}), nil
	}
	if f.redisTimeout < time.Millisecond {
		return nil, fmt.Errorf("--redis-timeout %s: it must be at least 1ms", f.redisTimeout)
	}
	b, err := ratelimit.NewRedis(ratelimit.RedisOptions{
		URL: url, Cluster: f.redisCluster, Timeout: f.redisTimeout, Logger: log, OnBatch: m.ObserveBatch,
	})
	if err != nil {
		return nil, fmt.Errorf("--redis-url: %w", err)
	}
	return b, nil
}

// serveGRPC serves until ctx ends, then lets calls finish for a moment.
func serveGRPC(ctx context.Context, group *errgroup.Group, server *grpc.Server, l net.Listener, ending func()) {
	const patience = 5 * time.Second
	group.Go(func() error { return server.Serve(l) })
	group.Go(func() error {
		<-ctx.Done()
		ending()
		// Proxies keep their connections; GracefulStop tells them to leave.
		timer := time.AfterFunc(patience, server.Stop)
		defer timer.Stop()
		server.GracefulStop()
		return nil
	})
}
