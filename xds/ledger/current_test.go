package ledger_test

import (
	"testing"
	"time"

	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"

	"github.com/penstock-gateway/penstock/xds"
	"github.com/penstock-gateway/penstock/xds/ledger"
)

// TestCurrent: a proxy is current for a resource when it has no other version of it,
// and none is on its way.
func TestCurrent(t *testing.T) {
	now := time.Unix(1_000_000, 0)
	table := ledger.NewTable()
	version := func(revision int64, priority uint32) {
		t.Helper()
		r, err := xds.NewResource(xds.Endpoint, "f", &endpointv3.ClusterLoadAssignment{
			ClusterName: "f", Endpoints: []*endpointv3.LocalityLbEndpoints{{Priority: priority}},
		}, nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		g := &xds.Generation{Revision: revision}
		g.Set(r)
		table.Update(g, now)
	}
	version(1, 0)
	p := table.Attach(ledger.Options{}, now)
	ref := xds.Ref{Type: xds.Endpoint, Name: "f"}
	current := func(when string, want bool) {
		t.Helper()
		if p.Current(ref) != want {
			t.Errorf("%s: current is %v", when, !want)
		}
	}
	handle := func(r ledger.Request) {
		t.Helper()
		r.Type = xds.Endpoint
		if _, err := p.Handle(r, now); err != nil {
			t.Fatal(err)
		}
	}
	current("never asked for", true)
	handle(ledger.Request{Subscribe: []string{"f"}})
	r := p.Next(now)
	current("sent", false)
	version(1, 1)
	current("changed while it is on its way", false)
	handle(ledger.Request{Nonce: r.Nonce})
	current("the version before acknowledged", false)
	r = p.Next(now)
	current("the new one sent", false)
	handle(ledger.Request{Nonce: r.Nonce})
	current("acknowledged", true)
	version(1, 2)
	current("changed again", false)
	if !p.Current(xds.Ref{Type: xds.Endpoint, Name: "unknown"}) {
		t.Error("a name that nobody has")
	}
}

// TestAnswered: what is sent counts until it is acknowledged or refused, also when it is
// another version of the same revision, for which Serves does not wait.
func TestAnswered(t *testing.T) {
	now := time.Unix(1_000_000, 0)
	table := ledger.NewTable()
	version := func(priority uint32) {
		t.Helper()
		r, err := xds.NewResource(xds.Endpoint, "f", &endpointv3.ClusterLoadAssignment{
			ClusterName: "f", Endpoints: []*endpointv3.LocalityLbEndpoints{{Priority: priority}},
		}, nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		g := &xds.Generation{Revision: 1}
		g.Set(r)
		table.Update(g, now)
	}
	version(0)
	p := table.Attach(ledger.Options{}, now)
	answered := func(when string, want bool) {
		t.Helper()
		if p.Answered(xds.Ref{Type: xds.Endpoint, Name: "f"}) != want {
			t.Errorf("%s: answered is %v", when, !want)
		}
		if p.Awaits(xds.Endpoint) == want {
			t.Errorf("%s: it awaits something: %v", when, want)
		}
	}
	handle := func(r ledger.Request) {
		t.Helper()
		r.Type = xds.Endpoint
		if _, err := p.Handle(r, now); err != nil {
			t.Fatal(err)
		}
	}
	answered("not asked for", true)
	handle(ledger.Request{Subscribe: []string{"f"}})
	answered("to be sent", false)
	r := p.Next(now)
	answered("sent", false)
	handle(ledger.Request{Nonce: r.Nonce})
	answered("acknowledged", true)
	version(1)
	if ok, _ := p.Serves(1, now); !ok {
		t.Error("it does not serve the revision that it has served")
	}
	answered("changed within the revision", false)
	r = p.Next(now)
	answered("the change sent", false)
	handle(ledger.Request{Nonce: r.Nonce, Refused: true, Detail: "no"})
	answered("the change refused", true)
	version(2)
	answered("changed again", false)
	if !p.Answered(xds.Ref{Type: xds.Endpoint, Name: "unknown"}) {
		t.Error("a name that nobody has")
	}
}
