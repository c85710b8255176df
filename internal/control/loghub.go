package control

import (
	"context"
	"crypto/rand"
	"maps"
	"slices"
	"sync"
	"time"

	"go.opentelemetry.io/otel/trace"

	"github.com/penstock-gateway/penstock/gateway"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
	"github.com/penstock-gateway/penstock/internal/signal"
)

const (
	// logSettle is the silence after which the lines that runners kept are all here.
	logSettle = 200 * time.Millisecond
	// logFirst is how long the first of them may take.
	logFirst = 2 * time.Second
	// logBuffer is how many messages a slow reader may lag behind; then some are lost.
	logBuffer = 256
)

// logHub passes the lines that functions print from runners to those who read them.
// Runners send only what somebody reads.
type logHub struct {
	// changed tells that what is read has changed.
	changed signal.Broadcast

	mu   sync.Mutex
	subs map[*logSub]struct{}
}

// logSub reads the lines of one function and its versions.
type logSub struct {
	hub      *logHub
	function string
	lines    chan []*pb.LogLine
	// seen are the last lines of each instance, for several readers make a runner
	// send what it kept again.
	seen map[string]uint64
}

// wanted are the functions whose lines are read, sorted.
func (h *logHub) wanted() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	names := map[string]bool{}
	for s := range h.subs {
		names[s.function] = true
	}
	return slices.Sorted(maps.Keys(names))
}

func (h *logHub) subscribe(function string) *logSub {
	h.mu.Lock()
	defer h.mu.Unlock()
	s := &logSub{hub: h, function: function, lines: make(chan []*pb.LogLine, logBuffer), seen: map[string]uint64{}}
	if h.subs == nil {
		h.subs = map[*logSub]struct{}{}
	}
	h.subs[s] = struct{}{}
	h.changed.Notify()
	return s
}

func (s *logSub) close() {
	s.hub.mu.Lock()
	defer s.hub.mu.Unlock()
	delete(s.hub.subs, s)
	s.hub.changed.Notify()
}

// deliver passes lines on. It never waits: who does not read loses lines.
func (h *logHub) deliver(lines []*pb.LogLine) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for s := range h.subs {
		var mine []*pb.LogLine
		for _, l := range lines {
			of, _ := gateway.FunctionOf(l.GetFunction())
			if of != s.function || (l.GetSequence() != 0 && l.GetSequence() <= s.seen[l.GetInstance()]) {
				continue
			}
			s.seen[l.GetInstance()] = l.GetSequence()
			mine = append(mine, l)
		}
		if len(mine) > 0 {
			select {
			case s.lines <- mine:
			default:
			}
		}
	}
}

// gather returns what comes until there was silence for a while, or enough comes.
func (s *logSub) gather(ctx context.Context, silence time.Duration, enough func(*pb.LogLine) bool) []*pb.LogLine {
	var out []*pb.LogLine
	timer := time.NewTimer(logFirst)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return out
		case <-timer.C:
			return out
		case lines := <-s.lines:
			out = append(out, lines...)
			if slices.ContainsFunc(lines, enough) {
				return out
			}
			timer.Reset(silence)
		}
	}
}

// newSpanContext begins a trace.
func newSpanContext() trace.SpanContext {
	var t trace.TraceID
	var s trace.SpanID
	rand.Read(t[:])
	rand.Read(s[:])
	return trace.NewSpanContext(trace.SpanContextConfig{TraceID: t, SpanID: s, TraceFlags: trace.FlagsSampled})
}
