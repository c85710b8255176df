package main

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/penstock-gateway/penstock/internal/toolbox"
)

// securityTable reads a table of docs/security.md: its rows, without the quotes of code.
func securityTable(t *testing.T, name string) (rows [][]string) {
	t.Helper()
	root, err := toolbox.RepoRoot()
	if err != nil {
		t.Fatal(err)
	}
	page, err := os.ReadFile(filepath.Join(root, "docs", "security.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, text, begins := strings.Cut(string(page), "<!-- "+name+" -->\n")
	text, _, ends := strings.Cut(text, "<!-- end of "+name+" -->")
	lines := strings.Split(strings.TrimSpace(text), "\n")
	if !begins || !ends || len(lines) < 3 {
		t.Fatalf("docs/security.md has no table of %s", name)
	}
	for _, line := range lines[2:] {
		cells := strings.Split(strings.Trim(line, "|"), "|")
		for i := range cells {
			cells[i] = strings.ReplaceAll(strings.TrimSpace(cells[i]), "`", "")
		}
		rows = append(rows, cells)
	}
	return rows
}

// compareWithPage: each listener has a row in docs/security.md, and each row a listener.
func (in *installation) compareWithPage(t *testing.T, found []listener) {
	t.Helper()
	flags := map[string]string{}
	for _, a := range in.flags.addresses() {
		flags["--"+a.flag] = *a.value
	}
	of := func(row []string) func(listener) bool {
		address := strings.Replace(row[2], "DATA-DIR", in.dataDir, 1)
		if v, ok := flags[row[2]]; ok {
			address = v
		}
		return func(l listener) bool {
			same, err := filepath.Match(address, l.address)
			return err == nil && same && l.process == row[0] && l.kind == row[1]
		}
	}
	rows := securityTable(t, "listeners")
	for _, l := range found {
		if !slices.ContainsFunc(rows, func(row []string) bool { return of(row)(l) }) {
			t.Errorf("%s has no row in docs/security.md", l)
		}
	}
	for _, row := range rows {
		if !slices.ContainsFunc(found, of(row)) {
			t.Errorf("docs/security.md has a row for %s, and nothing listens there: %v", strings.Join(row[:3], " "), found)
		}
	}
}

// compareFiles: all below the data folder is for its owner alone, or has a row in
// docs/security.md with the mode it has.
func (in *installation) compareFiles(t *testing.T) {
	t.Helper()
	rows := securityTable(t, "files")
	seen := 0
	err := filepath.WalkDir(in.dataDir, func(path string, d fs.DirEntry, err error) error {
		if os.IsNotExist(err) {
			return nil // a socket or a temporary file that has gone meanwhile
		}
		if err != nil || path == in.dataDir {
			return err
		}
		info, err := d.Info()
		if os.IsNotExist(err) {
			return nil
		}
		if err != nil {
			return err
		}
		seen++
		name, _ := filepath.Rel(in.dataDir, path)
		mode := info.Mode()
		listed := slices.ContainsFunc(rows, func(row []string) bool {
			if below, ok := strings.CutSuffix(row[0], "…"); ok {
				return strings.HasPrefix(name, below)
			}
			same, err := filepath.Match(row[0], name)
			return err == nil && same && fmt.Sprintf("%04o", mode.Perm()) == row[1]
		})
		st, ok := info.Sys().(*syscall.Stat_t)
		private := ok && int(st.Uid) == os.Geteuid() && (mode.Perm()&0o077 == 0 || mode&fs.ModeSymlink != 0)
		if !private && !listed {
			t.Errorf("%s (%s) is not for its owner alone, and has no row in docs/security.md", name, mode)
		}
		return nil
	})
	if err != nil || seen < 20 {
		t.Errorf("%d files: %v", seen, err)
	}
}
