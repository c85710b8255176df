package ledger_test

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/penstock-gateway/penstock/xds"
	"github.com/penstock-gateway/penstock/xds/ledger"
)

// TestMadeUpNames: a proxy that asks for ever new names, as one does whose clients
// make up server names, and one that leaves after asking for many, leave nothing
// behind.
func TestMadeUpNames(t *testing.T) {
	now := time.Unix(1_000_000, 0)
	table := ledger.NewTable()
	table.Update(&xds.Generation{Revision: 1}, now)
	handle := func(p *ledger.Proxy, r ledger.Request) error {
		r.Type = xds.Secret
		_, err := p.Handle(r, now)
		return err
	}
	p := table.Attach(ledger.Options{}, now)
	for i := range 100_000 {
		name := fmt.Sprint("made-up-", i)
		if err := handle(p, ledger.Request{Subscribe: []string{name}}); err != nil {
			t.Fatal(err)
		}
		r := p.Next(now)
		if r == nil || len(r.Removed) != 1 || r.Removed[0] != name {
			t.Fatalf("%s is answered %+v", name, r)
		}
		if err := handle(p, ledger.Request{Nonce: r.Nonce, Unsubscribe: []string{name}}); err != nil {
			t.Fatal(err)
		}
	}
	if n := table.Slots(); n > 10 {
		t.Errorf("%d names are kept", n)
	}
	q := table.Attach(ledger.Options{}, now)
	for i := range 10_001 {
		err := handle(q, ledger.Request{Subscribe: []string{fmt.Sprint("more-", i)}})
		if (i == 10_000) != errors.Is(err, ledger.ErrTooManyNames) {
			t.Fatalf("name %d: %v", i, err)
		}
	}
	q.Detach()
	if n := table.Slots(); n > 10 {
		t.Errorf("%d names are kept after the proxy has left", n)
	}
	if _, err := p.Handle(ledger.Request{Type: "type.googleapis.com/no.such.Type"}, now); !errors.Is(err, ledger.ErrType) {
		t.Errorf("unknown type: %v", err)
	}
}
