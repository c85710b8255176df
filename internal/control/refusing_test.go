package control

import (
	"fmt"
	"testing"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// TestRefusing: what only says why a function cannot be run gets its requests, unless
// anything serves: another runner, or the version that requests move away from.
func TestRefusing(t *testing.T) {
	dir := t.TempDir()
	p := start(t, dir)
	first := p.mustPut(t, function("1"))
	one, _ := connectRunner(t, p, dir+"/pki", runnerIdentity+"one", "one")
	two, _ := connectRunner(t, p, dir+"/pki", runnerIdentity+"two", "two")
	say := func(s pb.RunnerService_ConnectClient, st *pb.RunnerState) {
		t.Helper()
		if err := s.Send(&pb.ConnectRequest{Message: &pb.ConnectRequest_State{State: st}}); err != nil {
			t.Fatal(err)
		}
	}
	refuses := func(name string) *pb.RunnerState {
		return &pb.RunnerState{
			Problems:  map[string]string{name: "no source"},
			Functions: []*pb.FunctionState{{Function: name, ActivatorAddress: "127.0.0.1", ActivatorPort: 9, Refusing: true}},
		}
	}
	serves := func(name string, port uint32) *pb.RunnerState {
		return &pb.RunnerState{Instances: []*pb.Instance{{Function: name, Id: "i", Address: "127.0.0.1", Port: port, State: pb.InstanceState_INSTANCE_STATE_READY}}}
	}
	ports := func(name string) (out []uint32) {
		for _, e := range p.core.runners.endpoints(name) {
			out = append(out, e.Port)
		}
		return out
	}
	wait := func(what, name string, want ...uint32) {
		t.Helper()
		until(t, what, func() bool { return fmt.Sprint(ports(name)) == fmt.Sprint(want) })
	}
	say(one, refuses(testFunction))
	wait("the one that refuses", testFunction, 9)
	if c := p.core.runners.condition(function("1")); c.GetOk() {
		t.Errorf("a function that only refuses is ready: %v", c)
	}
	say(two, serves(testFunction, 1000))
	wait("the one that serves", testFunction, 1000)

	// Another version cannot be run: the one that requests come from stays, and serves.
	p.mustPut(t, function("2", &pb.Traffic{Version: first, Weight: 1}))
	old := fmt.Sprintf("%s@%d", testFunction, first)
	say(one, refuses(old))
	wait("the version before in its place", old, 1000)
	p.core.runners.mu.Lock()
	defer p.core.runners.mu.Unlock()
	if !p.core.runners.serves(testFunction) || p.core.runners.serves(old) {
		t.Error("what refuses counts as serving")
	}
}
