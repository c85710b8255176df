package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// TestProjectFlag: only verbs that are about a project take --project; the others
// refuse it, as who gave it would believe that it did something.
func TestProjectFlag(t *testing.T) {
	want := strings.Fields(`analyze access-can-i access-grant access-ungrant access-token-create apply delete diff explain
		fn-delete fn-deploy fn-describe fn-dev fn-explain-scale fn-invoke fn-logs fn-ls fn-promote fn-rollback fn-scale
		get history list login proxy-allow proxy-revoke proxy-token route-create route-delete status validate`)
	var got []string
	walkFlags(newRoot(), func(c *cobra.Command, f *pflag.Flag) {
		if f.Name == "project" {
			got = append(got, strings.ReplaceAll(strings.TrimPrefix(c.CommandPath(), "penstock "), " ", "-"))
		}
	})
	for _, c := range got {
		if !slices.Contains(want, c) {
			t.Errorf("%s takes --project: does it use it?", c)
		}
	}
	for _, c := range want {
		if !slices.Contains(got, c) {
			t.Errorf("%s does not take --project", c)
		}
	}
	for _, verb := range []string{"proxies", "rollback 1", "wait"} {
		root := newRoot()
		root.SetArgs(append(strings.Fields(verb), "--project", "x"))
		if err := root.ExecuteContext(t.Context()); err == nil || !strings.Contains(err.Error(), "unknown flag: --project") {
			t.Errorf("%s --project x: %v", verb, err)
		}
	}
}

// TestKeptRoot: the folder of functions is that of the start before, unless a flag
// says another or it has gone.
func TestKeptRoot(t *testing.T) {
	f := upFlags{dataDir: t.TempDir(), functionsRoot: t.TempDir()}
	if err := f.keepRoot(); err != nil {
		t.Fatal(err)
	}
	here, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	other := t.TempDir()
	for _, test := range []struct {
		f    upFlags
		want string
	}{
		{upFlags{dataDir: f.dataDir}, f.functionsRoot},
		{upFlags{dataDir: f.dataDir, functionsRoot: other}, other},
		{upFlags{dataDir: f.dataDir, config: []string{other}}, other},
		{upFlags{dataDir: t.TempDir()}, here},
	} {
		if got, err := keptRoot(test.f, nil); err != nil || got != test.want {
			t.Errorf("%+v: %s, %v; want %s", test.f, got, err, test.want)
		}
	}
	if err := os.Remove(f.functionsRoot); err != nil {
		t.Fatal(err)
	}
	if got, err := keptRoot(upFlags{dataDir: f.dataDir}, nil); err != nil || got != here {
		t.Errorf("after it has gone: %s, %v", got, err)
	}
}

// TestInitHints runs, for every template, each line that fn init prints.
func TestInitHints(t *testing.T) {
	in, run := exampleEnv(t)
	if out, err := run("penstock up -d --no-jaeger"); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, name := range templateNames() {
		id := "f-" + name
		out, err := run("penstock fn init " + id + " --template " + name)
		if err != nil {
			t.Fatalf("%s: %v\n%s", name, err, out)
		}
		_, next, _ := strings.Cut(out, "next:\n")
		lines := strings.Split(strings.TrimSpace(next), "\n")
		if len(lines) < 2 {
			t.Errorf("%s has no hints:\n%s", name, out)
		}
		for _, line := range lines {
			line = strings.Replace(strings.TrimSpace(line), "curl localhost:8080", "curl -sSf http://127.0.0.1:8080", 1)
			out, err := run(line)
			if err != nil || strings.HasPrefix(line, "curl") && !strings.Contains(out, "world") {
				t.Errorf("%s: %s: %v\n%s", name, line, err, out)
			}
		}
		if _, err := os.Stat(filepath.Join(filepath.Dir(in.dataDir), id)); err != nil {
			t.Error(err)
		}
	}
}
