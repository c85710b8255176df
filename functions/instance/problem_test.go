package instance

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// TestCodesDocument: docs/answers.md lists the code of each kind of answer that the
// packages declare, but for that of a handler's error, whose body is its contract's.
func TestCodesDocument(t *testing.T) {
	document, err := os.ReadFile("../../docs/answers.md")
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	for _, pattern := range []string{"*.go", "../activate/*.go"} {
		files, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			if strings.HasSuffix(file, "_test.go") {
				continue
			}
			for name, kind := range kindsIn(t, file) {
				found++
				if name != "KindHandlerError" && !strings.Contains(string(document), "`"+Code(kind)+"`") {
					t.Errorf("docs/answers.md lacks %s (%s of %s)", Code(kind), name, file)
				}
			}
		}
	}
	if found < 15 {
		t.Errorf("%d kinds found", found)
	}
}

// kindsIn returns the string constants of a file whose names begin with Kind or Refused.
func kindsIn(t *testing.T, file string) map[string]string {
	f, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for _, d := range f.Decls {
		g, ok := d.(*ast.GenDecl)
		if !ok || g.Tok != token.CONST {
			continue
		}
		for _, s := range g.Specs {
			v := s.(*ast.ValueSpec)
			for i, n := range v.Names {
				if (strings.HasPrefix(n.Name, "Kind") || strings.HasPrefix(n.Name, "Refused")) && i < len(v.Values) {
					kind, err := strconv.Unquote(v.Values[i].(*ast.BasicLit).Value)
					if err != nil {
						t.Fatal(err)
					}
					out[n.Name] = kind
				}
			}
		}
	}
	return out
}
