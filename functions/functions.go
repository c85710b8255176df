// Package functions is the runner: it holds a stream to the control plane, runs
// the instances of every function that the control plane wants, and reports
// where requests reach them.
//
// The layers, from the outside in: Run and its session (what the control plane
// says and is told), the manager (which instances of which version of which
// function there are), package instance (one process with the small HTTP server
// in front of it that Envoy talks to) and one package per contract below
// runtime/ (how that process is spoken to).
package functions

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"
	"google.golang.org/grpc"

	"github.com/penstock-gateway/penstock/functions/activate"
	"github.com/penstock-gateway/penstock/functions/instance"
	"github.com/penstock-gateway/penstock/functions/sandbox"
	"github.com/penstock-gateway/penstock/scale"
)

// Config says what a runner runs and where.
type Config struct {
	// Name of the runner, as in its certificate: spiffe://penstock.local/runner/{name}.
	Name string
	// Root is the folder that every Function.source is relative to and stays in.
	Root string
	// CacheDir holds built sources; made when absent. One runner uses it.
	CacheDir string
	// SocketDir is the folder of the Unix sockets that requests come by; made when
	// absent, and open to this user alone, so that nobody but the proxies of this user
	// reaches an instance. Where the paths would be too long a temporary one is taken
	// in its place. Empty: requests come by TCP ports of the loopback interface.
	SocketDir string
	// Conn leads to the control plane's RunnerService.
	Conn *grpc.ClientConn
	// LambdaPython, FrameworkPython and FrameworkNode return the folder that
	// awslambdaric, and Google's Functions Framework, are installed in, and may
	// install them then: they are called when a function needs them. Empty, or nil:
	// only the source or the interpreter may bring them.
	LambdaPython, FrameworkPython, FrameworkNode func(context.Context) (string, error)
	// Python is the interpreter of Python functions. Default "python3".
	Python string
	// Node is the program that runs Node.js functions. Default "node".
	Node string
	// Logger receives the runner's own records and the functions' output.
	Logger *slog.Logger
	// TracerProvider makes one server span per invocation; nil: none.
	TracerProvider trace.TracerProvider
	// Collector takes the spans that functions make themselves (OTLP over gRPC); nil:
	// functions get no endpoint for them.
	Collector grpc.ClientConnInterface
	// Registerer takes the metrics of functions; nil: they are not exported.
	Registerer prometheus.Registerer
	// MaxEventBytes is the largest request body, and the largest answer, of a
	// Lambda function. Default 6 MiB, as on AWS.
	MaxEventBytes int64
	// Build bounds each build and each installation of dependencies; 0: the default.
	Build BuildLimits
	// Silence is how long a response that has begun may pause. Default 5 min, as
	// timeout.idle of routes.
	Silence time.Duration
	// NewScaler makes what decides how many instances of a function there are. Default:
	// scale.New.
	NewScaler func(scale.Config) Scaler
	// StopTimeout is how long instances may drain when the runner stops. Default 8 s.
	StopTimeout time.Duration
	// UIDs are for instances and builds, one for each, where the runner is root. Default:
	// 2000000000 to 2000065535, when they are nobody else's.
	UIDs sandbox.UIDRange

	machine *sandbox.Machine
}

// Scaler decides how many instances of one function there are to be. It is called
// every 250 ms, and when a request has to wait, while there are instances or
// requests; never twice at once.
type Scaler interface {
	Decide(scale.Observation) scale.Decision
}

func (c *Config) setDefaults() error {
	if c.Name == "" {
		return errors.New("the runner has no name")
	}
	if c.Conn == nil {
		return errors.New("the runner has no connection to the control plane")
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.TracerProvider == nil {
		c.TracerProvider = noop.NewTracerProvider()
	}
	if c.Python == "" {
		c.Python = "python3"
	}
	if c.Node == "" {
		c.Node = "node"
	}
	if c.MaxEventBytes <= 0 {
		c.MaxEventBytes = 6 << 20
	}
	if c.NewScaler == nil {
		c.NewScaler = func(c scale.Config) Scaler { return scale.New(c) }
	}
	if c.StopTimeout <= 0 {
		c.StopTimeout = 8 * time.Second
	}
	for _, dir := range []*string{&c.Root, &c.CacheDir} {
		abs, err := filepath.Abs(*dir)
		if err != nil {
			return err
		}
		*dir = abs
	}
	var err error
	if c.machine, err = machine().WithUIDs(c.UIDs); err != nil {
		return fmt.Errorf("uids of functions: %w", err)
	}
	if info, err := os.Stat(c.Root); err != nil {
		return fmt.Errorf("functions root: %w (it is the folder that holds the functions' sources)", err)
	} else if !info.IsDir() {
		return fmt.Errorf("functions root %s is not a folder", c.Root)
	}
	if err := os.MkdirAll(c.CacheDir, 0o700); err != nil {
		return fmt.Errorf("functions cache: %w", err)
	}
	return nil
}

// readySandboxes is how many processes wait in sandboxes for the starts to come, each
// with about 1 MiB of memory.
const readySandboxes = 4

// Run runs functions until ctx ends; then it drains and stops all instances and
// returns nil. It returns an error only for a Config that cannot work: a control
// plane that is away is waited for, and the instances serve on meanwhile.
func Run(ctx context.Context, c Config) error {
	if err := c.setDefaults(); err != nil {
		return err
	}
	if c.SocketDir != "" {
		dir, remove, err := socketDir(c.SocketDir)
		if err != nil {
			return fmt.Errorf("the folder of sockets: %w", err)
		}
		defer remove()
		c.SocketDir = dir
	}
	if missing := c.machine.Missing(); len(missing) > 0 {
		c.Logger.Warn("functions are not kept apart as they could be; run only code that you trust", "missing", missing, "root", os.Geteuid() == 0)
	}
	adopting, abandon := context.WithCancel(context.WithoutCancel(ctx))
	adopted, err := instance.Adopt(adopting, c.Logger)
	if err != nil {
		abandon()
		return err
	}
	defer func() { abandon(); adopted() }() // after all instances have ended
	defer instance.KeepReady(c.machine, readySandboxes)()
	m, err := newManager(c, instance.NewMetrics(c.Registerer), activate.NewMetrics(c.Registerer))
	if err != nil {
		return err
	}
	defer m.close()

	// The session outlives ctx: that instances drain must be told, too.
	sessions, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	s := &session{config: c, manager: m, quit: make(chan struct{})}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		s.keep(sessions)
	}()
	sampled := make(chan struct{})
	go func() { defer close(sampled); m.sampler.run(ctx) }()
	<-ctx.Done()
	<-sampled
	m.stop(m.connected())
	close(s.quit)
	select {
	case <-ended:
	case <-time.After(time.Second):
		cancel()
		<-ended
	}
	return nil
}

// socketDir makes a folder for sockets that only this user may enter.
func socketDir(dir string) (path string, remove func(), err error) {
	if dir, err = filepath.Abs(dir); err != nil {
		return "", nil, err
	}
	if !instance.SocketDirFits(dir) {
		if dir, err = os.MkdirTemp("", "penstock-"); err == nil && !instance.SocketDirFits(dir) {
			_ = os.Remove(dir)
			dir, err = os.MkdirTemp("/tmp", "penstock-")
		}
		return dir, func() { _ = os.RemoveAll(dir) }, err
	}
	// What a runner that was killed has left.
	if err := os.RemoveAll(dir); err != nil {
		return "", nil, err
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o700); err != nil {
		return "", nil, err
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return "", nil, err
	}
	return dir, func() { _ = os.RemoveAll(dir) }, nil
}
