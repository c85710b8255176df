package archive

import (
	"archive/zip"
	"bytes"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

type entry struct {
	name, body string
	mode       fs.FileMode
}

func archiveOf(t testing.TB, entries ...entry) []byte {
	t.Helper()
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	for _, e := range entries {
		h := &zip.FileHeader{Name: e.name, Method: zip.Deflate}
		if e.mode == 0 {
			e.mode = 0o644
		}
		h.SetMode(e.mode)
		w, err := z.CreateHeader(h)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, e.body); err != nil {
			t.Fatal(err)
		}
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestBadArchives(t *testing.T) {
	small := Limits{Files: 5, Bytes: 64 << 20, Ratio: 100}
	zeros := strings.Repeat("\x00", 12<<20)
	for _, row := range []struct {
		what    string
		entries []entry
		raw     string
		want    string
	}{
		{what: "no zip", raw: "hello", want: "not a zip file"},
		{what: "empty", entries: nil, want: "holds no file"},
		{what: "traversal", entries: []entry{{name: "a/../../etc/x"}}, want: "leads out"},
		{what: "inner dots", entries: []entry{{name: "a/../b"}}, want: "leads out"},
		{what: "absolute", entries: []entry{{name: "/etc/x"}}, want: "leads out"},
		{what: "backslash", entries: []entry{{name: `..\x`}}, want: "backslash"},
		{what: "link out", entries: []entry{{name: "a", body: "../x", mode: fs.ModeSymlink | 0o777}}, want: "leads out"},
		{what: "absolute link", entries: []entry{{name: "a", body: "/etc", mode: fs.ModeSymlink | 0o777}}, want: "leads out"},
		{what: "through a link", entries: []entry{{name: "a", body: "b", mode: fs.ModeSymlink | 0o777}, {name: "a/x"}}, want: "below the symbolic link"},
		{what: "through a link that comes later", entries: []entry{{name: "a/x"}, {name: "a", body: "b", mode: fs.ModeSymlink | 0o777}}, want: "below the symbolic link"},
		{what: "back from a link", entries: []entry{{name: "f"}, {name: "d/e/up", body: "../..", mode: fs.ModeSymlink | 0o777}, {name: "out", body: "d/e/up/../x", mode: fs.ModeSymlink | 0o777}}, want: "steps back"},
		{what: "back from a link that comes later", entries: []entry{{name: "f"}, {name: "out", body: "d/e/up/../../x", mode: fs.ModeSymlink | 0o777}, {name: "d/e/up", body: "../..", mode: fs.ModeSymlink | 0o777}}, want: "steps back"},
		{what: "deep", entries: []entry{{name: strings.Repeat("a/", maxDepth+1) + "x"}}, want: "folders deep"},
		{what: "device", entries: []entry{{name: "a", mode: fs.ModeDevice | 0o644}}, want: "neither file"},
		{what: "twice", entries: []entry{{name: "a"}, {name: "./a"}}, want: "twice"},
		{what: "many", entries: []entry{{name: "a"}, {name: "b"}, {name: "c"}, {name: "d"}, {name: "e"}, {name: "f"}}, want: "6 entries"},
		{what: "bomb", entries: []entry{{name: "a", body: zeros}}, want: "times its size"},
		{what: "large", entries: []entry{{name: "a", body: zeros}, {name: "b", body: zeros}, {name: "c", body: zeros}, {name: "d", body: zeros}, {name: "e", body: strings.Repeat("\x00", 20<<20)}}, want: "unpacks to 68 MiB"},
	} {
		raw := []byte(row.raw)
		if row.raw == "" {
			raw = archiveOf(t, row.entries...)
		}
		err := Extract(bytes.NewReader(raw), int64(len(raw)), t.TempDir(), small)
		if err == nil || !strings.Contains(err.Error(), row.want) {
			t.Errorf("%s: %v, want %q", row.what, err, row.want)
		}
	}
}

// TestLargeDirectory: a directory that is too large is not held in memory.
func TestLargeDirectory(t *testing.T) {
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	comment := strings.Repeat("c", 60_000)
	for n := range maxDirectory/len(comment) + 1 {
		if _, err := z.CreateHeader(&zip.FileHeader{Name: strconv.Itoa(n), Comment: comment}); err != nil {
			t.Fatal(err)
		}
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	raw := b.Bytes()
	if err := Check(bytes.NewReader(raw), int64(len(raw)), Default); err == nil || !strings.Contains(err.Error(), "directory has more than") {
		t.Errorf("%v", err)
	}
}

// TestLinks: links over links that stay in the archive are taken.
func TestLinks(t *testing.T) {
	raw := archiveOf(t, entry{name: "lib/v1/x", body: "1"}, entry{name: "lib/now", body: "v1", mode: fs.ModeSymlink | 0o777},
		entry{name: "bin/x", body: "../lib/now/x", mode: fs.ModeSymlink | 0o777}, entry{name: "y", body: "bin/x", mode: fs.ModeSymlink | 0o777})
	dir := t.TempDir()
	if err := Extract(bytes.NewReader(raw), int64(len(raw)), dir, Default); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(filepath.Join(dir, "y")); string(b) != "1" || err != nil {
		t.Errorf("%q, %v", b, err)
	}
}

// TestLyingSize: an entry that unpacks to more than the directory says is cut off.
func TestLyingSize(t *testing.T) {
	raw := archiveOf(t, entry{name: "a", body: strings.Repeat("x", 5000)})
	// The sizes stand in the central directory, 24 bytes behind its signature.
	at := bytes.LastIndex(raw, []byte("PK\x01\x02"))
	copy(raw[at+24:], []byte{10, 0, 0, 0})
	if err := Extract(bytes.NewReader(raw), int64(len(raw)), t.TempDir(), Limits{Files: 5, Bytes: 100, Ratio: 100}); err == nil {
		t.Error("it was unpacked")
	}
}

func TestPackAndExtract(t *testing.T) {
	from, to := t.TempDir(), t.TempDir()
	write := func(name, body string, mode fs.FileMode) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(filepath.Join(from, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(from, name), []byte(body), mode); err != nil {
			t.Fatal(err)
		}
	}
	write("app.py", "x", 0o644)
	write("sub/run", "y", 0o755)
	write("__pycache__/a.pyc", "z", 0o644)
	write("node_modules/m/index.js", "z", 0o644)
	if err := os.Symlink("sub/run", filepath.Join(from, "link")); err != nil {
		t.Fatal(err)
	}
	var one, two bytes.Buffer
	if err := Pack(&one, from, nil); err != nil {
		t.Fatal(err)
	}
	if err := Pack(&two, from, nil); err != nil || !bytes.Equal(one.Bytes(), two.Bytes()) {
		t.Errorf("not the same bytes (%v)", err)
	}
	if err := Extract(bytes.NewReader(one.Bytes()), int64(one.Len()), to, Default); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"app.py": "x", "sub/run": "y", "link": "y"} {
		if b, err := os.ReadFile(filepath.Join(to, name)); err != nil || string(b) != want {
			t.Errorf("%s: %q (%v)", name, b, err)
		}
	}
	for _, name := range []string{"__pycache__", "node_modules"} {
		if _, err := os.Stat(filepath.Join(to, name)); err == nil {
			t.Errorf("%s was packed", name)
		}
	}
	if info, err := os.Stat(filepath.Join(to, "sub/run")); err != nil || info.Mode().Perm()&0o100 == 0 {
		t.Errorf("sub/run cannot be executed (%v)", err)
	}
	if d, err := Digest(&one); err != nil || CheckDigest(d) != nil {
		t.Errorf("%q: %v, %v", d, err, CheckDigest(d))
	}
	for _, bad := range []string{"", "sha256:", "sha256:AB", "md5:" + strings.Repeat("0", 64), "sha256:" + strings.Repeat("G", 64)} {
		if CheckDigest(bad) == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}

// FuzzExtract: whatever the bytes, nothing is written outside of the folder.
func FuzzExtract(f *testing.F) {
	f.Add(archiveOf(f, entry{name: "a/b", body: "c"}))
	f.Add(archiveOf(f, entry{name: "a", body: "b", mode: fs.ModeSymlink | 0o777}, entry{name: "b", body: "c"}))
	f.Fuzz(func(t *testing.T, raw []byte) {
		parent := t.TempDir()
		dir := filepath.Join(parent, "in")
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		_ = Extract(bytes.NewReader(raw), int64(len(raw)), dir, Limits{Files: 100, Bytes: 1 << 20, Ratio: 100})
		if entries, err := os.ReadDir(parent); err != nil || len(entries) != 1 {
			t.Fatalf("%v, %v", entries, err)
		}
	})
}
