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

	"github.com/penstock-gateway/penstock/internal/toolbox"
)

// mentioned finds commands in a text: `penstock` and what follows it on the line.
var mentioned = regexp.MustCompile("(?:^|[^-/.\\w])penstock ((?:[a-z]|-[-a-z])[^`\\n]*)")

// noCommands follow "penstock" where it is not the program that is run: names of keys and
// formats, a user of etcd or of the machine, the image's service.
var noCommands = []string{
	"build 1", "layer 1", "kept configuration 1", "seal key id", "run-time state", "command makes", "does not know",
	"created", "updated", "penstock", "is granted", "--prefix=true", "--no-password", "-g penstock",
}

// TestMentionedCommands: each command that a message, a help text, a page or a comment of
// the API names is there, with the flags that it is given. `penstock` in lower case is
// the program, so what follows it is one of its commands.
func TestMentionedCommands(t *testing.T) {
	root, err := toolbox.RepoRoot()
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	check := func(where, text string) {
		for _, m := range mentioned.FindAllStringSubmatch(text, -1) {
			if slices.ContainsFunc(noCommands, func(o string) bool { return strings.HasPrefix(m[1], o) }) {
				continue
			}
			found++
			if err := parses(m[1]); err != nil {
				t.Errorf("%s: penstock %s: %v", where, m[1], err)
			}
		}
	}
	err = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(root, path)
		if d.IsDir() {
			if slices.Contains([]string{"gen", "bench", "tools", "node_modules"}, rel) || rel != "." && strings.HasPrefix(d.Name(), ".") {
				return fs.SkipDir
			}
			return nil
		}
		switch {
		case rel == "CHANGELOG.md" || strings.HasPrefix(rel, "docs/decisions/") || strings.HasSuffix(rel, "_test.go"):
			return nil // what was, and what tests do on purpose
		case strings.HasSuffix(rel, ".go"):
			return goStrings(path, func(line int, text string) { check(fmt.Sprintf("%s:%d", rel, line), text) })
		case strings.HasSuffix(rel, ".md"), strings.HasSuffix(rel, ".proto"), strings.HasSuffix(rel, ".yaml"), strings.HasSuffix(rel, ".service"):
			b, err := os.ReadFile(path)
			for i, line := range strings.Split(string(b), "\n") {
				check(fmt.Sprintf("%s:%d", rel, i+1), line)
			}
			return err
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if found < 300 {
		t.Errorf("only %d commands were found: is the search right?", found)
	}
}

// goStrings goes through the string literals of a file; those that are added up are one.
func goStrings(path string, each func(line int, text string)) error {
	fset := token.NewFileSet()
	f, err := parser.ParseFile(fset, path, nil, parser.SkipObjectResolution)
	if err != nil {
		return err
	}
	var joined func(ast.Expr) (string, bool)
	joined = func(e ast.Expr) (string, bool) {
		switch e := e.(type) {
		case *ast.BasicLit:
			if e.Kind == token.STRING {
				s, err := strconv.Unquote(e.Value)
				return s, err == nil
			}
		case *ast.BinaryExpr:
			left, ok := joined(e.X)
			right, also := joined(e.Y)
			if !ok {
				left = "%s"
			}
			if !also {
				right = "%s"
			}
			return left + right, e.Op == token.ADD && (ok || also)
		}
		return "", false
	}
	ast.Inspect(f, func(n ast.Node) bool {
		e, ok := n.(ast.Expr)
		if !ok {
			return true
		}
		s, ok := joined(e)
		if ok {
			each(fset.Position(e.Pos()).Line, s)
		}
		return !ok
	})
	return nil
}

// word is one of a command line; what is quoted is one.
var word = regexp.MustCompile(`"[^"]*"|'[^']*'|\$\([^)]*\)|[^\s]+`)

// parses reports what is wrong with the words after `penstock`, up to where the command
// ends in a sentence or a script.
func parses(line string) error {
	var words []string
	for _, w := range word.FindAllString(line, -1) {
		if slices.Contains([]string{"|", "||", "&&", ">", "2>&1", "#", "\\", "–", "—"}, w) || strings.HasPrefix(w, ">") || strings.HasPrefix(w, "(") || strings.HasPrefix(w, "|") {
			break
		}
		w = strings.TrimSuffix(w, `"`)
		ends := strings.HasSuffix(w, ",") || strings.HasSuffix(w, ";") || strings.HasSuffix(w, ":") || strings.HasSuffix(w, ")") || strings.HasSuffix(w, ".") && w != "." && !strings.HasSuffix(w, "..")
		words = append(words, strings.Trim(strings.TrimRight(w, ",;:.)"), `"'`))
		if ends {
			break
		}
	}
	root := newRoot()
	root.InitDefaultHelpCmd()
	root.InitDefaultCompletionCmd(words...)
	cmd, rest, err := root.Find(words)
	if err != nil {
		return err
	}
	if cmd.HasSubCommands() && len(rest) > 0 && !strings.HasPrefix(rest[0], "-") && !cmd.Runnable() {
		return fmt.Errorf("%s has no command %q", cmd.CommandPath(), rest[0])
	}
	return flagsOf(cmd, rest)
}

func flagsOf(cmd *cobra.Command, words []string) error {
	var errs []error
	for _, w := range words {
		name, _, _ := strings.Cut(w, "=")
		switch {
		case w == "--":
			return errors.Join(errs...)
		case strings.HasPrefix(w, "--"):
			if n := strings.TrimPrefix(name, "--"); n != "help" && cmd.Flag(n) == nil && cmd.InheritedFlags().Lookup(n) == nil {
				errs = append(errs, fmt.Errorf("%s has no flag %s", cmd.CommandPath(), name))
			}
		case len(w) == 2 && w[0] == '-' && w[1] >= 'a' && w[1] <= 'z':
			if n := w[1:]; n != "h" && cmd.Flags().ShorthandLookup(n) == nil && cmd.InheritedFlags().ShorthandLookup(n) == nil {
				errs = append(errs, fmt.Errorf("%s has no flag %s", cmd.CommandPath(), w))
			}
		}
	}
	return errors.Join(errs...)
}
