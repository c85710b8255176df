package sandbox

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

var machine = sync.OnceValue(Probe)

// run runs a shell script in a sandbox and returns what it printed and how it ended.
func run(t testing.TB, p Policy, script string) (string, error) {
	t.Helper()
	if p.Scratch == "" {
		p.Scratch = t.TempDir()
	}
	plan, err := machine().Plan(p)
	if err != nil {
		t.Fatal(err)
	}
	return runPlan(t, plan, t.TempDir(), "sh", "-c", script)
}

func runPlan(t testing.TB, plan *Plan, dir string, args ...string) (string, error) {
	t.Helper()
	out, err := os.Create(filepath.Join(t.TempDir(), "out"))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	c := Command{ID: strings.ToLower(filepath.Base(t.Name())), Args: args, Dir: dir, Env: map[string]string{"PATH": os.Getenv("PATH")}, Stdout: out, Stderr: out}
	p, err := plan.Start(c, (*exec.Cmd).Start)
	if err != nil {
		return "", err
	}
	err = p.Ending(p.Cmd.Wait())
	p.Close()
	b, readErr := os.ReadFile(out.Name())
	if readErr != nil {
		t.Fatal(readErr)
	}
	return string(b), err
}

func TestProbe(t *testing.T) {
	m := machine()
	t.Log("means:", m.means, "missing:", m.missing, "landlock ABI:", m.landlock)
	out, err := run(t, Policy{}, "id; ls -la / /tmp /etc; env; pwd; ls -l /dev; ls -d /proc/[0-9]*")
	t.Log(out, err)
}
