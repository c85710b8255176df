package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/creack/pty"

	"github.com/penstock-gateway/penstock/internal/launch"
)

// foreground runs `up` until it is ready, and one request; it returns what was said
// until it was stopped.
func (in *installation) foreground(t *testing.T, terminal bool, more ...string) string {
	t.Helper()
	cmd := penstock(t.Context(), append(append([]string{"up"}, in.args...), more...)...)
	cmd.Env = append(cmd.Env, "NO_COLOR=1")
	var out syncBuffer
	copied := make(chan struct{})
	if terminal {
		master, slave, err := pty.Open()
		if err != nil {
			t.Fatal(err)
		}
		defer master.Close()
		cmd.Stdout, cmd.Stderr = slave, slave
		go func() { defer close(copied); _, _ = io.Copy(&out, master) }()
		defer slave.Close()
	} else {
		cmd.Stdout, cmd.Stderr = &out, &out
		close(copied)
	}
	if err := launch.Start(cmd); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	await(t, func() error {
		select {
		case err := <-ended:
			t.Fatalf("up ended: %v\n%s", err, out.String())
		default:
		}
		s, err := readState(in.dataDir)
		if err != nil || s == nil || !s.Ready || s.Jaeger != "running" {
			return fmt.Errorf("not ready: %+v, %w\n%s", s, err, out.String())
		}
		// The summary comes after the state is written; the function's line shall follow it.
		if !strings.Contains(out.String(), "Penstock is up.") {
			return fmt.Errorf("no summary:\n%s", out.String())
		}
		return get("http://" + in.flags.gateway + "/hello")
	})
	await(t, func() error {
		if !strings.Contains(out.String(), "greetings from the handler") {
			return fmt.Errorf("the line of the function is not there:\n%s", out.String())
		}
		return nil
	})
	said := out.String()
	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; err != nil {
		t.Errorf("up ended with %v", err)
	}
	return said
}

// helloFunction is a configuration with a Lambda handler that prints a line.
func helloFunction(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for name, content := range map[string]string{
		"functions.yaml": "kind: Function\nname: hello\nsource: hello\nlambda: {runtime: PYTHON, handler: app.handler}\n" +
			"---\nkind: Route\nname: hello\nrules:\n- matches: [{path: {prefix: /hello}}]\n  forward: {backends: [{backend: functions/hello}]}\n",
		"hello/app.py": "def handler(event, context):\n    print('greetings from the handler')\n    return {'statusCode': 200}\n",
	} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// TestUpIsQuiet: a healthy first start logs no warning and no error; what is not a
// terminal gets one JSON object per line, and none holds another one as text.
func TestUpIsQuiet(t *testing.T) {
	in := newInstallation(t)
	out := in.foreground(t, false, "--config", helloFunction(t))
	ready, function := false, false
	for line := range strings.Lines(out) {
		var r struct {
			Time, Level, Msg, Service, Function, Component string
			Addresses                                      []upAddress
		}
		if err := json.Unmarshal([]byte(line), &r); err != nil || r.Time == "" || r.Service == "" || r.Msg == "" {
			t.Errorf("not a record: %v: %s", err, line)
		}
		// A machine that is busy with other tests is slow, which etcd tells.
		if r.Level != "INFO" && !(r.Component == "etcd" && slow.MatchString(r.Msg)) {
			t.Errorf("a healthy start says %s", line)
		}
		if strings.HasPrefix(r.Msg, "{") {
			t.Errorf("a record within a record: %s", line)
		}
		ready = ready || r.Msg == "Penstock is up." && len(r.Addresses) > 5
		function = function || r.Msg == "greetings from the handler" && strings.HasSuffix(r.Function, "/hello")
	}
	if !ready || !function {
		t.Errorf("addresses: %v, the function's line: %v\n%s", ready, function, out)
	}
}

var slow = regexp.MustCompile(`took too long|slow fdatasync|overloaded`)

var readable = regexp.MustCompile(`^\d\d:\d\d:\d\d (up|control|limiter|relay|runner|envoy|jaeger|fn hello) +\S`)

// TestUpAtTerminal: a person gets the time to the second, the part and the text; the
// summary begins after all that a healthy start says, and is there again on demand.
func TestUpAtTerminal(t *testing.T) {
	in := newInstallation(t)
	config := helloFunction(t)
	out := strings.ReplaceAll(in.foreground(t, true, "--config", config), "\r\n", "\n")
	before, summary, ok := strings.Cut(out, "\nPenstock is up.\n")
	if !ok {
		t.Fatalf("no summary:\n%s", out)
	}
	for line := range strings.Lines(before) {
		if !readable.MatchString(line) || len(line) > 200 {
			t.Errorf("not readable: %q", line)
		}
	}
	if !regexp.MustCompile(`\n\d\d:\d\d:\d\d fn hello  greetings from the handler\n`).MatchString(summary) {
		t.Errorf("the function's line is not shown as it is:\n%s", summary)
	}
	in.up(t, "--config", config)
	status, err := in.run(t, "status", "--server", in.flags.api, "--data-dir", in.dataDir)
	if err != nil {
		t.Fatalf("status: %v: %s", err, status)
	}
	for line := range strings.Lines(summary) {
		if strings.TrimSpace(line) == "" {
			continue
		}
		if !strings.HasPrefix(line, "  ") {
			break
		}
		if a := strings.TrimSpace(line[:min(len(line), 50)]); !strings.HasPrefix(a, "functions") && !strings.Contains(status, a) {
			t.Errorf("status does not show %q:\n%s", a, status)
		}
	}
}
