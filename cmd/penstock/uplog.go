package main

import (
	"io"
	"os"
	"sync"
)

// maxUpLog is the size at which the log of a background `up` begins anew; the one
// before is kept as up.log.1.
const maxUpLog = 64 << 20

// boundedLog writes to a file and keeps it and the one before below a size.
type boundedLog struct {
	path string
	max  int64

	mu   sync.Mutex
	file *os.File
	size int64
}

// boundLog returns a writer that bounds the file that w writes to, when that is
// the log at path; else w itself. A panic of this process still goes to the file
// that was the log when it started.
func boundLog(w io.Writer, path string, most int64) io.Writer {
	f, ok := w.(*os.File)
	if !ok {
		return w
	}
	mine, err := f.Stat()
	if err != nil {
		return w
	}
	log, err := os.Stat(path)
	if err != nil || !os.SameFile(mine, log) {
		return w
	}
	return &boundedLog{path: path, max: most, file: f, size: log.Size()}
}

func (l *boundedLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.size+int64(len(p)) > l.max {
		l.rotate()
	}
	n, err := l.file.Write(p)
	l.size += int64(n)
	return n, err
}

// rotate begins a new file; when that fails the old one goes on for as long again.
func (l *boundedLog) rotate() {
	l.size = 0
	if os.Rename(l.path, l.path+".1") != nil {
		return
	}
	f, err := os.OpenFile(l.path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return
	}
	if l.file != os.Stdout && l.file != os.Stderr {
		l.file.Close()
	}
	l.file = f
}
