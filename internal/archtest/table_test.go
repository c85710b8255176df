package archtest

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// row is a line of the table of packages in ARCHITECTURE.md, of one of its packages.
type row struct {
	tree string
	// may lists the trees that may be imported besides gen/ and the own tree.
	may []string
	// everything may be imported; cellar may be imported by everybody.
	everything, cellar bool
}

var code = regexp.MustCompile("`([^`]+)`")

// readTable reads the table. It names packages by their paths, "gateway/policy/<name>" and
// "gateway/source/*" for all below.
func readTable(t *testing.T) []row {
	t.Helper()
	b, err := os.ReadFile("../../ARCHITECTURE.md")
	if err != nil {
		t.Fatal(err)
	}
	_, text, found := strings.Cut(string(b), "| package | what it is for | may import |\n")
	if !found {
		t.Fatal("ARCHITECTURE.md has no table of packages")
	}
	text, _, _ = strings.Cut(text, "\n\n")
	names := func(cell string) (out []string) {
		for _, m := range code.FindAllStringSubmatch(cell, -1) {
			name, _, _ := strings.Cut(m[1], "/<")
			out = append(out, strings.TrimSuffix(name, "/*"))
		}
		return out
	}
	var rows []row
	for line := range strings.Lines(text) {
		cells := strings.Split(strings.Trim(line, "| \n"), " | ")
		if len(cells) != 3 {
			if !strings.HasPrefix(line, "|---") {
				t.Errorf("a row of the table has %d cells, want 3: %s", len(cells), line)
			}
			continue
		}
		may, rest := names(cells[2]), strings.Trim(code.ReplaceAllString(cells[2], ""), ", ")
		if rest != "" && rest != "–" && rest != "everything" {
			t.Errorf("what %s may import is said in words: %q", cells[0], rest)
		}
		for _, tree := range names(cells[0]) {
			if slices.ContainsFunc(rows, func(r row) bool { return r.tree == tree }) {
				t.Errorf("%s has two rows", tree)
			}
			rows = append(rows, row{tree: tree, may: may, everything: rest == "everything", cellar: strings.Contains(cells[1], "everybody may import it")})
		}
	}
	return rows
}

// rowOf is the row whose tree holds the package, the longest one.
func rowOf(rows []row, path string) (found row, ok bool) {
	for _, r := range rows {
		if in(path, r.tree) && len(r.tree) > len(found.tree) {
			found, ok = r, true
		}
	}
	return found, ok
}

// unlisted are trees that are not part of the product: what is built with it, and tests.
func unlisted(path string) bool {
	return slices.ContainsFunc([]string{"bench", "examples", "internal/archtest", "tools", "docs", "deploy", "cmd"}, func(tree string) bool { return in(path, tree) })
}

// TestTable: what a row allows is there.
func TestTable(t *testing.T) {
	for _, r := range readTable(t) {
		for _, m := range r.may {
			if _, err := os.Stat("../../" + m); err != nil {
				t.Errorf("%s may import %s, which is not there: %v", r.tree, m, err)
			}
		}
	}
}
