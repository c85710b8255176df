package launch_test

import (
	"os/exec"
	"syscall"
	"testing"

	"github.com/penstock-gateway/penstock/internal/launch"
)

// TestStopped: a process that was stopped is there, and is told from one that runs.
// TestStopped: a process that was stopped is there, and is told from one that runs.
func TestStopped(t *testing.T) {
	cmd := exec.Command("sleep", "600")
	if err := launch.Start(cmd); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = launch.Signal(cmd, syscall.SIGKILL); _ = cmd.Wait() })
	id, err := launch.Identify(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	if id.Stopped() {
		t.Error("one that runs is said to be stopped")
	}
	if err := id.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	// The kernel tells the parent that it has stopped.
	var ws syscall.WaitStatus
	if _, err := syscall.Wait4(cmd.Process.Pid, &ws, syscall.WUNTRACED, nil); err != nil || !ws.Stopped() {
		t.Fatal(ws, err)
	}
	if !id.Stopped() {
		t.Error("one that was stopped is said to run")
	}
	if !id.Alive() {
		t.Error("one that was stopped is said to be gone")
	}
}
