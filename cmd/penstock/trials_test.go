package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/penstock-gateway/penstock/internal/toolbox"
)

// trialStep is a command of a trial, with what it prints: "…" stands for anything in a
// line, and alone for any lines.
type trialStep struct{ command, output string }

func trialSteps(text string) (out []trialStep) {
	inside := false
	for line := range strings.Lines(text) {
		command, isCommand := strings.CutPrefix(line, "$ ")
		switch {
		case strings.HasPrefix(line, "```"):
			inside = strings.HasPrefix(line, "```console")
		case !inside:
		case isCommand:
			out = append(out, trialStep{command: strings.TrimSpace(command)})
		case len(out) > 0:
			out[len(out)-1].output += line
		}
	}
	return out
}

// matches reports whether a command printed what the trial says.
func (s trialStep) matches(printed string) bool {
	var pattern strings.Builder
	for line := range strings.Lines(s.output) {
		if line == "…\n" {
			pattern.WriteString(`(?:.*\n)*`)
			continue
		}
		pattern.WriteString(strings.ReplaceAll(regexp.QuoteMeta(line), "…", ".*"))
	}
	return regexp.MustCompile(`\A` + pattern.String() + `\z`).MatchString(printed)
}

// TestTrials: who follows a trial in docs/trials step by step sees what is written there.
func TestTrials(t *testing.T) {
	root, err := toolbox.RepoRoot()
	if err != nil {
		t.Fatal(err)
	}
	pages, err := filepath.Glob(filepath.Join(root, "docs", "trials", "*.md"))
	if err != nil || len(pages) == 0 {
		t.Fatalf("no trials: %v", err)
	}
	for _, page := range pages {
		t.Run(strings.TrimSuffix(filepath.Base(page), ".md"), func(t *testing.T) {
			text, err := os.ReadFile(page)
			if err != nil {
				t.Fatal(err)
			}
			in, run := exampleEnv(t)
			for _, step := range trialSteps(string(text)) {
				printed, err := run(step.command)
				printed = strings.ReplaceAll(printed, in.flags.gateway, "127.0.0.1:8080")
				if err != nil || !step.matches(printed) {
					t.Fatalf("$ %s\nprinted (%v):\n%s\nand not:\n%s", step.command, err, printed, step.output)
				}
				t.Logf("$ %s\n%s", step.command, printed)
			}
		})
	}
}
