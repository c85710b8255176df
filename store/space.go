package store

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"go.etcd.io/etcd/server/v3/storage/wal"
	"golang.org/x/sys/unix"
)

const (
	// walSegment is the size of a file of etcd's log. There are two at least, and
	// both take their space in advance; etcd's own 64 MB is for much more traffic.
	walSegment = 16 << 20
	// spaceReserve is what the file system must have left for a commit to be let in:
	// the next file of the log, a snapshot, and what other programs write meanwhile.
	spaceReserve = walSegment + 16<<20
	// headroom is how far ahead of its use the database file has its space: more
	// than etcd writes between two looks.
	headroom = 16 << 20
	// lowState is how many bytes of run-time state are let in while commits are not:
	// they fit into the space that the files have.
	lowState = 2 << 20
)

func init() { wal.SegmentSizeBytes = walSegment }

// space keeps an embedded etcd from running out of disk space in the middle of a
// write, which it does not survive: what it was let to write has its space before.
type space struct {
	dir string // of the data
	log *slog.Logger
	// used is the size of the database as far as it is in use.
	used func() int64

	mu       sync.Mutex
	reserved int64 // bytes of the database file that have space
	low      bool
	since    time.Time // that low is as it is
	left     int       // of lowState, while low
}

func (s *space) database() string { return filepath.Join(s.dir, "etcd", "member", "snap", "db") }

// admit refuses a write of so many bytes when there is no space for it. state is
// run-time state, of which a little is let in all the same.
func (s *space) admit(bytes int, state bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	err := s.look()
	if err == nil {
		return nil
	}
	if state && bytes <= s.left {
		s.left -= bytes
		return nil
	}
	return fmt.Errorf("store: %w; the change was refused and nothing was lost: free space, then repeat it", err)
}

// look is check, and notes and tells when that changes. It is called with mu held.
func (s *space) look() error {
	err := s.check()
	if (err != nil) == s.low {
		return err
	}
	s.low, s.left, s.since = err != nil, lowState, time.Now()
	if err != nil {
		s.log.Error("store: changes are refused from now on; what is served stays", "error", err)
	} else {
		s.log.Info("store: there is space again, changes are taken from now on")
	}
	return err
}

// refusing is why changes are refused now, and since when it is known; nil when they are
// not.
func (s *space) refusing() (time.Time, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	err := s.look()
	return s.since, err
}

// check is called with mu held.
func (s *space) check() error {
	free, err := freeBytes(s.dir)
	if err != nil {
		return fmt.Errorf("data directory: %w", err)
	}
	if free < spaceReserve {
		return &SpaceError{Dir: s.dir, Free: free, Need: spaceReserve}
	}
	want := s.used() + headroom
	if want <= s.reserved {
		return nil
	}
	f, err := os.OpenFile(s.database(), os.O_WRONLY, 0)
	if err != nil {
		return fmt.Errorf("data directory: %w", err)
	}
	// Twice as far, to come here seldom. Beyond the end of the file it stays as long.
	err = unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_KEEP_SIZE, 0, want+headroom)
	err = errors.Join(err, f.Close())
	switch {
	case errors.Is(err, syscall.EOPNOTSUPP): // the file system has no reservations
		s.reserved = want + headroom
		return nil
	case errors.Is(err, syscall.ENOSPC):
		return &SpaceError{Dir: s.dir, Free: free, Need: spaceReserve + headroom}
	case err != nil:
		return fmt.Errorf("reserve space in %s: %w", s.database(), trouble(err))
	}
	s.reserved = want + headroom
	return nil
}

// freeBytes is what a process without privileges may still write.
func freeBytes(dir string) (int64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, err
	}
	return int64(st.Bavail) * st.Bsize, nil
}

// makeRoom checks before a start that etcd can have its files. The log's next file of
// an earlier process is in its way.
func makeRoom(dir string) error {
	leftovers, err := filepath.Glob(filepath.Join(dir, "etcd", "member", "wal", "*.tmp"))
	if err != nil {
		return err
	}
	for _, name := range leftovers {
		if err := os.Remove(name); err != nil {
			return trouble(err)
		}
	}
	free, err := freeBytes(dir)
	if err != nil {
		return trouble(err)
	}
	need := int64(walSegment)
	if !wal.Exist(filepath.Join(dir, "etcd", "member", "wal")) {
		need = 2*walSegment + headroom
	}
	if free < need {
		return &SpaceError{Dir: dir, Free: free, Need: need}
	}
	return nil
}

// SpaceError is a file system without enough space.
type SpaceError struct {
	// Dir is on the file system; Free and Need are bytes.
	Dir        string
	Free, Need int64
}

// Error implements error.
func (e *SpaceError) Error() string {
	return fmt.Sprintf("no space left for %s: its file system has %d MiB free, %d MiB are needed", e.Dir, e.Free>>20, (e.Need+1<<20-1)>>20)
}

// Is makes it ErrNoSpace.
func (e *SpaceError) Is(target error) bool { return target == ErrNoSpace || target == syscall.ENOSPC }
