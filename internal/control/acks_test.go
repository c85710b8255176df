package control

import (
	"path/filepath"
	"testing"
	"time"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
	"github.com/penstock-gateway/penstock/internal/control/fleet"
)

// acknowledged reads what a runner is told until a sequence is acknowledged.
func acknowledged(t *testing.T, s pb.RunnerService_ConnectClient, sequence uint64) {
	t.Helper()
	for {
		m, err := s.Recv()
		if err != nil {
			t.Fatalf("waiting for %d to be acknowledged: %v", sequence, err)
		}
		if m.GetAcknowledgedSequence() >= sequence {
			return
		}
	}
}

func reportAs(t *testing.T, s pb.RunnerService_ConnectClient, sequence uint64, ports ...uint32) {
	t.Helper()
	st := &pb.RunnerState{Sequence: sequence}
	for _, p := range ports {
		st.Instances = append(st.Instances, &pb.Instance{Function: testFunction, Id: "i", Address: "127.0.0.1", Port: p, State: pb.InstanceState_INSTANCE_STATE_READY})
	}
	if err := s.Send(&pb.ConnectRequest{Message: &pb.ConnectRequest_State{State: st}}); err != nil {
		t.Fatal(err)
	}
}

// TestAcknowledged: a runner hears that its state is with all proxies: of this
// replica, where there is none, at once; of another one when that says so of the
// value in the store, whatever it said of the streams before.
func TestAcknowledged(t *testing.T) {
	dir := t.TempDir()
	p := start(t, dir)
	s, _ := connectRunner(t, p, filepath.Join(dir, "pki"), "spiffe://penstock.local/runner/a", "a")
	reportAs(t, s, 1, 7001)
	acknowledged(t, s, 1)

	tell := func(stamp uint64) {
		t.Helper()
		other := fleet.ReplicaState{Heard: map[string]uint64{"a": stamp}}
		if err := other.Put(t.Context(), p.core.store, "other", time.Now()); err != nil {
			t.Fatal(err)
		}
	}
	tell(1)
	until(t, "the other replica to be known", func() bool { return !p.core.fleet.Alone() })
	reportAs(t, s, 2)
	var value []byte
	until(t, "the state to be in the store", func() bool {
		states, err := p.core.store.State(t.Context(), runnersPrefix)
		value = states[runnersPrefix+"a"]
		st, bad := decodeState(value)
		return err == nil && bad == nil && st.GetSequence() == 2
	})
	if got := p.core.fleet.Acks.Acknowledged("a"); got != 1 {
		t.Errorf("%d is acknowledged while the other replica has not heard of 2", got)
	}
	tell(fleet.Stamp(value))
	acknowledged(t, s, 2)
}

// TestReturning: after a restart nothing is taken for acknowledged until proxies have
// had time to come back.
func TestReturning(t *testing.T) {
	dir := t.TempDir()
	p := start(t, dir)
	s, _ := connectRunner(t, p, filepath.Join(dir, "pki"), "spiffe://penstock.local/runner/a", "a")
	reportAs(t, s, 1, 7001)
	acknowledged(t, s, 1)
	// It is told before it is stored, and only what is stored is known again.
	until(t, "the state to be in the store", func() bool {
		states, err := p.core.store.State(t.Context(), runnersPrefix)
		return err == nil && states[runnersPrefix+"a"] != nil
	})
	again := serve(t, p.core.store, dir)
	if wait := time.Until(again.core.fleet.Acks.From()); wait <= 0 || wait > returning {
		t.Errorf("acknowledgements count in %s, want up to %s", wait, returning)
	}
}

// TestEndpointsOf: instances come before activators, which are all there is of a
// function whose requests share one queue.
func TestEndpointsOf(t *testing.T) {
	ready := func(f string, port uint32) *pb.Instance {
		return &pb.Instance{Function: f, Address: "127.0.0.1", Port: port, State: pb.InstanceState_INSTANCE_STATE_READY}
	}
	got, refuse := endpointsOf(&pb.RunnerState{
		Instances: []*pb.Instance{ready("fixed", 3), ready("direct", 2), ready("direct", 1), ready("central", 4),
			{Function: "direct", Address: "127.0.0.1", Port: 9, State: pb.InstanceState_INSTANCE_STATE_DRAINING}},
		Functions: []*pb.FunctionState{
			{Function: "direct", ActivatorAddress: "127.0.0.1", ActivatorPort: 80},
			{Function: "central", ActivatorAddress: "127.0.0.1", ActivatorPort: 81, Central: true},
			{Function: "none"},
			{Function: "broken", ActivatorAddress: "127.0.0.1", ActivatorPort: 82, Refusing: true},
		},
	})
	if len(refuse) != 1 || len(refuse["broken"]) != 1 || refuse["broken"][0].Port != 82 {
		t.Errorf("what only refuses: %v", refuse)
	}
	want := map[string][]uint32{"fixed": {3}, "direct": {1, 2, 80}, "central": {81}}
	if len(got) != len(want) {
		t.Errorf("%v", got)
	}
	for f, ports := range want {
		for i, port := range ports {
			if e := got[f]; len(e) != len(ports) || e[i].Port != port || (e[i].Priority == 1) != (port == 80) {
				t.Errorf("%s: %v, want ports %v", f, e, ports)
				break
			}
		}
	}
}
