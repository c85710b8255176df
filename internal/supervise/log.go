package supervise

import (
	"bufio"
	"errors"
	"io"
	"strings"
	"sync"
)

const (
	// maxLine is where a line without end is cut in two.
	maxLine = 16 << 10
	// tailLines is how many lines are kept for error messages.
	tailLines = 12
)

// lines are the log of one process.
type lines struct {
	name string
	out  func(process, line string)

	mu   sync.Mutex
	last []string // the last tailLines
}

// copy reads lines until the end of r. Control characters other than tabs are
// removed: what a process prints must not drive the terminal.
func (l *lines) copy(r io.Reader) {
	in := bufio.NewReaderSize(r, maxLine)
	for {
		part, err := in.ReadSlice('\n')
		if len(part) > 0 {
			l.line(strings.Map(printable, string(part)))
		}
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
			return
		}
	}
}

func printable(r rune) rune {
	if (r < ' ' && r != '\t') || r == 0x7f {
		return -1
	}
	return r
}

func (l *lines) line(text string) {
	l.mu.Lock()
	l.last = append(l.last, text)
	if len(l.last) > tailLines {
		l.last = l.last[1:]
	}
	l.mu.Unlock()
	l.out(l.name, text)
}

// tail returns the last lines, indented.
func (l *lines) tail() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.last) == 0 {
		return "    (nothing)"
	}
	return "    " + strings.Join(l.last, "\n    ")
}
