package control

import (
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/penstock-gateway/penstock/gateway"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// TestRepeatedWrite: what is wrong with an object is told by every write that names
// it, by waiting and by the status, not only by the write that brought it.
func TestRepeatedWrite(t *testing.T) {
	dir := t.TempDir()
	p := start(t, dir)
	c := pb.NewConfigServiceClient(p.conn)
	p.mustPut(t, function("1"))
	s, _ := connectRunner(t, p, filepath.Join(dir, "pki"), runnerIdentity+"a", "a")
	tell := func(st *pb.RunnerState) {
		t.Helper()
		if err := s.Send(&pb.ConnectRequest{Message: &pb.ConnectRequest_State{State: st}}); err != nil {
			t.Fatal(err)
		}
	}
	states := map[string]*pb.RunnerState{
		"no such folder": {Problems: map[string]string{testFunction: "no such folder"}},
		"exit code 7": {Instances: []*pb.Instance{{
			Function: testFunction, Id: "i", State: pb.InstanceState_INSTANCE_STATE_BACKOFF, Message: "exit code 7",
		}}},
		"": {Instances: []*pb.Instance{{Function: testFunction, Id: "i", Address: "127.0.0.1", Port: 1, State: pb.InstanceState_INSTANCE_STATE_READY}}},
	}
	for _, want := range []string{"no such folder", "exit code 7", ""} {
		tell(states[want])
		until(t, "the report "+want, func() bool {
			got := p.core.runners.notReady(function("1"))
			return want == "" && got == nil || want != "" && strings.Contains(got.GetDetail(), want)
		})
		told := func(what string, problems []string) {
			t.Helper()
			if (want == "") != (len(problems) == 0) || want != "" && !strings.Contains(problems[0], want) {
				t.Errorf("%s: %q, want %q", what, problems, want)
			}
		}
		resp, err := c.Apply(t.Context(), &pb.ApplyRequest{Resources: []*pb.Resource{gateway.ToResource(function("1"))}})
		if err != nil || resp.GetResult().GetChanged() {
			t.Fatalf("the same again: %v, %v", resp, err)
		}
		told("apply", details(resp.GetResult().GetServing()))
		stream, err := c.WaitServing(t.Context(), &pb.WaitServingRequest{})
		if err != nil {
			t.Fatal(err)
		}
		var last *pb.ServingReport
		for m, err := stream.Recv(); err == nil; m, err = stream.Recv() {
			last = m.GetReport()
		}
		told("wait", details(last))
		st, err := p.core.Status(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		var problems []string
		for _, x := range st.GetProblems() {
			problems = append(problems, x.GetMessage())
		}
		told("status", problems)
	}
}

func details(r *pb.ServingReport) (out []string) {
	for _, p := range r.GetProblems() {
		out = append(out, p.GetDetail())
	}
	return out
}

// TestRollbackStays: after a rollback, by hand or automatic, only a write that gives
// the newest version requests gives it any.
func TestRollbackStays(t *testing.T) {
	for _, why := range []string{gateway.RolledBackByHand, "version 3: 80.0 % of 10 requests failed"} {
		p := start(t, t.TempDir())
		first := p.mustPut(t, function("1"))
		p.mustPut(t, function("2"))
		back := function("2", &pb.Traffic{Version: first, Weight: 100})
		back.Metadata = &pb.Metadata{Annotations: map[string]string{gateway.RolledBackAnnotation: why}}
		p.mustPut(t, back)
		apply := func(f *pb.Function) (*pb.Function, []*pb.Warning) {
			t.Helper()
			resp, err := pb.NewConfigServiceClient(p.conn).Apply(t.Context(), &pb.ApplyRequest{
				Resources: []*pb.Resource{gateway.ToResource(f)}, Options: &pb.WriteOptions{Wait: pb.WaitMode_WAIT_MODE_NONE},
			})
			if err != nil {
				t.Fatal(err)
			}
			return p.core.Snapshot().Get(testFunction).(*pb.Function), resp.GetResult().GetWarnings()
		}
		for range 2 { // also when nothing changes
			f, warnings := apply(function("3"))
			if !proto.Equal(f.GetTraffic()[0], back.GetTraffic()[0]) || !gateway.RolledBack(f) {
				t.Fatalf("%s: a deployment after the rollback leads to %v", why, f)
			}
			if len(warnings) != 1 || !strings.Contains(warnings[0].GetMessage(), "penstock fn promote") {
				t.Errorf("%s: warnings %v", why, warnings)
			}
		}
		// A share for the newest version ends it, as all requests do.
		f, warnings := apply(function("3", &pb.Traffic{Version: first, Weight: 9}, &pb.Traffic{Weight: 1}))
		if gateway.RolledBack(f) || len(warnings) > 0 {
			t.Errorf("%s: after a share for the newest version: %v, %v", why, f, warnings)
		}
		p.mustPut(t, back)
		f, warnings = apply(function("3", &pb.Traffic{Weight: 100}))
		if len(f.GetTraffic()) > 0 || gateway.RolledBack(f) || len(warnings) > 0 {
			t.Errorf("%s: after the promotion: %v, %v", why, f, warnings)
		}
		if f, _ = apply(function("4")); len(f.GetTraffic()) > 0 {
			t.Errorf("%s: a deployment after the promotion: %v", why, f)
		}
	}
}
