package functions_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/penstock-gateway/penstock/functions"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// TestLasts: a stream and an upgraded connection live on when the time of a request is
// over, and their instance with them.
func TestLasts(t *testing.T) {
	t.Parallel()
	r := startRunner(t)
	short := timeout(300 * time.Millisecond)
	r.want(self(t, "lasts", "plain", short), self(t, "clock", "plain", short))
	i := r.ready("lasts", 1)[0]
	dial := func(text string) (net.Conn, *bufio.Reader, *http.Response) {
		c, err := dialTo(t.Context(), whereOf(i.GetAddress(), i.GetPort()))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		_ = c.SetDeadline(time.Now().Add(patience))
		fmt.Fprint(c, text)
		in := bufio.NewReader(c)
		res, err := http.ReadResponse(in, nil)
		if err != nil {
			t.Fatal(err)
		}
		return c, in, res
	}
	ws, frames, res := dial("GET /echo-upgrade HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n")
	if res.StatusCode != http.StatusSwitchingProtocols {
		t.Fatal(res)
	}
	up, _, res := dial("POST /pieces HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
	events := bufio.NewReader(res.Body)
	for n := range 3 {
		if line, err := events.ReadString('\n'); err != nil || line != fmt.Sprintf("piece %d\n", n) {
			t.Fatalf("piece %d: %q %v", n, line, err)
		}
		// That takes as long as a request of this function may.
		if a := r.any(t, "clock", "GET", "/hang", ""); a.status != 504 {
			t.Fatalf("%d %s", a.status, a.body)
		}
		fmt.Fprintf(up, "6\r\nack %d\n\r\n", n)
	}
	fmt.Fprint(up, "0\r\n\r\n")
	if rest, err := io.ReadAll(events); err != nil || len(rest) > 0 {
		t.Errorf("%q %v", rest, err)
	}
	fmt.Fprint(ws, "ping\n")
	if line, err := frames.ReadString('\n'); err != nil || line != "ping\n" {
		t.Errorf("%q %v", line, err)
	}
	if after := r.ready("lasts", 1)[0]; after.GetId() != i.GetId() {
		t.Error("the instance was replaced")
	}
}

// TestEventsLast: a stream of events that takes longer than the function's timeout comes
// whole, also from handlers that cannot be told to end.
func TestEventsLast(t *testing.T) {
	t.Parallel()
	short := timeout(2 * time.Second)
	lambda := &pb.Function{Name: name("go"), Source: "go", Contract: &pb.Function_Lambda{Lambda: &pb.LambdaContract{
		Runtime: pb.LambdaRuntime_LAMBDA_RUNTIME_PROVIDED, Handler: "bootstrap",
	}}}
	short(lambda)
	root := goBootstrap(t)
	l := startRunner(t, func(c *functions.Config) { c.Root = root })
	l.want(lambda)
	f := startRunner(t)
	f.want(gcf("python", "gcf", frameworkPython, "ticks", short), gcf("node", "gcfnode", frameworkNode, "ticks", short))
	for function, r := range map[string]*runner{"go": l, "python": f, "node": f} {
		t.Run(function, func(t *testing.T) {
			t.Parallel()
			i := r.readyOne(function)
			a := mustSend(t, i, "GET", "/ticks", "")
			if a.status != 200 || strings.Count(a.body, "data: tick\n\n") != 30 {
				t.Errorf("%d %q", a.status, a.body)
			}
			if after := r.readyOne(function); after.GetId() != i.GetId() {
				t.Error("the instance was replaced")
			}
		})
	}
}

// TestTooLate: a request that the proxy sends again because its time is over is not
// begun, neither by an instance nor by the activator; one of a route whose tries have a
// time of their own is.
func TestTooLate(t *testing.T) {
	t.Parallel()
	r := startRunner(t)
	r.want(self(t, "late", "plain"), self(t, "cold", "plain", scaledTo(&pb.Scale{Max: 1})))
	i := r.readyOne("late")
	if a := mustSend(t, i, "GET", "/", "", "x-envoy-is-timeout-retry", "true"); a.status != 504 || a.header.Get("x-penstock-error") != "timeout" {
		t.Errorf("%d %v", a.status, a.header)
	}
	a := mustSend(t, i, "GET", "/", "", "x-envoy-is-timeout-retry", "true", "x-penstock-repeat", "1")
	if a.status != 200 || strings.Contains(strings.ToLower(a.body), "x-penstock-repeat") || strings.Contains(strings.ToLower(a.body), "timeout-retry") {
		t.Errorf("%d %s", a.status, a.body)
	}
	if a := mustSend(t, &pb.Instance{Address: r.activator("cold")}, "GET", "/", "", "x-envoy-is-timeout-retry", "true"); a.status != 504 || a.header.Get("x-penstock-error") != "timeout" {
		t.Errorf("the activator: %d %v", a.status, a.header)
	}
}
