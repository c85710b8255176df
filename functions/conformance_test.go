package functions_test

import (
	"context"
	"log/slog"
	"path/filepath"
	"testing"

	"github.com/penstock-gateway/penstock/functions"
	"github.com/penstock-gateway/penstock/functions/runnertest"
	"github.com/penstock-gateway/penstock/functions/sandbox"
)

// TestConformance: the runner of this machine does what every runner must.
func TestConformance(t *testing.T) {
	t.Run("ports", func(t *testing.T) { conforms(t, false) })
	t.Run("sockets", func(t *testing.T) { conforms(t, true) })
}

// conforms tests it with TCP ports or with Unix sockets for the instances.
func conforms(t *testing.T, sockets bool) {
	_, err := sandbox.Probe().Plan(sandbox.Policy{Level: sandbox.Sandbox, Scratch: t.TempDir()})
	runnertest.Conform(t, func(t *testing.T, p runnertest.Place) func() {
		ctx, cancel := context.WithCancel(context.Background())
		ended := make(chan error, 1)
		c := functions.Config{Name: p.Name, Root: p.Root, CacheDir: t.TempDir(), Conn: p.Conn, Logger: slog.New(slog.DiscardHandler)}
		if sockets {
			c.SocketDir = filepath.Join(c.CacheDir, "sockets")
		}
		go func() { ended <- functions.Run(ctx, c) }()
		return func() {
			cancel()
			if err := <-ended; err != nil {
				t.Errorf("Run: %v", err)
			}
		}
	}, runnertest.Can{Contracts: []runnertest.Contract{runnertest.Lambda, runnertest.Azure}, ScaleToZero: true, Isolate: err == nil})
}
