package compile_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync/atomic"
	"testing"

	"github.com/penstock-gateway/penstock/functions/instance"
)

const timeYAML = gatewayOn + `
---
kind: Backend
name: one
static: {endpoints: [HANGING]}
---
kind: Backend
name: two
load_balancing: ROUND_ROBIN
static: {endpoints: [HANGING, GOOD]}
---
kind: Function
name: f
source: f
timeout: 60s
server: {command: [./f]}
---
kind: Route
name: all
rules:
- {name: one, matches: [{path: {prefix: /one}}], forward: {backends: [{backend: one}]}, policies: {timeout: {request: 0.2s}}}
- {name: two, matches: [{path: {prefix: /two}}], forward: {backends: [{backend: two}]}, policies: {timeout: {request: 0.2s}}}
- {name: f, matches: [{path: {prefix: /f}}], forward: {backends: [{backend: functions/f}]}, policies: {timeout: {request: 0.2s}}}
- {name: again, matches: [{path: {prefix: /again}}], forward: {backends: [{backend: functions/f}]}, policies: {timeout: {request: 0.4s}, retry: {idempotent: {per_try_timeout: 0.2s}}}}
- {name: off, matches: [{path: {prefix: /off}}], forward: {backends: [{backend: one}]}, policies: {timeout: {request: 0.2s}, retry: {idempotent: {attempts: 0}, other: {attempts: 0}}}}
- {name: idle, matches: [{path: {prefix: /idle}}], forward: {backends: [{backend: one}]}, policies: {timeout: {request: 0s, idle: 0.2s}}}
- {name: most, matches: [{path: {prefix: /most}}], forward: {backends: [{backend: one}]}, policies: {timeout: {max_stream_duration: 0.2s}}}
`

// slowBackend hangs for ever, or streams: its events are "one", and "two" when a test
// says so.
type slowBackend struct {
	begun atomic.Int64 // requests
	more  chan struct{}
}

func (s *slowBackend) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if instance.Late(w, r) {
		return
	}
	s.begun.Add(1)
	switch r.URL.Query().Get("do") {
	case "stream", "upload":
		control := http.NewResponseController(w)
		if r.URL.Query().Get("do") == "upload" {
			n, err := io.Copy(io.Discard, r.Body)
			fmt.Fprint(w, n, err)
			return
		}
		fmt.Fprintln(w, "one")
		_ = control.Flush()
		select {
		case <-s.more:
			fmt.Fprintln(w, "two")
		case <-r.Context().Done():
		}
	case "upgrade":
		c, b, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		defer c.Close()
		fmt.Fprint(b, "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n")
		b.Flush()
		_, _ = io.Copy(c, b)
	default:
		_, _ = io.Copy(io.Discard, r.Body)
		<-r.Context().Done()
	}
}

// TestTime: the bound of a request is that of the time until its response begins. It
// is exact where nothing else can answer; what has begun, an upload and an upgraded
// connection outlive it, and end by idleness and max_stream_duration.
func TestTime(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	slow := &slowBackend{more: make(chan struct{})}
	hanging := serverOn(t, slow.ServeHTTP)
	good := serverOn(t, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "good") })
	r.instances["projects/default/functions/f"] = append(r.instances["projects/default/functions/f"], hanging, hanging)
	r.instances["projects/default/functions/f"][1] = serverOn(t, slow.ServeHTTP)
	port := r.serve(t, replaceAll(timeYAML, "HANGING", endpointYAML(hanging, 0), "GOOD", endpointYAML(good, 0)))
	tries := func(method, path string, status int, want int64) {
		t.Helper()
		slow.begun.Store(0)
		a := r.do(t, port, method, "x.test"+path, "Content-Length: 0")
		if n := slow.begun.Load(); a.status != status || n != want {
			t.Errorf("%s %s: %d %s after %d tries, want %d after %d", method, path, a.status, a.body, n, status, want)
		}
	}
	for _, method := range []string{"GET", "POST"} {
		tries(method, "/one", 504, 1)
		tries(method, "/f", 504, 1)
		tries(method, "/off", 504, 1)
		tries(method, "/idle", 504, 1)
	}
	tries("GET", "/again", 504, 3)
	tries("POST", "/again", 504, 1)
	if a := r.do(t, port, "GET", "x.test/f"); a.header.Get("x-penstock-error") != "timeout" {
		t.Errorf("a function says why: %v", a.header)
	}
	for range 4 {
		if a := r.do(t, port, "GET", "x.test/two"); a.status != 200 || a.body != "good" {
			t.Errorf("an endpoint that hangs beside one that does not: %d %s", a.status, a.body)
		}
	}
	for _, path := range []string{"/one", "/f", "/off"} {
		t.Run("flows"+path, func(t *testing.T) { flows(t, r, port, slow, path) })
	}
	for _, path := range []string{"/idle", "/most"} {
		c, in := open(t, port, "GET "+path+"?do=stream HTTP/1.1\r\nHost: x.test\r\n\r\n")
		res, err := http.ReadResponse(in, nil)
		if err != nil || res.StatusCode != 200 {
			t.Fatalf("%v %v", res, err)
		}
		if b, err := io.ReadAll(res.Body); string(b) != "one\n" || err == nil {
			t.Errorf("%s: %q, %v; want it to be cut", path, b, err)
		}
		c.Close()
	}
}

// open sends the head of a request, and perhaps more.
func open(t *testing.T, port int, text string) (net.Conn, *bufio.Reader) {
	t.Helper()
	c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatal(err)
	}
	return c, bufio.NewReader(c)
}

// flows: a stream, an upload and an upgraded connection live on when a request that
// began after them has run out of its time.
func flows(t *testing.T, r *rig, port int, slow *slowBackend, path string) {
	_, stream := open(t, port, "GET "+path+"?do=stream HTTP/1.1\r\nHost: x.test\r\n\r\n")
	res, err := http.ReadResponse(stream, nil)
	if err != nil || res.StatusCode != 200 {
		t.Fatalf("%v %v", res, err)
	}
	events := bufio.NewReader(res.Body)
	if line, err := events.ReadString('\n'); err != nil || line != "one\n" {
		t.Fatalf("%q %v", line, err)
	}
	up, answer := open(t, port, "POST "+path+"?do=upload HTTP/1.1\r\nHost: x.test\r\nContent-Length: 6\r\n\r\nabc")
	ws, frames := open(t, port, "GET "+path+"?do=upgrade HTTP/1.1\r\nHost: x.test\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n")
	if res, err := http.ReadResponse(frames, nil); err != nil || res.StatusCode != 101 {
		t.Fatalf("%v %v", res, err)
	}
	for range 2 {
		if a := r.do(t, port, "GET", "x.test"+path); a.status != 504 {
			t.Fatalf("%d %s", a.status, a.body)
		}
	}
	slow.more <- struct{}{}
	if rest, err := io.ReadAll(events); err != nil || string(rest) != "two\n" {
		t.Errorf("the stream: %q %v", rest, err)
	}
	fmt.Fprint(up, "def")
	if res, err := http.ReadResponse(answer, nil); err != nil || res.StatusCode != 200 {
		t.Errorf("the upload: %v %v", res, err)
	}
	fmt.Fprint(ws, "ping\n")
	if line, err := frames.ReadString('\n'); err != nil || line != "ping\n" {
		t.Errorf("the upgraded connection: %q %v", line, err)
	}
}
