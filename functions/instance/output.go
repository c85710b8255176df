package instance

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	// maxLine is where a line without end is cut in two.
	maxLine = 16 << 10
	// tailLines and tailWidth bound what is kept for the message of a failure.
	tailLines = 20
	tailWidth = 512
	// Lines and bytes beyond these rates are counted and dropped: a function that
	// prints without end costs the runner a read and no more.
	linesPerSecond, linesBurst = 500, 5000
	bytesPerSecond, bytesBurst = 1 << 20, 4 << 20
	// maxCatchUp bounds what OutputOf reads before it goes on.
	maxCatchUp = 1 << 20
)

// output turns what a process prints into log records, line by line.
type output struct {
	log     *slog.Logger
	now     func() time.Time
	metrics *functionMetrics
	sink    func(Line)          // nil: none
	trace   func(string) string // the trace of a request
	// source writes what is printed with the names that files have in the source.
	source *strings.Replacer

	mu      sync.Mutex
	streams []*stream
	buf     []byte
	request string
	traced  string // its trace
	tail    []string
	lines   bucket
	bytes   bucket
	dropped struct{ lines, bytes int64 }

	readers sync.WaitGroup
}

// stream is one of stdout and stderr.
type stream struct {
	name string
	r    *os.File
	raw  syscall.RawConn
	// part is a line whose end has not been read.
	part []byte
}

// newOutput's copies are the folders that hold copies of the source.
func newOutput(log *slog.Logger, m *functionMetrics, copies ...string) *output {
	var names []string
	for _, dir := range copies {
		names = append(names, dir+"/", "")
	}
	return &output{
		log: log, source: strings.NewReplacer(names...), now: time.Now, metrics: m, buf: make([]byte, 64<<10),
		lines: bucket{rate: linesPerSecond, burst: linesBurst, level: linesBurst},
		bytes: bucket{rate: bytesPerSecond, burst: bytesBurst, level: bytesBurst},
	}
}

// pipe makes a stream and returns the end for the process, which the caller
// closes when the process has it.
func (o *output) pipe(name string) (*os.File, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	raw, err := r.SyscallConn()
	if err != nil {
		return nil, errors.Join(err, r.Close(), w.Close())
	}
	s := &stream{name: name, r: r, raw: raw}
	o.mu.Lock()
	o.streams = append(o.streams, s)
	o.mu.Unlock()
	return w, nil
}

// start begins to read.
func (o *output) start() {
	for _, s := range o.streams {
		o.readers.Go(func() {
			for {
				end := false
				// Reading under the lock is what makes `of` exact: no line is ever in
				// between, read but not yet attributed.
				err := s.raw.Read(func(fd uintptr) bool {
					o.mu.Lock()
					defer o.mu.Unlock()
					n, err := o.read(fd, s)
					if errors.Is(err, syscall.EAGAIN) {
						return false
					}
					end = err != nil || n == 0
					return true
				})
				if end || err != nil {
					return
				}
			}
		})
	}
}

// read reads what is there without waiting. The caller holds mu.
func (o *output) read(fd uintptr, s *stream) (int, error) {
	for {
		n, err := syscall.Read(int(fd), o.buf)
		if errors.Is(err, syscall.EINTR) {
			continue
		}
		if n > 0 {
			o.take(s, o.buf[:n])
		}
		return n, err
	}
}

// of attributes all that is printed from now on to a request.
func (o *output) of(request string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, s := range o.streams {
		_ = s.raw.Control(func(fd uintptr) {
			for total := 0; total < maxCatchUp; {
				n, err := o.read(fd, s)
				if err != nil || n <= 0 {
					return
				}
				total += n
			}
		})
	}
	o.request = request
	if o.trace != nil {
		o.traced = o.trace(request)
	}
}

// close reads to the end, waits at most wait for it (a grandchild may hold the
// pipe), and closes the pipes.
func (o *output) close(wait time.Duration) {
	done := make(chan struct{})
	go func() { o.readers.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(wait):
	}
	for _, s := range o.streams {
		s.r.Close()
	}
	<-done
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, s := range o.streams {
		if len(s.part) > 0 {
			o.line(s, s.part)
			s.part = nil
		}
	}
	o.reportDropped()
}

// take cuts bytes into lines. The caller holds mu.
func (o *output) take(s *stream, b []byte) {
	for len(b) > 0 {
		end := bytes.IndexByte(b, '\n')
		piece := b
		if end >= 0 {
			piece = b[:end]
		}
		room := maxLine - len(s.part)
		switch {
		case len(piece) > room:
			s.part = append(s.part, piece[:room]...)
			b = b[room:]
		case end < 0:
			s.part = append(s.part, piece...)
			return
		default:
			s.part = append(s.part, piece...)
			b = b[end+1:]
		}
		o.line(s, s.part)
		s.part = s.part[:0]
	}
}

// line logs one line, or counts it when there are too many. The caller holds mu.
func (o *output) line(s *stream, b []byte) {
	// awslambdaric writes a carriage return between the lines of one trace.
	text := o.source.Replace(strings.ReplaceAll(strings.TrimRight(string(b), "\r"), "\r", "\n"))
	o.tail = append(o.tail, text[:min(len(text), tailWidth)])
	if len(o.tail) > tailLines {
		o.tail = o.tail[1:]
	}
	now := o.now()
	if !o.lines.has(now, 1) || !o.bytes.has(now, float64(len(b))) {
		o.dropped.lines++
		o.dropped.bytes += int64(len(b))
		o.metrics.dropped(len(b))
		return
	}
	o.lines.take(1)
	o.bytes.take(float64(len(b)))
	o.reportDropped()
	attrs := []slog.Attr{slog.String("stream", s.name)}
	if o.request != "" {
		attrs = append(attrs, slog.String("request_id", o.request))
	}
	o.log.LogAttrs(context.Background(), slog.LevelInfo, text, attrs...)
	if o.sink != nil {
		o.sink(Line{Stream: s.name, Time: now, Text: text, RequestID: o.request, TraceID: o.traced})
	}
}

func (o *output) reportDropped() {
	if o.dropped.lines == 0 {
		return
	}
	o.log.Warn("the function prints too much: output was dropped", "lines", o.dropped.lines, "bytes", o.dropped.bytes)
	o.dropped.lines, o.dropped.bytes = 0, 0
}

// lastLines are the last lines of the output.
func (o *output) lastLines() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	lines := o.tail
	for _, s := range o.streams {
		if len(s.part) > 0 {
			lines = append(lines[:len(lines):len(lines)], o.source.Replace(string(s.part[:min(len(s.part), tailWidth)])))
		}
	}
	return strings.Join(lines, "\n")
}

// bucket is a token bucket.
type bucket struct {
	rate, burst, level float64
	last               time.Time
}

func (b *bucket) has(now time.Time, n float64) bool {
	if !b.last.IsZero() {
		b.level = min(b.burst, b.level+b.rate*now.Sub(b.last).Seconds())
	}
	b.last = now
	return b.level >= n
}

func (b *bucket) take(n float64) { b.level -= n }
