//go:build !linux

package instance

// Limits on another process, waiting without reaping and other processes'
// environments are Linux's. Elsewhere a function has no limits of its own, and a
// daemon that it made outlives it.

func limit(int) {}

func awaitExit(int) bool { return false }

func killStrays(string) {}
