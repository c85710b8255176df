package functions

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/penstock-gateway/penstock/functions/contract"
	"github.com/penstock-gateway/penstock/functions/sandbox"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
	"github.com/penstock-gateway/penstock/internal/launch"
)

const (
	// maxManifest bounds each file that names dependencies.
	maxManifest = 16 << 20
)

// layer is where installed dependencies are found.
type layer struct {
	// path is a folder for PYTHONPATH; "": none.
	path string
	// dir is a copy of the source with node_modules, which leads to modules; "": the
	// source itself.
	dir, modules string
}

// hold keeps what gives a part of the cache back.
type hold = func(dir string, release func(), err error) (string, error)

// layer installs the dependencies that a source names, once for the files that name
// them and the runtime. A source that brings packages along gets none.
func (m *manager) layer(ctx context.Context, f *pb.Function, level sandbox.Level, dir string, keep hold) (layer, error) {
	if f.GetDependencies() == pb.DependencyMode_DEPENDENCY_MODE_NONE {
		return layer{}, nil
	}
	switch contract.LanguageOf(f) {
	case contract.Python:
		path, err := m.pythonLayer(ctx, f, level, dir, keep)
		return layer{path: path}, err
	case contract.Node:
		return m.nodeLayer(ctx, f, level, dir, keep)
	}
	return layer{}, nil
}

// installation is a layer to be made.
type installation struct {
	name    string
	command []string
	// shown is the command in messages.
	shown string
	// files that name the dependencies are all that it sees of the source.
	files map[string][]byte
	// target is the option of the command that names the folder of the layer; "": the
	// layer is the folder that the command runs in.
	target   string
	settings settings
	read     []string
}

// install makes a layer, with a line in the function's log before and after. Layers are
// shared by functions, so nothing of one but the files that name the dependencies has a
// part in them: not its source, its environment or what its builds have cached.
func (m *manager) install(ctx context.Context, f *pb.Function, level sandbox.Level, i installation) (string, func(), error) {
	ctx, cancel := m.builder.bound(ctx)
	defer cancel()
	return m.builder.layers.get(ctx, i.name, func(ctx context.Context, dir string) error {
		m.logs.say(f.GetName(), "", "dependencies are being installed: "+i.shown)
		began := time.Now()
		work, command := dir, slices.Clone(i.command)
		if i.target != "" {
			work = filepath.Join(filepath.Dir(dir), "manifest")
			command = append(command, i.target, dir)
		}
		for name, b := range i.files {
			to := filepath.Join(work, filepath.FromSlash(name))
			if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
				return err
			}
			if err := os.WriteFile(to, b, 0o644); err != nil {
				return err
			}
		}
		err := m.builder.make(ctx, dir, job{
			function: f.GetName(), what: "install", command: command, shown: i.shown, dir: work, allow: i.settings.allow, read: append(slices.Concat(i.read, i.settings.read), work), level: level,
		}, i.settings.env, nil)
		if err != nil {
			return err
		}
		m.logs.say(f.GetName(), "", fmt.Sprintf("dependencies are installed, in %.1f s", time.Since(began).Seconds()))
		return nil
	})
}

// pythonLayer is the folder of the packages of requirements.txt; "" when there are
// none to install.
func (m *manager) pythonLayer(ctx context.Context, f *pb.Function, level sandbox.Level, dir string, keep hold) (string, error) {
	src, err := os.OpenRoot(dir)
	if err != nil {
		return "", err
	}
	defer src.Close()
	if vendored, _ := fs.Glob(src.FS(), "*.dist-info"); len(vendored) > 0 {
		return "", nil // as `pip install --target .` leaves them
	}
	if _, err := src.Stat("requirements.txt"); errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	r := requirements{files: map[string][]byte{}}
	if err := r.read(src, "requirements.txt"); err != nil {
		return "", err
	}
	if !slices.ContainsFunc(r.names, func(n string) bool { return !brought[n] }) {
		return "", nil
	}
	python := m.interpreters.python().path
	version, err := m.versionOf(ctx, python, "-c", "import sys,platform;print(sys.version,platform.platform(),sys.implementation.cache_tag)")
	if err != nil {
		return "", err
	}
	// Isolated (-I), or modules of the source would go before pip's own.
	command := []string{python, "-I", "-m", "pip", "install", "--no-input", "--disable-pip-version-check", "--no-warn-script-location", "--progress-bar", "off", "--root-user-action", "ignore", "-r", "requirements.txt"}
	return keep(m.install(ctx, f, level, installation{
		name: layerName("python", version, r.files), command: command, shown: "pip install -r requirements.txt", files: r.files, target: "--target",
		settings: m.sources.pip(), read: m.interpreters.python().read,
	}))
}

// brought are packages that the runner has itself, in names as PEP 503 normalizes
// them: a source that names only these needs no layer.
var brought = map[string]bool{"awslambdaric": true, "functions-framework": true, "@google-cloud/functions-framework": true}

// readManifest reads a file of a source.
func readManifest(src *os.Root, name string) ([]byte, error) {
	info, err := src.Stat(filepath.FromSlash(name))
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > maxManifest {
		return nil, fmt.Errorf("%s is not a file of at most %d MiB", name, maxManifest>>20)
	}
	return src.ReadFile(filepath.FromSlash(name))
}

// nodeLayer is a copy of the source in which node_modules leads to the packages that
// package.json names; "" when there are none to install.
func (m *manager) nodeLayer(ctx context.Context, f *pb.Function, level sandbox.Level, dir string, keep hold) (layer, error) {
	src, err := os.OpenRoot(dir)
	if err != nil {
		return layer{}, err
	}
	defer src.Close()
	if _, err := src.Stat("node_modules"); err == nil {
		return layer{}, nil
	}
	files, command, err := nodeManifest(src)
	if err != nil || files == nil {
		return layer{}, err
	}
	version, err := m.versionOf(ctx, m.interpreters.node().path, "-p", "process.version+process.arch+process.platform")
	if err != nil {
		return layer{}, err
	}
	modules, err := keep(m.install(ctx, f, level, installation{
		name: layerName("node", version, files), command: command, shown: strings.Join(command[:2], " "), files: files, settings: m.sources.npm(), read: m.interpreters.node().read,
	}))
	if err != nil {
		return layer{}, err
	}
	name, err := contentHash(src, []string{"node_modules", modules}, nil)
	if err != nil {
		return layer{}, err
	}
	copied, err := keep(m.builder.builds.get(ctx, name, func(_ context.Context, to string) error {
		if err := copyTree(src, to); err != nil {
			return fmt.Errorf("copy the source: %w", err)
		}
		return os.Symlink(filepath.Join(modules, "node_modules"), filepath.Join(to, "node_modules"))
	}))
	return layer{dir: copied, modules: modules}, err
}

// nodeManifest are the files that npm reads, and its command; nil when there is
// nothing to install.
func nodeManifest(src *os.Root) (files map[string][]byte, command []string, err error) {
	b, err := readManifest(src, "package.json")
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, nil
	} else if err != nil {
		return nil, nil, err
	}
	var pkg struct {
		Dependencies, OptionalDependencies map[string]string
	}
	if err := json.Unmarshal(b, &pkg); err != nil {
		return nil, nil, fmt.Errorf("package.json: %w", err)
	}
	all := map[string]string{}
	maps.Copy(all, pkg.Dependencies)
	maps.Copy(all, pkg.OptionalDependencies)
	needed := false
	for _, name := range slices.Sorted(maps.Keys(all)) {
		from := all[name]
		if strings.HasPrefix(from, "file:") || strings.HasPrefix(from, "link:") || strings.HasPrefix(from, "workspace:") ||
			from != "" && strings.ContainsRune("./~", rune(from[0])) {
			return nil, nil, fmt.Errorf("package.json: dependency %q is %q, a folder, which only a registry can be the source of here: put node_modules into the source", name, from)
		}
		needed = needed || !brought[name]
	}
	if !needed {
		return nil, nil, nil
	}
	files = map[string][]byte{"package.json": b}
	command = []string{"npm", "install", "--no-package-lock", "--omit=dev", "--no-audit", "--no-fund", "--no-update-notifier"}
	for _, name := range []string{"package-lock.json", "npm-shrinkwrap.json", ".npmrc"} {
		b, err := readManifest(src, name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		} else if err != nil {
			return nil, nil, err
		}
		files[name] = b
		if name != ".npmrc" {
			command = []string{"npm", "ci", "--omit=dev", "--no-audit", "--no-fund", "--no-update-notifier"}
		}
	}
	return files, command, nil
}

// versionOf is what a runtime says of itself.
func (m *manager) versionOf(ctx context.Context, program string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, args...)
	out := &tailBuffer{max: buildTail}
	cmd.Stdout, cmd.Stderr, cmd.WaitDelay = out, out, time.Second
	if err := launch.Run(cmd); err != nil {
		return "", fmt.Errorf("ask %s for its version: %w: %s", program, err, out)
	}
	return out.String(), nil
}

// layerName is the hash of what a layer is made of.
func layerName(kind, version string, files map[string][]byte) string {
	h := sha256.New()
	fmt.Fprintf(h, "penstock layer 1\n%q %q %q %q\n", kind, version, runtime.GOOS, runtime.GOARCH)
	for _, name := range slices.Sorted(maps.Keys(files)) {
		fmt.Fprintf(h, "%q %d\n", name, len(files[name]))
		h.Write(files[name])
	}
	return hex.EncodeToString(h.Sum(nil))[:32]
}
