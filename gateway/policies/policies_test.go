package policies_test

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/penstock-gateway/penstock/gateway"
	"github.com/penstock-gateway/penstock/gateway/policies"
	"github.com/penstock-gateway/penstock/xds/policy"
)

var update = flag.Bool("update", false, "write the table of ARCHITECTURE.md")

const root = "../../"

// named finds the name of the policy that a file makes.
var named = regexp.MustCompile(`(?s)&gateway\.Policy\[.*?Name:\s*"([a-z_]+)"`)

// folders are the folders of policies, by name.
func folders(t *testing.T) map[string]string {
	t.Helper()
	out := map[string]string{}
	for _, pattern := range []string{"gateway/policy/*/policy.go", "authn/*/policy.go"} {
		files, err := filepath.Glob(root + pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			b, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			if m := named.FindStringSubmatch(string(b)); m != nil {
				out[m[1]] = strings.TrimPrefix(filepath.Dir(f), root)
			}
		}
	}
	return out
}

var merges = map[gateway.Merge]string{
	gateway.Nearer: "the nearer wins, field by field", gateway.Nearest: "the nearest wins as a whole",
	gateway.Sum: "all hold", gateway.Union: "all hold, none is dropped",
}

var stages = map[policy.Stage]string{
	policy.Prepare: "before authentication", policy.Authenticate: "authentication", policy.Authorize: "authorization",
	policy.Traffic: "before the guard", policy.Limit: "behind the guard",
}

var modes = map[policy.Mode]string{policy.Always: "on", policy.Off: "off until a route asks", policy.Denies: "refuses until a route answers"}

// TestArchitecture: the table of policies in ARCHITECTURE.md is what the program has;
// go test ./gateway/policies -update writes it. Each policy has a folder with a README.
func TestArchitecture(t *testing.T) {
	dirs := folders(t)
	var b strings.Builder
	b.WriteString("| policy | folder | levels | filters in the chain |\n|---|---|---|---|\n")
	for _, p := range policies.Proxies() {
		name := string(p.Model.PolicyName())
		if _, err := os.Stat(root + dirs[name] + "/README.md"); dirs[name] == "" || err != nil {
			t.Errorf("policy %s has no folder with a README.md: %v", name, err)
		}
		var filters []string
		for _, f := range p.Filters {
			if stages[f.Stage] == "" {
				t.Errorf("filter %s: the table has no words for its stage", f.Name)
			}
			filters = append(filters, fmt.Sprintf("`%s` (%s, %s)", f.Name, stages[f.Stage], modes[f.Mode]))
		}
		if len(filters) == 0 {
			filters = []string{"none: fields of routes"}
		}
		fmt.Fprintf(&b, "| `%s` | `%s` | %s | %s |\n", name, dirs[name], merges[gateway.MergeOf(p.Model)], strings.Join(filters, ", "))
	}
	const file, begin, end = root + "ARCHITECTURE.md", "<!-- policies -->\n", "<!-- end of policies -->\n"
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := strings.Cut(string(text), begin)
	got, after, also := strings.Cut(rest, end)
	if !ok || !also {
		t.Fatal("ARCHITECTURE.md has no place for the table of policies")
	}
	switch {
	case got == b.String():
	case *update:
		if err := os.WriteFile(file, []byte(before+begin+b.String()+end+after), 0o644); err != nil {
			t.Fatal(err)
		}
	default:
		t.Errorf("the table of policies in ARCHITECTURE.md is not true; go test ./gateway/policies -update writes it:\n%s\nwant\n%s", got, b.String())
	}
}

// TestComplete: every field of Policies has a policy.
func TestComplete(t *testing.T) {
	if missing := policies.Model().Missing(); missing != nil {
		t.Errorf("no policy for %v: add a line to the list", missing)
	}
}
