package file

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/penstock-gateway/penstock/gateway"
	"github.com/penstock-gateway/penstock/gateway/source/file/strict"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

func backend(name string) string {
	return "kind: Backend\nname: " + name + "\ndns: {hostname: a, port: 1}\n"
}

func write(t *testing.T, dir string, files map[string]string) {
	t.Helper()
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func names(objects []gateway.Object) []string {
	var out []string
	for _, o := range objects {
		out = append(out, strings.TrimPrefix(o.GetName(), "projects/default/backends/"))
	}
	return out
}

func TestLoad(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, map[string]string{
		"b.yaml": backend("b1") + "---\n" + backend("b2"), "a/z.yml": backend("z"), "a/y.json": `{"kind": "Backend", "name": "y", "dns": {"hostname": "a", "port": 1}}`,
		"README.md": "no: [configuration", ".hidden.yaml": "no: [configuration", ".git/x.yaml": "no: [configuration", "empty.yaml": "# nothing\n", "named.txt": backend("named"),
	})
	// As in a mounted ConfigMap: links to files are followed, links to folders not.
	write(t, dir, map[string]string{"..data/link.yaml": backend("linked")})
	if err := os.Symlink("..data/link.yaml", filepath.Join(dir, "link.yaml")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("a", filepath.Join(dir, "folder.yaml")); err != nil {
		t.Fatal(err)
	}
	set, errs := Options{Stdin: strings.NewReader(backend("in"))}.Load(dir, filepath.Join(dir, "named.txt"), "-", filepath.Join(dir, "b.yaml"), dir+"/./a")
	if len(errs) > 0 {
		t.Fatal(errs)
	}
	if got, want := names(set.Objects()), []string{"y", "z", "b1", "b2", "linked", "named", "in"}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	for i, want := range []*pb.Origin{{File: filepath.Join(dir, "a/y.json"), Line: 1}, {File: filepath.Join(dir, "a/z.yml"), Line: 1}, {File: filepath.Join(dir, "b.yaml"), Line: 1}, {File: filepath.Join(dir, "b.yaml"), Line: 5}} {
		got := set.Documents[i].Object().GetMetadata().GetOrigin()
		if got.GetSource() != "file" || got.GetFile() != want.File || got.GetLine() != want.Line {
			t.Errorf("origin of document %d: got %v, want %v", i, got, want)
		}
	}
	if o := set.Documents[6].Object().GetMetadata().GetOrigin(); o.GetFile() != "<stdin>" {
		t.Errorf("origin of standard input: %v", o)
	}
}

// TestLoadErrors: every problem of every file at once, and the good objects
// beside them.
func TestLoadErrors(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, map[string]string{
		"a.yaml": backend("same"), "b.yaml": backend("b") + "---\n" + backend("same"), "c.yaml": "kind: Backend\nnme: c\n", "d.yaml": strings.Repeat("#", strict.MaxSize+1),
	})
	objects, errs := Load(dir, filepath.Join(dir, "missing.yaml"))
	if got, want := names(objects), []string{"same", "b"}; !slices.Equal(got, want) {
		t.Errorf("objects: got %v, want %v", got, want)
	}
	text := strings.ReplaceAll(errs.Error(), dir+"/", "")
	for _, want := range []string{
		"missing.yaml: cannot be read: no such file or directory",
		"b.yaml:6:7: projects/default/backends/same is there already, at a.yaml:1",
		`c.yaml:2:1: unknown field "nme" in Backend`,
		"c.yaml:1:1: the Backend has no name",
		"d.yaml: the file is larger than 4194304 bytes (4 MiB): split it into several files",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in:\n%s", want, text)
		}
	}
	_, errs = Options{Stdin: iotest.ErrReader(errors.New("cut off"))}.Load("-")
	if got := errs.Error(); got != "<stdin>: cannot be read: cut off" {
		t.Errorf("got %q", got)
	}
}

func TestProject(t *testing.T) {
	set, errs := Options{Project: "shop"}.Decode("a.yaml", []byte(backend("a")+"---\n"+backend("b")+"project: other\n"))
	if len(errs) > 0 {
		t.Fatal(errs)
	}
	if a, b := set.Documents[0].Resource.GetBackend().GetName(), set.Documents[1].Resource.GetBackend().GetName(); a != "projects/shop/backends/a" || b != "projects/other/backends/b" {
		t.Errorf("got %s and %s", a, b)
	}
}

func TestLocate(t *testing.T) {
	set, errs := Options{}.Decode("a.yaml", []byte(`kind: Route
name: a
rules:
- matches:
  - path: {prefix: /a}
  forward: {backends: [{backend: x}]}
metadata:
  labels:
    a.b: c
`))
	if len(errs) > 0 {
		t.Fatal(errs)
	}
	const name = "projects/default/routes/a"
	for field, want := range map[string]string{
		"":                                     "a.yaml:1:1",
		"gateways[3]":                          "a.yaml:1:1",
		"rules[0].forward.backends[0].backend": "a.yaml:6:34",
		"rules[0].forward.backends[0].weight":  "a.yaml:6:24",
		"rules[0].matches[0].path.prefix":      "a.yaml:5:20",
		"rules[0].policies":                    "a.yaml:4:3",
		`metadata.labels["a.b"]`:               "a.yaml:9:10",
		"name":                                 "a.yaml:2:7",
	} {
		got := set.Locate([]gateway.Problem{{Object: name, Field: field, Message: "is bad"}})
		if len(got) != 1 || !strings.HasPrefix(got[0].Error(), want+": "+name+": ") || got[0].Snippet == "" {
			t.Errorf("%q: got %v, want %s", field, got, want)
		}
	}
	got := set.Locate([]gateway.Problem{
		{Object: "projects/default/routes/b", Field: "x", Message: "is bad", Origin: &pb.Origin{File: "b.yaml", Line: 7}},
		{Object: "projects/default/routes/c", Message: "is bad"},
	})
	if len(got) != 2 || got[0].Error() != "b.yaml:7:1: projects/default/routes/b: x: is bad" || got[1].Error() != "projects/default/routes/c: is bad" {
		t.Errorf("got %v", got)
	}
	if at, ok := set.Positions(name).Find("rules"); !ok || at.Line != 3 {
		t.Errorf("rules: %v", at)
	}
	if set.Positions("projects/default/routes/b") != nil {
		t.Error("positions of what was not read")
	}
}

func TestEncodeErrors(t *testing.T) {
	for _, o := range []gateway.Object{
		&pb.Route{}, &pb.Route{Name: "a"}, &pb.Route{Name: "projects/default/backends/a"}, &pb.Route{Name: "projects/default/routes/A"},
		&pb.Gateway{Name: "projects/default/gateways/a", Listeners: []*pb.Listener{{Protocol: 99}}},
	} {
		if text, err := Encode(o); err == nil {
			t.Errorf("%v was written as %q", o, text)
		}
	}
}
