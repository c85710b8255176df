package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

// TestUnknownCommands: what a command does not have fails at every level, and never
// looks like success to a script.
func TestUnknownCommands(t *testing.T) {
	run := func(args ...string) (string, int) {
		cmd := penstock(t.Context(), args...)
		out, err := cmd.CombinedOutput()
		if err != nil && cmd.ProcessState == nil {
			t.Fatal(err)
		}
		return string(out), cmd.ProcessState.ExitCode()
	}
	for _, test := range []struct{ args, want string }{
		{"aplly", "Did you mean this?"},
		{"fn deploi", `did you mean "deploy"?`},
		{"fn remove hello", `unknown command "remove" for "penstock fn"; allowed: `},
		{"route delte x", `did you mean "delete"?`},
		{"debug foo", "allowed: dump"},
		{"quarantine foo", "allowed: list, retry"},
		{"fn deploy --splt 10", `unknown flag: --splt; did you mean "split"?`},
		{"status --zzzzzzzz", "`penstock status --help` lists its flags"},
		{"rollback -1", "no number here is negative"},
		{"get hello", "write KIND/hello"},
		{"get rout x", `did you mean "route"?`},
		{"explain /x", "write the whole URL, such as http://localhost:8080/x"},
		{"apply", "give -f FILE"},
		{"fn scale hi three", "not a number of instances"},
		{"diff x.yaml", "files are given with -f"},
	} {
		// Nothing of these reaches a control plane.
		args := append(strings.Fields(test.args), []string{}...)
		if out, code := run(args...); code != 1 || !strings.Contains(out, test.want) {
			t.Errorf("penstock %s: exit code %d, want 1 and %q\n%s", test.args, code, test.want, out)
		}
	}
	var walk func(*cobra.Command)
	walk = func(c *cobra.Command) {
		if c.HasSubCommands() && c.HasParent() {
			words := append(strings.Fields(c.CommandPath())[1:], "no-such-thing")
			if out, code := run(words...); code == 0 {
				t.Errorf("penstock %s succeeds:\n%s", strings.Join(words, " "), out)
			}
		}
		for _, sub := range c.Commands() {
			walk(sub)
		}
	}
	walk(newRoot())
}

// TestReflexes: what people type without looking it up does what they mean, what is
// printed for machines can be applied again, and nothing deletes by accident.
func TestReflexes(t *testing.T) {
	in := newInstallation(t)
	in.up(t, "--no-jaeger")
	dir := t.TempDir()
	write := func(name, content string) string {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
	run := func(want int, args ...string) string {
		t.Helper()
		cmd := penstock(t.Context(), append(args, "--server", in.flags.api)...)
		out, err := cmd.CombinedOutput()
		if cmd.ProcessState == nil || cmd.ProcessState.ExitCode() != want {
			t.Fatalf("penstock %s: %v, want exit code %d\n%s", strings.Join(args, " "), err, want, out)
		}
		return string(out)
	}
	has := func(out string, texts ...string) {
		t.Helper()
		for _, text := range texts {
			if !strings.Contains(out, text) {
				t.Errorf("no %q in:\n%s", text, out)
			}
		}
	}
	const route = "kind: Route\nname: hello\nrules:\n- matches: [{path: {prefix: /hello}}]\n  direct_response: {status: 200, body: hi}\n"
	hello := write("a/hello.yaml", route)
	other := write("b/other.yaml", "kind: Route\nproject: shop\nname: cart\nrules:\n- direct_response: {status: 200}\n")
	has(run(0, "apply", hello, "--prune", "site"), "+ projects/default/routes/hello")
	// No listener serves this one, whether the write changes it or not.
	for range 2 {
		if out := run(3, "apply", "-f", other); strings.Count(out, "attached to no listener") != 1 {
			t.Errorf("an unattached route is not told once:\n%s", out)
		}
	}
	has(run(3, "wait"), "projects/shop/routes/cart is not served: attached to no listener")

	// Where a file lies is not a change of it.
	copied := write("elsewhere/x.yaml", "# moved\n\n"+route)
	has(run(0, "diff", "-f", copied), "no difference")
	has(run(0, "apply", copied), "no change")

	has(run(0, "ls"), "routes/hello", "projects/shop/routes/cart")
	if out := run(0, "list", "--project", "shop"); strings.Contains(out, "hello") || !strings.Contains(out, "cart") {
		t.Errorf("list --project shop:\n%s", out)
	}
	// That project has no Gateway.
	has(run(3, "status", "--project", "shop"), "resources: 1 route\n", "projects/shop/routes/cart: attached to no listener")
	has(run(2, "analyze"), "warning: projects/shop/routes/cart: attached to no listener", " 1 finding\n")
	has(run(2, "analyze", "--project", "shop", "-o", "json"), `"object": "projects/shop/routes/cart"`)
	has(run(0, "analyze", "--project", "default"), " 0 findings\n")
	has(run(0, "list", "routes,functions"), "routes/hello")
	has(run(0, "get", "routes"), "routes/hello")
	has(run(0, "describe", "route", "hello"), "serving on 1 of 1 proxies")
	has(run(0, "explain", strings.Replace(in.flags.gateway, "127.0.0.1", "localhost", 1)+"/hello"), "outcome   200 OK")

	// Exit codes: an error is none of diff's and analyze's answers.
	bad := write("bad/bad.yaml", "kind: Route\nname: bad\nruls: []\n")
	for _, args := range [][]string{{"apply", "-f", bad}, {"diff", "-f", bad}, {"validate", "-f", bad}, {"analyze", "-f", bad}} {
		has(run(1, args...), "bad.yaml:3", "ruls")
	}
	has(run(1, "diff", "-f", write("bad/invalid.yaml", "kind: Route\nname: bad\nrules: []\n")), "rules")
	left := write("left/left.yaml", "kind: Backend\nname: left\nstatic: {endpoints: [{address: 127.0.0.1, port: 9}]}\n")
	has(run(2, "diff", "-f", left), "+ projects/default/backends/left")
	has(run(2, "analyze", "-f", left), "warning: projects/default/backends/left: nothing uses it", "1 resource, 1 finding\n")

	// Who takes a listener from a route is told before and while doing so.
	narrow := write("narrow/g.yaml", strings.Replace(run(0, "get", "gateway", "edge", "-o", "yaml"), "port:", "hostnames: [only.test]\n  port:", 1))
	detached := "warning: projects/default/routes/hello: this change leaves it without a listener"
	wide := write("wide/r.yaml", route+"hostnames: [site.test]\n")
	run(0, "apply", wide)
	has(run(2, "diff", "-f", narrow), detached)
	has(run(0, "apply", "-f", narrow, "--dry-run"), detached)
	run(0, "apply", hello, "--prune", "site")

	// Output is input.
	for _, format := range []string{"yaml", "json"} {
		for _, args := range [][]string{{"list", "routes"}, {"get", "route", "hello"}, {"get", "routes/hello", "projects/shop/routes/cart"}} {
			out := run(0, append(args, "-o", format)...)
			for _, not := range []string{"etag", "uid", "conditions", "origin"} {
				if strings.Contains(out, not) {
					t.Errorf("%v -o %s holds %q:\n%s", args, format, not, out)
				}
			}
			unattached := map[bool]int{true: 3}[strings.Contains(out, "cart")]
			has(run(unattached, "apply", "-f", write("again."+format, out)), "no change")
		}
	}
	var history struct {
		Revisions []struct{ Number int64 }
	}
	if err := json.Unmarshal([]byte(run(0, "history", "-o", "json")), &history); err != nil || len(history.Revisions) < 2 {
		t.Errorf("history -o json: %v, %v", history, err)
	}
	has(run(0, "history", "-o", "yaml"), "revisions:\n- number: ")
	testObjectHistory(t, run, has, write("history/hello.yaml", strings.Replace(route, "hi", "hello", 1)))

	// A wrong folder deletes nothing.
	empty := write("empty/readme.txt", "")
	has(run(1, "apply", "-f", filepath.Dir(empty), "--prune", "site"), "--allow-empty")
	has(run(1, "diff", "-f", filepath.Dir(empty), "--prune", "site"), "--allow-empty")
	has(run(0, "ls"), "routes/hello")
	has(run(0, "apply", "-f", filepath.Dir(empty), "--prune", "site", "--allow-empty"), "- projects/default/routes/hello")

	run(0, "apply", hello)
	has(run(0, "route", "delete", "hello"), "- projects/default/routes/hello")
	has(run(1, "route", "delete", "hello"), "does not exist")
	has(run(1, "fn", "delete", "none"), "does not exist")
}

// testObjectHistory asks what changed one object, when, and page by page.
func testObjectHistory(t *testing.T, run func(int, ...string) string, has func(string, ...string), changed string) {
	t.Helper()
	has(run(0, "apply", changed, "-m", "a better answer"), "~ projects/default/routes/hello")
	out := run(0, "history", "route", "hello")
	has(out, ": a better answer\n~ projects/default/routes/hello\n", "direct_response.body: \"hi\" -> \"hello\"", "\n+ projects/default/routes/hello\n")
	if strings.Contains(out, "cart") || strings.Contains(out, "older ones") {
		t.Errorf("what is not of routes/hello, or not there:\n%s", out)
	}
	// Each page says how to get to the next one.
	var pages strings.Builder
	for next := []string{"history", "routes/hello", "-n", "1"}; next != nil; {
		page, hint, more := strings.Cut(run(0, next...), "\nolder ones: penstock ")
		pages.WriteString(page)
		if next = nil; more {
			pages.WriteString("\n")
			next = append(strings.Fields(hint), "-n", "1")
		}
	}
	if pages.String() != out {
		t.Errorf("pages of one:\n%s\nall at once:\n%s", pages.String(), out)
	}
	page, hint, more := strings.Cut(run(0, "history", "-n", "2"), "\nolder ones: penstock ")
	if !more || strings.Count(page, "\n") != 3 {
		t.Errorf("history -n 2:\n%s", page)
	}
	if rest := run(0, strings.Fields(hint)...); !strings.HasPrefix(rest, "REVISION") || strings.Contains(rest, "a better answer") {
		t.Errorf("the next page:\n%s", rest)
	}
	has(run(0, "history", "routes/hello", "-n", "1", "-o", "json"), `"object_change"`, `"next_page_token"`)
	has(run(1, "history", "route", "none"), "routes/none does not exist, and did not in any revision that is kept")
	has(run(1, "history", "route", "hello", "--before", "1"), "no revision before 1 that is kept changed routes/hello")
	has(run(1, "history", "hello"), "does not say of which kind")
	has(run(1, "history", "-n", "0"), "--limit 0")
	has(run(1, "history", "--before", "-1"), "--before -1")
}
