package delivery_test

import (
	"net/http"
	"sync"
	"testing"
	"time"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"

	"github.com/penstock-gateway/penstock/internal/envoytest"
	"github.com/penstock-gateway/penstock/xds/delivery"
)

// TestEnvoyStreamAge: the streams of an Envoy end by their age while routes change
// and requests go on. No request fails, and each change is sent once: nothing is
// lost or sent again on the next stream, which has another connection.
func TestEnvoyStreamAge(t *testing.T) {
	p := newPlane(t, delivery.Options{StreamAge: 400 * time.Millisecond})
	port := envoytest.FreePort(t)
	g := newGeneration(t, 1)
	g.listener("l", port, nil)
	g.cluster("c", backend(t, "ok"))
	g.host("a.test", "c")
	p.server.Update(view, g.Generation)
	startEnvoy(t, p, "edge", 1)
	mustGet(t, port, "a.test", "ok")

	end := make(chan struct{})
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			c := &http.Client{Transport: &http.Transport{}}
			for {
				select {
				case <-end:
					return
				default:
				}
				if body, err := get(c, port, "a.test"); err != nil || body != "ok" {
					t.Errorf("a request failed: %q, %v", body, err)
					return
				}
			}
		})
	}
	defer func() { close(end); wg.Wait() }()

	serving := func() (connected time.Time) {
		eventually(t, "the proxy to serve", func() bool {
			s, ok := p.proxy("edge")
			connected = s.Connected
			return ok && s.Revision >= g.Revision
		})
		return connected
	}
	streams := map[time.Time]bool{serving(): true}
	before, changes := p.sent(), int64(0)
	for len(streams) < 5 {
		g = g.next()
		g.route("a.test", "c", func(r *routev3.Route) { r.Name = time.Now().String() })
		p.server.Update(view, g.Generation)
		changes++
		// Nor does the change count as served while the proxy is between two streams.
		if rep := p.wait(g.Revision); rep.Total != 1 || rep.Serving != 1 {
			t.Fatalf("after %d changes over %d streams: %+v", changes, len(streams), rep)
		}
		streams[serving()] = true
	}
	if n := p.sent() - before; n != changes {
		t.Errorf("%d resources were sent for %d changes over %d streams", n, changes, len(streams))
	}
	t.Logf("%d changes over %d streams", changes, len(streams))
}
