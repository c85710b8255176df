package control

import (
	"context"
	"path/filepath"
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

// connectRunner opens the stream of a runner with the certificate of spiffe.
func connectRunner(t *testing.T, p *plane, pkiDir, spiffe, hello string) (pb.RunnerService_ConnectClient, context.CancelFunc) {
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
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(func() { cancel(); conn.Close() })
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
func until(t *testing.T, what string, ok func() bool) {
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
	cancel()
	until(t, "the instances to be dropped everywhere", func() bool {
		return len(p.core.runners.endpoints(testFunction)) == 0 && len(q.core.runners.endpoints(testFunction)) == 0
	})
}
