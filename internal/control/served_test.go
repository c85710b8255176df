package control

import (
	"fmt"
	"testing"

	"github.com/penstock-gateway/penstock/gateway"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// reportVersion says that an instance of the function's version is ready, or is not.
func reportVersion(t *testing.T, s pb.RunnerService_ConnectClient, version int64, state pb.InstanceState) {
	t.Helper()
	st := &pb.RunnerState{Instances: []*pb.Instance{{Function: testFunction, Id: fmt.Sprint("i", version), Address: "127.0.0.1", Port: 7000, State: state, Version: version}}}
	if err := s.Send(&pb.ConnectRequest{Message: &pb.ConnectRequest_State{State: st}}); err != nil {
		t.Fatal(err)
	}
}

// TestServedVersions: which versions have served is known, also after a restart, so that a
// rollback goes to the last of them, and runners try what never has.
func TestServedVersions(t *testing.T) {
	dir := t.TempDir()
	st := openStore(t, t.TempDir())
	p := serve(t, st, dir)
	s, _ := connectRunner(t, p, dir+"/pki", runnerIdentity+"a", "a")
	told := func(number int64, served bool) {
		t.Helper()
		for {
			m, err := s.Recv()
			if err != nil {
				t.Fatal(err)
			}
			if v := m.GetVersions(); len(v) == 1 && v[0].GetNumber() == number {
				if v[0].GetFunction() != testFunction || v[0].GetServed() != served {
					t.Errorf("the runner is told %v, want served %v", v, served)
				}
				return
			}
		}
	}
	describe := func(p *plane) *pb.DescribeFunctionResponse {
		t.Helper()
		d, err := pb.NewFunctionOperationsServiceClient(p.conn).DescribeFunction(t.Context(), &pb.DescribeFunctionRequest{Name: testFunction})
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	served := func(p *plane) (out []int64) {
		for _, v := range describe(p).GetVersions() {
			if v.GetFirstServeTime() != nil {
				out = append(out, v.GetNumber())
			}
		}
		return out
	}
	ready, backoff := pb.InstanceState_INSTANCE_STATE_READY, pb.InstanceState_INSTANCE_STATE_BACKOFF
	one := p.mustPut(t, function("1"))
	told(one, false)
	reportVersion(t, s, one, ready)
	until(t, "the first version to have served", func() bool { return len(served(p)) == 1 })
	two := p.mustPut(t, function("2"))
	told(two, false)
	reportVersion(t, s, two, backoff)
	three := p.mustPut(t, function("3"))
	told(three, false)
	reportVersion(t, s, three, ready)
	until(t, "the third version to have served", func() bool { return len(served(p)) == 2 })
	d := describe(p)
	if d.GetCurrentVersion() != three {
		t.Errorf("the current version is %d, want %d", d.GetCurrentVersion(), three)
	}
	if got := gateway.VersionBefore(d.GetFunction(), d.GetVersions(), three); got != one {
		t.Errorf("the version before %d is %d, want %d: %d never served", three, got, one, two)
	}
	if i := d.GetInstances(); len(i) != 1 || i[0].GetVersion() != three {
		t.Errorf("instances %v, want one of version %d", i, three)
	}
	p.mustPut(t, function("1"))
	told(one, true)

	p.stop()
	again := serve(t, st, dir)
	if got := served(again); fmt.Sprint(got) != fmt.Sprint([]int64{three, one}) {
		t.Errorf("after a restart %v have served, want %d and %d", got, three, one)
	}
	// What is gone is forgotten.
	if _, err := pb.NewFunctionServiceClient(again.conn).DeleteFunction(t.Context(), &pb.DeleteFunctionRequest{Name: testFunction, Options: &pb.WriteOptions{Wait: pb.WaitMode_WAIT_MODE_NONE}}); err != nil {
		t.Fatal(err)
	}
	until(t, "what was kept of the function to go", func() bool {
		left, err := st.State(t.Context(), servedPrefix)
		if err != nil {
			t.Fatal(err)
		}
		return len(left) == 0
	})
}

// TestUntriedVersion: requests do not move to a version that was not started yet, though
// its activator takes them.
func TestUntriedVersion(t *testing.T) {
	dir := t.TempDir()
	p := start(t, dir)
	first := p.mustPut(t, function("1"))
	p.mustPut(t, function("2"))
	s, _ := connectRunner(t, p, dir+"/pki", runnerIdentity+"a", "a")
	report(t, s, 1000)
	until(t, "the instance", func() bool { return len(p.core.runners.endpoints(testFunction)) == 1 })
	p.mustPut(t, function("2", &pb.Traffic{Version: first, Weight: 1}))
	old := gateway.VersionName(testFunction, first)
	say := func(revision int64) {
		t.Helper()
		st := &pb.RunnerState{
			Instances: []*pb.Instance{{Function: testFunction, Id: "i", Address: "127.0.0.1", Port: 1000, State: pb.InstanceState_INSTANCE_STATE_READY}},
			Functions: []*pb.FunctionState{{Function: old, ActivatorAddress: "127.0.0.1", ActivatorPort: 2000, Revision: revision}},
		}
		if err := s.Send(&pb.ConnectRequest{Message: &pb.ConnectRequest_State{State: st}}); err != nil {
			t.Fatal(err)
		}
		until(t, "the state", func() bool {
			p.core.runners.mu.Lock()
			defer p.core.runners.mu.Unlock()
			f := p.core.runners.known["a"].state.GetFunctions()
			return len(f) == 1 && f[0].GetRevision() == revision
		})
	}
	say(0)
	if e := p.core.runners.endpoints(old); len(e) != 1 || e[0].Port != 1000 {
		t.Errorf("before it was started: %v", e)
	}
	say(p.core.Snapshot().Revision())
	if e := p.core.runners.endpoints(old); len(e) != 1 || e[0].Port != 2000 {
		t.Errorf("when it can be started: %v", e)
	}
}
