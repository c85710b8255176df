// Command desk measures the main job on one machine: how long a change takes to
// serve, what a request costs in Envoy, what the limiter decides, what the
// processes weigh. It starts `penstock up` with ports and a data folder of its
// own and loads it over loopback. Run it with `make bench`.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/penstock-gateway/penstock/bench/proc"
	"github.com/penstock-gateway/penstock/bench/report"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
	"github.com/penstock-gateway/penstock/internal/access/connect"
	"github.com/penstock-gateway/penstock/internal/ports"
)

type options struct {
	bin, out string
	short    bool
}

func main() {
	var o options
	flag.StringVar(&o.bin, "bin", "bin/penstock", "the binary to measure")
	flag.StringVar(&o.out, "out", "bench/results/main.json", "where the figures are written")
	flag.BoolVar(&o.short, "short", false, "few repetitions: shows that it works, the figures mean little")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, o); err != nil {
		log.Fatal(err)
	}
}

// bench is one measured `penstock up`.
type bench struct {
	options
	dir                         string
	gateway, api, http, limiter string
	conn                        *grpc.ClientConn
	config                      pb.ConfigServiceClient
	report                      *report.Report
	upstream                    string
}

func run(ctx context.Context, o options) (err error) {
	b := &bench{options: o, report: report.New()}
	if b.bin, err = filepath.Abs(o.bin); err != nil {
		return err
	}
	if b.dir, err = os.MkdirTemp("", "penstock-bench-"); err != nil {
		return err
	}
	defer os.RemoveAll(b.dir)
	if b.upstream, err = upstream(ctx); err != nil {
		return err
	}
	if err := b.up(ctx); err != nil {
		return err
	}
	defer func() {
		out, downErr := exec.Command(b.bin, "down", "--data-dir", b.dir).CombinedOutput()
		if downErr != nil {
			err = errors.Join(err, fmt.Errorf("down: %w\n%s", downErr, out))
		}
	}()
	if b.conn, err = grpc.NewClient("passthrough:///"+b.api, grpc.WithTransportCredentials(insecure.NewCredentials()), connect.Owner(b.dir),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(64<<20), grpc.MaxCallSendMsgSize(64<<20))); err != nil {
		return err
	}
	defer b.conn.Close()
	b.config = pb.NewConfigServiceClient(b.conn)
	for _, step := range []func(context.Context) error{b.changes, b.requests, b.decisions, b.weights} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	return b.report.Write(os.Stdout, o.out)
}

// upstream is a minimal server: what is measured is the gateway, not it.
func upstream(ctx context.Context) (string, error) {
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	s := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write([]byte("ok\n"))
	})}
	context.AfterFunc(ctx, func() { s.Close() })
	go func() { _ = s.Serve(l) }()
	return l.Addr().String(), nil
}

func freePort() (string, error) {
	port, err := ports.Reserve()
	return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)), err
}

// up starts the whole and measures how long a start with installed tools takes.
func (b *bench) up(ctx context.Context) error {
	args := []string{"up", "-d", "--data-dir", b.dir, "--no-jaeger", "--settings", os.DevNull}
	for flag, to := range map[string]*string{
		"--gateway-listen": &b.gateway, "--api-listen": &b.api, "--http-listen": &b.http, "--limiter-listen": &b.limiter, "--xds-listen": new(string),
	} {
		port, err := freePort()
		if err != nil {
			return err
		}
		*to = port
		args = append(args, flag, port)
	}
	start := time.Now()
	c := exec.CommandContext(ctx, b.bin, args...)
	if out, err := c.CombinedOutput(); err != nil {
		return fmt.Errorf("penstock up: %w\n%s", err, out)
	}
	b.report.Add("up, tools installed, empty data folder -> serving", "s", time.Since(start).Seconds())
	return nil
}

// weights adds the resident memory of each process.
func (b *bench) weights(context.Context) error {
	processes, err := b.processes()
	if err != nil {
		return err
	}
	for _, p := range processes {
		mib, _, err := proc.Memory(p.Pid)
		if err != nil {
			return err
		}
		b.report.Add("RSS of "+p.Name+", 1,000 routes", "MiB", mib)
	}
	return nil
}

type process struct {
	Name string
	Pid  int
}

// processes are those that `penstock up` started.
func (b *bench) processes() ([]process, error) {
	var state struct{ Processes []process }
	raw, err := os.ReadFile(filepath.Join(b.dir, "run", "state.json"))
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(raw, &state); err != nil {
		return nil, err
	}
	return state.Processes, nil
}

// pid of a supervised process.
func (b *bench) pid(name string) (int, error) {
	processes, err := b.processes()
	if err != nil {
		return 0, err
	}
	for _, p := range processes {
		if p.Name == name {
			return p.Pid, nil
		}
	}
	return 0, fmt.Errorf("no process %q", name)
}
