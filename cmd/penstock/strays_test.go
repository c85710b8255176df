package main

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/penstock-gateway/penstock/internal/launch"
)

// TestUpIsKilledWithStrays: what a function has started goes with a kill -9 of
// `up` as well, though it has left its process group and session and wiped its
// environment.
func TestUpIsKilledWithStrays(t *testing.T) {
	root := t.TempDir()
	if err := os.Mkdir(filepath.Join(root, "stray"), 0o755); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(root, "stray", "pid")
	config := filepath.Join(t.TempDir(), "function.yaml")
	content := `kind: Function
name: stray
server:
  command:
  - /bin/sh
  - -c
  - |
    setsid env -i /bin/sh -c 'echo $$ >pid.new; /bin/mv pid.new pid; exec /bin/sleep 4244' &
    exec python3 -m http.server "$PORT" --bind 127.0.0.1
source: stray
instances: 1
`
	if err := os.WriteFile(config, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	in := newInstallation(t)
	in.up(t, "--no-jaeger", "--functions-root", root, "--config", config)
	var stray launch.ID
	await(t, func() error {
		b, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
		if err != nil {
			return err
		}
		stray, err = launch.Identify(pid)
		return err
	})
	s := in.state(t)
	if err := s.ID.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if left := launch.WaitGone(append(s.all(), stray), 30*time.Second); len(left) > 0 {
		_ = stray.Signal(syscall.SIGKILL)
		t.Errorf("these processes outlived up: %v (the function's is %v)", left, stray)
	}
}
