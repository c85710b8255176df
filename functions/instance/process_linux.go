package instance

import (
	"errors"
	"syscall"

	"golang.org/x/sys/unix"
)

// awaitExit returns true when a child has ended, without reaping it.
func awaitExit(pid int) bool {
	for {
		err := unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOWAIT, nil)
		if !errors.Is(err, syscall.EINTR) {
			return err == nil
		}
	}
}
