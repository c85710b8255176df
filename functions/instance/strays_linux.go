package instance

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/penstock-gateway/penstock/internal/launch"
)

// sweepEvery is how often processes are looked for that an instance let go of.
const sweepEvery = 500 * time.Millisecond

// Every instance's first process leads a session of its own, and this process
// adopts what is orphaned below it. So a child of this process in another session
// that is no such leader was left by an instance, whatever it did to its
// environment, group, session and parents.
var family = struct {
	mu sync.Mutex
	// leaders are the first processes by id, ids the instances that live.
	leaders map[int]string
	ids     map[string]bool
	// suspects were seen without a mark once: one that is just being executed has
	// none for a moment.
	suspects map[launch.ID]bool
}{leaders: map[int]string{}, ids: map[string]bool{}, suspects: map[launch.ID]bool{}}

// Adopt makes this process adopt the orphans of its descendants and end those
// that instances leave behind, until ctx ends. The daemons of an instance that
// lives stay as long as they carry its variable or are in its session. The
// returned function waits for the end, and then nothing is left.
func Adopt(ctx context.Context, log *slog.Logger) (wait func(), err error) {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return nil, fmt.Errorf("become the one that adopts what functions leave behind: %w", err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(sweepEvery)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				for range 5 { // what is killed leaves orphans
					sweep(log, true)
				}
				return
			case <-tick.C:
				sweep(log, true)
			}
		}
	}()
	return func() { <-done }, nil
}

// startFamily starts a process as the first of an instance.
func startFamily(id string, start func() (pid int, err error)) error {
	family.mu.Lock() // a sweep must not meet it before it is known
	defer family.mu.Unlock()
	pid, err := start()
	if err == nil {
		family.ids[id], family.leaders[pid] = true, id
	}
	return err
}

// endFamily kills all that an instance has left.
func endFamily(id string, pid int) {
	family.mu.Lock()
	delete(family.ids, id)
	if family.leaders[pid] == id {
		delete(family.leaders, pid)
	}
	family.mu.Unlock()
	killMarked(id)
	sweep(nil, false)
}

// sweep reaps and kills what was adopted. Only a regular one, which is some time
// apart from the next, may suspect or convict a process without a mark beside
// instances that live.
func sweep(log *slog.Logger, regular bool) {
	family.mu.Lock()
	defer family.mu.Unlock()
	own, err := unix.Getsid(0)
	if err != nil {
		return
	}
	seen := map[launch.ID]bool{}
	for _, pid := range children(os.Getpid()) {
		session, err := unix.Getsid(pid)
		if _, leads := family.leaders[pid]; err != nil || session == own || leads {
			continue
		}
		id, err := launch.Identify(pid)
		if err != nil { // it has ended
			_, _ = unix.Wait4(pid, nil, unix.WNOHANG, nil)
			continue
		}
		if _, lives := family.leaders[session]; lives {
			continue
		}
		mark, marked := markOf(pid)
		switch {
		case family.ids[mark]:
			continue
		case !marked && len(family.ids) > 0 && !family.suspects[id]:
			seen[id] = true
			continue
		}
		all := append(launch.Descendants(pid), id)
		for _, d := range all {
			_ = d.Signal(syscall.SIGKILL)
		}
		launch.WaitGone([]launch.ID{id}, time.Second)
		_, _ = unix.Wait4(pid, nil, unix.WNOHANG, nil)
		if log != nil {
			log.Warn("a process that a function left behind was killed", "pid", pid, "with", len(all)-1)
		}
	}
	if regular {
		family.suspects = seen
	}
}

// children are the children of this process.
func children(self int) (out []int) {
	paths, _ := filepath.Glob("/proc/self/task/*/children")
	for _, path := range paths {
		b, _ := os.ReadFile(path)
		for f := range strings.FieldsSeq(string(b)) {
			if pid, err := strconv.Atoi(f); err == nil {
				out = append(out, pid)
			}
		}
	}
	if len(paths) > 0 {
		return out
	}
	// A kernel without these files (CONFIG_PROC_CHILDREN).
	paths, _ = filepath.Glob("/proc/[0-9]*/stat")
	for _, path := range paths {
		b, _ := os.ReadFile(path)
		f := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
		if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path))); err == nil && len(f) > 1 && f[1] == strconv.Itoa(self) {
			out = append(out, pid)
		}
	}
	return out
}

// markOf is the instance that a process says it belongs to.
func markOf(pid int) (id string, ok bool) {
	env, _ := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
	for v := range bytes.SplitSeq(env, []byte{0}) {
		if id, ok := bytes.CutPrefix(v, []byte(instanceVariable+"=")); ok {
			return string(id), true
		}
	}
	return "", false
}

// killMarked kills the processes of an instance that left its process group
// (daemons) and have its variable in their environment, also below processes that
// were not adopted.
func killMarked(id string) {
	for range 5 { // one may have forked meanwhile
		found := false
		paths, _ := filepath.Glob("/proc/[0-9]*/environ")
		for _, path := range paths {
			pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path)))
			if err != nil || pid == os.Getpid() {
				continue
			}
			if mark, ok := markOf(pid); ok && mark == id {
				found = syscall.Kill(pid, syscall.SIGKILL) == nil || found
			}
		}
		if !found {
			return
		}
	}
}
