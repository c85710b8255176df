package main

import (
	"bytes"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// sampleValues are values for flags of each type that are not their defaults.
var sampleValues = map[string]string{
	"bool": "", "string": "sample", "stringSlice": "a,b", "stringArray": "sample", "duration": "42s",
	"int": "42", "int32": "42", "int64": "42", "uint32": "42", "uint64": "42", "float64": "42",
}

// TestEnvironmentOfFlags: every flag of every command is set by its variable, and the
// command line wins over it.
func TestEnvironmentOfFlags(t *testing.T) {
	types := map[string]string{}
	tried := 0
	walkFlags(newRoot(), func(c *cobra.Command, f *pflag.Flag) {
		name := variable(f)
		if f.Name == "help" || f.Name == "version" && f.Value.Type() == "bool" {
			if name != "" {
				t.Errorf("%s --%s has the variable %s", c.CommandPath(), f.Name, name)
			}
			return
		}
		tried++
		// One name means one thing: a variable that is right for a command must not
		// make another one fail, but for texts, which may be lists.
		kind := strings.TrimSuffix(strings.TrimSuffix(f.Value.Type(), "Slice"), "Array")
		if strings.Contains(kind, "int") {
			kind = "number"
		}
		if before := types[name]; before != "" && before != kind && name != "PENSTOCK_TO" {
			t.Errorf("%s is %s here, for %s --%s, and %s elsewhere", name, kind, c.CommandPath(), f.Name, before)
		}
		types[name] = kind
		value := sampleValues[f.Value.Type()]
		if f.Value.Type() == "bool" {
			value = map[string]string{"true": "false", "false": "true"}[f.DefValue]
		}
		if value == "" {
			t.Fatalf("%s --%s: no value for the type %s", c.CommandPath(), f.Name, f.Value.Type())
		}
		path := strings.Fields(c.CommandPath())[1:]
		flagOf := func(args ...string) string {
			// RunE is not reached: what counts is what it would see.
			root := newRoot()
			cmd, _, err := root.Find(path)
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.ParseFlags(args); err != nil {
				t.Fatalf("%s %v: %v", c.CommandPath(), args, err)
			}
			if err := readEnvironment(cmd); err != nil {
				t.Errorf("%s with %s=%s: %v", c.CommandPath(), name, value, err)
			}
			return cmd.Flags().Lookup(f.Name).Value.String()
		}
		unset := flagOf()
		t.Setenv(name, value)
		fromEnvironment := flagOf()
		if fromEnvironment == unset {
			t.Errorf("%s=%s does not set --%s of %s", name, value, f.Name, c.CommandPath())
		}
		if kind == "number" {
			if got := flagOf("--" + f.Name + "=43"); got != "43" {
				t.Errorf("%s --%s=43 with %s=%s is %s", c.CommandPath(), f.Name, name, value, got)
			}
		}
		if f.Value.Type() == "string" {
			if got := flagOf("--" + f.Name + "=given"); got != "given" {
				t.Errorf("%s --%s=given with %s=%s is %s", c.CommandPath(), f.Name, name, value, got)
			}
		}
		t.Setenv(name, "")
	})
	if tried < 300 {
		t.Errorf("only %d flags", tried)
	}
}

func walkFlags(c *cobra.Command, visit func(*cobra.Command, *pflag.Flag)) {
	if c.Runnable() && c.Name() != "environment" {
		c.Flags().VisitAll(func(f *pflag.Flag) { visit(c, f) })
	}
	for _, sub := range c.Commands() {
		walkFlags(sub, visit)
	}
}

func TestEnvironment(t *testing.T) {
	for _, test := range []struct {
		env  map[string]string
		args string
		want []string
	}{
		{map[string]string{"PENSTOCK_SERVR": "x"}, "version", []string{`warning: Penstock does not read the environment variable PENSTOCK_SERVR; did you mean "PENSTOCK_SERVER"?`}},
		{map[string]string{"PENSTOCK_ZZZZZZZZZ": "x"}, "version", []string{"PENSTOCK_ZZZZZZZZZ; `penstock help environment` lists"}},
		{map[string]string{"PENSTOCK_SERVICE_HOST": "10.0.0.1", "PENSTOCK_PORT_7401_TCP_ADDR": "10.0.0.1", "PENSTOCK_TOKEN": "x"}, "version", nil},
		{map[string]string{"PENSTOCK_SERVER": "nowhere"}, "list", []string{`the server "nowhere" is not HOST:PORT`}},
		{map[string]string{"PENSTOCK_OUTPUT": "xml"}, "list", []string{`--output "xml"`}},
		{map[string]string{"PENSTOCK_WAIT_TIMEOUT": "soon"}, "apply -f x", []string{`PENSTOCK_WAIT_TIMEOUT="soon" is not valid for --wait-timeout of penstock apply`, "soon"}},
		{map[string]string{"PENSTOCK_BACKEND": "b", "PENSTOCK_SERVER": "nowhere"}, "route create x", []string{`the server "nowhere"`}}, // a required flag
		// What the command line gives of a group is all of it.
		{map[string]string{"PENSTOCK_CONTEXT": "none", "PENSTOCK_DATA_DIR": "none"}, "list --server nowhere", []string{`the server "nowhere"`}},
		{map[string]string{"PENSTOCK_CONTEXT": "none", "PENSTOCK_SERVER": "nowhere"}, "list", []string{"[context server]"}},
		{map[string]string{"PENSTOCK_JOIN_TOKEN": "psj1_x"}, "proxy join --control a:1 --dir d --token-file /none", []string{"/none"}},
		{map[string]string{"PENSTOCK_TOKEN": "psj1_x"}, "proxy join --control a:1 --dir d", []string{"no join token"}},
	} {
		t.Run(test.args, func(t *testing.T) {
			for k, v := range test.env {
				t.Setenv(k, v)
			}
			t.Chdir(t.TempDir())
			var out bytes.Buffer
			root := newRoot()
			root.SetArgs(strings.Fields(test.args))
			root.SetOut(io.Discard)
			root.SetErr(&out)
			if err := root.ExecuteContext(t.Context()); err != nil {
				out.WriteString(err.Error())
			}
			for _, want := range test.want {
				if !strings.Contains(out.String(), want) {
					t.Errorf("with %v: %q, want %q", test.env, out.String(), want)
				}
			}
			if test.want == nil && out.Len() > 0 {
				t.Errorf("with %v: %s", test.env, out.String())
			}
		})
	}
}

// TestEnvironmentHelp: the help of each command with flags says that there are
// variables, and the list has all of them.
func TestEnvironmentHelp(t *testing.T) {
	help := func(args ...string) string {
		var out bytes.Buffer
		root := newRoot()
		root.SetOut(&out)
		root.SetArgs(args)
		if err := root.ExecuteContext(t.Context()); err != nil {
			t.Fatal(err)
		}
		return out.String()
	}
	if out := help("relay", "--help"); !strings.Contains(out, "PENSTOCK_FLUSH_TIMEOUT for --flush-timeout") {
		t.Errorf("relay --help: %s", out)
	}
	list := help("help", "environment")
	walkFlags(newRoot(), func(c *cobra.Command, f *pflag.Flag) {
		if name := variable(f); name != "" && !strings.Contains(list, "\n"+name+" ") {
			t.Errorf("`penstock help environment` does not have %s of %s", name, c.CommandPath())
		}
	})
}

// TestDropVariables: what `up` starts gets neither its flags nor a credential.
func TestDropVariables(t *testing.T) {
	gone := append([]string{"PENSTOCK_API_LISTEN", "PENSTOCK_SERVER"}, credentialVariables...)
	stay := []string{"PENSTOCK_TOOLS_DIR", "PENSTOCK_OF_SOMEBODY", "HTTPS_PROXY"}
	for _, name := range append(gone, stay...) {
		t.Setenv(name, "x")
	}
	if err := dropVariables(newRoot(), os.Environ()); err != nil {
		t.Fatal(err)
	}
	for _, name := range gone {
		if v, ok := os.LookupEnv(name); ok {
			t.Errorf("%s=%s is left", name, v)
		}
	}
	for _, name := range stay {
		if os.Getenv(name) != "x" {
			t.Errorf("%s is gone", name)
		}
	}
}
