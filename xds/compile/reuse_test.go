package compile

import (
	"bytes"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/penstock-gateway/penstock/gateway"
	"github.com/penstock-gateway/penstock/gateway/policies"
	"github.com/penstock-gateway/penstock/gateway/source/file"
)

// variants are objects of one host of which each name has several.
func variants(t testing.TB) map[string][]gateway.Object {
	texts := []string{
		`{kind: Gateway, name: edge, listeners: [{name: http, port: 8080}]}`,
		`{kind: Backend, name: up, static: {endpoints: [{address: 10.0.0.1, port: 80}]}}`,
		`{kind: Backend, name: up, dns: {hostname: up.test, port: 80}}`,
		`{kind: Consumer, name: alice, jwt: {issuer: "https://issuer.test", subject: alice}}`,
		`{kind: Consumer, name: alice, jwt: {issuer: "https://issuer.test", subject: bob}}`,
	}
	jwt := `authentication: {jwt: {issuer: "https://issuer.test", audiences: [app], jwks_secret: keys%s}}`
	for i := range 5 {
		for _, rest := range []string{
			`direct_response: {status: 200}`,
			`forward: {backends: [{backend: up}]}`,
			`redirect: {host: other.test}`,
			`forward: {backends: [{backend: up}]}, policies: {retry: {idempotent: {attempts: 1}, other: {attempts: 0}}}`,
			`forward: {backends: [{backend: up}]}, policies: {retry: {idempotent: {attempts: 0}, other: {attempts: 0}}}`,
			`forward: {backends: [{backend: up}]}, policies: {rate_limit: {limits: [{name: l, requests: 1, window: 1s}]}}`,
			`forward: {backends: [{backend: up}]}, policies: {` + fmt.Sprintf(jwt, "") + `}`,
			`forward: {backends: [{backend: up}]}, policies: {` + fmt.Sprintf(jwt, ", consumers: [alice]") + `}`,
			`forward: {backends: [{backend: up}]}, policies: {rate_limit: {limits: [{name: l, requests: 1, window: 0.0000015s}]}}`, // a problem
		} {
			texts = append(texts, fmt.Sprintf(`{kind: Route, name: r%d, hostnames: [a.test], rules: [{name: one, matches: [{path: {prefix: /%d}}, {path: {exact: /x%d}}], %s}]}`, i, i, i, rest))
		}
	}
	out := map[string][]gateway.Object{}
	for _, text := range texts {
		all, errs := file.Decode("test.yaml", []byte(text))
		if len(errs) > 0 {
			t.Fatal(errs.Error())
		}
		for _, o := range all {
			policies.Model().Normalize(o)
			out[o.GetName()] = append(out[o.GetName()], o)
		}
	}
	return out
}

// TestRecompile: a unit that was made of the one before is the one that is made anew.
func TestRecompile(t *testing.T) {
	objects := variants(t)
	names := slices.Sorted(maps.Keys(objects))
	const edge = "projects/default/gateways/edge"
	reused := 0
	rapid.Check(t, func(t *rapid.T) {
		var s *gateway.Snapshot
		var old *unit
		change := gateway.Changes{Updates: objects[edge]}
		for _, name := range names {
			change.Updates = append(change.Updates, rapid.SampledFrom(objects[name]).Draw(t, name))
		}
		for step := range rapid.IntRange(1, 8).Draw(t, "steps") {
			s = policies.Model().Build(s, int64(step+1), change)
			change = gateway.Changes{}
			for _, name := range rapid.SliceOfNDistinct(rapid.SampledFrom(names), 1, 2, rapid.ID).Draw(t, "names") {
				if rapid.IntRange(0, 4).Draw(t, "delete") == 0 && name != edge {
					change.Deletes = append(change.Deletes, name)
				} else {
					change.Updates = append(change.Updates, rapid.SampledFrom(objects[name]).Draw(t, name))
				}
			}
			hosts := s.Hosts(edge, "http")
			if len(hosts) == 0 {
				old = nil
				continue
			}
			fresh := compileHost(s, hosts[0], nil, nil)
			fresh.seal(hosts[0])
			next := fresh
			if u := recompile(s, hosts[0], old); u != nil {
				reused++
				if err := same(u, fresh); err != nil {
					t.Fatal(err)
				}
				next = u
			}
			old = next
		}
	})
	if reused == 0 {
		t.Error("none was ever reused")
	}
}

func same(a, b *unit) error {
	if !bytes.Equal(a.raw, b.raw) || a.err != nil || b.err != nil {
		return fmt.Errorf("bytes\n%x (%w), want\n%x (%w)", a.raw, a.err, b.raw, b.err)
	}
	var keys [2][]providerKey
	for i, u := range []*unit{a, b} {
		for _, p := range u.providers {
			keys[i] = append(keys[i], keyOf(p))
		}
	}
	for what, pair := range map[string][2]any{
		"name": {a.name, b.name}, "host": {a.host, b.host}, "refs": {a.refs, b.refs}, "owners": {a.owners, b.owners},
		"eager": {a.uses, b.uses}, "consumers": {a.consumers, b.consumers}, "targets": {a.targets, b.targets},
		"requirements": {a.requirements, b.requirements}, "providers": {keys[0], keys[1]}, "problems": {len(a.problems), len(b.problems)},
	} {
		if !reflect.DeepEqual(pair[0], pair[1]) {
			return fmt.Errorf("%s: %v, want %v", what, pair[0], pair[1])
		}
	}
	for i, m := range a.made {
		if n := b.made[i]; m.entry != n.entry || m.from != n.from || m.to != n.to || len(m.traits) != len(n.traits) {
			return fmt.Errorf("entry %d stands from %d to %d, want %d to %d", i, m.from, m.to, n.from, n.to)
		}
	}
	return nil
}
