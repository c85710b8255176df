package salvage

import (
	"log/slog"
	"slices"
	"testing"
	"time"

	"github.com/penstock-gateway/penstock/gateway"
	"github.com/penstock-gateway/penstock/gateway/policies"
	"github.com/penstock-gateway/penstock/gateway/source/file"
	"github.com/penstock-gateway/penstock/xds"
	"github.com/penstock-gateway/penstock/xds/compile"
	"github.com/penstock-gateway/penstock/xds/delivery"
	"github.com/penstock-gateway/penstock/xds/ledger"
)

// fleet is one proxy that serves the revision all the time, as far as Standings say: a try
// is another version within it.
type fleet struct {
	Delivery
	refused  string // what it says of the routes
	answered bool
}

const routes = "default/g/http/a.test"

func (f *fleet) status() ledger.ProxyStatus {
	p := ledger.ProxyStatus{View: "default/-", State: ledger.Serving}
	if f.refused != "" {
		p.State = ledger.Refused
		p.Problems = []ledger.Problem{{State: ledger.Refused, Ref: xds.Ref{Type: xds.Route, Name: routes}, Detail: f.refused}}
	}
	return p
}
func (f *fleet) Proxies() []ledger.ProxyStatus { return []ledger.ProxyStatus{f.status()} }
func (f *fleet) Standings(int64) []delivery.Standing {
	return []delivery.Standing{{ProxyStatus: f.status(), Serves: f.refused == ""}}
}
func (f *fleet) Answered(_ string, refs []xds.Ref) []bool {
	return slices.Repeat([]bool{f.answered}, len(refs))
}

// TestUnanswered: a try counts when it was answered, not because the proxies serve the
// revision that it belongs to.
func TestUnanswered(t *testing.T) {
	proxies := &fleet{answered: true}
	compiler, view := compile.New(compile.Settings{}), compile.View{Project: "default", Gateway: compile.AllGateways}
	var snapshot *gateway.Snapshot
	var room *Room
	published := 0
	publish := func() {
		g, _ := compiler.Compile(compile.Input{Snapshot: snapshot, View: view, Holds: room.Holds(view)})
		if g.Get(xds.Route, routes) == nil {
			t.Fatalf("no %s", routes)
		}
		room.Published(view, snapshot, g)
		published++
	}
	room = New(Params{
		Delivery: proxies, Log: slog.New(slog.DiscardHandler), Now: time.Now,
		Revision: func() int64 { return snapshot.Revision() }, Still: func(f func(func())) { f(publish) },
	})
	change := func(yaml string) {
		t.Helper()
		objects, errs := file.Decode("test.yaml", []byte(yaml))
		if len(errs) > 0 {
			t.Fatal(errs.Error())
		}
		var revision int64
		if snapshot != nil {
			revision = snapshot.Revision()
		}
		snapshot = policies.Model().Build(snapshot, revision+1, gateway.Changes{Updates: objects})
		publish()
	}
	rule := func(name, body string) string {
		return "\n- {name: " + name + ", matches: [{path: {exact: /" + name + "}}], direct_response: {status: 200, body: " + body + "}}"
	}
	change("kind: Gateway\nname: g\nlisteners: [{name: http, port: 8080}]\n---\nkind: Route\nname: r\nhostnames: [a.test]\nrules:" + rule("good", "old") + rule("bad", "old"))
	change("kind: Route\nname: r\nhostnames: [a.test]\nrules:" + rule("good", "new") + rule("bad", "new"))
	proxies.refused = "no"
	room.look()
	begun := published
	// The try is on its way: nothing is said of it yet.
	proxies.refused, proxies.answered = "", false
	room.look()
	if published != begun || !slices.Equal(room.Unclear(), []string{routes}) {
		t.Fatalf("an unanswered try was taken for accepted: %d versions more, unclear %v", published-begun, room.Unclear())
	}
	proxies.answered = true
	room.look()
	if published == begun {
		t.Error("the answer was not taken")
	}
}
