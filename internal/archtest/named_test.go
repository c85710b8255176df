package archtest

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

var (
	namedTest   = regexp.MustCompile("`(Test[A-Z]\\w*)")
	definedTest = regexp.MustCompile(`(?m)^func (Test[A-Z]\w*)\(`)
)

// TestNamedTests: a page that says which test holds something names one that there is.
func TestNamedTests(t *testing.T) {
	named, defined := map[string]string{}, map[string]bool{}
	err := filepath.WalkDir("../..", func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if e.IsDir() && strings.HasPrefix(e.Name(), ".") && path != "../.." {
			return filepath.SkipDir
		}
		page, test := strings.HasSuffix(path, ".md"), strings.HasSuffix(path, "_test.go")
		if e.IsDir() || !page && !test {
			return nil
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if test {
			for _, m := range definedTest.FindAllSubmatch(b, -1) {
				defined[string(m[1])] = true
			}
			return nil
		}
		for _, m := range namedTest.FindAllSubmatch(b, -1) {
			named[string(m[1])] = path
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for name, path := range named {
		if !defined[name] {
			t.Errorf("%s names %s, and there is no such test", path, name)
		}
	}
	if len(named) < 50 {
		t.Errorf("only %d names of tests were found in pages", len(named))
	}
}
