package toolbox

import (
	"bytes"
	"context"
	"crypto/sha256"
	_ "embed" // of what Jaeger is built from
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/penstock-gateway/penstock/internal/launch"
)

// jaegerVersion is for messages; jaeger.mod pins it.
const jaegerVersion = "1.62.0"

const jaegerPackage = "github.com/jaegertracing/jaeger/cmd/all-in-one"

// What Jaeger is built from: copies of go.mod and go.sum of the module tools/jaeger,
// whose files cannot be embedded from outside it. A test compares them, and its
// -update copies them.
var (
	//go:embed jaeger.mod
	jaegerMod []byte
	//go:embed jaeger.sum
	jaegerSum []byte
)

// Jaeger returns the path of Jaeger all-in-one, built with the Go on PATH from
// modules that are pinned by hash. The first build takes minutes (about 320 s of
// CPU, 2 GB of memory), at low priority; ending ctx stops it.
func Jaeger(ctx context.Context, o Options) (string, error) {
	key := sha256.Sum256(jaegerSum)
	name := "jaeger-" + jaegerVersion + "-" + hex.EncodeToString(key[:4])
	return o.install(ctx, name, "jaeger", func(ctx context.Context, tmp string) error {
		module := filepath.Join(tmp, "module")
		if err := os.Mkdir(module, 0o755); err != nil {
			return err
		}
		for file, content := range map[string][]byte{"go.mod": jaegerMod, "go.sum": jaegerSum} {
			if err := os.WriteFile(filepath.Join(module, file), content, 0o644); err != nil {
				return err
			}
		}
		if err := buildJaeger(ctx, o, name, module, filepath.Join(tmp, "jaeger")); err != nil {
			return err
		}
		return os.RemoveAll(module)
	})
}

func buildJaeger(ctx context.Context, o Options, name, dir, to string) error {
	goTool, err := exec.LookPath("go")
	if err != nil {
		return errors.New("go is not on PATH: Jaeger is built from source; install Go, send traces to a collector of your own (penstock up --otlp-to HOST:PORT), or do without them (--no-jaeger)")
	}
	o.say("%s: building from source, a few minutes the first time", name)
	cmd := exec.CommandContext(ctx, goTool, "build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w", "-o", to, jaegerPackage)
	cmd.Dir = dir
	// No C compiler is asked for, and a workspace file above must not interfere.
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off")
	cmd.Cancel = func() error { return launch.Signal(cmd, syscall.SIGKILL) }
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := launch.Start(cmd); err != nil {
		return err
	}
	// The whole group, so that the compilers that it starts inherit it. Failing
	// to lower the priority is no reason not to build.
	_ = syscall.Setpriority(syscall.PRIO_PGRP, cmd.Process.Pid, 15)
	stop := o.every(30*time.Second, name+": still building")
	err = cmd.Wait()
	stop()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err != nil {
		return fmt.Errorf("go build failed (%w); it needs a Go module proxy or a filled module cache, and about 2 GB of memory:\n%s", err, lastLines(out.Bytes(), 8))
	}
	return nil
}

// every says text with the seconds passed until stop is called.
func (o Options) every(d time.Duration, text string) (stop func()) {
	begin := time.Now()
	done := make(chan struct{})
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		tick := time.NewTicker(d)
		defer tick.Stop()
		for {
			select {
			case <-done:
				return
			case <-tick.C:
				o.say("%s (%.0f s)", text, time.Since(begin).Seconds())
			}
		}
	}()
	return func() { close(done); <-ended }
}
