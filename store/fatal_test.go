package store

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"syscall"
	"testing"

	"go.uber.org/zap"
)

// TestExplain: what the system refuses is named before "damaged", also where etcd keeps
// only the text of the error.
func TestExplain(t *testing.T) {
	for want, cause := range map[string]syscall.Errno{
		"disk is full": syscall.ENOSPC, "quota": syscall.EDQUOT, "mount it writable": syscall.EROFS, "permissions": syscall.EACCES, "sound disk": syscall.EIO,
	} {
		for _, err := range []error{
			fmt.Errorf("failed to commit tx: %w", &os.PathError{Op: "write", Path: "db", Err: cause}),
			errors.New("failed to read WAL, cannot be repaired: write x: " + cause.Error()),
		} {
			got := explain(err)
			if text := got.Error(); !strings.Contains(text, want) || strings.Contains(text, "are damaged") {
				t.Errorf("%v: %v", cause, got)
			}
			if full := cause == syscall.ENOSPC || cause == syscall.EDQUOT; errors.Is(got, ErrNoSpace) != full {
				t.Errorf("%v is ErrNoSpace: %v", cause, !full)
			}
		}
	}
	if got := explain(errors.New("crc mismatch")).Error(); !strings.Contains(got, "are damaged") || strings.Contains(got, "empty") {
		t.Errorf("damage: %s", got)
	}
}

// TestGiveUp: where etcd gives up after its start, the process ends with one line and
// without a stack trace.
func TestGiveUp(t *testing.T) {
	var out bytes.Buffer
	code := -1
	f := &fatal{log: slog.New(slog.NewTextHandler(&out, nil)), dir: "DIR", exit: func(c int) { code = c }}
	log := zapWith(slog.New(slog.DiscardHandler), f)
	func() {
		defer func() {
			if p := recover(); p == nil || !strings.Contains(fmt.Sprint(p), "no space left") {
				t.Errorf("while starting: %v", p)
			}
		}()
		log.Fatal("failed to commit tx", zap.Error(syscall.ENOSPC))
	}()
	f.started.Store(true)
	log.Fatal("failed to commit tx", zap.Error(syscall.EIO))
	if code != 1 || !strings.Contains(out.String(), "sound disk") || !strings.Contains(out.String(), "DIR") {
		t.Errorf("exit code %d, %s", code, &out)
	}
}
