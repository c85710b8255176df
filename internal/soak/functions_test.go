package soak

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/penstock-gateway/penstock/functions"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
	"github.com/penstock-gateway/penstock/internal/envoytest"
	"github.com/penstock-gateway/penstock/internal/launch"
	"github.com/penstock-gateway/penstock/internal/pki"
	"github.com/penstock-gateway/penstock/scale"
)

// TestMain lets the test binary be a function's server, and a runner.
func TestMain(m *testing.M) {
	// On PATH, so that functions may run it: it lies where only its user may look.
	if binary, err := os.Executable(); err == nil {
		os.Setenv("PATH", os.Getenv("PATH")+string(os.PathListSeparator)+filepath.Dir(binary))
	}
	switch os.Getenv("SOAK_AS") {
	case "victim":
		serveVictim()
		return
	case "function":
		serveFunction()
		return
	case "runner":
		if err := runAsRunner(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	code := m.Run()
	if left := launch.WaitGone(launch.Descendants(os.Getpid()), patience); len(left) > 0 {
		fmt.Println("processes are left:", left)
		code = 1
	}
	os.Exit(code)
}

// serveFunction answers each request with its nonce and the length of its body, and
// ends in an orderly way when it is asked to.
func serveFunction() {
	l, err := net.Listen("tcp", "127.0.0.1:"+os.Getenv("PORT"))
	if err != nil {
		panic(err)
	}
	panic(http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n, err := io.Copy(io.Discard, r.Body)
		if err != nil {
			panic(http.ErrAbortHandler)
		}
		fmt.Fprintf(w, "%s %d", r.Header.Get("X-Nonce"), n)
	})))
}

// runner is a runner, in this process or in one of its own.
type runner struct {
	plane *plane
	root  string
	stop  func()
	// wanted is how many instances there are to be, where the test decides; it does
	// while forced.
	wanted atomic.Int64
	forced atomic.Bool
}

// dialRunner opens the connection of a runner named as its certificate.
func dialRunner(cert, key, ca, address string) (*grpc.ClientConn, error) {
	config, err := pki.ClientTLS(cert, key, ca, "")
	if err != nil {
		return nil, err
	}
	return grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(credentials.NewTLS(config)))
}

// startRunner runs a runner in this process, which has the test's scaler.
func startRunner(t *testing.T, p *plane) *runner {
	t.Helper()
	r := &runner{plane: p, root: t.TempDir()}
	if err := os.Mkdir(filepath.Join(r.root, "f"), 0o700); err != nil {
		t.Fatal(err)
	}
	cert, key := p.issue(t, "runner", "spiffe://"+pki.TrustDomain+"/runner/a")
	conn, err := dialRunner(cert, key, p.file("ca.crt"), p.xds)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() {
		ended <- functions.Run(ctx, functions.Config{
			Name: "a", Root: r.root, CacheDir: filepath.Join(r.root, "cache"), SocketDir: filepath.Join(r.root, "sockets"), Conn: conn, Logger: slog.New(slog.DiscardHandler),
			NewScaler: func(c scale.Config) functions.Scaler { return &forced{runner: r, scaler: scale.New(c)} },
		})
	}()
	r.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("the runner: %v", err)
		}
		conn.Close()
	})
	t.Cleanup(r.stop)
	return r
}

// forced is a scaler that does as the test says, while it says something.
type forced struct {
	runner *runner
	scaler *scale.Scaler
}

func (f *forced) Decide(o scale.Observation) scale.Decision {
	d := f.scaler.Decide(o)
	if f.runner.forced.Load() {
		d.Wanted, d.Reason = int(f.runner.wanted.Load()), scale.ReasonFixed
	}
	return d
}

// function is a scaled function and a route to it.
func (p *plane) function(t *testing.T, id, scale, more string) string {
	t.Helper()
	binary, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	port := envoytest.FreePort(t)
	waitFor(t, "the runner to connect", func() bool {
		s, err := p.core.Status(t.Context())
		return err == nil && len(s.GetRunners()) == 1
	})
	p.apply(t, fmt.Sprintf(`kind: Function
name: %[1]s
source: f
env: {SOAK_AS: function}
server: {command: [%[2]q]}
scale: %[3]s
%[4]s
---
kind: Gateway
name: %[1]s
listeners: [{name: http, address: 127.0.0.1, port: %[5]d}]
---
kind: Route
name: %[1]s
gateways: [%[1]s]
hostnames: ["*"]
rules: [{matches: [{path: {prefix: /}}], forward: {backends: [{backend: projects/default/functions/%[1]s}]}}]
`, id, binary, scale, more, port))
	return net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
}

// instances are those of a function, by the control plane.
func (p *plane) instances(t *testing.T, id string) []*pb.Instance {
	return slices.DeleteFunc(p.core.Instances("projects/default/functions/"+id), func(i *pb.Instance) bool {
		return i.GetState() != pb.InstanceState_INSTANCE_STATE_READY
	})
}

// tally is what became of requests.
type tally struct {
	small                                  bool // bodies that a proxy keeps for another try
	gets, posts, lostGets, lostPosts, cold atomic.Int64

	mu     sync.Mutex
	losses []string
}

// largest is the size of the largest body: one that Envoy can send again, or not.
func (l *tally) largest() int {
	if l.small {
		return 20_000
	}
	return 40_000
}

func (l *tally) lost(method, what string) {
	if method == http.MethodGet {
		l.lostGets.Add(1)
	} else {
		l.lostPosts.Add(1)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.losses) < 10 {
		l.losses = append(l.losses, time.Now().Format("05.000 ")+method+" "+what)
	}
}

// callers call an address, each with pauses, until ctx ends.
func callers(ctx context.Context, n int, address string, pause time.Duration, l *tally) (wait func()) {
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			tr := &http.Transport{DisableCompression: true, MaxIdleConnsPerHost: 1}
			defer tr.CloseIdleConnections()
			c := &http.Client{Transport: tr, Timeout: patience}
			for k := 0; ctx.Err() == nil; k++ {
				one(c, address, fmt.Sprintf("%d-%d", i, k), k%2 == 1, l)
				select {
				case <-ctx.Done():
				case <-time.After(pause/2 + rand.N(pause+1)):
				}
			}
		})
	}
	return wg.Wait
}

// one sends a request and checks its answer.
func one(c *http.Client, address, nonce string, post bool, l *tally) {
	method, size := http.MethodGet, 0
	var body io.Reader
	if post {
		method, size = http.MethodPost, 1+rand.IntN(l.largest())
		body = strings.NewReader(strings.Repeat("x", size))
		l.posts.Add(1)
	} else {
		l.gets.Add(1)
	}
	// Its own end, not that of the test, so that nothing is cut.
	r, err := http.NewRequest(method, "http://"+address+"/", body)
	if err != nil {
		panic(err)
	}
	r.Header.Set("X-Nonce", nonce)
	resp, err := c.Do(r)
	if err != nil {
		l.lost(method, err.Error())
		return
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if want := fmt.Sprintf("%s %d", nonce, size); err != nil || resp.StatusCode != 200 || string(b) != want {
		l.lost(method, fmt.Sprintf("%d %s %.200q (%v), want %q", resp.StatusCode, resp.Header.Get("X-Penstock-Error"), b, err, want))
		return
	}
	if resp.Header.Get("X-Cold-Start") == "1" {
		l.cold.Add(1)
	}
}

func (l *tally) report(t *testing.T, what string) {
	t.Helper()
	t.Logf("%s: %d GET and %d POST, lost %d and %d; %d cold", what, l.gets.Load(), l.posts.Load(), l.lostGets.Load(), l.lostPosts.Load(), l.cold.Load())
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, s := range l.losses {
		t.Log(s)
	}
}

// nothingLost fails the test when a request was.
func (l *tally) nothingLost(t *testing.T, what string) {
	t.Helper()
	l.report(t, what)
	if l.lostGets.Load()+l.lostPosts.Load() > 0 {
		t.Errorf("%s: requests were lost", what)
	}
}

// churnSize is how many requests of each kind a churn takes.
func churnSize() int64 {
	if s := os.Getenv("PENSTOCK_CHURN"); s != "" {
		if n, err := strconv.ParseInt(s, 10, 64); err == nil {
			return n
		}
	}
	if os.Getenv("PENSTOCK_SOAK") == "1" {
		return 100_000
	}
	return 1000
}

// step has the runner go to a number of instances and waits for a moment.
func (r *runner) step(n int64, d time.Duration) {
	r.wanted.Store(n)
	time.Sleep(d)
}

// TestFunctionChurn: a function under load goes to none and back, again and again.
// In the middle the control plane ends and comes back.
func TestFunctionChurn(t *testing.T) {
	for _, test := range []struct{ name, queue string }{{"direct", "DIRECT"}, {"central", "CENTRAL"}} {
		t.Run(test.name, func(t *testing.T) {
			p := newPlane(t)
			r := startRunner(t, p)
			r.forced.Store(true)
			address := p.function(t, "churn", "{max: 8, queue: "+test.queue+"}", "concurrency: 4")
			var l tally
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			wait := callers(ctx, 16, address, 30*time.Millisecond, &l)
			want := churnSize()
			if test.name == "central" {
				want /= 2
			}
			zero := 0
			for n := 0; min(l.gets.Load(), l.posts.Load()) < want; n++ {
				for _, count := range []int64{1, 2, 4, 0} {
					r.step(count, 300*time.Millisecond)
				}
				zero++
				if n == 2 && test.name == "direct" {
					r.step(2, 300*time.Millisecond)
					p.down(t)
					r.step(0, 300*time.Millisecond)
					r.step(3, 300*time.Millisecond)
					p.up(t)
				}
			}
			cancel()
			r.step(1, 0) // for those that wait
			wait()
			l.nothingLost(t, fmt.Sprintf("%d times to none", zero))
			r.step(0, 0)
			waitFor(t, "the last instance to go", func() bool { return len(p.core.Instances("")) == 0 })
		})
	}
}

// TestFunctionsKilled: instances are killed while proxies know of them. What had not
// reached one, and all that may be sent twice, is answered by another one.
func TestFunctionsKilled(t *testing.T) {
	p := newPlane(t)
	startRunner(t, p)
	address := p.function(t, "kill", "{min: 3, max: 6}", "concurrency: 4")
	waitFor(t, "the instances", func() bool { return len(p.instances(t, "kill")) >= 3 })
	l := tally{small: true}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	wait := callers(ctx, 8, address, 20*time.Millisecond, &l)
	killed := map[int32]bool{}
	for rounds := max(12, int(churnSize()/500)); len(killed) < rounds; {
		// One serves on: all of them ending in a row would be a crash loop, which is
		// answered as such.
		var list []*pb.Instance
		waitFor(t, "two instances", func() bool {
			list = slices.DeleteFunc(p.instances(t, "kill"), func(i *pb.Instance) bool { return killed[i.GetPid()] })
			return len(list) >= 2
		})
		if pid := list[rand.IntN(len(list))].GetPid(); pid != 0 && !killed[pid] {
			killed[pid] = true
			_ = syscall.Kill(int(pid), syscall.SIGKILL)
		}
		seen := l.gets.Load()
		waitFor(t, "some requests", func() bool { return l.gets.Load() > seen+20 })
	}
	cancel()
	wait()
	l.report(t, fmt.Sprintf("%d instances killed", len(killed)))
	if l.lostGets.Load() > 0 {
		t.Error("requests that may be sent twice were lost")
	}
	// Those that reached the process and may not be sent twice get 502 (died).
	for _, loss := range l.losses {
		if !strings.Contains(loss, "502 died") {
			t.Errorf("lost in another way: %s", loss)
		}
	}
}

// TestRunnerKilled: while there is no runner its functions answer 503; when it is
// back, with other ports for everything, they answer as before.
func TestRunnerKilled(t *testing.T) {
	p := newPlane(t)
	cert, key := p.issue(t, "runner", "spiffe://"+pki.TrustDomain+"/runner/a")
	root := t.TempDir()
	if err := os.Mkdir(filepath.Join(root, "f"), 0o700); err != nil {
		t.Fatal(err)
	}
	binary, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	start := func() *exec.Cmd {
		c := exec.Command(binary)
		c.Env = append(os.Environ(), "SOAK_AS=runner", "SOAK_CERT="+cert, "SOAK_KEY="+key, "SOAK_CA="+p.file("ca.crt"), "SOAK_XDS="+p.xds, "SOAK_ROOT="+root)
		c.Stderr = os.Stderr
		if err := launch.Start(c); err != nil {
			t.Fatal(err)
		}
		return c
	}
	kill := func(c *exec.Cmd) {
		_ = c.Process.Kill()
		_ = c.Wait()
	}
	running := start()
	defer func() { kill(running) }()
	address := p.function(t, "alone", "{max: 2}", "")
	c := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: patience}
	get := func() int {
		resp, err := c.Get("http://" + address + "/")
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		_, _ = io.Copy(io.Discard, resp.Body)
		return resp.StatusCode
	}
	if got := get(); got != 200 {
		t.Fatalf("cold: %d", got)
	}
	kill(running)
	if got := get(); got != 503 {
		t.Errorf("without a runner: %d, want 503", got)
	}
	running = start()
	waitFor(t, "the function to answer again", func() bool { return get() == 200 })
	if err := running.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := running.Wait(); err != nil {
		t.Errorf("the runner ends with %v", err)
	}
}

// runAsRunner is a runner until SIGTERM.
func runAsRunner() error {
	conn, err := dialRunner(os.Getenv("SOAK_CERT"), os.Getenv("SOAK_KEY"), os.Getenv("SOAK_CA"), os.Getenv("SOAK_XDS"))
	if err != nil {
		return err
	}
	defer conn.Close()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	root := os.Getenv("SOAK_ROOT")
	return functions.Run(ctx, functions.Config{Name: "a", Root: root, CacheDir: filepath.Join(root, "cache"), Conn: conn})
}
