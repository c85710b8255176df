package sandbox

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestProgram: a command names what the function sees, or what every user may run, and
// tells nothing of other files.
func TestProgram(t *testing.T) {
	dir := t.TempDir()
	source, other, private := filepath.Join(dir, "source"), filepath.Join(dir, "other"), filepath.Join(dir, "private")
	for _, d := range []string{source, other, private} {
		if err := os.Mkdir(d, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(d, "run"), []byte("#!/bin/sh\n"), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for name, target := range map[string]string{"env": "/usr/bin/env", "up": "../other/run", "out": filepath.Join(private, "run"), "gone": "/nowhere/at/all"} {
		if err := os.Symlink(target, filepath.Join(source, name)); err != nil {
			t.Fatal(err)
		}
	}
	plan := &Plan{machine: &Machine{}, paths: []path{{Path: other}}}
	own := &Plan{machine: &Machine{}}
	for _, c := range []struct {
		plan    *Plan
		command string
		want    string // of the error
	}{
		{own, "sh", ""},
		{own, "/bin/sh", ""},
		{own, "./run", ""},
		{own, filepath.Join(source, "run"), ""},
		{own, "./env", ""},
		{plan, filepath.Join(other, "run"), ""},
		{plan, "../other/run", ""},
		{own, "./absent", "no such file"},
		{own, "absent", "executable file not found"},
		{own, "../other/run", "not among"},
		{own, "../other/absent", "not among"},
		{own, filepath.Join(private, "run"), "not among"},
		{own, filepath.Join(private, "absent"), "not among"},
		{own, "./up", "not among"},
		{own, "./out", "not among"},
		{own, "/etc/shadow", "not among"},
		{own, "/proc/self/exe/../../x", "not among"},
		{own, "/", "not among"},
		{&Plan{machine: &Machine{}, policy: Policy{Level: None}}, filepath.Join(private, "run"), ""},
	} {
		_, err := c.plan.program(&Command{Args: []string{c.command}, Dir: source})
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v, want %q", c.command, err, c.want)
		}
		if c.want == "not among" && errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: the error tells that there is no such file", c.command)
		}
	}
	if !forAll("/usr/bin/env") || forAll(filepath.Join(private, "run")) || forAll(filepath.Join(private, "absent")) {
		t.Error("forAll")
	}
}
