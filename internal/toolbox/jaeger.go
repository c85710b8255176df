package toolbox

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"bytes"

	"github.com/penstock-gateway/penstock/internal/launch"
)

// jaegerVersion is for messages; tools/jaeger/go.mod pins it.
const jaegerVersion = "1.62.0"

const jaegerPackage = "github.com/jaegertracing/jaeger/cmd/all-in-one"

// Jaeger returns the path of Jaeger all-in-one, built with the Go on PATH from the
// module tools/jaeger. The first build takes minutes (about 320 s of CPU, 2 GB of
// memory), at low priority; ending ctx stops it.
func Jaeger(ctx context.Context, o Options) (string, error) {
	root, err := RepoRoot()
	if err != nil {
		return "", fmt.Errorf("jaeger is built from tools/jaeger: %w", err)
	}
	dir := filepath.Join(root, "tools", "jaeger")
	sum, err := os.ReadFile(filepath.Join(dir, "go.sum"))
	if err != nil {
		return "", fmt.Errorf("jaeger is built from tools/jaeger: %w", err)
	}
	key := sha256.Sum256(sum)
	name := "jaeger-" + jaegerVersion + "-" + hex.EncodeToString(key[:4])
	return o.install(ctx, name, "jaeger", func(ctx context.Context, tmp string) error {
		return buildJaeger(ctx, o, name, dir, filepath.Join(tmp, "jaeger"))
	})
}

func buildJaeger(ctx context.Context, o Options, name, dir, to string) error {
	goTool, err := exec.LookPath("go")
	if err != nil {
		return errors.New("go is not on PATH: Jaeger is built from source; install Go, or run without traces (penstock up --no-jaeger)")
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
		return fmt.Errorf("go build in %s failed (%w); it needs a Go module proxy or a filled module cache, and about 2 GB of memory:\n%s", dir, err, lastLines(out.Bytes(), 8))
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
