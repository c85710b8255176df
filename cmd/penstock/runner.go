package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/resolver/manual"

	"github.com/penstock-gateway/penstock/functions"
	"github.com/penstock-gateway/penstock/functions/sandbox"
	"github.com/penstock-gateway/penstock/internal/pki"
	"github.com/penstock-gateway/penstock/internal/toolbox"
	"github.com/penstock-gateway/penstock/telemetry"
)

// runnerFlags are the flags of `penstock runner`.
type runnerFlags struct {
	control              []string
	serverName           string
	pkiDir, name         string
	root, cacheDir       string
	socketDir            string
	lambdaPath, python   string
	frameworkPath        string
	frameworkNodePath    string
	toolsDir, node       string
	otlp, http, logLevel string
	maxEvent             int64
	stopAfter            time.Duration
	uids                 sandbox.UIDRange
}

func newRunnerCommand() *cobra.Command {
	var f runnerFlags
	c := &cobra.Command{
		Use:   "runner",
		Short: "Run the instances of functions",
		Long: "Connects to the control plane, runs the instances of every function on this machine and\n" +
			"reports where requests reach them. While the control plane is away they serve on.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return runRunner(cmd.Context(), f) },
	}
	fl := c.Flags()
	fl.StringSliceVar(&f.control, "control", []string{"127.0.0.1:7401"}, "host:port of the control plane (mutual TLS); repeat it for each replica, they are tried in turn")
	fl.StringVar(&f.serverName, "control-name", "", "name in the control plane's certificate (default: the host of --control that is tried)")
	fl.StringVar(&f.pkiDir, "pki-dir", "./.penstock/pki", "folder with ca.crt, runner-NAME.crt and runner-NAME.key; made from ca.key when they are absent")
	fl.StringVar(&f.name, "name", "local", "stable name of this runner")
	fl.StringVar(&f.root, "root", ".", "folder that the sources of functions are in")
	fl.StringVar(&f.cacheDir, "cache-dir", "./.penstock/functions", "folder of built functions")
	fl.StringVar(&f.socketDir, "socket-dir", "", "folder of the Unix sockets that requests come by, for a proxy of the same user on this machine (empty: TCP ports of 127.0.0.1, which every process of the machine can reach)")
	fl.StringVar(&f.lambdaPath, "lambda-path", "", "folder that awslambdaric is installed in (empty: it is installed when a function needs it)")
	fl.StringVar(&f.frameworkPath, "framework-path", "", "folder that functions-framework for Python is installed in (empty: it is installed when a function needs it)")
	fl.StringVar(&f.frameworkNodePath, "framework-node-path", "", "node_modules folder with @google-cloud/functions-framework (empty: it is installed when a function needs it)")
	fl.StringVar(&f.toolsDir, "tools-dir", "", "folder of what is installed (default: $"+toolbox.EnvDir+", else .tools of the clone, else the user's cache folder)")
	fl.StringVar(&f.python, "python", "python3", "Python interpreter of functions")
	fl.StringVar(&f.node, "node", "node", "Node.js program of functions")
	fl.Int64Var(&f.maxEvent, "max-event-bytes", 6<<20, "largest request body, and answer, of a Lambda function")
	fl.DurationVar(&f.stopAfter, "stop-timeout", 8*time.Second, "how long instances may drain when the runner stops")
	uidFlags(fl, &f.uids)
	fl.StringVar(&f.otlp, "otlp", "", "host:port or unix:/PATH that traces go to (OTLP over gRPC)")
	fl.StringVar(&f.http, "http-listen", "", "address of /metrics and /livez, IP:PORT or unix:PATH (empty: none)")
	fl.StringVar(&f.logLevel, "log-level", "info", "debug, info, warn, error")
	return c
}

// uidArgs are the flags that give another process the range.
func uidArgs(r sandbox.UIDRange) (out []string) {
	if r.Base != 0 {
		out = append(out, "--uid-base", strconv.FormatUint(uint64(r.Base), 10))
	}
	if r.Count != 0 {
		out = append(out, "--uid-count", strconv.FormatUint(uint64(r.Count), 10))
	}
	return out
}

// uidFlags are the same for all commands that run functions.
func uidFlags(fl *pflag.FlagSet, r *sandbox.UIDRange) {
	fl.Uint32Var(&r.Base, "uid-base", 0, "first of the uids that instances and builds of functions get, one for each, where this runs as root (0: 2000000000); nobody else may have them")
	fl.Uint32Var(&r.Count, "uid-count", 0, "how many uids there are, so how many instances and builds run at once (0: 65536)")
}

func runRunner(ctx context.Context, f runnerFlags) error {
	log := telemetry.NewLogger(os.Stderr, f.logLevel, "runner")
	tel, err := telemetry.Setup(ctx, telemetry.Config{Service: "penstock-runner", Version: version(), Instance: f.name, OTLP: f.otlp, Logger: log})
	if err != nil {
		return err
	}
	defer shutdown(tel, log)
	conn, err := f.connect()
	if err != nil {
		return err
	}
	defer conn.Close()
	if f.http != "" {
		stop, err := serveMetrics(f.http, tel.Handler(), log)
		if err != nil {
			return fmt.Errorf("--http-listen: %w", err)
		}
		defer stop()
	}
	var collector grpc.ClientConnInterface
	if f.otlp != "" {
		c, err := telemetry.DialCollector(f.otlp)
		if err != nil {
			return fmt.Errorf("--otlp: %w", err)
		}
		defer c.Close()
		collector = c
	}
	return functions.Run(ctx, functions.Config{
		Collector: collector,
		Name:      f.name, Root: f.root, CacheDir: f.cacheDir, SocketDir: f.socketDir, Conn: conn,
		Python: f.python, Node: f.node, MaxEventBytes: f.maxEvent,
		LambdaPython:    f.tool(f.lambdaPath, toolbox.Lambda),
		FrameworkPython: f.tool(f.frameworkPath, toolbox.FrameworkPython), FrameworkNode: f.tool(f.frameworkNodePath, toolbox.FrameworkNode),
		StopTimeout: f.stopAfter, UIDs: f.uids,
		Logger: log, TracerProvider: tel.TracerProvider, Registerer: tel.Registry,
	})
}

// tool is where a tool is: in the folder that a flag names, else where it is
// installed then.
func (f *runnerFlags) tool(path string, install func(context.Context, toolbox.Options) (string, error)) func(context.Context) (string, error) {
	return func(ctx context.Context) (string, error) {
		if path != "" {
			return filepath.Abs(path)
		}
		return install(ctx, toolbox.Options{Dir: f.toolsDir, Progress: os.Stderr})
	}
}

// connect makes the connection to the control plane; it is dialled when the
// first stream is opened, and again for ever. The replicas are tried in the order
// of the flags; any of them serves any runner.
func (f *runnerFlags) connect() (*grpc.ClientConn, error) {
	addresses, err := f.replicas()
	if err != nil {
		return nil, err
	}
	cert, key, err := f.certificate()
	if err != nil {
		return nil, err
	}
	// Without a name here, each address brings its own.
	tlsConfig, err := pki.ClientTLS(cert, key, filepath.Join(f.pkiDir, "ca.crt"), f.serverName)
	if err != nil {
		return nil, fmt.Errorf("--pki-dir: %w", err)
	}
	replicas := manual.NewBuilderWithScheme("penstock")
	replicas.InitialState(resolver.State{Addresses: addresses})
	return grpc.NewClient(replicas.Scheme()+":///control",
		grpc.WithResolvers(replicas),
		grpc.WithTransportCredentials(credentials.NewTLS(tlsConfig)),
		grpc.WithConnectParams(telemetry.Reconnect()),
		// A replica that is gone without a word is left within 15 s.
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 10 * time.Second, Timeout: 5 * time.Second}))
}

// replicas are the addresses of --control.
func (f *runnerFlags) replicas() (out []resolver.Address, err error) {
	for _, a := range f.control {
		if err := telemetry.CheckAddress(a); err != nil {
			return nil, fmt.Errorf("--control %q: %w", a, err)
		}
		host, _, err := net.SplitHostPort(a)
		if err != nil {
			return nil, fmt.Errorf("--control %q: %w", a, err)
		}
		out = append(out, resolver.Address{Addr: a, ServerName: host})
	}
	if len(out) == 0 {
		return nil, errors.New("--control: no address of the control plane is given")
	}
	return out, nil
}

// certificate returns this runner's certificate: the one that is there, else one
// of the CA when its key is there, too (one machine, development).
func (f *runnerFlags) certificate() (cert, key string, err error) {
	base := "runner-" + f.name
	cert, key = filepath.Join(f.pkiDir, base+".crt"), filepath.Join(f.pkiDir, base+".key")
	_, errCA := os.Stat(filepath.Join(f.pkiDir, "ca.key"))
	_, errCert := os.Stat(cert)
	switch {
	case errCA == nil:
		ca, err := pki.LoadCA(f.pkiDir)
		if err != nil {
			return "", "", err
		}
		return ca.EnsureFiles(f.pkiDir, base, pki.Request{SPIFFE: pki.RunnerID(f.name)})
	case errCert != nil:
		return "", "", fmt.Errorf("--pki-dir: %w, and there is no ca.key to make it from", errCert)
	}
	return cert, key, nil
}

// serveMetrics serves /metrics and /livez until stop is called.
func serveMetrics(address string, metrics http.Handler, log *slog.Logger) (stop func(), err error) {
	// Metrics tell no secret: whoever names an address has them there.
	l, err := listen(context.Background(), address, true)
	if err != nil {
		return nil, err
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", metrics)
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	s := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second, ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug)}
	go func() {
		if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			log.Error("metrics are not served", "error", err)
		}
	}()
	return func() { s.Close() }, nil
}
