package soak

import (
	"fmt"
	"strings"
	"testing"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// moments are when the control plane is ended while an Apply is under way.
var moments = []string{"idle", "asked", "committed", "sending"}

// mostSent is what one switch of a backend is: a cluster, its endpoints and one
// RouteConfiguration. Endpoints that came before their cluster are sent once more,
// since Envoy does not ask for them again.
const mostSent = 4

// TestRestart ends the control plane in the midst of changes and starts another
// one on the same store, while clients call: no request fails, no connection is
// cut, nothing acknowledged is lost, and the proxy is sent what really differs.
func TestRestart(t *testing.T) { restart(t) }

// TestRestartKept is the same with a keeper, which serves the proxy from disk meanwhile.
func TestRestartKept(t *testing.T) { restart(t, withKeeper) }

func restart(t *testing.T, options ...func(*plane)) {
	random, size := seeded(t), sizeOf()
	w := newWorld(t, size.every, options...)
	for round := range size.restarts {
		moment := moments[round%len(moments)]
		m := w.moving[random.IntN(len(w.moving))]
		committed := w.endDuring(t, m, moment, random.Int64N(6), random.Perm(len(w.ups))[:1+random.IntN(2)])
		w.load.pass(t, 40) // Envoy goes on alone
		w.up(t)
		head := w.core.Snapshot().Revision()
		var p *pb.Proxy
		waitFor(t, "the proxy to come back and serve the head", func() bool {
			p = w.proxy(t)
			// The routes are looked at, too: a proxy that comes back may count as serving
			// before it has asked for its routes on the new stream.
			return p.GetState() == "serving" && p.GetRevision() == head &&
				(!committed || strings.Contains(w.envoy.Admin(t, "/config_dump?resource=dynamic_route_configs"), "/backends/"+m.backend+`"`))
		})
		most := int64(0)
		if committed {
			most = mostSent
			if m.gateway == "wide" {
				most++ // it has two listeners, each with a RouteConfiguration of its own
			}
		}
		t.Logf("round %d, ended while %s: committed %t, %d resources sent after", round, moment, committed, p.GetResourcesSent())
		if p.GetResourcesSent() > most {
			t.Errorf("round %d, ended while %s: %d resources were sent again, want at most %d", round, moment, p.GetResourcesSent(), most)
		}
		if !committed && moment != "idle" {
			w.apply(t, w.backendYAML(m.backend, m.protocol(), m.servers...)+"---\n"+m.route())
		}
		m.settle()
		w.ping(t)
		w.load.pass(t, 40)
		if t.Failed() {
			t.FailNow()
		}
	}
	w.noLeaks(t)
	w.load.end(t)
}

// endDuring gives a route a new backend and ends the control plane at a moment of
// that; "asked" is so many requests after. It reports whether the change is in the
// store.
func (w *world) endDuring(t *testing.T, m *moving, moment string, after int64, servers []int) bool {
	t.Helper()
	if moment == "idle" {
		w.down(t)
		return false
	}
	before, sent := w.core.Snapshot().Revision(), w.proxy(t).GetResourcesSent()
	w.backend++
	m.backend, m.servers = fmt.Sprintf("b%d", w.backend), servers
	change := resources(t, w.backendYAML(m.backend, m.protocol(), servers...)+"---\n"+m.route())
	m.begin(m.answer(m.last().mark))
	asked, done := make(chan struct{}), make(chan error, 1)
	go func() {
		close(asked)
		done <- w.try(t.Context(), change)
	}()
	<-asked
	switch moment {
	case "asked":
		w.load.pass(t, after)
	case "committed":
		waitFor(t, "the change to be committed", func() bool { return w.core.Snapshot().Revision() > before })
	case "sending":
		waitFor(t, "the proxy to be sent something", func() bool { return w.proxy(t).GetResourcesSent() > sent })
	}
	w.down(t)
	err := <-done
	head, headErr := w.store.Head(t.Context())
	if headErr != nil {
		t.Fatal(headErr)
	}
	if err == nil && head.Number == before {
		t.Errorf("an Apply that was acknowledged is not in the store: head is %d", head.Number)
	}
	return head.Number > before
}

// TestRestartAuthentication ends the control plane while policies change, so that the
// proxy comes back with routes that name requirements of a filter from before. Its
// callers are refused nothing.
func TestRestartAuthentication(t *testing.T) {
	random, size := seeded(t), sizeOf()
	w := newWorld(t, size.every)
	for round := range size.restarts {
		for i := range 1 + random.IntN(3) {
			w.guarded.policies = jwtPolicy(100+10*round+i, "")
			if _, err := w.config.Apply(t.Context(), &pb.ApplyRequest{
				Resources: resources(t, w.guarded.route()), Options: &pb.WriteOptions{Wait: pb.WaitMode_WAIT_MODE_NONE},
			}); err != nil {
				t.Fatal(err)
			}
		}
		w.load.pass(t, random.Int64N(8))
		w.down(t)
		w.load.pass(t, 40)
		w.up(t)
		waitFor(t, "the proxy to come back and serve the head", func() bool {
			p := w.proxy(t)
			return p.GetState() == "serving" && p.GetRevision() == w.core.Snapshot().Revision()
		})
		w.load.pass(t, 40)
		if t.Failed() {
			t.FailNow()
		}
	}
	w.load.end(t)
}
