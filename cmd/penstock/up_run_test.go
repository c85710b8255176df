package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/penstock-gateway/penstock/internal/envoytest"
	"github.com/penstock-gateway/penstock/internal/launch"
	"github.com/penstock-gateway/penstock/internal/supervise"
)

// TestMain lets the test binary be penstock itself, so that `up` and all that it
// starts run the code under test.
func TestMain(m *testing.M) {
	if os.Getenv(outsiderEnv) != "" {
		outsider()
		return
	}
	if os.Getenv("PENSTOCK_TEST_MAIN") == "1" {
		main()
		return
	}
	os.Exit(runTests(m))
}

// runTests keeps the tests apart from the control planes and contexts of the user
// who runs them.
func runTests(m *testing.M) int {
	dir, err := os.MkdirTemp("", "penstock-test-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	for key, value := range map[string]string{"XDG_RUNTIME_DIR": dir, "PENSTOCK_CONTEXTS_FILE": filepath.Join(dir, "contexts.yaml")} {
		if err := os.Setenv(key, value); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
	return m.Run()
}

// penstock is a command line of the test binary as penstock.
func penstock(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, os.Args[0], args...)
	cmd.Env = append(os.Environ(), "PENSTOCK_TEST_MAIN=1")
	return cmd
}

// installation is what several runs of `up` share.
type installation struct {
	dataDir string
	flags   upFlags
	args    []string
}

func newInstallation(t *testing.T) *installation {
	t.Helper()
	in := &installation{dataDir: t.TempDir()}
	in.args = []string{"--data-dir", in.dataDir}
	for _, a := range in.flags.addresses() {
		*a.value = fmt.Sprintf("127.0.0.1:%d", envoytest.FreePort(t))
		in.args = append(in.args, "--"+a.flag, *a.value)
	}
	t.Cleanup(func() {
		// Also after a failure nothing may stay behind.
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
		defer cancel()
		if out, err := penstock(ctx, "down", "--data-dir", in.dataDir).CombinedOutput(); err != nil {
			t.Errorf("down at the end: %v: %s", err, out)
		}
		if t.Failed() {
			log, _ := os.ReadFile(filepath.Join(in.dataDir, "up.log"))
			t.Logf("up.log:\n%s", log)
		}
	})
	return in
}

func (in *installation) run(t *testing.T, args ...string) (string, error) {
	t.Helper()
	out, err := penstock(t.Context(), args...).CombinedOutput()
	return string(out), err
}

func (in *installation) up(t *testing.T, more ...string) string {
	t.Helper()
	out, err := in.run(t, append(append([]string{"up", "-d"}, in.args...), more...)...)
	if err != nil {
		t.Fatalf("up -d: %v\n%s", err, out)
	}
	return out
}

func (in *installation) state(t *testing.T) *upState {
	t.Helper()
	s, err := readState(in.dataDir)
	if err != nil || s == nil {
		t.Fatalf("state: %v, %v", s, err)
	}
	return s
}

func (s *upState) process(name string) upProcess {
	for _, p := range s.Processes {
		if p.Name == name {
			return p
		}
	}
	return upProcess{}
}

// all are `up` and everything below it.
func (s *upState) all() []launch.ID { return append(launch.Descendants(s.PID), s.ID) }

// await polls until cond says nothing.
func await(t *testing.T, cond func() error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	if err := until(ctx, func(context.Context) error { return cond() }); err != nil {
		t.Fatal(err)
	}
}

func get(url string) error {
	res, err := http.Get(url)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode != http.StatusOK {
		return fmt.Errorf("GET %s: %s: %.200s (%w)", url, res.Status, body, err)
	}
	return nil
}

func helloConfig(t *testing.T, path string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "routes.yaml")
	content := "kind: Route\nname: hello\nrules:\n- matches: [{path: {prefix: " + path + "}}]\n  direct_response: {status: 200, body: \"hello\\n\"}\n"
	if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// TestUpAndDown is the life of an installation on real parts.
func TestUpAndDown(t *testing.T) {
	in := newInstallation(t)
	url := "http://" + in.flags.gateway
	// Flags by their variables, for `up` alone: its limiter and its relay would both
	// listen there.
	t.Setenv("PENSTOCK_CONFIG", helloConfig(t, "/hello"))
	t.Setenv("PENSTOCK_METRICS_LISTEN", "127.0.0.1:1")
	out := in.up(t, "--run", "beside=sleep 600")
	t.Setenv("PENSTOCK_CONFIG", "")
	for _, want := range []string{"Penstock is up", url, in.flags.api, in.flags.http, "status", "runs in the background"} {
		if !strings.Contains(out, want) {
			t.Errorf("up -d does not say %q:\n%s", want, out)
		}
	}
	if err := get(url + "/hello"); err != nil { // at once: up returned
		t.Error(err)
	}
	first := in.state(t)
	all := first.all()
	if s := first.process("beside"); s.State != supervise.Running {
		t.Errorf("the process beside: %+v", s)
	}

	if out, err := in.run(t, append([]string{"up"}, in.args...)...); err == nil || !strings.Contains(out, "runs already") || !strings.Contains(out, fmt.Sprint(first.PID)) {
		t.Errorf("a second up: %v: %s", err, out)
	}
	await(t, func() error {
		if j := in.state(t).Jaeger; j != "running" {
			return fmt.Errorf("Jaeger is %s", j)
		}
		return nil
	})
	if out, err := in.run(t, "status", "--server", in.flags.api, "--data-dir", in.dataDir); err != nil ||
		!strings.Contains(out, "envoy") || !strings.Contains(out, "Jaeger is running") {
		t.Errorf("status: %v\n%s", err, out)
	}
	t.Run("envoy dies", func(t *testing.T) { in.killed(t, "envoy", url+"/hello") })
	t.Run("control dies", func(t *testing.T) {
		p := in.state(t).process("control")
		if err := p.ID.Signal(syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		// Envoy serves on, whatever the control plane does.
		for range 20 {
			if err := get(url + "/hello"); err != nil {
				t.Error(err)
			}
		}
		in.restarted(t, "control", p.ID)
	})

	all = append(all, in.state(t).all()...)
	if out, err := in.run(t, "down", "--data-dir", in.dataDir); err != nil || !strings.Contains(out, "stopped") {
		t.Errorf("down: %v: %s", err, out)
	}
	if left := launch.WaitGone(all, 10*time.Second); len(left) > 0 {
		t.Errorf("after down these processes run: %v", left)
	}

	// The second start goes on where the first stopped, also without the files.
	in.up(t)
	if err := get(url + "/hello"); err != nil {
		t.Error(err)
	}
}

// killed kills a process and waits until it is there again and url answers.
func (in *installation) killed(t *testing.T, name, url string) {
	t.Helper()
	p := in.state(t).process(name)
	if err := p.ID.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	in.restarted(t, name, p.ID)
	await(t, func() error { return get(url) })
}

func (in *installation) restarted(t *testing.T, name string, before launch.ID) {
	t.Helper()
	await(t, func() error {
		p := in.state(t).process(name)
		if p.State != supervise.Running || p.ID == before || p.Restarts == 0 {
			return fmt.Errorf("%s is %s with pid %d after %d restarts", name, p.State, p.PID, p.Restarts)
		}
		return nil
	})
}

// TestUpIsKilled: not even kill -9 of `up` leaves a process behind, and the next
// start works.
func TestUpIsKilled(t *testing.T) {
	in := newInstallation(t)
	in.args = append(in.args, "--no-jaeger")
	in.up(t, "--config", helloConfig(t, "/hello"))
	s := in.state(t)
	all := s.all()
	if len(all) < 5 {
		t.Errorf("only %d processes run", len(all))
	}
	if err := s.ID.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if left := launch.WaitGone(all, 30*time.Second); len(left) > 0 {
		t.Errorf("these processes outlived up: %v", left)
	}
	// Changed files replace what the old ones said.
	in.up(t, "--config", helloConfig(t, "/other"))
	if err := get("http://" + in.flags.gateway + "/other"); err != nil {
		t.Error(err)
	}
	if err := get("http://" + in.flags.gateway + "/hello"); err == nil {
		t.Error("the route of the old file is still there")
	}
}

// TestUpInterrupted: Ctrl-C in the foreground stops everything in order.
func TestUpInterrupted(t *testing.T) {
	in := newInstallation(t)
	cmd := penstock(t.Context(), append([]string{"up", "--no-jaeger"}, in.args...)...)
	var out syncBuffer
	cmd.Stdout, cmd.Stderr = &out, &out
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
		if s, err := readState(in.dataDir); err != nil || s == nil || !s.Ready {
			return fmt.Errorf("not ready: %w\n%s", err, out.String())
		}
		return nil
	})
	all := in.state(t).all()
	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; err != nil {
		t.Errorf("up ended with %v", err)
	}
	if left := launch.WaitGone(all, 10*time.Second); len(left) > 0 {
		t.Errorf("these processes still run: %v", left)
	}
	if !strings.Contains(out.String(), "all processes are gone") || isFile(stateFile(in.dataDir)) {
		t.Errorf("state file there: %v; said:\n%s", isFile(stateFile(in.dataDir)), out.String())
	}
}

// TestUpBadConfig: what is wrong in --config is told before anything starts, and
// what only the control plane can tell stops the start.
func TestUpBadConfig(t *testing.T) {
	for _, test := range []struct {
		name, content string
		want          []string
	}{
		{"unknown field", "kind: Route\nname: hello\nrulez: []\n", []string{"bad.yaml:3", "rulez"}},
		{"missing backend", "kind: Route\nname: hello\nrules:\n- forward: {backends: [{backend: backends/none}]}\n", []string{"backends/none"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			in := newInstallation(t)
			file := filepath.Join(t.TempDir(), "bad.yaml")
			if err := os.WriteFile(file, []byte(test.content), 0o600); err != nil {
				t.Fatal(err)
			}
			out, err := in.run(t, append([]string{"up", "--no-jaeger", "--config", file}, in.args...)...)
			if err == nil {
				t.Fatalf("no error:\n%s", out)
			}
			for _, want := range test.want {
				if !strings.Contains(out, want) {
					t.Errorf("up does not say %q:\n%s", want, out)
				}
			}
			if isFile(stateFile(in.dataDir)) {
				t.Error("a state file was left")
			}
		})
	}
}
