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
	"time"

	"github.com/penstock-gateway/penstock/internal/launch"
)

const (
	buildTimeout = 15 * time.Minute
	// Limits of a source that is copied for a build.
	maxSourceFiles = 100_000
	maxSourceBytes = 1 << 30
	// buildTail is how much of the output of a build is kept.
	buildTail = 4 << 10
)

// builder makes what instances run in out of what functions name: built sources,
// unpacked packages and layers of dependencies, each once per content. A source is
// copied into the cache and built there, so that it stays clean and that instances
// of the version before keep their files.
type builder struct {
	root                     *os.Root
	log                      *slog.Logger
	builds, packages, layers *cacheStore
	ctx                      context.Context
	cancel                   context.CancelFunc
}

func newBuilder(root *os.Root, cache string, log *slog.Logger) *builder {
	// Builds and installations share a turn; packages are small and do not wait.
	turn := make(chan struct{}, 1)
	b := &builder{
		root: root, log: log,
		builds:   newCacheStore(filepath.Join(cache, "builds"), turn),
		layers:   newCacheStore(filepath.Join(cache, "layers"), turn),
		packages: newCacheStore(filepath.Join(cache, "packages"), make(chan struct{}, 1)),
	}
	b.packages.forgets = true
	b.ctx, b.cancel = context.WithCancel(context.Background())
	return b
}

func (b *builder) stop() { b.cancel() }

// bound is a context that ends with the builder, too, and after buildTimeout.
func (b *builder) bound(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithTimeout(ctx, buildTimeout)
	stop := context.AfterFunc(b.ctx, cancel)
	return ctx, func() { stop(); cancel() }
}

// build returns the folder of the built source and what gives it back.
func (b *builder) build(ctx context.Context, source string, command []string, env map[string]string) (dir string, release func(), err error) {
	ctx, cancel := b.bound(ctx)
	defer cancel()
	src, err := os.OpenRoot(source)
	if err != nil {
		return "", nil, err
	}
	defer src.Close()
	name, err := contentHash(src, command, env)
	if err != nil {
		return "", nil, fmt.Errorf("the source: %w", err)
	}
	return b.builds.get(ctx, name, func(ctx context.Context, dir string) error {
		if err := copyTree(src, dir); err != nil {
			return fmt.Errorf("copy the source: %w", err)
		}
		return b.run(ctx, "build", dir, buildEnvironment(env), command)
	})
}

// run runs a command of a build; its error ends with the last lines of its output.
func (b *builder) run(ctx context.Context, what, dir string, env, command []string) error {
	began := time.Now()
	cmd := exec.CommandContext(ctx, command[0], command[1:]...)
	out := &tailBuffer{max: buildTail}
	cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr, cmd.WaitDelay = dir, env, out, out, 5*time.Second
	if err := launch.Run(cmd); err != nil {
		if ctx.Err() != nil {
			err = fmt.Errorf("it was stopped after %s", time.Since(began).Round(time.Second))
		}
		return fmt.Errorf("%s %q failed: %w; last output:\n%s", what, strings.Join(command, " "), err, out)
	}
	b.log.Info("built", "command", strings.Join(command, " "), "seconds", time.Since(began).Seconds())
	return nil
}

// buildVariables may pass into a build, which needs to find its dependencies, as
// may the settings of pip and npm; nothing else of the runner's environment does.
var buildVariables = []string{
	"PATH", "HOME", "TMPDIR",
	"GOPROXY", "GONOPROXY", "GOSUMDB", "GONOSUMDB", "GOPRIVATE", "GOTOOLCHAIN", "GOCACHE", "GOMODCACHE", "GOPATH", "GOROOT",
	"HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy", "SSL_CERT_FILE", "SSL_CERT_DIR",
	"REQUESTS_CA_BUNDLE", "NODE_EXTRA_CA_CERTS",
}

var buildPrefixes = []string{"PIP_", "NPM_CONFIG_", "npm_config_"}

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
	for _, v := range os.Environ() {
		k, v, _ := strings.Cut(v, "=")
		if slices.ContainsFunc(buildPrefixes, func(p string) bool { return strings.HasPrefix(k, p) }) {
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
