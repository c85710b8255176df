package supervise_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/penstock-gateway/penstock/internal/launch"
	"github.com/penstock-gateway/penstock/internal/ports/porttest"
	"github.com/penstock-gateway/penstock/internal/supervise"
)

// buffer is a bytes.Buffer for several writers.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// rig is a supervisor whose back-off sleeps end when the test says so.
type rig struct {
	*supervise.Supervisor
	out    *buffer
	events *buffer            // what its logger says
	sleeps chan time.Duration // each back-off as it begins
	wake   chan struct{}      // one value ends one back-off
	change chan struct{}      // one value pending after any change

	mu  sync.Mutex
	now time.Time
}

func newRig(t *testing.T) *rig {
	t.Helper()
	r := &rig{
		out: &buffer{}, events: &buffer{}, sleeps: make(chan time.Duration), wake: make(chan struct{}),
		change: make(chan struct{}, 1), now: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC),
	}
	r.Supervisor = supervise.New(supervise.Options{
		Line:   func(process, line string) { fmt.Fprintf(r.out, "%s | %s\n", process, line) },
		Logger: slog.New(slog.NewTextHandler(r.events, nil)),
		Sleep: func(ctx context.Context, d time.Duration) error {
			select {
			case r.sleeps <- d:
			case <-ctx.Done():
				return ctx.Err()
			}
			select {
			case <-r.wake:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		},
		Now: func() time.Time { r.mu.Lock(); defer r.mu.Unlock(); return r.now },
		OnChange: func([]supervise.Status) {
			select {
			case r.change <- struct{}{}:
			default:
			}
		},
	})
	t.Cleanup(r.Stop)
	return r
}

func (r *rig) advance(d time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.now = r.now.Add(d)
}

func (r *rig) status(name string) supervise.Status {
	for _, s := range r.Status() {
		if s.Name == name {
			return s
		}
	}
	return supervise.Status{}
}

// await waits for a state of a process.
func (r *rig) await(t *testing.T, name string, cond func(supervise.Status) bool) supervise.Status {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for {
		if s := r.status(name); cond(s) {
			return s
		}
		select {
		case <-r.change:
		case <-ctx.Done():
			t.Fatalf("waited in vain; %s is %+v\n%s", name, r.status(name), r.out)
		}
	}
}

func (r *rig) backOff(t *testing.T) time.Duration {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	select {
	case d := <-r.sleeps:
		return d
	case <-ctx.Done():
		t.Fatal("no back-off began")
		return 0
	}
}

func shell(name, script string) supervise.Process {
	return supervise.Process{Name: name, Command: "/bin/sh", Args: []string{"-c", script}}
}

func sleeper(name string) supervise.Process { return shell(name, "exec sleep 600") }

func start(t *testing.T, r *rig, p supervise.Process) launch.ID {
	t.Helper()
	if err := r.Start(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	id, err := launch.Identify(r.status(p.Name).PID)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func TestKilledIsRestarted(t *testing.T) {
	r := newRig(t)
	first := start(t, r, sleeper("one"))
	if err := first.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if d := r.backOff(t); d != 200*time.Millisecond {
		t.Errorf("first back-off is %s, want 200ms", d)
	}
	if s := r.status("one"); s.State != supervise.BackOff || s.PID != 0 || s.Detail != "signal: killed" {
		t.Errorf("while it waits: %+v", s)
	}
	r.wake <- struct{}{}
	s := r.await(t, "one", func(s supervise.Status) bool { return s.State == supervise.Running })
	if s.PID == first.PID || s.PID == 0 || s.Restarts != 1 {
		t.Errorf("after the restart: %+v, was pid %d", s, first.PID)
	}
	if !strings.Contains(r.events.String(), "process=one") {
		t.Errorf("nothing was logged of the death:\n%s", r.events)
	}
}

func TestCrashLoopBacksOff(t *testing.T) {
	r := newRig(t)
	// Ready once it has written its file; then it ends.
	p := shell("loop", "exit 3")
	if err := r.Start(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	want := []time.Duration{200, 400, 800, 1600, 3200, 6400, 12800, 25600, 30000, 30000}
	for i, w := range want {
		if got := r.backOff(t); got != w*time.Millisecond {
			t.Errorf("back-off %d is %s, want %s", i+1, got, w*time.Millisecond)
		}
		if i == len(want)-1 {
			// The next run counts as stable.
			r.advance(0)
		}
		r.wake <- struct{}{}
	}
	if s := r.await(t, "loop", func(s supervise.Status) bool { return s.Restarts >= len(want) }); s.Detail != "exit status 3" {
		t.Errorf("detail is %q", s.Detail)
	}
}

func TestStableRunResetsBackOff(t *testing.T) {
	r := newRig(t)
	id := start(t, r, sleeper("one"))
	for _, run := range []struct{ ran, want time.Duration }{
		{time.Second, 200 * time.Millisecond},
		{time.Second, 400 * time.Millisecond},
		{time.Minute, 200 * time.Millisecond},
	} {
		r.advance(run.ran)
		if err := id.Signal(syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		if got := r.backOff(t); got != run.want {
			t.Errorf("after a run of %s the back-off is %s, want %s", run.ran, got, run.want)
		}
		r.wake <- struct{}{}
		s := r.await(t, "one", func(s supervise.Status) bool { return s.State == supervise.Running && s.PID != id.PID })
		var err error
		if id, err = launch.Identify(s.PID); err != nil {
			t.Fatal(err)
		}
	}
}

func TestStopsInReverseOrder(t *testing.T) {
	r := newRig(t)
	file := filepath.Join(t.TempDir(), "order")
	var ids []launch.ID
	for _, name := range []string{"a", "b", "c"} {
		p := shell(name, fmt.Sprintf(`trap 'echo %s >> %s; exit 0' TERM; echo ready; while :; do sleep 600 & wait $!; done`, name, file))
		p.Ready = r.said("ready", name)
		ids = append(ids, start(t, r, p))
	}
	var all []launch.ID
	for _, id := range ids {
		all = append(append(all, id), launch.Descendants(id.PID)...)
	}
	r.Stop()
	// What a shell left behind was killed with it; the system takes it away in its
	// own time.
	if left := launch.WaitGone(all, 10*time.Second); len(left) > 0 {
		t.Errorf("after Stop these processes still run: %v", left)
	}
	b, err := os.ReadFile(file)
	if err != nil || string(b) != "c\nb\na\n" {
		t.Errorf("order of the stops: %q (%v)", b, err)
	}
	for _, s := range r.Status() {
		if s.State != supervise.Exited || s.PID != 0 {
			t.Errorf("after Stop: %+v", s)
		}
	}
	if err := r.Start(t.Context(), sleeper("late")); err == nil {
		t.Error("Start after Stop gave no error")
	}
	r.Stop() // a second time does no harm
}

// said is a Ready that waits for a line of the process.
func (r *rig) said(text, name string) func(context.Context) error {
	return func(ctx context.Context) error {
		tick := time.NewTicker(5 * time.Millisecond)
		defer tick.Stop()
		for {
			for line := range strings.Lines(r.out.String()) {
				if strings.HasPrefix(line, name+" ") && strings.HasSuffix(strings.TrimSpace(line), "| "+text) {
					return nil
				}
			}
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-tick.C:
			}
		}
	}
}

// TestIgnoresSIGTERM: a process that will not stop is killed with all its group.
func TestIgnoresSIGTERM(t *testing.T) {
	r := newRig(t)
	p := shell("stubborn", `trap '' TERM; sleep 600 & echo ready; while :; do wait; done`)
	p.Ready = r.said("ready", "stubborn")
	p.StopTimeout = 50 * time.Millisecond
	id := start(t, r, p)
	all := append(launch.Descendants(id.PID), id)
	if len(all) < 2 {
		t.Fatalf("the shell has no child: %v", all)
	}
	r.Stop()
	if left := launch.WaitGone(all, 10*time.Second); len(left) > 0 {
		t.Errorf("these processes still run: %v", left)
	}
	if !strings.Contains(r.events.String(), "ignored SIGTERM") {
		t.Errorf("it was not logged that it was killed:\n%s", r.events)
	}
}

// TestLeavesChildrenBehind: what a dead process left in its group goes before the
// restart, and a grandchild that holds the log open does not delay it for ever.
func TestLeavesChildrenBehind(t *testing.T) {
	r := newRig(t)
	p := shell("parent", `sleep 600 & echo ready; wait`)
	p.Ready = r.said("ready", "parent")
	id := start(t, r, p)
	children := launch.Descendants(id.PID)
	if len(children) == 0 {
		t.Fatal("the shell has no child")
	}
	if err := id.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	r.backOff(t)
	if left := launch.WaitGone(children, 10*time.Second); len(left) > 0 {
		t.Errorf("children of the dead process still run: %v", left)
	}
}

func TestStopWhileBackingOff(t *testing.T) {
	r := newRig(t)
	if err := r.Start(t.Context(), shell("loop", "exit 1")); err != nil {
		t.Fatal(err)
	}
	r.backOff(t)
	r.Stop()
	if s := r.status("loop"); s.State != supervise.Exited || s.Restarts != 0 {
		t.Errorf("after Stop: %+v", s)
	}
}

func TestStartFails(t *testing.T) {
	never := func(ctx context.Context) error { <-ctx.Done(); return errors.New("connection refused") }
	for _, test := range []struct {
		name    string
		process supervise.Process
		want    []string
	}{
		{"no such command", supervise.Process{Name: "x", Command: "/does/not/exist"}, []string{"x: ", "no such file"}},
		{"no such directory", supervise.Process{Name: "x", Command: "/bin/true", Dir: "/does/not/exist"}, []string{"no such file"}},
		{"ends before it is ready", supervise.Process{Name: "x", Command: "/bin/sh", Args: []string{"-c", "echo bad flag --foo >&2; exit 2"}, Ready: never},
			[]string{"ended before it was ready: exit status 2", "bad flag --foo"}},
		{"ends well before it is ready", supervise.Process{Name: "x", Command: "/bin/true", Ready: never}, []string{"exit status 0", "(nothing)"}},
		{"is never ready", supervise.Process{Name: "x", Command: "/bin/sh", Args: []string{"-c", "echo waiting; exec sleep 600"}, Ready: never, ReadyTimeout: 100 * time.Millisecond},
			[]string{"not ready within 100ms", "connection refused", "waiting"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := newRig(t)
			err := r.Start(t.Context(), test.process)
			if err == nil {
				t.Fatal("no error")
			}
			for _, want := range test.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("error %q does not say %q", err, want)
				}
			}
			if s := r.status("x"); s.State != supervise.Exited || s.PID != 0 {
				t.Errorf("status %+v", s)
			}
		})
	}
}

func TestStartCancelled(t *testing.T) {
	r := newRig(t)
	ctx, cancel := context.WithCancel(t.Context())
	p := sleeper("one")
	var id launch.ID
	p.Ready = func(ready context.Context) error {
		s := r.await(t, "one", func(s supervise.Status) bool { return s.PID != 0 })
		id, _ = launch.Identify(s.PID)
		cancel()
		<-ready.Done()
		return ready.Err()
	}
	if err := r.Start(ctx, p); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
	if id.PID == 0 || id.Alive() {
		t.Errorf("process %v runs on after its start was cancelled", id)
	}
}

func TestNamesAreUnique(t *testing.T) {
	r := newRig(t)
	start(t, r, sleeper("one"))
	if err := r.Start(t.Context(), sleeper("one")); err == nil || !strings.Contains(err.Error(), `already`) {
		t.Errorf("error %v", err)
	}
	// One that never was ready may be started again, once it is gone.
	if err := r.Start(t.Context(), supervise.Process{Name: "three", Command: "/does/not/exist"}); err == nil {
		t.Error("it started")
	}
	start(t, r, sleeper("three"))
	if s := r.status("three"); s.State != supervise.Running || s.Restarts != 1 || len(r.Status()) != 2 {
		t.Errorf("status %+v of %d", s, len(r.Status()))
	}
	if err := r.Signal("two", syscall.SIGTERM); err == nil {
		t.Error("Signal to nobody gave no error")
	}
}

// TestReadyByPort starts something that is ready some time after it started.
func TestReadyByPort(t *testing.T) {
	port := porttest.Free(t)
	r := newRig(t)
	err := r.Start(t.Context(), supervise.Process{
		Name: "server", Command: "python3",
		Args: []string{"-c", "import http.server as h; h.HTTPServer(('127.0.0.1', " + strconv.Itoa(port) + "), h.BaseHTTPRequestHandler).serve_forever()"},
		Ready: func(ctx context.Context) error {
			for {
				conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", "127.0.0.1:"+strconv.Itoa(port))
				if err == nil {
					return conn.Close()
				}
				if ctx.Err() != nil {
					return err
				}
			}
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	if s := r.status("server"); s.State != supervise.Running {
		t.Errorf("status %+v", s)
	}
}

func TestLogs(t *testing.T) {
	r := newRig(t)
	script := `printf 'one\ntwo'; printf '\033[31mred\007\r\n' >&2; head -c 40000 /dev/zero | tr '\0' x; echo; echo end; exec sleep 600`
	p := shell("short", script)
	p.Ready = r.said("end", "short")
	if err := r.Start(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	got := r.out.String()
	for _, want := range []string{"short | one\n", "short | two[31mred\n", "short | end\n"} {
		if !strings.Contains(got, want) {
			t.Errorf("log lacks %q:\n%.300s", want, got)
		}
	}
	if n := strings.Count(got, "x"); n != 40000 {
		t.Errorf("%d bytes of the long line arrived, want 40000", n)
	}
	for line := range strings.Lines(got) {
		if !strings.HasPrefix(line, "short | ") || strings.ContainsAny(line, "\x1b\x07\r") {
			t.Errorf("line %.80q", line)
		}
	}
}
