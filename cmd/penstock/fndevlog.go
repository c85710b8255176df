package main

import (
	"archive/zip"
	"bytes"
	"fmt"
	"io"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// devLog prints the lines of a function for its author: with paths as they are in the
// folder, followed by the line of code that they name, and once what every start says
// again.
type devLog struct {
	out io.Writer

	mu sync.Mutex
	// versions by their source, as in LogLine.source.
	versions map[string]*devVersion
}

// devVersion is a version that was deployed: its files, and what it has printed beside
// requests.
type devVersion struct {
	files map[string][]string // lines by name
	// speaker is the instance whose start is shown; said is what was said by any.
	speaker string
	said    map[string]bool
	shown   map[string]bool // places
}

func newDevLog(out io.Writer) *devLog {
	return &devLog{out: out, versions: map[string]*devVersion{}}
}

// maxDevFile bounds the files whose lines are shown.
const maxDevFile = 1 << 20

// add makes a package known whose lines may come.
func (d *devLog) add(digest string, pack []byte) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.versions[digest] != nil {
		return
	}
	v := &devVersion{files: map[string][]string{}, said: map[string]bool{}, shown: map[string]bool{}}
	d.versions[digest] = v
	r, err := zip.NewReader(bytes.NewReader(pack), int64(len(pack)))
	if err != nil {
		return // it was packed by this program, and only hints are lost
	}
	for _, f := range r.File {
		if !codeFile.MatchString(f.Name) || f.UncompressedSize64 > maxDevFile {
			continue
		}
		in, err := f.Open()
		if err != nil {
			continue
		}
		b, err := io.ReadAll(in)
		in.Close()
		if err == nil {
			v.files[path.Clean(filepath.ToSlash(f.Name))] = strings.Split(string(b), "\n")
		}
	}
}

// mark says why a version cannot run, with the place that it names unless the log
// has shown it.
func (d *devLog) mark(text, source string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	v := d.versions[source]
	fmt.Fprintln(d.out, v.relative(text))
	d.places(v, text)
}

// awsAdvice is a long text of the Lambda runtime about its own updates, which says
// nothing about a handler.
const awsAdvice = "LAMBDA_WARNING: Unhandled exception."

func (d *devLog) line(l *pb.LogLine) {
	if strings.Contains(l.GetText(), awsAdvice) {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	v := d.versions[l.GetSource()]
	if v.repeats(l) {
		return
	}
	printLine(d.out, &pb.LogLine{Time: l.GetTime(), Instance: l.GetInstance(), RequestId: l.GetRequestId(), Text: v.relative(l.GetText())})
	d.places(v, l.GetText())
}

// places prints the lines of code that a text names, each once for a version when it
// starts. The caller holds mu.
func (d *devLog) places(v *devVersion, text string) {
	if v == nil {
		return
	}
	for _, where := range v.placesIn(text) {
		if !v.shown[where] {
			fmt.Fprintf(d.out, "    > %s\n", where)
		}
		v.shown[where] = true
	}
}

// changing is what differs from start to start: times, addresses, process ids.
var changing = regexp.MustCompile(`0x[0-9a-fA-F]+|\d+`)

// repeats reports whether a line was there before: each instance of a version that
// cannot start says the same. What belongs to a request is always new.
func (v *devVersion) repeats(l *pb.LogLine) bool {
	if v == nil {
		return false
	}
	if l.GetRequestId() != "" {
		clear(v.shown) // another request may fail at the same place
		return false
	}
	if v.speaker == "" {
		v.speaker = l.GetInstance()
	}
	key := l.GetStream() + changing.ReplaceAllString(l.GetText(), "#")
	known := v.said[key]
	v.said[key] = true
	return known && (l.GetInstance() != v.speaker || l.GetStream() == "runner")
}

// codeFile is the name of a file that may be named in a stack.
var codeFile = regexp.MustCompile(`\.(?:py|js|mjs|cjs|ts|go|rb|php)$`)

var (
	// fileName finds paths of code in a text.
	fileName = regexp.MustCompile(`[^\s"'()<>,]+\.(?:py|js|mjs|cjs|ts|go|rb|php)\b`)
	// place finds "file.py", line 12 as Python prints it, (file.py, line 12) of a
	// SyntaxError, and file.js:12.
	place = regexp.MustCompile(`([^\s"'()<>,]+\.(?:py|js|mjs|cjs|ts|go|rb|php))(?:"?,? [Ll]ine |:)(\d+)`)
	// importFrames are Python's own frames between a handler and who imports it. AWS's
	// runtime indents with non-breaking spaces.
	importFrames = regexp.MustCompile(`(?m)^[ \x{a0}]*File "<frozen importlib.*\n|^[ \x{a0}]*File ".*/importlib/__init__.py", line.*\n.*_bootstrap._gcd_import.*\n`)
	// missing finds what an ImportError says, which has no line.
	missing = regexp.MustCompile(`No module named '([\w.]+)'|cannot import name '(\w+)'`)
)

// local is the name in the package of a path on the runner's machine, which has its
// own copy: the longest end that is there.
func (v *devVersion) local(name string) string {
	parts := strings.Split(strings.TrimPrefix(name, "file://"), "/")
	for i := range parts {
		if rel := strings.Join(parts[i:], "/"); v.files[rel] != nil {
			return rel
		}
	}
	return ""
}

// relative writes paths in a text as they are in the folder.
func (v *devVersion) relative(text string) string {
	if v == nil {
		return text
	}
	return fileName.ReplaceAllStringFunc(importFrames.ReplaceAllString(text, ""), func(name string) string {
		if rel := v.local(name); rel != "" {
			return rel
		}
		return name
	})
}

// placesIn are the lines of code that a text names: "app.py:12: return 1/0".
func (v *devVersion) placesIn(text string) []string {
	var out []string
	add := func(name string, number int) {
		if lines := v.files[name]; number >= 1 && number <= len(lines) {
			out = append(out, fmt.Sprintf("%s:%d: %s", name, number, strings.TrimSpace(lines[number-1])))
		}
	}
	for _, m := range place.FindAllStringSubmatch(text, -1) {
		if number, err := strconv.Atoi(m[2]); err == nil {
			add(v.local(m[1]), number)
		}
	}
	if m := missing.FindStringSubmatch(text); m != nil && len(out) == 0 {
		for _, name := range v.sorted() {
			if number := importOf(v.files[name], m[1]+m[2]); number > 0 {
				add(name, number)
				break
			}
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

func (v *devVersion) sorted() []string {
	var out []string
	for name := range v.files {
		out = append(out, name)
	}
	slices.Sort(out)
	return out
}

// importOf is the number of the line of Python that imports a module or a name; 0 when
// none does.
func importOf(lines []string, what string) int {
	statement := regexp.MustCompile(`^\s*(?:import|from)\s.*\b` + regexp.QuoteMeta(what) + `\b`)
	return 1 + slices.IndexFunc(lines, statement.MatchString)
}
