package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

func TestReadinessText(t *testing.T) {
	function := func(name string, ok bool, reason, message string) *pb.Function {
		return &pb.Function{
			Name:   "projects/default/functions/" + name,
			Status: &pb.Status{Conditions: []*pb.Condition{{Type: "Serving", Ok: true}, {Type: "Ready", Ok: ok, Reason: reason, Message: message}}},
		}
	}
	runs := function("runs", true, "InstancesReady", "1 of 1 instances ready")
	idle := function("idle", true, reasonIdle, "no instance runs")
	idle2 := function("idle2", true, reasonIdle, "no instance runs")
	starts := function("starts", false, "InstancesStarting", "0 of 1 instances ready")
	lost := function("lost", false, "NoRunner", "no runner is connected")
	broken := function("broken", false, "InstancesFailing", "0 of 1 instances ready: pip failed (exit status 1):\n    Looking in indexes\n    ERROR: No matching distribution found for nonsense\n")
	long := function("long", false, "InstancesFailing", strings.Repeat("x", 2*maxReason))
	unknown := &pb.Function{Name: "projects/default/functions/unknown"}
	for _, test := range []struct {
		all       []*pb.Function
		reachable map[string]bool
		want      string
	}{
		{nil, nil, ""},
		{[]*pb.Function{runs}, nil, "1 of 1 ready"},
		{[]*pb.Function{runs}, map[string]bool{runs.GetName(): true}, "1 of 1 ready"},
		{[]*pb.Function{runs}, map[string]bool{runs.GetName(): false}, "0 of 1 ready; starting: runs"},
		{[]*pb.Function{idle}, nil, "1 of 1 ready (0 running, starts at the first request)"},
		{[]*pb.Function{idle, idle2}, nil, "2 of 2 ready (0 running, each starts at its first request)"},
		{[]*pb.Function{idle, runs}, nil, "2 of 2 ready (1 running, 1 more at the first request)"},
		{[]*pb.Function{starts, lost, unknown}, nil, "0 of 3 ready; starting: starts, lost, unknown"},
		{[]*pb.Function{runs, broken}, nil, "1 of 2 ready; failing: broken: 0 of 1 instances ready: pip failed (exit status 1): … ERROR: No matching distribution found for nonsense"},
		{[]*pb.Function{long}, nil, "0 of 1 ready; failing: long: " + strings.Repeat("x", maxReason) + "…"},
	} {
		r := &readiness{}
		for _, f := range test.all {
			r.add(f, test.reachable)
		}
		if got := r.String(); got != test.want {
			t.Errorf("%q\nwant %q", got, test.want)
		}
	}
}

// TestUpFunctions: `up` says of each function whether it can be called, having tried
// those that no instance is wanted of, and waits for none that cannot start.
func TestUpFunctions(t *testing.T) {
	root := t.TempDir()
	config := filepath.Join(root, "functions.yaml")
	content := `kind: Function
name: idle
source: idle
server: {command: [sh, -c, "exec python3 -m http.server $PORT"]}
scale: {max: 2}
---
kind: Function
name: broken
source: idle
server: {command: [sh, -c, "echo there is no such table >&2; exit 3"]}
scale: {min: 1}
---
kind: Function
name: unbuilt
source: idle
server: {command: [./x], build: [sh, -c, "echo the compiler says no >&2; exit 1"]}
scale: {max: 2}
`
	for _, name := range []string{"idle", "broken", "unbuilt"} {
		content += fmt.Sprintf("---\nkind: Route\nname: %s\nrules:\n- matches: [{path: {prefix: /%s}}]\n  forward: {backends: [{backend: functions/%s}]}\n", name, name, name)
	}
	if err := os.Mkdir(filepath.Join(root, "idle"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(config, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	in := newInstallation(t)
	out := in.up(t, "--no-jaeger", "--config", config)
	for _, want := range []string{"1 of 3 ready; failing: ", "broken: ", "no such table", "unbuilt: ", "the compiler says no"} {
		if !strings.Contains(out, want) {
			t.Errorf("the summary does not say %q:\n%s", want, out)
		}
	}
	if s := in.state(t).Functions; strings.Contains(s, "starting") {
		t.Errorf("something was waited for: %s", s)
	}
}
