package instance

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"github.com/penstock-gateway/penstock/internal/launch"
)

const patience = time.Minute

// probe is a contract whose process only sleeps; what requests do is up to the
// test. It is what the shim is tested with; the contracts have tests of their own.
type probe struct {
	command []string
	cancels bool
	ready   func(context.Context) error
	serve   func(http.ResponseWriter, *http.Request, *Invocation) error
	exited  chan struct{}
}

func newProbe(serve func(http.ResponseWriter, *http.Request, *Invocation) error) *probe {
	return &probe{command: []string{"sleep", "600"}, serve: serve, exited: make(chan struct{}), cancels: true}
}

func (p *probe) Command() Command { return Command{Args: p.command} }
func (p *probe) WaitReady(ctx context.Context) error {
	if p.ready != nil {
		return p.ready(ctx)
	}
	return nil
}

func (p *probe) Serve(w http.ResponseWriter, r *http.Request, i *Invocation) error {
	i.Begin()
	defer i.End()
	return p.serve(w, r, i)
}
func (p *probe) Cancels() bool { return p.cancels }
func (p *probe) Exited()       { close(p.exited) }
func (p *probe) Close()        {}

func start(t *testing.T, p *probe, change ...func(*Options)) *Instance {
	t.Helper()
	o := Options{Function: "projects/p/functions/f", ID: "f-" + strings.ToLower(t.Name()), Dir: t.TempDir(),
		Contract: func(Host) (Contract, error) { return p, nil }}
	for _, c := range change {
		c(&o)
	}
	i, err := Start(o)
	if err != nil {
		t.Fatal(err)
	}
	id, err := launch.Identify(i.PID())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		i.Drain(DrainOptions{Limit: time.Second, CutIdle: true})
		i.Cut()
		await(t, "its end", i.Closed())
		if id.Alive() {
			t.Error("the process is left")
		}
	})
	return i
}

func await(t *testing.T, what string, c <-chan struct{}) {
	t.Helper()
	select {
	case <-c:
	case <-time.After(patience):
		t.Fatalf("%s: not within %s", what, patience)
	}
}

// dial opens a connection that stays open between requests.
func dial(t *testing.T, i *Instance) (ask func(path string) *http.Response, c net.Conn) {
	t.Helper()
	c, err := net.Dial("tcp", i.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(patience))
	in := bufio.NewReader(c)
	return func(path string) *http.Response {
		t.Helper()
		fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: x\r\n\r\n", path)
		resp, err := http.ReadResponse(in, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		return resp
	}, c
}

func ok(w http.ResponseWriter, _ *http.Request, _ *Invocation) error {
	_, err := w.Write(nil)
	return err
}

// TestDrain: a drained instance serves on, asks for its connections to be closed,
// and ends when the last one is.
func TestDrain(t *testing.T) {
	i := start(t, newProbe(ok))
	await(t, "ready", i.Ready())
	ask, c := dial(t, i)
	if resp := ask("/"); resp.StatusCode != 200 || resp.Close {
		t.Fatalf("%d, close %v", resp.StatusCode, resp.Close)
	}
	i.Drain(DrainOptions{Limit: patience})
	other, _ := dial(t, i) // a proxy that has not heard of it
	if resp := other("/"); resp.StatusCode != 200 || !resp.Close {
		t.Errorf("while draining: %d, close %v", resp.StatusCode, resp.Close)
	}
	select {
	case <-i.Dead():
		t.Fatal("it ended while a connection was open")
	default:
	}
	c.Close()
	await(t, "the end", i.Closed())
	if err := i.Err(); err != nil {
		t.Errorf("it was asked to end, but: %v", err)
	}
}

// TestDrainLimit: a connection that is never closed does not hold it for ever.
func TestDrainLimit(t *testing.T) {
	i := start(t, newProbe(ok))
	await(t, "ready", i.Ready())
	ask, _ := dial(t, i)
	ask("/")
	i.Drain(DrainOptions{Limit: 50 * time.Millisecond})
	await(t, "the end", i.Closed())
}

// TestDeathRefuses: after its process died, the shim refuses on old and new
// connections instead of closing them.
func TestDeathRefuses(t *testing.T) {
	p := newProbe(ok)
	p.command = []string{"sh", "-c", "echo last words; exec sleep 600"}
	i := start(t, p)
	await(t, "ready", i.Ready())
	ask, _ := dial(t, i)
	ask("/")
	i.kill(errors.New("killed by the test"))
	await(t, "its death", i.Dead())
	for _, ask := range []func(string) *http.Response{ask, func(path string) *http.Response { a, _ := dial(t, i); return a(path) }} {
		resp := ask("/")
		if resp.StatusCode != 503 || resp.Header.Get(HeaderRefused) != string(RefusedDead) || !resp.Close {
			t.Errorf("%d %v", resp.StatusCode, resp.Header)
		}
	}
	if i.Err() == nil || i.Err().Error() != "killed by the test" {
		t.Errorf("reason %v", i.Err())
	}
	if i.LastLines() != "last words" && i.LastLines() != "" { // it may be killed before it has said them
		t.Errorf("last lines %q", i.LastLines())
	}
}

// TestKilledUnder: an idempotent request whose process somebody kills is for another
// instance. One that cannot be sent twice is not, nor one whose process ends by itself.
func TestKilledUnder(t *testing.T) {
	for _, c := range []struct {
		method string
		signal syscall.Signal
		again  string
	}{
		{"GET", syscall.SIGKILL, "killed"}, {"PUT", syscall.SIGKILL, "killed"}, {"DELETE", syscall.SIGKILL, "killed"},
		{"POST", syscall.SIGKILL, ""}, {"PATCH", syscall.SIGKILL, ""}, {"GET", syscall.SIGSEGV, ""}, {"GET", syscall.SIGTERM, ""},
	} {
		t.Run(c.method+" "+c.signal.String(), func(t *testing.T) {
			p := newProbe(nil)
			var i *Instance
			p.serve = func(http.ResponseWriter, *http.Request, *Invocation) error {
				if err := syscall.Kill(i.PID(), c.signal); err != nil {
					t.Error(err)
				}
				<-p.exited
				return ErrDied
			}
			i = start(t, p, func(o *Options) { o.ID = "f-killed" })
			await(t, "ready", i.Ready())
			req, err := http.NewRequestWithContext(t.Context(), c.method, "http://"+i.Addr().String(), nil)
			if err != nil {
				t.Fatal(err)
			}
			res, err := http.DefaultClient.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			defer res.Body.Close()
			if res.StatusCode != 502 || res.Header.Get(HeaderError) != KindDied || res.Header.Get(HeaderRefused) != c.again {
				t.Errorf("got %d %v, want 502, %s: %q", res.StatusCode, res.Header, HeaderRefused, c.again)
			}
		})
	}
}

// TestDeadline: 504, and the instance is replaced: by killing it when the contract
// cannot cancel.
func TestDeadline(t *testing.T) {
	for _, cancels := range []bool{true, false} {
		t.Run(fmt.Sprintf("cancels %v", cancels), func(t *testing.T) {
			p := newProbe(func(_ http.ResponseWriter, r *http.Request, _ *Invocation) error {
				<-r.Context().Done()
				return context.Cause(r.Context())
			})
			p.cancels = cancels
			i := start(t, p, func(o *Options) { o.ID, o.Timeout = fmt.Sprintf("f-%v", cancels), 20*time.Millisecond })
			await(t, "ready", i.Ready())
			ask, _ := dial(t, i)
			if resp := ask("/"); resp.StatusCode != 504 || resp.Header.Get(HeaderError) != KindDeadline {
				t.Errorf("%d %v", resp.StatusCode, resp.Header)
			}
			if cancels {
				await(t, "the wish to be replaced", i.Replace())
			} else {
				await(t, "its death", i.Dead())
			}
		})
	}
}

// TestConcurrency: never more at once than allowed; the queue waits for its time
// and no longer, and lets the caller go.
func TestConcurrency(t *testing.T) {
	entered, release := make(chan string), make(chan struct{})
	i := start(t, newProbe(func(w http.ResponseWriter, r *http.Request, v *Invocation) error {
		entered <- r.URL.Path
		<-release
		return ok(w, r, v)
	}), func(o *Options) { o.Concurrency, o.Queue, o.QueueTimeout = 2, 1, 20*time.Millisecond })
	await(t, "ready", i.Ready())
	done := make(chan int, 2)
	for range 2 {
		go func() { ask, _ := dial(t, i); done <- ask("/slot").StatusCode }()
		if path := <-entered; path != "/slot" {
			t.Fatal(path)
		}
	}
	ask, _ := dial(t, i)
	if resp := ask("/queued"); resp.StatusCode != 503 || resp.Header.Get(HeaderRefused) != string(RefusedQueueTimeout) || resp.Close {
		t.Errorf("%d %v", resp.StatusCode, resp.Header)
	}
	close(release)
	for range 2 {
		if s := <-done; s != 200 {
			t.Errorf("a request in a slot: %d", s)
		}
	}
	go func() { <-entered }()
	if resp := ask("/later"); resp.StatusCode != 200 {
		t.Errorf("afterwards: %d", resp.StatusCode)
	}
}

// TestBroken: an answer that breaks off is cut, not ended.
func TestBroken(t *testing.T) {
	i := start(t, newProbe(func(w http.ResponseWriter, _ *http.Request, _ *Invocation) error {
		fmt.Fprint(w, "half")
		_ = http.NewResponseController(w).Flush()
		return ErrDied
	}))
	await(t, "ready", i.Ready())
	resp, err := http.Get("http://" + i.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if n, err := resp.Body.Read(make([]byte, 10)); n != 4 {
		t.Fatalf("%d, %v", n, err)
	}
	if _, err := resp.Body.Read(make([]byte, 10)); err == nil || err.Error() == "EOF" {
		t.Errorf("it ends with %v", err)
	}
}

// TestStartTimeout: a process that does not become ready is killed.
func TestStartTimeout(t *testing.T) {
	p := newProbe(ok)
	p.ready = func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
	i := start(t, p, func(o *Options) { o.StartTimeout = 20 * time.Millisecond })
	await(t, "the end", i.Closed())
	if err := i.Err(); err == nil || !strings.Contains(err.Error(), "start timeout of 20ms") {
		t.Errorf("%v", err)
	}
	select {
	case <-i.Ready():
		t.Error("it is ready")
	default:
	}
}

// TestIgnoresTerm: a process that ignores SIGTERM is killed after its grace.
func TestIgnoresTerm(t *testing.T) {
	p := newProbe(ok)
	p.command = []string{"sh", "-c", "trap '' TERM; echo ready; while :; do sleep 600; done"}
	i := start(t, p, func(o *Options) { o.StopGrace = 20 * time.Millisecond })
	await(t, "ready", i.Ready())
	i.Drain(DrainOptions{Limit: patience})
	await(t, "the end", i.Closed())
}

// TestMetrics: T = t + r, and results by name.
func TestMetrics(t *testing.T) {
	registry := prometheus.NewRegistry()
	m := NewMetrics(registry)
	i := start(t, newProbe(func(w http.ResponseWriter, r *http.Request, v *Invocation) error {
		if r.URL.Path == "/fails" {
			return &Failed{Status: 502, Kind: KindHandlerError, Detail: "x"}
		}
		return ok(w, r, v)
	}), func(o *Options) { o.Metrics = m })
	await(t, "ready", i.Ready())
	ask, _ := dial(t, i)
	ask("/")
	ask("/fails")
	i.Drain(DrainOptions{Limit: time.Second, CutIdle: true})
	await(t, "the end", i.Closed()) // metrics of a request are written after its answer
	got := gather(t, registry)
	for name, want := range map[string]float64{
		MetricRequests + "/ok": 1, MetricRequests + "/handler-error": 1, MetricExecution: 2, MetricResponse: 2, MetricStart: 1,
	} {
		if got[name] != want {
			t.Errorf("%s is %v, want %v", name, got[name], want)
		}
	}
	m.Forget("projects/p/functions/f")
	if left := gather(t, registry); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

// gather returns counters by name and result, and the counts of histograms.
func gather(t *testing.T, g prometheus.Gatherer) map[string]float64 {
	t.Helper()
	families, err := g.Gather()
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			name := f.GetName()
			for _, l := range m.GetLabel() {
				if l.GetName() == "result" {
					name += "/" + l.GetValue()
				}
			}
			if f.GetType() == dto.MetricType_HISTOGRAM {
				out[name] = float64(m.GetHistogram().GetSampleCount())
			} else {
				out[name] = m.GetCounter().GetValue()
			}
		}
	}
	return out
}

func TestRequestID(t *testing.T) {
	for id, kept := range map[string]bool{
		"5f0c0e4e-7f0b-4c39-9d6a-1d2f3a4b5c6d": true, "a_B-9": true, strings.Repeat("a", 128): true,
		"": false, strings.Repeat("a", 129): false, "a/b": false, "a b": false, "a\nb": false, "../x": false, "ä": false,
	} {
		r := &http.Request{Header: http.Header{"X-Request-Id": {id}}}
		got := requestID(r)
		if kept != (got == id) {
			t.Errorf("%q became %q", id, got)
		}
		if !kept && len(got) != 36 {
			t.Errorf("%q became %q, which is not a UUID", id, got)
		}
	}
}
