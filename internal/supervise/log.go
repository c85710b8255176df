package supervise

import (
	"bufio"
	"fmt"
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

// logs writes lines of several processes to one writer, never mixed in a line.
type logs struct {
	w     io.Writer
	color bool

	mu    sync.Mutex
	width int
	count int
}

// prefixWriter is the log of one process.
type prefixWriter struct {
	logs  *logs
	name  string
	color string

	mu    sync.Mutex
	lines []string // the last tailLines
}

// Colours that are readable on light and dark terminals.
var colors = []string{"36", "33", "35", "32", "34", "96", "93", "95"}

func (l *logs) add(name string) *prefixWriter {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.width = max(l.width, len(name), 8)
	p := &prefixWriter{logs: l, name: name}
	if l.color {
		p.color = colors[l.count%len(colors)]
	}
	l.count++
	return p
}

// copy reads lines until the end of r. Control characters other than tabs are
// removed: what a process prints must not drive the terminal.
func (p *prefixWriter) copy(r io.Reader) {
	in := bufio.NewReaderSize(r, maxLine)
	for {
		part, err := in.ReadSlice('\n')
		if len(part) > 0 {
			p.line(strings.Map(printable, string(part)))
		}
		if err != nil && err != bufio.ErrBufferFull {
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

func (p *prefixWriter) line(text string) {
	p.mu.Lock()
	p.lines = append(p.lines, text)
	if len(p.lines) > tailLines {
		p.lines = p.lines[1:]
	}
	p.mu.Unlock()
	p.logs.mu.Lock()
	defer p.logs.mu.Unlock()
	prefix := fmt.Sprintf("%-*s |", p.logs.width, p.name)
	if p.color != "" {
		prefix = "\x1b[" + p.color + "m" + prefix + "\x1b[0m"
	}
	// Logs that cannot be written must not stop the process.
	_, _ = io.WriteString(p.logs.w, prefix+" "+text+"\n")
}

// tail returns the last lines, indented.
func (p *prefixWriter) tail() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.lines) == 0 {
		return "    (nothing)"
	}
	return "    " + strings.Join(p.lines, "\n    ")
}
