package main

import (
	"fmt"
	"os"
	"path/filepath"
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
	config := filepath.Join(t.TempDir(), "function.yaml")
	content := ""
	for name, level := range map[string]string{"stray": "NONE", "apart": "BEST"} {
		content += `---
kind: Function
name: ` + name + `
server:
  command:
  - /bin/sh
  - -c
  - |
    setsid env -i /bin/sleep 4244 &
    exec python3 -m http.server "$PORT" --bind 127.0.0.1
source: stray
instances: 1
isolation: {level: ` + level + `}
`
	}
	if err := os.WriteFile(config, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	in := newInstallation(t)
	in.up(t, "--no-jaeger", "--functions-root", root, "--config", config)
	var strays []launch.ID
	await(t, func() error {
		strays = nil
		for _, id := range in.state(t).all() {
			if b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", id.PID)); string(b) == "/bin/sleep\x004244\x00" {
				strays = append(strays, id)
			}
		}
		if len(strays) != 2 {
			return fmt.Errorf("%d strays of 2", len(strays))
		}
		return nil
	})
	s := in.state(t)
	if err := s.ID.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if left := launch.WaitGone(append(s.all(), strays...), 30*time.Second); len(left) > 0 {
		for _, stray := range strays {
			_ = stray.Signal(syscall.SIGKILL)
		}
		t.Errorf("these processes outlived up: %v (the functions' are %v)", left, strays)
	}
}
