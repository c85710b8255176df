// Package envoytest starts the real Envoy, the pinned one, for tests. Each Envoy
// has its own admin socket and log, dies with the test and with the test
// process, and prints its log when the test fails.
package envoytest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/protobuf/proto"

	"github.com/penstock-gateway/penstock/internal/launch"
	"github.com/penstock-gateway/penstock/internal/ports/porttest"
	"github.com/penstock-gateway/penstock/internal/toolbox"
	"github.com/penstock-gateway/penstock/xds/bootstrap"
)

const (
	startTimeout = 60 * time.Second // a loaded machine; the usual start is 0.2 s
	stopTimeout  = 10 * time.Second
	pollInterval = 10 * time.Millisecond
	// maxLog bounds what a failed test prints of the log.
	maxLog = 64 << 10
)

// Binary returns the path of the pinned Envoy and installs it when it is absent.
func Binary(t testing.TB) string {
	t.Helper()
	path, err := toolbox.Envoy(t.Context(), toolbox.Options{Progress: os.Stderr})
	if err != nil {
		t.Fatal("envoytest: ", err)
	}
	return path
}

// Options says what to start.
type Options struct {
	// Bootstrap is the configuration. Node and Admin are filled in when absent.
	Bootstrap *bootstrapv3.Bootstrap
	// Config is used when Bootstrap is nil: the bootstrap of package bootstrap,
	// with its SDS files. NodeID and SDSDir are filled in when empty, and the
	// admin socket is always an own one with all paths allowed.
	Config bootstrap.Config
	// Concurrency is the number of workers; 0: 1.
	Concurrency int
	// LogLevel as Envoy's --log-level; "": warning. It may carry component levels
	// after a comma: "warning,upstream:debug,router:trace".
	LogLevel string
}

// Envoy is a running Envoy.
type Envoy struct {
	cmd     *exec.Cmd
	socket  string
	logFile string
	client  *http.Client
	exited  chan struct{}
	exitErr error // set before exited is closed
}

// Start starts an Envoy and returns when its admin interface answers and, when
// it has no control plane, when it is live with its static listeners. It is
// stopped when the test ends.
func Start(t testing.TB, o Options) *Envoy {
	t.Helper()
	// Not t.TempDir: the name of a test may be longer than a socket path allows.
	dir, err := os.MkdirTemp("", "envoy-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	file, live := configure(t, dir, o)
	return launchEnvoy(t, dir, file, filepath.Join(dir, "admin.sock"), live, o)
}

// StartFile starts an Envoy from a bootstrap file as it is, waits until the
// admin socket that it names answers, and returns a client of that socket. It is
// for tests of bootstrap files; all others want Start.
func StartFile(t testing.TB, file, socket string) *http.Client {
	t.Helper()
	return launchEnvoy(t, t.TempDir(), file, socket, false, Options{}).client
}

func launchEnvoy(t testing.TB, dir, file, socket string, live bool, o Options) *Envoy {
	t.Helper()
	e := &Envoy{
		socket:  socket,
		logFile: filepath.Join(dir, "envoy.log"),
		exited:  make(chan struct{}),
	}
	e.client = &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", e.socket)
		},
	}}
	e.start(t, Binary(t), file, o)
	t.Cleanup(func() { e.stop(t) })
	e.poll(t, "the admin interface to answer", func() bool {
		state, ok := e.ready()
		return ok && (!live || state == "LIVE")
	})
	return e
}

// configure writes the configuration file into dir; live reports whether Start
// shall wait until the server is live.
func configure(t testing.TB, dir string, o Options) (file string, live bool) {
	t.Helper()
	var b *bootstrapv3.Bootstrap
	if o.Bootstrap != nil {
		b = proto.CloneOf(o.Bootstrap)
	} else {
		c := o.Config
		if c.NodeID == "" {
			c.NodeID = "envoytest"
		}
		if c.SDSDir == "" {
			c.SDSDir = dir
		}
		c.AdminSocket = ""
		var err error
		if b, err = bootstrap.New(c); err != nil {
			t.Fatal("envoytest: ", err)
		}
		if err := bootstrap.WriteFiles(filepath.Join(dir, "unused.json"), c); err != nil {
			t.Fatal("envoytest: ", err)
		}
	}
	if b.Node == nil {
		b.Node = &corev3.Node{Id: "envoytest", Cluster: "envoytest"}
	}
	b.Admin = &bootstrapv3.Admin{Address: &corev3.Address{Address: &corev3.Address_Pipe{
		Pipe: &corev3.Pipe{Path: filepath.Join(dir, "admin.sock"), Mode: 0o600},
	}}}
	content, err := bootstrap.Marshal(b)
	if err != nil {
		t.Fatal("envoytest: ", err)
	}
	file = filepath.Join(dir, "bootstrap.json")
	if err := os.WriteFile(file, content, 0o600); err != nil {
		t.Fatal(err)
	}
	return file, b.DynamicResources == nil
}

func arguments(file string, o Options) []string {
	level, components, _ := strings.Cut(o.LogLevel, ",")
	if level == "" {
		level = "warning"
	}
	args := []string{
		"-c", file, "--concurrency", strconv.Itoa(max(1, o.Concurrency)), "--log-level", level,
		// No shared memory between processes: any number of Envoys side by side,
		// and a killed one leaves nothing in /dev/shm.
		"--disable-hot-restart", "--drain-time-s", "1", "--drain-strategy", "immediate",
	}
	if components != "" {
		args = append(args, "--component-log-level", components)
	}
	return args
}

func (e *Envoy) start(t testing.TB, binary, file string, o Options) {
	t.Helper()
	log, err := os.Create(e.logFile)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	e.cmd = exec.Command(binary, arguments(file, o)...)
	e.cmd.Stdout, e.cmd.Stderr = log, log
	if err := launch.Start(e.cmd); err != nil {
		t.Fatal("envoytest: start Envoy: ", err)
	}
	go func() {
		e.exitErr = e.cmd.Wait()
		close(e.exited)
	}()
}

// ready asks the admin interface for the state: "LIVE", "PRE_INITIALIZING" …
func (e *Envoy) ready() (state string, ok bool) {
	_, body, err := e.request(http.MethodGet, "/ready")
	return strings.TrimSpace(body), err == nil
}

// WaitLive waits until Envoy has its first configuration: clusters are warm and
// listeners accept.
func (e *Envoy) WaitLive(t testing.TB) {
	t.Helper()
	e.poll(t, "Envoy to be live", func() bool {
		state, ok := e.ready()
		return ok && state == "LIVE"
	})
}

// poll waits until cond holds, Envoy ends, or startTimeout passes.
func (e *Envoy) poll(t testing.TB, what string, cond func() bool) {
	t.Helper()
	deadline := time.After(startTimeout)
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	for !cond() {
		select {
		case <-e.exited:
			t.Fatalf("envoytest: Envoy ended (%v) while waiting for %s:\n%s", e.exitErr, what, e.Log(t))
		case <-deadline:
			t.Fatalf("envoytest: waited %s in vain for %s:\n%s", startTimeout, what, e.Log(t))
		case <-tick.C:
		}
	}
}

func (e *Envoy) request(method, path string) (status int, body string, err error) {
	req, err := http.NewRequest(method, "http://envoy"+path, nil)
	if err != nil {
		return 0, "", err
	}
	res, err := e.client.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	return res.StatusCode, string(b), err
}

// Admin does a GET of an admin path, such as "/config_dump?include_eds", and
// returns the body. An answer other than 200 fails the test.
func (e *Envoy) Admin(t testing.TB, path string) string {
	t.Helper()
	return e.admin(t, http.MethodGet, path)
}

// AdminPost does a POST, which is what admin paths that change something want.
func (e *Envoy) AdminPost(t testing.TB, path string) string {
	t.Helper()
	return e.admin(t, http.MethodPost, path)
}

func (e *Envoy) admin(t testing.TB, method, path string) string {
	t.Helper()
	status, body, err := e.request(method, path)
	if err != nil || status != http.StatusOK {
		t.Fatalf("envoytest: %s %s: status %d, %v: %s", method, path, status, err, body)
	}
	return body
}

// Stat returns a counter or gauge; 0 when Envoy has none of that name (yet, or
// since the stats matcher of the bootstrap leaves it out).
func (e *Envoy) Stat(t testing.TB, name string) uint64 {
	t.Helper()
	// The filter finds names fast; the exact comparison is here.
	body := e.Admin(t, "/stats?filter="+strings.NewReplacer("+", "%2B", "&", "%26", "#", "%23", " ", "%20", "|", "%7C", `\`, "%5C").
		Replace("^"+regexp.QuoteMeta(name)+"$"))
	for line := range strings.Lines(body) {
		if value, ok := strings.CutPrefix(strings.TrimSpace(line), name+": "); ok {
			n, err := strconv.ParseUint(value, 10, 64)
			if err != nil {
				t.Fatalf("envoytest: statistic %s is not a number: %s", name, value)
			}
			return n
		}
	}
	return 0
}

// Pid returns the process id.
func (e *Envoy) Pid() int { return e.cmd.Process.Pid }

// Socket returns the path of the admin socket.
func (e *Envoy) Socket() string { return e.socket }

// Log returns what Envoy logged so far.
func (e *Envoy) Log(t testing.TB) string {
	t.Helper()
	b, err := os.ReadFile(e.logFile)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// Kill ends Envoy as kill -9 does and returns when it is gone.
func (e *Envoy) Kill() {
	_ = launch.Signal(e.cmd, syscall.SIGKILL)
	<-e.exited
}

func (e *Envoy) stop(t testing.TB) {
	select {
	case <-e.exited:
	default:
		_ = launch.Signal(e.cmd, syscall.SIGTERM)
		select {
		case <-e.exited:
		case <-time.After(stopTimeout):
			t.Errorf("envoytest: Envoy did not end within %s of SIGTERM", stopTimeout)
			e.Kill()
		}
	}
	e.client.CloseIdleConnections()
	if t.Failed() {
		log, _ := os.ReadFile(e.logFile)
		if cut := len(log) - maxLog; cut > 0 {
			log = append([]byte("…"), log[cut:]...)
		}
		t.Logf("log of Envoy (pid %d):\n%s", e.Pid(), log)
	}
}

// Validate runs `envoy --mode validate` on a bootstrap. Files that it refers to
// must exist.
func Validate(t testing.TB, b *bootstrapv3.Bootstrap) error {
	t.Helper()
	content, err := bootstrap.Marshal(b)
	if err != nil {
		return err
	}
	file := filepath.Join(t.TempDir(), "bootstrap.json")
	if err := os.WriteFile(file, content, 0o600); err != nil {
		return err
	}
	cmd := exec.CommandContext(t.Context(), Binary(t), "--mode", "validate", "-c", file, "--log-level", "error", "--disable-hot-restart")
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := launch.Run(cmd); err != nil {
		return errors.Join(fmt.Errorf("envoy --mode validate: %w", err), errors.New(out.String()))
	}
	return nil
}

// FreePort is porttest.Free.
func FreePort(t testing.TB) int {
	t.Helper()
	return porttest.Free(t)
}
