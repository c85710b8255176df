package compile_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/penstock-gateway/penstock/internal/envoytest"
	"github.com/penstock-gateway/penstock/internal/ports/porttest"
)

// serverAt serves on a port of 127.0.0.1 without keeping connections. stop ends it.
func serverAt(t *testing.T, port int, name string) (stop func()) {
	t.Helper()
	l := porttest.Listen(t, fmt.Sprintf("127.0.0.1:%d", port))
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, name) })}
	s.SetKeepAlivesEnabled(false)
	go func() { _ = s.Serve(l) }()
	t.Cleanup(func() { s.Close() })
	return func() { s.Close() }
}

// TestRollingRestart: one of two endpoints serves again and is still left alone when the
// other one ends. Once that is left alone, too, no request is lost, whatever its method.
func TestRollingRestart(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	var yaml strings.Builder
	yaml.WriteString(gatewayOn)
	rules := "\n---\nkind: Route\nname: all\nrules:\n"
	ports := map[string][2]int{}
	for _, balancing := range []string{"LEAST_REQUEST", "ROUND_ROBIN", "RANDOM"} {
		name := strings.ToLower(strings.ReplaceAll(balancing, "_", "-"))
		ports[name] = [2]int{envoytest.FreePort(t), envoytest.FreePort(t)}
		fmt.Fprintf(&yaml, "\n---\nkind: Backend\nname: %s\nload_balancing: %s\nstatic: {endpoints: [{address: 127.0.0.1, port: %d}, {address: 127.0.0.1, port: %d}]}\n",
			name, balancing, ports[name][0], ports[name][1])
		rules += fmt.Sprintf("- {name: %[1]s, matches: [{path: {prefix: /%[1]s}}], forward: {backends: [{backend: %[1]s}]}}\n", name)
	}
	port := r.serve(t, yaml.String()+rules)
	for name, p := range ports {
		stop := serverAt(t, p[1], "second")
		ask := func(method, want string) {
			t.Helper()
			if a := r.do(t, port, method, "x.test/"+name, "Content-Length: 0"); a.status != http.StatusOK || a.body != want {
				t.Errorf("%s, %s: %d %s, want %s", name, method, a.status, a.body, want)
			}
		}
		alone := func(port int) bool {
			return strings.Contains(r.envoy.Admin(t, "/clusters"), fmt.Sprintf("127.0.0.1:%d::health_flags::/failed_outlier_check", port))
		}
		for !alone(p[0]) {
			ask("GET", "second")
			if t.Failed() {
				return
			}
		}
		serverAt(t, p[0], "first")
		stop()
		// A request on a connection that ends just then has begun, and a POST is not sent twice.
		for closed := fmt.Sprintf("127.0.0.1:%d::cx_active::0\n", p[1]); !strings.Contains(r.envoy.Admin(t, "/clusters"), closed); {
		}
		// Envoy's main thread takes it out: tries that are faster find nobody else, so what is
		// sent until then is not judged (docs/decisions/0027).
		for !alone(p[1]) {
			r.do(t, port, "GET", "x.test/"+name)
		}
		for range 10 {
			ask("POST", "first")
			ask("GET", "first")
		}
	}
}
