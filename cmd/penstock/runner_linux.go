package main

import (
	"os"
	"os/signal"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A runner that was to be killed when its parent ends (as children of `penstock
// up` are) gets SIGTERM in place of SIGKILL: only the runner can find what
// functions have left behind, so it must have the time to end it. The kernel keeps
// this signal by thread, and packages are initialized on the one that counts, the
// first.
func init() {
	var sent int32
	if len(os.Args) < 2 || os.Args[1] != "runner" ||
		unix.Prctl(unix.PR_GET_PDEATHSIG, uintptr(unsafe.Pointer(&sent)), 0, 0, 0) != nil || sent != int32(syscall.SIGKILL) {
		return
	}
	_ = unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(syscall.SIGTERM), 0, 0, 0)
	// The parent's end breaks the pipe that the log goes to; a write to it would end
	// this process otherwise. (signal.Ignore would be inherited by functions.)
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
}
