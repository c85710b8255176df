// Command firststart is what `make up` runs first: it is compiled in seconds, says
// what is done and how long it takes, looks whether the ports are free, and then
// builds Penstock while Envoy is fetched. Its arguments are those of `penstock up`,
// which takes its place.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/penstock-gateway/penstock/internal/flock"
	"github.com/penstock-gateway/penstock/internal/ports"
	"github.com/penstock-gateway/penstock/internal/toolbox"
)

const binary = "bin/penstock"

func main() {
	args := os.Args[1:]
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := prepare(ctx, args, os.Stderr)
	stop()
	if err == nil {
		err = syscall.Exec(binary, append([]string{binary, "up"}, args...), os.Environ())
	}
	fmt.Fprintln(os.Stderr, "error:", err)
	os.Exit(1)
}

// prepare returns when Penstock can be started with args.
func prepare(ctx context.Context, args []string, w io.Writer) error {
	// Of an `up` that runs, the ports are taken, and Penstock itself says who it is.
	if settings, _ := os.ReadFile("penstock.yaml"); !running(dataDir(args, string(settings))) {
		if err := ports.Check(ctx, wants(args, string(settings))); err != nil {
			return err
		}
	}
	out := &lines{w: w, begin: time.Now()}
	var tools sync.WaitGroup
	var fetch error
	if !given(args, "envoy-path") {
		tools.Go(func() {
			if _, err := toolbox.Envoy(ctx, toolbox.Options{Dir: value(args, "tools-dir"), Progress: out}); err != nil {
				fetch = fmt.Errorf("fetch Envoy: %w", err)
			}
		})
	}
	err := build(ctx, out)
	tools.Wait()
	return errors.Join(err, fetch)
}

// lines writes each line with the seconds passed.
type lines struct {
	mu    sync.Mutex
	w     io.Writer
	begin time.Time
}

// Write implements io.Writer; each call is one line.
func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	_, err := fmt.Fprintf(l.w, "%4.0f s  %s", time.Since(l.begin).Seconds(), b)
	return len(b), err
}

func (l *lines) say(format string, a ...any) { fmt.Fprintf(l, format+"\n", a...) }

// value is that of a flag on the command line; "" when it is not there.
func value(args []string, flag string) string {
	v := ""
	for i, a := range args {
		switch {
		case a == "--"+flag && i+1 < len(args):
			v = args[i+1]
		case strings.HasPrefix(a, "--"+flag+"="):
			v = strings.TrimPrefix(a, "--"+flag+"=")
		}
	}
	return v
}

func given(args []string, flag string) bool {
	return slices.ContainsFunc(args, func(a string) bool { return a == "--"+flag || strings.HasPrefix(a, "--"+flag+"=") })
}

// setting is an entry of penstock.yaml on a line of its own. `penstock up` reads the
// file; this is only an early look.
func setting(settings, name string) string {
	m := regexp.MustCompile(`(?m)^` + name + `:\s*["']?([^\s"'#]+)`).FindStringSubmatch(settings)
	if m == nil {
		return ""
	}
	return m[1]
}

// wants are the addresses that `penstock up` will listen on.
func wants(args []string, settings string) []ports.Want {
	var out []ports.Want
	for _, flag := range slices.Sorted(maps.Keys(ports.Defaults)) {
		address := ports.Defaults[flag]
		for _, v := range []string{setting(settings, flag), value(args, flag)} {
			if v != "" {
				address = v
			}
		}
		out = append(out, ports.Want{Flag: flag, Address: address})
	}
	return out
}

func dataDir(args []string, settings string) string {
	for _, v := range []string{value(args, "data-dir"), setting(settings, "data-dir")} {
		if v != "" {
			return v
		}
	}
	return "./.penstock"
}

// running reports whether a `penstock up` holds the lock of a data folder.
func running(dataDir string) bool {
	f, err := os.Open(filepath.Join(dataDir, "run", "lock"))
	if err != nil {
		return false
	}
	defer func() { _ = flock.Close(f) }()
	return errors.Is(flock.Take(f), flock.ErrLocked)
}
