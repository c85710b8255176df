package instance

import "time"

// Observer hears of the requests of an instance. Its methods are called from many
// goroutines and must be quick.
type Observer interface {
	// Arrived: a proxy sent a request to the instance itself.
	Arrived()
	// Ended: a request has ended, however it came.
	Ended(Sample)
	// Freed: a slot is free again.
	Freed()
	// Ready: the instance became ready after some time.
	Ready(time.Duration)
	// Line: the process printed a line.
	Line(Line)
}

// Sample is one request.
type Sample struct {
	// Status of the answer; 0: it was cut, or the caller went away.
	Status int
	// Refused: it was turned away before it began.
	Refused bool
	// Cold: it waited for a start.
	Cold bool
	// Handler is the handler's own time t, Total the time T from when it had a slot.
	// Both are 0 when it never began, and when its connection was taken over.
	Handler, Total time.Duration
}

// Line is one line of output.
type Line struct {
	// Instance is the id, Stream "stdout" or "stderr".
	Instance, Stream string
	Time             time.Time
	Text             string
	// RequestID and TraceID of the request that was handled, where known.
	RequestID, TraceID string
}

// nobody observes nothing.
type nobody struct{}

func (nobody) Arrived()            {}
func (nobody) Ended(Sample)        {}
func (nobody) Freed()              {}
func (nobody) Ready(time.Duration) {}
func (nobody) Line(Line)           {}
