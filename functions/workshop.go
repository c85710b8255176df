package functions

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/penstock-gateway/penstock/functions/instance"
	"github.com/penstock-gateway/penstock/functions/sandbox"
)

// BuildLimits bound one build, or one installation of dependencies.
type BuildLimits struct {
	// Time that it may take. Default 15 min.
	Time time.Duration
	// MemoryBytes of all its processes. Default 2 GiB.
	MemoryBytes int64
	// Processes and threads at once. Default 1024.
	Processes int64
	// DiskBytes of all that it has written, with what the function's earlier builds
	// have cached. Default 3 GiB.
	DiskBytes int64
	// Files that there may be in the same places. Default 300,000.
	Files int
}

func (l BuildLimits) withDefaults() BuildLimits {
	return BuildLimits{
		Time: cmp.Or(l.Time, 15*time.Minute), MemoryBytes: cmp.Or(l.MemoryBytes, 2<<30), Processes: cmp.Or(l.Processes, 1024),
		DiskBytes: cmp.Or(l.DiskBytes, 3<<30), Files: cmp.Or(l.Files, 300_000),
	}
}

// workshop runs what functions and packages bring along to be built: `build` commands,
// pip and npm with the scripts of packages. All of it is code of strangers, so it runs
// in the sandbox of instances, whatever the function's level: a build is never less
// bounded than what it makes.
type workshop struct {
	machine *sandbox.Machine
	limits  BuildLimits
	scratch string
	logs    *logbook
}

// job is one thing to run.
type job struct {
	// function whose log gets the output.
	function string
	// what is for the error: "build", "install".
	what    string
	command []string
	// shown is the command in messages; "": as it is.
	shown string
	// dir is where it runs.
	dir string
	// write are the folders that it may write, read what it may see besides.
	write, read []string
	// home is its HOME, and where its caches are; it is among write.
	home string
	// temporary is a folder on the disk for its temporary files; it is among write.
	temporary string
	env       map[string]string
	// allow are services of this machine that it may reach besides other hosts.
	allow []netip.AddrPort
	// level is at least Best.
	level sandbox.Level
}

// title is the command in messages.
func (j *job) title() string { return cmp.Or(j.shown, strings.Join(j.command, " ")) }

// buildError is what became of a job.
type buildError struct {
	// text is one line.
	text string
	// output are its last lines.
	output string
	err    error
}

// Error implements error.
func (e *buildError) Error() string { return e.text }

// Unwrap returns the cause.
func (e *buildError) Unwrap() error { return e.err }

// run runs a job. Its error is a *buildError when the job itself failed.
func (w *workshop) run(ctx context.Context, j job) error {
	plan, err := w.machine.Plan(sandbox.Policy{
		Level: j.level, Read: j.read, Write: j.write, Scratch: w.scratch,
		Network: sandbox.Network{Allow: j.allow, Refused: func(to netip.AddrPort, why string) {
			w.logs.say(j.function, "", fmt.Sprintf("a connection of the %s to %s was refused: %s", j.what, to, why))
		}},
		MemoryBytes: w.limits.MemoryBytes, Pids: w.limits.Processes, FileBytes: w.limits.DiskBytes,
	})
	if err != nil {
		return err
	}
	if len(plan.Missing) > 0 {
		w.logs.say(j.function, "", "the "+j.what+" is not kept apart by "+strings.Join(plan.Missing, "; "))
	}
	ctx, cancel := context.WithTimeoutCause(ctx, w.limits.Time, fmt.Errorf("it took longer than %s", w.limits.Time))
	defer cancel()
	ctx, stop := w.guardDisk(ctx, j.write)
	defer stop()
	out, err := w.newOutput(j.function)
	if err != nil {
		return err
	}
	err = instance.Run(ctx, plan, sandbox.Command{
		ID: newID("build"), Args: j.command, Dir: j.dir, Env: j.env, Own: ownVariables(j.env), Stdout: out.in, Stderr: out.in,
	})
	tail := out.end()
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	if err == nil {
		return nil
	}
	text := fmt.Sprintf("%s %q failed: %v", j.what, j.title(), err)
	if line := telling(tail); line != "" {
		text += ": " + line
	}
	return &buildError{text: text, output: tail, err: err}
}

func ownVariables(env map[string]string) map[string]bool {
	out := map[string]bool{}
	for k := range env {
		out[k] = true
	}
	return out
}

// telling is the line of an output that says most about why it failed: the last error
// that pip or npm reports, else the last line.
func telling(output string) string {
	var last, reported string
	for line := range strings.Lines(output) {
		if line = strings.TrimSpace(line); line == "" {
			continue
		}
		last = line
		text, npm := strings.CutPrefix(line, "npm error")
		if !npm {
			text, npm = strings.CutPrefix(line, "npm ERR!")
		}
		switch text = strings.TrimSpace(text); {
		case npm && (len(strings.Fields(text)) < 2 || slices.ContainsFunc(npmChatter, func(c string) bool { return strings.Contains(text, c) })):
		case npm:
			reported = strings.TrimSpace(strings.TrimPrefix(text, "404"))
		case strings.HasPrefix(line, "ERROR: "):
			reported = line
		}
	}
	return fmt.Sprintf("%.500s", cmp.Or(reported, last))
}

// npmChatter are lines that npm prints after what is wrong.
var npmChatter = []string{"A complete log of this run", "Note that you can also install", "tarball, folder, http url", "_logs/"}

// output passes what a job prints on to its function's log, line by line, and keeps
// the end of it.
type output struct {
	in, out *os.File
	done    chan struct{}
	tail    tailBuffer
}

// buildLines are passed on of one job; the rest is counted.
const buildLines = 2000

func (w *workshop) newOutput(function string) (*output, error) {
	r, in, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	o := &output{in: in, out: r, done: make(chan struct{}), tail: tailBuffer{max: buildTail}}
	go func() {
		defer close(o.done)
		lines, n := bufio.NewReaderSize(r, 64<<10), 0
		for {
			line, err := lines.ReadSlice('\n')
			_, _ = o.tail.Write(line)
			if text := strings.TrimRight(string(line), "\r\n"); text != "" {
				if n++; n <= buildLines {
					w.logs.build(function, text)
				}
			}
			if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
				break
			}
		}
		if n > buildLines {
			w.logs.say(function, "", fmt.Sprintf("%d more lines were printed", n-buildLines))
		}
	}()
	return o, nil
}

// end returns the last lines, when all that was printed is read.
func (o *output) end() string {
	o.in.Close()
	select {
	case <-o.done:
	case <-time.After(time.Second): // somebody who got away has it open
		o.out.Close()
		<-o.done
	}
	o.out.Close()
	return o.tail.String()
}

const (
	// lookAtDisk is how often it is looked what a job has written.
	lookAtDisk = 250 * time.Millisecond
	// spareDisk stays free, for all else that this machine does.
	spareDisk = 256 << 20
)

var errStopped = errors.New("stopped")

// guardDisk ends a context when a job has written too much in its folders, or has left
// too little for others.
func (w *workshop) guardDisk(ctx context.Context, dirs []string) (guarded context.Context, stop func()) {
	guarded, cancel := context.WithCancelCause(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(lookAtDisk)
		defer tick.Stop()
		for {
			select {
			case <-guarded.Done():
				return
			case <-tick.C:
			}
			if err := w.checkDisk(dirs); err != nil {
				cancel(err)
				return
			}
		}
	}()
	return guarded, func() { cancel(errStopped); <-done }
}

// checkDisk measures what is in some folders.
func (w *workshop) checkDisk(dirs []string) error {
	files, size := 0, int64(0)
	for _, dir := range dirs {
		err := filepath.WalkDir(dir, func(_ string, e os.DirEntry, err error) error {
			if err != nil {
				return nil // it is being changed
			}
			if files++; files > w.limits.Files {
				return fmt.Errorf("it made more than %d files", w.limits.Files)
			}
			if info, err := e.Info(); err == nil && info.Mode().IsRegular() {
				size += allocated(info)
			}
			if size > w.limits.DiskBytes {
				return fmt.Errorf("it wrote more than %d MiB", w.limits.DiskBytes>>20)
			}
			return nil
		})
		if err != nil {
			return err
		}
		if free, err := freeBytes(dir); err == nil && free < spareDisk {
			return fmt.Errorf("the disk of %s has less than %d MiB left", dir, spareDisk>>20)
		}
	}
	return nil
}

// environment is that of a job: what the runner was given for registries, and places of
// the job's own. own is what the function says.
func (w *workshop) environment(home, temporary string, settings, own map[string]string) map[string]string {
	env := map[string]string{
		"LANG":   "C.UTF-8",
		"GOWORK": "off", // the copy is in no workspace, even if the cache is
	}
	maps.Copy(env, settings)
	maps.Copy(env, own)
	maps.Copy(env, map[string]string{
		"HOME": home, "TMPDIR": temporary, "GOPATH": filepath.Join(home, "go"), "GOCACHE": filepath.Join(home, "go-build"),
		"GOMODCACHE": filepath.Join(home, "go-mod"), "GOENV": "off", "XDG_CACHE_HOME": filepath.Join(home, ".cache"),
		"npm_config_cache": filepath.Join(home, ".npm"), "PIP_CACHE_DIR": filepath.Join(home, ".cache", "pip"),
	})
	return env
}

// empty makes a folder that holds nothing, for its owner only.
func empty(dir string) error {
	if err := removeTree(dir); err != nil {
		return err
	}
	return os.MkdirAll(dir, 0o700)
}

// removeTree removes a folder, also where somebody took the right to do so away.
func removeTree(dir string) error {
	if err := os.RemoveAll(dir); err == nil {
		return nil
	}
	_ = filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
		if e != nil && e.IsDir() {
			_ = os.Chmod(path, 0o700)
		}
		return nil
	})
	return os.RemoveAll(dir)
}
