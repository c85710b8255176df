package main

import (
	"archive/zip"
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/types/known/timestamppb"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// fn runs a verb of fn against an installation.
func (in *installation) fn(t *testing.T, args ...string) (string, error) {
	t.Helper()
	args = append([]string{"fn"}, args...)
	if args[1] != "init" && args[1] != "replay" {
		args = append(args, "--server", in.flags.api)
	}
	return in.run(t, args...)
}

func (in *installation) mustFn(t *testing.T, args ...string) string {
	t.Helper()
	out, err := in.fn(t, args...)
	if err != nil {
		t.Fatalf("fn %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

func body(t *testing.T, url string) string {
	t.Helper()
	res, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%d %s", res.StatusCode, strings.TrimSpace(string(b)))
}

func edit(t *testing.T, file, old, with string) {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(b), old) {
		t.Fatalf("%s holds no %q", file, old)
	}
	if err := os.WriteFile(file, []byte(strings.ReplaceAll(string(b), old, with)), 0o644); err != nil {
		t.Fatal(err)
	}
}

// TestFunctionsByCommand is the life of a function on real parts: written, deployed,
// called, broken, split, taken back.
func TestFunctionsByCommand(t *testing.T) {
	in := newInstallation(t)
	in.up(t, "--config", helloConfig(t, "/plain"), "--functions-root", t.TempDir(), "--no-jaeger")
	dir := filepath.Join(t.TempDir(), "hello")
	if out, err := in.fn(t, "init", "hello", "--dir", dir); err != nil || !strings.Contains(out, "app.py") {
		t.Fatalf("init: %v\n%s", err, out)
	}
	if out, err := in.fn(t, "init", "hello", "--dir", dir); err == nil || !strings.Contains(out, "is not empty") {
		t.Errorf("init into a folder with files: %v\n%s", err, out)
	}
	out := in.mustFn(t, "deploy", dir)
	if !strings.Contains(out, "uploaded") || !strings.Contains(out, "serving on 1 of 1 proxies") {
		t.Errorf("deploy:\n%s", out)
	}
	url := "http://" + in.flags.gateway + "/hello?name=ada"
	if got := body(t, url); got != `200 {"hello": "ada"}` {
		t.Errorf("the first request: %s", got)
	}

	// A new version is what the gateway serves when the command returns.
	app := filepath.Join(dir, "app.py")
	edit(t, app, `{"hello": who}`, `{"hi": who}`)
	in.mustFn(t, "deploy", dir)
	if got := body(t, url); got != `200 {"hi": "ada"}` {
		t.Errorf("after the second deployment: %s", got)
	}

	// The author of a bug sees where it is.
	edit(t, app, `print("greeting", who)`, `print("greeting", who, 1 / len(who))`)
	in.mustFn(t, "deploy", dir, "--split", "0", "--tag", "canary")
	if got := body(t, "http://"+in.flags.gateway+"/hello?name="); got != `200 {"hi": ""}` {
		t.Errorf("the version with the requests: %s", got)
	}
	out, err := in.fn(t, "invoke", "hello", "--version", "canary", "--path", "/?name=")
	if err == nil || !strings.Contains(out, "status 502") || !strings.Contains(out, "ZeroDivisionError") {
		t.Errorf("invoke of the version with a bug: %v\n%s", err, out)
	}
	if !strings.Contains(out, `File "app.py"`) || strings.Contains(out, in.dataDir) {
		t.Errorf("the trace does not name the file as it is in the source:\n%s", out)
	}
	if out := in.mustFn(t, "invoke", "hello", "--path", "/?name=bob", "-i"); !strings.Contains(out, `{"hi": "bob"}`) || !strings.Contains(out, "200 in ") {
		t.Errorf("invoke:\n%s", out)
	}
	await(t, func() error {
		if out := in.mustFn(t, "logs", "hello"); !strings.Contains(out, "greeting ada") {
			return fmt.Errorf("logs:\n%s", out)
		}
		return nil
	})

	in.mustFn(t, "promote", "hello")
	in.mustFn(t, "rollback", "hello")
	if got := body(t, "http://"+in.flags.gateway+"/hello?name="); got != `200 {"hi": ""}` {
		t.Errorf("after the rollback: %s", got)
	}
	testRollbackStays(t, in, dir)
	in.mustFn(t, "scale", "hello", "--max", "3", "--objective", "p99 <= 300ms", "--queue", "direct")
	await(t, func() error {
		out := in.mustFn(t, "explain-scale", "hello")
		if !strings.Contains(out, "max 3") || !strings.Contains(out, "E[T]") {
			return fmt.Errorf("explain-scale:\n%s", out)
		}
		return nil
	})
	await(t, func() error {
		out := in.mustFn(t, "describe", "hello")
		for _, want := range []string{"contract   lambda/python", "E[T] = t ", "cost ", "route      routes/hello", " ready"} {
			if !strings.Contains(out, want) {
				return fmt.Errorf("describe has no %q:\n%s", want, out)
			}
		}
		return nil
	})
	if out := in.mustFn(t, "ls"); !regexp.MustCompile(`(?m)^hello +lambda/python`).MatchString(out) {
		t.Errorf("ls:\n%s", out)
	}
	testBrokenTwice(t, in, dir)
	testWaitForNothing(t, in)
	testBuildIsTold(t, in)
	testBadFn(t, in, dir)
	testDev(t, in, dir)
}

// testRollbackStays deploys after a rollback, and does what is printed then.
func testRollbackStays(t *testing.T, in *installation, dir string) {
	url := "http://" + in.flags.gateway + "/hello?name=eve"
	app := filepath.Join(dir, "app.py")
	edit(t, app, `{"hi": who}`, `{"next": who}`)
	out := in.mustFn(t, "deploy", dir)
	if got := body(t, url); got != `200 {"hi": "eve"}` {
		t.Errorf("a deployment after a rollback serves: %s", got)
	}
	hint := regexp.MustCompile("`penstock fn (promote [^`]+)`").FindStringSubmatch(out)
	if hint == nil {
		t.Fatalf("a deployment after a rollback does not say how it gets requests:\n%s", out)
	}
	in.mustFn(t, strings.Fields(hint[1])...)
	if got := body(t, url); got != `200 {"next": "eve"}` {
		t.Errorf("after %s: %s", hint[0], got)
	}
	edit(t, app, `{"next": who}`, `{"hi": who}`)
	in.mustFn(t, "deploy", dir)
	if got := body(t, url); got != `200 {"hi": "eve"}` {
		t.Errorf("a deployment after the promotion: %s", got)
	}
}

// testBrokenTwice: a function that cannot run is an error as long as it is there,
// not only for the command that brought it.
func testBrokenTwice(t *testing.T, in *installation, dir string) {
	app := filepath.Join(dir, "app.py")
	edit(t, app, "import json", "import jsom")
	for _, args := range [][]string{
		{"fn", "deploy", dir}, {"fn", "deploy", dir}, {"fn", "deploy", dir}, {"wait"}, {"status"}, {"status", "-o", "json"},
	} {
		cmd := penstock(t.Context(), append(args, "--server", in.flags.api)...)
		out, err := cmd.CombinedOutput()
		if cmd.ProcessState.ExitCode() != 3 || !strings.Contains(string(out), "jsom") {
			t.Errorf("%s: %v, want exit code 3 and the reason\n%s", strings.Join(args, " "), err, out)
		}
	}
	edit(t, app, "import jsom", "import json")
	in.mustFn(t, "deploy", dir)
	for _, verb := range []string{"wait", "status"} {
		if out, err := in.run(t, verb, "--server", in.flags.api); err != nil {
			t.Errorf("%s of what is mended: %v\n%s", verb, err, out)
		}
	}
}

// testBuildIsTold: while a build goes on, the command that waits for it says so.
func testBuildIsTold(t *testing.T, in *installation) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		"function.yaml": "kind: Function\nname: built\nserver: {command: [sh, -c, 'exec python3 -m http.server $PORT'], build: [sh, -c, 'until [ -e go ]; do sleep 0.05; done; echo compiled > index.html']}\n",
		"note.txt":      "what is built",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cmd := penstock(t.Context(), "fn", "deploy", dir, "--server", in.flags.api)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines, told := bufio.NewScanner(out), false
	for !told && lines.Scan() {
		told = strings.HasPrefix(lines.Text(), "  it is being built: sh -c until")
	}
	if !told {
		t.Fatalf("the deployment does not tell of the build: %v", cmd.Wait())
	}
	// Now it may end.
	err = filepath.WalkDir(in.dataDir, func(path string, _ fs.DirEntry, err error) error {
		if err == nil && filepath.Base(path) == "note.txt" {
			return os.WriteFile(filepath.Join(filepath.Dir(path), "go"), nil, 0o600)
		}
		return nil // what goes meanwhile
	})
	if err != nil {
		t.Fatal(err)
	}
	for lines.Scan() {
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("the deployment: %v", err)
	}
	if out := in.mustFn(t, "invoke", "built"); !strings.Contains(out, "compiled") {
		t.Errorf("what was built:\n%s", out)
	}
}

func testBadFn(t *testing.T, in *installation, dir string) {
	empty := t.TempDir()
	described := t.TempDir()
	if err := os.WriteFile(filepath.Join(described, functionFile), []byte("kind: Functoin\nname: x\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(described, "x.py"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, row := range []struct {
		args []string
		want string
	}{
		{[]string{"deploy", empty}, "holds no file"},
		{[]string{"deploy", filepath.Join(dir, "app.py"), "--name", "hello"}, "not a zip file"},
		{[]string{"deploy", described}, "function.yaml:1:7: unknown kind"},
		{[]string{"deploy", filepath.Join(empty, "none")}, "no such file"},
		{[]string{"deploy", dir, "--split", "101"}, "it is a part of 100"},
		{[]string{"invoke", "none"}, "does not exist"},
		{[]string{"invoke", "hello", "--version", "7"}, "neither a tag nor a number"},
		{[]string{"invoke", "hello", "-H", "x"}, "has no colon"},
		{[]string{"invoke", "hello", "--path", "x"}, "must begin with /"},
		{[]string{"logs", "routes/hello"}, "is not a function"},
		{[]string{"rollback", "hello", "--to", "1"}, "no such version"},
		{[]string{"scale", "hello", "--queue", "x"}, "none of direct, central, auto"},
		{[]string{"scale", "hello", "--objective", "fast"}, "objective"},
		{[]string{"init", "Hello"}, "is not a valid name of a function"},
		{[]string{"init", "x", "--template", "cobol"}, "none of azure-python"},
	} {
		if out, err := in.fn(t, row.args...); err == nil || !strings.Contains(out, row.want) {
			t.Errorf("fn %s: %v, want %q\n%s", strings.Join(row.args, " "), err, row.want, out)
		}
	}
}

// testDev saves a handler with the mistakes that people make, and without.
func testDev(t *testing.T, in *installation, dir string) {
	cmd := penstock(t.Context(), "fn", "dev", dir, "--server", in.flags.api)
	out := &watched{}
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Process.Signal(os.Interrupt); _ = cmd.Wait() }()
	has := func(text string, times int) {
		t.Helper()
		await(t, func() error {
			if got := out.String(); strings.Count(got, text) < times {
				return fmt.Errorf("fn dev says %q not %d times:\n%s", text, times, got)
			}
			return nil
		})
	}
	url, app := "http://"+in.flags.gateway+"/hello?name=", filepath.Join(dir, "app.py")
	has("* functions/hello serves version ", 1)
	if got := body(t, url); !strings.HasPrefix(got, "502") {
		t.Errorf("the handler with a bug: %s", got)
	}
	has("> app.py:7: print(\"greeting\", who, 1 / len(who))", 1)
	edit(t, app, "1 / len(who)", "len(who)")
	has("* functions/hello serves version ", 2)
	if got := body(t, url); got != `200 {"hi": ""}` {
		t.Errorf("the handler without: %s", got)
	}
	serves := 2
	for _, mistake := range []struct{ old, with, place string }{
		{"def handler(event, context):", "def handler(event, context:", "> app.py:4: def handler(event, context:"},
		{"import json", "import jsom", "> app.py:1: import jsom"},
		{"import json", "import json\nlen(7)", "> app.py:2: len(7)"},
	} {
		before := len(out.String())
		edit(t, app, mistake.old, mistake.with)
		has("! functions/hello cannot run version ", serves-1)
		said := out.String()[before:]
		if !strings.Contains(said, mistake.place+"\n") || strings.Count(said, "> app.py") != 1 || strings.Contains(said, "LAMBDA_WARNING") || strings.Contains(said, in.dataDir) {
			t.Errorf("with %q fn dev says:\n%s", mistake.with, said)
		}
		if got := body(t, url); got != `200 {"hi": ""}` {
			t.Errorf("meanwhile: %s", got)
		}
		has("still answers meanwhile\n", serves-1)
		if n := strings.Count(out.String()[before:], "\n"); n > 12 {
			t.Errorf("%d lines for one mistake:\n%s", n, out.String()[before:])
		}
		edit(t, app, mistake.with, mistake.old)
		serves++
		has("* functions/hello serves version ", serves)
	}
	edit(t, filepath.Join(dir, functionFile), "kind: Function\n", "kind: Funktion\n")
	has("function.yaml:", 1)
}

// TestDevWaits starts fn dev before there is a control plane.
func TestDevWaits(t *testing.T) {
	in := newInstallation(t)
	dir := filepath.Join(t.TempDir(), "hello")
	if _, err := writeTemplate("lambda-python", "hello", dir); err != nil {
		t.Fatal(err)
	}
	cmd := penstock(t.Context(), "fn", "dev", dir, "--data-dir", in.dataDir)
	out := &watched{}
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Process.Signal(os.Interrupt); _ = cmd.Wait() }()
	says := func(want string) {
		t.Helper()
		await(t, func() error {
			if got := out.String(); !strings.Contains(got, want) {
				return fmt.Errorf("fn dev does not say %q:\n%s", want, got)
			}
			return nil
		})
	}
	says("! no control plane runs on the data folder ")
	says("waiting for it: `penstock up` in another terminal starts one")
	in.up(t, "--no-jaeger")
	says("* functions/hello serves version ")
	if got := out.String(); strings.Count(got, "waiting for it:") != 1 {
		t.Errorf("it says more than once that it waits:\n%s", got)
	}
}

// watched is output that is looked at while it is written.
type watched struct {
	lockedWriter
	b strings.Builder
}

func (w *watched) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.b.Write(p)
}

func (w *watched) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.b.String()
}

// TestTemplates: every template is written, and describes a function that is valid.
func TestTemplates(t *testing.T) {
	for _, name := range templateNames() {
		dir := filepath.Join(t.TempDir(), "f")
		if _, err := writeTemplate(name, "greet", dir); err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		d, err := readDeployment(dir, "default", "")
		if err != nil || d.function.GetName() != "projects/default/functions/greet" || len(d.objects) != 2 {
			t.Errorf("%s: %v, %v", name, d, err)
		}
	}
}

// TestDevPlaces finds the line of code that a line of output names, in the version
// that printed it.
func TestDevPlaces(t *testing.T) {
	var pack bytes.Buffer
	z := zip.NewWriter(&pack)
	for _, f := range []string{"app.py", "lib/x.js", "main.go"} {
		w, err := z.Create(f)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, "import jsom\n  two\nfrom a.b import c, d\n"); err != nil {
			t.Fatal(err)
		}
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	log := newDevLog(io.Discard)
	log.add("sha256:1", pack.Bytes())
	v := log.versions["sha256:1"]
	for text, want := range map[string]string{
		`  File "/cache/src/app.py", line 2, in handler`:           "app.py:2: two",
		`  File "/cache/src/app.py" Line 2`:                        "app.py:2: two",
		`'(' was never closed (app.py, line 2)`:                    "app.py:2: two",
		"    at hello (/cache/src/lib/x.js:3:10)":                  "lib/x.js:3: from a.b import c, d",
		"    at file:///cache/src/lib/x.js:2:1":                    "lib/x.js:2: two",
		"\t/cache/src/main.go:2 +0x1d":                             "main.go:2: two",
		"ModuleNotFoundError: No module named 'jsom'":              "app.py:1: import jsom",
		"ImportError: cannot import name 'd' from 'a.b' (/x/b.py)": "app.py:3: from a.b import c, d",
		"No module named 'other'":                                  "",
		`  File "/usr/lib/python3.11/json.py", line 2, in x`:       "",
		"app.py:99: beyond":                                        "",
		"app.py:0: none":                                           "",
		"nothing":                                                  "",
	} {
		if got := strings.Join(v.placesIn(text), "|"); got != want {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
	if got := v.relative(`File "/cache/0123abcd/src/lib/x.js" and /usr/lib/y.py`); got != `File "lib/x.js" and /usr/lib/y.py` {
		t.Error(got)
	}
}

// TestDevLog: what each start says again is shown once, what a request says always, and
// what the version before says with its own code.
func TestDevLog(t *testing.T) {
	pack := func(line string) []byte {
		var b bytes.Buffer
		z := zip.NewWriter(&b)
		w, err := z.Create("app.py")
		if err == nil {
			_, err = io.WriteString(w, line)
		}
		if err := errors.Join(err, z.Close()); err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}
	clock := regexp.MustCompile(`^\d\d:\d\d:00\.000`) // in the zone of this machine
	var out strings.Builder
	log := newDevLog(&out)
	log.add("old", pack("x = 1 / 0"))
	log.add("new", pack("x = 2 / 0"))
	for _, l := range []*pb.LogLine{
		{Source: "new", Instance: "a", Stream: "stderr", Text: `  File "/c/src/app.py", line 1, in <module>`},
		{Source: "new", Instance: "b", Stream: "stderr", Text: `  File "/c/src/app.py", line 1, in <module>`},
		{Source: "new", Instance: "b", Stream: "stderr", Text: "another one"},
		{Source: "new", Instance: "a", Stream: "runner", Text: "it ended: pid 12"},
		{Source: "new", Instance: "b", Stream: "runner", Text: "it ended: pid 13"},
		{Source: "new", Instance: "a", Stream: "runner", Text: "it ended: pid 14"},
		{Source: "old", Instance: "o", Stream: "stdout", Text: "app.py:1 failed", RequestId: "r1"},
		{Source: "old", Instance: "o", Stream: "stdout", Text: "app.py:1 failed", RequestId: "r2"},
		{Source: "unknown", Instance: "u", Stream: "stdout", Text: "app.py:1 of a version that is not known"},
		{Source: "new", Instance: "a", Stream: "stdout", Text: "[WARNING] " + awsAdvice + " The most likely cause"},
	} {
		log.line(l)
	}
	var got []string
	for line := range strings.Lines(out.String()) {
		got = append(got, strings.TrimSpace(clock.ReplaceAllString(line, "")))
	}
	want := []string{
		`a   File "app.py", line 1, in <module>`, "> app.py:1: x = 2 / 0", "b another one", "a it ended: pid 12",
		"o [r1] app.py:1 failed", "> app.py:1: x = 1 / 0", "o [r2] app.py:1 failed", "> app.py:1: x = 1 / 0",
		"u app.py:1 of a version that is not known",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestTrafficText(t *testing.T) {
	f := &pb.Function{Traffic: []*pb.Traffic{{Version: 7, Weight: 3}, {Weight: 1, Tag: "canary"}, {Version: 5, Tag: "old"}}}
	if got := trafficText(f); got != "7 75%, newest 25% (canary), 5 0% (old)" {
		t.Error(got)
	}
	versions := []*pb.FunctionVersion{{Number: 9}, {Number: 7}, {Number: 5}}
	for want, traffic := range map[int64][]*pb.Traffic{
		7: nil,
		5: {{Version: 7, Weight: 1}},
		9: {{Version: 9, Weight: 1}, {Weight: 1}},
		0: {{Version: 5, Weight: 1}},
	} {
		if got, err := versionBefore(&pb.Function{Traffic: traffic}, &pb.DescribeFunctionResponse{Versions: versions, CurrentVersion: 9}); got != want || (want == 0) != (err != nil) {
			t.Errorf("before %v: %d (%v), want %d", traffic, got, err, want)
		}
	}
	var b strings.Builder
	printLine(&b, &pb.LogLine{Instance: "i", Text: "x", RequestId: "0123456789", Time: timestamppb.New(time.Now())})
	if !strings.HasSuffix(b.String(), " i [01234567] x\n") {
		t.Error(b.String())
	}
}
