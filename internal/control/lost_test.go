package control

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// helloRunner opens the stream of runner a, which promises signs of life.
func helloRunner(t *testing.T, p *plane, dir string, every time.Duration) (pb.RunnerService_ConnectClient, context.CancelFunc) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	s, err := pb.NewRunnerServiceClient(p.dialAs(t, filepath.Join(dir, "pki"), runnerIdentity+"a")).Connect(ctx)
	if err != nil {
		t.Fatal(err)
	}
	hello := &pb.RunnerHello{Runner: "a"}
	if every > 0 {
		hello.SignOfLife = durationpb.New(every)
	}
	if err := s.Send(&pb.ConnectRequest{Message: &pb.ConnectRequest_Hello{Hello: hello}}); err != nil {
		t.Fatal(err)
	}
	return s, cancel
}

// served puts a function and a route to it, whose one instance listens on l.
func (p *plane) served(t *testing.T, s pb.RunnerService_ConnectClient, l net.Listener) {
	t.Helper()
	p.mustPut(t, function("1"), routeTo("x", ""),
		&pb.Gateway{Name: "projects/default/gateways/g", Listeners: []*pb.Listener{{Name: "http", Port: 8080, Protocol: pb.ListenerProtocol_LISTENER_PROTOCOL_HTTP}}})
	report(t, s, uint32(l.Addr().(*net.TCPAddr).Port))
	until(t, "the function to be ready", func() bool { return p.ready(t).GetOk() })
}

// ready is the condition of the function.
func (p *plane) ready(t *testing.T) *pb.Condition {
	t.Helper()
	f, err := pb.NewFunctionServiceClient(p.conn).GetFunction(t.Context(), &pb.GetFunctionRequest{Name: testFunction})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range f.GetFunction().GetStatus().GetConditions() {
		if c.GetType() == "Ready" {
			return c
		}
	}
	t.Fatal("the function has no condition Ready")
	return nil
}

// foreseen is what explain says of a request to the function.
func (p *plane) foreseen(t *testing.T) *pb.ExplainOutcome {
	t.Helper()
	e, err := pb.NewExplainServiceClient(p.conn).Explain(t.Context(), &pb.ExplainRequest{Method: "GET", Url: "http://localhost:8080/x"})
	if err != nil {
		t.Fatal(err)
	}
	return e.GetOutcome()
}

func (p *plane) waitServing(t *testing.T) pb.ConfigService_WaitServingClient {
	t.Helper()
	s, err := pb.NewConfigServiceClient(p.conn).WaitServing(t.Context(), &pb.WaitServingRequest{})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// states are those of the problems of a report.
func states(r *pb.ServingReport) (out []string) {
	for _, p := range r.GetProblems() {
		out = append(out, p.GetState())
	}
	return out
}

// lastReport reads to the end; no report comes twice.
func lastReport(t *testing.T, s pb.ConfigService_WaitServingClient) *pb.ServingReport {
	t.Helper()
	var last *pb.ServingReport
	for {
		m, err := s.Recv()
		if errors.Is(err, io.EOF) {
			return last
		}
		if err != nil {
			t.Fatal(err)
		}
		if last != nil && proto.Equal(last, m.GetReport()) {
			t.Errorf("told twice: %v", last)
		}
		last = m.GetReport()
	}
}

func listen(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// TestLostRunner: what a runner said last is not told as the present when its stream has
// ended. Whether its instances serve is seen at them.
func TestLostRunner(t *testing.T) {
	dir := t.TempDir()
	p := start(t, dir)
	l := listen(t)
	server := &http.Server{Handler: http.NotFoundHandler()}
	go func() { _ = server.Serve(l) }()
	t.Cleanup(func() { server.Close() })
	s, cancel := helloRunner(t, p, dir, 0)
	p.served(t, s, l)
	if o := p.foreseen(t); o.GetStatus() != 200 {
		t.Fatalf("before: %v", o)
	}
	cancel()
	until(t, "the runner to be missed", func() bool { return len(p.core.runners.connected()) == 0 })
	if c := p.ready(t); c.GetOk() || c.GetReason() != "Unknown" || !strings.HasPrefix(c.GetMessage(), "unknown since 2") || !strings.Contains(c.GetMessage(), "its runner is gone") {
		t.Errorf("condition: %v", c)
	}
	st, err := pb.NewProxyServiceClient(p.conn).GetStatus(t.Context(), &pb.GetStatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if i := st.GetInstances(); len(i) != 1 || i[0].GetState() != pb.InstanceState_INSTANCE_STATE_UNKNOWN || !strings.HasSuffix(i[0].GetMessage(), "it was ready") {
		t.Errorf("instances: %v", i)
	}
	if g := st.GetLostRunners(); len(g) != 1 || g[0].GetName() != "a" || st.GetRunnerCount() != 0 {
		t.Errorf("runners that are lost: %v of %d", g, st.GetRunnerCount())
	}
	found := false
	for _, problem := range st.GetProblems() {
		found = found || problem.GetObject() == testFunction && strings.Contains(problem.GetMessage(), "unknown since")
	}
	if !found {
		t.Errorf("problems: %v", st.GetProblems())
	}
	d, err := pb.NewFunctionOperationsServiceClient(p.conn).DescribeFunction(t.Context(), &pb.DescribeFunctionRequest{Name: testFunction})
	if err != nil || d.GetInstances()[0].GetState() != pb.InstanceState_INSTANCE_STATE_UNKNOWN {
		t.Errorf("describe: %v %v", d.GetInstances(), err)
	}
	logs, err := pb.NewFunctionOperationsServiceClient(p.conn).StreamLogs(t.Context(), &pb.StreamLogsRequest{Name: testFunction})
	if err == nil {
		_, err = logs.Recv()
	}
	wantCode(t, "lines of a runner that is gone", err, codes.Unavailable, "nobody can be asked: unknown since")

	// It was only cut off: its instance serves, so the answer is 200.
	if o := p.foreseen(t); o.GetStatus() != 200 || o.GetCertain() || !strings.Contains(o.GetText(), "unknown since") {
		t.Errorf("while the instance serves: %v", o)
	}
	server.Close()
	if o := p.foreseen(t); o.GetStatus() != 503 || o.GetCode() != "PK-BACKEND-CONNECTION" {
		t.Errorf("when the instance is gone: %v", o)
	}
	// Who waits gets it when it comes back, and hears before what is waited for.
	wait := p.waitServing(t)
	first, err := wait.Recv()
	if err != nil || fmt.Sprint(states(first.GetReport())) != "[no-proxy unknown]" {
		t.Errorf("while it is gone: %v %v", first, err)
	}
	s, _ = helloRunner(t, p, dir, 0)
	report(t, s, 7001)
	if last := lastReport(t, wait); fmt.Sprint(states(last)) != "[no-proxy]" {
		t.Errorf("after it came back: %v", last)
	}
	if c := p.ready(t); !c.GetOk() {
		t.Errorf("after it came back: %v", c)
	}
}

// TestSilentRunner: a runner that is stopped keeps its stream, and says nothing.
func TestSilentRunner(t *testing.T) {
	dir := t.TempDir()
	p := start(t, dir)
	l := listen(t) // takes connections and answers nothing, as a stopped process does
	s, _ := helloRunner(t, p, dir, 0)
	p.served(t, s, l)
	p.core.runners.mu.Lock()
	p.core.runners.known["a"].beat = time.Millisecond // what it promised
	p.core.runners.mu.Unlock()
	until(t, "the silence to be noticed", func() bool { return len(p.core.runners.connected()) == 0 })
	if c := p.ready(t); c.GetOk() || c.GetReason() != "Unknown" {
		t.Errorf("condition: %v", c)
	}
	if o := p.foreseen(t); o.GetStatus() != 504 {
		t.Errorf("outcome: %v", o)
	}
	p.core.runners.mu.Lock()
	p.core.runners.known["a"].beat = time.Hour
	p.core.runners.mu.Unlock()
	if c := p.ready(t); !c.GetOk() {
		t.Errorf("when it is heard again: %v", c)
	}
}

// TestRunnerStaysAway: when it is given up, nobody waits for it.
func TestRunnerStaysAway(t *testing.T) {
	dir := t.TempDir()
	p := start(t, dir)
	p.core.runners.grace = 100 * time.Millisecond
	s, cancel := helloRunner(t, p, dir, time.Hour)
	p.served(t, s, listen(t))
	cancel()
	until(t, "the runner to be missed", func() bool { return len(p.core.runners.connected()) == 0 })
	if got := lastReport(t, p.waitServing(t)); fmt.Sprint(states(got)) != "[no-proxy no-runner]" {
		t.Errorf("waiting while the runner stays away: %v", got)
	}
	if c := p.ready(t); c.GetReason() != "NoRunner" {
		t.Errorf("condition: %v", c)
	}
	if o := p.foreseen(t); o.GetStatus() != 503 || o.GetCode() != "PK-BACKEND-NONE" {
		t.Errorf("outcome: %v", o)
	}
}
