package main

import (
	"slices"
	"strings"
	"testing"
)

// completions are what the shell is given for a command line.
func completions(t *testing.T, args ...string) []string {
	t.Helper()
	cmd := penstock(t.Context(), append([]string{"__completeNoDesc"}, args...)...)
	out, err := cmd.Output() // what is said on standard error is not shown by shells
	if err != nil {
		t.Fatalf("%v: %v", args, err)
	}
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	return lines[:len(lines)-1] // the last one is cobra's directive
}

// TestCompletion completes live names, and nothing, soon and silently, without a
// control plane.
func TestCompletion(t *testing.T) {
	in := newInstallation(t)
	none := in.dataDir + "/none"
	for _, test := range []struct {
		args []string
		want string
	}{
		{[]string{"get", ""}, "routes"},
		{[]string{"fn", "init", "x", "--template", ""}, "lambda-go"},
		{[]string{"list", "-o", ""}, "yaml"},
		{[]string{"get", "routes", "--data-dir", none, ""}, ""},
		{[]string{"get", "routes", "--server", "127.0.0.1:1", ""}, ""},
		{[]string{"fn", "logs", "--data-dir", none, ""}, ""},
		{[]string{"list", "--data-dir", none, "--project", ""}, ""},
	} {
		got := completions(t, test.args...)
		if test.want == "" && len(got) > 0 || test.want != "" && !slices.Contains(got, test.want) {
			t.Errorf("%v: %q, want %q", test.args, got, test.want)
		}
	}
	in.up(t, "--config", helloConfig(t, "/hello"), "--no-jaeger")
	routes := completions(t, "get", "routes", "--data-dir", in.dataDir, "")
	if len(routes) == 0 {
		t.Fatal("no route is completed")
	}
	for _, args := range [][]string{{"route", "delete"}, {"delete", "route"}, {"get", "Routes"}} {
		if got := completions(t, append(args, "--server", in.flags.api, "")...); !slices.Equal(got, routes) {
			t.Errorf("%v: %q, want %q", args, got, routes)
		}
	}
	if got := completions(t, "list", "--data-dir", in.dataDir, "--project", ""); !slices.Equal(got, []string{"default"}) {
		t.Errorf("projects: %q", got)
	}
}
