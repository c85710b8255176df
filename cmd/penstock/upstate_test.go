package main

import (
	"encoding/json"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/penstock-gateway/penstock/internal/launch"
	"github.com/penstock-gateway/penstock/internal/supervise"
)

// TestProcessesNow: the state file says what was so when a process changed last; status
// says what is so now, and its exit code follows.
func TestProcessesNow(t *testing.T) {
	self, err := launch.Identify(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("sleep", "600")
	if err := launch.Start(cmd); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = launch.Signal(cmd, syscall.SIGKILL); _ = cmd.Wait() })
	id, err := launch.Identify(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	look := func(name string, state supervise.State) (text string, serves bool) {
		t.Helper()
		s := upState{ID: self, StartedAt: time.Now(), Processes: []upProcess{{ID: id, Status: supervise.Status{Name: name, State: state, PID: id.PID}}}}
		b, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.MkdirAll(runDir(dir), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(stateFile(dir), b, 0o600); err != nil {
			t.Fatal(err)
		}
		var out strings.Builder
		printProcesses(&out, dir)
		return out.String(), processesServe(dir)
	}
	want := func(what, name string, state supervise.State, word string, serves bool) {
		t.Helper()
		if text, ok := look(name, state); !strings.Contains(strings.Join(strings.Fields(text), " "), " "+name+" "+word+" ") || ok != serves {
			t.Errorf("%s: serves %v, want %v and %q:\n%s", what, ok, serves, word, text)
		}
	}
	want("one that runs", "limiter", supervise.Running, "running", true)
	want("one that waits for its restart", "limiter", supervise.BackOff, "back-off", false)
	want("traces are not needed to serve", "jaeger", supervise.BackOff, "back-off", true)
	if err := id.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	var ws syscall.WaitStatus
	if _, err := syscall.Wait4(cmd.Process.Pid, &ws, syscall.WUNTRACED, nil); err != nil || !ws.Stopped() {
		t.Fatal(ws, err)
	}
	want("one that is stopped", "limiter", supervise.Running, "stopped", false)
	if err := launch.Signal(cmd, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	want("one that is gone", "limiter", supervise.Running, "gone", false)
	if !processesServe(t.TempDir()) {
		t.Error("without `penstock up` its processes are said not to run")
	}
}
