package compile_test

import (
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/penstock-gateway/penstock/internal/envoytest"
	"github.com/penstock-gateway/penstock/xds/compile"
)

// serverOn serves on a port of its own until the test ends.
func serverOn(t *testing.T, h http.HandlerFunc) compile.Endpoint {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: h}
	go func() { _ = s.Serve(l) }()
	t.Cleanup(func() { s.Close() })
	return endpointOf(t, l.Addr().String())
}

func endpointYAML(e compile.Endpoint, weight int) string {
	return fmt.Sprintf("{address: %s, port: %d, weight: %d}", e.Address, e.Port, weight)
}

// TestRetryElsewhere: no request fails beside a healthy endpoint, whatever the method,
// because the retry does not come to the endpoint that failed. Each backend gets only
// a few requests, since its dead endpoint is left alone after two.
func TestRetryElsewhere(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	var served, refused atomic.Int64
	good := func() compile.Endpoint {
		return serverOn(t, func(w http.ResponseWriter, _ *http.Request) { served.Add(1) })
	}
	dead := func() compile.Endpoint {
		return compile.Endpoint{Address: "127.0.0.1", Port: uint32(envoytest.FreePort(t))}
	}
	refusing := func(reason string) compile.Endpoint {
		return serverOn(t, func(w http.ResponseWriter, _ *http.Request) {
			refused.Add(1)
			w.Header().Set("x-penstock-refused", reason)
			w.WriteHeader(http.StatusServiceUnavailable)
		})
	}
	one, two, gone, other := good(), good(), dead(), dead()
	var yaml strings.Builder
	yaml.WriteString(gatewayOn)
	rules := "\n---\nkind: Route\nname: all\nrules:\n"
	const each = 12
	for _, c := range []struct{ name, balancing, endpoints string }{
		{"least-two", "LEAST_REQUEST", endpointYAML(gone, 0) + "," + endpointYAML(one, 0)},
		{"least-three", "LEAST_REQUEST", endpointYAML(gone, 0) + "," + endpointYAML(one, 0) + "," + endpointYAML(two, 0)},
		{"least-last", "LEAST_REQUEST", endpointYAML(gone, 0) + "," + endpointYAML(other, 0) + "," + endpointYAML(one, 0)},
		{"robin-two", "ROUND_ROBIN", endpointYAML(gone, 0) + "," + endpointYAML(one, 0)},
		{"robin-last", "ROUND_ROBIN", endpointYAML(gone, 0) + "," + endpointYAML(other, 0) + "," + endpointYAML(one, 0)},
		{"random-two", "RANDOM", endpointYAML(gone, 0) + "," + endpointYAML(one, 0)},
		{"random-last", "RANDOM", endpointYAML(gone, 0) + "," + endpointYAML(other, 0) + "," + endpointYAML(one, 0)},
		{"heavy", "ROUND_ROBIN", endpointYAML(gone, 1000) + "," + endpointYAML(one, 1)},
	} {
		for i := range each {
			fmt.Fprintf(&yaml, "\n---\nkind: Backend\nname: %s-%d\nload_balancing: %s\nstatic: {endpoints: [%s]}\n", c.name, i, c.balancing, c.endpoints)
			rules += fmt.Sprintf("- {name: %[1]s-%[2]d, matches: [{path: {prefix: /%[1]s/%[2]d/}}], forward: {backends: [{backend: %[1]s-%[2]d}]}}\n", c.name, i)
		}
	}
	for name, instances := range map[string][]compile.Endpoint{
		"busy-two": {refusing("queue-full"), one}, "busy-last": {refusing("queue-full"), refusing("queue-full"), one},
		"ended-two": {refusing("dead"), one}, "ended-last": {refusing("dead"), refusing("stopping"), one},
	} {
		r.instances["projects/default/functions/"+name] = instances
		fmt.Fprintf(&yaml, "\n---\nkind: Function\nname: %s\nsource: f\nserver: {command: [./f]}\n", name)
		rules += fmt.Sprintf("- {name: %[1]s, matches: [{path: {prefix: /%[1]s/}}], forward: {backends: [{backend: functions/%[1]s}]}}\n", name)
	}
	port := r.serve(t, yaml.String()+rules)
	send := func(path string, requests int) {
		for i := range requests {
			method := []string{"POST", "GET"}[i%2]
			if a := r.do(t, port, method, "x.test"+path, "Content-Length: 0"); a.status != http.StatusOK || a.header.Get("x-penstock-refused") != "" {
				t.Errorf("%s %s, request %d: %d %s %v", method, path, i, a.status, a.body, a.header)
			}
		}
	}
	for _, name := range []string{"least-two", "least-three", "least-last", "robin-two", "robin-last", "random-two", "random-last", "heavy"} {
		for i := range each {
			send(fmt.Sprintf("/%s/%d/", name, i), 4)
		}
	}
	if retries := r.envoy.Stat(t, "cluster.backend/default/least-two-0.upstream_rq_retry"); retries == 0 && served.Load() == 0 {
		t.Error("nothing was repeated")
	}
	refused.Store(0)
	send("/busy-two/", 200)
	send("/busy-last/", 200)
	if n := refused.Load(); n < 200 {
		t.Errorf("instances that are busy were asked %d times: they must not be left alone for it", n)
	}
	refused.Store(0)
	send("/ended-two/", 100)
	send("/ended-last/", 100)
	if n := refused.Load(); n > 100 {
		t.Errorf("instances that have ended were asked %d times in 200 requests: they must be left alone", n)
	}
}

// replaceAll replaces pairs in a text.
func replaceAll(text string, pairs ...string) string {
	return strings.NewReplacer(pairs...).Replace(text)
}
