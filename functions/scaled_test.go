package functions_test

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// scaledTo has a function scaled.
func scaledTo(s *pb.Scale) func(*pb.Function) {
	return func(f *pb.Function) { f.Instances, f.Scale = 0, s }
}

// activator waits until the activator of a function is known and returns its address.
func (c *control) activator(function string) string {
	c.t.Helper()
	address := ""
	c.await("the activator of "+function, func(s *pb.RunnerState) bool {
		at := slices.IndexFunc(s.GetFunctions(), func(f *pb.FunctionState) bool { return f.GetFunction() == name(function) })
		if at < 0 {
			return false
		}
		f := s.GetFunctions()[at]
		address = whereOf(f.GetActivatorAddress(), f.GetActivatorPort())
		return address != ""
	})
	return address
}

// call sends a request to an activator.
func call(ctx context.Context, address, method, path string, body io.Reader, headers ...string) (answer, error) {
	r, err := http.NewRequestWithContext(ctx, method, "http://activator"+path, body)
	if err != nil {
		return answer{}, err
	}
	for k := 0; k < len(headers); k += 2 {
		r.Header.Add(headers[k], headers[k+1])
	}
	transport := transportTo(address)
	defer transport.CloseIdleConnections()
	resp, err := (&http.Client{Transport: transport, Timeout: patience}).Do(r)
	if err != nil {
		return answer{}, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return answer{resp.StatusCode, resp.Header, string(b)}, err
}

// TestColdRequests: a function with no instance; the first requests start one and
// all get their answers; when nobody calls any more, it goes.
func TestColdRequests(t *testing.T) {
	r := startRunner(t)
	f := self(t, "cold", "echo", scaledTo(&pb.Scale{Max: 1, IdleTimeout: durationpb.New(time.Second)}))
	r.want(f)
	address := r.activator("cold")
	if n := len(instances(r.await("nothing", func(*pb.RunnerState) bool { return true }), "cold")); n != 0 {
		t.Errorf("%d instances before the first request", n)
	}
	body := bytes.Repeat([]byte("0123456789abcdef"), 200<<10/16)
	var calls sync.WaitGroup
	var cold atomic.Int64
	for n := range 50 {
		calls.Go(func() {
			method, send := "GET", io.Reader(nil)
			if n%2 == 0 {
				method, send = "POST", bytes.NewReader(body)
			}
			a, err := call(t.Context(), address, method, "/x", send)
			if a.header.Get("x-cold-start") == "1" {
				cold.Add(1)
			}
			if err != nil || a.status != 200 {
				t.Errorf("%s: %d %q %.100s: %v", method, a.status, a.header.Get("x-cold-start"), a.body, err)
			}
			if method == "POST" && !strings.Contains(a.body, string(body)) {
				t.Errorf("the body came back as %d bytes: %.60q", len(a.body), a.body)
			}
		})
	}
	calls.Wait()
	if cold.Load() == 0 { // those that came a moment later found it ready
		t.Error("no request waited for the start")
	}
	if a, err := call(t.Context(), address, "GET", "/x", nil); err != nil || a.status != 200 || a.header.Get("x-cold-start") != "" {
		t.Errorf("warm: %d, cold %q: %v", a.status, a.header.Get("x-cold-start"), err)
	}
	r.mu.Lock()
	started := len(r.seen)
	r.mu.Unlock()
	if started != 1 {
		t.Errorf("%d processes were started, want 1", started)
	}
	r.await("no instance", func(s *pb.RunnerState) bool { return len(instances(s, "cold")) == 0 })
}

// TestCrashLoop: while instances end again and again, requests are told so at once,
// with the last line; when the function is mended, they are served.
func TestCrashLoop(t *testing.T) {
	r := startRunner(t)
	r.want(self(t, "crash", "quit", scaledTo(&pb.Scale{})))
	address := r.activator("crash")
	var last answer
	for deadline := time.Now().Add(patience); ; {
		a, err := call(t.Context(), address, "GET", "/", nil)
		if err != nil {
			t.Fatal(err)
		}
		if last = a; a.header.Get("x-penstock-error") == "crash-loop" || time.Now().After(deadline) {
			break
		}
	}
	if last.status != 503 || last.header.Get("x-penstock-refused") != "" || !strings.Contains(last.body, name("crash")) ||
		!strings.Contains(last.body, "exit status 7") || !strings.Contains(last.body, "cannot work: no database") {
		t.Errorf("the caller gets %d %v %s", last.status, last.header, last.body)
	}
	// The version that cannot start is replaced while requests ask for it.
	r.want(self(t, "crash", "echo", scaledTo(&pb.Scale{})))
	for deadline := time.Now().Add(patience); last.status != 200; {
		var err error
		if last, err = call(t.Context(), address, "GET", "/", nil); err != nil || time.Now().After(deadline) {
			t.Fatalf("%d %s: %v", last.status, last.body, err)
		}
	}
	r.want(clone(self(t, "crash", "echo", scaledTo(&pb.Scale{})), func(f *pb.Function) { f.Source = "missing" }))
	r.await("the problem", func(s *pb.RunnerState) bool { return s.GetProblems()[name("crash")] != "" })
	if a, err := call(t.Context(), address, "GET", "/", nil); err != nil || a.status != 200 {
		t.Errorf("while a new version cannot be prepared: %d %s: %v", a.status, a.body, err)
	}
}

// TestDeaf: while no proxy acknowledges that an instance leaves, it stays and
// serves.
func TestDeaf(t *testing.T) {
	r := startRunner(t)
	f := self(t, "deaf", "echo", scaledTo(&pb.Scale{Min: 2, Max: 2}))
	r.want(f)
	r.ready("deaf", 2)
	r.update(func() { r.deaf = true })
	r.want(clone(f, scaledTo(&pb.Scale{Min: 1, Max: 1})))
	var leaving *pb.Instance
	r.await("an instance to leave", func(s *pb.RunnerState) bool {
		for _, i := range instances(s, "deaf") {
			if i.GetState() == pb.InstanceState_INSTANCE_STATE_DRAINING {
				leaving = i
			}
		}
		return leaving != nil
	})
	for range 5 {
		if a := mustSend(t, leaving, "POST", "/", "still there"); a.status != 200 || a.header.Get("Connection") == "close" {
			t.Errorf("an instance that proxies know of: %d %v", a.status, a.header)
		}
	}
	r.update(func() { r.deaf = false })
	r.ready("deaf", 1)
}

// TestStatsAndLines: what a function did and printed comes to the control plane.
func TestStatsAndLines(t *testing.T) {
	r := startRunner(t)
	r.want(python("stats", "app.echo", scaledTo(&pb.Scale{Max: 1})))
	address := r.activator("stats")
	const traceID, requestID = "0af7651916cd43dd8448eb211c80319c", "5f0c0e4e-7f0b-4c39-9d6a-1d2f3a4b5c6d"
	ask := func(path string) {
		t.Helper()
		a, err := call(t.Context(), address, "GET", path, nil, "x-request-id", requestID, "traceparent", "00-"+traceID+"-b7ad6b7169203331-01")
		if err != nil || a.status != 200 {
			t.Fatalf("%d %s: %v", a.status, a.body, err)
		}
	}
	ask("/first")
	r.update(func() { r.listening = []string{name("stats")} })
	ask("/second")
	var lines []*pb.LogLine
	r.await("the lines", func(*pb.RunnerState) bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		lines = slices.Clone(r.lines)
		return slices.ContainsFunc(lines, func(l *pb.LogLine) bool { return l.GetText() == "echo /second" })
	})
	at := slices.IndexFunc(lines, func(l *pb.LogLine) bool { return l.GetText() == "echo /first" })
	if at < 0 || lines[at].GetRequestId() != requestID || lines[at].GetTraceId() != traceID || lines[at].GetStream() != "stdout" || lines[at].GetInstance() == "" {
		t.Errorf("lines %v", lines)
	}
	var st *pb.FunctionStats
	r.await("statistics", func(*pb.RunnerState) bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		if len(r.stats.GetFunctions()) == 1 {
			st = r.stats.GetFunctions()[0]
		}
		return st.GetRequests() == 2 && st.GetMemoryMibSeconds() > 0
	})
	if st.GetFunction() != name("stats") || st.GetColdStarts() != 1 || st.GetErrors() != 0 || st.GetMeanT() <= 0 || st.GetMeanR() <= 0 ||
		st.GetMeanStart() <= 0 || st.GetInstanceSeconds() <= 0 || st.GetCpuSeconds() <= 0 {
		t.Errorf("statistics %v", st)
	}
}
