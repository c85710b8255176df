package telemetry

import (
	"context"
	"io"
	"log/slog"
	"os"
	"strings"

	"go.opentelemetry.io/otel/trace"
	"golang.org/x/sys/unix"
)

// LogFormatEnv names the environment variable that chooses the log format: json
// or text. Without it a terminal gets text, anything else JSON.
const LogFormatEnv = "PENSTOCK_LOG_FORMAT"

// NewLogger returns a logger that writes one line per record to w, each with the
// service's name and, when its context has a span, trace_id and span_id. level is
// debug, info, warn or error; another one is info, with a warning in the log.
func NewLogger(w io.Writer, level, service string) *slog.Logger {
	var problems []string
	var l slog.Level
	switch strings.ToLower(level) {
	case "debug":
		l = slog.LevelDebug
	case "info", "":
	case "warn", "warning":
		l = slog.LevelWarn
	case "error":
		l = slog.LevelError
	default:
		problems = append(problems, "log level "+level+" is unknown, using info: it must be debug, info, warn or error")
	}
	o := &slog.HandlerOptions{Level: l}
	var h slog.Handler
	switch format := os.Getenv(LogFormatEnv); format {
	case "json":
		h = slog.NewJSONHandler(w, o)
	case "text":
		h = slog.NewTextHandler(w, o)
	default:
		if format != "" {
			problems = append(problems, LogFormatEnv+"="+format+" is unknown: it must be json or text")
		}
		if IsTerminal(w) {
			h = slog.NewTextHandler(w, o)
		} else {
			h = slog.NewJSONHandler(w, o)
		}
	}
	log := slog.New(spanHandler{h})
	if service != "" {
		log = log.With(LogService, service)
	}
	for _, p := range problems {
		log.Warn(p)
	}
	return log
}

// IsTerminal reports whether w is a terminal, or leads to one and says so as *os.File does.
func IsTerminal(w io.Writer) bool {
	_, is := windowSize(w)
	return is
}

// Columns is the width of the terminal that w leads to, in characters; 0 if w leads to none,
// or to one that does not say.
func Columns(w io.Writer) int {
	size, is := windowSize(w)
	if !is {
		return 0
	}
	return int(size.Col)
}

func windowSize(w io.Writer) (*unix.Winsize, bool) {
	f, ok := w.(interface{ Fd() uintptr })
	if !ok {
		return nil, false
	}
	size, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
	return size, err == nil
}

// spanHandler adds the ids of the context's span.
type spanHandler struct{ slog.Handler }

// Handle implements slog.Handler.
func (h spanHandler) Handle(ctx context.Context, r slog.Record) error {
	if sc := trace.SpanContextFromContext(ctx); sc.IsValid() {
		r.AddAttrs(slog.String(LogTraceID, sc.TraceID().String()), slog.String(LogSpanID, sc.SpanID().String()))
	}
	return h.Handler.Handle(ctx, r)
}

// WithAttrs implements slog.Handler.
func (h spanHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return spanHandler{h.Handler.WithAttrs(attrs)}
}

// WithGroup implements slog.Handler.
func (h spanHandler) WithGroup(name string) slog.Handler {
	return spanHandler{h.Handler.WithGroup(name)}
}
