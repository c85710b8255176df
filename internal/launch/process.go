package launch

import (
	"errors"
	"syscall"
	"time"
)

// ID identifies a process beyond the reuse of its number.
type ID struct {
	PID int `json:"pid"`
	// Start is when it started, in a form that only equality is defined for.
	Start string `json:"start"`
}

// Identify returns the ID of a running process.
func Identify(pid int) (ID, error) {
	start, err := startTime(pid)
	if err != nil {
		return ID{}, err
	}
	return ID{PID: pid, Start: start}, nil
}

// Stopped reports whether the process is there and does nothing until it is continued.
// Always false where the system does not tell.
func (id ID) Stopped() bool { return id.Alive() && stopped(id.PID) }

// Alive reports whether that very process still runs. A zombie does not.
func (id ID) Alive() bool {
	if id.PID <= 0 || errors.Is(syscall.Kill(id.PID, 0), syscall.ESRCH) {
		return false
	}
	start, err := startTime(id.PID)
	return err == nil && start == id.Start
}

// Signal sends a signal to that very process; none when it is gone.
func (id ID) Signal(sig syscall.Signal) error {
	if !id.Alive() {
		return nil
	}
	if err := syscall.Kill(id.PID, sig); !errors.Is(err, syscall.ESRCH) {
		return err
	}
	return nil
}

// WaitGone waits until none of the processes runs, at most d, and returns those
// that still do.
func WaitGone(ids []ID, d time.Duration) []ID {
	deadline := time.Now().Add(d)
	for {
		var left []ID
		for _, id := range ids {
			if id.Alive() {
				left = append(left, id)
			}
		}
		if len(left) == 0 || time.Now().After(deadline) {
			return left
		}
		time.Sleep(20 * time.Millisecond) // the kernel tells no stranger of an exit
	}
}
