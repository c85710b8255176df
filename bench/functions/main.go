// Command functions measures functions behind the gateway, on one machine over
// loopback: what a warm request costs beside one to a static cluster, what a cold
// one costs beyond the start of the process, what is lost while instances come and
// go, and what 1,000 functions weigh. Run it with `make bench-functions`.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/penstock-gateway/penstock/bench/report"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
	"github.com/penstock-gateway/penstock/internal/access/connect"
	"github.com/penstock-gateway/penstock/internal/ports"
	"github.com/penstock-gateway/penstock/internal/toolbox"
)

type options struct {
	bin, out, steps string
	short           bool
}

func main() {
	var o options
	flag.StringVar(&o.bin, "bin", "bin/penstock", "the binary to measure")
	flag.StringVar(&o.out, "out", "bench/results/functions.json", "where the figures are written")
	flag.StringVar(&o.steps, "steps", "warm,cold,many,churn", "what to measure")
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
	dir, root    string
	gateway, api string
	conn         *grpc.ClientConn
	config       pb.ConfigServiceClient
	report       *report.Report
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
	b.root = filepath.Join(b.dir, "functions")
	if err := b.build(ctx); err != nil {
		return err
	}
	if err := b.up(ctx); err != nil {
		return err
	}
	defer func() {
		out, downErr := exec.Command(b.bin, "down", "--data-dir", filepath.Join(b.dir, "data")).CombinedOutput()
		if downErr != nil {
			err = errors.Join(err, fmt.Errorf("down: %w\n%s", downErr, out))
		}
	}()
	if b.conn, err = grpc.NewClient("passthrough:///"+b.api, grpc.WithTransportCredentials(insecure.NewCredentials()), connect.Owner(filepath.Join(b.dir, "data")),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(64<<20), grpc.MaxCallSendMsgSize(64<<20))); err != nil {
		return err
	}
	defer b.conn.Close()
	b.config = pb.NewConfigServiceClient(b.conn)
	steps := map[string]func(context.Context) error{"warm": b.warm, "cold": b.cold, "many": b.many, "churn": b.churn}
	for _, name := range strings.Split(o.steps, ",") {
		step := steps[name]
		if step == nil {
			return fmt.Errorf("-steps: %q is none of warm, cold, many, churn", name)
		}
		if err := step(ctx); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return b.report.Write(os.Stdout, o.out)
}

// build makes the server that all functions run: examples/cold-start.
func (b *bench) build(ctx context.Context) error {
	if err := os.MkdirAll(filepath.Join(b.root, "hello"), 0o755); err != nil {
		return err
	}
	c := exec.CommandContext(ctx, "go", "build", "-o", b.hello(), ".")
	root, err := toolbox.RepoRoot()
	if err != nil {
		return err
	}
	c.Dir = filepath.Join(root, "examples/cold-start/functions/hello")
	if out, err := c.CombinedOutput(); err != nil {
		return fmt.Errorf("go build in %s: %w\n%s", c.Dir, err, out)
	}
	return nil
}

func (b *bench) hello() string { return filepath.Join(b.root, "hello", "hello") }

func (b *bench) up(ctx context.Context) error {
	args := []string{"up", "-d", "--data-dir", filepath.Join(b.dir, "data"), "--no-jaeger", "--settings", os.DevNull, "--functions-root", b.root, "--function-ports"}
	for flag, to := range map[string]*string{
		"--gateway-listen": &b.gateway, "--api-listen": &b.api, "--http-listen": new(string), "--limiter-listen": new(string), "--xds-listen": new(string),
	} {
		port, err := ports.Reserve()
		if err != nil {
			return err
		}
		*to = net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
		args = append(args, flag, *to)
	}
	if out, err := exec.CommandContext(ctx, b.bin, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("penstock up: %w\n%s", err, out)
	}
	return nil
}

// function is one that runs hello, with a route to it below its name.
func (b *bench) function(id string, scale *pb.Scale) []*pb.Resource {
	f := &pb.Function{
		Name: "projects/default/functions/" + id, Source: "hello", Scale: scale,
		Contract: &pb.Function_Server{Server: &pb.ServerContract{Command: []string{"./hello"}}},
	}
	return []*pb.Resource{{Kind: &pb.Resource_Function{Function: f}}, route(id, f.GetName())}
}

func route(id, backend string) *pb.Resource {
	return &pb.Resource{Kind: &pb.Resource_Route{Route: &pb.Route{
		Name: "projects/default/routes/" + id, Hostnames: []string{id + ".example.com"},
		Rules: []*pb.RouteRule{{Action: &pb.RouteRule_Forward{Forward: &pb.Forward{Backends: []*pb.WeightedBackend{{Backend: backend}}}}}},
	}}}
}

func (b *bench) apply(ctx context.Context, resources ...*pb.Resource) error {
	r, err := b.config.Apply(ctx, &pb.ApplyRequest{Resources: resources})
	if err != nil {
		return err
	}
	if s := r.GetResult().GetServing(); !s.GetComplete() || len(s.GetProblems()) > 0 {
		return fmt.Errorf("not served: %v", s)
	}
	return nil
}

// get sends a request on a connection that is kept, and tells how long it took and
// whether it was a cold start.
func (b *bench) get(ctx context.Context, c *http.Client, id string) (time.Duration, bool, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+b.gateway+"/", nil)
	if err != nil {
		return 0, false, err
	}
	r.Host = id + ".example.com"
	start := time.Now()
	resp, err := c.Do(r)
	if err != nil {
		return 0, false, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		return 0, false, fmt.Errorf("%s: %d %s %w", id, resp.StatusCode, body, err)
	}
	return time.Since(start), resp.Header.Get("X-Cold-Start") == "1", nil
}

// instances are those of a function, in whatever state.
func (b *bench) instances(ctx context.Context, id string) ([]*pb.Instance, error) {
	s, err := pb.NewProxyServiceClient(b.conn).GetStatus(ctx, &pb.GetStatusRequest{})
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(s.GetInstances(), func(i *pb.Instance) bool {
		return i.GetFunction() != "projects/default/functions/"+id
	}), nil
}

// await waits until a function has some instance, or none.
func (b *bench) await(ctx context.Context, id string, some bool) error {
	for ctx.Err() == nil {
		list, err := b.instances(ctx, id)
		if err != nil || len(list) > 0 == some {
			return err
		}
		select {
		case <-ctx.Done():
		case <-time.After(20 * time.Millisecond):
		}
	}
	return ctx.Err()
}

// warm compares the way to a function's instance with that to the same instance as
// the one address of a backend, in turns.
func (b *bench) warm(ctx context.Context) error {
	rounds, requests := 15, 800
	if b.short {
		rounds, requests = 2, 20
	}
	if err := b.apply(ctx, b.function("warm", &pb.Scale{Min: 1, Max: 1})...); err != nil {
		return err
	}
	list, err := b.instances(ctx, "warm")
	if err != nil || len(list) != 1 {
		return fmt.Errorf("instances %v: %w", list, err)
	}
	// By ports, for a static backend has no Unix sockets.
	static := &pb.Backend{Name: "projects/default/backends/static", Target: &pb.Backend_Static{Static: &pb.StaticTarget{
		Endpoints: []*pb.Endpoint{{Address: list[0].GetAddress(), Port: list[0].GetPort()}},
	}}}
	if err := b.apply(ctx, &pb.Resource{Kind: &pb.Resource_Backend{Backend: static}}, route("static", static.GetName())); err != nil {
		return err
	}
	c := &http.Client{Transport: &http.Transport{DisableCompression: true}}
	median := map[string][]float64{}
	for n := range rounds {
		order := []string{"warm", "static"}
		if n%2 == 1 {
			slices.Reverse(order)
		}
		for _, id := range order {
			var took []float64
			for range requests {
				d, _, err := b.get(ctx, c, id)
				if err != nil {
					return err
				}
				took = append(took, milliseconds(d))
			}
			slices.Sort(took)
			median[id] = append(median[id], report.Quantile(took, 0.5))
		}
	}
	var ratios []float64
	for n := range rounds {
		ratios = append(ratios, median["warm"][n]/median["static"][n])
	}
	b.report.AddRounds("warm request to a function, p50", "ms", median["warm"])
	b.report.AddRounds("same instance as a static backend, p50", "ms", median["static"])
	b.report.AddRounds("warm function against static backend", "ratio", ratios)
	slices.Sort(ratios)
	b.report.Judge("<= 1.05", report.Quantile(ratios, 0.5) <= 1.05)
	return nil
}

// cold compares the first request of a function with no instance with the start of
// the same process by itself, in turns: as a plain process, and kept apart, as
// functions are where nothing else is said.
func (b *bench) cold(ctx context.Context) error {
	rounds := 25
	if b.short {
		rounds = 2
	}
	for _, level := range []struct {
		id, text string
		level    pb.IsolationLevel
	}{
		{"cold", "a plain process", pb.IsolationLevel_ISOLATION_LEVEL_NONE},
		{"apart", "kept apart", pb.IsolationLevel_ISOLATION_LEVEL_BEST},
	} {
		objects := b.function(level.id, &pb.Scale{Max: 1, IdleTimeout: seconds(1)})
		objects[0].GetFunction().Isolation = &pb.Isolation{Level: level.level}
		if err := b.apply(ctx, objects...); err != nil {
			return err
		}
		if err := b.coldOf(ctx, level.id, level.text, rounds); err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) coldOf(ctx context.Context, id, text string, rounds int) error {
	c := &http.Client{Transport: &http.Transport{DisableCompression: true}}
	var starts, answers, whole, beyond, after []float64
	for range rounds {
		if err := b.await(ctx, id, false); err != nil {
			return err
		}
		start, answer, err := b.start(ctx)
		if err != nil {
			return err
		}
		d, isCold, err := b.get(ctx, c, id)
		if err != nil {
			return err
		}
		if !isCold {
			return errors.New("a request to a function without instances was not a cold start")
		}
		starts, whole = append(starts, milliseconds(start)), append(whole, milliseconds(d))
		answers = append(answers, milliseconds(answer))
		beyond, after = append(beyond, milliseconds(d-start)), append(after, milliseconds(d-answer))
		if err := b.await(ctx, id, true); err != nil {
			return err
		}
	}
	b.report.AddRounds("start of the process by itself", "ms", starts)
	b.report.AddRounds("start of the process and its first answer by itself", "ms", answers)
	b.report.AddRounds("cold request, "+text, "ms", whole)
	b.report.AddRounds("cold beyond the start and the first answer, "+text+", p50", "ms", after)
	b.report.AddRounds("cold beyond the start of the process, "+text+", p50", "ms", beyond)
	slices.Sort(beyond)
	b.report.Judge("<= 5 ms", report.Quantile(beyond, 0.5) <= 5)
	return nil
}

// start starts hello and returns how long it took until it said that it listens, and
// until it had answered a first request.
func (b *bench) start(ctx context.Context) (started, answered time.Duration, err error) {
	port, err := ports.Reserve()
	if err != nil {
		return 0, 0, err
	}
	c := exec.CommandContext(ctx, b.hello())
	c.Env = []string{"PORT=" + strconv.Itoa(port)}
	out, err := c.StdoutPipe()
	if err != nil {
		return 0, 0, err
	}
	begin := time.Now()
	if err := c.Start(); err != nil {
		return 0, 0, err
	}
	defer func() { _ = c.Process.Kill(); _ = c.Wait() }()
	if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		return 0, 0, err
	}
	started = time.Since(begin)
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://127.0.0.1:"+strconv.Itoa(port)+"/", nil)
	if err != nil {
		return 0, 0, err
	}
	resp, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(r)
	if err != nil {
		return 0, 0, err
	}
	_, err = io.Copy(io.Discard, resp.Body)
	resp.Body.Close()
	return started, time.Since(begin), err
}

// lost is what the churn tests print.
var lost = regexp.MustCompile(`: (\d+ times to none|\d+ instances killed): (\d+) GET and (\d+) POST, lost (\d+) and (\d+)`)

// churn runs the tests of internal/soak and takes their counts.
func (b *bench) churn(ctx context.Context) error {
	c := exec.CommandContext(ctx, "go", "test", "-count=1", "-timeout", "30m", "-v", "-run", "TestFunctionChurn|TestFunctionsKilled", "./internal/soak")
	c.Env = append(os.Environ(), "PENSTOCK_CHURN=10000")
	out, err := c.CombinedOutput()
	runs := lost.FindAllSubmatch(out, -1)
	if err != nil && len(runs) == 0 {
		return fmt.Errorf("go test ./internal/soak: %w\n%s", err, out)
	}
	for _, m := range runs {
		n := func(i int) float64 { v, _ := strconv.ParseFloat(string(m[i]), 64); return v }
		what := string(m[1])
		b.report.Add(what+": GET", "requests", n(2))
		b.report.AddTarget(what+": GET lost", "requests", n(4), "0", n(4) == 0)
		b.report.Add(what+": POST", "requests", n(3))
		b.report.Add(what+": POST lost", "requests", n(5))
		if strings.HasSuffix(what, "none") {
			b.report.Judge("0", n(5) == 0)
		}
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
	raw, err := os.ReadFile(filepath.Join(b.dir, "data", "run", "state.json"))
	if err != nil {
		return nil, err
	}
	return state.Processes, json.Unmarshal(raw, &state)
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
