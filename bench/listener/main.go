// Listener measures what a listening socket that no other process can share costs:
// Envoys with two workers whose listener has a socket for each worker
// (SO_REUSEPORT), one for both, and one with exact balance, side by side.
package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/penstock-gateway/penstock/bench/report"
	"github.com/penstock-gateway/penstock/internal/launch"
	"github.com/penstock-gateway/penstock/internal/ports"
	"github.com/penstock-gateway/penstock/internal/toolbox"
)

var (
	out    = flag.String("out", "bench/results/listener.json", "file of the figures")
	rounds = flag.Int("rounds", 9, "rounds; in each every contestant runs once")
	length = flag.Duration("length", 2*time.Second, "length of one measurement")
	conns  = flag.Int("connections", 32, "concurrent connections")
)

// contestant is one Envoy.
type contestant struct {
	name, options string // of the listener, as YAML
	dir, address  string
	admin         *http.Client

	kept, fresh, share []float64 // requests/s; share of connections of the busier worker
}

const config = `
admin: {address: {pipe: {path: %s/admin.sock, mode: 384}}}
static_resources:
  listeners:
  - name: http
    stat_prefix: http
    address: {socket_address: {address: 127.0.0.1, port_value: %d}}
    %s
    filter_chains:
    - filters:
      - name: http
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: http
          http_filters:
          - {name: router, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}
          route_config: {virtual_hosts: [{name: all, domains: ["*"], routes: [{match: {prefix: /}, direct_response: {status: 200}}]}]}
`

func main() {
	flag.Parse()
	if err := run(context.Background()); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context) error {
	envoy, err := toolbox.Envoy(ctx, toolbox.Options{Progress: os.Stderr})
	if err != nil {
		return err
	}
	all := []*contestant{
		{name: "a socket for each worker", options: "enable_reuse_port: true"},
		{name: "one socket", options: "enable_reuse_port: false"},
		{name: "one socket, exact balance", options: "enable_reuse_port: false\n    connection_balance_config: {exact_balance: {}}"},
	}
	for _, c := range all {
		stop, err := c.start(ctx, envoy)
		if err != nil {
			return fmt.Errorf("%s: %w", c.name, err)
		}
		defer stop()
	}
	for n := range *rounds {
		for i := range all {
			// Another one begins each round.
			if err := all[(n+i)%len(all)].measure(ctx); err != nil {
				return err
			}
		}
	}
	r := report.New()
	for _, c := range all {
		r.AddRounds(c.name+": kept connections", "requests/s", c.kept)
		r.AddRounds(c.name+": a connection for each request", "requests/s", c.fresh)
		r.AddRounds(c.name+": connections of the busier worker", "share", c.share)
	}
	for _, c := range all[1:] {
		r.AddRounds(c.name+", against the first: kept", "ratio", ratios(c.kept, all[0].kept))
		r.AddRounds(c.name+", against the first: fresh", "ratio", ratios(c.fresh, all[0].fresh))
	}
	return r.Write(os.Stdout, *out)
}

func ratios(a, b []float64) []float64 {
	q := make([]float64, len(a))
	for i := range a {
		q[i] = a[i] / b[i]
	}
	return q
}

func (c *contestant) start(ctx context.Context, envoy string) (stop func(), err error) {
	if c.dir, err = os.MkdirTemp("", "bench-listener-"); err != nil {
		return nil, err
	}
	port, err := ports.Reserve()
	if err != nil {
		return nil, err
	}
	c.address = net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
	file := filepath.Join(c.dir, "envoy.yaml")
	if err := os.WriteFile(file, fmt.Appendf(nil, config, c.dir, port, c.options), 0o600); err != nil {
		return nil, err
	}
	c.admin = &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", filepath.Join(c.dir, "admin.sock"))
	}}}
	cmd := exec.CommandContext(ctx, envoy, "-c", file, "--concurrency", "2", "--log-level", "error", "--disable-hot-restart")
	cmd.Stderr = os.Stderr
	if err := launch.Start(cmd); err != nil {
		return nil, err
	}
	stop = func() {
		err := cmd.Process.Kill()
		_, werr := cmd.Process.Wait()
		if err := errors.Join(err, werr, os.RemoveAll(c.dir)); err != nil {
			log.Print(err)
		}
	}
	for begin := time.Now(); ; time.Sleep(10 * time.Millisecond) {
		if b, err := c.get("/ready"); err == nil && strings.HasPrefix(b, "LIVE") {
			return stop, nil
		} else if time.Since(begin) > time.Minute {
			stop()
			return nil, fmt.Errorf("Envoy is not ready: %w", err)
		}
	}
}

func (c *contestant) get(path string) (string, error) {
	res, err := c.admin.Get("http://envoy" + path)
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	return string(b), err
}

func (c *contestant) measure(ctx context.Context) error {
	before, err := c.workers()
	if err != nil {
		return err
	}
	kept, err := c.load(ctx, false)
	if err != nil {
		return err
	}
	after, err := c.workers()
	if err != nil {
		return err
	}
	fresh, err := c.load(ctx, true)
	if err != nil {
		return err
	}
	a, b := after[0]-before[0], after[1]-before[1]
	c.kept, c.fresh = append(c.kept, kept), append(c.fresh, fresh)
	c.share = append(c.share, max(a, b)/(a+b))
	return nil
}

// workers are the connections that each worker has taken.
func (c *contestant) workers() (n [2]float64, err error) {
	b, err := c.get("/stats?filter=worker_[01].downstream_cx_total")
	if err != nil {
		return n, err
	}
	for line := range strings.Lines(b) {
		for i := range n {
			if _, v, ok := strings.Cut(line, fmt.Sprintf("worker_%d.downstream_cx_total: ", i)); ok {
				_, _ = fmt.Sscan(v, &n[i])
			}
		}
	}
	return n, nil
}

// load returns requests per second; fresh makes a connection for each.
func (c *contestant) load(ctx context.Context, fresh bool) (float64, error) {
	ctx, cancel := context.WithTimeout(ctx, *length)
	defer cancel()
	var total atomic.Int64
	errs := make([]error, *conns)
	var wg sync.WaitGroup
	begin := time.Now()
	for i := range *conns {
		wg.Go(func() {
			var n int64
			for ctx.Err() == nil && errs[i] == nil {
				var k int64
				k, errs[i] = c.connection(ctx, fresh)
				n += k
			}
			total.Add(n)
		})
	}
	wg.Wait()
	return float64(total.Load()) / time.Since(begin).Seconds(), errors.Join(errs...)
}

// connection makes one and sends requests over it: one, or until ctx ends.
func (c *contestant) connection(ctx context.Context, one bool) (n int64, err error) {
	conn, err := net.Dial("tcp", c.address)
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	_ = conn.(*net.TCPConn).SetLinger(0) // no ports in TIME_WAIT
	r := bufio.NewReader(conn)
	for ctx.Err() == nil {
		if _, err := io.WriteString(conn, "GET / HTTP/1.1\r\nHost: bench\r\n\r\n"); err != nil {
			return n, err
		}
		res, err := http.ReadResponse(r, nil)
		if err != nil {
			return n, err
		}
		if res.StatusCode != http.StatusOK {
			return n, errors.New(res.Status)
		}
		if n++; one {
			break
		}
	}
	return n, nil
}
