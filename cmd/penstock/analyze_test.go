package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestAnalyzeFiles: what analyze says of files, which validate says, too.
func TestAnalyzeFiles(t *testing.T) {
	const gateway = "kind: Gateway\nname: edge\nlisteners: [{name: http, port: 8080, hostnames: [\"*.a.test\"]}]\n---\n"
	route := func(name, host, path string) string {
		return "kind: Route\nname: " + name + "\nhostnames: [" + host + "]\nrules: [{matches: [{path: {prefix: " + path + "}}], direct_response: {status: 200}}]\n---\n"
	}
	for name, c := range map[string]struct {
		files string
		want  []string
	}{
		"nothing":    {gateway + route("x", "x.a.test", "/x"), nil},
		"unattached": {gateway + route("x", "x.b.test", "/x"), []string{"projects/default/routes/x: attached to no listener: its hostnames are x.b.test"}},
		"duplicate":  {gateway + route("x", "x.a.test", "/x") + route("y", "x.a.test", "/x"), []string{"projects/default/routes/y: rules[0].matches[0]: no request reaches it on host x.a.test: rule rule-0 of projects/default/routes/x"}},
		"no gateway": {route("x", "x.b.test", "/x"), nil},
	} {
		file := filepath.Join(t.TempDir(), "config.yaml")
		if err := os.WriteFile(file, []byte(c.files), 0o600); err != nil {
			t.Fatal(err)
		}
		for _, args := range [][]string{{"analyze", "-f", file}, {"validate", "--offline", "-f", file}} {
			var out bytes.Buffer
			root := newRoot()
			root.SetOut(&out)
			root.SetArgs(args)
			err := root.ExecuteContext(t.Context())
			if found := errors.Is(err, errFindings); found != (len(c.want) > 0 && args[0] == "analyze") || err != nil && !found {
				t.Errorf("%s, %s: %v", name, args[0], err)
			}
			if n := strings.Count(out.String(), "warning: "); n != len(c.want) {
				t.Errorf("%s, %s: %d warnings:\n%s", name, args[0], n, out.String())
			}
			for _, want := range c.want {
				if !strings.Contains(out.String(), want) {
					t.Errorf("%s, %s: no %q in:\n%s", name, args[0], want, out.String())
				}
			}
		}
	}
}

// TestAnalyzeCrowded: analyze names the hosts that it does not look at as a whole.
func TestAnalyzeCrowded(t *testing.T) {
	for matches, want := range map[int]string{
		1000: "",
		1001: "note: too many matches to compare their paths and policies: a.test of listener http of projects/default/gateways/edge (1001 matches)\n",
	} {
		var files strings.Builder
		files.WriteString("kind: Gateway\nname: edge\nlisteners: [{name: http, port: 8080}]\n---\nkind: Route\nname: many\nhostnames: [a.test]\nrules:\n")
		for i := range matches {
			fmt.Fprintf(&files, "- {matches: [{path: {exact: /%d}}], direct_response: {status: 200}}\n", i)
		}
		file := filepath.Join(t.TempDir(), "config.yaml")
		if err := os.WriteFile(file, []byte(files.String()), 0o600); err != nil {
			t.Fatal(err)
		}
		var out, errs bytes.Buffer
		root := newRoot()
		root.SetOut(&out)
		root.SetErr(&errs)
		root.SetArgs([]string{"analyze", "-f", file})
		if err := root.ExecuteContext(t.Context()); err != nil || errs.String() != want {
			t.Errorf("%d matches: %v, %q, want %q; %s", matches, err, errs.String(), want, out.String())
		}
	}
}
