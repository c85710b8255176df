package file

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/tools/txtar"
)

var update = flag.Bool("update", false, "write what is got into testdata")

// golden runs f over the files of a txtar archive and compares each with the
// file of the same name plus ".want".
func golden(t *testing.T, archive string, f func(t *testing.T, name string, data []byte) string) {
	t.Helper()
	path := filepath.Join("testdata", archive)
	a, err := txtar.ParseFile(path)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{}
	for _, file := range a.Files {
		if strings.HasSuffix(file.Name, ".want") {
			want[file.Name] = string(file.Data)
		}
	}
	out := &txtar.Archive{Comment: a.Comment}
	for _, file := range a.Files {
		if strings.HasSuffix(file.Name, ".want") {
			continue
		}
		t.Run(file.Name, func(t *testing.T) {
			got := f(t, file.Name, file.Data)
			out.Files = append(out.Files, file, txtar.File{Name: file.Name + ".want", Data: []byte(got)})
			if *update {
				return
			}
			if diff := cmp.Diff(want[file.Name+".want"], got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
	if *update {
		if err := os.WriteFile(path, txtar.Format(out), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func TestBadInput(t *testing.T) {
	golden(t, "bad.txtar", func(t *testing.T, name string, data []byte) string {
		_, errs := Decode(name, data)
		if len(errs) == 0 {
			t.Error("no error")
		}
		for _, e := range errs {
			if e.File != name || e.Line == 0 || e.Column == 0 || e.Message == "" {
				t.Errorf("an error without its place: %#v", e)
			}
		}
		return errs.Error() + "\n"
	})
}

func TestGoodInput(t *testing.T) {
	golden(t, "good.txtar", func(t *testing.T, name string, data []byte) string {
		objects, errs := Decode(name, data)
		if len(errs) > 0 {
			t.Fatal(errs)
		}
		var b bytes.Buffer
		for _, o := range objects {
			text, err := Encode(o)
			if err != nil {
				t.Fatal(err)
			}
			b.WriteString("---\n")
			b.Write(text)
		}
		return b.String()
	})
}

// archiveFiles are the inputs of a golden archive.
func archiveFiles(t testing.TB, archive string) [][]byte {
	t.Helper()
	a, err := txtar.ParseFile(filepath.Join("testdata", archive))
	if err != nil {
		t.Fatal(err)
	}
	var out [][]byte
	for _, f := range a.Files {
		if !strings.HasSuffix(f.Name, ".want") {
			out = append(out, f.Data)
		}
	}
	return out
}
