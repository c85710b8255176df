package sandbox

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

func init() {
	inside["bounds"] = func([]string) {
		var core, processes unix.Rlimit
		_ = unix.Getrlimit(unix.RLIMIT_CORE, &core)
		_ = unix.Getrlimit(unix.RLIMIT_NPROC, &processes)
		score, _ := os.ReadFile("/proc/self/oom_score_adj")
		_ = os.WriteFile("/proc/self/oom_score_adj", []byte("0"), 0)
		again, _ := os.ReadFile("/proc/self/oom_score_adj")
		raised := syscall.Setrlimit(unix.RLIMIT_NPROC, &syscall.Rlimit{Cur: 1 << 20, Max: 1 << 20})
		fmt.Printf("core %d processes %d spared %s %s raised %v\n", core.Max, processes.Max, strings.TrimSpace(string(score)), strings.TrimSpace(string(again)), raised == nil)
	}
	inside["forks"] = func([]string) {
		n := 0
		for ; n < 500; n++ {
			if err := exec.Command("/bin/sleep", "600").Start(); err != nil {
				break
			}
		}
		fmt.Printf("started %t %t\n", n > 2, n < 64)
	}
}

// TestBounds: without any resources named, a program has bounds that keep others safe from
// it, and may not change them.
func TestBounds(t *testing.T) {
	started, r := starts(t, machine(), Policy{Scratch: t.TempDir()}, "bounds")
	defer started.Close()
	got, _ := bufio.NewReader(r).ReadString('\n')
	_ = started.Cmd.Wait()
	if want := "core 1 processes 4096 spared 500 500 raised false\n"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

// TestForks: processes are bounded without control groups, too, where they are counted
// alone.
func TestForks(t *testing.T) {
	m := *machine()
	m.groups, m.ready = &groups{reasons: map[string]error{"pids": os.ErrInvalid}}, &ready{}
	started, r := starts(t, &m, Policy{Scratch: t.TempDir(), Pids: 64}, "forks")
	defer started.Close()
	got, _ := bufio.NewReader(r).ReadString('\n')
	_ = syscall.Kill(started.Cmd.Process.Pid, syscall.SIGKILL)
	_ = started.Cmd.Wait()
	if got != "started true true\n" {
		t.Errorf("%q", got)
	}
}

// TestGroupNames: the name of a control group, which other programs may see, does not tell
// whose it is.
func TestGroupNames(t *testing.T) {
	if got := (&groups{}).name("secret-project-b3k2a9x8y7"); strings.Contains(got, "secret") || !strings.HasSuffix(got, "-b3k2a9x8y7") {
		t.Error(got)
	}
}
