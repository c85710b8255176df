package compile_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/penstock-gateway/penstock/xds"
)

// testOnDemand: with scopes on demand every behaviour is the same, the first
// request of each host included.
func testOnDemand(t *testing.T, r *rig) {
	r.setEager(-1)
	defer r.setEager(0)
	for _, part := range []struct {
		name string
		run  func(*testing.T, *rig)
	}{
		{"Cold", testCold},
		{"Streams", testColdStreams},
		{"Lost", testColdLost},
		{"Changes", testColdChanges},
		{"Reconnect", testColdReconnect},
		{"Routing", testRouting},
		{"Ports", testPorts},
		{"JWT", testJWT},
		{"Attacks", testAttacks},
		{"Limits", testLimits},
		{"Scopes", testScopes},
		{"Churn", testChurn},
		{"Functions", testFunctions},
		{"HTTPS", testHTTPS},
	} {
		if !t.Run(part.name, func(t *testing.T) { part.run(t, r) }) {
			t.Fatal("stopped: the parts share one Envoy")
		}
	}
}

// coldHosts are names of hosts, each to be used once: nobody has asked for it
// before.
type coldHosts struct {
	names []string
	used  int
}

func newColdHosts(n int) *coldHosts {
	c := &coldHosts{}
	for i := range n {
		c.names = append(c.names, fmt.Sprintf("h%d.cold.test", i))
	}
	return c
}

func (c *coldHosts) next() string {
	c.used++
	return c.names[c.used-1]
}

// testCold: the attacks, each on a host that the proxy has not loaded yet, and then
// once more.
func testCold(t *testing.T, r *rig) {
	all := newColdHosts(260)
	port := r.serve(t, gatewayOn+hosts(protected, all.names...))
	for _, name := range all.names {
		scope := r.last.Get(xds.Scope, "default/edge/http/"+name)
		if scope == nil || !scope.Lazy {
			t.Fatalf("%s is not on demand", name)
		}
	}
	if n := r.server.Proxies()[0].Resources[xds.Route]; n > 80 { // the shards, "*", and those of the test before
		t.Fatalf("%d RouteConfigurations before the first request", n)
	}
	ok := "Authorization: Bearer " + r.token(t, nil) + "\r\n"
	for round := range 2 {
		all.used = 0
		before := r.upstream.count()
		for _, path := range []string{"/must", "/listed", "/both", "/nobody", "/lost"} {
			for form, status := range r.formsOf(t, port, all.next, path, "") {
				if status != 401 && status != 403 {
					t.Errorf("round %d, %s %s without a token: %d", round, path, form, status)
				}
			}
		}
		if n := r.upstream.count() - before; n != 0 {
			t.Errorf("round %d: %d requests reached the upstream without a token", round, n)
		}
		for _, path := range []string{"/must", "/listed", "/may"} {
			for form, status := range r.formsOf(t, port, all.next, path, ok) {
				if status != 200 {
					t.Errorf("round %d, %s %s with a token: %d", round, path, form, status)
				}
			}
		}
		for form, status := range r.formsOf(t, port, all.next, "/public", "") {
			if status != 200 {
				t.Errorf("round %d, /public %s: %d", round, form, status)
			}
		}
		t.Log(strings.TrimSpace(fmt.Sprintln("hosts used:", all.used)))
	}
}
