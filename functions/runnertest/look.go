package runnertest

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"time"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

const (
	ready    = pb.InstanceState_INSTANCE_STATE_READY
	draining = pb.InstanceState_INSTANCE_STATE_DRAINING
)

// of are the instances of a function, of some states or of all.
func of(s *pb.RunnerState, id string, states ...pb.InstanceState) []*pb.Instance {
	var out []*pb.Instance
	for _, i := range s.GetInstances() {
		if i.GetFunction() == full(id) && (len(states) == 0 || slices.Contains(states, i.GetState())) {
			out = append(out, i)
		}
	}
	return out
}

func ids(instances []*pb.Instance) []string {
	out := make([]string, len(instances))
	for n, i := range instances {
		out[n] = i.GetId()
	}
	slices.Sort(out)
	return out
}

// stateOf is what is said of a function as a whole; nil: nothing.
func stateOf(s *pb.RunnerState, id string) *pb.FunctionState {
	for _, f := range s.GetFunctions() {
		if f.GetFunction() == full(id) {
			return f
		}
	}
	return nil
}

// alone waits until a function has n instances that are ready, and no others, none
// of which is one of those before.
func (p *plane) alone(id string, n int, before ...*pb.Instance) []*pb.Instance {
	p.t.Helper()
	var out []*pb.Instance
	p.await(fmt.Sprintf("%d ready instances of %s, and no others", n, id), func() bool {
		out = of(p.state(), id, ready)
		return len(out) == n && len(of(p.state(), id)) == n && !overlap(ids(out), ids(before))
	})
	return out
}

func overlap(a, b []string) bool {
	return slices.ContainsFunc(a, func(s string) bool { return slices.Contains(b, s) })
}

// ofRevision waits until the function is told to be that of a revision.
func (p *plane) ofRevision(id string, revision int64) {
	p.t.Helper()
	p.await(fmt.Sprintf("%s of revision %d", id, revision), func() bool {
		return stateOf(p.state(), id).GetRevision() == revision
	})
}

// problem waits for a problem of a function.
func (p *plane) problem(id string) string {
	p.t.Helper()
	text := ""
	p.await("a problem of "+id, func() bool {
		text = p.state().GetProblems()[full(id)]
		return text != ""
	})
	return text
}

// activator waits for the address of a function's activator.
func (p *plane) activator(id string) string {
	p.t.Helper()
	address := ""
	p.await("the activator of "+id, func() bool {
		f := stateOf(p.state(), id)
		address = whereOf(f.GetActivatorAddress(), f.GetActivatorPort())
		return address != ""
	})
	return address
}

func addressOf(i *pb.Instance) string { return whereOf(i.GetAddress(), i.GetPort()) }

// whereOf is an address as it is reported, in one text: host:port, or the path of a
// Unix socket.
func whereOf(host string, port uint32) string {
	if port == 0 {
		return host
	}
	return net.JoinHostPort(host, strconv.FormatUint(uint64(port), 10))
}

// dialTo connects to such an address.
func dialTo(ctx context.Context, where string) (net.Conn, error) {
	var d net.Dialer
	if filepath.IsAbs(where) {
		return d.DialContext(ctx, "unix", where)
	}
	return d.DialContext(ctx, "tcp", where)
}

// transportTo is for one client, so that no connection keeps an instance alive.
func transportTo(where string) *http.Transport {
	return &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return dialTo(ctx, where) }}
}

type answer struct {
	status int
	header http.Header
	body   string
}

// send sends one request on a connection of its own, so that none keeps an instance.
func send(ctx context.Context, address, path string) (answer, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://instance"+path, nil)
	if err != nil {
		return answer{}, err
	}
	transport := transportTo(address)
	defer transport.CloseIdleConnections()
	resp, err := transport.RoundTrip(r)
	if err != nil {
		return answer{}, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return answer{resp.StatusCode, resp.Header, string(b)}, err
}

// expect sends a request that is to be answered with a status and, where that is
// 200, with a text.
func expect(t *testing.T, address, path string, status int, text string) answer {
	t.Helper()
	a, err := send(t.Context(), address, path)
	if err != nil || a.status != status || status == http.StatusOK && a.body != text {
		t.Errorf("%s answers %d %q (%v), want %d %q", path, a.status, a.body, err, status, text)
	}
	return a
}

// gone waits until requests to an instance fail or are refused: its address may be
// one that nobody has any more.
func gone(t *testing.T, i *pb.Instance) {
	t.Helper()
	again := time.NewTicker(10 * time.Millisecond)
	defer again.Stop()
	for deadline := time.Now().Add(patience); ; <-again.C {
		ctx, cancel := context.WithTimeout(t.Context(), goneAfter)
		a, err := send(ctx, addressOf(i), "/")
		cancel()
		if err != nil || a.header.Get("x-penstock-refused") != "" {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("instance %s still answers: %d %q", i.GetId(), a.status, a.body)
		}
	}
}

// goneAfter is how long an address may be silent until nobody is taken to have it.
const goneAfter = 5 * time.Second
