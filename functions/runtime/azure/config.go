package azure

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

const (
	// maxFile bounds host.json and function.json.
	maxFile = 1 << 20
	// maxFunctions bounds the functions of one source.
	maxFunctions = 1000
)

// App is a source with a custom handler: what host.json and the function.json of
// each function say.
type App struct {
	// Args is the command; Dir is its working directory, absolute.
	Args []string
	Dir  string
	// Forward means that requests go to the handler as they are.
	Forward bool
	// Functions that requests can reach, the most special route first.
	Functions []*Function
	// Ignored is what the files say without effect here, with file and line.
	Ignored []string

	root   string
	env    map[string]string
	prefix string
	only   []string
	host   hostFile
}

// hostFile is what host.json says of the handler.
type hostFile struct {
	executable, worker, directory string
	arguments, workerArguments    []string
	forward, proxy                bool
	version                       string
	described                     *value
}

// Function is one function of a source.
type Function struct {
	// Name is its folder.
	Name string
	// Trigger and Output are the names of its bindings. Output is empty when it has
	// none, "$return" for the value that it returns.
	Trigger, Output string
	// Methods in upper case; empty: all.
	Methods []string

	route *route
}

// Load reads a source. Errors name file and line. env is for %NAME% in paths,
// arguments and routes. only, when not empty, is the one function that answers.
func Load(dir, only string, env map[string]string) (*App, error) {
	a := &App{root: dir, env: env, prefix: "api"}
	v, err := a.file("host.json")
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errors.New("the source holds no host.json, which says how the custom handler is started")
	}
	if err == nil {
		err = a.readHost(v)
	}
	if err == nil {
		err = a.command(v)
	}
	if err == nil {
		err = a.readFunctions()
	}
	if err != nil {
		return nil, err
	}
	return a, a.choose(only)
}

// file reads a JSON file of the source, which may not lead out of it.
func (a *App) file(name string) (*value, error) {
	root, err := os.OpenRoot(a.root)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	info, err := root.Stat(filepath.FromSlash(name))
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > maxFile {
		return nil, fmt.Errorf("%s must be a file of at most %d KiB", name, maxFile>>10)
	}
	b, err := root.ReadFile(filepath.FromSlash(name))
	if err != nil {
		return nil, err
	}
	return parse(name, b)
}

func (a *App) ignore(what string) func(string, *value) {
	return func(name string, v *value) {
		a.Ignored = append(a.Ignored, fmt.Sprintf("%s:%d: %s%s", v.file, v.line, what, name))
	}
}

func (a *App) readHost(v *value) error {
	h := &a.host
	handler := func(v *value) error {
		return v.read("customHandler", fields{
			"description": func(v *value) error {
				h.described = v
				return v.read("customHandler.description", fields{
					"defaultExecutablePath": text("defaultExecutablePath", &h.executable),
					"defaultWorkerPath":     text("defaultWorkerPath", &h.worker),
					"workingDirectory":      text("workingDirectory", &h.directory),
					"arguments":             texts("arguments", &h.arguments),
					"workerArguments":       texts("workerArguments", &h.workerArguments),
				}, nil)
			},
			"enableForwardingHttpRequest": flag("enableForwardingHttpRequest", &h.forward),
			"enableProxyingHttpRequest":   flag("enableProxyingHttpRequest", &h.proxy),
			"port": func(v *value) error {
				return v.errorf("customHandler.port cannot be kept: each instance gets a port of its own in FUNCTIONS_CUSTOMHANDLER_PORT; let the handler listen there and take this away")
			},
			"http": func(v *value) error {
				return v.errorf("customHandler.http is not supported: give each function a folder with a function.json")
			},
			"type": func(v *value) error {
				if s, _ := v.json.(string); !strings.EqualFold(s, "http") {
					return v.errorf(`customHandler.type must be "http"`)
				}
				return nil
			},
		}, nil)
	}
	err := v.read("host.json", fields{
		"$schema":       func(*value) error { return nil },
		"version":       text("version", &h.version),
		"customHandler": handler,
		"httpWorker": func(v *value) error {
			return v.errorf("httpWorker is what customHandler was called before: rename it, and set enableForwardingHttpRequest to true in it")
		},
		"extensions": func(v *value) error { return a.extensions(v) },
		"functions":  texts("functions", &a.only),
		"aggregator": nil, "applicationInsights": nil, "concurrency": nil, "configurationProfile": nil, "extensionBundle": nil,
		"functionTimeout": nil, "healthMonitor": nil, "logging": nil, "managedDependency": nil, "retry": nil, "singleton": nil,
		"telemetryMode": nil, "watchDirectories": nil, "watchFiles": nil,
	}, a.ignore("host.json "))
	if err != nil {
		return err
	}
	if h.version != "2.0" {
		return v.errorf(`version is %q, it must be "2.0"`, h.version)
	}
	return nil
}

func (a *App) extensions(v *value) error {
	o, ok := v.json.(*object)
	if !ok {
		return v.errorf("extensions must be an object")
	}
	for _, name := range o.names {
		e := o.values[strings.ToLower(name)]
		if !strings.EqualFold(name, "http") {
			a.ignore("extensions.")(name, e)
			continue
		}
		err := e.read("extensions.http", fields{
			"routePrefix":             text("routePrefix", &a.prefix),
			"customHeaders":           nil,
			"dynamicThrottlesEnabled": nil, "hsts": nil, "maxConcurrentRequests": nil, "maxOutstandingRequests": nil,
		}, a.ignore("extensions.http."))
		if err != nil {
			return err
		}
		a.prefix = strings.Trim(a.expand(a.prefix), "/")
	}
	return nil
}

var variable = regexp.MustCompile(`%([A-Za-z_][A-Za-z0-9_]*)%`)

// expand puts the function's variables in place of %NAME%, as Azure does with
// application settings. One that is not set stays as it is.
func (a *App) expand(s string) string {
	return variable.ReplaceAllStringFunc(s, func(m string) string {
		if v, ok := a.env[m[1:len(m)-1]]; ok {
			return v
		}
		return m
	})
}

// command makes the command out of host.json.
func (a *App) command(v *value) error {
	h := &a.host
	if h.described == nil {
		return v.errorf("customHandler.description is missing, with defaultExecutablePath: the program that is the handler")
	}
	v = h.described
	executable := a.expand(h.executable)
	if strings.TrimSpace(executable) == "" {
		return v.errorf("defaultExecutablePath is missing: the program that is the handler, in the source or on PATH")
	}
	a.Forward = h.forward || h.proxy
	a.Dir = a.root
	if d := a.expand(h.directory); d != "" {
		if !filepath.IsLocal(filepath.FromSlash(d)) {
			return v.errorf("workingDirectory %q leads out of the source", d)
		}
		a.Dir = filepath.Join(a.root, filepath.FromSlash(d))
		if info, err := os.Stat(a.Dir); err != nil || !info.IsDir() {
			return v.errorf("workingDirectory %q is not a folder of the source", d)
		}
	}
	path, err := a.program(executable)
	if err != nil {
		return v.errorf("defaultExecutablePath: %w", err)
	}
	a.Args = append(a.Args, path)
	for _, s := range h.arguments {
		a.Args = append(a.Args, a.expand(s))
	}
	if h.worker != "" {
		a.Args = append(a.Args, a.expand(h.worker))
	}
	for _, s := range h.workerArguments {
		a.Args = append(a.Args, a.expand(s))
	}
	return nil
}

// program finds the handler: a file of the source, else a program on PATH.
func (a *App) program(name string) (string, error) {
	local := filepath.FromSlash(strings.ReplaceAll(name, `\`, "/"))
	if filepath.IsAbs(local) {
		return local, nil
	}
	if filepath.IsLocal(local) {
		path := filepath.Join(a.root, local)
		if info, err := os.Stat(path); err == nil {
			if info.IsDir() || info.Mode()&0o111 == 0 {
				return "", fmt.Errorf("%q in the source is not executable: chmod +x %s", name, local)
			}
			return path, nil
		}
	}
	if strings.ContainsRune(filepath.ToSlash(local), '/') {
		return "", fmt.Errorf("%q is not a file of the source: build it there (for Linux)", name)
	}
	if _, err := exec.LookPath(name); err != nil {
		return "", fmt.Errorf("%q is neither a file of the source nor a program on the runner's PATH", name)
	}
	return name, nil
}

// readFunctions reads the folders that hold a function.json.
func (a *App) readFunctions() error {
	entries, err := os.ReadDir(a.root)
	if err != nil {
		return err
	}
	for _, e := range entries {
		name := e.Name()
		v, err := a.file(name + "/function.json")
		if err != nil {
			if errors.Is(err, fs.ErrNotExist) || !e.IsDir() {
				continue
			}
			return err
		}
		if len(a.only) > 0 && !slices.ContainsFunc(a.only, func(n string) bool { return strings.EqualFold(n, name) }) {
			a.Ignored = append(a.Ignored, name+": host.json does not list it in functions")
			continue
		}
		if err := a.readFunction(name, v); err != nil {
			return err
		}
		if len(a.Functions) > maxFunctions {
			return fmt.Errorf("the source has more than %d functions", maxFunctions)
		}
	}
	slices.SortStableFunc(a.Functions, func(f, g *Function) int { return f.route.compare(g.route) })
	return nil
}

// functionName is what Azure allows.
var functionName = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9_-]{0,127}$`)

func (a *App) readFunction(name string, v *value) error {
	if !functionName.MatchString(name) {
		return v.errorf("the folder %q cannot be the name of a function: a letter, then letters, digits, _ and -", name)
	}
	var disabled bool
	var bindings []*value
	err := v.read("function.json", fields{
		"$schema":  func(*value) error { return nil },
		"disabled": flag("disabled", &disabled),
		"bindings": func(v *value) error {
			list, ok := v.json.([]*value)
			if !ok || len(list) == 0 {
				return v.errorf("bindings must be a list of at least one binding")
			}
			bindings = list
			return nil
		},
		"configurationSource": nil, "entryPoint": nil, "functionDirectory": nil, "generatedBy": nil, "language": nil, "name": nil, "properties": nil,
		"retry": nil, "scriptFile": nil,
	}, a.ignore("function.json "))
	if err != nil {
		return err
	}
	if bindings == nil {
		return v.errorf("bindings is missing: it says what triggers the function")
	}
	if disabled {
		a.Ignored = append(a.Ignored, fmt.Sprintf("%s:%d: the function is disabled", v.file, v.line))
		return nil
	}
	f := &Function{Name: name}
	return a.bind(f, v, bindings)
}

// bind reads the bindings of a function.
func (a *App) bind(f *Function, v *value, bindings []*value) error {
	template, triggers := f.Name, 0
	for _, b := range bindings {
		n, err := a.readBinding(b)
		if err != nil {
			return err
		}
		kind := strings.ToLower(n.kind)
		if strings.HasSuffix(kind, "trigger") {
			if triggers++; triggers > 1 {
				return b.errorf("a function has one trigger only")
			}
			if kind != "httptrigger" {
				a.Ignored = append(a.Ignored, fmt.Sprintf("%s:%d: a %s never comes here, so %s is not called", b.file, b.line, n.kind, f.Name))
				return nil
			}
			f.Trigger = n.name
			for _, m := range n.methods {
				f.Methods = append(f.Methods, strings.ToUpper(m))
			}
			if n.hasRoute {
				template = a.expand(n.route)
			}
			continue
		}
		if kind != "http" || !strings.EqualFold(n.direction, "out") {
			return b.errorf("binding %q of type %q, direction %q cannot be served here: only httpTrigger and the output http", n.name, n.kind, n.direction)
		}
		if f.Output != "" {
			return b.errorf("a function has one http output only")
		}
		f.Output = n.name
	}
	if triggers == 0 {
		return v.errorf("%s has no trigger", f.Name)
	}
	if a.prefix != "" {
		template = a.prefix + "/" + strings.TrimPrefix(template, "/")
	}
	r, err := parseRoute(template)
	if err != nil {
		return v.errorf("route: %w", err)
	}
	for _, other := range a.Functions {
		if r.same(other.route) && overlap(f.Methods, other.Methods) {
			return v.errorf("route %q is that of %s, too", template, other.Name)
		}
	}
	f.route = r
	a.Functions = append(a.Functions, f)
	return nil
}

func overlap(a, b []string) bool {
	return len(a) == 0 || len(b) == 0 || slices.ContainsFunc(a, func(m string) bool { return slices.Contains(b, m) })
}

type binding struct {
	kind, direction, name, route string
	hasRoute                     bool
	methods                      []string
}

var authLevels = []string{"anonymous", "function", "admin", "system", "user"}

func (a *App) readBinding(b *value) (n binding, err error) {
	o, ok := b.json.(*object)
	if !ok {
		return n, b.errorf("a binding must be an object")
	}
	for _, r := range []struct {
		name string
		to   *string
	}{{"type", &n.kind}, {"direction", &n.direction}, {"name", &n.name}} {
		v := o.values[r.name]
		if v == nil {
			return n, b.errorf("a binding needs %s", r.name)
		}
		if err := text(r.name, r.to)(v); err != nil {
			return n, err
		}
	}
	if kind := strings.ToLower(n.kind); kind != "httptrigger" && kind != "http" {
		return n, nil // said by the caller, who knows more
	}
	if !strings.EqualFold(n.kind, "http") && !strings.EqualFold(n.direction, "in") {
		return n, b.errorf(`the direction of a trigger is "in", not %q`, n.direction)
	}
	known := fields{
		"type": text("type", &n.kind), "direction": text("direction", &n.direction), "name": text("name", &n.name),
		"dataType": nil, "webHookType": nil, "properties": nil,
		"authLevel": func(v *value) error {
			s, _ := v.json.(string)
			if !slices.Contains(authLevels, strings.ToLower(s)) {
				return v.errorf("authLevel must be one of %s", strings.Join(authLevels, ", "))
			}
			if !strings.EqualFold(s, "anonymous") {
				a.ignore("")("authLevel "+s+": who may call is said by the policies of the route in front of the function", v)
			}
			return nil
		},
	}
	if !strings.EqualFold(n.kind, "http") {
		known["methods"] = texts("methods", &n.methods)
		known["route"] = func(v *value) error { n.hasRoute = true; return text("route", &n.route)(v) }
	}
	return n, b.read("binding "+n.name, known, a.ignore("binding "+n.name+" "))
}

// choose keeps one function, or checks that there is any.
func (a *App) choose(only string) error {
	if len(a.Functions) == 0 {
		return errors.New("the source holds no function that requests can reach: a folder with a function.json that has an httpTrigger" + a.because())
	}
	if only == "" {
		return nil
	}
	var names []string
	for _, f := range a.Functions {
		if f.Name == only {
			a.Functions = []*Function{f}
			return nil
		}
		names = append(names, f.Name)
	}
	slices.Sort(names)
	return fmt.Errorf("the source holds no function %q that requests can reach; there are: %s%s", only, strings.Join(names, ", "), a.because())
}

func (a *App) because() string {
	if len(a.Ignored) == 0 {
		return ""
	}
	return " (" + strings.Join(a.Ignored, "; ") + ")"
}
