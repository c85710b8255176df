package instance

import (
	"errors"
	"syscall"

	"golang.org/x/sys/unix"
)

// maxFile bounds one file that a function writes, so that a loop does not fill
// the disk with it.
const maxFile = 4 << 30

// limit sets resource limits of a process that has just started: no core files,
// no endless file. What it starts inherits them.
func limit(pid int) {
	for resource, max := range map[int]uint64{unix.RLIMIT_CORE: 0, unix.RLIMIT_FSIZE: maxFile} {
		var old unix.Rlimit
		if unix.Prlimit(pid, resource, nil, &old) != nil {
			continue
		}
		now := unix.Rlimit{Cur: min(max, old.Max), Max: min(max, old.Max)}
		// It can only fail when the process is gone already.
		_ = unix.Prlimit(pid, resource, &now, nil)
	}
}

// awaitExit returns true when a child has ended, without reaping it.
func awaitExit(pid int) bool {
	for {
		err := unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOWAIT, nil)
		if !errors.Is(err, syscall.EINTR) {
			return err == nil
		}
	}
}
