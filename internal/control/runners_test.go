package control

import (
	"context"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
	"github.com/penstock-gateway/penstock/internal/pki"
)

const testFunction = "projects/default/functions/f"

// dialAs connects to the port of proxies and runners with the certificate of spiffe.
func (p *plane) dialAs(t *testing.T, pkiDir, spiffe string) *grpc.ClientConn {
	t.Helper()
	ca, err := pki.OpenCA(pkiDir)
	if err != nil {
		t.Fatal(err)
	}
	cert, key, err := ca.EnsureFiles(pkiDir, filepath.Base(spiffe), pki.Request{SPIFFE: spiffe})
	if err != nil {
		t.Fatal(err)
	}
	config, err := pki.ClientTLS(cert, key, filepath.Join(pkiDir, "ca.crt"), "")
	if err != nil {
		t.Fatal(err)
	}
	conn, err := grpc.NewClient("passthrough:///"+p.addr.XDS.String(), grpc.WithTransportCredentials(credentials.NewTLS(config)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// connectRunner opens the stream of a runner with the certificate of spiffe.
func connectRunner(t *testing.T, p *plane, pkiDir, spiffe, hello string) (pb.RunnerService_ConnectClient, context.CancelFunc) {
	t.Helper()
	conn := p.dialAs(t, pkiDir, spiffe)
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	stream, err := pb.NewRunnerServiceClient(conn).Connect(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Send(&pb.ConnectRequest{Message: &pb.ConnectRequest_Hello{Hello: &pb.RunnerHello{Runner: hello}}}); err != nil {
		t.Fatal(err)
	}
	return stream, cancel
}

func report(t *testing.T, s pb.RunnerService_ConnectClient, ports ...uint32) {
	t.Helper()
	st := &pb.RunnerState{}
	for _, p := range ports {
		st.Instances = append(st.Instances, &pb.Instance{Function: testFunction, Id: "i", Address: "127.0.0.1", Port: p, State: pb.InstanceState_INSTANCE_STATE_READY})
	}
	if err := s.Send(&pb.ConnectRequest{Message: &pb.ConnectRequest_State{State: st}}); err != nil {
		t.Fatal(err)
	}
}

// until polls a condition; it fails the test after half a minute.
func until(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within 30 s", what)
		}
	}
}

func TestRunnerIdentity(t *testing.T) {
	dir := t.TempDir()
	p := start(t, dir)
	for what, c := range map[string]struct{ spiffe, hello string }{
		"another runner's name":     {"spiffe://penstock.local/runner/a", "b"},
		"a proxy's certificate":     {pki.ProxyID("default", "-", "edge"), "edge"},
		"no name":                   {"spiffe://penstock.local/runner/a", ""},
		"the limiter's":             {"spiffe://penstock.local/limiter/a", "a"},
		"a name with a slash in it": {"spiffe://penstock.local/runner/a", "../a"},
	} {
		s, cancel := connectRunner(t, p, filepath.Join(dir, "pki"), c.spiffe, c.hello)
		if _, err := s.Recv(); status.Code(err) != codes.PermissionDenied {
			t.Errorf("%s: %v, want PermissionDenied", what, err)
		}
		cancel()
	}
}

// TestRunnerTwice: a second runner of a name is refused, and the first one's
// instances stay.
func TestRunnerTwice(t *testing.T) {
	dir := t.TempDir()
	p := start(t, dir)
	const id = "spiffe://penstock.local/runner/a"
	first, _ := connectRunner(t, p, filepath.Join(dir, "pki"), id, "a")
	report(t, first, 7001)
	until(t, "the endpoint to be known", func() bool { return len(p.core.runners.endpoints(testFunction)) == 1 })
	second, cancel := connectRunner(t, p, filepath.Join(dir, "pki"), id, "a")
	if _, err := second.Recv(); status.Code(err) != codes.AlreadyExists {
		t.Errorf("the second runner: %v, want AlreadyExists", err)
	}
	cancel()
	report(t, first, 7001, 7002)
	until(t, "the first runner to be heard", func() bool { return len(p.core.runners.endpoints(testFunction)) == 2 })
}

// TestApplyWaitsForFunctions: a write of a function returns when its instances are
// ready, or says why they are not.
func TestApplyWaitsForFunctions(t *testing.T) {
	dir := t.TempDir()
	p := start(t, dir)
	c := pb.NewConfigServiceClient(p.conn)
	function := func(env string) *pb.ApplyRequest {
		return &pb.ApplyRequest{Resources: []*pb.Resource{{Kind: &pb.Resource_Function{Function: &pb.Function{
			Name: testFunction, Source: "f", Env: map[string]string{"V": env},
			Contract: &pb.Function_Server{Server: &pb.ServerContract{Command: []string{"./f"}}},
		}}}}}
	}
	alone, err := c.Apply(t.Context(), function("1"))
	if err != nil || len(alone.GetResult().GetServing().GetProblems()) != 1 || alone.GetResult().GetServing().GetProblems()[0].GetState() != "no-runner" {
		t.Fatalf("without a runner: %v %v", alone, err)
	}
	s, _ := connectRunner(t, p, filepath.Join(dir, "pki"), "spiffe://penstock.local/runner/a", "a")
	until(t, "the runner to be connected", func() bool { return len(p.core.runners.connected()) == 1 })
	for _, m := range []*pb.RunnerState{
		{Problems: map[string]string{testFunction: "the source is missing"}},
		{Instances: []*pb.Instance{{Function: testFunction, Id: "i", Address: "127.0.0.1", Port: 1, State: pb.InstanceState_INSTANCE_STATE_READY}}},
	} {
		applied := make(chan *pb.ApplyResponse, 1)
		go func() {
			resp, err := c.Apply(t.Context(), function(m.String()))
			if err != nil {
				t.Error(err)
			}
			applied <- resp
		}()
		// The runner hears of the new version before it reports.
		for {
			resp, err := s.Recv()
			if err != nil {
				t.Fatal(err)
			}
			if len(resp.GetFunctions()) == 1 && resp.GetFunctions()[0].GetEnv()["V"] == m.String() {
				break
			}
		}
		if err := s.Send(&pb.ConnectRequest{Message: &pb.ConnectRequest_State{State: m}}); err != nil {
			t.Fatal(err)
		}
		problems := (<-applied).GetResult().GetServing().GetProblems()
		switch {
		case len(m.GetProblems()) > 0 && (len(problems) != 1 || !strings.Contains(problems[0].GetDetail(), "source is missing")):
			t.Errorf("a function that cannot run: %v", problems)
		case len(m.GetInstances()) > 0 && len(problems) != 0:
			t.Errorf("a function that is ready: %v", problems)
		}
	}
}

// TestRunnerOnTwoReplicas: every replica knows the instances of a runner that is
// connected to one of them; a restarted one does at once; and when the runner
// stays away its instances go everywhere.
func TestRunnerOnTwoReplicas(t *testing.T) {
	dir := t.TempDir()
	p := start(t, dir)
	q := serve(t, p.core.store, t.TempDir())
	p.core.runners.grace, q.core.runners.grace = 300*time.Millisecond, time.Hour
	s, cancel := connectRunner(t, p, filepath.Join(dir, "pki"), "spiffe://penstock.local/runner/a", "a")
	report(t, s, 7001, 7002)
	until(t, "both replicas to know two endpoints", func() bool {
		return len(p.core.runners.endpoints(testFunction)) == 2 && len(q.core.runners.endpoints(testFunction)) == 2
	})
	r := serve(t, p.core.store, t.TempDir())
	if got := r.core.runners.endpoints(testFunction); len(got) != 2 {
		t.Errorf("a replica that starts knows %v, want two endpoints", got)
	}
	report(t, s, 7003)
	until(t, "the change to arrive", func() bool {
		e := q.core.runners.endpoints(testFunction)
		return len(e) == 1 && e[0].Port == 7003
	})
	for name, x := range map[string]*plane{"its own": p, "another": q} {
		if got := x.core.runners.connected(); len(got) != 1 || got[0] != "a" {
			t.Errorf("%s replica says that the runners %v are connected, want a", name, got)
		}
	}
	cancel()
	until(t, "its own replica to miss it", func() bool { return len(p.core.runners.connected()) == 0 })
	until(t, "the instances to be dropped everywhere", func() bool {
		return len(p.core.runners.endpoints(testFunction)) == 0 && len(q.core.runners.endpoints(testFunction)) == 0
	})
}

// TestUnreadableRunner: a state of a runner that cannot be read keeps neither the control
// plane from starting nor the states of others from counting.
func TestUnreadableRunner(t *testing.T) {
	dir := t.TempDir()
	st := openStore(t, t.TempDir())
	p := serve(t, st, dir)
	p.mustPut(t, function("1"))
	s, _ := connectRunner(t, p, dir+"/pki", runnerIdentity+"a", "a")
	report(t, s, 1000)
	until(t, "the instance", func() bool { return len(p.core.runners.endpoints(testFunction)) == 1 })
	p.stop()
	if err := st.PutState(t.Context(), runnersPrefix+"bad", []byte("short")); err != nil {
		t.Fatal(err)
	}
	p = serve(t, st, dir)
	if e := p.core.runners.endpoints(testFunction); len(e) != 1 {
		t.Errorf("of the runner whose state is whole the control plane knows %v", e)
	}
	// Nor while it runs.
	if err := st.PutState(t.Context(), runnersPrefix+"worse", []byte("012345678\xff")); err != nil {
		t.Fatal(err)
	}
	until(t, "both to be told of", func() bool {
		p.core.runners.mu.Lock()
		defer p.core.runners.mu.Unlock()
		return len(p.core.runners.unread) == 2
	})
	if err := p.core.runners.load(t.Context(), nil); err != nil {
		t.Errorf("they are tried again: %v", err)
	}
}
