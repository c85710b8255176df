package store

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"strings"
	"sync/atomic"
	"syscall"

	"go.uber.org/zap/zapcore"
)

// fatal is what happens where etcd gives up. While it starts that is a panic with an
// error, which startEtcd returns. Later nobody could catch it, in a goroutine of
// etcd's: the process ends with a line that says why, instead of a stack trace.
type fatal struct {
	log     *slog.Logger
	dir     string
	started atomic.Bool
	exit    func(int)
	// cause is the error of the last record with which etcd gave up.
	cause atomic.Pointer[error]
}

// OnWrite implements zapcore.CheckWriteHook.
func (f *fatal) OnWrite(e *zapcore.CheckedEntry, fields []zapcore.Field) {
	err := errors.New(e.Message)
	for _, field := range fields {
		if cause, ok := field.Interface.(error); ok && field.Type == zapcore.ErrorType {
			err = fmt.Errorf("%s: %w", e.Message, cause)
		}
	}
	f.cause.Store(&err)
	if !f.started.Load() {
		panic(err)
	}
	f.log.Error("the store stops, and with it the control plane; every acknowledged change is on disk, and proxies serve on", "dir", f.dir, "error", trouble(err))
	f.exit(1)
}

// explained are errors of the system that are not damage, with what to do about them.
var explained = []struct {
	is   error
	what string
}{
	{syscall.ENOSPC, "the disk is full and nothing is damaged: free space, then start again"},
	{syscall.EDQUOT, "the disk quota is used up and nothing is damaged: raise it or free space, then start again"},
	{syscall.EROFS, "the file system is read-only and nothing is damaged: mount it writable, then start again"},
	{syscall.EACCES, "the permissions of the file do not allow it: give it back to the user of the control plane"},
	{syscall.EPERM, "the permissions of the file do not allow it: give it back to the user of the control plane"},
	{syscall.EMFILE, "the process has too many files open: raise its limit (ulimit -n)"},
	{syscall.EIO, "the disk cannot be read or written (see the kernel's log): move the directory to a sound disk, then start again"},
	{syscall.ENOMEM, "there is not enough memory"},
}

// explain adds what to do to an error of etcd's files. Only what is no trouble of the
// system is damage.
func explain(err error) error {
	if told, ok := troubled(err); ok {
		return told
	}
	return fmt.Errorf("%w; %s", err, damagedFiles)
}

// trouble is explain for errors that are not about damage when they are not trouble of
// the system.
func trouble(err error) error {
	told, _ := troubled(err)
	return told
}

// troubled adds what to do to an error of the system. etcd drops that error now and
// then and keeps its text.
func troubled(err error) (error, bool) {
	if errors.Is(err, ErrNoSpace) {
		return err, true
	}
	for _, e := range explained {
		if !errors.Is(err, e.is) && !strings.Contains(err.Error(), e.is.Error()) {
			continue
		}
		if errors.Is(e.is, syscall.ENOSPC) || errors.Is(e.is, syscall.EDQUOT) {
			return fmt.Errorf("%w; %s (%w)", err, e.what, ErrNoSpace), true
		}
		return fmt.Errorf("%w; %s", err, e.what), true
	}
	return err, false
}

// readable finds files of a directory that cannot be read or written by this process,
// before etcd takes them for damaged.
func readable(dir string) error {
	err := fs.WalkDir(os.DirFS(dir), ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		f, err := os.OpenFile(dir+"/"+path, os.O_RDWR, 0)
		if err != nil {
			return err
		}
		return f.Close()
	})
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
