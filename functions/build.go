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
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/penstock-gateway/penstock/functions/contract"
	"github.com/penstock-gateway/penstock/functions/sandbox"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

const (
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
//
// What comes out of a build is copied once more, to where the build never could write,
// so that nothing that it has left can change it, and nothing in it is more than files.
type builder struct {
	root                     *os.Root
	log                      *slog.Logger
	workshop                 *workshop
	builds, packages, layers *cacheStore
	// homes are the caches of functions' own builds, one for each function: what one
	// puts there no other reads.
	homes string
	// golang are the settings of the Go tool, goSeeds what caches of its builds begin
	// with.
	golang  func() settings
	goSeeds *goSeeds
	ctx     context.Context
	cancel  context.CancelFunc
}

func newBuilder(root *os.Root, c Config, logs *logbook) *builder {
	// Builds and installations share a turn; packages are small and do not wait.
	turn := make(chan struct{}, 1)
	b := &builder{
		root: root, log: c.Logger,
		workshop: &workshop{machine: c.machine, limits: c.Build.withDefaults(), scratch: scratchDir(c), logs: logs},
		builds:   newCacheStore(filepath.Join(c.CacheDir, "builds"), turn),
		layers:   newCacheStore(filepath.Join(c.CacheDir, "layers"), turn),
		packages: newCacheStore(filepath.Join(c.CacheDir, "packages"), make(chan struct{}, 1)),
		homes:    filepath.Join(c.CacheDir, "homes"),
	}
	b.goSeeds = &goSeeds{find: func() ([]goSeed, error) { return findGoSeed(b.ctx, c.CacheDir, b.golang()) }}
	b.packages.forgets = true
	b.ctx, b.cancel = context.WithCancel(context.Background())
	return b
}

func (b *builder) stop() { b.cancel() }

// bound is a context that ends with the builder, too.
func (b *builder) bound(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(b.ctx, cancel)
	return ctx, func() { stop(); cancel() }
}

// build returns the folder of the built source and what gives it back. The result is
// the function's own, even where another one builds the same: what its earlier builds
// have cached may have had a part in it.
func (b *builder) build(ctx context.Context, f *pb.Function, source string, level sandbox.Level) (dir string, release func(), err error) {
	ctx, cancel := b.bound(ctx)
	defer cancel()
	src, err := os.OpenRoot(source)
	if err != nil {
		return "", nil, err
	}
	defer src.Close()
	owner, _, _ := strings.Cut(f.GetName(), "@")
	command := contract.Build(f)
	name, err := contentHash(src, append([]string{owner}, command...), f.GetEnv())
	if err != nil {
		return "", nil, fmt.Errorf("the source: %w", err)
	}
	return b.builds.get(ctx, name, func(ctx context.Context, dir string) error {
		if err := copyTree(src, dir); err != nil {
			return fmt.Errorf("copy the source: %w", err)
		}
		home, err := b.home(owner)
		if err != nil {
			return err
		}
		if _, err := src.Stat("go.mod"); err == nil {
			if err := b.goSeeds.plant(filepath.Join(home, "go-build")); err != nil {
				b.log.Warn("this build compiles the standard library of Go itself", "function", f.GetName(), "error", err)
			}
		}
		b.workshop.logs.say(f.GetName(), "", "it is being built: "+strings.Join(command, " "))
		began := time.Now()
		s := b.golang()
		err = b.make(ctx, dir, job{
			function: f.GetName(), what: "build", command: command, dir: dir, read: s.read, allow: s.allow, home: home, level: level,
		}, s.env, f.GetEnv())
		if err == nil {
			b.workshop.logs.say(f.GetName(), "", fmt.Sprintf("it is built, in %.1f s", time.Since(began).Seconds()))
		}
		return err
	})
}

// make runs a job that fills dir, and puts a copy of what it made in its place.
func (b *builder) make(ctx context.Context, dir string, j job, settings, own map[string]string) error {
	began := time.Now()
	work := filepath.Dir(dir)
	j.temporary = filepath.Join(work, "tmp")
	if j.home == "" {
		j.home = filepath.Join(work, "home")
		defer func() { _ = removeTree(j.home) }()
	}
	for _, d := range []string{j.home, j.temporary} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return fmt.Errorf("functions cache: %w", err)
		}
	}
	j.write = []string{dir, j.home, j.temporary}
	j.env = b.workshop.environment(j.home, j.temporary, settings, own)
	err := b.workshop.run(ctx, j)
	_ = removeTree(j.temporary)
	if err != nil {
		return err
	}
	if err := b.workshop.replaceByCopy(dir, j.read); err != nil {
		return fmt.Errorf("what the %s made: %w", j.what, err)
	}
	b.log.Info("built", "command", j.title(), "seconds", time.Since(began).Seconds())
	return nil
}

// home is the folder for the caches of a function's builds. Those of the functions
// that were built longest ago go.
func (b *builder) home(function string) (string, error) {
	sum := sha256.Sum256([]byte(function))
	home := filepath.Join(b.homes, hex.EncodeToString(sum[:16]))
	if err := os.MkdirAll(home, 0o700); err != nil {
		return "", fmt.Errorf("functions cache: %w", err)
	}
	now := time.Now()
	_ = os.Chtimes(home, now, now)
	entries, err := os.ReadDir(b.homes)
	if err != nil {
		return "", fmt.Errorf("functions cache: %w", err)
	}
	type aged struct {
		path string
		used time.Time
	}
	var all []aged
	for _, e := range entries {
		if info, err := e.Info(); err == nil {
			all = append(all, aged{filepath.Join(b.homes, e.Name()), info.ModTime()})
		}
	}
	slices.SortFunc(all, func(x, y aged) int { return y.used.Compare(x.used) })
	for _, old := range all[min(keepIdle, len(all)):] {
		_ = removeTree(old.path)
	}
	// One that its last build has filled would leave no room for the next.
	if b.workshop.checkDisk([]string{home}) != nil {
		if err := empty(home); err != nil {
			return "", fmt.Errorf("functions cache: %w", err)
		}
	}
	return home, nil
}

// walk calls f for all of a source but version control, in a fixed order.
func walk(src *os.Root, f func(name string, info fs.FileInfo) error) error {
	return walkWithin(src, maxSourceFiles, maxSourceBytes, f)
}

// walkWithin is walk with other bounds.
func walkWithin(src *os.Root, maxFiles int, maxBytes int64, f func(name string, info fs.FileInfo) error) error {
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
		if files++; files > maxFiles {
			return fmt.Errorf("it has more than %d files", maxFiles)
		}
		if info.Mode().IsRegular() {
			if size += info.Size(); size > maxBytes {
				return fmt.Errorf("it has more than %d MiB", maxBytes>>20)
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
		return copyFile(src, name, to, info)
	})
}

// replaceByCopy puts a copy in the place of a folder that a build has written. Only
// files, folders and links come over, without any special right; a link may lead to
// what is in it, or to what instances see anyway (seen).
func (w *workshop) replaceByCopy(dir string, seen []string) error {
	src, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer src.Close()
	fresh := dir + ".new"
	if err := empty(fresh); err != nil {
		return err
	}
	if err := os.Chmod(fresh, 0o755); err != nil {
		return err
	}
	allowed := append(sandbox.SystemPaths(), seen...)
	var folders []fs.FileInfo
	var names []string
	err = walkWithin(src, w.limits.Files, w.limits.DiskBytes, func(name string, info fs.FileInfo) error {
		// A build may have shut what it made, also for the runner when that is not root.
		if mode := info.Mode(); mode.IsDir() && mode.Perm()&0o700 != 0o700 || mode.IsRegular() && mode.Perm()&0o400 == 0 {
			if err := src.Chmod(filepath.FromSlash(name), mode.Perm()|0o700); err != nil {
				return err
			}
		}
		if info.IsDir() {
			names, folders = append(names, name), append(folders, info)
		}
		return copyEntry(src, fresh, name, info, func(target string) bool {
			return slices.ContainsFunc(allowed, func(a string) bool {
				a = filepath.Clean(a)
				return target == a || strings.HasPrefix(target, a+string(filepath.Separator))
			})
		})
	})
	if err != nil {
		_ = removeTree(fresh)
		return err
	}
	for i, info := range folders {
		_ = os.Chtimes(filepath.Join(fresh, filepath.FromSlash(names[i])), info.ModTime(), info.ModTime())
	}
	if err := removeTree(dir); err != nil {
		return err
	}
	return os.Rename(fresh, dir)
}

// copyEntry copies one entry of a product, with its time, which compiled Python goes by.
func copyEntry(src *os.Root, dir, name string, info fs.FileInfo, outside func(target string) bool) error {
	to := filepath.Join(dir, filepath.FromSlash(path.Clean(name)))
	switch mode := info.Mode(); {
	case mode.IsDir():
		return os.MkdirAll(to, 0o755)
	case mode&fs.ModeSymlink != 0:
		target, err := src.Readlink(filepath.FromSlash(name))
		if err != nil {
			return err
		}
		if filepath.IsAbs(target) && outside(filepath.Clean(target)) {
			return os.Symlink(target, to)
		}
		if target, err = link(src, name); err != nil {
			return err
		}
		return os.Symlink(target, to)
	case !mode.IsRegular():
		return fmt.Errorf("%s is neither file nor folder nor link", name)
	}
	if err := copyFile(src, name, to, info); err != nil {
		return err
	}
	return os.Chtimes(to, info.ModTime(), info.ModTime())
}

// copyFile copies one file of a source; of its mode only the rights of ordinary files
// come over.
func copyFile(src *os.Root, name, to string, info fs.FileInfo) error {
	from, err := src.Open(filepath.FromSlash(name))
	if err != nil {
		return err
	}
	defer from.Close()
	f, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY|os.O_EXCL, info.Mode().Perm()&0o755|0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, from)
	return errors.Join(err, f.Close())
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
