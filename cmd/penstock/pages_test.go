package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/penstock-gateway/penstock/internal/toolbox"
)

// stepPatience bounds a command of a page or an example, which may wait for something that
// never comes.
const stepPatience = 2 * time.Minute

// pageStep is a command that a page of docs shows at a prompt in a console block, with
// what the page says that it prints.
type pageStep struct{ command, output string }

// pageSteps reads the steps of a page, which is named below docs.
func pageSteps(t *testing.T, page string) (out []pageStep) {
	t.Helper()
	root, err := toolbox.RepoRoot()
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(root, "docs", page))
	if err != nil {
		t.Fatal(err)
	}
	inside := false
	for line := range strings.Lines(string(text)) {
		command, isCommand := strings.CutPrefix(line, "$ ")
		switch {
		case strings.HasPrefix(line, "```"):
			inside = strings.HasPrefix(line, "```console")
		case !inside:
		case len(out) > 0 && strings.HasSuffix(out[len(out)-1].command, "\\"):
			last := &out[len(out)-1].command
			*last = strings.TrimSuffix(*last, "\\") + strings.TrimSpace(line)
		case isCommand:
			out = append(out, pageStep{command: strings.TrimSpace(command)})
		case len(out) > 0:
			out[len(out)-1].output += line
		}
	}
	return out
}

// pageCommands are the commands of a page.
func pageCommands(t *testing.T, page string) (out []string) {
	t.Helper()
	for _, s := range pageSteps(t, page) {
		out = append(out, s.command)
	}
	return out
}
