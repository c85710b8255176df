package instance

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"sync"
	"time"
)

const (
	// A body must come at uploadRate bytes/s on average beyond a credit of
	// Options.UploadStall, and never pause for longer than that while it is waited
	// for. One that is read before its request is begun has uploadLimit in all.
	uploadRate  = 16 << 10
	uploadLimit = time.Minute
	// aheadBytes of a body are read before its request takes a slot, so that a slow
	// sender costs nobody else anything. A body of unknown length that is not whole
	// after streamAfter (Options.StreamAfter) is taken for a stream that waits for its answer.
	aheadBytes  = 1 << 20
	streamAfter = 250 * time.Millisecond
	// lingerUpload is how long what the caller still sends is taken after an answer
	// that did not need it, so that a reset does not overtake the answer.
	lingerUpload = 500 * time.Millisecond
)

// errBodyClosed is for readers of a body that is not wanted any more.
var errBodyClosed = errors.New("the request body is not read any more")

// WholeBody is a Contract that needs all of a request's body before it can begin.
// The instance then reads it before the request takes a slot, so that only whole
// requests count against concurrency and deadline.
type WholeBody interface {
	// MaxBody is the largest body in bytes; larger ones are answered with 413.
	MaxBody() int64
}

// upload is the body of one request. A goroutine of its own reads it ahead of its
// reader, within a bound, under deadlines that count only the time in which the
// sender is waited for: a process that reads slowly is not the sender's fault.
type upload struct {
	src     io.ReadCloser
	control *http.ResponseController
	all     *uploads
	length  int64 // -1: unknown
	stall   time.Duration
	limit   int // bytes that are kept ahead of the reader
	started time.Time

	mu      sync.Mutex
	changed sync.Cond
	buf     bytes.Buffer
	total   int64
	last    time.Time     // when the last part of it came
	spent   time.Duration // waiting for the sender
	pumping bool
	reading bool  // the sender is waited for
	whole   bool  // all of it has come
	relaxed bool  // the answer has begun: the deadline of the invocation is enough
	closed  bool  // nobody wants more
	ahead   bool  // the request has not been begun
	err     error // why no more comes; io.EOF when whole
	fault   error // the sender's: it was too slow, or went away
	stopped chan struct{}
}

// newUpload makes the body of a request; nil when it has none.
func newUpload(w http.ResponseWriter, r *http.Request, all *uploads, stall time.Duration) *upload {
	if r.Body == nil || r.Body == http.NoBody || r.ContentLength == 0 {
		return nil
	}
	// Without full duplex net/http reads a body to its end before it lets an answer
	// begin, however slowly it comes. With it, a connection whose body was not read
	// to its end cannot serve another request (net/http panics): the recorder then
	// has it closed.
	control := http.NewResponseController(w)
	_ = control.EnableFullDuplex()
	u := &upload{
		src: r.Body, control: control, all: all, length: r.ContentLength, limit: aheadBytes, stall: stall,
		started: time.Now(), ahead: true, stopped: make(chan struct{}),
	}
	u.changed.L = &u.mu
	r.Body = u
	return u
}

// receive reads ahead before the request is begun: all of the body when the
// contract takes whole ones only, up to maxBody bytes, else (0) as much as is kept
// ahead, and of a body of unknown length what
// comes within a moment (after; 0: it is not a stream). It may be called again for more.
func (u *upload) receive(maxBody int64, after time.Duration) error {
	all, stream := maxBody > 0, u.length < 0 && after > 0
	if all && u.length > maxBody {
		return bodyTooLarge(maxBody)
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	more := !u.pumping
	if all {
		more = more || u.limit <= int(maxBody)
		u.limit, stream = int(maxBody)+1, false
	}
	if !u.pumping {
		u.all.add(u)
		u.pumping = true
		go u.pump()
	}
	over := !more
	u.changed.Broadcast()
	if stream {
		timer := time.AfterFunc(after, func() {
			u.mu.Lock()
			defer u.mu.Unlock()
			over = true
			u.changed.Broadcast()
		})
		defer timer.Stop()
	}
	for u.err == nil && u.buf.Len() < u.limit && !over {
		u.changed.Wait()
	}
	switch {
	case u.fault != nil:
		return u.fault
	case all && int64(u.buf.Len()) > maxBody:
		return bodyTooLarge(maxBody)
	}
	u.ahead = false
	return nil
}

func bodyTooLarge(most int64) error {
	return &Failed{
		Status: http.StatusRequestEntityTooLarge, Kind: KindTooLarge,
		Detail: fmt.Sprintf("the request body is larger than %d bytes, the most that this function takes", most),
	}
}

func (u *upload) tooSlow(why string) error {
	return &Failed{
		Status: http.StatusRequestTimeout, Kind: KindSlowBody,
		Detail: fmt.Sprintf("the request body did not come in time (%s): %d bytes came; send it faster, or in one go", why, u.total),
	}
}

// patience is how long the next piece may take. The caller holds mu.
func (u *upload) patience(now time.Time) time.Duration {
	credit := u.stall + time.Duration(u.total)*time.Second/uploadRate - u.spent
	d := min(u.stall, credit)
	if u.ahead {
		d = min(d, u.started.Add(uploadLimit).Sub(now))
	}
	return max(d, 0)
}

// pump reads the body until it ends or nobody wants it.
func (u *upload) pump() {
	defer close(u.stopped)
	size := int64(32 << 10)
	if u.length > 0 {
		size = min(size, u.length)
	}
	b := make([]byte, size)
	for u.wanted() {
		began := time.Now()
		n, err := u.src.Read(b)
		u.take(b[:n], err, time.Since(began))
		if n > 0 {
			u.all.grow(u, int64(n))
		}
		if err != nil {
			return
		}
	}
}

// wanted waits until more is wanted, and sets the deadline for it.
func (u *upload) wanted() bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	for !u.closed && u.buf.Len() >= u.limit {
		u.changed.Wait()
	}
	if u.closed {
		return false
	}
	now := time.Now()
	if u.relaxed {
		_ = u.control.SetReadDeadline(time.Time{})
	} else {
		_ = u.control.SetReadDeadline(now.Add(u.patience(now)))
	}
	u.reading = true
	return true
}

// take notes what a read gave.
func (u *upload) take(b []byte, err error, took time.Duration) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.reading = false
	u.spent += took
	u.total += int64(len(b))
	u.buf.Write(b)
	if len(b) > 0 || errors.Is(err, io.EOF) {
		u.last = time.Now()
	}
	switch {
	case errors.Is(err, io.EOF):
		u.whole = true
		_ = u.control.SetReadDeadline(time.Time{}) // the connection serves on
	case err == nil || u.closed:
		err = nil
	case errors.Is(err, os.ErrDeadlineExceeded):
		u.fault = u.tooSlow(fmt.Sprintf("at most %s between its parts and %d KiB a second are waited for", u.stall, uploadRate>>10))
		err = u.fault
	default: // the caller went away in the middle of its body
		u.fault = context.Canceled
		err = u.fault
	}
	if u.err == nil {
		u.err = err
	}
	u.changed.Broadcast()
}

// Read implements io.Reader for the contract.
func (u *upload) Read(b []byte) (int, error) {
	u.mu.Lock()
	for u.buf.Len() == 0 && u.err == nil && len(b) > 0 {
		u.changed.Wait()
	}
	if u.buf.Len() == 0 {
		defer u.mu.Unlock()
		return 0, u.err
	}
	n, _ := u.buf.Read(b)
	var err error
	if u.buf.Len() == 0 && u.whole {
		err = io.EOF
	}
	u.changed.Broadcast()
	u.mu.Unlock()
	u.all.grow(u, -int64(n))
	return n, err
}

// Close implements io.Closer: no more is read, and who waits for more is let go.
func (u *upload) Close() error {
	u.cut(nil)
	return nil
}

// cut ends the reading. A fault is the sender's.
func (u *upload) cut(fault error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if fault != nil && u.fault == nil && !u.whole {
		u.fault = fault
	}
	if u.err == nil {
		u.err = errBodyClosed
		if u.fault != nil {
			u.err = u.fault
		}
	}
	u.closed = true
	if u.reading {
		_ = u.control.SetReadDeadline(time.Unix(1, 0))
	}
	u.changed.Broadcast()
}

// evict ends a body that has been waited for longest when there are too many. It
// is false when the sender is not waited for.
func (u *upload) evict() bool {
	u.mu.Lock()
	waiting := u.reading && !u.relaxed && !u.closed
	fault := u.tooSlow("others need the room")
	u.mu.Unlock()
	if waiting {
		u.cut(fault)
	}
	return waiting
}

// relax is called when the answer begins: a sender may wait for parts of it.
func (u *upload) relax() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.relaxed = true
	if u.reading && !u.closed {
		_ = u.control.SetReadDeadline(time.Time{})
	}
}

// complete reports whether all of it has come.
func (u *upload) complete() bool {
	if u == nil {
		return true
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.whole
}

// lastPart is when the last part of it came; the zero time when none has.
func (u *upload) lastPart() time.Time {
	if u == nil {
		return time.Time{}
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.last
}

// overdue ends the reading at the function's deadline, and puts it down to the
// sender if that is who is waited for.
func (u *upload) overdue() {
	if u == nil {
		return
	}
	u.mu.Lock()
	var fault error
	if u.reading {
		fault = u.tooSlow("the function's timeout passed")
	}
	u.mu.Unlock()
	u.cut(fault)
}

// sendersFault is the sender's fault, if any.
func (u *upload) sendersFault() error {
	if u == nil {
		return nil
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.fault
}

// end stops the reading for good, before net/http has the body back.
func (u *upload) end() {
	if u == nil {
		return
	}
	u.cut(nil)
	u.mu.Lock()
	pumping := u.pumping
	u.mu.Unlock()
	if pumping {
		<-u.stopped
		u.all.remove(u)
	}
}

// linger bounds what net/http reads of the rest after the answer.
func (u *upload) linger() {
	if !u.complete() {
		_ = u.control.SetReadDeadline(time.Now().Add(lingerUpload))
	}
}
