package main

import (
	"fmt"
	"strings"
	"testing"
)

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
	_, run := exampleEnv(t)
	steps := pageSteps(t, "troubleshooting.md")
	if len(steps) < 20 {
		t.Fatal(steps)
	}
	for _, s := range steps {
		command := s.command
		if strings.TrimSpace(s.output) == "" {
			t.Errorf("the page does not say what %s prints", command)
		}
		once := strings.HasPrefix(command, "penstock up ") || strings.HasPrefix(command, "penstock support ")
		try := func() error {
			out, _ := run(command)
			for line := range strings.Lines(s.output) {
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
