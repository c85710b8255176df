package file

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/penstock-gateway/penstock/gateway"
	"github.com/penstock-gateway/penstock/gateway/source/file/strict"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// stdinName is what errors and origins call standard input.
const stdinName = "<stdin>"

// Options are how files are read.
type Options struct {
	// Project of documents that name none. Default DefaultProject.
	Project string
	// Stdin is what "-" reads. Default os.Stdin.
	Stdin io.Reader
	// Stored looks up stored Backends by full name, for DestinationRules that change one
	// which the files do not have; what is not there it leaves out. It is called once at
	// most. nil: the files must have them.
	Stored func(names []string) []*pb.Backend
}

// Load reads files, directories (all *.yaml, *.yml and *.json below them, by
// name; entries that begin with a dot and links to directories are left out) and
// "-", standard input. Documents of all of them may refer to each other. All
// problems are returned at once, together with the objects that have none.
func Load(paths ...string) ([]gateway.Object, Errors) {
	set, errs := Options{}.Load(paths...)
	return set.Objects(), errs
}

// Load reads as the package's Load does and keeps the places of all fields.
func (o Options) Load(paths ...string) (*Set, Errors) {
	l := o.loader()
	seen := map[string]bool{}
	for _, path := range paths {
		if path == "-" {
			if !seen[path] {
				l.read(stdinName, o.stdin())
			}
			seen[path] = true
			continue
		}
		for _, name := range l.expand(path) {
			key := name
			if abs, err := filepath.Abs(name); err == nil {
				key = abs
			}
			if !seen[key] {
				l.open(name)
			}
			seen[key] = true
		}
	}
	return l.finish()
}

func (o Options) stdin() io.Reader {
	if o.Stdin != nil {
		return o.Stdin
	}
	return os.Stdin
}

func (l *loader) fail(name string, err error) {
	var message string
	if pe, ok := errors.AsType[*fs.PathError](err); ok {
		message = "cannot be read: " + pe.Err.Error()
	} else {
		message = "cannot be read: " + err.Error()
	}
	l.errs = append(l.errs, Error{File: name, Message: message})
}

// expand lists the files that a path stands for.
func (l *loader) expand(path string) []string {
	info, err := os.Stat(path)
	if err != nil {
		l.fail(path, err)
		return nil
	}
	if !info.IsDir() {
		return []string{path}
	}
	var out []string
	err = filepath.WalkDir(path, func(name string, e fs.DirEntry, err error) error {
		switch {
		case err != nil:
			l.fail(name, err)
			if e != nil && e.IsDir() {
				return fs.SkipDir
			}
			return nil
		case name != path && strings.HasPrefix(e.Name(), "."):
			if e.IsDir() {
				return fs.SkipDir
			}
			return nil
		case e.IsDir() || !slices.Contains([]string{".yaml", ".yml", ".json"}, filepath.Ext(name)):
			return nil
		}
		// A link may lead to a file, as in a mounted ConfigMap.
		if info, err := os.Stat(name); err == nil && info.IsDir() {
			return nil
		}
		out = append(out, name)
		return nil
	})
	if err != nil {
		l.fail(path, err)
	}
	slices.SortFunc(out, func(a, b string) int { return cmp.Compare(a, b) })
	return out
}

func (l *loader) open(name string) {
	f, err := os.Open(name)
	if err != nil {
		l.fail(name, err)
		return
	}
	defer f.Close()
	l.read(name, f)
}

// read takes one byte more than is allowed, so that the size is refused by Parse.
func (l *loader) read(name string, r io.Reader) {
	data, err := io.ReadAll(io.LimitReader(r, strict.MaxSize+1))
	if err != nil {
		l.fail(name, err)
		return
	}
	if len(data) > strict.MaxSize {
		l.errs = append(l.errs, Error{File: name, Message: fmt.Sprintf("the file is larger than %d bytes (4 MiB)", strict.MaxSize), Hint: "split it into several files"})
		return
	}
	l.add(name, data)
}
