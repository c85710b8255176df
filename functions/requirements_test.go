package functions

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func readRequirements(t testing.TB, files map[string]string) (*requirements, error) {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	r := &requirements{files: map[string][]byte{}}
	return r, r.read(root, "requirements.txt")
}

func TestRequirements(t *testing.T) {
	r, err := readRequirements(t, map[string]string{
		"requirements.txt": "# coding: utf-8\r\n--pre\r\n--index-url https://index.example/simple\nFlask_Cors == 1.0 \\\n  --hash=sha256:0 \\\n  # why\n" +
			"six; python_version > '3'\t# comment -r x\nwheel @ https://files.example/wheel.whl\n-r more.txt\n--constraint=fixed.txt\n",
		"more.txt": "requests[socks]>=2 --config-settings x=y", "fixed.txt": "idna==3",
	})
	if want := []string{"flask-cors", "six", "wheel", "requests", "idna"}; err != nil || !slices.Equal(r.names, want) {
		t.Errorf("%q, %v", r.names, err)
	}
}

// TestBadRequirements: nothing makes pip read a file that is not known.
func TestBadRequirements(t *testing.T) {
	for text, want := range map[string]string{
		"-e .":                               "installs a folder",
		"--editable=x":                       "installs a folder",
		"./x":                                "installs a folder",
		"/x":                                 "installs a folder",
		"a/../../x":                          "installs a folder",
		"x @ file:///etc":                    "installs a folder",
		"x @ FILE:///etc":                    "installs a folder",
		"-r /etc/passwd":                     "line 1",
		"-r ../x":                            "line 1",
		"-r\\\n/etc/passwd":                  "line 1",
		"-\\\nr /etc/passwd":                 "line 1",
		"x \\\n  -r /etc/passwd":             "line of their own",
		"--pre -r /etc/passwd":               "line of their own",
		"--pre -r/etc/passwd":                "line of their own",
		"--pre '-r' /etc/passwd":             "line of their own",
		"-r x -r /etc/passwd":                "line of their own",
		"--requirem /etc/passwd":             "line of their own",
		"--pre --const=/etc/passwd":          "line of their own",
		"--find-links /etc":                  "line of their own",
		"# \\\n-r /etc/passwd":               "line 2",
		"#\u2028-r /etc/passwd":              "control characters",
		"#\r-r /etc/passwd":                  "control characters",
		"# coding: utf-7\nx":                 "encoding",
		"\xff\xfe":                           "not UTF-8",
		strings.Repeat("-r nothing.txt ", 2): "line of their own",
	} {
		if r, err := readRequirements(t, map[string]string{"requirements.txt": text}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %q, %v, want %q", text, r.names, err, want)
		}
	}
}

func FuzzRequirements(f *testing.F) {
	f.Add("a\\\n-r b # c\n--pre -e x")
	f.Fuzz(func(t *testing.T, text string) {
		lines, err := logicalLines(text)
		if err != nil {
			return
		}
		for _, l := range lines {
			if l.text == "" || strings.Contains(l.text, "\n") || l.number < 1 {
				t.Fatalf("%q: %+v", text, l)
			}
			_ = checkRequirement(l.text)
		}
	})
}
