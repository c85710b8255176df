// Package framework runs functions that were written for Google's Functions
// Framework (Google Cloud Functions, Cloud Run functions), by Google's own
// framework packages: functions-framework for Python and
// @google-cloud/functions-framework for Node.js. A function is called with the
// HTTP request or with a CloudEvent (binary or structured).
//
// The framework is an HTTP server, so its process is spoken to as package server
// does. A copy of the framework that the source brings along goes before the
// runner's.
package framework

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/penstock-gateway/penstock/functions/instance"
	"github.com/penstock-gateway/penstock/functions/runtime/server"
)

// Runtime is the language of a framework.
type Runtime int

const (
	// Python has its function in main.py.
	Python Runtime = iota
	// Node has its function in the main file of package.json, index.js or
	// function.js.
	Node
)

// Options are of one function.
type Options struct {
	Runtime Runtime
	// Target is the name of the function in the source.
	Target string
	// CloudEvent means that the function takes a CloudEvent, not a request.
	CloudEvent bool
	// Interpreter is the Python or Node.js program.
	Interpreter string
	// Path is the folder that the framework is installed in: for PYTHONPATH or
	// NODE_PATH. Empty: only the source may bring it.
	Path string
	// Env are the function's variables: PYTHONPATH and NODE_PATH of them count.
	Env map[string]string
	// Concurrency is how many requests are handled at once: threads of Python.
	Concurrency int
}

const (
	// idle is how long connections are kept: gunicorn closes its own after 2 s,
	// Node.js after 5 s, and a request must not meet that.
	idle = time.Second
	// nodePackage is the framework's package.
	nodePackage = "@google-cloud/functions-framework"
)

// Check says what is wrong with the options and the source before anything is
// started.
func Check(o Options, dir string) error {
	if o.Runtime == Python {
		if !isFile(filepath.Join(dir, "main.py")) {
			return errors.New("the source holds no main.py, in which the Functions Framework for Python looks for the function")
		}
		return nil
	}
	pkg, err := readPackage(dir)
	if err != nil {
		return err
	}
	for _, f := range []string{pkg.Main, "index.js", "function.js", "index.mjs"} {
		if f != "" && (isFile(filepath.Join(dir, f)) || isFile(filepath.Join(dir, f+".js"))) {
			return o.checkNode(dir)
		}
	}
	if pkg.Main != "" {
		return fmt.Errorf("package.json in the source names %q as main, which does not exist (a build step that makes it must have run before)", pkg.Main)
	}
	return errors.New("the source holds neither index.js nor function.js nor a package.json with main, in which the Functions Framework for Node.js looks for the function")
}

func (o Options) checkNode(dir string) error {
	if o.Path == "" && own(dir) == "" {
		return errors.New("the Functions Framework for Node.js is missing: npm install " + nodePackage + " in the source, or start the runner with the folder of one")
	}
	return nil
}

type packageJSON struct {
	Main string `json:"main"`
	Bin  any    `json:"bin"`
}

// readPackage reads a package.json; one that is not there is empty.
func readPackage(dir string) (packageJSON, error) {
	var p packageJSON
	b, err := os.ReadFile(filepath.Join(dir, "package.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return p, nil
	}
	if err == nil {
		err = json.Unmarshal(b, &p)
	}
	if err != nil {
		return p, fmt.Errorf("package.json: %w", err)
	}
	return p, nil
}

func isFile(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode().IsRegular()
}

// own is the folder of the framework that the source brings along; "": none.
func own(dir string) string {
	p := filepath.Join(dir, "node_modules", filepath.FromSlash(nodePackage))
	if !isFile(filepath.Join(p, "package.json")) {
		return ""
	}
	return p
}

// New makes the contract of instances. Its working directory is the source, dir.
func New(o Options, dir string) (instance.Factory, error) {
	s := server.Options{
		Concurrency: o.Concurrency, IdleTimeout: idle, Workers: o.Runtime == Python,
		// One thread that is busy can only be given up with its process.
		Uncancelable: o.Concurrency == 1, Inspect: inspect,
	}
	signature := "http"
	if o.CloudEvent {
		signature = "cloudevent"
	}
	s.Env = map[string]string{
		"FUNCTION_TARGET": o.Target, "FUNCTION_SIGNATURE_TYPE": signature,
		// For code that asks where it runs, as on Cloud Run.
		"K_REVISION": "latest", "K_CONFIGURATION": o.Target,
	}
	if o.Runtime == Python {
		o.python(&s)
		return server.New(s), nil
	}
	if err := o.node(&s, dir); err != nil {
		return nil, err
	}
	return server.New(s), nil
}

func (o Options) python(s *server.Options) {
	s.Command = []string{o.Interpreter, "-m", "functions_framework", "--source", "main.py"}
	s.Env["WORKERS"], s.Env["THREADS"] = "1", strconv.Itoa(o.Concurrency)
	s.Env["PYTHONUNBUFFERED"], s.Env["PYTHONDONTWRITEBYTECODE"] = "1", "1"
	if p := joinPath(o.Env["PYTHONPATH"], o.Path); p != "" {
		s.Env["PYTHONPATH"] = p
	}
}

func (o Options) node(s *server.Options, dir string) error {
	home := own(dir)
	if home == "" {
		home = filepath.Join(o.Path, filepath.FromSlash(nodePackage))
	}
	pkg, err := readPackage(home)
	if err != nil {
		return fmt.Errorf("the Functions Framework in %s: %w", home, err)
	}
	program := ""
	switch bin := pkg.Bin.(type) {
	case string:
		program = bin
	case map[string]any:
		program, _ = bin["functions-framework"].(string)
	}
	if program == "" || !filepath.IsLocal(filepath.FromSlash(program)) {
		return fmt.Errorf("the Functions Framework in %s has no program functions-framework", home)
	}
	s.Command = []string{o.Interpreter, filepath.Join(home, filepath.FromSlash(program)), "--source=."}
	if p := joinPath(o.Env["NODE_PATH"], o.Path); p != "" {
		s.Env["NODE_PATH"] = p
	}
	return nil
}

func joinPath(parts ...string) string {
	var out []string
	for _, p := range parts {
		if p != "" {
			out = append(out, p)
		}
	}
	return strings.Join(out, string(os.PathListSeparator))
}

// inspect finds answers of the framework for a function that raised an error. The
// text in them is for the author, who has it in the log, not for callers.
func inspect(r *http.Response) error {
	if s := r.Header.Get("X-Google-Status"); s != "crash" && s != "error" {
		return nil
	}
	return &instance.Failed{
		Status: http.StatusInternalServerError, Kind: instance.KindHandlerError,
		Detail: "the function raised an error; its log has it, with this request id",
	}
}
