package soak

import (
	"bufio"
	"crypto/sha1"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// upstream is a server that says who it is, echoes WebSockets and streams.
type upstream struct {
	id   string
	port int
}

func newUpstreams(t *testing.T, n int) []*upstream {
	t.Helper()
	var out []*upstream
	for i := range n {
		u := &upstream{id: fmt.Sprintf("u%d", i)}
		s := httptest.NewUnstartedServer(u)
		s.Config.Protocols = new(http.Protocols)
		s.Config.Protocols.SetHTTP1(true)
		s.Config.Protocols.SetUnencryptedHTTP2(true)
		s.Start()
		t.Cleanup(s.Close)
		u.port = s.Listener.Addr().(*net.TCPAddr).Port
		out = append(out, u)
	}
	return out
}

func (u *upstream) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch {
	case strings.EqualFold(r.Header.Get("Upgrade"), "websocket"):
		u.websocket(w, r)
	case strings.HasPrefix(r.Header.Get("Content-Type"), "application/grpc"):
		w.Header().Set("Content-Type", "application/grpc")
		w.Header().Set("Trailer", "Grpc-Status")
		_ = echo(w, r.Body, http.NewResponseController(w).Flush)
		w.Header().Set("Grpc-Status", "0")
	default:
		n, err := io.Copy(io.Discard, r.Body)
		if err != nil {
			panic(http.ErrAbortHandler) // a body that is cut is not an answer
		}
		fmt.Fprintf(w, "%s %s %s %d", u.id, r.URL.Path, r.Header.Get("X-Nonce"), n)
	}
}

func (u *upstream) websocket(w http.ResponseWriter, r *http.Request) {
	conn, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	defer conn.Close()
	sum := sha1.Sum([]byte(r.Header.Get("Sec-WebSocket-Key") + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"))
	fmt.Fprintf(conn, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: %s\r\n\r\n",
		base64.StdEncoding.EncodeToString(sum[:]))
	_ = echo(conn, buffered, func() error { return nil })
}

// echo sends back what it reads, as soon as it reads it.
func echo(w io.Writer, r io.Reader, flush func() error) error {
	if err := flush(); err != nil {
		return err
	}
	for b := make([]byte, 4096); ; {
		n, err := r.Read(b)
		if _, err := w.Write(b[:n]); err != nil {
			return err
		}
		if err := flush(); err != nil {
			return err
		}
		if err != nil {
			return err
		}
	}
}

// long is a stream that stays open: each ping must come back.
type long struct {
	name string
	in   *bufio.Reader
	out  io.WriteCloser
	cut  func() // ends it, so that a ping that gets no answer ends too
	n    int
}

// ping sends one message and reads it back.
func (l *long) ping(t *testing.T) {
	t.Helper()
	defer time.AfterFunc(patience, l.cut).Stop()
	l.n++
	msg := fmt.Sprintf("message %d\n", l.n)
	if _, err := io.WriteString(l.out, msg); err != nil {
		t.Fatalf("%s was cut before message %d: %v", l.name, l.n, err)
	}
	got, err := l.in.ReadString('\n')
	if err != nil || got != msg {
		t.Fatalf("%s was cut at message %d: %q, %v", l.name, l.n, got, err)
	}
}

// openWebSocket does the handshake by hand. What follows is bytes to a proxy, so
// they need not be frames.
func openWebSocket(t *testing.T, address, host, path string) *long {
	t.Helper()
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: %s\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n", path, host)
	in := bufio.NewReader(conn)
	res, err := http.ReadResponse(in, nil)
	if err != nil || res.StatusCode != http.StatusSwitchingProtocols {
		t.Fatalf("WebSocket to %s%s: %v, %v", host, path, res, err)
	}
	l := &long{name: "the WebSocket to " + host + path, in: in, out: conn, cut: func() { conn.Close() }}
	l.ping(t)
	return l
}

// openStream opens a bidirectional stream over HTTP/2, as a gRPC client does.
func openStream(t *testing.T, address, host, path string) *long {
	t.Helper()
	r, w := io.Pipe()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+address+path, r)
	if err != nil {
		t.Fatal(err)
	}
	req.Host = host
	req.Header.Set("Content-Type", "application/grpc")
	req.Header.Set("Te", "trailers")
	tr := transport(true)
	res, err := tr.RoundTrip(req)
	if err != nil || res.StatusCode != http.StatusOK {
		t.Fatalf("stream to %s%s: %v, %v", host, path, res, err)
	}
	t.Cleanup(func() { w.Close(); res.Body.Close(); tr.CloseIdleConnections() })
	l := &long{name: "the stream to " + host + path, in: bufio.NewReader(res.Body), out: w, cut: func() { w.Close(); res.Body.Close() }}
	l.ping(t)
	return l
}
