package main

import (
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/penstock-gateway/penstock/internal/toolbox"
)

// matches reports whether a command printed what the trial says: "…" stands for anything
// in a line, and alone for any lines.
func (s pageStep) matches(printed string) bool {
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
		if filepath.Base(page) == "README.md" {
			continue // the list of what was found in them
		}
		t.Run(strings.TrimSuffix(filepath.Base(page), ".md"), func(t *testing.T) {
			in, run := exampleEnv(t)
			for _, step := range pageSteps(t, filepath.Join("trials", filepath.Base(page))) {
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
