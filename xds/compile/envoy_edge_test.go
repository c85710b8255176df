package compile_test

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/penstock-gateway/penstock/gateway"
	"github.com/penstock-gateway/penstock/gateway/explain"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// hostTable reads the hosts that gateway's own tests read, too.
func hostTable(t *testing.T) (hosts []string) {
	t.Helper()
	b, err := os.ReadFile("../../gateway/testdata/hosts.txt")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if quoted, err := strconv.QuotedPrefix(line); err == nil {
			host, _ := strconv.Unquote(quoted)
			hosts = append(hosts, host)
		}
	}
	if len(hosts) < 50 {
		t.Fatalf("%d hosts", len(hosts))
	}
	return hosts
}

// testHosts: a host that is not canonical is refused in every way to ask for it, in
// each layout, and explain says the same as Envoy.
func testHosts(t *testing.T, r *rig) {
	const catchAll = `
---
kind: Route
name: any
rules: [{name: any, forward: {backends: [{backend: up}]}}]
`
	all := hostTable(t)
	all = append(all, strings.Repeat("a.", 120)+"test", strings.Repeat("a.", 127)+"aa", strings.Repeat("a.", 125)+"test:80", strings.Repeat("b", 5000)+".x.test")
	all = append(all, generatedHosts(400)...)
	for layout, yaml := range map[string]string{
		"table":    hosts(protected, "a.x.test") + catchAll,
		"scopes":   hosts(protected, "a.x.test"),
		"wildcard": hosts(protected, "*.x.test", "a.x.test"),
	} {
		t.Run(layout, func(t *testing.T) {
			port := r.serve(t, gatewayOn+yaml)
			for _, host := range all {
				want := r.explained(t, port, host, "/must")
				if got := r.do(t, port, "GET", host+"/must"); got.status != want {
					t.Errorf("Host %.80q: %d, explain says %d", host, got.status, want)
				} else if got.got != nil && !sameHost(host, got.got.Host) {
					t.Errorf("Host %.80q reaches the upstream as %q", host, got.got.Host)
				}
				if host == "" || strings.Contains(host, "@") {
					continue // Envoy takes the name behind it in absolute form
				}
				if got := r.raw(t, port, "GET http://"+host+"/must HTTP/1.1\r\nHost: a.x.test\r\nConnection: close\r\n\r\n"); got.status != want && got.status != 400 {
					t.Errorf("absolute form with %.80q: %d, explain says %d", host, got.status, want)
				}
				// What HTTP/2 does not allow in :authority resets the stream.
				if got := r.h2(t, port, ":method", "GET", ":scheme", "http", ":path", "/must", ":authority", host).status; got != want && (got != 0 || want != 400) {
					t.Errorf(":authority %.80q: %d, explain says %d", host, got, want)
				}
			}
		})
	}
}

// sameHost reports whether a host that was sent is what the upstream may get.
func sameHost(sent, got string) bool {
	host, port, err := gateway.CanonicalHost(sent)
	if port != 0 {
		host += fmt.Sprintf(":%d", port)
	}
	return err == nil && strings.EqualFold(host, got)
}

// generatedHosts are small changes of hosts that are served, always the same ones.
func generatedHosts(n int) []string {
	r := rand.New(rand.NewPCG(7, 7))
	seeds := []string{"a.x.test", "a.x.test:8080", "127.0.0.1", "[::1]:80", "b.x.test.", "other"}
	const letters = ".:-_[]%0aZ;*~/1"
	var out []string
	for range n {
		h := []byte(seeds[r.IntN(len(seeds))])
		for range 1 + r.IntN(3) {
			i := r.IntN(len(h) + 1)
			c := letters[r.IntN(len(letters))]
			if r.IntN(3) == 0 && i < len(h) {
				h[i] = c
			} else {
				h = append(h[:i], append([]byte{c}, h[i:]...)...)
			}
		}
		if !bytes.Contains(h, []byte("/")) { // the path would begin there
			out = append(out, string(h))
		}
	}
	return out
}

// explained is the status that explain foresees for a GET.
func (r *rig) explained(t *testing.T, port int, host, path string) int {
	t.Helper()
	if strings.Contains(host, "@") {
		return 400 // a client would not send what stands before it
	}
	url := "http://" + host + path
	// The listener has a port of its own, which the Host need not name.
	if name, _, err := gateway.CanonicalHost(host); err == nil {
		url = fmt.Sprintf("http://%s:%d%s", name, port, path)
	}
	return outcome(t, explain.Explain(r.snapshot, &pb.ExplainRequest{Method: "GET", Url: url}, nil))
}

func outcome(t *testing.T, x *pb.ExplainResponse) int {
	t.Helper()
	if x.GetOutcome() == "" {
		for _, p := range x.GetPolicies() {
			if strings.HasSuffix(p.GetSummary(), "this request brings none: 401") {
				return 401
			}
		}
		return 200
	}
	status, _, _ := strings.Cut(x.GetOutcome(), " ")
	n, err := strconv.Atoi(status)
	if err != nil {
		t.Fatalf("outcome %q", x.GetOutcome())
	}
	return n
}

// h2 sends the head of a request by HTTP/2 exactly as it is given, names and values
// by turns; status 0: the stream was reset.
func (r *rig) h2(t *testing.T, port int, fields ...string) answer {
	t.Helper()
	c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(30 * time.Second))
	var block bytes.Buffer
	enc := hpack.NewEncoder(&block)
	for i := 0; i < len(fields); i += 2 {
		_ = enc.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]})
	}
	before := r.upstream.count()
	out := bufio.NewWriter(c)
	_, _ = io.WriteString(out, http2.ClientPreface)
	fr := http2.NewFramer(out, c)
	fr.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	_ = fr.WriteSettings()
	// Continuations carry what one frame cannot.
	const frame = 16 << 10
	first, rest := block.Bytes(), []byte(nil)
	if len(first) > frame {
		first, rest = first[:frame], first[frame:]
	}
	_ = fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: first, EndHeaders: len(rest) == 0, EndStream: true})
	for len(rest) > 0 {
		n := min(frame, len(rest))
		_ = fr.WriteContinuation(1, n == len(rest), rest[:n])
		rest = rest[n:]
	}
	if err := out.Flush(); err != nil {
		t.Fatal(err)
	}
	a := answer{header: http.Header{}}
	for {
		f, err := fr.ReadFrame()
		if err != nil {
			return a // closed
		}
		ended := false
		switch f := f.(type) {
		case *http2.SettingsFrame:
			if !f.IsAck() {
				_ = fr.WriteSettingsAck()
				_ = out.Flush()
			}
		case *http2.MetaHeadersFrame:
			if a.status == 0 {
				a.status, _ = strconv.Atoi(f.PseudoValue("status"))
			}
			for _, h := range f.RegularFields() {
				a.header.Add(h.Name, h.Value)
			}
			ended = f.StreamEnded()
		case *http2.DataFrame:
			a.body += string(f.Data())
			ended = f.StreamEnded()
		case *http2.RSTStreamFrame, *http2.GoAwayFrame:
			return a
		}
		if ended {
			a.got = r.upstream.after(before)
			return a
		}
	}
}
