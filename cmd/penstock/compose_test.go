package main

import (
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/moby/patternmatcher"
	"github.com/moby/patternmatcher/ignorefile"
	"go.yaml.in/yaml/v3"

	"github.com/penstock-gateway/penstock/gateway/source/file"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// No container engine is there where these tests run, so they check what can be
// checked without one: what goes into the image, as Docker itself would decide it,
// and every rule that the files promise.

const top = "../.."

// composeFile is what the tests read of deploy/compose/compose.yaml.
type composeFile struct {
	Services map[string]struct {
		Image       string
		Command     []string
		User        string
		Restart     string
		CapDrop     []string `yaml:"cap_drop"`
		SecurityOpt []string `yaml:"security_opt"`
		Privileged  bool
		Ports       []string
		Volumes     []string
		Healthcheck struct{ Test []string }
		Build       struct{ Context, Dockerfile string }
	}
}

func readCompose(t *testing.T) composeFile {
	t.Helper()
	b, err := os.ReadFile(top + "/deploy/compose/compose.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var c composeFile
	if err := yaml.Unmarshal(b, &c); err != nil {
		t.Fatal(err)
	}
	return c
}

// instruction is one line of a Dockerfile, with its continuations.
type instruction struct{ name, args string }

// readDockerfile returns the instructions of each stage; those before the first FROM
// are in the first element.
func readDockerfile(t *testing.T) [][]instruction {
	t.Helper()
	b, err := os.ReadFile(top + "/deploy/compose/Dockerfile")
	if err != nil {
		t.Fatal(err)
	}
	stages := [][]instruction{nil}
	text := regexp.MustCompile(`(?m)^#.*\n`).ReplaceAllString(string(b), "")
	for line := range strings.Lines(strings.ReplaceAll(text, "\\\n", " ")) {
		name, args, ok := strings.Cut(strings.TrimSpace(line), " ")
		if !ok {
			continue
		}
		if name == "FROM" {
			stages = append(stages, nil)
		}
		last := &stages[len(stages)-1]
		*last = append(*last, instruction{name, strings.Join(strings.Fields(args), " ")})
	}
	return stages
}

func imageContext(t *testing.T) *patternmatcher.PatternMatcher {
	t.Helper()
	f, err := os.Open(top + "/.dockerignore")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	patterns, err := ignorefile.ReadAll(f)
	if err != nil {
		t.Fatal(err)
	}
	m, err := patternmatcher.New(patterns)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// TestImageContext: no key, store, history or tool gets into an image, and all that is
// compiled does.
func TestImageContext(t *testing.T) {
	m := imageContext(t)
	out := func(name string) bool {
		t.Helper()
		ignored, err := m.MatchesOrParentMatches(name)
		if err != nil {
			t.Fatal(err)
		}
		return ignored
	}
	for _, name := range []string{
		".penstock/pki/ca.key", ".penstock/pki/seal.key", ".penstock/store/member/snap/db", ".penstock/packages/x", ".penstock/up.log",
		"mydata/pki/ca.key", "mydata/store/member/wal/0.wal", "examples/.penstock/pki/ca.key", "examples/support-desk/functions/.penstock/seal.key",
		".git/config", "examples/x/.git/config", ".tools/envoy/envoy", "bin/penstock", "examples/contracts/bin/x", "bench/work/x", "bench/results/main.json",
		".env", "examples/support-desk/functions/account/.env", "examples/support-desk/functions/account/.env.production", "examples/tls.key", "examples/tls/server.pem",
		"examples/support-desk/functions/account/node_modules/x/index.js", "core", "penstock-support.tar.gz", "kubeconfig", "docs/security.md", "deploy/compose/compose.yaml",
	} {
		if !out(name) {
			t.Errorf("%s goes into the image", name)
		}
	}
	for _, name := range []string{"go.mod", "go.sum", "penstock.yaml", "examples/support-desk/config/functions.yaml", "tools/jaeger/go.sum", "tools/jaeger/main.go"} {
		if out(name) {
			t.Errorf("%s does not go into the image", name)
		}
	}
	list, err := exec.Command("go", "list", "-deps", "-f", "{{if and .Module .Module.Main}}{{$d := .Dir}}{{range .GoFiles}}{{$d}}/{{.}}\n{{end}}{{range .EmbedFiles}}{{$d}}/{{.}}\n{{end}}{{end}}",
		"github.com/penstock-gateway/penstock/cmd/penstock", "github.com/penstock-gateway/penstock/internal/toolbox/cmd/install").Output()
	if err != nil {
		t.Fatal(err)
	}
	root, err := filepath.Abs(top)
	if err != nil {
		t.Fatal(err)
	}
	files := strings.Fields(string(list))
	if len(files) < 100 {
		t.Fatalf("the binary is made of %d files", len(files))
	}
	for _, f := range files {
		name, err := filepath.Rel(root, f)
		if err != nil {
			t.Fatal(err)
		}
		if out(name) {
			t.Errorf("%s is compiled, but does not go into the image: add its folder to .dockerignore", name)
		}
	}
}

// TestImageStages: the last stage has neither a toolchain nor the source, does not run
// as root, and finds what `up` looks for where it looks.
func TestImageStages(t *testing.T) {
	stages := readDockerfile(t)
	last := stages[len(stages)-1]
	all := func(stage []instruction, name string) (out []string) {
		for _, i := range stage {
			if i.name == name {
				out = append(out, i.args)
			}
		}
		return out
	}
	if from := last[0].args; from != "${RUN_IMAGE}" || !slices.Contains(all(stages[0], "ARG"), "RUN_IMAGE=debian:bookworm-slim") {
		t.Errorf("the last stage is from %s", from)
	}
	if users := all(last, "USER"); len(users) != 1 || !regexp.MustCompile(`^[1-9]\d+:[1-9]\d+$`).MatchString(users[0]) {
		t.Errorf("the last stage runs as %q, want numbers that are not root's", users)
	}
	for _, run := range all(last, "RUN") {
		if regexp.MustCompile(`golang|build-essential|\bgcc\b|\bmake\b|\bgit\b|\bcurl\b`).MatchString(run) {
			t.Errorf("the last stage installs tools that it does not need: %s", run)
		}
	}
	for _, c := range all(last, "COPY") {
		if !strings.HasPrefix(c, "--from=") || strings.Contains(c, " /src") || strings.Contains(c, " . ") {
			t.Errorf("the last stage copies more than products: COPY %s", c)
		}
	}
	if health := all(last, "HEALTHCHECK"); len(health) != 1 || !strings.Contains(health[0], "http://"+newUpCommand().Flag("http-listen").DefValue+"/readyz") {
		t.Errorf("HEALTHCHECK %q", health)
	}
	tools := "PENSTOCK_TOOLS_DIR=/opt/penstock/tools"
	build := stages[len(stages)-2]
	if !slices.ContainsFunc(all(build, "ENV"), func(e string) bool { return strings.HasSuffix(e, tools) }) || !slices.Contains(all(last, "ENV"), tools) {
		t.Error("the tools are not installed where `up` looks for them")
	}
	if !slices.ContainsFunc(all(build, "RUN"), func(r string) bool { return strings.Contains(r, "cmd/install jaeger lambda") }) {
		t.Error("Jaeger and awslambdaric are not installed at build time")
	}
	// Paths of the last stage that others lead to exist in the build stage.
	made := strings.Join(all(build, "RUN"), "\n")
	for _, c := range all(last, "COPY") {
		if from, ok := strings.CutPrefix(c, "--from=build "); ok {
			path, _, _ := strings.Cut(from, " ")
			if !strings.Contains(made+strings.Join(all(build, "ENV"), " "), path) {
				t.Errorf("nothing makes %s", path)
			}
		}
	}
}

// TestImageExample: the example needs no toolchain when the build of its server is
// taken out as the Dockerfile does it.
func TestImageExample(t *testing.T) {
	stages := readDockerfile(t)
	var expression string
	for _, i := range stages[len(stages)-2] {
		if m := regexp.MustCompile(`sed -i '/(.*)/d' (\S+)`).FindStringSubmatch(i.args); m != nil {
			if m[2] != "examples/support-desk/config/functions.yaml" {
				t.Fatalf("sed changes %s", m[2])
			}
			expression = m[1]
		}
	}
	if expression == "" {
		t.Fatal("the Dockerfile takes no build out of the example")
	}
	src := top + "/examples/support-desk/config"
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS(src)); err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(dir, "functions.yaml")
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	b = regexp.MustCompile(`(?m)`+expression+`.*\n`).ReplaceAll(b, nil)
	if err := os.WriteFile(name, b, 0o644); err != nil {
		t.Fatal(err)
	}
	loaded, errs := file.Load(dir)
	if len(errs) > 0 {
		t.Fatal(errs)
	}
	functions := 0
	for _, o := range loaded {
		if f, ok := o.(*pb.Function); ok {
			functions++
			if len(f.GetServer().GetBuild()) > 0 {
				t.Errorf("%s is still built with %v", f.GetName(), f.GetServer().GetBuild())
			}
		}
	}
	if functions < 3 {
		t.Errorf("%d functions are left", functions)
	}
}

// TestCompose: what deploy/compose passes to `penstock up` are flags that it has, with
// values that it takes, and its services keep what they promise.
func TestCompose(t *testing.T) {
	c := readCompose(t)
	p := c.Services["penstock"]
	if len(p.Command) < 2 || p.Command[0] != "up" {
		t.Fatalf("the command of service penstock is %v, want up with flags", p.Command)
	}
	if err := newUpCommand().ParseFlags(p.Command[1:]); err != nil {
		t.Error(err)
	}
	for _, path := range []string{filepath.Join("deploy/compose", p.Build.Context, p.Build.Dockerfile), "penstock.yaml"} {
		if _, err := fs.Stat(os.DirFS(top), filepath.Clean(path)); err != nil {
			t.Error(err)
		}
	}
	if !slices.Contains(p.Volumes, "data:/data") || !slices.Contains(p.Command, "--data-dir=/data") {
		t.Errorf("the data folder is not on a volume: %v, %v", p.Volumes, p.Command)
	}
	for name, s := range c.Services {
		if s.Restart != "unless-stopped" || s.Privileged || !slices.Equal(s.CapDrop, []string{"ALL"}) || !slices.Equal(s.SecurityOpt, []string{"no-new-privileges:true"}) {
			t.Errorf("service %s: %+v", name, s)
		}
		if s.Image != "" && (strings.HasSuffix(s.Image, ":latest") || !strings.Contains(s.Image, ":")) {
			t.Errorf("service %s: image %s has no version", name, s.Image)
		}
		for _, port := range s.Ports {
			if port != "8080:8080" && !strings.HasPrefix(port, "127.0.0.1:") {
				t.Errorf("service %s publishes %s to everybody", name, port)
			}
		}
	}
	if r := c.Services["redis"]; r.User == "" || strings.HasPrefix(r.User, "0") || len(r.Healthcheck.Test) == 0 {
		t.Errorf("redis runs as %q with the health check %v", r.User, r.Healthcheck.Test)
	}
}
