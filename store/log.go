package store

import (
	"context"
	"log/slog"
	"slices"
	"strings"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// zapOver is a zap logger, which etcd wants, that writes to a slog one. What etcd
// tells about its normal life is debugging for us.
// Where etcd would exit it panics.
func zapOver(l *slog.Logger) *zap.Logger { return zapWith(l, zapcore.WriteThenPanic) }

// zapWith is zapOver with something else to do where etcd gives up.
func zapWith(l *slog.Logger, giveUp zapcore.CheckWriteHook) *zap.Logger {
	return zap.New(slogCore{l}, zap.WithFatalHook(giveUp), zap.WithPanicHook(giveUp))
}

// slogCore is a zapcore.Core.
type slogCore struct{ l *slog.Logger }

// hushed are warnings about settings that make no difference to one member without
// listeners.
var hushed = map[string]bool{
	"Running http and grpc server on single port. This is not recommended for production.": true,
}

// told are warnings about what the caller of the client gets as an error, too, in words
// that are easier to read.
var told = map[string]bool{
	"retrying of unary invoker failed": true,
}

// newDatabase is what etcd says in its error, as a warning and an error, when it
// looks for the schema version of a database that nothing was written to yet. It
// looks again, and writes the version then.
const newDatabase = "missing term information"

// schemaMessages are those complaints. With another error they are shown.
var schemaMessages = map[string]bool{
	"Failed to detect schema version":  true,
	"failed to update storage version": true,
}

// harmless reports whether a record is about a new database.
func harmless(e zapcore.Entry, fields []zapcore.Field) bool {
	return schemaMessages[e.Message] && slices.ContainsFunc(fields, func(f zapcore.Field) bool {
		err, ok := f.Interface.(error)
		return f.Type == zapcore.ErrorType && ok && strings.Contains(err.Error(), newDatabase)
	})
}

// level maps zap's levels to slog's.
func level(l zapcore.Level) slog.Level {
	switch {
	case l < zapcore.WarnLevel:
		return slog.LevelDebug
	case l == zapcore.WarnLevel:
		return slog.LevelWarn
	default:
		return slog.LevelError
	}
}

// Enabled implements zapcore.Core.
func (c slogCore) Enabled(l zapcore.Level) bool {
	return c.l.Enabled(context.Background(), level(l))
}

// With implements zapcore.Core.
func (c slogCore) With(fields []zapcore.Field) zapcore.Core {
	return slogCore{c.l.With(attrs(fields)...)}
}

// Check implements zapcore.Core.
func (c slogCore) Check(e zapcore.Entry, ce *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if c.Enabled(e.Level) && !hushed[e.Message] {
		return ce.AddCore(e, c)
	}
	return ce
}

// Write implements zapcore.Core.
func (c slogCore) Write(e zapcore.Entry, fields []zapcore.Field) error {
	l := level(e.Level)
	if harmless(e, fields) || told[e.Message] {
		l = slog.LevelDebug
	}
	c.l.Log(context.Background(), l, e.Message, attrs(fields)...)
	return nil
}

// Sync implements zapcore.Core.
func (c slogCore) Sync() error { return nil }

// attrs turns zap's fields into slog's arguments.
func attrs(fields []zapcore.Field) []any {
	m := zapcore.NewMapObjectEncoder()
	for _, f := range fields {
		f.AddTo(m)
	}
	out := make([]any, 0, len(m.Fields))
	for _, f := range fields {
		if v, ok := m.Fields[f.Key]; ok {
			out = append(out, slog.Any(f.Key, v))
		}
	}
	return out
}
