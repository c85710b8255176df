package store

import (
	"bytes"
	"errors"
	"log/slog"
	"strings"
	"testing"

	"go.uber.org/zap"
)

func TestLog(t *testing.T) {
	var out bytes.Buffer
	l := zapOver(slog.New(slog.NewTextHandler(&out, nil))).With(zap.String("member", "m"))
	l.Info("life is normal")
	for text := range hushed {
		l.Warn(text)
	}
	l.Warn("Failed to detect schema version", zap.Error(errors.New("missing term information")))
	l.Error("failed to update storage version", zap.String("cluster-version", "3.7.0"), zap.Error(errors.New("cannot detect storage schema version: missing term information")))
	if out.Len() > 0 {
		t.Errorf("logged: %s", out.String())
	}
	l.Warn("slow disk", zap.Int("ms", 7))
	l.Error("no disk")
	l.Error("failed to update storage version", zap.Error(errors.New("the disk is full")))
	l.Error("something else", zap.Error(errors.New("missing term information")))
	func() {
		defer func() {
			if recover() == nil {
				t.Error("fatal did not panic")
			}
		}()
		l.Fatal("gone")
	}()
	for _, want := range []string{`level=WARN msg="slow disk" member=m ms=7`, `level=ERROR msg="no disk" member=m`, `level=ERROR msg="failed to update storage version" member=m error="the disk is full"`,
		`level=ERROR msg="something else"`, `level=ERROR msg=gone`} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is not in\n%s", want, out.String())
		}
	}
}
