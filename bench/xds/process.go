package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"

	"github.com/penstock-gateway/penstock/internal/launch"
	"github.com/penstock-gateway/penstock/internal/pki"
	"github.com/penstock-gateway/penstock/internal/toolbox"
	"github.com/penstock-gateway/penstock/xds/bootstrap"
)

const (
	startTimeout = 60 * time.Second
	stopTimeout  = 10 * time.Second
	// receivedBytes is what an Envoy got from its control plane.
	receivedBytes = "cluster." + bootstrap.XDSCluster + ".upstream_cx_rx_bytes_total"
)

// child is a process that is measured from outside.
type child struct {
	cmd  *exec.Cmd
	log  string
	done chan struct{}
	err  error // set before done is closed
}

// start runs a command with its output in a file of dir.
func start(dir, name string, cmd *exec.Cmd) (*child, error) {
	c := &child{cmd: cmd, log: filepath.Join(dir, name+".log"), done: make(chan struct{})}
	f, err := os.OpenFile(c.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if cmd.Stdout == nil {
		cmd.Stdout = f
	}
	cmd.Stderr = f
	if err := launch.Start(cmd); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	go func() {
		c.err = cmd.Wait()
		close(c.done)
	}()
	return c, nil
}

func (c *child) pid() int { return c.cmd.Process.Pid }

// stop ends the process in order, and by force when it does not end.
func (c *child) stop() {
	if c == nil {
		return
	}
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		_ = launch.Signal(c.cmd, sig)
		select {
		case <-c.done:
			return
		case <-time.After(stopTimeout):
		}
	}
}

// tail is the end of the log, for errors.
func (c *child) tail() string {
	b, _ := os.ReadFile(c.log)
	return string(b[max(0, len(b)-4000):])
}

// until polls a condition of a process that must stay alive.
func (c *child) until(ctx context.Context, what string, timeout time.Duration, cond func() bool) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !cond() {
		select {
		case <-ctx.Done():
			return fmt.Errorf("waited in vain for %s: %w\n%s", what, ctx.Err(), c.tail())
		case <-c.done:
			return fmt.Errorf("the process ended (%w) while waiting for %s\n%s", c.err, what, c.tail())
		case <-tick.C:
		}
	}
	return nil
}

// envoy is a running proxy.
type envoy struct {
	*child
	admin *http.Client
}

// startEnvoy starts the pinned Envoy with the product's own bootstrap; only one
// statistic is added, the bytes that came from the control plane.
func startEnvoy(ctx context.Context, ca *pki.CA, dir, name, xds string) (*envoy, error) {
	binary, err := toolbox.Envoy(ctx, toolbox.Options{Progress: os.Stderr})
	if err != nil {
		return nil, err
	}
	cert, key, err := ca.EnsureFiles(dir, "proxy-"+name, pki.Request{SPIFFE: pki.ProxyID("default", "-", name)})
	if err != nil {
		return nil, err
	}
	socket := filepath.Join(dir, name+".sock")
	conf := bootstrap.Config{
		NodeID: name, XDSAddresses: []string{xds}, XDSServerName: "localhost", AdminSocket: socket, AdminAll: true,
		CAFile: ca.CertFile(), CertFile: cert, KeyFile: key, SDSDir: filepath.Join(dir, "sds-"+name),
	}
	if err := os.MkdirAll(conf.SDSDir, 0o700); err != nil {
		return nil, err
	}
	file := filepath.Join(dir, name+".json")
	if err := bootstrap.WriteFiles(file, conf); err != nil {
		return nil, err
	}
	b, err := bootstrap.New(conf)
	if err != nil {
		return nil, err
	}
	countBytes(b)
	content, err := bootstrap.Marshal(b)
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(file, content, 0o600); err != nil {
		return nil, err
	}
	c, err := start(dir, "envoy-"+name, exec.Command(binary, "-c", file, "--concurrency", "1", "--log-level", "warning",
		"--disable-hot-restart", "--drain-time-s", "1", "--drain-strategy", "immediate"))
	if err != nil {
		return nil, err
	}
	e := &envoy{child: c, admin: &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		},
	}}}
	err = c.until(ctx, "Envoy's admin interface", startTimeout, func() bool {
		_, err := e.get("/ready")
		return err == nil
	})
	if err != nil {
		c.stop()
	}
	return e, err
}

func countBytes(b *bootstrapv3.Bootstrap) {
	l := b.GetStatsConfig().GetStatsMatcher().GetInclusionList()
	l.Patterns = append(l.Patterns, &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Exact{Exact: receivedBytes}})
}

func (e *envoy) get(path string) (string, error) {
	resp, err := e.admin.Get("http://envoy" + path)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return string(b), err
}

// stats counts the lines of /stats and reads the bytes received.
func (e *envoy) stats() (lines int, received float64, err error) {
	body, err := e.get("/stats")
	if err != nil {
		return 0, 0, err
	}
	for line := range strings.Lines(body) {
		lines++
		if v, ok := strings.CutPrefix(strings.TrimSpace(line), receivedBytes+": "); ok {
			if received, err = strconv.ParseFloat(v, 64); err != nil {
				return 0, 0, err
			}
		}
	}
	return lines, received, nil
}

// roleEnv makes this binary one of the children of the benchmark.
const roleEnv = "PENSTOCK_BENCH_ROLE"

// role is what a child is told.
type role struct {
	Name                  string // "bare", "snapshot", "fanout", "clients"
	Routes                int
	Listen, Upstream      string
	Port                  int // of the proxy's listener
	CA, Cert, Key         string
	Dir, Impl             string // fanout
	Resources, Clients    int
	Rounds, LimitSeconds  int
	ServerAddress, Prefix string // clients
}

// asChild runs the role that the environment names; false when there is none.
func asChild() bool {
	text := os.Getenv(roleEnv)
	if text == "" {
		return false
	}
	var r role
	err := json.Unmarshal([]byte(text), &r)
	if err == nil {
		switch r.Name {
		case "bare", "snapshot":
			err = servePeer(r)
		case "fanout":
			err = serveFanout(r)
		case "clients":
			err = runClients(r)
		default:
			err = fmt.Errorf("no role %q", r.Name)
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench child:", err)
		os.Exit(1)
	}
	return true
}

// self is a command that starts this binary in a role.
func self(r role) (*exec.Cmd, error) {
	text, err := json.Marshal(r)
	if err != nil {
		return nil, err
	}
	exe, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), roleEnv+"="+string(text))
	return cmd, nil
}

// lines is a child that is spoken to by lines.
type lines struct {
	*child
	in  io.WriteCloser
	out *bufio.Reader
}

func startLines(dir, name string, r role) (*lines, error) {
	cmd, err := self(r)
	if err != nil {
		return nil, err
	}
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	// Not StdoutPipe: Wait would close it under the reader.
	outR, outW, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	cmd.Stdout = outW
	c, err := start(dir, name, cmd)
	outW.Close()
	if err != nil {
		return nil, err
	}
	l := &lines{child: c, in: in, out: bufio.NewReader(outR)}
	return l, nil
}

// ask sends a line and returns the answer's line.
func (l *lines) ask(line string) (string, error) {
	if line != "" {
		if _, err := io.WriteString(l.in, line+"\n"); err != nil {
			return "", err
		}
	}
	s, err := l.out.ReadString('\n')
	if err != nil {
		return "", fmt.Errorf("%w\n%s", err, l.tail())
	}
	return strings.TrimSpace(s), nil
}
