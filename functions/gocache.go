package functions

import (
	"context"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/penstock-gateway/penstock/internal/launch"
)

// goStandard are the packages of the standard library, with all that they import, that
// a function written in Go commonly needs.
var goStandard = []string{
	"net/http", "net/http/httputil", "encoding/json", "encoding/xml", "encoding/csv", "encoding/hex", "html/template", "text/template", "database/sql",
	"log/slog", "os/signal", "os/exec", "regexp", "compress/gzip", "archive/zip", "crypto/ecdsa", "crypto/ed25519", "crypto/hmac", "embed", "flag",
	"math/big", "errors", "iter", "maps", "slices", "sync/atomic", "testing/iotest",
}

// goSeedTime bounds the compilation of goStandard where nobody has done it yet.
const goSeedTime = 10 * time.Minute

// goSeeds finds, once, what caches of builds begin with.
type goSeeds struct {
	find func() ([]goSeed, error)
	mu   sync.Mutex
	// found is nil until it was looked for.
	found []goSeed
}

// plant begins a build cache with the standard library, when there is none yet. The Go
// tool removes from the cache of the runner's user what has not been used for days, and
// people empty it: then the library is compiled again. Without it builds take longer.
func (g *goSeeds) plant(cache string) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	var err error
	for range 2 {
		if g.found == nil {
			if g.found, err = g.find(); err != nil {
				g.found = []goSeed{} // as it is, for all builds to come
				return err
			}
		}
		if err = plantGo(cache, g.found); !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		g.found = nil
		if err := removeTree(cache); err != nil {
			return err
		}
	}
	return err
}

// goSeed is a file of the Go tool's build cache of the runner's own user.
type goSeed struct{ path, name string }

// findGoSeed compiles the standard library with the settings of builds, or finds it
// compiled, and returns the files of the cache that hold it. This runs no code of a
// function. A new cache of a function's builds begins with a copy of them: to compile
// them again for each function would take most of a minute.
//
// The Go tool keeps what an action made in a file named by the hash of what went into
// it, with -a, which names the file of the output, with -d; the first 15 bytes of that
// hash are in the build id (cmd/internal/buildid).
func findGoSeed(ctx context.Context, scratch string, s settings) ([]goSeed, error) {
	ctx, cancel := context.WithTimeout(ctx, goSeedTime)
	defer cancel()
	run := func(args ...string) (string, error) {
		cmd := exec.CommandContext(ctx, "go", args...)
		var out strings.Builder
		cmd.Dir, cmd.Stdout, cmd.WaitDelay = scratch, &out, time.Second
		cmd.Env = os.Environ()
		for k, v := range s.env {
			cmd.Env = append(cmd.Env, k+"="+v)
		}
		cmd.Env = append(cmd.Env, "GOWORK=off", "GO111MODULE=on")
		err := launch.Run(cmd)
		return out.String(), err
	}
	cache, err := run("env", "GOCACHE")
	if err != nil {
		return nil, err
	}
	cache = strings.TrimSpace(cache)
	list, err := run(append([]string{"list", "-export", "-deps", "-f", "{{.BuildID}} {{.Export}}"}, goStandard...)...)
	if err != nil {
		return nil, err
	}
	var out []goSeed
	for line := range strings.Lines(list) {
		id, export, _ := strings.Cut(strings.TrimSpace(line), " ")
		action, _, _ := strings.Cut(id, "/")
		hash, err := base64.RawURLEncoding.DecodeString(action)
		if err != nil || len(hash) == 0 || export == "" {
			continue // package unsafe is not compiled
		}
		name := hex.EncodeToString(hash)
		found, err := filepath.Glob(filepath.Join(cache, name[:2], name+"*-a"))
		if err != nil || len(found) != 1 {
			continue
		}
		for _, path := range []string{found[0], export} {
			if rel, err := filepath.Rel(cache, path); err == nil && filepath.IsLocal(rel) {
				out = append(out, goSeed{path, rel})
			}
		}
	}
	return out, nil
}

// plantGo begins a build cache with the standard library, when there is none yet.
func plantGo(cache string, seeds []goSeed) error {
	if _, err := os.Stat(cache); err == nil {
		return nil
	}
	for _, s := range seeds {
		to := filepath.Join(cache, s.name)
		if err := os.MkdirAll(filepath.Dir(to), 0o700); err != nil {
			return err
		}
		if err := copyPlain(s.path, to); err != nil {
			return err
		}
	}
	return nil
}

// copyPlain copies a file of the runner's own.
func copyPlain(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}
