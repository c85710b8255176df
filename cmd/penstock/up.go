package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/penstock-gateway/penstock/functions/sandbox"
	"github.com/penstock-gateway/penstock/internal/console"
	"github.com/penstock-gateway/penstock/internal/ports"
	"github.com/penstock-gateway/penstock/internal/socket"
	"github.com/penstock-gateway/penstock/internal/supervise"
	"github.com/penstock-gateway/penstock/telemetry"
	"github.com/penstock-gateway/penstock/xds/keeper"
)

// upFlags are the flags of `penstock up`.
type upFlags struct {
	dataDir, toolsDir, envoyPath string
	config                       []string
	functionsRoot, settings      string
	uids                         sandbox.UIDRange
	functionPorts                bool
	run                          []string
	beside                       []supervise.Process // from run
	redisURL                     string
	limiters                     int
	noJaeger, detach, shadow     bool
	otlpTo, logFormat            string
	replaceCA                    string
	keptMaxAge                   time.Duration
	oidc                         oidcFlags
	apiTLS                       apiTLSFlags

	gateway, api, http, xds, limiter, otlp string

	// Where limiters and the relay listen when limiter and otlp are empty.
	limiterSockets []string
	otlpSocket     string
	// Where Jaeger takes spans and answers questions about them.
	jaegerOTLP, jaegerQuery string
}

func newUpCommand() *cobra.Command {
	var f upFlags
	c := &cobra.Command{
		Use:   "up",
		Short: "Run the whole gateway on this machine",
		Long: "Runs the control plane, one Envoy, the limiter, a runner for functions and Jaeger as child\n" +
			"processes, restarts what dies, and stops all with one Ctrl-C. Everything that is kept lies\n" +
			"in --data-dir, so the next `penstock up` goes on where this one stopped. A file penstock.yaml\n" +
			"in the working folder may hold the flags.",
		Example: "  penstock up -d --config examples/support-desk\n  penstock up -d && penstock status && penstock down",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := readSettings(f.settings, !cmd.Flags().Changed("settings"), cmd); err != nil {
				return err
			}
			return runUp(cmd.Context(), cmd, f)
		},
	}
	fl := c.Flags()
	fl.StringVar(&f.settings, "settings", settingsFile, "YAML file with values for these flags, which win over it; may be absent")
	fl.StringVar(&f.dataDir, "data-dir", "./.penstock", "folder of everything that is kept")
	fl.StringVar(&f.toolsDir, "tools-dir", "", "folder of installed tools (default: .tools of the clone, else penstock/tools in the user's cache folder)")
	fl.StringVar(&f.envoyPath, "envoy-path", "", "an Envoy to use in place of the pinned one (or PENSTOCK_ENVOY)")
	fl.StringSliceVar(&f.config, "config", nil, "file or folder of resources, applied at the first start and whenever it changed (repeatable)")
	fl.BoolVar(&f.functionPorts, "function-ports", false, "take requests of functions by TCP ports of 127.0.0.1, which every process of the machine can reach, instead of Unix sockets")
	uidFlags(fl, &f.uids)
	fl.StringVar(&f.functionsRoot, "functions-root", "", "folder that sources of functions are relative to (default: the folder of --config, or a folder \"functions\" in it or beside it, where all sources are)")
	fl.StringArrayVar(&f.run, "run", nil, "another process to run beside, NAME=COMMAND (repeatable)")
	fl.StringVar(&f.redisURL, "redis-url", "", "Redis that limiters share, such as redis://127.0.0.1:6379/0; empty: counters in memory")
	fl.IntVar(&f.limiters, "limiters", 1, "number of limiter processes; more than one needs --redis-url")
	fl.BoolVar(&f.noJaeger, "no-jaeger", false, "do without traces, unless --otlp-to says where they go")
	fl.StringVar(&f.otlpTo, "otlp-to", "", "host:port of a collector of your own that traces go to (OTLP over gRPC), in place of Jaeger")
	fl.StringVar(&f.logFormat, "log-format", "", "text, json or auto: text at a terminal, else one JSON object per line")
	fl.DurationVar(&f.keptMaxAge, "kept-max-age", keeper.DefaultMaxAge, "how long ago the control plane may have been there when the gateway starts without it, with the configuration that it keeps")
	fl.BoolVar(&f.shadow, "shadow", false, "try each change on an Envoy of its own before the gateway gets it")
	fl.StringVar(&f.replaceCA, "replace-ca", "", "give up the certificate authority of this SHA-256, as the error names it, for a new one; see penstock control")
	fl.BoolVarP(&f.detach, "detach", "d", false, "run in the background; return when the gateway serves")
	fl.StringVar(&f.gateway, "gateway-listen", ports.Defaults["gateway-listen"], "what the gateway listens on")
	fl.StringVar(&f.api, "api-listen", ports.Defaults["api-listen"], "configuration API over gRPC; with TLS beyond loopback")
	f.apiTLS.add(fl)
	f.oidc.add(fl)
	fl.StringVar(&f.xds, "xds-listen", ports.Defaults["xds-listen"], "xDS and runners (mutual TLS)")
	fl.StringVar(&f.limiter, "limiter-listen", "", "a port for the limiter, where every process of the machine is believed; further ones take the next ports (default: a Unix socket in --data-dir)")
	fl.StringVar(&f.http, "http-listen", ports.Defaults["http-listen"], "REST, health, metrics, debug; with TLS beyond loopback, or when --api-listen is")
	fl.StringVar(&f.otlp, "otlp-listen", "", "a port for traces of other programs (OTLP over gRPC), where every process of the machine may make up spans, relayed to Jaeger or --otlp-to (default: a Unix socket in --data-dir)")
	return c
}

// check completes the flags and returns every problem of them.
func (f *upFlags) check() error {
	var errs []error
	for _, a := range f.addresses() {
		normal, err := listenAddress(*a.value)
		if err != nil {
			errs = append(errs, fmt.Errorf("--%s: %w", a.flag, err))
			continue
		}
		*a.value = normal
	}
	if err := f.apiTLS.check(); err != nil {
		errs = append(errs, err)
	}
	if _, err := console.ParseFormat(f.logFormat); err != nil {
		errs = append(errs, fmt.Errorf("--log-format: %w", err))
	}
	if _, err := f.oidc.verifier(slog.New(slog.DiscardHandler)); err != nil {
		errs = append(errs, err)
	}
	if f.keptMaxAge <= 0 {
		errs = append(errs, fmt.Errorf("--kept-max-age %s: it must be positive", f.keptMaxAge))
	}
	if f.otlpTo != "" {
		if err := telemetry.CheckAddress(f.otlpTo); err != nil {
			errs = append(errs, fmt.Errorf("--otlp-to %q: %w", f.otlpTo, err))
		}
	}
	switch {
	case f.limiters < 1 || f.limiters > 16:
		errs = append(errs, fmt.Errorf("--limiters %d: it must be from 1 to 16", f.limiters))
	case f.limiters > 1 && f.redisURL == "":
		errs = append(errs, fmt.Errorf("--limiters %d: more than one limiter needs --redis-url, or each would count for itself", f.limiters))
	}
	for _, r := range f.run {
		p, err := parseRun(r)
		if err != nil {
			errs = append(errs, fmt.Errorf("--run: %w", err))
		} else if slices.ContainsFunc(f.beside, func(q supervise.Process) bool { return q.Name == p.Name }) {
			errs = append(errs, fmt.Errorf("--run: two processes have the name %s", p.Name))
		}
		f.beside = append(f.beside, p)
	}
	for _, p := range f.config {
		if _, err := os.Stat(p); err != nil {
			errs = append(errs, fmt.Errorf("--config: %w", err))
		}
	}
	abs, err := filepath.Abs(f.dataDir)
	if err != nil {
		errs = append(errs, err)
	}
	f.dataDir = abs
	if err := f.sockets(); err != nil {
		errs = append(errs, fmt.Errorf("--data-dir: %w", err))
	}
	if err := f.uids.Check(); err != nil {
		errs = append(errs, fmt.Errorf("--uid-base, --uid-count: %w", err))
	}
	if info, err := os.Stat(f.functionsRoot); f.functionsRoot != "" && (err != nil || !info.IsDir()) {
		errs = append(errs, fmt.Errorf("--functions-root %s is not a folder", f.functionsRoot))
	}
	return errors.Join(errs...)
}

// traces reports whether there are traces, ownJaeger whether they go to a Jaeger
// that `up` runs.
func (f *upFlags) traces() bool    { return !f.noJaeger || f.otlpTo != "" }
func (f *upFlags) ownJaeger() bool { return !f.noJaeger && f.otlpTo == "" }

// collector is where the relay sends traces.
func (f *upFlags) collector() string {
	if f.otlpTo != "" {
		return f.otlpTo
	}
	return f.jaegerOTLP
}

type flagAddress struct {
	flag  string
	value *string
}

func (f *upFlags) addresses() []flagAddress {
	a := []flagAddress{
		{"gateway-listen", &f.gateway}, {"api-listen", &f.api}, {"xds-listen", &f.xds},
		{"http-listen", &f.http},
	}
	if f.limiter != "" {
		a = append(a, flagAddress{"limiter-listen", &f.limiter})
	}
	if f.traces() && f.otlp != "" {
		a = append(a, flagAddress{"otlp-listen", &f.otlp})
	}
	return a
}

// listenAddress turns ":8080" and "localhost:8080" into IP:port.
func listenAddress(s string) (string, error) {
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		return "", fmt.Errorf("%q is not ADDRESS:PORT: %w", s, err)
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return "", fmt.Errorf("%q has no port from 1 to 65535", s)
	}
	switch {
	case host == "":
		host = "0.0.0.0"
	case host == "localhost":
		host = "127.0.0.1"
	case net.ParseIP(host) == nil:
		return "", fmt.Errorf("%q must begin with an IP address of this machine", s)
	}
	return net.JoinHostPort(host, port), nil
}

// limiterAddress is that of limiter i: a port, or a socket (unix:/PATH).
func (f *upFlags) limiterAddress(i int) string {
	if f.limiter == "" {
		return f.limiterSockets[i]
	}
	host, port, _ := net.SplitHostPort(f.limiter)
	n, _ := strconv.Atoi(port)
	return net.JoinHostPort(host, strconv.Itoa(n+i))
}

// otlpAddress is where the relay takes traces: a port, or a socket (unix:/PATH).
func (f *upFlags) otlpAddress() string { return cmp.Or(f.otlp, f.otlpSocket) }

// sockets chooses the Unix sockets of the parts.
func (f *upFlags) sockets() error {
	path := func(name string) (string, error) {
		p, err := socket.Path(runDir(f.dataDir), name)
		return socket.Prefix + p, err
	}
	var err error
	for name, to := range map[string]*string{"otlp.sock": &f.otlpSocket, "jaeger-otlp.sock": &f.jaegerOTLP, "jaeger-query.sock": &f.jaegerQuery} {
		if *to, err = path(name); err != nil {
			return err
		}
	}
	f.limiterSockets = make([]string, max(0, f.limiters))
	for i := range f.limiterSockets {
		if f.limiterSockets[i], err = path(fmt.Sprintf("limiter-%d.sock", i+1)); err != nil {
			return err
		}
	}
	return nil
}

// checkPorts finds out whether every port can be had, all problems at once.
func (f *upFlags) checkPorts(ctx context.Context) error {
	var wants []ports.Want
	for _, a := range f.addresses() {
		wants = append(wants, ports.Want{Flag: a.flag, Address: *a.value})
	}
	for i := 1; i < f.limiters && f.limiter != ""; i++ {
		wants = append(wants, ports.Want{Flag: "limiter-listen", Address: f.limiterAddress(i)})
	}
	return ports.Check(ctx, wants)
}

// loopback is the address by which this machine reaches a listener.
func loopback(address string) string {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return address
	}
	if ip := net.ParseIP(host); ip != nil && ip.IsUnspecified() {
		if strings.Contains(host, ":") {
			host = "::1"
		} else {
			host = "127.0.0.1"
		}
	}
	return net.JoinHostPort(host, port)
}
