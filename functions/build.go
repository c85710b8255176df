package functions

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/penstock-gateway/penstock/internal/launch"
)

const (
	buildTimeout = 15 * time.Minute
	// Limits of a source that is copied for a build.
	maxSourceFiles = 100_000
	maxSourceBytes = 1 << 30
	// keepBuilds is how many finished builds stay besides those in use.
	keepBuilds = 20
	// buildTail is how much of the output of a build is kept.
	buildTail = 4 << 10
	// A build that failed is tried again after such a time when its source has not
	// changed, for the network may have been the cause.
	retryBuild, retryBuildMost = 30 * time.Second, 10 * time.Minute
)

// builder builds sources, once per content. A source is copied into the cache and
// built there, so that it stays clean and that instances of the version before
// keep their files. Layout: {cache}/builds/{hash}/src and, when finished, /done.
type builder struct {
	root *os.Root
	dir  string
	log  *slog.Logger
	// one build at a time: they take all cores anyway.
	turn   chan struct{}
	ctx    context.Context
	cancel context.CancelFunc

	mu       sync.Mutex
	used     map[string]int
	failures map[string]failedBuild
}

type failedBuild struct {
	err   error
	again time.Time
	pause time.Duration
}

func newBuilder(root *os.Root, cache string, log *slog.Logger) *builder {
	b := &builder{
		root: root, dir: filepath.Join(cache, "builds"), log: log, turn: make(chan struct{}, 1),
		used: map[string]int{}, failures: map[string]failedBuild{},
	}
	b.ctx, b.cancel = context.WithCancel(context.Background())
	return b
}

func (b *builder) stop() { b.cancel() }

// build returns the folder of the built source and the name that release takes.
func (b *builder) build(ctx context.Context, source string, command []string, env map[string]string) (name, dir string, err error) {
	ctx, cancel := context.WithTimeout(ctx, buildTimeout)
	defer cancel()
	defer context.AfterFunc(b.ctx, cancel)()
	src, err := b.root.OpenRoot(filepath.FromSlash(source))
	if err != nil {
		return "", "", fmt.Errorf("source %q: %w", source, err)
	}
	defer src.Close()
	name, err = contentHash(src, command, env)
	if err != nil {
		return "", "", fmt.Errorf("source %q: %w", source, err)
	}
	select {
	case b.turn <- struct{}{}:
		defer func() { <-b.turn }()
	case <-ctx.Done():
		return "", "", ctx.Err()
	}
	home := filepath.Join(b.dir, name)
	dir = filepath.Join(home, "src")
	if _, err := os.Stat(filepath.Join(home, "done")); err != nil {
		if err := b.failed(name); err != nil {
			return "", "", err
		}
		err := b.make(ctx, src, home, command, env)
		if ctx.Err() == nil {
			b.note(name, err)
		}
		if err != nil {
			_ = os.RemoveAll(home)
			return "", "", err
		}
	}
	now := time.Now()
	_ = os.Chtimes(filepath.Join(home, "done"), now, now) // prune goes by the last use
	b.mu.Lock()
	b.used[name]++
	b.mu.Unlock()
	b.prune()
	return name, dir, nil
}

// release tells that a build is used once less.
func (b *builder) release(name string) {
	if name == "" {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.used[name]--; b.used[name] <= 0 {
		delete(b.used, name)
	}
}

// failed returns the error of a build that need not be tried again yet.
func (b *builder) failed(name string) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if f, ok := b.failures[name]; ok && time.Now().Before(f.again) {
		return f.err
	}
	return nil
}

func (b *builder) note(name string, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if err == nil {
		delete(b.failures, name)
		return
	}
	if len(b.failures) > 1000 {
		clear(b.failures)
	}
	pause := min(max(2*b.failures[name].pause, retryBuild), retryBuildMost)
	b.failures[name] = failedBuild{err: err, again: time.Now().Add(pause), pause: pause}
}

// make copies and builds.
func (b *builder) make(ctx context.Context, src *os.Root, home string, command []string, env map[string]string) error {
	if err := os.RemoveAll(home); err != nil { // what a killed runner left
		return err
	}
	dir := filepath.Join(home, "src")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("functions cache: %w", err)
	}
	if err := copyTree(src, dir); err != nil {
		return fmt.Errorf("copy the source: %w", err)
	}
	began := time.Now()
	cmd := exec.CommandContext(ctx, command[0], command[1:]...)
	out := &tailBuffer{max: buildTail}
	cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr, cmd.WaitDelay = dir, buildEnvironment(env), out, out, 5*time.Second
	if err := launch.Run(cmd); err != nil {
		if ctx.Err() != nil {
			err = fmt.Errorf("it was stopped after %s", time.Since(began).Round(time.Second))
		}
		return fmt.Errorf("build %q failed: %w; last output:\n%s", strings.Join(command, " "), err, out)
	}
	b.log.Info("built", "command", strings.Join(command, " "), "seconds", time.Since(began).Seconds())
	return os.WriteFile(filepath.Join(home, "done"), nil, 0o644)
}

// goVariables and the like may pass into a build, which needs to find its
// dependencies; nothing else of the runner's environment does.
var buildVariables = []string{
	"PATH", "HOME", "TMPDIR",
	"GOPROXY", "GONOPROXY", "GOSUMDB", "GONOSUMDB", "GOPRIVATE", "GOTOOLCHAIN", "GOCACHE", "GOMODCACHE", "GOPATH", "GOROOT",
	"HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy", "SSL_CERT_FILE", "SSL_CERT_DIR",
}

func buildEnvironment(function map[string]string) []string {
	env := map[string]string{
		"LANG": "C.UTF-8",
		// The copy is in no repository and in no workspace, even if the cache is.
		"GOFLAGS": "-buildvcs=false", "GOWORK": "off",
	}
	for _, k := range buildVariables {
		if v, ok := os.LookupEnv(k); ok {
			env[k] = v
		}
	}
	maps.Copy(env, function)
	var out []string
	for k, v := range env {
		out = append(out, k+"="+v)
	}
	return out
}

// prune removes the oldest builds that nobody uses.
func (b *builder) prune() {
	entries, _ := os.ReadDir(b.dir)
	type build struct {
		name string
		used time.Time
	}
	var idle []build
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, e := range entries {
		info, err := os.Stat(filepath.Join(b.dir, e.Name(), "done"))
		if err == nil && b.used[e.Name()] == 0 {
			idle = append(idle, build{e.Name(), info.ModTime()})
		}
	}
	slices.SortFunc(idle, func(x, y build) int { return y.used.Compare(x.used) })
	for _, x := range idle[min(keepBuilds, len(idle)):] {
		_ = os.RemoveAll(filepath.Join(b.dir, x.name))
	}
}

// walk calls f for all of a source but version control, in a fixed order.
func walk(src *os.Root, f func(name string, info fs.FileInfo) error) error {
	files, size := 0, int64(0)
	return fs.WalkDir(src.FS(), ".", func(name string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if e.Name() == ".git" {
			if e.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		if files++; files > maxSourceFiles {
			return fmt.Errorf("it has more than %d files", maxSourceFiles)
		}
		if info.Mode().IsRegular() {
			if size += info.Size(); size > maxSourceBytes {
				return fmt.Errorf("it has more than %d MiB", maxSourceBytes>>20)
			}
		}
		return f(name, info)
	})
}

// link is the target of a symbolic link that stays in the source.
func link(src *os.Root, name string) (string, error) {
	target, err := src.Readlink(filepath.FromSlash(name))
	if err != nil {
		return "", err
	}
	if filepath.IsAbs(target) || !filepath.IsLocal(filepath.Join(filepath.Dir(filepath.FromSlash(name)), target)) {
		return "", fmt.Errorf("the symbolic link %s leads out of it, to %s", name, target)
	}
	return target, nil
}

// contentHash is of all files of a source and of how it is built.
func contentHash(src *os.Root, command []string, env map[string]string) (string, error) {
	h := sha256.New()
	fmt.Fprintf(h, "penstock build 1\n%q\n", command)
	for _, k := range slices.Sorted(maps.Keys(env)) {
		fmt.Fprintf(h, "%q=%q\n", k, env[k])
	}
	err := walk(src, func(name string, info fs.FileInfo) error {
		switch mode := info.Mode(); {
		case mode.IsDir():
			fmt.Fprintf(h, "dir %q\n", name)
		case mode&fs.ModeSymlink != 0:
			target, err := link(src, name)
			if err != nil {
				return err
			}
			fmt.Fprintf(h, "link %q %q\n", name, target)
		case mode.IsRegular():
			fmt.Fprintf(h, "file %q %v %d\n", name, mode.Perm()&0o111 != 0, info.Size())
			f, err := src.Open(filepath.FromSlash(name))
			if err != nil {
				return err
			}
			defer f.Close()
			_, err = io.Copy(h, f)
			return err
		default:
			return fmt.Errorf("%s is neither file nor folder nor link", name)
		}
		return nil
	})
	return hex.EncodeToString(h.Sum(nil))[:32], err
}

// copyTree copies a source into an empty folder.
func copyTree(src *os.Root, dir string) error {
	return walk(src, func(name string, info fs.FileInfo) error {
		to := filepath.Join(dir, filepath.FromSlash(path.Clean(name)))
		switch mode := info.Mode(); {
		case mode.IsDir():
			return os.MkdirAll(to, 0o755)
		case mode&fs.ModeSymlink != 0:
			target, err := link(src, name)
			if err != nil {
				return err
			}
			return os.Symlink(target, to)
		}
		from, err := src.Open(filepath.FromSlash(name))
		if err != nil {
			return err
		}
		defer from.Close()
		f, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY|os.O_EXCL, info.Mode().Perm()|0o600)
		if err != nil {
			return err
		}
		_, err = io.Copy(f, from)
		return errors.Join(err, f.Close())
	})
}

// tailBuffer keeps the last bytes that are written to it.
type tailBuffer struct {
	max int
	b   []byte
}

// Write implements io.Writer.
func (t *tailBuffer) Write(p []byte) (int, error) {
	t.b = append(t.b, p[max(0, len(p)-t.max):]...)
	t.b = t.b[max(0, len(t.b)-t.max):]
	return len(p), nil
}

func (t *tailBuffer) String() string { return strings.TrimSpace(string(t.b)) }
