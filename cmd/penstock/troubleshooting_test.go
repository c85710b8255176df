package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/penstock-gateway/penstock/internal/toolbox"
)

// pageSession is what a page of docs shows in its console blocks: commands at a prompt,
// and lines that each prints, in which "…" stands for anything.
func pageSession(t *testing.T, page string) (commands []string, prints map[string][]string) {
	t.Helper()
	root, err := toolbox.RepoRoot()
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(root, "docs", page))
	if err != nil {
		t.Fatal(err)
	}
	prints = map[string][]string{}
	inside := false
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSpace(line)
		command, prompt := strings.CutPrefix(line, "$ ")
		switch {
		case strings.HasPrefix(line, "```"):
			inside = line == "```console"
		case inside && prompt:
			commands = append(commands, command)
		case inside && line != "":
			last := commands[len(commands)-1]
			prints[last] = append(prints[last], line)
		}
	}
	return commands, prints
}

// printed reports an error unless all parts of a line of a page are in an output, in order.
func printed(out, line string) error {
	rest := out
	for part := range strings.SplitSeq(line, "…") {
		part = strings.TrimSpace(part)
		_, after, ok := strings.Cut(rest, part)
		if !ok {
			return fmt.Errorf("it does not print %q:\n%s", part, out)
		}
		rest = after
	}
	return nil
}

// TestTroubleshootingPage runs the commands of docs/troubleshooting.md: each prints what the
// page says. Exit codes are not looked at: `status` of what does not serve ends with 3.
func TestTroubleshootingPage(t *testing.T) {
	in, run := exampleEnv(t)
	t.Setenv("PENSTOCK_JAEGER", "http://"+in.flags.jaeger)
	commands, prints := pageSession(t, "troubleshooting.md")
	if len(commands) < 20 {
		t.Fatal(commands)
	}
	for _, command := range commands {
		if len(prints[command]) == 0 {
			t.Errorf("the page does not say what %s prints", command)
		}
		once := strings.HasPrefix(command, "penstock up ") || strings.HasPrefix(command, "penstock support ")
		try := func() error {
			out, _ := run(command)
			for _, line := range prints[command] {
				// Addresses of the gateway are other ones here, and none is in what is looked for.
				if err := printed(out, line); err != nil {
					return fmt.Errorf("%s: %w", command, err)
				}
			}
			return nil
		}
		if !once {
			await(t, try) // instances, spans and endings take a moment
		} else if err := try(); err != nil {
			t.Fatal(err)
		}
	}
}
