package functions_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// stateOf is what a runner says of a function as a whole; nil: nothing.
func stateOf(s *pb.RunnerState, function string) *pb.FunctionState {
	for _, f := range s.GetFunctions() {
		if f.GetFunction() == name(function) {
			return f
		}
	}
	return nil
}

// TestTrial: a version that never served is started once although no instance is wanted;
// when that fails it is said, and the version before stays. One that has served is not
// started.
func TestTrial(t *testing.T) {
	r := startRunner(t)
	scaled := func(mode string) *pb.Function {
		return self(t, "f", mode, scaledTo(&pb.Scale{IdleTimeout: durationpb.New(time.Second)}))
	}
	// The first one cannot start.
	r.wantVersion(scaled("quit"), 1, false)
	s := r.await("the first version to be tried", func(s *pb.RunnerState) bool { return s.GetProblems()[name("f")] != "" })
	if why := s.GetProblems()[name("f")]; !strings.Contains(why, "exit status 7") || !strings.Contains(why, "cannot work: no database") {
		t.Errorf("the problem is %q", why)
	}
	s = r.await("the slot to go", func(s *pb.RunnerState) bool { return len(instances(s, "f")) == 0 })
	if st := stateOf(s, "f"); st.GetRevision() != 0 || !strings.Contains(st.GetTrouble(), "its last start failed") || s.GetProblems()[name("f")] == "" {
		t.Errorf("after the trial: %v", s)
	}
	// A good one: an instance is ready without a request, and goes when it is idle.
	r.wantVersion(scaled("echo"), 2, false)
	s = r.await("the second version to be tried", func(s *pb.RunnerState) bool {
		return slices.ContainsFunc(instances(s, "f"), func(i *pb.Instance) bool { return i.GetState() == pb.InstanceState_INSTANCE_STATE_READY })
	})
	if i := instances(s, "f"); len(i) != 1 || i[0].GetVersion() != 2 {
		t.Errorf("instances: %v", i)
	}
	s = r.await("it to be idle", func(s *pb.RunnerState) bool { return len(instances(s, "f")) == 0 })
	if st := stateOf(s, "f"); st.GetRevision() == 0 || st.GetTrouble() != "" || s.GetProblems()[name("f")] != "" {
		t.Errorf("when it is idle: %v", s)
	}
	// A bad one does not replace it.
	r.wantVersion(scaled("quit"), 3, false)
	r.await("the third version to be tried", func(s *pb.RunnerState) bool { return s.GetProblems()[name("f")] != "" })
	address := r.activator("f")
	if a, err := call(t.Context(), address, "GET", "/", nil); err != nil || a.status != 200 {
		t.Errorf("beside a version that cannot start: %d %s: %v", a.status, a.body, err)
	}
	s = r.await("an instance for the request", func(s *pb.RunnerState) bool { return len(instances(s, "f")) > 0 })
	for _, i := range instances(s, "f") {
		if i.GetState() == pb.InstanceState_INSTANCE_STATE_READY && i.GetVersion() != 2 {
			t.Errorf("it is served by version %d", i.GetVersion())
		}
	}
}

// TestNoTrial: what has served before is not started when the runner begins.
func TestNoTrial(t *testing.T) {
	r := startRunner(t)
	r.wantVersion(self(t, "f", "echo", scaledTo(&pb.Scale{})), 1, true)
	s := r.await("the function to be prepared", func(s *pb.RunnerState) bool { return stateOf(s, "f").GetRevision() > 0 })
	if i := instances(s, "f"); len(i) != 0 {
		t.Errorf("instances: %v", i)
	}
}
