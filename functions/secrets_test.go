package functions_test

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protojson"

	"github.com/penstock-gateway/penstock/functions"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// showsAll answers all that it can see of processes: its own environment, and what
// /proc has of others.
const showsAll = `
import glob, http.server, os
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        out = [b"own " + os.environ.get("DB_URL", "none").encode()]
        for name in glob.glob("/proc/[0-9]*/environ") + glob.glob("/proc/[0-9]*/cmdline"):
            if name.split("/")[2] == str(os.getpid()): continue
            try: out.append(open(name, "rb").read())
            except OSError: pass
        body = b"\n".join(out)
        self.send_response(200); self.send_header("content-length", str(len(body))); self.end_headers()
        self.wfile.write(body)
    def log_message(self, *a): pass
http.server.HTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
`

// TestSecretsStayInside: the value of a secret is in the environment of the instance,
// and nowhere else: not in its build, in a command line, in the view of another
// function, in a file, in what the runner says, logs and traces.
func TestSecretsStayInside(t *testing.T) {
	t.Parallel()
	canary := "canary-" + rand.Text() // the same test may run elsewhere on the machine
	root, cache := t.TempDir(), t.TempDir()
	if err := os.Mkdir(filepath.Join(root, "f"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "f", "app.py"), []byte(showsAll), 0o644); err != nil {
		t.Fatal(err)
	}
	r := startRunner(t, func(c *functions.Config) { c.Root, c.CacheDir = root, cache })
	shows := func(id string) *pb.Function {
		return &pb.Function{Name: name(id), Source: "f", Instances: 1, Contract: &pb.Function_Server{Server: &pb.ServerContract{
			Command: []string{"python3", "app.py"}, Build: []string{"sh", "-c", "env; env > environment.txt"},
		}}}
	}
	holder := shows("holder")
	holder.EnvSecrets = map[string]*pb.SecretKey{"DB_URL": {Secret: "db", Key: "url"}}
	r.update(func() {
		r.secrets = []*pb.FunctionSecrets{{Function: holder.GetName(), Env: map[string]string{"DB_URL": canary}}}
		r.listening = []string{name("holder"), name("other")}
	})
	r.want(holder, shows("other"))
	holding, other := r.ready("holder", 1)[0], r.ready("other", 1)[0]
	if a := mustSend(t, holding, "GET", "/", ""); !strings.HasPrefix(a.body, "own "+canary) {
		t.Fatalf("the instance has %.100q", a.body)
	}
	if a := mustSend(t, other, "GET", "/", ""); strings.Contains(a.body, canary) || !strings.HasPrefix(a.body, "own none") {
		t.Errorf("another function sees the value:\n%q", a.body)
	}
	if where := processesWith(t, canary); !slices.Equal(where, []string{fmt.Sprintf("/proc/%d/environ", holding.GetPid())}) {
		t.Errorf("the value is in %v, want the environment of the instance, %d, alone", where, holding.GetPid())
	}
	built := false
	for _, dir := range []string{root, cache} {
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() {
				return err
			}
			b, err := os.ReadFile(path)
			built = built || d.Name() == "environment.txt" && len(b) > 0
			if bytes.Contains(b, []byte(canary)) {
				t.Errorf("the value is in %s", path)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if !built {
		t.Error("no build wrote its environment down")
	}
	r.stop()
	r.logs.mu.Lock()
	defer r.logs.mu.Unlock()
	said := fmt.Sprint(r.logs.records, r.spans.GetSpans(), protojson.Format(r.state), r.stats, r.lines)
	if strings.Contains(said, canary) {
		t.Errorf("the runner says the value:\n%s", said)
	}
}

// processesWith are the files of /proc that hold a text, of all processes.
func processesWith(t *testing.T, text string) (found []string) {
	t.Helper()
	for _, pattern := range []string{"/proc/[0-9]*/environ", "/proc/[0-9]*/cmdline"} {
		names, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range names {
			if b, err := os.ReadFile(n); err == nil && bytes.Contains(b, []byte(text)) {
				found = append(found, n)
			}
		}
	}
	return found
}
