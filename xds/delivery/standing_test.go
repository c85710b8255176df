package delivery_test

import (
	"testing"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"

	"github.com/penstock-gateway/penstock/xds"
	"github.com/penstock-gateway/penstock/xds/delivery"
	"github.com/penstock-gateway/penstock/xds/ledger"
)

// TestStandings: who serves a revision, and a signal for each change of it.
func TestStandings(t *testing.T) {
	p := newPlane(t, delivery.Options{})
	g := newGeneration(t, 1)
	g.plain("a", 1)
	p.server.Update("default/-", g.Generation)
	signals, stop := p.server.Follow()
	defer stop()
	// want waits, signal by signal, until edge is as wanted.
	want := func(what string, ok func(delivery.Standing) bool) {
		t.Helper()
		deadline := time.After(30 * time.Second)
		for {
			select {
			case <-signals:
			case <-deadline:
				t.Fatalf("%s: not within 30 s: %+v", what, p.server.Standings(1))
			}
			if s := p.server.Standings(1); len(s) == 1 && s[0].Name == "edge" && ok(s[0]) {
				return
			}
		}
	}
	c := p.open("-", "edge")
	c.send(&discoveryv3.DeltaDiscoveryRequest{Node: nodeOf("edge"), TypeUrl: string(xds.Cluster)})
	want("pending", func(s delivery.Standing) bool {
		return !s.Serves && len(s.Lacks) == 1 && s.Lacks[0].State == ledger.Pending && s.Lacks[0].Proxy == "edge"
	})
	c.expect("Cluster a")
	want("serving", func(s delivery.Standing) bool { return s.Serves && s.Revision == 1 && len(s.Lacks) == 0 })
	if s := p.server.Standings(2); s[0].Serves || len(s[0].Lacks) != 1 {
		t.Errorf("a revision that is not there yet: %+v", s)
	}
}
