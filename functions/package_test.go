package functions_test

import (
	"archive/zip"
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/penstock-gateway/penstock/functions"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
	"github.com/penstock-gateway/penstock/internal/archive"
)

// FetchPackage implements pb.RunnerServiceServer.
func (c *control) FetchPackage(r *pb.FetchPackageRequest, stream grpc.ServerStreamingServer[pb.FetchPackageResponse]) error {
	c.mu.Lock()
	b, ok := c.packages[r.GetDigest()]
	c.fetches++
	c.mu.Unlock()
	if !ok {
		return status.Errorf(codes.NotFound, "there is no package %s", r.GetDigest())
	}
	for part := range slices.Chunk(b, 64<<10) {
		if err := stream.Send(&pb.FetchPackageResponse{Chunk: part}); err != nil {
			return err
		}
	}
	return nil
}

// zipOf is a zip file of some files.
func zipOf(t testing.TB, files map[string]string) []byte {
	t.Helper()
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	for name, text := range files {
		w, err := z.Create(name)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func digestOf(t testing.TB, b []byte) string {
	t.Helper()
	d, err := archive.Digest(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func source(s string) func(*pb.Function) { return func(f *pb.Function) { f.Source = s } }

const hello = "def handler(event, context):\n    return 'from a package'\n"

// TestPackages runs functions out of zip files: one below the root, one that was
// uploaded, which is fetched once.
func TestPackages(t *testing.T) {
	t.Parallel()
	packed := zipOf(t, map[string]string{"app.py": hello})
	digest := digestOf(t, packed)
	root := t.TempDir()
	r := startRunner(t, func(c *functions.Config) { c.Root = root })
	r.packages = map[string][]byte{digest: packed}
	if err := os.WriteFile(filepath.Join(root, "hello.zip"), zipOf(t, map[string]string{"app.py": hello, "b.txt": "b"}), 0o644); err != nil {
		t.Fatal(err)
	}
	first := python("uploaded", "app.handler", source(digest))
	r.want(first, python("zipped", "app.handler", source("hello.zip")))
	for _, f := range []string{"uploaded", "zipped"} {
		if a := mustSend(t, r.ready(f, 1)[0], "GET", "/", ""); a.status != 200 || !strings.Contains(a.body, "from a package") {
			t.Errorf("%s: %+v", f, a)
		}
	}
	r.want(clone(first, env(map[string]string{"VERSION": "2"})), python("again", "app.handler", source(digest)))
	r.ready("again", 1)
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.fetches != 1 {
		t.Errorf("the package was fetched %d times", r.fetches)
	}
}

// TestBadPackages: what is wrong with a package is the function's problem, in words.
func TestBadPackages(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	r := startRunner(t, func(c *functions.Config) { c.Root = root })
	traversal := zipOf(t, map[string]string{"../../escape.py": hello})
	bomb := zipOf(t, map[string]string{"zeros": strings.Repeat("\x00", 64<<20)})
	good := zipOf(t, map[string]string{"app.py": hello})
	r.packages = map[string][]byte{
		digestOf(t, traversal): traversal, digestOf(t, bomb): bomb,
		"sha256:" + strings.Repeat("a", 64): good,
	}
	for name, b := range map[string][]byte{"no.zip": []byte("no zip at all"), "file": []byte("x"), "bomb.zip": bomb} {
		if err := os.WriteFile(filepath.Join(root, name), b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	cases := map[string]struct{ source, text string }{
		"traversal":    {digestOf(t, traversal), "leads out of the archive"},
		"bomb":         {digestOf(t, bomb), "times its size"},
		"bomb-file":    {"bomb.zip", "times its size"},
		"digest":       {"sha256:" + strings.Repeat("a", 64), "what came has the digest " + digestOf(t, good)},
		"absent":       {"sha256:" + strings.Repeat("b", 64), "no such package: upload it again"},
		"short":        {"sha256:12", "64 hexadecimal digits"},
		"no-zip":       {"no.zip", "not a zip file"},
		"no-file":      {"absent.zip", "does not exist"},
		"neither":      {"file", "must be a folder or a .zip file"},
		"leaves":       {"../x.zip", "leaves the runner's functions root"},
		"leaves-there": {"../" + filepath.Base(root) + "/no.zip", "leaves the runner's functions root"},
	}
	var wanted []*pb.Function
	for name, c := range cases {
		wanted = append(wanted, python(name, "app.handler", source(c.source)))
	}
	r.want(wanted...)
	for id, c := range cases {
		s := r.await("a problem of "+id, func(s *pb.RunnerState) bool { return s.GetProblems()[name(id)] != "" })
		if got := s.GetProblems()[name(id)]; !strings.Contains(got, c.text) {
			t.Errorf("%s: %s; want %q", id, got, c.text)
		}
	}
	if _, err := os.Stat(filepath.Join(filepath.Dir(root), "escape.py")); err == nil {
		t.Error("a package wrote out of its folder")
	}
}

// TestLayers installs the dependencies that a source names, once.
func TestLayers(t *testing.T) {
	t.Parallel()
	r := startRunner(t)
	deps := func(id string) *pb.Function { return python(id, "app.handler", source("deps")) }
	r.want(deps("deps"), deps("twin"), gcf("nodedeps", "nodedeps", frameworkNode, "check"))
	for _, f := range []string{"deps", "twin"} {
		if a := mustSend(t, r.ready(f, 1)[0], "GET", "/", ""); !strings.Contains(a.body, "/layers/") || !strings.Contains(a.body, "IniConfig") {
			t.Errorf("%s: %+v", f, a)
		}
	}
	if a := mustSend(t, r.ready("nodedeps", 1)[0], "GET", "/", ""); !strings.Contains(a.body, `"seven":true`) || !strings.Contains(a.body, "/layers/") {
		t.Errorf("nodedeps: %+v", a)
	}
	builds := 0
	r.logs.mu.Lock()
	for _, m := range r.logs.records {
		if c, _ := m["command"].(string); m["msg"] == "built" && strings.Contains(c, "pip install") {
			builds++
		}
	}
	r.logs.mu.Unlock()
	if builds != 1 {
		t.Errorf("pip ran %d times for one requirements.txt", builds)
	}
	before := r.ready("deps", 1)[0].GetId()
	r.want(python("deps", "app.handler", source("deps"), func(f *pb.Function) { f.Dependencies = pb.DependencyMode_DEPENDENCY_MODE_NONE }))
	// The interpreter itself may have the package or not.
	s := r.await("one without a layer", func(s *pb.RunnerState) bool {
		of := instances(s, "deps")
		return s.GetProblems()[name("deps")] != "" || len(of) == 1 && of[0].GetState() == pb.InstanceState_INSTANCE_STATE_READY && of[0].GetId() != before
	})
	if why := s.GetProblems()[name("deps")]; why != "" {
		if !strings.Contains(why, "iniconfig") {
			t.Error(why)
		}
	} else if a := mustSend(t, instances(s, "deps")[0], "GET", "/", ""); strings.Contains(a.body, "/layers/") {
		t.Errorf("dependencies: NONE has a layer: %+v", a)
	}
}

// TestBadDependencies: what cannot be installed is the function's problem.
func TestBadDependencies(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	write := func(path, text string) {
		path = filepath.Join(root, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	cases := map[string]struct{ file, text, want string }{
		"grammar":  {"requirements.txt", "iniconfig=2.1.0", "Invalid requirement"},
		"folder":   {"requirements.txt", "-e .", "requirements.txt, line 1"},
		"leaves":   {"requirements.txt", "-r ../../other.txt", "line 1"},
		"missing":  {"requirements.txt", "\n-c absent.txt", "requirements.txt, line 2"},
		"json":     {"package.json", "{", "package.json: "},
		"registry": {"package.json", `{"dependencies": {"x": "file:../other"}}`, "put node_modules into the source"},
	}
	var wanted []*pb.Function
	for id, c := range cases {
		write(id+"/"+c.file, c.text)
		write(id+"/app.py", hello)
		write(id+"/index.js", "exports.check = (req, res) => res.send('x')")
		f := python(id, "app.handler", source(id))
		if c.file == "package.json" {
			f = gcf(id, id, frameworkNode, "check")
		}
		wanted = append(wanted, f)
	}
	r := startRunner(t, func(c *functions.Config) { c.Root = root })
	r.want(wanted...)
	for id, c := range cases {
		s := r.await("a problem of "+id, func(s *pb.RunnerState) bool { return s.GetProblems()[name(id)] != "" })
		if got := s.GetProblems()[name(id)]; !strings.Contains(got, c.want) {
			t.Errorf("%s: %s; want %q", id, got, c.want)
		}
	}
}
