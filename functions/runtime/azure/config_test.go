package azure

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const (
	goodHost     = `{"version": "2.0", "customHandler": {"description": {"defaultExecutablePath": "sh"}}}`
	goodFunction = `{"bindings": [{"type": "httpTrigger", "direction": "in", "name": "req"}, {"type": "http", "direction": "out", "name": "res"}]}`
)

// source writes a source: pairs of path and content.
func source(t testing.TB, files ...string) string {
	t.Helper()
	dir := t.TempDir()
	for i := 0; i < len(files); i += 2 {
		path := filepath.Join(dir, files[i])
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(files[i+1]), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestLoad(t *testing.T) {
	dir := source(t, "host.json", `{
		"Version": "2.0",
		"extensions": {"http": {"routePrefix": "v1/%PART%", "hsts": {"isEnabled": true}}},
		"customHandler": {
			"description": {"defaultExecutablePath": "sh", "workingDirectory": "work", "arguments": ["-c", "%WHAT%", "%NOTSET%"], "defaultWorkerPath": "w", "workerArguments": ["x"]},
			"enableProxyingHttpRequest": true
		}
	}`, "work/x", "", "a/function.json", goodFunction, "b/function.json", strings.Replace(goodFunction, `"req"`, `"req", "route": "a/{id}", "methods": ["GET"]`, 1),
		"c/function.json", `{"disabled": true, "bindings": [{"type": "httpTrigger", "direction": "in", "name": "req"}]}`, "plain/readme", "")
	a, err := Load(dir, "", map[string]string{"WHAT": "true", "PART": "x"})
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(a.Args, []string{"sh", "-c", "true", "%NOTSET%", "w", "x"}) || a.Dir != filepath.Join(dir, "work") || !a.Forward {
		t.Errorf("%+v", a)
	}
	if len(a.Functions) != 2 || len(a.Ignored) != 2 || a.Ignored[0] != "host.json:3: extensions.http.hsts" {
		t.Errorf("functions %+v, ignored %q", a.Functions, a.Ignored)
	}
	if _, ok := a.Functions[0].route.match("/V1/X/a"); !ok {
		t.Errorf("%+v", a.Functions[0].route)
	}
	if a, err := Load(dir, "b", nil); err != nil || len(a.Functions) != 1 || a.Functions[0].Name != "b" {
		t.Errorf("%v, %v", a, err)
	}
}

// TestLoadErrors: each says where and what.
func TestLoadErrors(t *testing.T) {
	host := func(handler string) []string {
		return []string{"host.json", "{\n\"version\": \"2.0\",\n\"customHandler\": " + handler + "\n}", "a/function.json", goodFunction}
	}
	function := func(text string) []string { return []string{"host.json", goodHost, "a/function.json", text} }
	binding := func(text string) []string {
		return function("{\"bindings\": [\n{\"type\": \"httpTrigger\", \"direction\": \"in\", \"name\": \"req\"" + text)
	}
	for name, c := range map[string]struct {
		files []string
		only  string
		want  string
	}{
		"no host":        {[]string{"a/function.json", goodFunction}, "", "holds no host.json"},
		"empty":          {[]string{"host.json", ""}, "", "host.json:1: it is not JSON: it ends too early"},
		"comment":        {[]string{"host.json", "{\n// x\n}"}, "", "host.json:2: it is not JSON"},
		"two":            {[]string{"host.json", "{}\n{}"}, "", "host.json:2: more follows"},
		"list":           {[]string{"host.json", "[]"}, "", "host.json:1: host.json must be an object"},
		"version":        {[]string{"host.json", `{"version": "1.0"}`}, "", `it must be "2.0"`},
		"no handler":     {[]string{"host.json", `{"version": "2.0"}`}, "", "customHandler.description is missing"},
		"unknown":        {[]string{"host.json", "{\n\"versoin\": \"2.0\"}"}, "", `host.json:2: host.json has no field "versoin"`},
		"twice":          {[]string{"host.json", "{\"version\": \"2.0\",\n\"Version\": \"2.0\"}"}, "", `host.json:2: duplicate "Version"`},
		"httpWorker":     {[]string{"host.json", `{"version": "2.0", "httpWorker": {}}`}, "", "rename it"},
		"deep":           {[]string{"host.json", strings.Repeat("[", 100)}, "", "nests more than 64 deep"},
		"no program":     {host(`{"description": {}}`), "", "host.json:3: defaultExecutablePath is missing"},
		"absent program": {host(`{"description": {"defaultExecutablePath": "./handler"}}`), "", `"./handler" is not a file of the source`},
		"off PATH":       {host(`{"description": {"defaultExecutablePath": "no-such-program"}}`), "", "neither a file of the source nor a program"},
		"not executable": {append(host(`{"description": {"defaultExecutablePath": "handler"}}`), "handler", "x"), "", "chmod +x handler"},
		"directory":      {host(`{"description": {"defaultExecutablePath": "sh", "workingDirectory": "../x"}}`), "", "leads out of the source"},
		"no directory":   {host(`{"description": {"defaultExecutablePath": "sh", "workingDirectory": "x"}}`), "", "is not a folder of the source"},
		"arguments":      {host(`{"description": {"arguments": "x"}}`), "", "arguments must be a list of strings"},
		"argument":       {host(`{"description": {"arguments": [1]}}`), "", "an element of arguments must be a string"},
		"flag":           {host(`{"enableForwardingHttpRequest": "yes"}`), "", "must be true or false"},
		"port":           {host(`{"port": 8080}`), "", "FUNCTIONS_CUSTOMHANDLER_PORT"},
		"routes":         {host(`{"http": {}}`), "", "customHandler.http is not supported"},
		"no function":    {[]string{"host.json", goodHost}, "", "no function that requests can reach"},
		"only queue":     {function(`{"bindings": [{"type": "queueTrigger", "direction": "in", "name": "q"}]}`), "", "a queueTrigger never comes here"},
		"wrong name":     {function(goodFunction), "b", `no function "b" that requests can reach; there are: a`},
		"bad folder":     {[]string{"host.json", goodHost, "1a/function.json", goodFunction}, "", `the folder "1a" cannot be the name`},
		"no bindings":    {function(`{}`), "", "bindings is missing"},
		"empty bindings": {function(`{"bindings": []}`), "", "a list of at least one"},
		"no trigger":     {function(`{"bindings": [{"type": "http", "direction": "out", "name": "res"}]}`), "", "a has no trigger"},
		"two triggers":   {binding("},\n{\"type\": \"httpTrigger\", \"direction\": \"in\", \"name\": \"r\"}]}"), "", "a/function.json:3: a function has one trigger only"},
		"queue output":   {binding("},\n{\"type\": \"queue\", \"direction\": \"out\", \"name\": \"q\"}]}"), "", `binding "q" of type "queue"`},
		"no name":        {function(`{"bindings": [{"type": "http", "direction": "out"}]}`), "", "a binding needs name"},
		"direction":      {function(`{"bindings": [{"type": "httpTrigger", "direction": "out", "name": "r"}]}`), "", `the direction of a trigger is "in"`},
		"auth level":     {binding(`, "authLevel": "all"}]}`), "", "a/function.json:2: authLevel must be one of"},
		"methods":        {binding(`, "methods": "get"}]}`), "", "methods must be a list"},
		"binding field":  {binding(`, "rout": "x"}]}`), "", `has no field "rout"`},
		"route":          {binding(`, "route": "a/{id:regex(x)}"}]}`), "", `the constraint "regex(x)" is not known`},
		"same route":     {append(function(goodFunction), "b/function.json", strings.Replace(goodFunction, `"req"`, `"req", "route": "A"`, 1)), "", `route "api/A" is that of a, too`},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Load(source(t, c.files...), c.only, nil)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, want %q", err, c.want)
			}
		})
	}
}

func TestRoute(t *testing.T) {
	for _, c := range []struct{ template, path, want string }{
		{"api/a", "/api/a", "{}"}, {"api/a", "/API/A/", "{}"}, {"api/a", "/api/b", ""}, {"api/a", "/api/a/b", ""}, {"", "/", "{}"}, {"", "/x", ""},
		{"a/{id}", "/a/1", "{id=1}"}, {"a/{id}", "/a", ""}, {"a/{id}", "/a/x%20y", "{id=x y}"}, {"a/{id}", "/a/x%2Fy", "{id=x/y}"},
		{"a/{id?}", "/a", "{}"}, {"a/{id=7}", "/a", "{id=7}"}, {"a/{id=7}", "/a/8", "{id=8}"},
		{"a/{id:int}", "/a/8", "{id=8}"}, {"a/{id:int}", "/a/x", ""}, {"a/{id:int?}", "/a", "{}"}, {"a/{id:min(3):max(5)}", "/a/4", "{id=4}"},
		{"a/{id:min(3)}", "/a/2", ""}, {"a/{id:range(1,3)}", "/a/3", "{id=3}"}, {"a/{id:range(1,3)}", "/a/4", ""}, {"a/{s:length(2)}", "/a/xy", "{s=xy}"},
		{"a/{s:length(1,2)}", "/a/xyz", ""}, {"a/{s:minlength(2)}", "/a/x", ""}, {"a/{s:maxlength(2)}", "/a/é", "{s=é}"}, {"a/{s:alpha}", "/a/x1", ""},
		{"a/{b:bool}", "/a/TRUE", "{b=TRUE}"}, {"a/{g:guid}", "/a/5f0c0e4e-7f0b-4c39-9d6a-1d2f3a4b5c6d", "{g=5f0c0e4e-7f0b-4c39-9d6a-1d2f3a4b5c6d}"},
		{"a/{d:double}", "/a/1.5", "{d=1.5}"}, {"a/{l:long}", "/a/9999999999", "{l=9999999999}"},
		{"a/{*rest}", "/a/b/c%20d", "{rest=b/c d}"}, {"a/{*rest}", "/a", "{rest=}"}, {"{*rest}", "/", "{rest=}"}, {"a/{x}/{y?}", "/a/1", "{x=1}"},
	} {
		r, err := parseRoute(c.template)
		if err != nil {
			t.Errorf("%q: %v", c.template, err)
			continue
		}
		params, ok := r.match(c.path)
		got := ""
		if ok {
			var pairs []string
			for k, v := range params {
				pairs = append(pairs, k+"="+v)
			}
			got = "{" + strings.Join(pairs, " ") + "}"
		}
		if got != c.want {
			t.Errorf("%q, %q: %s, want %s", c.template, c.path, got, c.want)
		}
	}
	for template, want := range map[string]string{
		"a//b": "is empty", "a/x{id}": "all text or one {parameter}", "a/{}": "not the name of a parameter", "a/{id}/{ID}": "duplicate parameter", "{*r}/a": "nothing may follow",
		"a/{x?}/b": "nothing may follow", "a/{x?}/{y}": "must be, too", "{x:nope}": "is not known", "{x:min(a)}": "is not a number", "{x:range(1)}": "has 1 numbers", "a/*": "holds ?, *",
	} {
		if _, err := parseRoute(template); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", template, err, want)
		}
	}
}

func TestRouteOrder(t *testing.T) {
	want := []string{"a/b", "a/b/{y?}", "a/{x:int}", "a/{x}", "a/{*rest}", "{*rest}"}
	var routes []*route
	for _, i := range []int{4, 2, 5, 0, 3, 1} {
		r, err := parseRoute(want[i])
		if err != nil {
			t.Fatal(err)
		}
		routes = append(routes, r)
	}
	slices.SortStableFunc(routes, (*route).compare)
	for i, r := range routes {
		expected, _ := parseRoute(want[i])
		if !r.same(expected) {
			t.Errorf("%d is not %s: %+v", i, want[i], r)
		}
	}
}

func TestAnswer(t *testing.T) {
	res, ret, none := &Function{Output: "res"}, &Function{Output: "$return"}, &Function{}
	for _, c := range []struct {
		f            *Function
		text         string
		status       int
		body, header string
		err          string
	}{
		{res, `{"Outputs": {"res": {"body": "Order enqueued"}}, "Logs": ["a"], "ReturnValue": null}`, 200, "Order enqueued", "text/plain; charset=utf-8", ""},
		{res, `{"outputs": {"RES": {"StatusCode": "404", "Body": {"a": 1}}}}`, 404, `{"a": 1}`, "application/json; charset=utf-8", ""},
		{res, `{"Outputs": {"res": {"status": 202, "body": "x", "headers": {"Content-Type": "a/b", "connection": "close"}}}}`, 202, "x", "a/b", ""},
		{res, `{"Outputs": {}}`, 204, "", "", ""},
		{res, `{"Outputs": {"res": {}}}`, 200, "", "", ""},
		{ret, `{"ReturnValue": "text"}`, 200, "text", "text/plain; charset=utf-8", ""},
		{ret, `{"ReturnValue": {"n": 1}}`, 200, `{"n": 1}`, "application/json; charset=utf-8", ""},
		{ret, `{"ReturnValue": {"statusCode": 201, "body": [1]}}`, 201, `[1]`, "application/json; charset=utf-8", ""},
		{none, `{"ReturnValue": "text"}`, 204, "", "", ""},
		{res, `[]`, 0, "", "", "must be an object with Outputs"},
		{res, `{} {}`, 0, "", "", "more follows"},
		{res, `{"Outputs": {"res": {"statusCode": 99}}}`, 0, "", "", "from 200 to 599"},
		{res, `{"Outputs": {"res": {"headers": {"a b": "c"}}}}`, 0, "", "", "does not allow"},
		{res, `{"Outputs": {"res": {"headers": {"a": {}}}}}`, 0, "", "", "it is not a string"},
		{res, `{"Outputs": {"res": {"headers": 1}}}`, 0, "", "", "is a JSON number"},
		{res, `{"Outputs": {"res": 7}}`, 0, "", "", "must be an object with statusCode"},
	} {
		a, err := parseAnswer([]byte(c.text), c.f)
		switch {
		case c.err != "":
			if err == nil || !strings.Contains(err.Error(), c.err) {
				t.Errorf("%s: %v, want %q", c.text, err, c.err)
			}
		case err != nil:
			t.Errorf("%s: %v", c.text, err)
		case a.status != c.status || string(a.body) != c.body || a.header.Get("Content-Type") != c.header || a.header.Get("Connection") != "":
			t.Errorf("%s: %d %q %v", c.text, a.status, a.body, a.header)
		}
	}
}

// FuzzLoad: whatever the files hold, it is read or refused with a place.
func FuzzLoad(f *testing.F) {
	f.Add(goodHost, goodFunction)
	f.Add(`{"version": "2.0", "customHandler": {"description": {"defaultExecutablePath": "sh", "arguments": ["%A%"]}}}`, `{"bindings": [{"type": "httpTrigger", "direction": "in", "name": "r", "route": "{a:int?}/{*b}"}]}`)
	f.Add(`{"version": "2.0", "extensions": {"http": {"routePrefix": "{x}"}}}`, `{}`)
	dir := source(f, "host.json", "", "a/function.json", "")
	f.Fuzz(func(t *testing.T, host, function string) {
		for path, content := range map[string]string{"host.json": host, "a/function.json": function} {
			if err := os.WriteFile(filepath.Join(dir, path), []byte(content), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		a, err := Load(dir, "", map[string]string{"A": "b"})
		if err != nil {
			if !strings.Contains(err.Error(), ".json") {
				t.Errorf("no place: %v", err)
			}
			return
		}
		if len(a.Functions) != 1 || len(a.Args) == 0 {
			t.Errorf("%+v", a)
		}
		a.Functions[0].route.match("/api/" + function)
	})
}

// FuzzAnswer: an answer that is read can be written.
func FuzzAnswer(f *testing.F) {
	f.Add(`{"Outputs": {"res": {"statusCode": 201, "headers": {"a": ["b", 1]}, "body": {"a": 1}}}, "Logs": ["x"]}`)
	f.Add(`{"ReturnValue": {"a": 1}}`)
	f.Fuzz(func(t *testing.T, text string) {
		for _, output := range []string{"", "res", "$return"} {
			if a, err := parseAnswer([]byte(text), &Function{Output: output}); err == nil && (a.status < 200 || a.status > 599) {
				t.Errorf("status %d", a.status)
			}
		}
	})
}
