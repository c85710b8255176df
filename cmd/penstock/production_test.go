package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/penstock-gateway/penstock/internal/toolbox"
)

// TestProductionPage: the commands of docs/production.md work, and each metric that it says
// to watch is in what the part serves.
func TestProductionPage(t *testing.T) {
	_, run := exampleEnv(t)
	must := func(command string) string {
		t.Helper()
		out, err := run(command)
		if err != nil {
			t.Fatalf("%s: %v\n%s", command, err, out)
		}
		return out
	}
	must("penstock up -d --config examples/support-desk --functions-root examples/support-desk/functions")
	served := map[string]string{}
	commands := pageCommands(t, "production.md")
	if len(commands) < 7 {
		t.Fatal(commands)
	}
	for _, command := range commands {
		if out := must(command); strings.HasPrefix(command, "curl ") {
			served["control"] = out
		}
	}
	for _, part := range []string{"limiter", "relay"} {
		must("(penstock " + part + " --listen unix:./" + part + "/s --metrics-listen unix:./" + part + "/m >/dev/null 2>&1 & echo $! >" + part + ".pid)")
		t.Cleanup(func() { must("kill $(cat " + part + ".pid)") })
		await(t, func() (err error) {
			served[part], err = run("curl -sS --fail --unix-socket ./" + part + "/m http://localhost/metrics")
			return err
		})
	}
	root, err := toolbox.RepoRoot()
	if err != nil {
		t.Fatal(err)
	}
	page, err := os.ReadFile(filepath.Join(root, "docs", "production.md"))
	if err != nil {
		t.Fatal(err)
	}
	rows := regexp.MustCompile("(?m)^\\| `([a-z_]+)` \\| ([a-z, ]+) \\| ([^|]*)").FindAllStringSubmatch(string(page), -1)
	if len(rows) < 8 {
		t.Fatal(rows)
	}
	name := regexp.MustCompile(`\b(penstock|process)_[a-z_]+`)
	for _, row := range rows {
		for part := range strings.SplitSeq(row[2], ", ") {
			for _, metric := range append(name.FindAllString(row[3], -1), row[1]) {
				if !strings.Contains(served[part], "\n# TYPE "+metric+" ") {
					t.Errorf("%s serves no %s", part, metric)
				}
			}
		}
	}
}
