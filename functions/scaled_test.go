package functions_test

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
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
		address = net.JoinHostPort(f.GetActivatorAddress(), strconv.Itoa(int(f.GetActivatorPort())))
		return f.GetActivatorPort() != 0
	})
	return address
}

// call sends a request to an activator.
func call(ctx context.Context, address, method, path string, body io.Reader, headers ...string) (answer, error) {
	r, err := http.NewRequestWithContext(ctx, method, "http://"+address+path, body)
	if err != nil {
		return answer{}, err
	}
	for k := 0; k < len(headers); k += 2 {
		r.Header.Add(headers[k], headers[k+1])
	}
	transport := &http.Transport{}
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
	for n := range 50 {
		calls.Go(func() {
			method, send := "GET", io.Reader(nil)
			if n%2 == 0 {
				method, send = "POST", bytes.NewReader(body)
			}
			a, err := call(t.Context(), address, method, "/x", send)
			if err != nil || a.status != 200 || a.header.Get("x-cold-start") != "1" {
				t.Errorf("%s: %d %q %.100s: %v", method, a.status, a.header.Get("x-cold-start"), a.body, err)
			}
			if method == "POST" && !strings.Contains(a.body, string(body)) {
				t.Errorf("the body came back as %d bytes: %.60q", len(a.body), a.body)
			}
		})
	}
	calls.Wait()
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
