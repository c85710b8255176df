package delivery_test

import (
	"testing"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"

	"github.com/penstock-gateway/penstock/xds"
	"github.com/penstock-gateway/penstock/xds/delivery"
)

// TestCurrent: a resource is current when every connected proxy has acknowledged the
// last version; one that stays silent does not count for ever, one that is gone not
// at all.
func TestCurrent(t *testing.T) {
	p := newPlane(t, delivery.Options{SilentAfter: time.Millisecond})
	refs := []xds.Ref{{Type: xds.Cluster, Name: "a"}, {Type: xds.Cluster, Name: "b"}}
	if got, again := p.server.Current(refs, time.Hour); !got[0] || !got[1] || !again.IsZero() {
		t.Errorf("with no proxy: %v, again at %v", got, again)
	}
	g := newGeneration(t, 1)
	g.plain("a", 1)
	p.server.Update("default/-", g.Generation)
	c := p.open("-", "edge")
	c.send(&discoveryv3.DeltaDiscoveryRequest{Node: nodeOf("edge"), TypeUrl: string(xds.Cluster)})
	c.expect("Cluster a")
	eventually(t, "the acknowledgement", func() bool { got, _ := p.server.Current(refs, time.Hour); return got[0] })
	g = g.next()
	g.plain("a", 2)
	p.server.Update("default/-", g.Generation)
	c.recv() // and say nothing
	got, again := p.server.Current(refs, time.Hour)
	if got[0] || !got[1] || again.IsZero() {
		t.Errorf("unanswered: %v, again at %v", got, again)
	}
	eventually(t, "the silent one not to count", func() bool { got, _ := p.server.Current(refs, 0); return got[0] })
	if got, _ := p.server.Current(refs, time.Hour); got[0] {
		t.Error("it does not count although there is patience")
	}
	c.conn.Close()
	eventually(t, "the one that is gone not to count", func() bool { got, _ := p.server.Current(refs, time.Hour); return got[0] })
}

// TestAnswered: a version is answered when no connected proxy owes an answer to it, or is
// still to be sent it, also within a revision that all of them serve.
func TestAnswered(t *testing.T) {
	p := newPlane(t, delivery.Options{})
	refs := []xds.Ref{{Type: xds.Cluster, Name: "a"}, {Type: xds.Cluster, Name: "b"}}
	g := newGeneration(t, 1)
	g.plain("a", 1)
	p.server.Update("default/-", g.Generation)
	c := p.open("-", "edge")
	c.send(&discoveryv3.DeltaDiscoveryRequest{Node: nodeOf("edge"), TypeUrl: string(xds.Cluster)})
	c.expect("Cluster a")
	eventually(t, "the acknowledgement", func() bool { return p.server.Answered("default/-", refs)[0] })
	same := newGeneration(t, 1)
	same.plain("a", 2)
	p.server.Update("default/-", same.Generation)
	if got := p.server.Answered("default/-", refs); got[0] || !got[1] || !p.server.Awaited(xds.Cluster) {
		t.Errorf("another version of the same revision: answered %v, awaited %v", got, p.server.Awaited(xds.Cluster))
	}
	if s := p.server.Standings(1); len(s) != 1 || !s[0].Serves {
		t.Errorf("it does not serve the revision: %+v", s)
	}
	if got := p.server.Answered("default/other", refs); !got[0] {
		t.Errorf("a view without proxies: %v", got)
	}
	c.expect("Cluster a")
	eventually(t, "the next acknowledgement", func() bool { return p.server.Answered("default/-", refs)[0] && !p.server.Awaited(xds.Cluster) })
}
