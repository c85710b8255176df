package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/penstock-gateway/penstock/internal/launch"
	"github.com/penstock-gateway/penstock/internal/pki"
	"github.com/penstock-gateway/penstock/internal/socket"
	"github.com/penstock-gateway/penstock/internal/supervise"
	"github.com/penstock-gateway/penstock/internal/toolbox"
	"github.com/penstock-gateway/penstock/telemetry"
	"github.com/penstock-gateway/penstock/xds/bootstrap"
	"github.com/penstock-gateway/penstock/xds/keeper"
)

// proxyRunFlags are the flags of `penstock proxy run`.
type proxyRunFlags struct {
	dir, control        string
	toolsDir, envoyPath string
	concurrency         int
	keptMaxAge          time.Duration
	drainTime           time.Duration
	stopTimeout         time.Duration
	logLevel            string
}

func newProxyRunCommand() *cobra.Command {
	var f proxyRunFlags
	c := &cobra.Command{
		Use:   "run --dir DIR",
		Short: "Run the Envoy of a proxy that joined, also while no control plane is there",
		Long: "Runs Envoy, starts it again when it dies, renews the certificate, and keeps the configuration that Envoy\n" +
			"acknowledged in DIR, sealed. When Envoy starts and no control plane can be reached, it serves that. A proxy that\n" +
			"was revoked keeps nothing once it has heard so, and none starts from disk after its certificate has expired.\n" +
			"At SIGTERM, /ready of Envoy's admin interface fails at once, so that a load balancer leaves the proxy out; new\n" +
			"connections are taken for --drain-time more; requests under way may end until --stop-timeout is over.",
		Example: "  penstock proxy run --dir /var/lib/penstock/edge-2",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if f.keptMaxAge <= 0 {
				return fmt.Errorf("--kept-max-age %s: it must be positive", f.keptMaxAge)
			}
			if f.drainTime < 0 {
				return fmt.Errorf("--drain-time %s: it must not be negative", f.drainTime)
			}
			if f.stopTimeout < f.drainTime {
				return fmt.Errorf("--stop-timeout %s: it must be at least --drain-time, %s", f.stopTimeout, f.drainTime)
			}
			dir, err := filepath.Abs(f.dir)
			if err != nil {
				return fmt.Errorf("--dir: %w", err)
			}
			f.dir = dir
			return runProxy(cmd.Context(), f, cmd.ErrOrStderr())
		},
	}
	fl := c.Flags()
	fl.StringVar(&f.dir, "dir", "", "folder that penstock proxy join made")
	fl.StringVar(&f.control, "control", "", "host:port of the control plane for renewals (default: as it was at the join)")
	fl.StringVar(&f.toolsDir, "tools-dir", "", "folder of installed tools (default: .tools of the clone, else penstock/tools in the user's cache folder; environment PENSTOCK_TOOLS_DIR)")
	fl.StringVar(&f.envoyPath, "envoy-path", "", "an Envoy to use in place of the pinned one (environment PENSTOCK_ENVOY)")
	fl.IntVar(&f.concurrency, "concurrency", 0, "number of Envoy's worker threads (default: one for each core)")
	fl.DurationVar(&f.keptMaxAge, "kept-max-age", keeper.DefaultMaxAge, "how long ago the control plane may have been there when the proxy starts without it")
	fl.DurationVar(&f.drainTime, "drain-time", 5*time.Second, "how long new connections are taken after SIGTERM")
	fl.DurationVar(&f.stopTimeout, "stop-timeout", 25*time.Second, "how long after SIGTERM requests may take to end")
	fl.StringVar(&f.logLevel, "log-level", "info", "debug, info, warn, error")
	_ = c.MarkFlagRequired("dir")
	return c
}

// proxyRunState is what a running `penstock proxy run` tells others.
type proxyRunState struct {
	launch.ID
	Identity      string        `json:"identity"`
	Configuration keeper.Status `json:"configuration"`
}

func proxyRunDir(dir string) string   { return filepath.Join(dir, "run") }
func proxyRunFile(dir string) string  { return filepath.Join(proxyRunDir(dir), "state.json") }
func proxyRunEnvoy(dir string) string { return filepath.Join(proxyRunDir(dir), "envoy.json") }

func runProxy(ctx context.Context, f proxyRunFlags, errOut io.Writer) (err error) {
	state, err := readJoinState(f.dir)
	if err != nil {
		return err
	}
	log := telemetry.NewLogger(errOut, f.logLevel, "proxy")
	if f.envoyPath != "" {
		if _, err := toolbox.CheckEnvoy(ctx, f.envoyPath); err != nil {
			return fmt.Errorf("--envoy-path: %w", err)
		}
	} else if f.envoyPath, err = toolbox.Envoy(ctx, toolbox.Options{Dir: f.toolsDir, Progress: errOut}); err != nil {
		return err
	}
	xds, err := socket.Path(proxyRunDir(f.dir), "xds.sock")
	if err != nil {
		return fmt.Errorf("--dir: %w", err)
	}
	me, err := launch.Identify(os.Getpid())
	if err != nil {
		return err
	}
	if err := os.MkdirAll(proxyRunDir(f.dir), 0o700); err != nil {
		return fmt.Errorf("--dir: %w", err)
	}
	tell := func(s keeper.Status) {
		b, err := json.Marshal(proxyRunState{ID: me, Identity: state.Identity, Configuration: s})
		if err == nil {
			err = replaceFile(proxyRunFile(f.dir), append(b, '\n'), 0o600)
		}
		if err != nil {
			log.Warn("cannot write the state", "error", err)
		}
	}
	k, err := keeper.New(state.keeper(f, xds, log, tell))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, k.Close(), os.Remove(proxyRunFile(f.dir))) }()
	tell(k.Status())
	if err := bootstrap.WriteFiles(proxyRunEnvoy(f.dir), state.bootstrap(f.dir, xds)); err != nil {
		return err
	}
	l, err := k.Listen(ctx)
	if err != nil {
		return err
	}
	return superviseProxy(ctx, f, func(ctx context.Context) error { return k.Serve(ctx, l) }, state.adminSocket(f.dir), log)
}

// superviseProxy runs Envoy, the keeper and the renewal of the certificate until stop ends,
// and then until Envoy has drained.
func superviseProxy(stop context.Context, f proxyRunFlags, keep func(context.Context) error, admin string, log *slog.Logger) error {
	ctx, cancel := context.WithCancelCause(context.WithoutCancel(stop))
	defer cancel(nil)
	sup := supervise.New(supervise.Options{
		Logger: log,
		Line:   func(_, line string) { log.Info(line, "process", "envoy") },
	})
	ended := make(chan error, 2)
	for _, run := range []func() error{
		func() error { return keep(ctx) },
		func() error { return keepProxyFresh(ctx, log, f.dir, f.control) },
	} {
		go func() {
			err := run()
			if err != nil {
				cancel(err)
			}
			ended <- err
		}()
	}
	starting, started := context.WithCancel(ctx)
	context.AfterFunc(stop, started) // who asks to stop before it runs waits for nothing
	err := sup.Start(starting, f.envoy(admin))
	started()
	switch {
	case err != nil && stop.Err() != nil:
		err = nil // a wish to stop, not an error
	case err == nil:
		log.Info("Envoy runs", "admin", admin)
		select {
		case <-stop.Done():
			f.drain(ctx, admin, log)
		case <-ctx.Done():
		}
	}
	sup.Stop()
	cancel(nil)
	return errors.Join(err, <-ended, <-ended)
}

// envoy is the process. It is ready when it answers: what it serves is another matter.
func (f *proxyRunFlags) envoy(admin string) supervise.Process {
	args := envoyArgs(proxyRunEnvoy(f.dir))
	if f.concurrency > 0 {
		args = append(args, "--concurrency", strconv.Itoa(f.concurrency))
	}
	return supervise.Process{Name: "envoy", Command: f.envoyPath, Args: args, Ready: listenReady(socket.Prefix + admin)}
}

// xdsAddresses are where the configuration comes from.
func (s joinState) xdsAddresses() []string {
	if len(s.XDS) == 0 {
		return []string{s.Control}
	}
	return s.XDS
}

func (s joinState) adminSocket(dir string) string {
	if s.AdminSocket == "" {
		return filepath.Join(dir, "admin.sock")
	}
	return s.AdminSocket
}

// serverName is the SNI for an address: its host, unless that is an IP address.
func serverName(address string) string {
	if host, _, err := net.SplitHostPort(address); err == nil && net.ParseIP(host) == nil {
		return host
	}
	return ""
}

func (s joinState) keeper(f proxyRunFlags, xds string, log *slog.Logger, tell func(keeper.Status)) keeper.Options {
	return keeper.Options{
		Dir: filepath.Join(f.dir, "kept"), Identity: s.Identity, Socket: xds,
		Control: s.xdsAddresses(), ServerName: serverName(s.xdsAddresses()[0]), MaxAge: f.keptMaxAge,
		CertFile: filepath.Join(f.dir, proxyCert), KeyFile: filepath.Join(f.dir, proxyKey), CAFile: filepath.Join(f.dir, proxyCA),
		ControlSPIFFE: bootstrap.ControlSPIFFE, Logger: log, OnChange: tell,
	}
}

// bootstrap is that of an Envoy behind a keeper.
func (s joinState) bootstrap(dir, xds string) bootstrap.Config {
	project, gateway, name, _ := pki.ParseProxyID(s.Identity) // checked when it was read
	return bootstrap.Config{
		NodeID: name, Cluster: project + "/" + gateway, Region: s.Region, Zone: s.Zone,
		XDSSocket: xds, AdminSocket: s.adminSocket(dir), MaxHeapBytes: s.MaxHeapBytes,
	}
}

func newProxyStatusCommand() *cobra.Command {
	var dir string
	c := &cobra.Command{
		Use:   "status --dir DIR",
		Short: "Show where the proxy of `penstock proxy run` has its configuration from",
		Long: "Shows whether the proxy is connected to the control plane, or serves a configuration from disk, and how old that\n" +
			"is. Ends with exit code 3 when there is no control plane.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			b, err := os.ReadFile(proxyRunFile(dir))
			var s proxyRunState
			if err == nil {
				err = json.Unmarshal(b, &s)
			}
			if errors.Is(err, fs.ErrNotExist) || err == nil && !s.ID.Alive() {
				return fmt.Errorf("--dir %s: no `penstock proxy run` runs there", dir)
			}
			if err != nil {
				return fmt.Errorf("--dir: %w", err)
			}
			fmt.Fprintln(cmd.OutOrStdout(), s.line())
			if s.Configuration.Source != keeper.ControlPlane {
				return fmt.Errorf("%w: there is no control plane", errNotServing)
			}
			return nil
		},
	}
	c.Flags().StringVar(&dir, "dir", "", "folder of the proxy")
	_ = c.MarkFlagRequired("dir")
	return c
}

// line says in a line where the configuration is from.
func (s proxyRunState) line() string {
	_, _, name, _ := pki.ParseProxyID(s.Identity)
	return configurationLine(name, s.Configuration)
}

// configurationLine says where a proxy has its configuration from.
func configurationLine(proxy string, c keeper.Status) string {
	age := time.Since(c.Contact).Round(time.Second)
	switch {
	case c.Source == keeper.ControlPlane && c.Problem == "" && c.Resources == 0:
		return proxy + " is connected to the control plane; nothing is kept for a start without it yet"
	case c.Source == keeper.ControlPlane && c.Problem == "":
		return fmt.Sprintf("%s is connected to the control plane; %d resources are kept for a start without it", proxy, c.Resources)
	case c.Source == keeper.ControlPlane:
		return fmt.Sprintf("%s is connected to the control plane; %s", proxy, firstLine(c.Problem))
	case c.Source == keeper.Disk:
		return fmt.Sprintf("%s serves its configuration of %s ago from disk; no control plane: %s", proxy, age, firstLine(c.Problem))
	case c.Contact.IsZero():
		return fmt.Sprintf("%s has not been connected to the control plane yet: %s", proxy, firstLine(c.Problem))
	}
	return fmt.Sprintf("%s is not connected to the control plane since %s: %s", proxy, age, firstLine(c.Problem))
}
