// Command xds measures the xDS core against its limit and against
// go-control-plane: what one changed route costs at many sizes, what a push costs
// with many proxies, whether hosts come and go without a 503. All contestants run
// side by side in one run, each with an Envoy of its own: read the ratios, the
// times depend on the machine. Run it with `make bench-xds`.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/penstock-gateway/penstock/bench/report"
	"github.com/penstock-gateway/penstock/internal/pki"
	"github.com/penstock-gateway/penstock/xds/compile"
)

type options struct {
	bin, out, profile, only, routes, clients string
	short, full                              bool
	eagerHosts                               int
}

func main() {
	if asChild() {
		return
	}
	var o options
	flag.StringVar(&o.bin, "bin", "bin/penstock", "the binary to measure")
	flag.StringVar(&o.out, "out", "bench/results/xds.json", "where the figures are written")
	flag.StringVar(&o.profile, "profile", "", "write profiles of the control plane to PROFILE-ROUTES.pprof")
	flag.StringVar(&o.only, "only", "changes,wildcards,hosts,fanout", "parts to run")
	flag.StringVar(&o.routes, "routes", "", "sizes instead of the usual ones, such as 1000,10000")
	flag.StringVar(&o.clients, "clients", "", "numbers of fan-out clients instead of the usual ones")
	flag.IntVar(&o.eagerHosts, "eager-hosts", compile.DefaultEagerHosts, "passed to the control plane")
	flag.BoolVar(&o.short, "short", false, "few repetitions: shows that it works, the figures mean little")
	flag.BoolVar(&o.full, "full", false, "also 100,000 routes and 1,000 clients")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if _, err := run(ctx, o); err != nil {
		log.Fatal(err)
	}
}

// bench is one run.
type bench struct {
	options
	dir, ca0 string
	ca       *pki.CA
	upstream string
	report   *report.Report
	series   []*series
}

func run(ctx context.Context, o options) (b *bench, err error) {
	b = &bench{options: o, report: report.New()}
	if b.bin, err = filepath.Abs(o.bin); err != nil {
		return nil, err
	}
	if _, err := os.Stat(b.bin); err != nil {
		return nil, fmt.Errorf("-bin: %w (run make build)", err)
	}
	if b.dir, err = os.MkdirTemp("", "pxb-"); err != nil { // short: sockets are in it
		return nil, err
	}
	defer os.RemoveAll(b.dir)
	b.ca0 = filepath.Join(b.dir, "pki")
	if b.ca, err = pki.OpenCA(b.ca0); err != nil {
		return nil, err
	}
	if b.upstream, err = upstream(ctx); err != nil {
		return nil, err
	}
	if err := b.fsync(); err != nil {
		return nil, err
	}
	sizes, err := b.sizes()
	if err != nil {
		return nil, err
	}
	var errs []error
	for part := range strings.SplitSeq(o.only, ",") {
		switch part {
		case "changes":
			for _, n := range sizes {
				if err := b.changes(ctx, n); err != nil {
					errs = append(errs, err)
				}
			}
			b.judge()
			b.printSeries(os.Stdout)
		case "wildcards":
			for _, n := range sizes {
				if err := b.wildcards(ctx, n); err != nil {
					errs = append(errs, err)
				}
			}
		case "hosts":
			errs = append(errs, b.hosts(ctx))
		case "fanout":
			errs = append(errs, b.fanout(ctx))
		default:
			return nil, fmt.Errorf("-only: there is no part %q", part)
		}
	}
	// What could be measured is kept.
	return b, errors.Join(append(errs, b.report.Write(os.Stdout, o.out))...)
}

// sizes are the numbers of routes to measure at.
func (b *bench) sizes() ([]int, error) {
	if b.routes != "" {
		return numbers("-routes", b.routes, perHost)
	}
	switch {
	case b.short:
		return []int{100}, nil
	case b.full:
		return []int{100, 1000, 5000, 10_000, 100_000}, nil
	}
	return []int{100, 1000, 5000, 10_000}, nil
}

// numbers reads a flag with multiples of unit.
func numbers(flag, text string, unit int) ([]int, error) {
	var out []int
	for field := range strings.SplitSeq(text, ",") {
		n, err := strconv.Atoi(field)
		if err != nil || n < unit || n%unit != 0 {
			return nil, fmt.Errorf("%s: %q is not a positive multiple of %d", flag, field, unit)
		}
		out = append(out, n)
	}
	return out, nil
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

// fsync is what the disk takes for the least commit: the store cannot be faster.
func (b *bench) fsync() error {
	f, err := os.Create(filepath.Join(b.dir, "fsync"))
	if err != nil {
		return err
	}
	defer f.Close()
	var all []float64
	block := make([]byte, 4096)
	for range 50 {
		if _, err := f.Write(block); err != nil {
			return err
		}
		begin := time.Now()
		if err := f.Sync(); err != nil {
			return errors.Join(err, f.Close())
		}
		all = append(all, ms(time.Since(begin)))
	}
	b.report.AddRounds("fsync of 4 kB on this disk", "ms", all)
	return nil
}
