package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/penstock-gateway/penstock/internal/console"
	"github.com/penstock-gateway/penstock/internal/launch"
	"github.com/penstock-gateway/penstock/internal/pki"
	"github.com/penstock-gateway/penstock/internal/socket"
	"github.com/penstock-gateway/penstock/internal/supervise"
	"github.com/penstock-gateway/penstock/internal/toolbox"
	"github.com/penstock-gateway/penstock/telemetry"
	"github.com/penstock-gateway/penstock/xds/bootstrap"
	"github.com/penstock-gateway/penstock/xds/keeper"
)

const (
	// The gateway, proxy and runner that `up` runs.
	upGateway = "projects/default/gateways/edge"
	upProxy   = "edge-1"
	upRunner  = "local"
	// certificateCheck is how often `up` looks whether a certificate is to be
	// renewed; Envoy and the others take renewed files by themselves.
	certificateCheck = time.Hour
)

// up is one run of `penstock up`.
type up struct {
	f           upFlags
	self        string // this program
	out, errOut io.Writer
	format      console.Format
	console     *console.Writer // where lines of all processes go
	log         *slog.Logger
	state       *stateWriter
	sup         *supervise.Supervisor
	config      *configFiles
	envoy       string // paths of tools
	socket      string // Envoy's admin socket
	ca          *pki.CA
	background  sync.WaitGroup

	keeper    *keeper.Keeper // between the proxy and the control plane
	endKeeper func() error
	xdsSocket string
}

func runUp(ctx context.Context, cmd *cobra.Command, f upFlags) error {
	if err := f.check(); err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	logFile := filepath.Join(f.dataDir, "up.log")
	u := &up{f: f, self: self, out: cmd.OutOrStdout(), errOut: boundLog(cmd.ErrOrStderr(), logFile, maxUpLog)}
	if u.format, err = console.ParseFormat(f.logFormat); err != nil {
		return err
	}
	if f.detach && u.format == console.Auto {
		u.format = console.Text // this part of it is for who typed it, and no log
	}
	u.console = console.New(u.errOut, u.format, colorful(u.errOut))
	u.log = u.console.Logger("up")
	// Files with errors are told before anything is started or installed.
	if u.config, err = loadConfig(f.config); err != nil {
		return err
	}
	if u.f.functionsRoot, err = keptRoot(f, u.config.request.GetResources()); err != nil {
		return err
	}
	if f.detach {
		return u.detach(ctx)
	}
	unlock, err := lockDataDir(f.dataDir)
	if err != nil {
		return err
	}
	defer unlock()
	if err := u.f.keepRoot(); err != nil {
		return err
	}
	reapLeftovers(f.dataDir)
	if err := f.checkPorts(ctx); err != nil {
		return err
	}
	if err := dropVariables(cmd.Root(), os.Environ()); err != nil {
		return err
	}
	if err := u.install(ctx); err != nil {
		if ctx.Err() != nil {
			return nil // a wish to stop, not an error
		}
		return err
	}
	return u.run(ctx)
}

func (u *up) tools() toolbox.Options {
	return toolbox.Options{Dir: u.f.toolsDir, Progress: u.console.Progress("up")}
}

// install gets what the gateway cannot serve without.
func (u *up) install(ctx context.Context) (err error) {
	if u.f.envoyPath != "" {
		if _, err := toolbox.CheckEnvoy(ctx, u.f.envoyPath); err != nil {
			return fmt.Errorf("--envoy-path: %w", err)
		}
		u.envoy = u.f.envoyPath
	} else if u.envoy, err = toolbox.Envoy(ctx, u.tools()); err != nil {
		return err
	}
	return nil
}

// run starts everything, waits for the end of ctx, and stops everything.
func (u *up) run(ctx context.Context) (err error) {
	me, err := launch.Identify(os.Getpid())
	if err != nil {
		return err
	}
	u.state = &stateWriter{dataDir: u.f.dataDir, log: func(err error) { u.log.Warn(err.Error()) }}
	u.state.update(func(s *upState) {
		*s = upState{ID: me, Version: version(), StartedAt: time.Now(), Jaeger: u.f.jaegerState(), Addresses: u.f.table()}
	})
	u.sup = supervise.New(supervise.Options{
		Line: u.line, Logger: u.log, OnChange: u.state.processes,
	})
	ctx, cancel := context.WithCancel(ctx)
	defer func() {
		cancel()
		u.sup.Stop()
		u.background.Wait()
		if u.endKeeper != nil {
			err = errors.Join(err, u.endKeeper())
		}
		err = errors.Join(err, os.Remove(stateFile(u.f.dataDir)))
		if err == nil {
			u.tell("stopped: all processes are gone\n")
		}
	}()
	if u.f.ownJaeger() {
		u.background.Go(func() { u.startJaeger(ctx) })
	}
	if err := u.start(ctx); err != nil {
		if ctx.Err() != nil {
			return nil // a wish to stop, not an error
		}
		return err
	}
	u.background.Go(func() { u.renewCertificates(ctx) })
	functions := ""
	if u.state.snapshot().Alone == "" {
		functions = u.awaitFunctions(ctx)
	}
	if ctx.Err() != nil {
		return nil
	}
	u.state.update(func(s *upState) { s.Ready, s.Functions = true, functions })
	u.tell(u.welcome(), "addresses", u.f.table(), "functions", functions)
	<-ctx.Done()
	u.tell("stopping\n")
	return nil
}

// line passes on what a process logs.
func (u *up) line(process, line string) {
	u.console.Line(process, line)
}

// tell says something to who started `up`: text for a person; for a machine, a
// record of its first line with attributes.
func (u *up) tell(text string, attrs ...any) {
	if u.format.For(u.out) == console.Text {
		fmt.Fprint(u.out, text)
		return
	}
	u.log.Info(firstLine(strings.TrimSpace(text)), attrs...)
}

// start brings up all that serves, in the order in which one needs the other.
func (u *up) start(ctx context.Context) error {
	if err := removeOldDevKey(u.f.dataDir); err != nil {
		return err
	}
	if isFile(filepath.Join(u.pkiDir(), "proxy-"+upProxy+".crt")) {
		if err := u.openKeeper(); err != nil {
			return err
		}
	}
	alone, err := u.startControl(ctx)
	if err != nil {
		return err
	}
	if !alone {
		if err := u.certificates(); err != nil {
			return err
		}
		if err := u.configure(ctx); err != nil {
			return err
		}
	}
	if u.keeper == nil {
		if err := u.openKeeper(); err != nil {
			return err
		}
	}
	for _, p := range u.helpers() {
		if err := u.sup.Start(ctx, p); err != nil {
			return err
		}
	}
	envoy, err := u.proxy()
	if err != nil {
		return err
	}
	return u.sup.Start(ctx, envoy)
}

func (u *up) pkiDir() string { return filepath.Join(u.f.dataDir, "pki") }

// certificates makes the leaves that the other processes need; it is cheap when they
// are there and good. The CA is the control plane's, which knows whether one may be
// made.
func (u *up) certificates() (err error) {
	if u.ca == nil {
		if u.ca, err = pki.LoadCA(u.pkiDir()); err != nil {
			return err
		}
	}
	for base, id := range map[string]string{
		"proxy-" + upProxy:   upProxyID,
		"runner-" + upRunner: pki.RunnerID(upRunner),
	} {
		if _, _, err := u.ca.EnsureFiles(u.pkiDir(), base, pki.Request{SPIFFE: id}); err != nil {
			return err
		}
	}
	return nil
}

func (u *up) renewCertificates(ctx context.Context) {
	tick := time.NewTicker(certificateCheck)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			if err := u.certificates(); err != nil {
				u.log.Error("certificates could not be renewed", "error", err)
			}
		}
	}
}

// otlp is the flag that sends a child's traces to the relay.
func (u *up) otlp() []string {
	if !u.f.traces() {
		return nil
	}
	return []string{"--otlp", loopback(u.f.otlpAddress())}
}

// ownEnv has our own processes write records, which the console makes readable.
var ownEnv = []string{telemetry.LogFormatEnv + "=json"}

func (u *up) control() supervise.Process {
	args := []string{
		"control", "--data-dir", u.f.dataDir, "--pki-dir", u.pkiDir(), "--dev-issuer",
		"--api-listen", u.f.api, "--http-listen", u.f.http, "--xds-listen", u.f.xds,
	}
	if u.f.replaceCA != "" {
		args = append(args, "--replace-ca", u.f.replaceCA)
	}
	for i := range u.f.limiters {
		args = append(args, "--limiter", loopback(u.f.limiterAddress(i)))
	}
	args = append(args, u.f.oidc.args()...)
	args = append(args, u.f.apiTLS.args()...)
	if u.f.shadow {
		args = append(args, "--shadow-envoy="+u.envoy)
	}
	if u.f.ownJaeger() {
		args = append(args, "--traces-from", u.f.jaegerQuery)
	}
	return supervise.Process{
		Name: "control", Command: u.self, Args: append(args, u.otlp()...), Env: ownEnv,
		Ready: controlReady(u.f.dataDir),
	}
}

// helpers are the relay, the limiters, the runner and what --run names.
func (u *up) helpers() []supervise.Process {
	var out []supervise.Process
	if u.f.traces() {
		out = append(out, supervise.Process{
			Name: "relay", Command: u.self, Args: []string{"relay", "--listen", u.f.otlpAddress(), "--private-network", "--to", u.f.collector()}, Env: ownEnv,
			Ready: listenReady(loopback(u.f.otlpAddress())),
		})
	}
	for i := range u.f.limiters {
		address := u.f.limiterAddress(i)
		name := "limiter"
		if u.f.limiters > 1 {
			name = fmt.Sprintf("limiter-%d", i+1)
		}
		args := append([]string{"limiter", "--listen", address, "--private-network"}, u.otlp()...)
		env := ownEnv
		if u.f.redisURL != "" { // it may hold a password, and arguments are seen by all
			env = append(slices.Clone(env), "PENSTOCK_REDIS_URL="+u.f.redisURL)
		}
		out = append(out, supervise.Process{Name: name, Command: u.self, Args: args, Env: env, Ready: listenReady(loopback(address))})
	}
	runner := []string{
		"runner", "--control", loopback(u.f.xds), "--pki-dir", u.pkiDir(), "--name", upRunner,
		"--root", u.f.functionsRoot, "--cache-dir", filepath.Join(u.f.dataDir, "functions"),
		"--tools-dir", u.f.toolsDir,
	}
	runner = append(runner, uidArgs(u.f.uids)...)
	if !u.f.functionPorts {
		runner = append(runner, "--socket-dir", filepath.Join(runDir(u.f.dataDir), "sockets"))
	}
	out = append(out, supervise.Process{
		Name: "runner", Command: u.self, Args: append(runner, u.otlp()...), Env: ownEnv, StopTimeout: 20 * time.Second,
	})
	return append(out, u.f.beside...)
}

// proxy writes the bootstrap and says how to start Envoy with it.
func (u *up) proxy() (supervise.Process, error) {
	adminSocket, err := u.adminSocket()
	if err != nil {
		return supervise.Process{}, err
	}
	u.socket = adminSocket
	file := filepath.Join(runDir(u.f.dataDir), "envoy.json")
	project, gateway, _ := strings.Cut(strings.TrimPrefix(upGateway, "projects/"), "/gateways/")
	err = bootstrap.WriteFiles(file, bootstrap.Config{
		NodeID: upProxy, Cluster: project + "/" + gateway, XDSSocket: u.xdsSocket,
		AdminSocket: adminSocket, FastTraces: true, Listeners: []string{project + "/" + gateway + "/http"},
	})
	if err != nil {
		return supervise.Process{}, err
	}
	admin := httpReady(unixDialer(adminSocket), "http://envoy/ready")
	serves := listenReady(loopback(u.f.gateway))
	// Later somebody may have moved the listener, and a restarted Envoy is right
	// not to listen here.
	var served atomic.Bool
	return supervise.Process{
		Name: "envoy", Command: u.envoy,
		// A killed Envoy leaves its socket, which the next one takes over.
		Args: append(envoyArgs(file), "--concurrency", "2"),
		Ready: func(ctx context.Context) error {
			if err := admin(ctx); err != nil || served.Load() {
				return err
			}
			err := serves(ctx)
			served.Store(err == nil)
			return err
		},
	}, nil
}

// adminSocket is in the run directory or, when that is too long for a socket, in
// a private temporary one.
func (u *up) adminSocket() (string, error) {
	socket := filepath.Join(runDir(u.f.dataDir), "envoy.sock")
	if len(socket) <= 100 {
		return socket, nil
	}
	dir := filepath.Join(os.TempDir(), fmt.Sprintf("penstock-%d-%08x", os.Getuid(), hash32(u.f.dataDir)))
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", err
	}
	// Somebody else's directory of that name must not be trusted.
	info, err := os.Lstat(dir)
	if err != nil {
		return "", err
	}
	if st, ok := info.Sys().(*syscall.Stat_t); !info.IsDir() || info.Mode().Perm() != 0o700 || !ok || int(st.Uid) != os.Getuid() {
		return "", fmt.Errorf("%s is not a private folder of this user: remove it, or choose a shorter --data-dir", dir)
	}
	return filepath.Join(dir, "envoy.sock"), nil
}

// startJaeger builds Jaeger if need be and runs it. The gateway serves meanwhile,
// and spans wait in the relay.
func (u *up) startJaeger(ctx context.Context) {
	set := func(state string) { u.state.update(func(s *upState) { s.Jaeger = state }) }
	set("building")
	path, err := toolbox.Jaeger(ctx, u.tools())
	if err == nil {
		err = u.sup.Start(ctx, jaegerProcess(path, u.f.jaegerQuery, u.f.jaegerOTLP))
	}
	switch {
	case err == nil:
		set("running")
		u.log.Info("Jaeger has joined: `" + programName() + " trace web" + u.dataDirFlag() + "` shows the newest traces in a browser")
	case ctx.Err() == nil:
		set("failed: " + err.Error())
		u.log.Error("there will be no traces, all else works", "error", err)
	}
}

// jaegerProcess is Jaeger, at the addresses of two sockets. Their folder is the one of
// all sockets of `up`, which only its user enters.
func jaegerProcess(path, query, otlp string) supervise.Process {
	querySocket, _ := socket.Of(query)
	otlpSocket, _ := socket.Of(otlp)
	return supervise.Process{
		Name: "jaeger", Command: path, Args: []string{"-query-socket", querySocket, "-otlp-socket", otlpSocket, "-max-traces", "20000"},
		Ready: httpReady(unixDialer(querySocket), "http://jaeger/api/services"),
	}
}

func unixDialer(socket string) func(context.Context, string, string) (net.Conn, error) {
	return func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}
}
