package instance

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

// whole is a probe that wants whole bodies, as the lambda contract does.
type whole struct {
	*probe
	most int64
}

func (w whole) MaxBody() int64 { return w.most }

// reads answers with the length of the body, and fails as the body does.
func reads(w http.ResponseWriter, r *http.Request, _ *Invocation) error {
	b, err := io.ReadAll(r.Body)
	if err != nil {
		return ErrDied // the fault of the sender must win over what the contract makes of it
	}
	_, err = fmt.Fprint(w, len(b))
	return err
}

// wire is a connection that a test writes to byte by byte.
type wire struct {
	net.Conn
	t  *testing.T
	in *bufio.Reader
}

func connect(t *testing.T, i *Instance, text string) *wire {
	t.Helper()
	c, err := net.Dial("tcp", i.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(patience))
	w := &wire{c, t, bufio.NewReader(c)}
	w.send(text)
	return w
}

func (w *wire) send(text string) {
	w.t.Helper()
	if _, err := io.WriteString(w, text); err != nil {
		w.t.Fatal(err)
	}
}

func (w *wire) answer() (*http.Response, string) {
	w.t.Helper()
	resp, err := http.ReadResponse(w.in, nil)
	if err != nil {
		w.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		w.t.Fatal(err)
	}
	return resp, string(b)
}

const (
	sized   = "POST /%d HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nx"
	chunked = "POST /%d HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n"
)

func variants(t *testing.T, f func(t *testing.T, contract func(*probe) Contract, cancels bool)) {
	t.Run("whole", func(t *testing.T) { f(t, func(p *probe) Contract { return whole{p, 1000} }, false) })
	t.Run("streaming", func(t *testing.T) { f(t, func(p *probe) Contract { return p }, true) })
}

// TestSlowBody: a body that does not come is answered with 408, says why, and
// costs the instance nothing.
func TestSlowBody(t *testing.T) {
	variants(t, func(t *testing.T, contract func(*probe) Contract, cancels bool) {
		for name, text := range map[string]string{"sized": sized, "chunked": chunked} {
			t.Run(name, func(t *testing.T) {
				p := newProbe(reads)
				p.cancels = cancels
				i := start(t, p, func(o *Options) {
					o.ID, o.Concurrency, o.UploadStall = "f-slow", 2, 20*time.Millisecond
					o.Contract = func(Host) (Contract, error) { return contract(p), nil }
				})
				await(t, "ready", i.Ready())
				resp, body := connect(t, i, fmt.Sprintf(text, 1)).answer()
				var e Problem
				if err := json.Unmarshal([]byte(body), &e); err != nil || !strings.Contains(e.Detail, "did not come in time") || e.RequestID == "" {
					t.Errorf("%v: %s", err, body)
				}
				if resp.StatusCode != 408 || resp.Header.Get(HeaderError) != KindSlowBody || !resp.Close || strings.Contains(body, "projects/") {
					t.Errorf("%d %v %s", resp.StatusCode, resp.Header, body)
				}
				ask, _ := dial(t, i)
				if resp := ask("/"); resp.StatusCode != 200 {
					t.Errorf("afterwards: %d", resp.StatusCode)
				}
				stays(t, i)
			})
		}
	})
}

// stays checks that an instance is neither dead nor to be replaced.
func stays(t *testing.T, i *Instance) {
	t.Helper()
	select {
	case <-i.Dead():
		t.Errorf("the instance was killed: %v", i.Err())
	case <-i.Replace():
		t.Error("the instance was replaced")
	default:
	}
}

// TestManySlowBodies: slow senders take neither slots nor the queue from others,
// and one that does come to its end is served.
func TestManySlowBodies(t *testing.T) {
	variants(t, func(t *testing.T, contract func(*probe) Contract, cancels bool) {
		for concurrency := 1; concurrency <= 4; concurrency += 3 {
			p := newProbe(reads)
			p.cancels = cancels
			i := start(t, p, func(o *Options) {
				o.ID, o.Concurrency, o.Queue, o.QueueTimeout = "f-many", concurrency, 1, patience
				o.UploadStall = patience
				o.Contract = func(Host) (Contract, error) { return contract(p), nil }
			})
			await(t, "ready", i.Ready())
			var slow []*wire
			for n := range 10 {
				slow = append(slow, connect(t, i, fmt.Sprintf(sized, n)), connect(t, i, fmt.Sprintf(chunked, n)))
			}
			honest := connect(t, i, "")
			for n := range 20 {
				honest.send("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello")
				// The connection goes on: its body was read to the end.
				if resp, body := honest.answer(); resp.StatusCode != 200 || body != "5" || resp.Close {
					t.Fatalf("concurrency %d, honest request %d: %d %v %s", concurrency, n, resp.StatusCode, resp.Header, body)
				}
			}
			slow[0].send(strings.Repeat("x", 99))
			if resp, body := slow[0].answer(); resp.StatusCode != 200 || body != "100" {
				t.Errorf("a slow one that ends: %d %s", resp.StatusCode, body)
			}
			stays(t, i)
		}
	})
}

// TestSlowStream: a stream that stalls in a slot holds it until the function's
// timeout at most, and is the sender's fault.
func TestSlowStream(t *testing.T) {
	served := make(chan struct{}, 1)
	i := start(t, newProbe(func(w http.ResponseWriter, r *http.Request, v *Invocation) error {
		served <- struct{}{}
		return reads(w, r, v)
	}), func(o *Options) { o.Concurrency, o.Timeout = 2, 20*time.Millisecond })
	await(t, "ready", i.Ready())
	c := connect(t, i, fmt.Sprintf(chunked, 1))
	await(t, "the contract", served)
	if resp, body := c.answer(); resp.StatusCode != 408 || !strings.Contains(body, "the function's timeout passed") {
		t.Errorf("%d %s", resp.StatusCode, body)
	}
	stays(t, i)
}

// TestSlowReader: a caller that does not take its answer is cut off at the
// timeout; its instance is not to blame.
func TestSlowReader(t *testing.T) {
	for _, cancels := range []bool{true, false} {
		t.Run(fmt.Sprintf("cancels %v", cancels), func(t *testing.T) {
			ended := make(chan struct{})
			p := newProbe(func(w http.ResponseWriter, r *http.Request, _ *Invocation) error {
				if r.URL.Path != "/endless" {
					return ok(w, r, nil)
				}
				defer close(ended)
				for b := make([]byte, 64<<10); ; {
					if _, err := w.Write(b); err != nil {
						return context.Canceled
					}
				}
			})
			p.cancels = cancels
			i := start(t, p, func(o *Options) { o.ID, o.Timeout = fmt.Sprintf("f-reader-%v", cancels), 50*time.Millisecond })
			await(t, "ready", i.Ready())
			connect(t, i, "GET /endless HTTP/1.1\r\nHost: x\r\n\r\n")
			await(t, "the end of the answer", ended)
			ask, _ := dial(t, i)
			if resp := ask("/"); resp.StatusCode != 200 {
				t.Errorf("afterwards: %d", resp.StatusCode)
			}
			stays(t, i)
		})
	}
}

// TestUnread: an answer that does not need the body comes at once, and the
// connection is not used again.
func TestUnread(t *testing.T) {
	for name, text := range map[string]string{"sized": strings.Replace(sized, "100", "2000000", 1), "chunked": chunked} {
		t.Run(name, func(t *testing.T) {
			i := start(t, newProbe(ok), func(o *Options) { o.ID, o.Concurrency = "f-unread", 2 })
			await(t, "ready", i.Ready())
			c := connect(t, i, fmt.Sprintf(text, 1))
			if name == "sized" {
				c.send(strings.Repeat("x", aheadBytes)) // a part, and more is to come
			}
			if resp, _ := c.answer(); resp.StatusCode != 200 || !resp.Close {
				t.Errorf("%d %v", resp.StatusCode, resp.Header)
			}
		})
	}
}

// TestRoomForBodies: when the room for bodies is full, the sender that has been
// waited for longest gives way.
func TestRoomForBodies(t *testing.T) {
	p := newProbe(reads)
	p.cancels = false
	i := start(t, p, func(o *Options) {
		o.UploadStall = patience
		o.Contract = func(Host) (Contract, error) { return whole{p, 1000}, nil }
	})
	await(t, "ready", i.Ready())
	i.uploads.mu.Lock()
	i.uploads.most = 100
	i.uploads.mu.Unlock()
	oldest := connect(t, i, "POST /old HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n"+strings.Repeat("x", 60))
	awaitHeld(t, i, 60, 1)
	resp, body := connect(t, i, "POST /new HTTP/1.1\r\nHost: x\r\nContent-Length: 80\r\n\r\n"+strings.Repeat("x", 80)).answer()
	if resp.StatusCode != 200 || body != "80" {
		t.Errorf("the new one: %d %s", resp.StatusCode, body)
	}
	if resp, body := oldest.answer(); resp.StatusCode != 408 || !strings.Contains(body, "others need the room") {
		t.Errorf("the oldest: %d %s", resp.StatusCode, body)
	}
	// All room is given back.
	oldest.Close()
	awaitHeld(t, i, 0, 0)
}

// TestBodyTooLarge: 413 for what a contract with whole bodies cannot take, known
// by its length or found out.
func TestBodyTooLarge(t *testing.T) {
	p := newProbe(reads)
	i := start(t, p, func(o *Options) { o.Contract = func(Host) (Contract, error) { return whole{p, 10}, nil } })
	await(t, "ready", i.Ready())
	for _, text := range []string{
		"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 11\r\n\r\n",
		"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nb\r\nhello world\r\n",
	} {
		if resp, body := connect(t, i, text).answer(); resp.StatusCode != 413 || resp.Header.Get(HeaderError) != KindTooLarge || !strings.Contains(body, "10 bytes") {
			t.Errorf("%d %v %s", resp.StatusCode, resp.Header, body)
		}
	}
}

// TestCallerGone: a caller that goes in the middle of its body is not a failure of the
// instance, and leaves nothing.
func TestCallerGone(t *testing.T) {
	i := start(t, newProbe(reads), func(o *Options) { o.Concurrency = 2 })
	await(t, "ready", i.Ready())
	c := connect(t, i, fmt.Sprintf(chunked, 1))
	awaitHeld(t, i, 1, 1)
	c.Close()
	awaitHeld(t, i, 0, 0)
	ask, _ := dial(t, i)
	if resp := ask("/"); resp.StatusCode != 200 {
		t.Errorf("afterwards: %d", resp.StatusCode)
	}
	stays(t, i)
}

// awaitHeld waits until an instance holds so many bytes of so many bodies.
func awaitHeld(t *testing.T, i *Instance, bytes int64, bodies int) {
	t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		i.uploads.mu.Lock()
		total, held := i.uploads.total, len(i.uploads.held)
		i.uploads.mu.Unlock()
		if total == bytes && held == bodies {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d bytes of %d bodies are held", total, held)
		}
	}
}
