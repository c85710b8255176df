package ledger_test

import (
	"slices"
	"testing"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"

	"github.com/penstock-gateway/penstock/xds"
	"github.com/penstock-gateway/penstock/xds/ledger"
)

// TestFullState goes through what a client of the state-of-the-world variant is
// told to have, and a refusal that names its culprit.
func TestFullState(t *testing.T) {
	now := time.Unix(1_000_000_000, 0)
	table := ledger.NewTable()
	update := func(revision int64, versions map[string]string) {
		t.Helper()
		g := &xds.Generation{Revision: revision}
		for name, v := range versions {
			r, err := xds.NewResource(xds.Cluster, name, &clusterv3.Cluster{Name: name, AltStatName: v}, nil, nil)
			if err != nil {
				t.Fatal(err)
			}
			g.Set(r)
		}
		table.Update(g, now)
	}
	p := table.Attach(ledger.Options{SilentAfter: time.Second}, now)
	handle := func(r ledger.Request) ledger.Outcome {
		t.Helper()
		r.Type = xds.Cluster
		out, err := p.Handle(r, now)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	state := func(r *ledger.Response) (out []string) {
		t.Helper()
		for _, res := range p.FullState(r) {
			m := &clusterv3.Cluster{}
			if err := res.Body.UnmarshalTo(m); err != nil {
				t.Fatal(err)
			}
			out = append(out, m.GetName()+m.GetAltStatName())
		}
		slices.Sort(out)
		return out
	}
	equal := func(what string, got []string, want ...string) {
		t.Helper()
		if !slices.Equal(got, want) {
			t.Errorf("%s: %v, want %v", what, got, want)
		}
	}
	ref := func(name string) xds.Ref { return xds.Ref{Type: xds.Cluster, Name: name} }

	update(1, map[string]string{"a": "1", "b": "1", "c": "1"})
	if p.Settled(xds.Cluster) || p.Backlog() != 0 || p.Owing() {
		t.Error("before it asks")
	}
	handle(ledger.Request{Subscribe: []string{"a", "b"}})
	if p.Backlog() != 2 || !p.Lacks(ref("a")) || p.Lacks(ref("none")) {
		t.Errorf("backlog %d", p.Backlog())
	}
	r := p.Next(now)
	equal("first", state(r), "a1", "b1")
	if !p.Owing() || p.Backlog() != 2 || p.Held(ref("a")) != nil {
		t.Error("while it is on its way")
	}
	handle(ledger.Request{Nonce: r.Nonce})
	if p.Owing() || p.Backlog() != 0 || !p.Settled(xds.Cluster) || p.Lacks(ref("a")) {
		t.Error("when all is there")
	}

	// One of two is refused by name; the other counts as taken.
	update(2, map[string]string{"a": "2", "b": "2", "c": "1"})
	var refused []xds.Ref
	for r := p.Next(now); r != nil; r = p.Next(now) {
		q := ledger.Request{Nonce: r.Nonce}
		for _, res := range r.Resources {
			if res.Name == "b" {
				q.Refused, q.Detail, q.Culprits = true, "bad", []string{"b"}
			}
		}
		refused = append(refused, handle(q).Refused...)
	}
	if !slices.Equal(refused, []xds.Ref{ref("b")}) {
		t.Errorf("refused %v", refused)
	}
	if ok, problems := p.Serves(2, now); ok || len(problems) != 1 || problems[0].Ref != ref("b") || problems[0].State != ledger.Refused {
		t.Errorf("serves %v, %+v", ok, problems)
	}
	if !p.Settled(xds.Cluster) {
		t.Error("not settled, though there is nothing to send")
	}

	// The refused one stays as it was.
	update(3, map[string]string{"a": "3", "b": "2", "c": "1"})
	r = p.Next(now)
	equal("beside a refused one", state(r), "a3", "b1")
	handle(ledger.Request{Nonce: r.Nonce})

	// What is given up, and what is gone, is left out.
	handle(ledger.Request{Unsubscribe: []string{"b"}, Subscribe: []string{"c"}})
	r = p.Next(now)
	equal("other names", state(r), "a3", "c1")
	handle(ledger.Request{Nonce: r.Nonce})
	if got := table.Wanted(xds.Cluster, []string{"a", "none"}, false); len(got) != 1 || got[0].Name != "a" {
		t.Errorf("wanted %v", got)
	}
	if got := table.Wanted(xds.Cluster, nil, true); len(got) != 3 {
		t.Errorf("wanted of all %v", got)
	}
	if p.FullState(&ledger.Response{Type: "other"}) != nil || p.Held(xds.Ref{Type: "other"}) != nil || p.Lacks(xds.Ref{Type: "other"}) ||
		!p.Settled("other") || table.Wanted("other", nil, true) != nil {
		t.Error("a type that is not served")
	}
}
