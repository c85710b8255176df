package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/penstock-gateway/penstock/internal/toolbox"
)

// TestHelp: back quotes in the text of a flag name its value, so that a command in
// back quotes would be taken for one.
func TestHelp(t *testing.T) {
	var walk func(*cobra.Command)
	walk = func(c *cobra.Command) {
		c.LocalFlags().VisitAll(func(f *pflag.Flag) {
			if value, _ := pflag.UnquoteUsage(f); strings.ContainsAny(value, " -") {
				t.Errorf("%s --%s shows %q as the name of its value", c.CommandPath(), f.Name, value)
			}
		})
		if c.HasParent() && c.Short == "" {
			t.Errorf("%s has no description", c.CommandPath())
		}
		for _, sub := range c.Commands() {
			walk(sub)
		}
	}
	walk(newRoot())
}

// TestVersion: the command and the flag name the same version.
func TestVersion(t *testing.T) {
	run := func(arg string) string {
		out, err := penstock(t.Context(), arg).CombinedOutput()
		if err != nil {
			t.Fatalf("penstock %s: %v: %s", arg, err, out)
		}
		return string(out)
	}
	if out := run("version"); !strings.Contains(out, "penstock "+version()+"\n") || !strings.Contains(out, toolbox.EnvoyVersion) {
		t.Errorf("version: %s", out)
	}
	if out := run("--version"); !strings.Contains(out, version()) {
		t.Errorf("--version: %s", out)
	}
	commit := []debug.BuildSetting{{Key: "vcs.revision", Value: "0123456789abcdef"}, {Key: "vcs.modified", Value: "true"}}
	for _, test := range []struct {
		main     string
		settings []debug.BuildSetting
		want     string
	}{
		{"v1.2.3", commit, "v1.2.3"},
		{"(devel)", commit, "devel-0123456789ab-modified"},
		{"(devel)", commit[:1], "devel-0123456789ab"},
		{"(devel)", nil, "devel"},
		{"", nil, "devel"},
	} {
		if got := versionOf(&debug.BuildInfo{Main: debug.Module{Version: test.main}, Settings: test.settings}); got != test.want {
			t.Errorf("version of %+v: %s, want %s", test, got, test.want)
		}
	}
}

// TestFunctionsRoot: sources are found however a project is laid out.
func TestFunctionsRoot(t *testing.T) {
	root, err := toolbox.RepoRoot()
	if err != nil {
		t.Fatal(err)
	}
	desk := filepath.Join(root, "examples", "support-desk")
	flat := t.TempDir()
	for name, content := range map[string]string{
		"functions.yaml": "kind: Function\nname: hello\nsource: hello\nlambda: {runtime: PYTHON, handler: app.handler}\n", "hello/app.py": "",
	} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(flat, name)), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(flat, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, test := range []struct{ config, flag, want string }{
		{desk, "", filepath.Join(desk, "functions")},
		{filepath.Join(desk, "config"), "", filepath.Join(desk, "functions")},
		{desk, flat, flat},
		{flat, "", flat},
		{filepath.Join(flat, "functions.yaml"), "", flat},
	} {
		c, err := loadConfig([]string{test.config})
		if err != nil {
			t.Fatal(err)
		}
		got, err := functionsRoot(upFlags{config: []string{test.config}, functionsRoot: test.flag}, c.request.GetResources())
		if err != nil || got != test.want {
			t.Errorf("functions of %s with --functions-root %q: %s, %v; want %s", test.config, test.flag, got, err, test.want)
		}
	}
}

// exampleEnv is a folder in which the examples of `--help` run as they are printed:
// the clone's examples are there, and penstock.yaml holds ports that are free.
func exampleEnv(t *testing.T) (in *installation, run func(command string) (string, error)) {
	t.Helper()
	root, err := toolbox.RepoRoot()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	in = newInstallation(t)
	in.dataDir = filepath.Join(dir, ".penstock")
	settings := "tools-dir: " + filepath.Join(root, ".tools") + "\n"
	for _, a := range in.flags.addresses() {
		settings += fmt.Sprintf("%s: %s\n", a.flag, *a.value)
	}
	if err := os.WriteFile(filepath.Join(dir, "penstock.yaml"), []byte(settings), 0o600); err != nil {
		t.Fatal(err)
	}
	installProgram(t, dir)
	if err := os.Symlink(filepath.Join(root, "examples"), filepath.Join(dir, "examples")); err != nil {
		t.Fatal(err)
	}
	run = func(command string) (string, error) {
		command = strings.ReplaceAll(command, "127.0.0.1:8080", in.flags.gateway)
		command = strings.ReplaceAll(command, "localhost:8080", strings.Replace(in.flags.gateway, "127.0.0.1", "localhost", 1))
		// Also when the test has ended, to stop what was started.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), stepPatience)
		defer cancel()
		cmd := exec.CommandContext(ctx, "sh", "-c", command)
		cmd.WaitDelay = time.Second // a command that it waits for holds its output
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "PATH="+filepath.Join(dir, "bin")+":"+os.Getenv("PATH"), "PENSTOCK_SERVER="+in.flags.api, "PENSTOCK_TEST_MAIN=1")
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	t.Cleanup(func() {
		running, _ := filepath.Glob(stateFile(filepath.Join(dir, "*")))
		hidden, _ := filepath.Glob(stateFile(filepath.Join(dir, ".*")))
		for _, file := range append(running, hidden...) {
			if out, err := run("penstock down --data-dir " + filepath.Dir(filepath.Dir(file))); err != nil {
				t.Errorf("%s: %v\n%s", file, err, out)
			}
		}
	})
	return in, run
}

// TestExamples runs every example that --help prints, and what `up` says to try next.
func TestExamples(t *testing.T) {
	in, run := exampleEnv(t)
	examples := func(c *cobra.Command) []string {
		var out []string
		for line := range strings.Lines(c.Example) {
			out = append(out, strings.TrimSpace(line))
		}
		if len(out) == 0 {
			t.Errorf("%s has no example", c.Name())
		}
		return out
	}
	must := func(command string) string {
		t.Helper()
		out, err := run(command)
		if err != nil {
			log, _ := os.ReadFile(filepath.Join(in.dataDir, "up.log"))
			t.Fatalf("%s: %v\n%s\nup.log:\n%s", command, err, out, log)
		}
		return out
	}
	up := examples(newUpCommand())
	out := must(up[0])
	// On a busy machine one may still be built when up returns; none may fail.
	if !strings.Contains(out, " of 3 ready") || strings.Contains(out, "failing") {
		t.Errorf("%s: its functions do not serve:\n%s", up[0], out)
	}
	await(t, func() error {
		if j := in.state(t).Jaeger; j != "running" {
			return fmt.Errorf("Jaeger is %s", j)
		}
		if out, err := run("curl -sSf http://127.0.0.1:8080/catalog"); err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		out, err := run("curl -sSf -X POST -d '{\"question\":\"where\"}' http://127.0.0.1:8080/support")
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
	_, hints, _ := strings.Cut(out, "What to try next:")
	tried := 0
	for line := range strings.Lines(hints) {
		command, _, ok := strings.Cut(line, "  # ")
		if !ok {
			continue
		}
		tried++
		command = strings.Replace(command, " FILE", " examples/support-desk/config", 1)
		if strings.Contains(command, " trace ID") {
			command = "id=$(curl -si http://127.0.0.1:8080/catalog | tr -d '\\r' | sed -n 's/^x-trace-id: //p') && " + strings.Replace(command, " ID", " $id", 1)
		}
		must(command)
	}
	if tried < 7 {
		t.Errorf("only %d hints:\n%s", tried, out)
	}
	if out := must(examples(newTokenCommand())[0]); !strings.Contains(out, "alice") {
		t.Errorf("%s: %s", examples(newTokenCommand())[0], out)
	}
	runExamples(t, must)
	for _, example := range append(examples(newDownCommand()), up[1:]...) {
		// The functions of the first example are still in the store: without the folder
		// of their sources the status would rightly be red.
		must(strings.Replace(example, "penstock up -d &&", "penstock up -d --config examples/support-desk &&", 1))
	}
}
