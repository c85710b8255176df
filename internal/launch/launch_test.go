package launch_test

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/penstock-gateway/penstock/internal/launch"
)

// TestMain lets the test binary be the process whose death its children must not
// survive.
func TestMain(m *testing.M) {
	if os.Getenv("LAUNCH_TEST_PARENT") == "1" {
		cmd := exec.Command("sleep", "600")
		if err := launch.Start(cmd); err != nil {
			fmt.Println("error", err)
			os.Exit(1)
		}
		fmt.Println(cmd.Process.Pid)
		// It blocks in a system call until the test ends: with nothing but blocked
		// goroutines the runtime would end the process ("all goroutines are asleep").
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// TestDiesWithParent kills a launching process with SIGKILL: the child goes too.
func TestDiesWithParent(t *testing.T) {
	parent := exec.CommandContext(t.Context(), os.Args[0])
	parent.Env = append(os.Environ(), "LAUNCH_TEST_PARENT=1")
	out, err := parent.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := parent.StdinPipe(); err != nil { // open until Wait
		t.Fatal(err)
	}
	if err := launch.Start(parent); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(line))
	if err != nil {
		t.Fatal(err)
	}
	child, err := launch.Identify(pid)
	if err != nil {
		t.Fatal(err)
	}
	if d := launch.Descendants(parent.Process.Pid); len(d) != 1 || d[0] != child {
		t.Errorf("Descendants of the parent: %v, want %v", d, child)
	}
	if err := parent.Process.Kill(); err != nil { // the process, not its group
		t.Fatal(err)
	}
	// A parent that ended by itself would prove nothing.
	var end *exec.ExitError
	if err := parent.Wait(); !errors.As(err, &end) || end.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Fatalf("the parent ended with %v, want SIGKILL", err)
	}
	if left := launch.WaitGone([]launch.ID{child}, 30*time.Second); len(left) > 0 {
		_ = child.Signal(syscall.SIGKILL)
		t.Errorf("the child %d outlived its parent", pid)
	}
}

// TestStaysWithoutThread starts children from goroutines whose threads end: the
// kernel must not take that for the death of the parent.
func TestStaysWithoutThread(t *testing.T) {
	cmd := exec.Command("sleep", "600")
	started := make(chan error)
	go func() {
		// A goroutine that ends while locked takes its thread along.
		runtime.LockOSThread()
		started <- launch.Start(cmd)
	}()
	if err := <-started; err != nil {
		t.Fatal(err)
	}
	waitThreadGone(t)
	id, err := launch.Identify(cmd.Process.Pid)
	if err != nil || !id.Alive() {
		t.Errorf("the child ended with the thread of the goroutine that asked for it (%v)", err)
	}
	if err := launch.Signal(cmd, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err == nil {
		t.Error("sleep ended by itself")
	}
	if id.Alive() {
		t.Error("a reaped process is Alive")
	}
	if err := launch.Signal(cmd, syscall.SIGTERM); err != nil {
		t.Errorf("Signal to a group that is gone: %v", err)
	}
}

func TestAnotherProcessOfTheSameNumber(t *testing.T) {
	me, err := launch.Identify(os.Getpid())
	if err != nil || !me.Alive() {
		t.Fatalf("this process is not alive: %v", err)
	}
	other := launch.ID{PID: me.PID, Start: me.Start + "0"}
	if other.Alive() {
		t.Error("a process that started at another time counts as the same")
	}
	if err := other.Signal(syscall.SIGKILL); err != nil {
		t.Error(err) // and the test goes on
	}
	if (launch.ID{}).Alive() {
		t.Error("the zero ID is alive")
	}
}

func TestCannotStart(t *testing.T) {
	if err := launch.Start(exec.Command("/does/not/exist")); err == nil {
		t.Error("no error for a command that does not exist")
	}
	if err := launch.Signal(exec.Command("true"), syscall.SIGTERM); err == nil {
		t.Error("no error for a command that was not started")
	}
}

// waitThreadGone returns after the runtime had every occasion to end the thread
// of a goroutine that ended while locked: a goroutine started later on a locked
// thread of its own has run to its end.
func waitThreadGone(t *testing.T) {
	t.Helper()
	for range 50 {
		done := make(chan struct{})
		go func() { defer close(done); runtime.LockOSThread() }()
		<-done
		runtime.Gosched()
	}
}

// TestExiting: a process is known to end before its parent has taken note of that.
func TestExiting(t *testing.T) {
	if launch.Exiting(os.Getpid()) {
		t.Error("this process is said to end")
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	cmd := exec.CommandContext(t.Context(), "sleep", "1000")
	cmd.Stdout = w
	if err := launch.Start(cmd); err != nil {
		t.Fatal(err)
	}
	w.Close()
	if launch.Exiting(cmd.Process.Pid) {
		t.Error("a process that runs is said to end")
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	// Its end of the pipe breaks first; nobody has waited for it yet.
	if _, err := io.ReadAll(r); err != nil {
		t.Fatal(err)
	}
	if !launch.Exiting(cmd.Process.Pid) {
		t.Error("the files of a process are closed, and it is not said to end")
	}
	_ = cmd.Wait()
	if !launch.Exiting(cmd.Process.Pid) {
		t.Error("a process that is gone is not said to have ended")
	}
}
