// Package flock takes and gives back locks of files (flock(2)), which the kernel gives back
// when their holder ends, however it does.
package flock

import (
	"errors"
	"os"
	"syscall"
)

// ErrLocked is that another one has the lock.
var ErrLocked = errors.New("locked by another process")

// Take takes the lock of an open file, or returns ErrLocked at once.
func Take(f *os.File) error {
	err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) || errors.Is(err, syscall.EINTR) {
		return ErrLocked
	}
	return err
}

// Close gives the lock back and closes the file. To close it alone is not enough: a process
// that this one has just forked has the file, too, until it runs its program, and the lock
// lasts as long as any of them has it.
func Close(f *os.File) error {
	return errors.Join(syscall.Flock(int(f.Fd()), syscall.LOCK_UN), f.Close())
}
