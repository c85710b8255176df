//go:build !linux

package instance

import (
	"context"
	"log/slog"
)

// Waiting without reaping and other processes' environments are Linux's. Elsewhere a
// daemon that a function made outlives it.

func awaitExit(int) bool { return false }

// Adopt does nothing here.
func Adopt(context.Context, *slog.Logger) (wait func(), err error) { return func() {}, nil }

func startFamily(_ string, start func() (int, error)) error {
	_, err := start()
	return err
}

func endFamily(string, int) {}
