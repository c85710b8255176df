package functions

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"

	"github.com/penstock-gateway/penstock/functions/instance"
	"github.com/penstock-gateway/penstock/internal/signal"
)

const (
	// keptLines and keptBytes are what is kept of each function's output for those
	// who ask for it later.
	keptLines = 1000
	keptBytes = 1 << 20
	// keptText is where the text of a line is cut.
	keptText = 4 << 10
	// pendingLines may wait for a control plane that is slow; more are dropped and
	// counted.
	pendingLines = 8 * keptLines
	// linesAtOnce go into one message.
	linesAtOnce = 500
)

// logbook keeps the last lines of every function, and has those ready that the
// control plane listens to.
type logbook struct {
	ready signal.Wake // has a value when there is something to send

	mu         sync.Mutex
	sequence   uint64
	kept       map[string]*lastLines
	subscribed map[string]bool
	pending    []*pb.LogLine
	dropped    map[string]int
}

type lastLines struct {
	lines []*pb.LogLine
	bytes int
}

func newLogbook() *logbook {
	return &logbook{ready: signal.NewWake(), kept: map[string]*lastLines{}, subscribed: map[string]bool{}, dropped: map[string]int{}}
}

// add notes a line of an instance, and the source of its version.
func (b *logbook) add(function, source string, l instance.Line) {
	if len(l.Text) > keptText {
		l.Text = l.Text[:keptText] + "…"
	}
	b.put(&pb.LogLine{
		Function: function, Instance: l.Instance, Time: timestamppb.New(l.Time), Stream: l.Stream, Text: l.Text,
		RequestId: l.RequestID, TraceId: l.TraceID, Source: source,
	})
}

// say notes what the runner itself says of a function.
func (b *logbook) say(function, instance, text string) {
	b.put(&pb.LogLine{Function: function, Instance: instance, Time: timestamppb.New(time.Now()), Stream: "runner", Text: text})
}

// sayOf is say for one version.
func (b *logbook) sayOf(f *pb.Function, instance, text string) {
	b.put(&pb.LogLine{Function: f.GetName(), Instance: instance, Time: timestamppb.New(time.Now()), Stream: "runner", Text: text, Source: f.GetSource()})
}

// build notes a line that a build printed.
func (b *logbook) build(function, text string) {
	if len(text) > keptText {
		text = text[:keptText] + "…"
	}
	b.put(&pb.LogLine{Function: function, Time: timestamppb.New(time.Now()), Stream: "build", Text: strings.ToValidUTF8(text, "\ufffd")})
}

func (b *logbook) put(l *pb.LogLine) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.sequence++
	l.Sequence = b.sequence
	k := b.kept[l.GetFunction()]
	if k == nil {
		k = &lastLines{}
		b.kept[l.GetFunction()] = k
	}
	k.lines = append(k.lines, l)
	k.bytes += len(l.GetText())
	n := 0
	for ; len(k.lines)-n > keptLines || k.bytes > keptBytes; n++ {
		k.bytes -= len(k.lines[n].GetText())
	}
	if n > 0 {
		k.lines = slices.Delete(k.lines, 0, n)
	}
	if !b.subscribed[l.GetFunction()] {
		return
	}
	if len(b.pending) >= pendingLines {
		b.dropped[l.GetFunction()]++
		return
	}
	b.pending = append(b.pending, l)
	b.ready.Set()
}

// subscribe says whose lines are wanted from now on. Of those that were not wanted
// before, what is kept comes first.
func (b *logbook) subscribe(functions []string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	before := b.subscribed
	b.subscribed = make(map[string]bool, len(functions))
	for _, f := range functions {
		b.subscribed[f] = true
		if k := b.kept[f]; k != nil && !before[f] {
			b.pending = append(b.pending, k.lines...)
			b.ready.Set()
		}
	}
}

// take returns the next lines to be sent.
func (b *logbook) take() *pb.RunnerLogs {
	b.mu.Lock()
	defer b.mu.Unlock()
	n := min(len(b.pending), linesAtOnce)
	out := &pb.RunnerLogs{Lines: slices.Clone(b.pending[:n])}
	b.pending = b.pending[n:]
	if len(b.pending) > 0 {
		b.ready.Set()
		return out
	}
	b.pending = nil
	for f, n := range b.dropped {
		b.sequence++
		out.Lines = append(out.Lines, &pb.LogLine{
			Function: f, Time: timestamppb.New(time.Now()), Stream: "runner", Sequence: b.sequence,
			Text: fmt.Sprintf("%d lines were dropped: more is printed than can be sent", n),
		})
	}
	clear(b.dropped)
	return out
}

// forget drops the lines of a function that is gone.
func (b *logbook) forget(function string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.kept, function)
	delete(b.dropped, function)
}
