// Package runnertest is what every runner must do, whatever it runs functions on:
// Conform is the control plane's side of RunnerService and puts a runner to the test
// with functions that it builds itself. The runner of package functions passes it; a
// runner for another platform has to.
//
// What the suite sees of a runner is what it says on its stream and how the
// addresses that it names answer, which must be reachable from the test.
package runnertest

import (
	"bytes"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
	"github.com/penstock-gateway/penstock/internal/archive"
)

// Place is what a runner under test is started with.
type Place struct {
	// Name of the runner.
	Name string
	// Root is the folder that Function.source is relative to. Runners share it, and
	// it is only read.
	Root string
	// Conn leads to the suite's RunnerService.
	Conn *grpc.ClientConn
}

// Start starts a runner. It is called once for each test of the suite, from several
// at one time. stop ends the runner and returns when its instances are gone; it is
// called once.
type Start func(t *testing.T, p Place) (stop func())

// Contract is a way in which functions are called.
type Contract string

// The contracts that the suite has a function for.
const (
	Server Contract = "server" // Function.server; every runner runs it
	Lambda Contract = "lambda" // Function.lambda, LAMBDA_RUNTIME_PROVIDED
	Azure  Contract = "azure"  // Function.azure
)

// Can is what a runner offers. What it does not, it must refuse as a problem of the
// function.
type Can struct {
	// Contracts that it runs besides Server.
	Contracts []Contract
	// ScaleToZero: functions with scale.min 0 have no instance while nobody calls.
	ScaleToZero bool
	// Isolate: isolation.level SANDBOX can be had on this machine.
	Isolate bool
}

// Conform tests a runner. The Go tool must be at hand, for the function that it runs
// is built first.
func Conform(t *testing.T, start Start, can Can) {
	s := &suite{start: start, can: can, root: writeRoot(t)}
	tests := map[string]func(*testing.T, *runner){
		"run": testRun, "contracts": testContracts, "rollout": testRollout, "bad version": testBadVersion,
		"older version": testOlderVersion, "replace": testReplace, "stats": testStats, "lines": testLines,
		"stream lost": testStreamLost, "package": testPackage, "secrets": testSecrets, "isolation": testIsolation, "stop": testStop,
	}
	if can.ScaleToZero {
		tests["scale to zero"] = testScaleToZero
	}
	for _, name := range slices.Sorted(maps.Keys(tests)) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tests[name](t, s.run(t))
		})
	}
}

type suite struct {
	start Start
	can   Can
	root  string
}

// runnerName is what each runner is called.
const runnerName = "runner-1"

// runner is a runner under test and the control plane that it is connected to.
type runner struct {
	*plane
	suite *suite
	stop  func()
}

// run starts a runner until the test ends.
func (s *suite) run(t *testing.T) *runner {
	t.Helper()
	r := &runner{plane: newPlane(t), suite: s}
	conn, err := grpc.NewClient("unix:"+r.socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	r.stop = sync.OnceFunc(s.start(t, Place{Name: runnerName, Root: s.root, Conn: conn}))
	t.Cleanup(func() {
		r.update(func() { r.deaf = false }) // of a test that failed
		r.stop()
	})
	r.await("a hello", func() bool { return len(r.hellos) > 0 })
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.hellos[0] != runnerName {
		t.Errorf("the hello names %q, want %q", r.hellos[0], runnerName)
	}
	return r
}

// writeRoot makes a functions root with one source for each contract, all of which
// are the same program.
func writeRoot(t *testing.T) string {
	t.Helper()
	root := t.TempDir()
	for _, dir := range []string{"server", "lambda", "azure/all"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	program := filepath.Join(root, "server", "server")
	build := exec.CommandContext(t.Context(), "go", "build", "-ldflags", "-s -w", "-o", program,
		"github.com/penstock-gateway/penstock/functions/runnertest/server")
	build.Env = append(os.Environ(), "CGO_ENABLED=0") // it runs without libraries, too
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the function: %v\n%s", err, out)
	}
	for _, name := range []string{"lambda/bootstrap", "azure/server"} {
		if err := os.Link(program, filepath.Join(root, name)); err != nil {
			t.Fatal(err)
		}
	}
	for name, text := range map[string]string{
		"azure/host.json": `{"version": "2.0", "extensions": {"http": {"routePrefix": ""}}, "customHandler": {
			"description": {"defaultExecutablePath": "server"}, "enableForwardingHttpRequest": true}}`,
		"azure/all/function.json": `{"bindings": [
			{"type": "httpTrigger", "direction": "in", "name": "req", "authLevel": "anonymous", "route": "{*rest}"},
			{"type": "http", "direction": "out", "name": "res"}]}`,
	} {
		if err := os.WriteFile(filepath.Join(root, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

// pack makes a package of a source and returns it with its digest.
func (s *suite) pack(t *testing.T, source string) (digest string, zip []byte) {
	t.Helper()
	var b bytes.Buffer
	if err := archive.Pack(&b, filepath.Join(s.root, source), nil); err != nil {
		t.Fatal(err)
	}
	digest, err := archive.Digest(bytes.NewReader(b.Bytes()))
	if err != nil {
		t.Fatal(err)
	}
	return digest, b.Bytes()
}

func full(id string) string { return "projects/default/functions/" + id }

// function is a function with one instance that answers its id.
func function(id string, change ...func(*pb.Function)) *pb.Function {
	f := &pb.Function{
		Name: full(id), Source: "server", Instances: 1, Timeout: durationpb.New(10 * time.Second),
		Env:      map[string]string{"GREETING": id},
		Contract: &pb.Function_Server{Server: &pb.ServerContract{Command: []string{"./server"}}},
	}
	return with(f, change...)
}

// with is a copy of a function with changes.
func with(f *pb.Function, change ...func(*pb.Function)) *pb.Function {
	f = proto.CloneOf(f)
	for _, c := range change {
		c(f)
	}
	return f
}

func count(n uint32) func(*pb.Function) { return func(f *pb.Function) { f.Instances = n } }

func env(key, value string) func(*pb.Function) { return func(f *pb.Function) { f.Env[key] = value } }
