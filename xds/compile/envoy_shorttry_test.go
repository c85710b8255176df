package compile_test

import (
	"fmt"
	"io"
	"net/http"
	"sync/atomic"
	"testing"
)

const shortTryYAML = gatewayOn + `
---
kind: Backend
name: half
load_balancing: ROUND_ROBIN
static: {endpoints: [HANGING, GOOD]}
---
kind: Backend
name: none
load_balancing: ROUND_ROBIN
static: {endpoints: [HANGING, ALSO]}
---
kind: Route
name: all
rules:
- {name: half, matches: [{path: {prefix: /half}}], forward: {backends: [{backend: half}]}}
- {name: none, matches: [{path: {prefix: /none}}], forward: {backends: [{backend: none}]}}
- {name: said, matches: [{path: {prefix: /said}}], forward: {backends: [{backend: none}]}, policies: {timeout: {request: 15s}}}
`

// TestShortTry: where nothing is said of time, idempotent requests that meet an endpoint that
// hangs are answered by another one while others still wait for theirs; what all
// endpoints are slow for is tried as often as the retry policy says.
func TestShortTry(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	var begun atomic.Int64
	hang := func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/none" {
			begun.Add(1)
		}
		_, _ = io.Copy(io.Discard, r.Body)
		<-r.Context().Done()
	}
	hanging, also := serverOn(t, hang), serverOn(t, hang)
	good := serverOn(t, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "good") })
	port := r.serve(t, replaceAll(shortTryYAML, "HANGING", endpointYAML(hanging, 0), "ALSO", endpointYAML(also, 0), "GOOD", endpointYAML(good, 0)))
	ask := func(method, path string, n int) <-chan int {
		out := make(chan int, n)
		for range n {
			go func() { out <- r.do(t, port, method, "x.test"+path, "Content-Length: 0").status }()
		}
		return out
	}
	// Each of the two endpoints gets one of two.
	posts, said := ask("POST", "/half", 2), make(chan struct{})
	_, in := open(t, port, "GET /said HTTP/1.1\r\nHost: x.test\r\n\r\n")
	go func() {
		defer close(said)
		_, _ = in.ReadByte()
	}()
	if got := <-posts; got != http.StatusOK {
		t.Fatalf("POST to the endpoint that answers: %d", got)
	}
	gets, all := ask("GET", "/half", 4), ask("GET", "/none", 1)
	for range 4 {
		if got := <-gets; got != http.StatusOK {
			t.Errorf("GET beside an endpoint that hangs: %d", got)
		}
	}
	select {
	case got := <-posts:
		t.Errorf("a POST that began was answered with %d before the GETs", got)
	case <-said:
		t.Error("a GET whose time is set was answered before those whose time is not")
	default:
	}
	for what, answer := range map[string]<-chan int{"POST": posts, "GET of all that hang": all} {
		if got := <-answer; got != http.StatusGatewayTimeout {
			t.Errorf("%s: %d, want 504", what, got)
		}
	}
	if got := begun.Load(); got != 3 {
		t.Errorf("a GET that no endpoint answers was begun %d times, want 3", got)
	}
}
