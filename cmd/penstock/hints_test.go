package main

import (
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/penstock-gateway/penstock/internal/toolbox"
)

// namesOfOthers are words after "penstock" in texts that name no command: what begins a
// file or a hash, or goes on with the sentence.
var namesOfOthers = regexp.MustCompile(`^penstock (layer|build|seal key id|run-time state|kept configuration|warm|that|is|made|programs|does not know|has no|commands|and|or|needs|ended|runs|binary|keeps|without|created|updated|penstock)\b`)

// mention is a command in a text that people read.
type mention struct {
	where, command string
	// whole: it is set apart, so that all of it is the command; else only its name is.
	whole bool
}

var (
	setApart = regexp.MustCompile("`(?:bin/|\\./)?(penstock [^`]+)`")
	inText   = regexp.MustCompile("(?:^|[\\s(\"'/])(penstock [a-z][a-z-]*(?: [a-z][a-z-]*)*)")
)

// mentionsIn finds the commands in a text.
func mentionsIn(where, text string) (out []mention) {
	for _, m := range setApart.FindAllStringSubmatch(text, -1) {
		out = append(out, mention{where, m[1], true})
	}
	for _, m := range inText.FindAllStringSubmatch(setApart.ReplaceAllString(text, "``"), -1) {
		if !namesOfOthers.MatchString(m[1]) {
			out = append(out, mention{where, m[1], false})
		}
	}
	return out
}

// literals are the texts of a Go file: joined where the source joins them, with %v for
// what is not known in between.
func literals(path string) (out map[string]string, err error) {
	files := token.NewFileSet()
	file, err := parser.ParseFile(files, path, nil, 0)
	if err != nil {
		return nil, err
	}
	out = map[string]string{}
	var join func(e ast.Expr) string
	join = func(e ast.Expr) string {
		switch e := e.(type) {
		case *ast.BinaryExpr:
			if e.Op == token.ADD {
				return join(e.X) + join(e.Y)
			}
		case *ast.BasicLit:
			if text, err := strconv.Unquote(e.Value); err == nil && e.Kind == token.STRING {
				return text
			}
		}
		return "%v"
	}
	ast.Inspect(file, func(n ast.Node) bool {
		e, ok := n.(ast.Expr)
		if !ok {
			return true
		}
		if text := join(e); strings.Contains(text, "penstock ") {
			out[fmt.Sprint(files.Position(e.Pos()))] = text
			return false
		}
		return true
	})
	return out, nil
}

// allMentions are the commands in the texts of the program and in the documentation.
func allMentions(t *testing.T) (out []mention) {
	t.Helper()
	root, err := toolbox.RepoRoot()
	if err != nil {
		t.Fatal(err)
	}
	err = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := strings.TrimPrefix(path, root+"/")
		switch {
		case d.IsDir() && (strings.HasPrefix(d.Name(), ".") && path != root || slices.Contains([]string{"gen", "bin", "node_modules", "testdata", "bench"}, d.Name())):
			return filepath.SkipDir
		case strings.HasSuffix(path, ".go") && !strings.HasSuffix(path, "_test.go"):
			texts, err := literals(path)
			for at, text := range texts {
				out = append(out, mentionsIn(strings.TrimPrefix(at, root+"/"), text)...)
			}
			return err
		case strings.HasSuffix(path, ".md") && name != "CHANGELOG.md" && !strings.HasPrefix(name, "docs/decisions/"):
			text, err := os.ReadFile(path)
			n := 0
			for line := range strings.Lines(string(text)) {
				n++
				out = append(out, mentionsIn(fmt.Sprintf("%s:%d", name, n), line)...)
			}
			return err
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

var (
	substitution = regexp.MustCompile(`"?\$\([^)]*\)"?|'[^']*'|"[^"]*"|\\"[^"]*\\"`)
	unknownValue = regexp.MustCompile(`%[a-z]|\b[A-Z][A-Z_]+\b`)
)

// checkCommand reports what is wrong with a command line: no such command, no such flag, or
// arguments that the command does not take. Values in capital letters or of a format are 1.
func checkCommand(line string, whole bool) error {
	line, _, _ = strings.Cut(substitution.ReplaceAllString(line, "x"), " #")
	for _, end := range []string{" | ", " && ", "; ", " > ", "\n"} {
		line, _, _ = strings.Cut(line, end)
	}
	line = unknownValue.ReplaceAllString(strings.NewReplacer("[", "", "]", "", "check|repair", "check").Replace(line), "1")
	words := strings.Fields(strings.TrimSuffix(line, "."))[1:]
	root := newRoot()
	root.InitDefaultHelpCmd()
	root.InitDefaultCompletionCmd()
	c, rest, err := root.Find(words)
	if err != nil {
		return err
	}
	if c == root && len(rest) > 0 && !strings.HasPrefix(rest[0], "-") {
		return fmt.Errorf("no command %q", rest[0])
	}
	if !whole {
		if c == root {
			return fmt.Errorf("no command %q", words[0])
		}
		return nil
	}
	open := slices.ContainsFunc(rest, func(w string) bool { return strings.Contains(w, "…") })
	rest = slices.DeleteFunc(rest, func(w string) bool { return w == "…" })
	err = c.ParseFlags(rest)
	if err != nil && strings.HasPrefix(err.Error(), "flag needs an argument") {
		err = c.ParseFlags(append(rest, "1")) // the text names the flag alone
	}
	if err != nil && !errors.Is(err, pflag.ErrHelp) {
		return err
	}
	args := c.Flags().Args()
	switch {
	case len(args) > 0 && c.HasAvailableSubCommands() && c.Use == c.Name(): // `trace ID` takes an argument, too
		return fmt.Errorf("%s has no command %q", c.CommandPath(), args[0])
	case len(args) > 0 && !open && c.Name() != "help":
		return c.ValidateArgs(args)
	}
	return nil
}

// TestHints: each command that a message, a help text or a page names is one, with the
// flags that it is given.
func TestHints(t *testing.T) {
	all := allMentions(t)
	for _, m := range all {
		if err := checkCommand(m.command, m.whole); err != nil {
			t.Errorf("%s: %q: %v", m.where, m.command, err)
		}
	}
	eachExample(newRoot(), func(c *cobra.Command, line string) {
		if strings.HasPrefix(line, "penstock ") {
			if err := checkCommand(line, true); err != nil {
				t.Errorf("penstock %s --help: %q: %v", c.Name(), line, err)
			}
		}
	})
	if len(all) < 300 {
		t.Errorf("only %d commands were found", len(all))
	}
	for _, bad := range []string{"penstock fn deplyo x", "penstock apply --fiel x", "penstock statsu", "penstock rollback 1 2", "penstock proxy foo", "penstock history -n many"} {
		if checkCommand(bad, true) == nil {
			t.Errorf("%q was not found to be wrong", bad)
		}
	}
}

// eachExample calls f with each line of the examples of a command and of those below it.
func eachExample(c *cobra.Command, f func(c *cobra.Command, line string)) {
	for line := range strings.Lines(c.Example) {
		if line = strings.TrimSpace(line); line != "" {
			f(c, line)
		}
	}
	for _, sub := range c.Commands() {
		eachExample(sub, f)
	}
}

// elsewhere are the examples that TestExamples cannot run as they are printed, and why.
var elsewhere = map[string]string{
	"penstock proxy join --token psj1_… --control control.example.com:7401 --dir /var/lib/penstock/edge-2":       "another machine: TestProxyJoinEnvoy",
	"penstock proxy join --grpc --token psj1_… --control control.example.com:7401 --dir /var/lib/penstock/app-1": "another machine: TestProxyJoinGRPC",
	"penstock proxy run --dir /var/lib/penstock/edge-2":                                                          "another machine: TestProxyRun",
	"penstock audit verify audit.json --hash 4f6c…":                                                              "a hash of one's own: TestRemote",
	"penstock audit verify /backup/access/audit":                                                                 "a copy of one's own: TestRemote",
	"penstock quarantine retry backends/b":                                                                       "nothing is quarantined: TestLastGood in internal/control",
	"penstock store repair --restore routes/shop --from 41":                                                      "nothing is damaged: TestStoreRepair",
	"penstock up -d --config examples/support-desk":                                                              "it is what the others run on",
	"penstock up -d && penstock status && penstock down":                                                         "TestExamples runs it last",
	"penstock down": "TestExamples runs it last",
	"penstock down --data-dir ./.penstock --timeout 10s": "TestExamples runs it last",
}

// before are the commands that give an example what it is about.
var before = map[string]string{
	"penstock apply -f route.yaml":                                                        "printf 'kind: Route\\nname: written\\nrules: [{matches: [{path: {prefix: /written}}], direct_response: {status: 200}}]\\n' > route.yaml; mkdir -p config; sed s/written/folder/g route.yaml > config/a.yaml; sed s/written/hello/g route.yaml > hello.yaml",
	"penstock delete route hello":                                                         "penstock apply hello.yaml",
	"penstock delete routes/hello functions/hello":                                        "penstock fn init hello && penstock fn deploy hello",
	"penstock delete -f hello.yaml":                                                       "penstock apply hello.yaml",
	"penstock fn delete hello":                                                            "rm -rf hello; penstock fn init hello && penstock fn deploy hello && penstock route delete hello",
	"penstock fn delete hello --routes":                                                   "penstock fn deploy hello",
	"penstock fn deploy handler.zip --name hello":                                         "(cd hello && python3 -m zipfile -c ../handler.zip *)",
	"penstock fn init hello && penstock fn deploy hello && curl localhost:8080/hello":     "rm -rf hello",
	"penstock backup penstock.backup --with-keys --history":                               "rm -f penstock.backup",
	"penstock fn replay access.jsonl --objective 'p99 <= 1s' --concurrency 10 --start 5s": `for i in 1 2 3 4; do echo "{\"time\": \"2026-01-01T00:00:0${i}Z\", \"duration_ms\": 20}"; done > access.jsonl`,
	"penstock store check":                                                                "penstock down",
}

// runExamples runs the examples of all commands, each as it is printed: those for a stopped
// store last.
func runExamples(t *testing.T, must func(string) string) {
	t.Helper()
	known := map[string]bool{}
	var stopped []string
	do := func(line string) {
		t.Helper()
		if first := before[line]; first != "" {
			must(first)
		}
		must(line)
	}
	eachExample(newRoot(), func(c *cobra.Command, line string) {
		known[line] = true
		switch {
		case elsewhere[line] != "":
		case c.Parent().Name() == "store":
			stopped = append(stopped, line)
		default:
			do(line)
		}
	})
	for _, line := range stopped {
		do(line)
	}
	for _, table := range []map[string]string{elsewhere, before} {
		for line := range table {
			if !known[line] {
				t.Errorf("no command has the example %q any more", line)
			}
		}
	}
}
