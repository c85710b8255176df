package console

import (
	"io"
	"os"
	"sync"

	"github.com/penstock-gateway/penstock/telemetry"
)

// Output is a file for what others may have written: names of spans, output of functions,
// messages. A terminal is Safe; elsewhere it is passed on as it is.
func Output(f *os.File) io.Writer {
	if telemetry.IsTerminal(f) {
		return terminal{Safe(f), f}
	}
	return f
}

// terminal still says that it leads to one.
type terminal struct {
	io.Writer
	f *os.File
}

// Fd is that of the terminal.
func (t terminal) Fd() uintptr { return t.f.Fd() }

// Safe leaves out of a text in UTF-8 what would drive a terminal: control characters but
// line feed, carriage return before one and tab, and escape sequences but those of colours
// (ECMA-48, SGR).
func Safe(w io.Writer) io.Writer { return &safe{w: w} }

type safe struct {
	mu sync.Mutex
	w  io.Writer
	// held is the beginning of what may be allowed: an escape sequence of a colour, a
	// carriage return, or the first byte of a control character of two.
	held []byte
}

// maxHeld bounds an escape sequence of a colour.
const maxHeld = 32

const (
	escape, carriageReturn, c1 = 0x1b, '\r', 0xc2
)

// Write implements io.Writer.
func (s *safe) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]byte, 0, len(p))
	for _, b := range p {
		out = s.next(out, b)
	}
	if _, err := s.w.Write(out); err != nil {
		return 0, err
	}
	return len(p), nil
}

// next takes one byte in, and returns what may be printed now.
func (s *safe) next(out []byte, b byte) []byte {
	if len(s.held) > 0 {
		switch s.continues(b) {
		case whole:
			out = append(append(out, s.held...), b)
			s.held = s.held[:0]
			return out
		case part:
			s.held = append(s.held, b)
			return out
		case dropped:
			s.held = s.held[:0]
			return out
		}
		s.held = s.held[:0] // and b is looked at as any other
	}
	switch {
	case b == escape || b == carriageReturn || b == c1:
		s.held = append(s.held, b)
		return out
	case b < ' ' && b != '\n' && b != '\t', b == 0x7f:
		return out
	}
	return append(out, b)
}

// What a byte means for what is held.
const (
	foreign = iota // it is not part of it
	part
	whole
	dropped
)

func (s *safe) continues(b byte) int {
	switch s.held[0] {
	case carriageReturn:
		if b == '\n' {
			return whole
		}
	case c1: // U+0080 to U+009F are control characters, the others of two bytes are not
		if b >= 0xa0 && b <= 0xbf {
			return whole
		}
		if b >= 0x80 && b <= 0x9f {
			return dropped
		}
	case escape:
		switch {
		case len(s.held) == 1 && b == '[', len(s.held) > 1 && len(s.held) < maxHeld && (b >= '0' && b <= '9' || b == ';' || b == ':'):
			return part
		case len(s.held) > 1 && b == 'm':
			return whole
		case len(s.held) > 1 && b >= 0x40 && b <= 0x7e: // the end of another sequence
			return dropped
		}
	}
	return foreign
}
