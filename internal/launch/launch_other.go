//go:build !linux

package launch

import "syscall"

// Only Linux has a parent-death signal; elsewhere children are stopped by an
// orderly stop alone.
func dieWithParent(*syscall.SysProcAttr) {}
