package functions_test

import (
	"bufio"
	"fmt"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// slowSender begins a request and sends one byte of its body.
type slowSender struct {
	net.Conn
	sized bool
}

func slowSenders(t *testing.T, i *pb.Instance, n int) []slowSender {
	t.Helper()
	var out []slowSender
	for k := range n {
		c, err := dialTo(t.Context(), whereOf(i.GetAddress(), i.GetPort()))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		_ = c.SetDeadline(time.Now().Add(patience))
		s := slowSender{c, k%2 == 0}
		text := "Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n"
		if s.sized {
			text = "Content-Length: 6\r\n\r\nx"
		}
		fmt.Fprintf(c, "POST / HTTP/1.1\r\nHost: x\r\n%s", text)
		out = append(out, s)
	}
	return out
}

// TestSlowSenders: twenty senders that stop after one byte keep nobody from being
// served, whatever the contract and the concurrency, and no instance is replaced
// for them though they take longer than the function's timeout.
func TestSlowSenders(t *testing.T) {
	t.Parallel()
	concurrency := func(n uint32) func(*pb.Function) { return func(f *pb.Function) { f.Concurrency = n } }
	r := startRunner(t)
	// The timeout is one of a request that has been begun, which all but streams
	// are only when they are whole.
	r.want(
		python("slow-lambda", "app.bare", timeout(2*time.Second)),
		self(t, "slow-one", "plain", concurrency(1), timeout(2*time.Second)),
		self(t, "slow-many", "plain", concurrency(4), timeout(2*time.Second)),
	)
	for _, function := range []string{"slow-lambda", "slow-one", "slow-many"} {
		t.Run(function, func(t *testing.T) {
			i := r.ready(function, 1)[0]
			slow := slowSenders(t, i, 20)
			for n := range 20 {
				for _, body := range []string{"", "hello"} {
					if a := mustSend(t, i, "POST", "/", body); a.status != 200 {
						t.Errorf("honest request %d: %d %v %s", n, a.status, a.header, a.body)
					}
				}
			}
			// Two streams of slow-many are in a slot at the timeout: it is they who are
			// to blame.
			if function == "slow-many" {
				first := make(chan *http.Response, len(slow))
				for _, s := range slow {
					if !s.sized {
						go func() {
							if resp, err := http.ReadResponse(bufio.NewReader(s.Conn), nil); err == nil {
								first <- resp
							}
						}()
					}
				}
				if resp := <-first; resp.StatusCode != 408 || resp.Header.Get("x-penstock-error") != "slow-body" {
					t.Errorf("a slow stream: %d %v", resp.StatusCode, resp.Header)
				}
			}
			if after := r.ready(function, 1)[0]; after.GetId() != i.GetId() || after.GetRestarts() != i.GetRestarts() {
				t.Errorf("the instance was replaced: %v", after)
			}
		})
	}
}

// TestSlowTaker: a caller that does not take an endless answer holds its slot for
// the function's timeout and no longer, and the instance stays.
func TestSlowTaker(t *testing.T) {
	t.Parallel()
	r := startRunner(t)
	r.want(self(t, "endless", "plain", timeout(time.Second), func(f *pb.Function) { f.Concurrency = 1 }))
	i := r.ready("endless", 1)[0]
	c, err := dialTo(t.Context(), whereOf(i.GetAddress(), i.GetPort()))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(patience))
	fmt.Fprint(c, "GET /endless HTTP/1.1\r\nHost: x\r\n\r\n")
	if resp, err := http.ReadResponse(bufio.NewReader(c), nil); err != nil || resp.StatusCode != 200 {
		t.Fatalf("%v, %v", resp, err)
	}
	if a := r.any(t, "endless", "GET", "/after", ""); a.status != 200 {
		t.Errorf("afterwards: %d %s", a.status, a.body)
	}
	if after := r.ready("endless", 1)[0]; after.GetId() != i.GetId() {
		t.Error("the instance was replaced")
	}
}

// TestBodyNotRead: a server that answers without reading a large body: the answer
// comes, and the slot is free.
func TestBodyNotRead(t *testing.T) {
	t.Parallel()
	r := startRunner(t)
	r.want(self(t, "unread", "plain", func(f *pb.Function) { f.Concurrency = 1 }))
	i := r.ready("unread", 1)[0]
	for range 5 {
		if a := mustSend(t, i, "POST", "/unread", strings.Repeat("x", 900<<10)); a.status != 200 || a.body != "not read" {
			t.Errorf("%d %s", a.status, a.body)
		}
	}
	if a := mustSend(t, i, "POST", "/", strings.Repeat("y", 3<<20)); a.status != 200 || strings.Count(a.body, "y") < 3<<20 {
		t.Errorf("a large body: %d, %d bytes", a.status, len(a.body))
	}
}
