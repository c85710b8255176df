package functions_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"google.golang.org/protobuf/types/known/durationpb"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
	"github.com/penstock-gateway/penstock/internal/launch"
)

// badCitizens are functions that misbehave beside their answers, in each contract
// in which they can. What a caller gets from functions that fail is tested with
// each contract (TestLambdaFaults, TestServerFaults, TestFrameworkFaults,
// TestAzureFaults, TestGRPCFaults).
func badCitizens(t *testing.T, fault string) map[string]*pb.Function {
	mode := map[string]string{"MODE": fault}
	all := map[string]*pb.Function{
		"lambda": python("lambda-"+fault, "app."+fault),
		"server": self(t, "server-"+fault, "plain"),
		"azure":  azure("azure-"+fault, "azure", "fails", env(mode)),
		"python": gcf("python-"+fault, "gcf", frameworkPython, fault),
		"node":   gcf("node-"+fault, "gcfnode", frameworkNode, fault),
	}
	if fault == "stubborn" {
		delete(all, "python") // its server, gunicorn, takes SIGTERM itself
	}
	return all
}

// TestBadCitizens: functions that leave children behind or do not heed SIGTERM are
// gone with all they started when they are not wanted; their neighbour feels
// nothing.
func TestBadCitizens(t *testing.T) {
	t.Parallel()
	r := startRunner(t)
	neighbour := python("neighbour", "app.bare")
	r.want(neighbour)
	before := r.ready("neighbour", 1)[0]
	var ids []launch.ID
	for _, fault := range []string{"forks", "stubborn"} {
		for contract, f := range badCitizens(t, fault) {
			if fault == "forks" {
				plain(f) // its children are known by the numbers that they know
			}
			r.wantMore(f)
			i := r.readyOne(contract + "-" + fault)
			path := "/" + fault
			if contract == "azure" {
				path = "/api/fails/" + fault
			}
			var got struct{ Children []int }
			a := mustSend(t, i, "GET", path, "")
			if err := json.Unmarshal([]byte(a.body), &got); err != nil || a.status != 200 || (fault == "forks") != (len(got.Children) > 0) {
				t.Fatalf("%s %s: %d %s", contract, fault, a.status, a.body)
			}
			for _, pid := range append(got.Children, int(i.GetPid())) {
				id, err := launch.Identify(pid)
				if err != nil {
					t.Fatalf("%s %s: %v", contract, fault, err)
				}
				ids = append(ids, id)
			}
			if a := mustSend(t, before, "GET", "/", ""); a.status != 200 {
				t.Errorf("the neighbour beside %s %s: %d", contract, fault, a.status)
			}
		}
	}
	r.want(neighbour)
	r.await("the neighbour alone", func(s *pb.RunnerState) bool { return len(s.GetInstances()) == 1 })
	if left := launch.WaitGone(ids, patience); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	if after := r.ready("neighbour", 1)[0]; after.GetId() != before.GetId() || after.GetRestarts() != 0 {
		t.Errorf("the neighbour was replaced: %v", after)
	}
}

// TestLate: a function that takes long to start is not reported before it can take
// requests, whatever its contract; one that takes too long says so.
func TestLate(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "listen")
	wait := env(map[string]string{"LISTEN_FILE": file, "MODE": "late"})
	late := map[string]*pb.Function{
		"lambda": python("lambda", "app.bare", wait), "server": self(t, "server", "late", wait), "azure": azure("azure", "azure", "", wait),
		"python": gcf("python", "gcf", frameworkPython, "plain", wait), "node": gcf("node", "gcfnode", frameworkNode, "plain", wait),
	}
	r := startRunner(t)
	for _, f := range late {
		writable(filepath.Dir(file))(f)
		r.wantMore(f)
	}
	r.wantMore(gcf("never", "gcf", frameworkPython, "plain", env(map[string]string{"LISTEN_FILE": file + "-never"}), writable(filepath.Dir(file)), func(f *pb.Function) { f.StartTimeout = durationpb.New(1) }))
	s := r.await("all starting", func(s *pb.RunnerState) bool {
		started := 0
		for id := range late {
			if of := instances(s, id); len(of) == 1 && of[0].GetPid() != 0 {
				started++
			}
		}
		return started == len(late) && s.GetProblems()[name("never")] != ""
	})
	for id := range late {
		if i := instances(s, id)[0]; i.GetState() != pb.InstanceState_INSTANCE_STATE_STARTING || i.GetAddress() != "" {
			t.Errorf("%s, which does not listen, is reported as %v", id, i)
		}
	}
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for id := range late {
		path := "/"
		if id == "azure" {
			path = "/api/orders"
		}
		if a := mustSend(t, r.readyOne(id), "GET", path, ""); a.status != 200 && a.status != 201 {
			t.Errorf("%s: %d %s", id, a.status, a.body)
		}
	}
}
