package instance

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"time"
)

// HeaderColdStart is "1" on the answer to a request that waited for its instance
// to start. A function's own answer never has it.
const HeaderColdStart = "x-cold-start"

// Receiver takes in the bodies of requests for which there is no instance yet, as
// an instance would: whole for contracts that need them whole, else the first
// 1 MiB, the rest of which then waits with its sender.
type Receiver struct {
	uploads uploads
	maxBody int64
	after   time.Duration
	stall   time.Duration
}

// NewReceiver makes a Receiver for a function whose instances have such options.
// maxBody is WholeBody.MaxBody of its contract, 0 when that reads bodies as they
// come. Bodies use at most room bytes together.
func NewReceiver(maxBody int64, o Options, room int64) *Receiver {
	o.setDefaults()
	return &Receiver{uploads: uploads{most: room, count: 1 << 20}, maxBody: maxBody, after: o.streamAfter(), stall: o.UploadStall}
}

// Held is a request on its way to an instance. It belongs to one goroutine.
type Held struct {
	// Cold says that it waits for its instance to start.
	Cold bool

	up    *upload
	leave func()
}

// Receive takes in a request's body as far as it is needed. Its error is for Refuse.
// Done must be called when the request ends.
func (rc *Receiver) Receive(w http.ResponseWriter, r *http.Request) (*Held, error) {
	h := &Held{up: newUpload(w, r, &rc.uploads, rc.stall)}
	if h.up == nil {
		return h, nil
	}
	return h, h.up.receive(rc.maxBody, rc.after)
}

// Done ends the reading of the body.
func (h *Held) Done() {
	h.up.end()
	h.up.linger()
}

// Reserve takes a slot for a held request when one is free, for ServeHeld.
func (i *Instance) Reserve(h *Held) bool {
	if i.open() != nil {
		return false
	}
	leave := i.leaver(i.slots)
	if !i.slots.try() {
		return false
	}
	if !h.up.complete() {
		if !i.streams.try() {
			i.slots.leave()
			return false
		}
		leave = func() { i.streams.leave(); i.leaver(i.slots)() }
	}
	h.leave = leave
	return true
}

// ServeHeld serves a request with the slot that was reserved for it. When the
// instance ended before it had read the request it returns false, and nothing has
// been answered: another instance may have it.
func (i *Instance) ServeHeld(w http.ResponseWriter, r *http.Request, h *Held) bool {
	if i.open() != nil {
		h.leave()
		return false
	}
	i.holding.Add(1)
	defer i.holding.Add(-1)
	q := r.WithContext(r.Context())
	q.Header = r.Header.Clone()
	if body := h.whole(); body != nil {
		// Of its own, for a process that ended may have left a reader behind.
		q.Body = io.NopCloser(bytes.NewReader(body))
	}
	return i.serve(w, q, h)
}

// whole is all of the body, when it has come and nobody has read of it; else nil.
func (h *Held) whole() []byte {
	if h.up == nil {
		return nil
	}
	h.up.mu.Lock()
	defer h.up.mu.Unlock()
	if !h.up.whole || int64(h.up.buf.Len()) != h.up.total {
		return nil
	}
	return h.up.buf.Bytes()
}

// again reports whether another instance may have the request of which this one made
// an error.
func (h *Held) again(rec *recorder, err error) bool {
	if h == nil || rec.begun {
		return false
	}
	var refused Refused
	return errors.As(err, &refused) && (h.up == nil || h.whole() != nil)
}

// GiveBack returns a slot that was reserved and is not used.
func (h *Held) GiveBack() { h.leave() }

// RequestID is the id of a request: the caller's x-request-id when it is
// well-formed, else a new UUID, which the request then carries.
func RequestID(r *http.Request) string {
	id := requestID(r)
	r.Header.Set("X-Request-Id", id)
	return id
}

// Refuse writes an answer in place of a function's: kind in HeaderError, and in
// HeaderRefused when again, so that proxies may send the request elsewhere.
func Refuse(w http.ResponseWriter, r *http.Request, id string, status int, kind, text string, again bool) {
	h := w.Header()
	h.Set(HeaderError, kind)
	if again {
		h.Set(HeaderRefused, kind)
	}
	if isGRPC(r) {
		writeGRPC(w, status, kind, text)
		return
	}
	writeProblem(w, status, kind, text, id)
}

// Whole reports whether all of the body has come.
func (h *Held) Whole() bool { return h.up.complete() }
