package functions_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/penstock-gateway/penstock/functions"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// refused waits until a function is told as one that refuses, and calls it.
func (r *runner) refused(t testing.TB, id string) answer {
	t.Helper()
	var st *pb.FunctionState
	r.await(id+" refusing", func(s *pb.RunnerState) bool {
		for _, f := range s.GetFunctions() {
			if f.GetFunction() == name(id) && f.GetRefusing() && f.GetActivatorAddress() != "" {
				st = f
			}
		}
		return st != nil
	})
	return mustSend(t, &pb.Instance{Address: st.GetActivatorAddress(), Port: st.GetActivatorPort()}, "GET", "/", "")
}

// TestCannotStart: however it is that a function cannot be run, whether scaled or not,
// its callers get 503 with the reason, and 200 when it is mended.
func TestCannotStart(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	if err := os.CopyFS(filepath.Join(root, "py"), os.DirFS("testdata/root/py")); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(root, "empty", "readme"), "nothing to run")
	write(t, filepath.Join(root, "deps", "requirements.txt"), "no spaces = allowed\n")
	write(t, filepath.Join(root, "deps", "app.py"), hello)
	write(t, filepath.Join(root, "dies", "app.py"), "import sys\nsys.exit('no config')\n")
	r := startRunner(t, func(c *functions.Config) { c.Root = root })
	server := func(source string, build ...string) *pb.Function {
		return &pb.Function{Source: source, Contract: &pb.Function_Server{Server: &pb.ServerContract{Command: []string{"python3", "app.py"}, Build: build}}}
	}
	lambda := func(source string, runtime pb.LambdaRuntime) *pb.Function {
		return &pb.Function{Source: source, Contract: &pb.Function_Lambda{Lambda: &pb.LambdaContract{Runtime: runtime, Handler: "app.handler"}}}
	}
	cases := map[string]struct {
		f          *pb.Function
		kind, text string
		// onlyFixed: with scale nothing is known before the first request.
		onlyFixed bool
	}{
		"absent":    {lambda("absent", pb.LambdaRuntime_LAMBDA_RUNTIME_PYTHON), "cannot-start", "does not exist in the runner's functions root", false},
		"package":   {lambda("sha256:"+strings.Repeat("a", 64), pb.LambdaRuntime_LAMBDA_RUNTIME_PYTHON), "cannot-start", "upload it again", false},
		"bootstrap": {lambda("empty", pb.LambdaRuntime_LAMBDA_RUNTIME_PROVIDED), "cannot-start", "bootstrap", false},
		"build":     {server("empty", "sh", "-c", "echo the reason; exit 3"), "cannot-start", "failed: exit status 3: the reason", false},
		"deps":      {lambda("deps", pb.LambdaRuntime_LAMBDA_RUNTIME_PYTHON), "cannot-start", "its dependencies", false},
		"image":     {&pb.Function{Source: "empty", Contract: &pb.Function_Server{Server: &pb.ServerContract{Image: "x", Command: []string{"x"}}}}, "cannot-start", "cannot run container images", false},
		"dies":      {server("dies"), "crash-loop", "no config", true},
	}
	var wanted []*pb.Function
	for id, c := range cases {
		fixed := clone(c.f, func(f *pb.Function) { f.Name, f.Instances = name(id), 1 })
		wanted = append(wanted, fixed)
		if !c.onlyFixed {
			wanted = append(wanted, clone(c.f, func(f *pb.Function) { f.Name, f.Scale = name(id+"-scaled"), &pb.Scale{Max: 1} }))
		}
	}
	r.want(wanted...)
	for id, c := range cases {
		for _, id := range []string{id, id + "-scaled"} {
			if c.onlyFixed && strings.HasSuffix(id, "-scaled") {
				continue
			}
			a := r.refused(t, id)
			if a.status != 503 || a.header.Get("x-penstock-error") != c.kind || !strings.Contains(a.body, c.text) {
				t.Errorf("%s: %d %s %s; want 503 %s with %q", id, a.status, a.header.Get("x-penstock-error"), a.body, c.kind, c.text)
			}
		}
	}
	if out := r.state.GetProblemOutput()[name("build")]; out != "the reason" {
		t.Errorf("the output of the failed build is told as %q", out)
	}
	if p := r.state.GetProblems()[name("build")]; !strings.HasSuffix(p, "; more: penstock fn describe build") {
		t.Errorf("the problem of the failed build: %s", p)
	}

	// Mended, it serves, and what answered for it is gone.
	write(t, filepath.Join(root, "dies", "app.py"), "import http.server, os\nhttp.server.HTTPServer(('127.0.0.1', int(os.environ['PORT'])), http.server.SimpleHTTPRequestHandler).serve_forever()\n")
	if a := mustSend(t, r.ready("dies", 1)[0], "GET", "/app.py", ""); a.status != 200 {
		t.Errorf("mended: %+v", a)
	}
	r.await("no refusal", func(s *pb.RunnerState) bool {
		for _, f := range s.GetFunctions() {
			if f.GetFunction() == name("dies") && (f.GetRefusing() || f.GetActivatorAddress() != "") {
				return false
			}
		}
		return true
	})
}
