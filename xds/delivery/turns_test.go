package delivery_test

import (
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"

	"github.com/penstock-gateway/penstock/xds"
	"github.com/penstock-gateway/penstock/xds/delivery"
)

// many is a generation of so many resources that its first synchronisation takes a
// turn.
func many(t *testing.T, revision int64) generation {
	g := newGeneration(t, revision)
	for i := range 150 {
		g.plain(fmt.Sprintf("c%03d", i), 1)
	}
	return g
}

// TestTurns: big first synchronisations go one after another, in the order in which
// the proxies came; a stuck one holds nobody up for long, and one that has all
// already, or wants little, needs no turn.
func TestTurns(t *testing.T) { synctest.Test(t, testTurns) }

func testTurns(t *testing.T) {
	p := newPlaneInMemory(t, delivery.Options{FullSyncs: 1, SilentAfter: 500 * time.Millisecond})
	g := many(t, 1)
	g.secret("key")
	p.server.Update(view, g.Generation)
	versions := map[string]string{}
	for r := range g.All(xds.Cluster) {
		name := r.Name
		versions[name] = r.Version
	}

	stuck := p.open("-", "stuck")
	stuck.ask(xds.Cluster)
	stuck.recv() // and no answer
	second, third := p.open("-", "second"), p.open("-", "third")
	second.ask(xds.Cluster)
	eventually(t, "the second to wait", func() bool { return p.server.Waiting() == 1 })
	third.ask(xds.Cluster)
	eventually(t, "the third to wait", func() bool { return p.server.Waiting() == 2 })

	// Nobody waits who needs no turn.
	back := p.open("-", "back")
	back.send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: string(xds.Cluster), InitialResourceVersions: versions})
	eventually(t, "the one that is back", func() bool {
		s, ok := p.proxy("back")
		return ok && s.Resources[xds.Cluster] == 150
	})
	if s, _ := p.proxy("back"); s.Sent != 0 {
		t.Errorf("%d resources were sent again", s.Sent)
	}
	little := p.open("-", "little")
	little.ask(xds.Secret, "key")
	little.expect("Secret key")

	// The second has its turn after SilentAfter, the third when the second has all.
	order := make(chan string, 2)
	for _, c := range []struct {
		name string
		*client
	}{{"second", second}, {"third", third}} {
		go func() {
			r, err := c.stream.Recv()
			if err != nil || len(r.GetResources()) != 150 {
				order <- fmt.Sprint(c.name, ": ", len(r.GetResources()), " ", err)
				return
			}
			order <- c.name
			_ = c.stream.Send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: r.GetTypeUrl(), ResponseNonce: r.GetNonce()})
		}()
	}
	if got := []string{<-order, <-order}; !slices.Equal(got, []string{"second", "third"}) {
		t.Errorf("order %v", got)
	}
	// A stream that ends while it waits or has its turn leaves it to others.
	last := p.open("-", "last")
	last.ask(xds.Cluster)
	last.recv()
	waiting := p.open("-", "waiting")
	waiting.ask(xds.Cluster)
	eventually(t, "one to wait", func() bool { return p.server.Waiting() == 1 })
	waiting.conn.Close()
	eventually(t, "nobody to wait", func() bool { return p.server.Waiting() == 0 })
	last.conn.Close()
	final := p.open("-", "final")
	final.ask(xds.Cluster)
	final.recv()
}

// TestStreamAge: a stream ends by its age, when no answer is awaited, and the next
// one brings only what is new.
func TestStreamAge(t *testing.T) { synctest.Test(t, testStreamAge) }

func testStreamAge(t *testing.T) {
	p := newPlaneInMemory(t, delivery.Options{StreamAge: 200 * time.Millisecond, SilentAfter: 20 * time.Second})
	g := newGeneration(t, 1)
	g.plain("a", 1)
	p.server.Update(view, g.Generation)
	c := p.open("-", "edge")
	c.ask(xds.Cluster)
	r := c.recv()
	opened := time.Now()
	// The stream is past its age; it lasts until the answer is there, and sends
	// nothing more.
	eventually(t, "the age to pass", func() bool { return time.Since(opened) > 300*time.Millisecond })
	g = g.next()
	g.plain("b", 1)
	p.server.Update(view, g.Generation)
	if n := len(p.server.Proxies()); n != 1 {
		t.Fatalf("%d proxies: it ended although an answer was awaited", n)
	}
	c.answer(r, "")
	if r, err := c.stream.Recv(); err == nil {
		t.Fatalf("got %s", describe(r))
	}
	c.stream = openStream(t, c.conn)
	c.send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: string(xds.Cluster), InitialResourceVersions: map[string]string{"a": r.GetResources()[0].GetVersion()}})
	c.expect("Cluster b")
	if n := p.sent(); n != 2 {
		t.Errorf("%d resources were sent, want 2", n)
	}
}

// TestSlowClient: a client that reads nothing holds nobody up, and gets the newest
// version only when it reads.
func TestSlowClient(t *testing.T) {
	p := newPlane(t, delivery.Options{})
	g := newGeneration(t, 1)
	g.plain("a", 1)
	p.server.Update(view, g.Generation)
	slow, quick := p.open("-", "slow"), p.open("-", "quick")
	slow.ask(xds.Cluster)
	slow.expect("Cluster a")
	quick.ask(xds.Cluster)
	quick.expect("Cluster a")
	before := p.sent()
	for v := 2; v <= 50; v++ {
		g = g.next()
		g.plain("a", v)
		p.server.Update(view, g.Generation)
		quick.expect("Cluster a")
		if v == 2 {
			eventually(t, "the slow client to be sent something", func() bool { return p.sent()-before == 2 })
		}
	}
	// One that was on its way when it stopped answering, and the newest.
	slow.answer(slow.recv(), "")
	r := slow.recv()
	slow.answer(r, "")
	if r.GetResources()[0].GetVersion() != g.Get(xds.Cluster, "a").Version {
		t.Error("the slow client got an old version")
	}
	if n := p.sent() - before; n != 49+2 {
		t.Errorf("%d resources were sent, want 49 and 2", n)
	}
}

// TestSubscriptions: wildcard and names together, names that are unknown, and an
// unsubscribe after which nothing comes.
func TestSubscriptions(t *testing.T) {
	p := newPlane(t, delivery.Options{})
	g := newGeneration(t, 1)
	for _, name := range []string{"a", "b"} {
		g.plain(name, 1)
		g.secret(name)
	}
	p.server.Update(view, g.Generation)
	c := p.open("-", "edge")
	c.ask(xds.Cluster, "*", "a", "unknown")
	c.expect("Cluster -unknown")
	c.expect("Cluster a b")
	// Without the wildcard "a" stays, as it was named.
	c.send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: string(xds.Cluster), ResourceNamesUnsubscribe: []string{"*"}})
	eventually(t, "b to be given up", func() bool {
		s, ok := p.proxy("edge")
		return ok && s.Resources[xds.Cluster] == 1
	})
	g = g.next()
	g.plain("a", 2)
	g.plain("b", 2)
	g.plain("unknown", 2)
	p.server.Update(view, g.Generation)
	got := map[string]bool{}
	for len(got) < 2 {
		r := c.recv()
		for _, res := range r.GetResources() {
			got[res.GetName()] = true
		}
		c.answer(r, "")
	}
	if got["b"] {
		t.Errorf("got %v after the wildcard was given up", got)
	}
	// And all the way off: the next that comes is of another type.
	c.send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: string(xds.Cluster), ResourceNamesUnsubscribe: []string{"a", "unknown"}})
	eventually(t, "all to be given up", func() bool {
		s, ok := p.proxy("edge")
		return ok && s.Resources[xds.Cluster] == 0
	})
	g = g.next()
	g.plain("a", 3)
	g.plain("unknown", 3)
	p.server.Update(view, g.Generation)
	c.ask(xds.Secret, "a")
	c.expect("Secret a")
	c.ask(xds.Cluster, "b")
	c.expect("Cluster b")
}
