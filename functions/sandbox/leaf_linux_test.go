package sandbox

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

func init() {
	// A runner that looks for its groups, for one controller.
	inside["groups"] = func(args []string) {
		controllers = args[:1]
		g := findGroups()
		if err := g.reasons[args[0]]; err != nil {
			fmt.Println("reason", err)
		} else if err := os.Mkdir(filepath.Join(g.v2, "instance"), 0o755); err != nil {
			fmt.Println("reason", err)
		} else {
			has, _ := os.ReadFile(filepath.Join(g.v2, "instance", "cgroup.controllers"))
			fmt.Println("has", strings.TrimSpace(string(has)))
		}
		if g.v2 != "" {
			_ = os.Remove(filepath.Join(g.v2, "instance"))
		}
		own, _ := os.ReadFile("/proc/self/cgroup")
		for line := range strings.Lines(string(own)) {
			if path, ok := strings.CutPrefix(line, "0::"); ok {
				fmt.Print("in ", path)
			}
		}
	}
	inside["wait"] = func([]string) {
		fmt.Println("waits")
		_, _ = io.Copy(io.Discard, os.Stdin)
	}
}

// unified is a new group of the hierarchy of version 2, and a controller that it has.
func unified(t *testing.T) (dir, controller string) {
	t.Helper()
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	root := newGroups("0::/\n", string(mounts)).v2
	all, err := os.ReadFile(filepath.Join(root, "cgroup.controllers"))
	if err != nil || len(strings.Fields(string(all))) == 0 {
		t.Fatalf("no control groups of version 2 with a controller: %q, %v", all, err)
	}
	controller = strings.Fields(string(all))[0]
	if err := os.WriteFile(filepath.Join(root, "cgroup.subtree_control"), []byte("+"+controller), 0); err != nil {
		t.Fatal(err)
	}
	if dir, err = os.MkdirTemp(root, "penstock-test-"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = os.Remove(filepath.Join(dir, leafName))
		if err := os.Remove(dir); err != nil {
			t.Error(err)
		}
	})
	return dir, controller
}

// in starts this program in a control group.
func in(t *testing.T, group string, what string, args ...string) *exec.Cmd {
	t.Helper()
	f, err := os.Open(group)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(context.WithoutCancel(t.Context()), self) // ended by the cleanup
	cmd.Env = append(os.Environ(), "SANDBOX_RUNS="+what, "SANDBOX_ARGS="+strings.Join(args, " "))
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(f.Fd())}
	cmd.Stderr = os.Stderr
	return cmd
}

// runnerIn is what a runner in a group says.
func runnerIn(t *testing.T, group, controller string) string {
	t.Helper()
	cmd := in(t, group, "groups", controller)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	b, _ := io.ReadAll(out)
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// other is another process in a group, until the test ends.
func other(t *testing.T, group string) *exec.Cmd {
	t.Helper()
	cmd := in(t, group, "wait")
	hold, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		hold.Close()
		if err := cmd.Wait(); err != nil {
			t.Error(err)
		}
	})
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		t.Fatal(line, err)
	}
	return cmd
}

// TestLeaf has a runner start in a group of version 2, as a service of systemd does: a group
// with processes may not bound those below it, so the runner goes into a leaf, alone or, where
// the group was delegated, with all that is in it. It moves nobody else's processes.
func TestLeaf(t *testing.T) {
	if os.Geteuid() != 0 {
		return // groups are made by root, as the other tests of it say
	}
	t.Run("alone, and started again in its leaf", func(t *testing.T) {
		dir, controller := unified(t)
		for _, from := range []string{dir, filepath.Join(dir, leafName)} {
			got := runnerIn(t, from, controller)
			if !strings.Contains(got, "has "+controller+"\n") || !strings.HasSuffix(got, filepath.Base(dir)+"/"+leafName+"\n") {
				t.Errorf("from %s: %s", from, got)
			}
		}
	})
	t.Run("delegated, beside others", func(t *testing.T) {
		dir, controller := unified(t)
		if err := unix.Setxattr(dir, "user.delegate", []byte("1"), 0); err != nil {
			t.Fatal(err)
		}
		beside := other(t, dir)
		if got := runnerIn(t, dir, controller); !strings.Contains(got, "has "+controller+"\n") {
			t.Error(got)
		}
		moved := (&groups{v2: filepath.Join(dir, leafName)}).processes()
		if !slices.Equal(moved, []int{beside.Process.Pid}) {
			t.Errorf("in the leaf are %v, want %d", moved, beside.Process.Pid)
		}
	})
	t.Run("not delegated, beside others", func(t *testing.T) {
		dir, controller := unified(t)
		beside := other(t, dir)
		got := runnerIn(t, dir, controller)
		if !strings.Contains(got, fmt.Sprintf("such as process %d, which is none of the runner's", beside.Process.Pid)) || !strings.Contains(got, "Delegate=yes") {
			t.Error(got)
		}
		if left := (&groups{v2: dir}).processes(); !slices.Equal(left, []int{beside.Process.Pid}) {
			t.Errorf("in the group are %v, want %d", left, beside.Process.Pid)
		}
	})
	t.Run("a group of that name with others above", func(t *testing.T) {
		dir, controller := unified(t)
		if err := os.Mkdir(filepath.Join(dir, leafName), 0o755); err != nil {
			t.Fatal(err)
		}
		other(t, dir)
		if got := runnerIn(t, filepath.Join(dir, leafName), controller); strings.HasPrefix(got, "has ") {
			t.Error(got)
		}
	})
}
