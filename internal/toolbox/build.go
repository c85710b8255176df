package toolbox

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"time"

	"github.com/penstock-gateway/penstock/internal/launch"
)

// errNoGo is the error of tools that are built, where there is no Go.
var errNoGo = errors.New("go is not on PATH")

// buildGo builds a package of the module in dir, at low priority; ending ctx stops it.
func buildGo(ctx context.Context, o Options, name, dir, to, pkg string) error {
	goTool, err := exec.LookPath("go")
	if err != nil {
		return errNoGo
	}
	o.say("%s: building from source, a few minutes the first time", name)
	cmd := exec.CommandContext(ctx, goTool, "build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w", "-o", to, pkg)
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
